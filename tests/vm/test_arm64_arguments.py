"""``args`` on arm64 against DWARF: drgn, with the kernel's own debug information, judges every task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import drgn
import pytest

from postpanic.analysis.debug_files import DebugPolicy
from postpanic.analysis.page.evidence import run_line
from postpanic.analysis.program import open_program
from postpanic.analysis.workspace import Workspace
from postpanic.errors import PostpanicError
from postpanic.findings.absent import Absent
from tests.compat.judged import inner
from tests.vm.arm64 import fetch_dump
from tests.vm.arm64_debug import fetch_debug_info
from tests.vm.lab import Lab
from tests.vm.oracle import open_real

pytestmark = pytest.mark.matrix


def _dwarf_value(frame: drgn.StackFrame, name: str) -> int | None:
    """Return what DWARF says a parameter is, without a sign, if it does."""
    try:
        found = frame[name]
        value = None if found.absent_ else found.value_()
    except (KeyError, drgn.FaultError, LookupError):
        return None
    return value % (1 << 8 * drgn.sizeof(found)) if isinstance(value, int) else None


@pytest.mark.parametrize("key", ["6.1", "6.12"], ids=lambda key: f"arm64-{key}")
def test_arguments_are_those_of_dwarf(crash_lab: Lab, key: str, installed: Callable[[str], str]) -> None:
    """Nothing that is proven may be wrong; more is known than DWARF knows."""
    installed("qemu-system-aarch64")
    dump = fetch_dump(crash_lab, key)
    try:
        info = fetch_debug_info(crash_lab, key, dump)
    except PostpanicError as exc:
        pytest.skip(f"no debug information: {exc}")
    real = open_real(dump.path, info.vmlinux, [found for found in info.modules_dir.rglob("*.ko*") if found.is_file()])
    counts: Counter[str] = Counter()
    wrong = []
    with open_program([dump.path], policy=DebugPolicy.SYNTHESIZED) as opened:
        workspace = Workspace(opened)
        for task in run_line(workspace, "ps").table.records():
            (row,) = run_line(workspace, f"args {task['task']:x}").table.records()
            if isinstance(row["frames"], Absent):
                continue
            unwound = real.stack_trace(drgn.Object(real, "struct task_struct *", task["task"]))
            theirs = {frame.pc: frame for frame in unwound if not frame.is_inline}
            for frame in inner(row["frames"]):
                judge = theirs.get(frame["pc"])
                for argument in inner(frame["arguments"]):
                    known = isinstance(argument["value"], int)
                    counts[str(argument["certainty"])] += 1
                    value = _dwarf_value(judge, argument["name"]) if judge is not None and argument["type"] else None
                    if value is None:
                        counts["ours only"] += known
                    elif not known:
                        counts["theirs only"] += 1
                    else:
                        is_right = value == argument["value"]
                        counts[f"{argument['certainty']} {'right' if is_right else 'wrong'}"] += 1
                        wrong += [] if is_right else [(task["pid"], frame["function"], argument, value)]
    assert counts["proven wrong"] == 0, wrong
    assert counts["proven right"] > 150
    assert counts["likely right"] >= 20 * counts["likely wrong"]
    assert counts["proven right"] + counts["likely right"] > 6 * counts["theirs only"]
    assert counts["ours only"] > 50
