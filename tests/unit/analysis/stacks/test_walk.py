"""Following stacks: regular ones, those of interrupts and exceptions, and those that are damaged."""

from __future__ import annotations

from postpanic.analysis.stacks.frames import Area, Trace
from postpanic.analysis.stacks.walk import Start
from postpanic.kernel.orc import OrcEntry, OrcRegister, OrcType
from tests.unit.analysis.stacks.machine import END, TASK, Kernel, call_row, regs_row

USER = {"cs": 0x33, "ss": 0x2B, "rip": 0x401000, "rsp": 0x7FFC0000}
IRQ = Area("IRQ", 0xFFFFC90000020000, 0xFFFFC90000024000, 0)
NMI = Area("NMI", 0xFFFFFE0000002000, 0xFFFFFE0000004000, 0)
TOP = TASK.end - 168
"""Where the registers of user code are."""


def names(trace: Trace) -> list[str]:
    return [frame.place.function if frame.place else "" for frame in trace.frames]


def system_call(*more: str) -> Kernel:
    """Make a task in a system call: entry, then ``sys_read``, then ``vfs_read``, whose frame is 24 bytes."""
    rows = {"entry": regs_row(), "sys_read": call_row(16), "vfs_read": call_row(32)}
    kernel = Kernel(rows | dict.fromkeys(more), IRQ, NMI)
    kernel.put_registers(TOP, **USER)
    kernel.put(TOP - 8, kernel.back("entry"))
    kernel.put(TOP - 8 - 16, kernel.back("sys_read"))
    return kernel


def test_a_sleeping_task_leads_to_its_system_call() -> None:
    kernel = system_call()
    trace = kernel.walker.trace(Start(kernel.back("vfs_read"), TOP - 24 - 24), TASK)
    assert names(trace) == ["vfs_read", "sys_read", "entry"]
    assert trace.complete
    assert trace.problems == []
    assert all(frame.reliable and frame.area == TASK for frame in trace.frames)
    saved = trace.frames[-1].saved
    assert saved is not None
    assert saved.user
    assert saved.vaddr == TOP
    assert saved.registers["rip"] == USER["rip"]
    assert [frame.slot for frame in trace.frames][1:] == [TOP - 24, TOP - 8]


def test_a_kernel_thread_ends_without_user_registers() -> None:
    kernel = Kernel({"ret_from_fork": END, "kthread": call_row(16)})
    kernel.put(TASK.end - 8, kernel.back("ret_from_fork"))
    trace = kernel.walker.trace(Start(kernel.back("kthread"), TASK.end - 16), TASK)
    assert names(trace) == ["kthread", "ret_from_fork"]
    assert trace.complete
    assert trace.frames[-1].saved is None


def test_zeroes_in_place_of_registers_end_the_stack_of_a_kernel_thread() -> None:
    kernel = Kernel({"entry": regs_row(), "kthread": call_row(16)})
    kernel.put(TOP - 8, kernel.back("entry"))
    trace = kernel.walker.trace(Start(kernel.back("kthread"), TOP - 16), TASK)
    assert trace.complete
    assert trace.frames[-1].saved is None


def test_an_exception_goes_on_in_the_function_that_was_interrupted() -> None:
    regs = TOP - 24 - 24 - 168 - 40
    kernel = Kernel({"entry": regs_row(), "sys_read": call_row(16), "vfs_read": call_row(32), "fault": regs_row()})
    kernel.put_registers(TOP, **USER)
    kernel.put(TOP - 8, kernel.back("entry"))
    kernel.put(TOP - 24, kernel.back("sys_read"))
    at = kernel.code.start("vfs_read") + 7
    kernel.put_registers(regs, rip=at, rsp=TOP - 48, rbp=5)
    trace = kernel.walker.trace(Start(kernel.back("fault"), regs), TASK)
    assert names(trace) == ["fault", "vfs_read", "sys_read", "entry"]
    fault, inner = trace.frames[:2]
    assert fault.saved is not None
    assert not fault.saved.user
    assert fault.saved.place == inner.place
    assert inner.interrupted
    assert inner.slot == inner.sp == TOP - 48
    assert inner.place is not None
    assert inner.place.offset == 7


def test_an_interrupt_goes_over_to_the_stack_of_the_task() -> None:
    indirect = OrcEntry(OrcType.CALL, OrcRegister.SP_INDIRECT, 16, OrcRegister.UNDEFINED, 0, signal=False)
    rows = {"entry": regs_row(), "sys_read": call_row(16), "common_interrupt": indirect, "handler": call_row(16)}
    kernel = Kernel(rows, IRQ)
    kernel.put_registers(TOP, **USER)
    kernel.put(TOP - 8, kernel.back("entry"))
    # call_on_irqstack() keeps the stack pointer in the last word of the stack that it goes to.
    kernel.put(IRQ.end - 8, TOP - 32)
    kernel.put(IRQ.end - 16, kernel.back("common_interrupt"))
    kernel.put(TOP - 24, kernel.back("sys_read"))
    trace = kernel.walker.trace(Start(kernel.back("handler"), IRQ.end - 24), TASK)
    assert names(trace) == ["handler", "common_interrupt", "sys_read", "entry"]
    assert [frame.area for frame in trace.frames] == [IRQ, IRQ, TASK, TASK]
    assert trace.complete


def test_an_nmi_leaves_its_stack_by_the_registers() -> None:
    kernel = Kernel({"entry": regs_row(), "sys_read": call_row(16), "nmi": regs_row()}, NMI)
    kernel.put_registers(TOP, **USER)
    kernel.put(TOP - 8, kernel.back("entry"))
    kernel.put_registers(NMI.end - 168, rip=kernel.code.start("sys_read") + 3, rsp=TOP - 16)
    trace = kernel.walker.trace(Start(kernel.back("nmi"), NMI.end - 168), TASK)
    assert names(trace) == ["nmi", "sys_read", "entry"]
    assert [frame.area for frame in trace.frames] == [NMI, TASK, TASK]
    assert trace.complete


def test_a_call_to_nowhere_is_followed_from_the_top_of_the_stack() -> None:
    kernel = system_call()
    sp = TOP - 24 - 24 - 8
    kernel.put(sp, kernel.back("vfs_read"))
    trace = kernel.walker.trace(Start(0, sp, interrupted=True), TASK)
    assert names(trace) == ["", "vfs_read", "sys_read", "entry"]
    assert trace.complete
    assert all(frame.reliable for frame in trace.frames)
    (problem,) = trace.problems
    assert "0x0 is not in code" in problem.what
    assert "its caller is the return address at the stack pointer" in problem.what


def test_a_function_without_rows_is_passed_over_by_scanning() -> None:
    kernel = system_call("strange")
    sp = TOP - 24 - 24 - 64
    # A return address that leads nowhere lies below the one that leads to the end.
    kernel.put(sp + 8, kernel.back("strange"), 0, kernel.code.start("vfs_read") + 0x21)
    kernel.put(sp + 40, kernel.back("vfs_read"))
    kernel.put(sp + 48 + 24, kernel.back("sys_read"), 0, kernel.back("entry"))
    trace = kernel.walker.trace(Start(kernel.back("strange"), sp), TASK)
    assert names(trace)[:2] == ["strange", "vfs_read"]
    assert trace.complete
    assert [frame.reliable for frame in trace.frames][:2] == [True, False]
    assert f"goes on from the return address at {sp + 40:#x}" in trace.problems[0].what


def test_made_code_is_passed_by_the_frame_pointer() -> None:
    kernel = system_call()
    sp = TOP - 48 - 24
    kernel.put(sp + 8, 0, kernel.back("vfs_read"))
    trace = kernel.walker.trace(Start(0xFFFFFFFFC0001234, sp, sp + 8), TASK)
    assert names(trace) == ["", "vfs_read", "sys_read", "entry"]
    assert not trace.frames[1].reliable
    assert "by the frame pointer" in trace.problems[0].what


def test_nothing_on_the_stack_leads_on() -> None:
    kernel = Kernel({"strange": None})
    trace = kernel.walker.trace(Start(kernel.back("strange"), TASK.end - 64), TASK)
    assert not trace.complete
    assert names(trace) == ["strange"]
    assert "nothing on the stack leads on" in trace.problems[0].what


def test_a_stack_that_leads_back_to_itself_ends() -> None:
    pointer = OrcEntry(OrcType.CALL, OrcRegister.BP, 16, OrcRegister.PREV_SP, -16, signal=False)
    kernel = Kernel({"looped": pointer})
    fp = TASK.end - 256
    kernel.put(fp, fp, kernel.back("looped"))
    trace = kernel.walker.trace(Start(kernel.back("looped"), fp - 16, fp), TASK)
    assert not trace.complete
    assert "the stack does not rise" in trace.problems[0].what
    assert len(trace.frames) < 40


def test_registers_that_lead_from_stack_to_stack_end() -> None:
    kernel = Kernel({"other": None, "nmi": regs_row()}, NMI, IRQ)
    at = kernel.code.start("nmi") + 4
    kernel.put_registers(NMI.start, rip=at, rsp=IRQ.start)
    kernel.put_registers(IRQ.start, rip=at, rsp=NMI.start)
    trace = kernel.walker.trace(Start(at, NMI.start, interrupted=True), None)
    assert not trace.complete
    assert any("left before" in problem.what for problem in trace.problems)
    assert len(trace.frames) < 200


def test_a_stack_pointer_outside_of_all_stacks_is_said() -> None:
    kernel = Kernel({"fault": regs_row()})
    kernel.put_registers(TASK.end - 168, rip=kernel.code.start("fault"), rsp=0xFFFFDEAD00000000)
    trace = kernel.walker.trace(Start(kernel.back("fault"), TASK.end - 168), TASK)
    assert not trace.complete
    assert "0xffffdead00000000 is in no stack that is known" in trace.problems[0].what


def test_a_page_that_is_missing_is_said() -> None:
    kernel = system_call()
    del kernel.memory.pages[TOP & -4096]
    trace = kernel.walker.trace(Start(kernel.back("vfs_read"), TOP - 24 - 24), TASK)
    assert not trace.complete
    assert names(trace) == ["vfs_read"]
    assert "not mapped" in trace.problems[0].what
