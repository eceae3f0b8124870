"""Reports of arm64 kernels: what is decoded of them is what the kernel itself says, and what its memory holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from postpanic.cli.app import main
from postpanic.dumps.open import open_dump
from postpanic.errors import PostpanicError
from postpanic.kernel.memory import open_kernel_memory
from postpanic.kernel.recovered import read_all_symbols
from tests.vm.arm64_triage import Arm64TriageLab
from tests.vm.triage_lab import TriageDump
from tests.vm.triage_truth import list_truths

pytestmark = pytest.mark.matrix

NAMES = ("null-member", "bad-call", "bug-on", "error-pointer", "freed-poisoned")
CLASSES = {
    0x21: "instruction abort in the kernel",
    0x25: "data abort in the kernel",
}
"""What ``EC`` is called there: ``esr_class_str`` of ``arch/arm64/kernel/traps.c`` has ``DABT (current EL)``."""


@pytest.fixture(scope="module", params=NAMES)
def crashed(request: pytest.FixtureRequest, arm64_triage_lab: Arm64TriageLab) -> TriageDump:
    truth = next(truth for truth in list_truths() if truth.name == request.param)
    try:
        return arm64_triage_lab.crash(truth, "6.1")
    except PostpanicError as exc:
        pytest.skip(f"no arm64 machine: {exc}")


@pytest.fixture
def report(crashed: TriageDump, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["decode", "--json", str(crashed.console)]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["tables"][0]["rows"]
    return next(row for row in rows if row["code"] or row["code_problem"] or row["address"])


def said(console: Path, pattern: str) -> re.Match[str] | None:
    return re.search(pattern, console.read_text(errors="replace"))


def test_syndrome_means_what_the_kernel_says(crashed: TriageDump, report: dict[str, Any]) -> None:
    syndrome = said(crashed.console, r"ESR = 0x([0-9a-f]+)")
    if syndrome is None:
        # BRK: the number is in the line of the oops, and nothing is spelled out.
        assert said(crashed.console, r"Internal error: Oops - BUG: 0*f2000800 ")
        assert {"BRK #0x800: BUG or WARN"} <= {row["meaning"] for row in report["meanings"]}
        return
    (meaning,) = (row["meaning"] for row in report["meanings"] if row["name"] == "ESR")
    level, fault = said(crashed.console, r"FSC = 0x[0-9a-f]+: level (\d) (.*)").groups()  # type: ignore[union-attr]
    (kind,) = said(crashed.console, r"EC = 0x([0-9a-f]+):").groups()  # type: ignore[union-attr]
    assert meaning.startswith(CLASSES[int(kind, 16)])
    assert meaning.endswith(f"{fault.strip()}, level {level}")
    writes = said(crashed.console, r"WnR = (\d)")
    if writes is not None:
        assert ("write" if writes[1] == "1" else "read") in meaning


def test_code_is_what_lies_there_and_registers_make_the_address(crashed: TriageDump, report: dict[str, Any]) -> None:
    registers = {row["name"]: int(row["value"], 16) for row in report["registers"]}
    assert {f"x{number}" for number in range(30)} <= set(registers)
    if report["code"] is None:
        assert said(crashed.console, r"Code: bad PC value")
        return
    text = crashed.console.read_text(errors="replace")
    function, plain = re.search(r"pc : ([A-Za-z_][\w.]*)\+0x([0-9a-f]+)/", text), re.search(r"pc : 0x([0-9a-f]+)", text)
    with open_dump(crashed.dump) as dump:
        memory = open_kernel_memory(dump)
        pc = int(plain[1], 16) if plain else None
        if function is not None:
            # Those of modules are in no table of the kernel's.
            start = read_all_symbols(memory).table.get(function[1])
            pc = start + int(function[2], 16) if start is not None else None
        if pc is not None:
            *before, last = (f"{word:08x}" for word in memory.read_array(pc - 16, np.uint32, 5).tolist())
            assert report["code"] == f"{' '.join(before)} ({last})"
    marked = [row for row in report["instructions"] if row["mark"]]
    assert len(marked) == 1
    if report["address"] is None:
        return
    address = int(report["address"], 16)
    if report["access"] == "execute":
        assert report["operand"] == f"what lies at {address:#x} could not be executed"
        return
    # The kernel takes the tag off: the top byte.
    (operand,) = re.findall(r" = (0x[0-9a-f]+)(?: \(|, | ?:)", report["operand"])[:1]
    assert int(operand, 16) % (1 << 56) == address % (1 << 56)
    assert report["operand"].endswith("the address of the fault")
