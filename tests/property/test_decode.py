"""Whatever a log or a file of symbols holds: an answer or one clear error, never a traceback, and lines stay whole."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postpanic.analysis.code.instructions import MACHINES
from postpanic.analysis.decode import answer, codebytes, context, errorcodes, maps, operands, spots
from postpanic.analysis.decode.annotate import Annotator
from postpanic.analysis.decode.answer import decode_text
from postpanic.analysis.decode.codebytes import decode_code, decode_krnl_code
from postpanic.analysis.decode.errorcodes import find_error_codes
from postpanic.analysis.decode.files import read_elf_facts, unpack_module
from postpanic.analysis.decode.kernel import KernelSymbols
from postpanic.analysis.decode.listing import list_code, render_listing
from postpanic.analysis.decode.maps import decode_map
from postpanic.analysis.decode.spots import SpotReader
from postpanic.analysis.decode.store import SymbolOptions, SymbolStore
from postpanic.errors import PostpanicError
from postpanic.report.json import encode_json
from postpanic.report.text import render_text
from tests.builders.vmlinux import Section, build_id_section, build_vmlinux

REPORT = b"""[    1.000000] BUG: unable to handle page fault for address: dead000000000108
[    1.000000] #PF: error_code(0x0002) - not-present page
[    1.000000] Oops: 0002 [#1] PREEMPT SMP KASAN
[    1.000000] CPU: 0 PID: 1 Comm: init Tainted: G        W  OE      6.1.0 #1 0123456789abcdef0123456789abcdef01234567
[    1.000000] RIP: 0010:do_open+0x10/0x20 [ext4]
[    1.000000] Code: 55 48 89 fb <48> 89 43 08 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90
[    1.000000] RSP: 0018:ffffc90000123e00 EFLAGS: 00010246
[    1.000000] RAX: dead000000000100 RBX: 6b6b6b6b6b6b6b6b RCX: fffffffffffffff4
[    1.000000] Call Trace:
[    1.000000]  <TASK>
[    1.000000]  ? do_open+0x10/0x20
[    1.000000]  [<ffffffff81000010>] start+0x10/0x40
[    1.000000]  [<ffffffff81000010>]
[    1.000000]  0xffffffff81000020
[    1.000000]  </TASK>
[    1.000000] Kernel Offset: 0x1000000 from 0xffffffff81000000
[    1.000000] ---[ end trace 0000000000000000 ]---
"""
ARM64 = b"""[    1.000000] Unable to handle kernel paging request at virtual address dfff800000000005
[    1.000000]   ESR = 0x0000000096000004
[    1.000000] Internal error: Oops: 0000000096000004 [#1] SMP
[    1.000000] CPU: 0 PID: 1 Comm: init Not tainted 6.1.0 #1
[    1.000000] pc : do_open+0x10/0x20
[    1.000000] lr : do_open+0x8/0x20
[    1.000000] x29: ffff800000000000 x28: 0000000000000000 x27: dfff800000000005
[    1.000000] Call trace:
[    1.000000]  do_open+0x10/0x20 (P)
[    1.000000] Code: a9bf7bfd 910003fd d503201f 52800020 (f9401400)
"""
PIECES = st.sampled_from(
    [line for text in (REPORT, ARM64) for line in text.split(b"\n")]
    + [b"Code: ", b"<", b">", b"+0x", b"/0x", b"[<", b">]", b"\x00\xff", b"\x1b[31m", b"Krnl Code: ", b"0" * 40, b"\r"]
)
TEXTS = st.lists(PIECES | st.binary(max_size=20), max_size=40).map(
    lambda parts: b"".join(part + b"\n" if len(part) > 12 else part for part in parts)
)
INSERTED = re.compile(r"( [\w.$]+\+0x[0-9a-f]+/0x[0-9a-f]+)? \([^()]*\)")


SYMBOLS = [("start", 0xFFFFFFFF81000000, 16), ("do_open", 0xFFFFFFFF81000010, 32)]
CODE = Section(".text", b"\x90" * 64, vaddr=0xFFFFFFFF81000000, flags=6)
VMLINUX = build_vmlinux([CODE, build_id_section(bytes(20))], SYMBOLS, has_segments=True)


def store(tmp_path: Path) -> SymbolStore:
    table = tmp_path / "System.map"
    if not table.exists():
        table.write_text("ffffffff80000000 T start\nffffffff80000040 T do_open\nffffffff80000060 T behind\n")
    return SymbolStore(SymbolOptions(kernel=table), tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(TEXTS)
def test_any_text_is_answered(tmp_path: Path, text: bytes) -> None:
    decoded = decode_text(text, store(tmp_path))
    assert "".join(render_text(decoded)) is not None
    assert encode_json(decoded)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(
    st.sampled_from([REPORT, ARM64]),
    st.lists(st.tuples(st.integers(0, 1500), st.binary(min_size=1, max_size=4)), max_size=8),
)
def test_a_damaged_report_is_answered(tmp_path: Path, text: bytes, damage: list[tuple[int, bytes]]) -> None:
    for place, data in damage:
        text = text[:place] + data + text[place + len(data) :]
    assert encode_json(decode_text(text, store(tmp_path)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(TEXTS)
def test_lines_stay_as_they_are(tmp_path: Path, text: bytes) -> None:
    """Symbols without lines put in nothing but the names of bare addresses, and lines behind ``Code:``."""
    annotator = Annotator(store(tmp_path))
    for raw in text.split(b"\n"):
        line = raw.decode("utf-8", "surrogateescape")
        first = annotator.annotate(line).split("\n")[0] if "\n" not in line else line
        assert INSERTED.sub("", first) == INSERTED.sub("", line) or first.startswith(line.rstrip("\r\t "))


@given(st.text(alphabet="0123456789abcdef <>()?x", max_size=400), st.sampled_from(sorted(MACHINES)))
def test_any_code_is_listed(text: str, machine: str) -> None:
    code = decode_code(text, machine)
    if code is not None:
        listing = list_code(code, None, registers={"RAX": 1, "x0": 0, "r0": 1, "a0": 2, "GPR03": 3}, fault_vaddr=0)
        assert sum(len(one.data) for one in listing.instructions) <= len(code.data)
        assert len(render_listing(listing)) == len(listing.instructions)


@given(st.binary(max_size=64), st.integers(0, 63), st.sampled_from(sorted(MACHINES)))
def test_the_instruction_that_trapped_begins_at_its_mark(data: bytes, mark: int, machine: str) -> None:
    """Wherever the search begins, what is listed before ends where the known instruction begins."""
    size = 1 if machine in {"x86_64", "i386"} else 4
    words = [data[place : place + size].hex() for place in range(0, len(data) - size + 1, size)]
    if mark // size >= len(words):
        return
    words[mark // size] = f"<{words[mark // size]}>"
    code = decode_code(" ".join(words), machine)
    assert code is not None
    listing = list_code(code, None)
    before = 0
    for one in listing.instructions:
        if one.is_trap:
            break
        before += len(one.data)
    assert before <= (code.mark or 0)


@given(st.lists(st.text(max_size=80), max_size=10), st.sampled_from([*sorted(MACHINES), "s390x", ""]))
def test_any_lines_have_codes_or_none(lines: list[str], machine: str) -> None:
    find_error_codes(lines, machine)
    decode_krnl_code([f"Krnl Code: {line}" for line in lines])
    reader = SpotReader()
    for line in lines:
        for spot in reader.read(line):
            assert 0 <= spot.end <= len(line)


@given(st.binary(max_size=300))
def test_any_map(data: bytes) -> None:
    assert all(symbol.name for symbols in decode_map(data).values() for symbol in symbols)


def test_a_sound_vmlinux_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(VMLINUX)
    kernel = KernelSymbols()
    kernel.load_vmlinux(path)
    match = kernel.find("do_open", 32, 0, "", "", tmp_path)
    assert match is not None
    assert [symbol.vaddr for symbol in match.symbols] == [0xFFFFFFFF81000010]
    assert kernel.read_code(0xFFFFFFFF81000010, 4) == b"\x90" * 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_a_damaged_vmlinux_is_one_error(tmp_path: Path, data: st.DataObject) -> None:
    sound = VMLINUX
    cut = data.draw(st.integers(0, len(sound)))
    place = data.draw(st.integers(0, max(cut - 1, 0)))
    damaged = bytearray(sound[:cut])
    if damaged:
        damaged[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "vmlinux"
    path.write_bytes(damaged)
    error = _error_of(lambda: KernelSymbols().load_vmlinux(path))
    assert "\n" not in error
    assert not error or str(path) in error


def _error_of(action: Callable[[], object]) -> str:
    try:
        action()
    except PostpanicError as exc:
        return str(exc)
    return ""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.sampled_from([gzip.compress, lzma.compress]), st.data())
def test_a_damaged_module_is_one_error(tmp_path: Path, pack: object, data: st.DataObject) -> None:
    assert callable(pack)
    packed = bytearray(pack(VMLINUX))
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "llc.ko.xz"
    path.write_bytes(packed[: data.draw(st.integers(1, len(packed)))])
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    assert "\n" not in _error_of(lambda: read_elf_facts(unpack_module(path, scratch)))


_CLASS_OR_ESCAPE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]")
_ENDLESS = re.compile(r"[*+]|\{\d+,\}")


def _unbounded(pattern: str | bytes) -> bool:
    """Tell whether something in a pattern may be repeated without an end."""
    text = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
    return _ENDLESS.search(_CLASS_OR_ESCAPE.sub("x", text)) is not None


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        (f"{module.__name__}.{name}", value)
        for module in (answer, codebytes, context, errorcodes, maps, operands, spots)
        for name, value in vars(module).items()
        if isinstance(value, re.Pattern)
    ],
)
def test_no_pattern_repeats_without_an_end(name: str, pattern: re.Pattern[str]) -> None:
    """What is bounded takes time that grows with the length of a line, whatever is in it."""
    assert not _unbounded(pattern.pattern), name


def test_the_rule_for_patterns_sees_what_it_must() -> None:
    assert _unbounded("[ab](?:x|y*)z")
    assert _unbounded(rb"\d+")
    assert not _unbounded(r"[a*+b]{1,9}(?:x|y?)\+\*z")
