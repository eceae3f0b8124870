"""Checks that failed: BUG and WARN, with what was compared before them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from postpanic.analysis.code.instructions import Flow, Instruction
from postpanic.analysis.triage.faults.code_paths import CodeGraph, code_graphs
from postpanic.analysis.triage.faults.effects import read_register, spell_register, x86_memory
from postpanic.analysis.triage.faults.origin import Origin
from postpanic.analysis.triage.faults.uses import Use, fault_use, find_culprit
from postpanic.analysis.triage.faults.wording import (
    chain_of_origin,
    evidence_of_origin,
    path_of,
    stack_command,
    subject_of,
    who,
)
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role

__all__ = ["find_assertion"]

_REG, _IMM, _MEM = 1, 2, 3
_COMPARISONS = ("cmp", "test", "tst")
_BRANCHES_ON_REGISTERS = {"cbz": "==", "cbnz": "!=", "tbz": "==", "tbnz": "!="}
"""Of arm64: they compare with zero themselves, the whole register or one bit."""
_MOST_BACK = 24
_WORDS = {
    "je": "==", "jne": "!=", "ja": ">", "jae": ">=", "jb": "<", "jbe": "<=", "jg": ">", "jge": ">=", "jl": "<",
    "jle": "<=", "js": "is negative:", "jns": "is not negative:",
    "b.eq": "==", "b.ne": "!=", "b.hi": ">", "b.hs": ">=", "b.lo": "<", "b.ls": "<=", "b.gt": ">", "b.ge": ">=",
    "b.lt": "<", "b.le": "<=", "b.mi": "is negative:", "b.pl": "is not negative:",
}  # fmt: skip
_OPPOSITE = {
    "je": "jne", "jne": "je", "ja": "jbe", "jbe": "ja", "jae": "jb", "jb": "jae", "jg": "jle", "jle": "jg",
    "jge": "jl", "jl": "jge", "js": "jns", "jns": "js",
    "b.eq": "b.ne", "b.ne": "b.eq", "b.hi": "b.ls", "b.ls": "b.hi", "b.hs": "b.lo", "b.lo": "b.hs", "b.gt": "b.le",
    "b.le": "b.gt", "b.ge": "b.lt", "b.lt": "b.ge", "b.mi": "b.pl", "b.pl": "b.mi",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Operand:
    """One side of a comparison."""

    text: str
    value: int | None
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class _Condition:
    """What was compared, and how that led to the trap."""

    comparison: Instruction
    branch: Instruction
    text: str
    operands: tuple[_Operand, ...]


@detector(
    "assertion",
    needs=(Need.REPORT,),
    about="a check of the kernel's own that failed, and the values that it compared",
    depth=45,
    kinds=(Kind.KERNEL_BUG, Kind.WARNING, Kind.INVALID_OPCODE),
)
def find_assertion(scene: Scene) -> Iterator[Finding]:
    """Name the check and its operands."""
    report, culprit = scene.first, find_culprit(scene)
    if report is None or culprit is None or report.kind not in {Kind.KERNEL_BUG, Kind.WARNING, Kind.INVALID_OPCODE}:
        return
    use = fault_use(scene)
    condition = _find_condition(scene, use) if use is not None and use.tracer is not None else None
    macro = "WARN" if report.kind is Kind.WARNING else "BUG"
    at = f" at {report.source}" if report.source else ""
    text = f"A check of {who(culprit)} failed: {macro}{at}"
    origin: Origin | None = None
    evidence = [Evidence("the kernel's report", "log", report.message)]
    if use is not None:
        evidence.append(Evidence("the trap", f"dis {use.instruction.vaddr:x}", use.text, use.instruction.vaddr))
    if condition is not None and use is not None:
        text += f", because {condition.text}"
        evidence.append(
            Evidence("what it compared", f"dis {condition.comparison.vaddr:x}", _spell(condition.comparison))
        )
        origin = next((each.origin for each in condition.operands if each.origin and each.origin.load), None)
        path = path_of(scene, origin)
        if path:
            text += f"; the value was loaded from {path}"
        evidence += evidence_of_origin(scene, origin)
        evidence.append(Evidence("the registers", stack_command(use.fault), ""))
    if report.condition:
        text += f' ("{report.condition}")'
    is_proven = use is not None and use.fault.is_from_stack and culprit.is_faulting and report.kind is Kind.KERNEL_BUG
    yield Finding(
        detector="assertion",
        role=Role.CAUSE,
        cause=Cause.ASSERTION,
        sentence=f"{text}.",
        confidence=Confidence.PROVEN if is_proven else Confidence.LIKELY,
        function=culprit.function,
        module=culprit.module,
        subject=subject_of(scene, origin),
        evidence=tuple(evidence),
        chain=tuple(chain_of_origin(scene, condition.text, origin)) if condition is not None else (),
        refuted_by="what brought the checked value about, elsewhere",
        next_steps=(f"dis -r {use.instruction.vaddr:x}",) if use is not None else (),
        explains=("reported",),
        time_s=report.time_s,
    )


def _spell(instruction: Instruction) -> str:
    return f"{instruction.mnemonic} {instruction.operands}".rstrip()


def _find_condition(scene: Scene, use: Use) -> _Condition | None:
    """Find the conditional branch that led to the trap, and the comparison before it."""
    graph = code_graphs(scene.dump).find(use.instruction.vaddr)
    if graph is None:
        return None
    at = use.instruction
    for _ in range(_MOST_BACK):
        previous = [graph.instructions[vaddr] for vaddr in graph.before.get(at.vaddr, ())]
        if len(previous) != 1:
            branches = [one for one in previous if one.flow is Flow.BRANCH]
            if len(branches) != 1 or len(previous) != len(branches):
                return None
            previous = branches
        if previous[0].flow is Flow.BRANCH:
            return _of_branch(graph, use, previous[0], is_taken=previous[0].target == at.vaddr)
        if previous[0].flow is Flow.CALL:
            # What BUG prints, or what was asked, came in between: registers may have changed.
            return None
        at = previous[0]
    return None


def _of_branch(graph: CodeGraph, use: Use, branch: Instruction, *, is_taken: bool) -> _Condition | None:
    at = branch
    if branch.mnemonic in _BRANCHES_ON_REGISTERS and branch.decoded is not None:
        return _of_register(use, branch, is_taken=is_taken)
    for _ in range(_MOST_BACK):
        previous = graph.before.get(at.vaddr, ())
        if len(previous) != 1:
            return None
        at = graph.instructions[previous[0]]
        if at.flow is not Flow.NEXT:
            return None
        name = at.mnemonic.rpartition(" ")[2]
        if name.startswith(_COMPARISONS) and at.decoded is not None:
            break
    else:
        return None
    operands = [_operand(at, operand, use) for operand in at.decoded.operands]
    jump = branch.mnemonic if is_taken else _OPPOSITE.get(branch.mnemonic, "")
    return _Condition(at, branch, _words(at, operands, jump), tuple(operands))


def _of_register(use: Use, branch: Instruction, *, is_taken: bool) -> _Condition:
    """Tell what a branch that compares a register with zero found there."""
    operands = list(branch.decoded.operands)
    operand = _operand(branch, operands[0], use)
    relation = _BRANCHES_ON_REGISTERS[branch.mnemonic]
    relation = relation if is_taken else {"==": "!=", "!=": "=="}[relation]
    bit = f"bit {int(operands[1].imm)} of " if branch.mnemonic.startswith("tb") else ""
    return _Condition(branch, branch, f"{bit}{_shown(operand)} {relation} 0", (operand,))


def _shown(operand: _Operand) -> str:
    value = "" if operand.value is None else f" (= {operand.value:#x})"
    return operand.text if operand.text.startswith("0x") else f"{operand.text}{value}"


def _words(comparison: Instruction, operands: list[_Operand], jump: str) -> str:
    relation = _WORDS.get(jump, "compared with")
    if len(operands) != 2:
        return f"{_spell(comparison)} said so"
    left, right = operands
    if comparison.mnemonic.rpartition(" ")[2].startswith(("test", "tst")):
        if left.text == right.text:
            return f"{_shown(left)} {relation} 0"
        return f"{_shown(left)} & {_shown(right)} {relation} 0"
    return f"{_shown(left)} {relation} {_shown(right)}"


def _operand(comparison: Instruction, operand: object, use: Use) -> _Operand:
    decoded = comparison.decoded
    kind = operand.type  # type: ignore[attr-defined]
    if kind == _IMM:
        value = int(operand.imm) & ((1 << getattr(operand, "size", 8) * 8) - 1)  # type: ignore[attr-defined]
        return _Operand(f"{value:#x}", value)
    assert use.tracer is not None  # noqa: S101 - the caller asked
    if kind == _REG:
        register, size = read_register(decoded, operand)
        if getattr(operand, "shift", None) is not None and (operand.shift.type or operand.ext):  # type: ignore[attr-defined]
            # It was changed on the way to the comparison.
            return _Operand(f"{spell_register(register)}, shifted", None)
        known = use.registers.get(register)
        origin = use.tracer.trace(register, comparison.vaddr, use.registers)
        return _Operand(spell_register(register), known & ((1 << size * 8) - 1) if known is not None else None, origin)
    if kind == _MEM:
        origin = use.tracer.trace_memory(x86_memory(decoded, operand), comparison, None, use.registers)
        load = origin.load
        return _Operand(load.where if load is not None else "memory", load.value if load is not None else None, origin)
    return _Operand("?", None)
