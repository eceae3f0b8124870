"""Why the kernel handled no page fault of a task: its counters."""

from __future__ import annotations

import drgn
import pytest

from postpanic.analysis.triage.hangs.returned import counter_evidence

TASK = 0xFFFF000001234000


def make_task(count: int, faults_off: int | None) -> drgn.Object:
    """Make a task as arm64 has it; None: its kernel does not count that."""
    prog = drgn.Program(drgn.Platform(drgn.Architecture.AARCH64))
    word = prog.int_type("unsigned long", 8, is_signed=False)
    number = prog.int_type("int", 4, is_signed=True)
    thread = prog.struct_type("thread_info", 8, [drgn.TypeMember(word, "preempt_count")])
    members = [drgn.TypeMember(thread, "thread_info")]
    if faults_off is not None:
        members.append(drgn.TypeMember(number, "pagefault_disabled", 64))
    data = count.to_bytes(8, "little") + (faults_off or 0).to_bytes(8, "little")
    prog.add_memory_segment(TASK, len(data), lambda _, size, offset, __: data[offset : offset + size])
    return drgn.Object(prog, prog.pointer_type(prog.struct_type("task_struct", 16, members)), TASK)


@pytest.mark.parametrize("faults_off", [0, None])
def test_a_count_that_the_panic_is_in_proves_nothing(faults_off: int | None) -> None:
    # The upper half is no count.
    evidence = counter_evidence(make_task(1 << 32 | 2, faults_off), "agent (PID 81)")
    assert (
        evidence.what == "agent (PID 81) probably may not be preempted: its count is 0x2 now, but the panic adds to it"
    )
    assert (evidence.command, evidence.shows) == (
        f"struct task_struct.thread_info.preempt_count {TASK:x}",
        "preempt_count",
    )


def test_page_faults_that_are_turned_off_are_the_reason() -> None:
    evidence = counter_evidence(make_task(2, 1), "agent (PID 81)")
    assert evidence.what == "agent (PID 81) has its page faults turned off (pagefault_disabled is 1)"
    assert evidence.command == f"struct task_struct.pagefault_disabled {TASK:x}"


def test_a_count_that_is_not_in_the_dump_is_not_made_up() -> None:
    task = make_task(2, 0)
    gone = drgn.Object(task.prog_, task.type_, TASK + 0x10000)
    assert "its count is not to be read now" in counter_evidence(gone, "agent (PID 81)").what
