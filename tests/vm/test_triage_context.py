"""Triage of machines that ran out of memory, lost their first process, or were crashed on request: evidence checked."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from drgn.helpers.linux.mm import phys_to_virt

from postpanic import open_dump
from postpanic.analysis.memory.page_structs import page_structs
from postpanic.analysis.memory.slabs.allocator import slab_allocator
from postpanic.analysis.memory.slabs.pages import find_all_slabs
from postpanic.analysis.open_dump import OpenDump
from postpanic.analysis.triage import judge, scene_of_dump
from postpanic.analysis.triage.memory.exhausted import memory_reports
from postpanic.analysis.triage.memory.sheet import sheet_of_dump, sheet_of_report
from postpanic.errors import PostpanicError
from postpanic.findings.verdict import Cause, Confidence, Verdict
from tests.vm.lab import Crash
from tests.vm.shown_evidence import check_evidence

SCENARIOS = ("out-of-memory", "init-exit", "nmi", "sysrq-c")
OWN = {
    "memory-exhausted", "init-died", "nmi", "deliberate", "context", "machine", "taint", "foreign-modules", "troubles",
    "called-panic", "no-root", "memory-growth",
}  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[
        name if name in {"out-of-memory", "nmi"} else pytest.param(name, marks=pytest.mark.matrix) for name in SCENARIOS
    ],
)
def dump(request: pytest.FixtureRequest, crashed: Callable[..., Crash]) -> Iterator[OpenDump]:
    with open_dump(crashed("6.1", scenario=request.param).filtered, debuginfo="synth") as opened:
        yield opened


@pytest.fixture(scope="module")
def verdict(dump: OpenDump) -> Verdict:
    return judge(scene_of_dump(dump.workspace))


@pytest.fixture
def scenario(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["dump"])


def test_the_verdict_names_what_happened(verdict: Verdict, scenario: str) -> None:
    expected = {
        "out-of-memory": ("out-of-memory", Cause.MEMORY_EXHAUSTED, Confidence.LIKELY, "memory-leaker"),
        "init-exit": ("init-died", Cause.INIT_DIED, Confidence.PROVEN, "/bin/busybox"),
        "nmi": ("nmi", Cause.DELIBERATE, Confidence.LIKELY, "virtual machine"),
        "sysrq-c": ("sysrq-crash", Cause.DELIBERATE, Confidence.PROVEN, "Nothing wrong was found"),
    }
    kind, cause, confidence, word = expected[scenario]
    assert (verdict.kind, verdict.cause, verdict.confidence) == (kind, cause, confidence)
    assert word in verdict.sentence
    assert verdict.function == verdict.module == ""


def test_every_piece_of_evidence_is_shown_by_its_command(dump: OpenDump, verdict: Verdict) -> None:
    assert check_evidence(dump, (each for each in verdict.findings if each.detector in OWN)) >= 3


def test_every_next_step_is_a_line_that_the_prompt_takes(dump: OpenDump, verdict: Verdict) -> None:
    for line in verdict.next_steps:
        if "|" in line or line.startswith("#"):
            continue
        try:
            dump.run(line)
        except PostpanicError as exc:
            raise AssertionError(line) from exc


def test_the_balance_sheet_adds_up_and_agrees_with_what_the_kernel_printed(dump: OpenDump, scenario: str) -> None:
    sheet = sheet_of_dump(dump.workspace)
    assert not sheet.problems
    assert sum(line.pages for line in sheet.lines) <= sheet.total * 1.02
    # Of a machine without leaks: what the kernel takes without counting is little.
    assert sheet.share(sheet.unaccounted) < 0.05
    if scenario != "out-of-memory":
        return
    (report,) = memory_reports(scene_of_dump(dump.workspace))
    printed = sheet_of_report(report)
    assert printed is not None
    assert printed.total == sheet.total
    for name in ("free", "slab", "page tables"):
        assert abs(sheet.pages(name) - printed.pages(name)) < sheet.total // 100, name
    assert max(report.tasks, key=lambda task: task.rss).comm == "memory-leaker"


@pytest.mark.parametrize(
    "seed", [pytest.param(0, marks=pytest.mark.matrix), pytest.param(1, marks=pytest.mark.matrix), 2]
)
def test_a_dump_with_damaged_objects_is_judged_all_the_same(crashed: Callable[..., Crash], seed: int) -> None:
    """Write nonsense over hundreds of objects: pointers into nowhere, loops, small numbers, pointers to others."""
    noise = random.Random(seed)
    with open_dump(crashed("6.1", scenario="out-of-memory").filtered, debuginfo="synth") as opened:
        workspace = opened.workspace
        slabs = find_all_slabs(workspace, page_structs(workspace), slab_allocator(workspace))
        base = int(phys_to_virt(workspace.prog, 0).value_())
        pages = [base + int(pfn) * 4096 for found in slabs.values() for pfn in found.pfns[:200]]
        for _ in range((20, 300, 2000)[seed]):
            vaddr = noise.choice(pages) + noise.randrange(512) * 8
            other = noise.choice(pages) + noise.randrange(512) * 8
            value = noise.choice([0, (1 << 64) - 1, vaddr, other, noise.getrandbits(64), noise.randrange(4096)])
            with suppress(PostpanicError):
                workspace.write_virtual(vaddr, value.to_bytes(8, "little"))
        verdict = judge(scene_of_dump(workspace))
    assert verdict.kind == "out-of-memory"
    assert [missing for missing in verdict.missing if "it failed" in missing.why] == []
    # Of what is left, no other culprit may be made.
    assert verdict.confidence is not Confidence.LIKELY or "memory-leaker" in verdict.sentence


def test_a_kernel_that_had_not_panicked_was_dumped_from_outside(crashed: Callable[..., Crash]) -> None:
    """A machine at work, as a hypervisor dumps it: no CPU has panicked, and the log ends before the request to."""
    with open_dump(crashed("6.1", scenario="sysrq-c").filtered, debuginfo="synth") as opened:
        workspace = opened.workspace
        workspace.write_virtual(int(workspace.prog["panic_cpu"].address_of_()), (-1).to_bytes(4, "little", signed=True))
        scene = scene_of_dump(workspace)
        scene.text = scene.text.partition(b"sysrq: Trigger")[0].rpartition(b"\n")[0]
        verdict = judge(scene)
    assert (verdict.kind, verdict.cause, verdict.confidence) == ("", Cause.DELIBERATE, Confidence.LIKELY)
    assert "had not crashed" in verdict.sentence
    assert "Nothing wrong was found" in verdict.sentence
