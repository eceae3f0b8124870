"""
Locations and code judged by others: binutils' addr2line and objdump, the kernel's own table, and its script.

All read the same vmlinux of a distribution; none of them shares code with drgn or capstone.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import pytest

from postpanic.analysis.decode.annotate import Annotator
from postpanic.analysis.decode.codebytes import CodeBytes
from postpanic.analysis.decode.from_dump import load_dump_symbols
from postpanic.analysis.decode.kernel import KernelSymbols, Place
from postpanic.analysis.decode.listing import list_code
from postpanic.analysis.decode.spots import Spot
from postpanic.analysis.decode.store import SymbolOptions, SymbolStore
from postpanic.analysis.decode.symbols import Fit, Symbol
from postpanic.dumps.open import open_dump
from postpanic.errors import PostpanicError
from postpanic.kernel.kallsyms import read_kallsyms
from postpanic.kernel.memory import open_kernel_memory
from postpanic.process import find_program
from tests.compat.kernel_scripts import fetch_decode_stacktrace
from tests.vm.lab import Crash

KERNEL = "6.12"
pytestmark = pytest.mark.compat


@dataclass
class Located:
    """A crash with its vmlinux, which is open."""

    crash: Crash
    vmlinux: Path
    kernel: KernelSymbols
    functions: list[tuple[str, int, int]]
    """Name, address as linked and size as printed, of functions all over the text."""


def _nm(vmlinux: Path) -> Iterator[tuple[str, int, int]]:
    listed = subprocess.run(
        [find_program("nm"), "-n", "--defined-only", vmlinux], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in listed.splitlines() if line.count(" ") == 2]
    texts = [(name, int(vaddr, 16)) for vaddr, letter, name in rows if letter in "tT" and "." not in name]
    for (name, vaddr), (_, behind) in pairwise(texts):
        if behind - vaddr >= 64 and not name.startswith("__pfx_"):
            yield name, vaddr, behind - vaddr


@pytest.fixture(scope="module")
def located(crashed: Callable[[str], Crash]) -> Located:
    crash = crashed(KERNEL)
    vmlinux = crash.vmlinux
    if vmlinux is None:
        pytest.skip("the kernel's own debug information cannot be had")
    kernel = KernelSymbols()
    kernel.load_vmlinux(vmlinux)
    functions = list(_nm(vmlinux))
    return Located(crash, vmlinux, kernel, functions[:: max(1, len(functions) // 150)])


def _addr2line(vmlinux: Path, vaddrs: list[int]) -> list[list[tuple[str, str]]]:
    """Ask for function and ``file:line`` of addresses, inlined ones first."""
    asked = "\n".join(f"{vaddr:#x}" for vaddr in vaddrs)
    command: list[str | Path] = [find_program("addr2line"), "-a", "-i", "-f", "-e", vmlinux]
    printed = subprocess.run(command, input=asked, capture_output=True, text=True, check=True).stdout
    answers: list[list[tuple[str, str]]] = []
    lines = iter(printed.splitlines())
    for line in lines:
        if line.startswith("0x"):
            answers.append([])
            continue
        place = next(lines).partition(" (discriminator")[0]
        answers[-1].append((line, _tail(place)))
    return answers


def _tail(place: str) -> str:
    """Take the last two parts of a path: the programs differ in what they make of the directory of the build."""
    return "/".join(place.split("/")[-2:])


def test_lines_are_those_of_addr2line(located: Located) -> None:
    vaddrs = [vaddr + size // 2 for _, vaddr, size in located.functions]
    theirs = _addr2line(located.vmlinux, vaddrs)
    differences = []
    compared = other_files = 0
    for vaddr, answer in zip(vaddrs, theirs, strict=True):
        if any("?" in place or place.endswith(":0") for _, place in answer):
            continue
        compared += 1
        ours = [(line.function, _tail(str(line))) for line in located.kernel.lines_at(vaddr)]
        if [_line(place) for _, place in ours] != [_line(place) for _, place in answer]:
            differences.append((hex(vaddr), ours, answer))
        other_files += [place for _, place in ours] != [place for _, place in answer]
    assert compared > 100
    assert len(differences) <= compared // 50, differences[:5]
    # Of what macros of tracing made in a header, binutils 2.40 names the file that included it.
    assert other_files <= compared // 10


def _line(place: str) -> str:
    return place.rpartition(":")[2]


def test_functions_are_found_by_the_size_that_the_kernel_prints(located: Located) -> None:
    """The sizes are those of the running kernel's own table, read from the dump."""
    with open_dump(located.crash.raw) as dump:
        memory = open_kernel_memory(dump)
        table = read_kallsyms(memory)
        names = table.names
        slide = memory.vmcoreinfo.kerneloffset or 0
    start = table.get("_stext")
    end = table.get("_etext")
    assert start is not None
    assert end is not None
    rows = [
        (vaddr - slide, names[offset : names.index(b"\0", offset)].decode())
        for vaddr, letter, offset in zip(
            table.vaddrs.tolist(), table.types.tolist(), table.name_offsets.tolist(), strict=True
        )
        if start <= vaddr < end and chr(letter) in "tT"
    ]
    ends = sorted({vaddr for vaddr, _ in rows})
    behind = dict(pairwise(ends))
    wrong = []
    ambiguous = 0
    for vaddr, name in rows[:: max(1, len(rows) // 3000)]:
        if vaddr not in behind:
            continue
        match = located.kernel.find(name, behind[vaddr] - vaddr, 0, "", "", Path())
        if match is None or match.fit not in {Fit.EXACT, Fit.PADDED} or vaddr not in {s.vaddr for s in match.symbols}:
            wrong.append((hex(vaddr), name, behind[vaddr] - vaddr, match))
        elif len(match.symbols) > 1:
            ambiguous += 1
    assert len(wrong) <= len(rows) // 3000, wrong[:5]
    assert ambiguous < 60


def test_a_dump_has_the_symbols_of_its_kernel(located: Located) -> None:
    kernel = KernelSymbols()
    assert load_dump_symbols(kernel, located.crash.raw) == located.crash.release
    assert kernel.build_id == located.kernel.build_id
    asked = [one for one in located.functions if _is_unique(kernel, one[0]) and _is_unique(located.kernel, one[0])]
    found = [kernel.find(name, None, 0, "", "", Path()) for name, _, _ in asked]
    assert len(asked) > 100
    assert [match.symbols[0].vaddr for match in found if match is not None] == [vaddr for _, vaddr, _ in asked]


def _objdump(vmlinux: Path, start: int, end: int) -> set[int]:
    command: list[str | Path] = [
        "objdump",
        "-d",
        "--no-show-raw-insn",
        f"--start-address={start:#x}",
        f"--stop-address={end:#x}",
        vmlinux,
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {int(match[1], 16) for match in re.finditer(r"^([0-9a-f]{8,16}):\t", printed, re.MULTILINE)}


def test_instructions_begin_where_objdump_begins_them(located: Located) -> None:
    """With the vmlinux every listing is right; the bytes are cut as the kernel cuts them."""
    checked = 0
    for name, vaddr, size in islice((one for one in located.functions if one[2] >= 160), 12):
        theirs = sorted(_objdump(located.vmlinux, vaddr, vaddr + size))
        trap = next(start for start in theirs if start >= vaddr + 64)
        data = located.kernel.read_code(trap - 42, 64)
        spot = Spot(name, trap - vaddr, size, "", "", None, is_exact=True, end=0)
        listing = list_code(CodeBytes("x86_64", data, 42), spot, Place(Symbol(vaddr, name, size), trap), located.kernel)
        ours = {int(one.place.rpartition("+")[2], 16) + vaddr for one in listing.instructions}
        behind = max(ours)
        assert ours == {start for start in theirs if trap - 42 <= start <= behind}, name
        checked += 1
    assert checked == 12


_PLACES = re.compile(r"\(([^()]*:\d+[^()]*)\)")


def _places(line: str) -> list[str]:
    match = _PLACES.search(re.sub(r" \(discriminator \d+\)", "", line))
    return [_tail(word) for word in match[1].split() if ":" in word] if match is not None else []


def test_locations_are_those_of_the_kernels_script(located: Located, tmp_path: Path) -> None:
    """Program counters: of return addresses the script of this version shows the line behind the call."""
    try:
        script = fetch_decode_stacktrace()
    except PostpanicError as exc:
        pytest.skip(f"decode_stacktrace.sh cannot be had: {exc}")
    chosen = [one for one in located.functions if _is_unique(located.kernel, one[0])][5::20][:6]
    lines = [f"[    1.000000] RIP: 0010:{name}+{size // 2:#x}/{size:#x}" for name, _, size in chosen]
    command: list[str | Path] = [find_program("bash"), script, located.vmlinux, "auto"]
    printed = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=True).stdout
    annotator = Annotator(SymbolStore(SymbolOptions(kernel=located.vmlinux), tmp_path))
    ours = [_places(annotator.annotate(line)) for line in lines]
    theirs = [_places(line) for line in printed.splitlines() if "RIP" in line]
    assert all(ours)
    assert ours == theirs


def _is_unique(kernel: KernelSymbols, name: str) -> bool:
    match = kernel.find(name, None, 0, "", "", Path())
    return match is not None and len(match.symbols) == 1


def test_every_frame_of_a_real_console_is_located_and_nothing_else_is_changed(located: Located, tmp_path: Path) -> None:
    annotator = Annotator(SymbolStore(SymbolOptions(kernel=located.vmlinux), tmp_path))
    frames = found = 0
    for line in located.crash.console.read_text("utf-8", "surrogateescape").split("\n"):
        printed = annotator.annotate(line).partition("\n")[0]
        if re.search(r"\+0x[0-9a-f]+/0x[0-9a-f]+(?! \[)", line):
            frames += 1
            found += bool(_places(printed))
            printed = re.sub(r" \([^()]*:\d+[^()]*\)", "", printed)
        assert printed == line
    assert frames >= 5
    assert found == frames
