"""What a scene is made of, out of logs alone."""

from __future__ import annotations

import pytest

from postpanic.analysis.triage import Scene, scene_of_log
from postpanic.analysis.triage.catalog import MODULES, all_detectors
from postpanic.evidence.oops.kinds import FAMILIES, Kind
from tests.unit.evidence.texts import HUNG, KASAN, PAGE_FAULT, RCU, WARNING, stamped

_REPORTED_ONLY = frozenset(
    {
        "oops", "page-allocation-failure", "kcsan", "debug-objects", "rust-panic", "trap",
        "control-flow-integrity", "int3", "bad-mode",
    }
)  # fmt: skip
"""Kinds that say nothing but that there was something, or that detectors for all crashes look for."""
PANIC = "Kernel panic - not syncing: Fatal exception\nKernel Offset: disabled\n"


def scene(*texts: str) -> Scene:
    return scene_of_log("\n".join(texts).encode())


def test_a_log_has_no_memory_and_says_so() -> None:
    made = scene(PAGE_FAULT, PANIC)
    assert made.workspace is None
    assert [missing.what for missing in made.missing] == ["memory, tasks and stacks"]
    with pytest.raises(LookupError, match="only a log"):
        _ = made.dump


def test_what_is_missing_is_said_once() -> None:
    made = scene("")
    made.miss("the stack", "left out")
    made.miss("the stack", "left out")
    assert [missing.what for missing in made.missing].count("the stack") == 1


def test_the_first_report_is_the_one_that_the_last_follows_from() -> None:
    made = scene(PAGE_FAULT, "---[ end trace 0000000000000000 ]---", PANIC)
    assert made.first is not None
    assert (made.first.kind, made.kind) == (Kind.NULL_DEREFERENCE, Kind.NULL_DEREFERENCE)
    assert made.final is not None
    assert made.final.is_panic


@pytest.mark.parametrize("before", [WARNING, HUNG, RCU], ids=["warning", "hung", "stall"])
def test_what_the_kernel_went_on_after_is_not_what_the_crash_follows_from(before: str) -> None:
    made = scene(stamped(before, start_s=12.5), stamped(PAGE_FAULT, start_s=900.0))
    assert made.first is not None
    assert made.first.kind is Kind.NULL_DEREFERENCE
    assert len(made.reports) == 2


def test_an_oops_before_is_what_the_crash_follows_from() -> None:
    survived = PAGE_FAULT.partition("Kernel panic")[0]
    made = scene(stamped(WARNING, start_s=2.0), stamped(survived, start_s=12.5), stamped(KASAN, start_s=900.0), PANIC)
    assert made.first is not None
    assert made.first.kind is Kind.NULL_DEREFERENCE
    assert made.final is not None
    assert made.final.offset > made.first.offset


def test_of_tasks_that_hang_the_first_counts() -> None:
    later = HUNG.replace("seconds", "seconds", 1)
    end = "Kernel panic - not syncing: hung_task: blocked tasks\n"
    made = scene(stamped(HUNG, start_s=120.0), stamped(later + end, start_s=240.0))
    assert made.first is not None
    assert made.first.kind is Kind.HUNG_TASK
    assert made.first is made.reports[0]


def test_the_registers_of_the_fault_come_from_the_text() -> None:
    made = scene(PAGE_FAULT, PANIC)
    assert made.fault is not None
    assert made.fault.address == 0x18
    assert made.fault.registers["rbx"] == 0xFFFF888104A5C000
    assert not made.fault.is_from_stack


def test_a_text_without_reports_is_a_scene_without_any() -> None:
    made = scene("everything is well", "")
    assert (made.first, made.final, made.fault, made.kind) == (None, None, None, None)
    assert made.suspects == ()
    assert made.tasks == ()


@pytest.mark.parametrize("text", [PAGE_FAULT, RCU, HUNG, WARNING], ids=["fault", "stall", "hung", "warning"])
def test_reports_are_read_in_the_order_of_the_log(text: str) -> None:
    made = scene(text, PANIC)
    assert [report.offset for report in made.reports] == sorted(report.offset for report in made.reports)


def test_detectors_have_names_and_depths_of_their_own_kind() -> None:
    detectors = all_detectors()
    names = [each.name for each in detectors]
    assert len(set(names)) == len(names)
    assert all(0 <= each.depth <= 100 for each in detectors)
    assert all(each.about and each.name == each.name.lower() and " " not in each.name for each in detectors)
    assert [each.depth for each in detectors] == sorted((each.depth for each in detectors), reverse=True)


def test_every_module_of_the_catalog_declares_detectors() -> None:
    found = {each.find.__module__.split(".")[3] for each in all_detectors()}
    assert found == set(MODULES)


def test_every_detector_concerns_some_crash() -> None:
    everything = set(Kind)
    for each in all_detectors():
        assert each.kinds <= everything
        assert not each.kinds or not each.families or each.kinds, each.name


def test_every_kind_has_a_detector_that_is_for_it() -> None:
    specific = [each for each in all_detectors() if each.kinds or each.families]
    without = {
        kind.value
        for kind in Kind
        if not any(kind in each.kinds or FAMILIES[kind] in each.families for each in specific)
    }
    assert without <= _REPORTED_ONLY, "say more than the report does, or list it"
