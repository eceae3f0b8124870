"""Code of arm64 kernels as binutils' objdump disassembles it: addresses, mnemonics, operands, targets."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from postpanic.analysis.code.instructions import Disassembler
from postpanic.analysis.code.listing import spell_instruction
from postpanic.errors import PostpanicError
from postpanic.process import find_program, run
from tests.vm.arm64 import fetch_dump
from tests.vm.arm64_debug import fetch_debug_info
from tests.vm.lab import Lab

pytestmark = pytest.mark.matrix

LINE = re.compile(r"^ *([0-9a-f]{8,16}):\t([0-9a-f]{8}) *(?:\t(.*))?$", re.MULTILINE)
RANGES, FUNCTIONS_EACH = 12, 40
TIMEOUT_S = 120.0
SAME_CONDITIONS = {"b.hs": "b.cs", "b.lo": "b.cc", "hs": "cs", "lo": "cc"}
"""Two names of one condition (Arm ARM, table C1-1)."""


def choose_code(vmlinux: Path) -> list[tuple[int, int]]:
    """Choose stretches of the kernel's functions, always the same ones."""
    nm = find_program("aarch64-linux-gnu-nm")
    lines = run([nm, "--defined-only", vmlinux], timeout_s=TIMEOUT_S).stdout.decode().splitlines()
    starts = sorted({int(line.split()[0], 16) for line in lines if line.split()[1] in "Tt"})
    chosen = random.Random(1).sample(range(len(starts) - FUNCTIONS_EACH), RANGES)
    return [(starts[place], starts[place + FUNCTIONS_EACH]) for place in chosen]


def spelt(text: str) -> str:
    """Leave out symbols and comments, and write all numbers in one way."""
    text = re.sub(r"<[^>]*>|//.*|\s# .*", "", text)
    text = re.sub(r"\b(?:0x)?(ffff[0-9a-f]{12})\b", lambda found: f"{int(found[1], 16):#x}", text)
    modulus = 1 << (32 if re.match(r"\s*[a-z]+\s+w\d", text) else 64)

    def number(found: re.Match[str]) -> str:
        return f"{int(found[1] + found[2], 0) % modulus:#x}"

    text = re.sub(r"#?(?<![\w.])(-?)(0x[0-9a-f]+|\d+)\b", number, text)
    return " ".join(SAME_CONDITIONS.get(word, word) for word in text.split())


@pytest.mark.parametrize("key", ["6.1", "6.12", "newest"])
def test_instructions_are_objdumps(crash_lab: Lab, key: str) -> None:
    try:
        objdump = find_program("aarch64-linux-gnu-objdump")
        vmlinux = fetch_debug_info(crash_lab, key, fetch_dump(crash_lab, key)).vmlinux
        code = choose_code(vmlinux)
    except PostpanicError as exc:
        pytest.skip(f"no arm64 machine, debug information or binutils: {exc}")
    disassembler = Disassembler("aarch64")
    compared = 0
    differing: list[tuple[str, str]] = []
    for start, end in code:
        words: list[str | Path] = [
            objdump,
            "-d",
            "-w",
            f"--start-address={start:#x}",
            f"--stop-address={end:#x}",
            vmlinux,
        ]
        text = run(words, timeout_s=TIMEOUT_S).stdout.decode()
        for place, word, theirs in LINE.findall(text):
            (ours,) = disassembler.decode(bytes.fromhex(word)[::-1], int(place, 16)) or (None,)
            assert ours is not None, (place, word, theirs)
            mine = spelt(spell_instruction(ours, lambda _: "")[0])
            if mine != spelt(theirs):
                differing.append((mine, spelt(theirs)))
            compared += 1
    assert compared > 15_000
    assert differing[:20] == []
