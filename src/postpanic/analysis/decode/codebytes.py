"""
The bytes of a ``Code:`` line: what each machine prints, and which of them trapped.

=========  =======================================================  =====================
machine    what is printed                                          the instruction
=========  =======================================================  =====================
x86        bytes, 42 before the instruction and 21 behind           ``<0f>`` its first byte
arm64      words of 32 bits, four before                            ``(b9400000)``
arm        words of 32 bits; of Thumb, halfwords                    ``(e5933000)``, ``(681b)``
riscv      halfwords                                                ``(4108)``, its first one
powerpc    words of 32 bits, also below ``Instruction dump:``       ``<e9230000>``
s390       instructions with their addresses (``Krnl Code:``)       ``>`` before the next one, ``#`` before that one
mips       words of 32 bits; of microMIPS, halfwords                ``<8c820000>``
loongarch  words of 32 bits                                         ``<28c00000>``
=========  =======================================================  =====================

References
----------
arch/x86/kernel/dumpstack.c ``show_opcodes``; arch/arm64/kernel/traps.c, arch/arm/kernel/traps.c ``dump_instr``;
arch/riscv/kernel/traps.c ``dump_instr``; arch/powerpc/kernel/process.c ``show_instructions``;
arch/s390/kernel/dis.c ``show_code``; arch/mips/kernel/traps.c and arch/loongarch/kernel/traps.c ``show_code``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

__all__ = ["CodeBytes", "decode_code", "decode_krnl_code", "machine_of"]

_WORD = re.compile(r"([<(]?)([0-9a-f]{2}|[0-9a-f]{4}|[0-9a-f]{8})[>)]?$")
_KRNL = re.compile(r"(?:Krnl Code:)?[ \t]{0,24}([#>*]{0,2})[ \t]{0,4}([0-9a-f]{8,16}): ?((?:[0-9a-f]{4}){1,3})\b")
_BIG = frozenset({"ppc64", "ppc", "mips", "mips64", "s390x", "micromips"})
_MOST_BYTES = 4096
_MACHINES = {
    "x86": "i386",
    "i686": "i386",
    "arm64": "aarch64",
    "ppc64le": "ppc64",
    "powerpc": "ppc64",
    "riscv": "riscv64",
    "s390": "s390x",
    "loongarch64": "loongarch64",
}
_RELEASE_MACHINES = re.compile(
    r"(amd64|x86_64|arm64|aarch64|armmp|riscv64|ppc64le|powerpc64le|s390x|loong(?:arch)?64|686|i686)\b"
)
_SPELT = {
    "amd64": "x86_64",
    "arm64": "aarch64",
    "armmp": "arm",
    "ppc64le": "ppc64",
    "powerpc64le": "ppc64",
    "loong64": "loongarch64",
    "686": "i386",
    "i686": "i386",
}


class CodeBytes(msgspec.Struct, frozen=True):
    """
    Code around an instruction.

    Parameters
    ----------
    machine : str
        What it is code of, as :class:`~postpanic.analysis.code.instructions.Disassembler` takes it.
    data : bytes
        As it lies in memory, without holes.
    mark : int, optional
        Place of the instruction in it, bytes; None: nothing marks one.
    vaddr : int, optional
        Address of the first byte, where the kernel prints it.
    word_bytes : int
        Size of what was printed as one number.
    """

    machine: str
    data: bytes
    mark: int | None
    vaddr: int | None = None
    word_bytes: int = 1


def machine_of(architecture: str, code: str = "", release: str = "") -> str:
    """
    Name the machine that code is of: by what the report shows, else by the release, else by the shape of the code.

    >>> machine_of("x86"), machine_of("", "48 8b <07>"), machine_of("", "b9400000 (f9400000)", "6.1.0-armmp")
    ('i386', 'x86_64', 'arm')
    """
    if architecture:
        name = _MACHINES.get(architecture, architecture)
        return (
            "armt"
            if name == "arm" and _digits(code) == 4
            else "micromips"
            if name == "mips" and _digits(code) == 4
            else name
        )
    if (match := _RELEASE_MACHINES.search(release)) is not None:
        return machine_of(_SPELT.get(match[1], match[1]), code)
    return {2: "x86_64", 4: "riscv64", 8: "aarch64"}.get(_digits(code), "")


def _digits(code: str) -> int:
    return min((len(word.strip("<>()")) for word in code.split()[:64]), default=0)


def decode_code(text: str, machine: str) -> CodeBytes | None:
    r"""
    Read the numbers of a ``Code:`` line; None if there are none.

    What could not be read by the kernel (``????????``) ends what is known on its side of the instruction.

    >>> decode_code("48 8b <07> 90", "x86_64")
    CodeBytes(machine='x86_64', data=b'H\x8b\x07\x90', mark=2, vaddr=None, word_bytes=1)
    """
    order = "big" if machine in _BIG else "little"
    pieces: list[bytes] = []
    mark: int | None = None
    size = length = 0
    for word in text.split()[:_MOST_BYTES]:
        match = _WORD.match(word)
        if match is None:
            if mark is not None:
                break
            pieces, length = [], 0
            continue
        if match[1] and mark is None:
            mark = length
        value = bytes.fromhex(match[2])
        size = size or len(value)
        pieces.append(value if order == "big" else value[::-1])
        length += len(value)
    data = b"".join(pieces)
    return CodeBytes(machine, data, mark, None, size) if data else None


def decode_krnl_code(lines: Sequence[str]) -> CodeBytes | None:
    """
    Read what s390 prints as ``Krnl Code:``; None if there is none.

    The kernel marks the next instruction with ``>`` and the one before it, which is that of the trap, with ``#``.
    """
    vaddrs: list[int] = []
    pieces: list[bytes] = []
    marked = following = None
    is_inside = False
    for line in lines:
        is_inside = is_inside or "Krnl Code:" in line
        match = _KRNL.search(line) if is_inside else None
        if match is None:
            if pieces:
                break
            continue
        vaddr, data = int(match[2], 16), bytes.fromhex(match[3])
        if vaddrs and vaddr != vaddrs[-1] + len(pieces[-1]):
            break
        marked = vaddr if "#" in match[1] else marked
        following = vaddr if ">" in match[1] else following
        vaddrs.append(vaddr)
        pieces.append(data)
        if len(pieces) > 64:
            break
    if not pieces:
        return None
    trapped = marked if marked is not None else following
    return CodeBytes(
        "s390x", b"".join(pieces), trapped - vaddrs[0] if trapped is not None else None, vaddrs[0], len(pieces[0])
    )
