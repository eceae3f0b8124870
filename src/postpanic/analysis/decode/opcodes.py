"""
How seldom the opcodes of x86 are in a kernel: what tells instructions from what chance makes of their bytes.

Counted in the text of a 64-bit kernel that gcc 12 compiled with -O2: half a million instructions. A million others
agree to a bit or two; nothing depends on more.
"""

from __future__ import annotations

__all__ = ["BITS", "RARE_BITS"]

RARE_BITS = 17
"""Of an opcode that is not listed."""

_LISTED: dict[int, str] = {
    3: "w89",
    4: "ne8 w8b",
    5: "n74 n89 ne9 w83 w85 w8d wc7",
    6: "n31 n5b n5d n75 n83 n85 n8b neb nf84 nf85 r89",
    7: "n53 n55 nba nbe nfb6 r54 r5c r5d r8b w39 wc1",
    8: (
        "n39 n80 n81 n84 n8d na8 nb8 nb9 nc1 nc7 nf0b nf6 nfb7 r31 r55 r56 r57 r5e r5f r83 rfb6 w01 w29 w63 "
        "w81 ws2b ws8b"
    ),
    9: ("n01 n29 n72 n73 n77 n88 na9 nbf nc6 nf7 nf82 nf83 nf87 nff no89 nsff r39 r85 r8d rf6 rfb7 w03 w3d wf7 wsab"),
    10: (
        "n09 n25 n3b n3c n6a n76 n78 n7e nbb nbd nf1f nf86 nf88 nf8e no83 no90 r01 r29 r80 r81 r84 r88 rb8 "
        "rbc rc1 ro89 w09 w21 w2b w31 w3b w98 wb8 wd3 wf44 wf45 wfa3"
    ),
    11: (
        "n21 n3d n50 n58 n5a n79 n7f n90 nd3 nf45 nf8f nf94 nf95 no85 ns80 ns8b nsfc1 r3b rb9 rbd rbe rbf rc6 "
        "rc7 rf7 w69 wba wfaf ws03 wsff"
    ),
    12: (
        "n03 n19 n2b n33 n7c n7d nc0 ncc nd1 nf44 nf89 nfaf nfc8 no25 no3d no81 noc1 ns83 nsfb1 r09 r21 r33 "
        "r38 rf94 rf95 ro83 rsfc1 w05 w23 w25 wb9 wc4 wd1 wf47 wfba wsfba"
    ),
    13: (
        "n0b n0d n23 n30 n38 n59 n68 n69 nee nf42 nf46 nf47 nf4f nf8c nf8d nf92 nfbe no39 nse8 r03 r2b r52 "
        "rba rd3 rf44 rf45 rfaf rfbe ro81 rs80 rsff w0b w19 w2d w33 w87 wbd wbe wbf wf42 wf43 wf46 wf48 wfab "
        "wfbc ws01 ws83 wsa5 wsfab wsfb1"
    ),
    14: (
        "n08 n3a n51 n52 n56 n5e n87 nc9 nd0 nf43 nf49 nf4e nfbf ns81 r30 r3a r5a rbb rc0 rf92 rfbf ro39 ro85 "
        "roc1 wf49 wf4f wff"
    ),
}
"""
Opcodes by their bits of information.

``n``: no REX prefix, ``r``: one, ``w``: one with W (64-bit operands); ``o``: operand size prefix (66), ``s``: another
legacy prefix; then the opcode, with its escape bytes (``0f``).
"""

BITS: dict[str, int] = {key: bits for bits, keys in _LISTED.items() for key in keys.split()}
