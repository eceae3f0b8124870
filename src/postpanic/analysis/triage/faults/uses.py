"""The instruction that faulted, what it accessed, and which register held the bad value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from postpanic.analysis.code.instructions import Flow, Instruction
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.decode.operands import MemoryAccess, find_accesses
from postpanic.analysis.stacks.frames import Frame
from postpanic.analysis.triage.faults.code_paths import CodeGraphs, code_graphs
from postpanic.analysis.triage.faults.effects import Memory, x86_memory
from postpanic.analysis.triage.faults.origin import Origin, StepKind
from postpanic.analysis.triage.faults.trace_back import Tracer
from postpanic.analysis.triage.faults.values import BadKind, BadValue, classify
from postpanic.analysis.triage.scene import Fault, Scene
from postpanic.evidence.oops import Blame, Report
from postpanic.evidence.oops.frames import symbol_of
from postpanic.evidence.oops.functions import part_of, plain_name

__all__ = [
    "RETURN_THUNK",
    "Culprit",
    "Use",
    "bad_register",
    "choose_access",
    "fault_use",
    "find_culprit",
    "frames_of",
    "full_registers",
    "module_in",
    "widest",
]

_WORD = (1 << 64) - 1
_OP_REG = 1
_MOST_LINE = 400
RETURN_THUNK = "__x86_return"
"""What every return is compiled to, where returns are not safe (``arch/x86/lib/retpoline.S``)."""
_SPANS = 1 << 12
_WIDE = {
    **{f"e{name}": f"r{name}" for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")},
    **{f"r{number}d": f"r{number}" for number in range(8, 16)},
    **{f"w{number}": f"x{number}" for number in range(31)},
    "fp": "x29",
    "lr": "x30",
}


@dataclass(frozen=True, slots=True)
class Culprit:
    """
    The function that is at fault, as far as the stack tells.

    Attributes
    ----------
    function, module : str
        The module of the kernel itself is ``vmlinux``.
    is_faulting : bool
        Whether it is the function that faulted, and not one that had called a service.
    frame : int
        Its place on the stack; 0 where that is not known.
    """

    function: str
    module: str
    is_faulting: bool = True
    frame: int = 0


@dataclass(frozen=True)
class Use:
    """
    The use of a bad value.

    Attributes
    ----------
    fault : Fault
    instruction : Instruction
    access : MemoryAccess, optional
        What it accessed; None: it is not known, or it accessed nothing.
    register : str
        That held the bad value, by its widest name; empty: none did.
    value : BadValue, optional
        What it held.
    offset : int
        What was added to it.
    registers : mapping
        Of the moment, by their widest names.
    tracer : Tracer, optional
        None: what this machine's instructions do is not known.
    """

    fault: Fault
    instruction: Instruction
    access: MemoryAccess | None
    register: str
    value: BadValue | None
    offset: int
    registers: Mapping[str, int]
    tracer: Tracer | None
    is_call: bool = False
    """Whether the value was called: it is where the processor went to."""
    pointer: Memory | None = None
    """Of a call by way of memory: the operand."""

    @cached_property
    def origin(self) -> Origin | None:
        """Where the value came from."""
        if self.tracer is None:
            return None
        if self.pointer is not None and self.value is not None:
            return self.tracer.trace_memory(self.pointer, self.instruction, self.value.value, self.registers)
        return self.tracer.trace(self.register, self.instruction.vaddr, self.registers) if self.register else None

    @property
    def verb(self) -> str:
        """What the instruction did to memory."""
        if self.is_call:
            return "called"
        if self.access is not None and self.access.is_write:
            return "wrote through"
        return "read through"

    @property
    def text(self) -> str:
        """The instruction."""
        return f"{self.instruction.mnemonic} {self.instruction.operands}".strip()


def full_registers(registers: Mapping[str, int]) -> dict[str, int]:
    """Bring registers under their widest names, as instructions are read by."""
    found = {}
    for name, value in registers.items():
        plain = f"r{int(name[1:])}" if name[:1] == "r" and name[1:].isdigit() else name
        found[widest(plain)] = value
    return found


def widest(register: str) -> str:
    """Name a register by its widest form."""
    return _WIDE.get(register, register)


def fault_use(scene: Scene) -> Use | None:
    """Find the use of the value that the kernel faulted at; None: the code is not known or cannot be read."""
    if scene.workspace is None or scene.fault is None or scene.fault.pc is None:
        return None
    return scene.workspace.once("triage fault use", lambda: _make_use(scene))


def _make_use(scene: Scene) -> Use | None:
    fault = scene.fault
    if fault is None or fault.pc is None:
        return None
    graphs = code_graphs(scene.dump)
    registers = full_registers(fault.registers)
    if fault.place is None:
        return _make_call(scene, fault, graphs, registers, fault.pc)
    instruction = graphs.instruction(fault.pc)
    if instruction is None:
        return None
    called = _called_value(scene, graphs, instruction, registers)
    if called is not None:
        return called
    tracer = _tracer(scene, graphs, fault.frames)
    accesses = find_accesses(instruction, graphs.machine, {**fault.registers, **registers})
    access = choose_access(accesses, fault.address, graphs.machine)
    register, value, offset = "", None, 0
    if access is not None:
        register, value, offset = bad_register(access, graphs.machine)
    return Use(fault, instruction, access, register, value, offset, registers, tracer)


def _called_value(scene: Scene, graphs: CodeGraphs, instruction: Instruction, registers: dict[str, int]) -> Use | None:
    """
    Find a call that faulted before it went anywhere: to a value that is no address at all.

    It is the indirect call itself, or the compiler's thunk for it, which jumps or returns there.
    """
    fault = scene.fault
    if fault is None or fault.pc is None or instruction.decoded is None or instruction.target is not None:
        return None
    if instruction.flow is Flow.CALL:
        register, pointer = _called_operand(graphs, instruction)
        value = registers.get(register) if register else None
        if value is None or not classify(value, graphs.machine).is_bad:
            return None
        tracer = _tracer(scene, graphs, fault.frames)
        return Use(
            fault,
            instruction,
            None,
            register,
            classify(value, graphs.machine),
            0,
            registers,
            tracer,
            is_call=True,
            pointer=pointer,
        )
    register = graphs.thunk_register(fault.pc)
    if not register and fault.place is not None and fault.place.function.startswith(RETURN_THUNK):
        register = _returned_register(scene, registers)
    if not register or "rsp" not in registers:
        return None
    if instruction.flow is Flow.RETURN:
        # The thunk put the target where it returns to.
        registers = {**registers, "rsp": registers["rsp"] + 8}
    return _make_call(scene, fault, graphs, registers, registers.get(widest(register), 0))


def _returned_register(scene: Scene, registers: Mapping[str, int]) -> str:
    """Name the register that holds where a return leads to: it was an indirect call then; empty: none does."""
    try:
        target = int(scene.prog.read_word(registers["rsp"]))
    except (*UNREADABLE, KeyError):
        return ""
    return next((name for name, value in registers.items() if value == target and name not in {"rip", "rsp"}), "")


def _make_call(scene: Scene, fault: Fault, graphs: CodeGraphs, registers: dict[str, int], called: int) -> Use | None:
    """Find the call that led to where no code is: the return address is on the stack, or in its register."""
    try:
        back = registers["x30"] if "x30" in registers else int(scene.prog.read_word(registers["rsp"]))
    except (*UNREADABLE, KeyError):
        return None
    graph = graphs.find(back - 1) if back else None
    call = graph.ending_at(back) if graph is not None and back else None
    if call is None or call.flow is not Flow.CALL or call.decoded is None:
        return None
    if "rsp" in registers:
        registers["rsp"] += 8
    first = next((number for number, frame in enumerate(fault.frames) if frame.pc == back), None)
    tracer = _tracer(scene, graphs, fault.frames[first:] if first is not None else ())
    register, pointer = _called_operand(graphs, call)
    return Use(
        fault,
        call,
        None,
        register,
        classify(called, graphs.machine),
        0,
        registers,
        tracer,
        is_call=True,
        pointer=pointer,
    )


def _called_operand(graphs: CodeGraphs, call: Instruction) -> tuple[str, Memory | None]:
    """Tell by which register or memory a call goes; neither for a direct one, whose function jumped on."""
    if call.target is not None:
        return graphs.thunk_register(call.target), None
    operands = list(call.decoded.operands)
    if not operands:
        return "", None
    if operands[0].type == _OP_REG:
        name = call.decoded.reg_name(operands[0].reg) or ""
        return _WIDE.get(name, name), None
    return "", x86_memory(call.decoded, operands[0]) if graphs.machine == "x86_64" else None


def _tracer(scene: Scene, graphs: CodeGraphs, frames: tuple[Frame, ...]) -> Tracer | None:
    if not graphs.can_trace:
        scene.miss(
            "where the values in the registers came from",
            f"what instructions of {graphs.machine} do to registers is not known here",
        )
        return None
    return Tracer(scene.dump, graphs, frames)


def choose_access(accesses: list[MemoryAccess], address: int | None, machine: str) -> MemoryAccess | None:
    """Choose the access that faulted: the one to the address, else the first that cannot be right."""
    known = [access for access in accesses if access.vaddr is not None]
    if address is not None:
        for access in known:
            assert access.vaddr is not None  # noqa: S101 - it is known
            if access.vaddr <= address < access.vaddr + max(access.size_bytes, 8):
                return access
    for access in known:
        if access.vaddr is not None and classify(access.vaddr, machine).is_bad:
            return access
    return known[0] if known else accesses[0] if accesses else None


def bad_register(access: MemoryAccess, machine: str) -> tuple[str, BadValue | None, int]:
    """Choose the register that made the address bad, and tell what was added to it."""
    pairs = [(_WIDE.get(name, name), value) for name, value in access.registers if value is not None]
    if not pairs:
        return "", None, 0
    ranked = sorted(range(len(pairs)), key=lambda place: (not classify(pairs[place][1], machine).is_bad, place))
    name, value = pairs[ranked[0]]
    assert value is not None  # noqa: S101 - such were left out
    offset = (access.vaddr - value) if access.vaddr is not None else 0
    offset = offset - (1 << 64) if offset >= 1 << 63 else offset + (1 << 64) if offset < -(1 << 63) else offset
    if len(pairs) > 1 and ranked[0] == 1 and value and abs(offset) >= _SPANS:
        # The base is sound: the index alone is out of range.
        return name, BadValue(value, BadKind.NON_CANONICAL, f"the index {value:#x}"), offset
    return name, classify(value, machine), offset


def frames_of(scene: Scene) -> Sequence[Frame]:
    """Give the frames from the moment of the report outwards; the reporting functions are among them."""
    if scene.workspace is None:
        return ()
    if scene.fault is not None and scene.fault.frames:
        return scene.fault.frames
    report = scene.first
    task = scene.find_task(report.pid, report.comm) if report is not None else None
    task = task or scene.panic_task
    if task is None:
        return ()
    try:
        return scene.trace(task).frames
    except UNREADABLE:
        return ()


def find_culprit(scene: Scene, report: Report | None = None) -> Culprit | None:
    """
    Find the function at fault: the innermost that does not only serve.

    Parameters
    ----------
    report : Report, optional
        Whose ranking decides where the stack does not; the scene's first if left out.
    """
    report = report or scene.first
    fault = scene.fault
    frames = frames_of(scene) if report is scene.first else ()
    blamed = report.blame[0] if report is not None and report.blame else None
    caller = _caller(scene) if fault is not None and report is scene.first else None
    if caller is not None:
        return caller
    for number, frame in enumerate(frames):
        place = frame.place
        if place is None or not place.function:
            continue
        name = plain_name(place.function)
        if number == 0 and place.module:
            # No module serves everybody, whatever its functions are called.
            return Culprit(name, place.module)
        hidden = _hidden(scene, frames, number)
        if hidden is not None and (hidden.module != "vmlinux" or part_of(hidden.function) is None):
            return hidden
        if place.module and not any(frame.interrupted for frame in frames[1:number]):
            return Culprit(name, place.module, number == 0, number)
        if (blamed is not None and name == blamed.function) or (blamed is None and part_of(name) is None):
            return Culprit(name, place.module or "vmlinux", number == 0, number)
    if blamed is None:
        return None
    first = next((frame.place for frame in frames if frame.place is not None and frame.place.function), None)
    is_faulting = first is not None and plain_name(first.function) == blamed.function
    return Culprit(blamed.function, module_in(report, blamed), is_faulting)


def module_in(report: Report | None, blamed: Blame) -> str:
    """
    Name the module of a function that a report blames, by the traces where the ranking does not tell.

    What lockdep says of a task that goes back to user space has no trace (``lockdep_sys_exit()``,
    ``kernel/locking/lockdep.c``): there the line of the lock names the module.
    """
    if blamed.module or report is None:
        return blamed.module or "vmlinux"
    told = (symbol_of(line[:_MOST_LINE]) for line in (report.message, *report.lines) if "+0x" in line)
    frames = chain((frame for trace in report.traces for frame in trace.frames), filter(None, told))
    return next((frame.module for frame in frames if plain_name(frame.function) == blamed.function), "") or "vmlinux"


def _giver(use: Use) -> Culprit | None:
    """Find the module's function that a bad argument of the kernel's own code came from; None: it is not that way."""
    place, origin = use.fault.place, use.origin
    if place is None or place.module or use.value is None or not use.value.is_bad or origin is None:
        return None
    for step in origin.steps:
        if step.module and step.kind in {StepKind.ARGUMENT, StepKind.CONSTANT, StepKind.LOAD, StepKind.RESULT}:
            return Culprit(step.function, step.module, is_faulting=False)
        if step.kind not in {StepKind.ARGUMENT, StepKind.ADDRESS}:
            # The kernel's own code made it.
            return None
    return None


def _hidden(scene: Scene, frames: Sequence[Frame], number: int) -> Culprit | None:
    """Find the function between a frame and the one it called that left no frame: it jumped on at its end."""
    if not 0 < number < len(frames):
        return None
    caller, callee = frames[number], frames[number - 1]
    if caller.interrupted or callee.place is None or scene.workspace is None:
        return None
    graphs = code_graphs(scene.dump)
    graph = graphs.find(caller.pc - 1)
    call = graph.ending_at(caller.pc) if graph is not None else None
    if call is None or call.flow is not Flow.CALL or call.target is None or graphs.thunk_register(call.target):
        return None
    place = scene.stacks.code.find(graphs.resolve(call.target))
    if place is None or not place.function or plain_name(place.function) == plain_name(callee.place.function):
        return None
    return Culprit(plain_name(place.function), place.module or "vmlinux", is_faulting=False, frame=number)


def _caller(scene: Scene) -> Culprit | None:
    """Find the function that called what is no code, or that handed a bad pointer to the kernel's own code."""
    use = fault_use(scene)
    if use is None:
        return None
    if not use.is_call:
        return _giver(use)
    place = scene.stacks.code.find(use.instruction.vaddr)
    if place is None or not place.function:
        return None
    if use.instruction.target is not None and not use.register:
        # It called another function, which jumped on instead of calling.
        jumped = scene.stacks.code.find(code_graphs(scene.dump).resolve(use.instruction.target))
        place = jumped if jumped is not None and jumped.function else place
    return Culprit(plain_name(place.function), place.module or "vmlinux")
