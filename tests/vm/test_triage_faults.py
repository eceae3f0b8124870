"""Triage of machines that faulted: what detectors say, and that every piece of evidence is shown by its command."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from postpanic import open_dump
from postpanic.analysis.memory.slabs.allocator import slab_allocator
from postpanic.analysis.open_dump import OpenDump
from postpanic.analysis.stacks.code_index import Place
from postpanic.analysis.stacks.engine import open_stacks
from postpanic.analysis.triage import Scene, faults, judge, scene_of_dump
from postpanic.analysis.triage.faults.code_paths import code_graphs
from postpanic.analysis.triage.registry import declared_detectors
from postpanic.analysis.workspace import Workspace
from postpanic.findings.verdict import Cause, Confidence, Finding, Verdict
from tests.vm.lab import Crash
from tests.vm.shown_evidence import check_evidence

SCENARIOS = ("module-null", "irq-null", "module-recursion")
EXPECTED = {
    "module-null": (Cause.NULL_POINTER, "dummy_xmit", "dummy", ("NULL pointer", "constant")),
    "irq-null": (Cause.NULL_POINTER, "skb_recv_done", "virtio_net", ("NULL pointer", "constant")),
    "module-recursion": (Cause.STACK_OVERFLOW, "dummy_xmit", "dummy", ("recursion", "called itself")),
}


@pytest.fixture(scope="module", params=SCENARIOS)
def dump(request: pytest.FixtureRequest, crashed: Callable[..., Crash]) -> Iterator[OpenDump]:
    # The same crashes as others look at: each takes a minute to make.
    kernel = "6.12" if request.param == "irq-null" else "6.1"
    with open_dump(crashed(kernel, scenario=request.param).filtered, debuginfo="synth") as opened:
        yield opened


@pytest.fixture(scope="module")
def verdict(dump: OpenDump) -> Verdict:
    return judge(scene_of_dump(dump.workspace))


@pytest.fixture
def scenario(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["dump"])


def _own(verdict: Verdict) -> list[Finding]:
    names = {
        each.name
        for each in declared_detectors()
        if each.find.__module__.startswith("postpanic.analysis.triage.faults.")
    }
    return [finding for finding in verdict.findings if finding.detector in names]


def test_the_verdict_names_the_pointer_or_the_recursion(verdict: Verdict, scenario: str) -> None:
    cause, function, module, words = EXPECTED[scenario]
    assert (verdict.cause, verdict.function, verdict.module) == (cause, function, module)
    assert verdict.confidence is Confidence.PROVEN
    assert all(word in verdict.sentence for word in words)


def test_every_piece_of_evidence_is_shown_by_its_command(dump: OpenDump, verdict: Verdict) -> None:
    assert check_evidence(dump, _own(verdict)) >= 2


def test_each_module_of_detectors_is_imported() -> None:
    found = {each.find.__module__.rpartition(".")[2] for each in declared_detectors()}
    assert set(faults.__all__) <= found


_ASKED = """\
general protection fault, probably for non-canonical address 0x8f3b2d1c5a697788: 0000 [#1] PREEMPT SMP NOPTI
CPU: 0 PID: 1 Comm: busybox Not tainted 6.1.0 #1
RIP: 0010:{function}+{offset:#x}/{size:#x}
RSP: 0018:ffffcf57c0001940 EFLAGS: 00000246
RAX: 8f3b2d1c5a697788 RBX: {cache:016x} RCX: ffff892d04a1b080
Call Trace:
 <TASK>
 do_sys_openat2+0x97/0x150
 </TASK>
Kernel panic - not syncing: Fatal exception
"""


def test_whoever_asks_for_memory_when_a_free_object_was_overwritten_is_a_victim(
    crashed: Callable[..., Crash],
) -> None:
    with open_dump(crashed("6.1", scenario="module-null").filtered, debuginfo="synth") as dump:
        workspace = dump.workspace
        allocator = slab_allocator(workspace)
        cache, free = next(
            (cache, cpu.freelist)
            for cache in allocator.caches([])
            if cache.object_bytes >= 96
            for cpu in allocator.cpus(cache, [])
            if len(cpu.freelist) > 3
        )
        place = open_stacks(workspace).code.find(open_stacks(workspace).code.vaddr("kmem_cache_alloc") or 0)
        assert place is not None
        function, offset = _instruction_by_register(workspace, place, "rax")
        workspace.write_virtual(free[1] + cache.free_offset - 16, b"written after it was free" + bytes(7))
        text = _ASKED.format(function=function, offset=offset, size=place.size_bytes, cache=cache.vaddr)
        verdict = judge(Scene(text.encode(), workspace))
        finding = next((each for each in verdict.findings if each.detector == "freelist"), None)
        assert finding is not None, verdict
    assert finding.cause is Cause.USE_AFTER_FREE
    assert finding.function == ""
    assert f"{free[1]:#x}" in finding.sentence
    assert "written after it was free" in finding.sentence
    assert [victim.comm for victim in finding.victims] == ["busybox"]


def _instruction_by_register(workspace: Workspace, place: Place, register: str) -> tuple[str, int]:
    """Find an instruction of a function that reads memory by way of a register."""
    graph = code_graphs(workspace).find(place.start)
    assert graph is not None
    for one in graph.instructions.values():
        if f"(%{register})" in one.operands and one.mnemonic.startswith("mov"):
            return place.function, one.vaddr - place.start
    raise AssertionError(f"{place.function} reads nothing by {register}")
