"""Divisions by zero: which operand it was, and where it had been loaded from."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.triage.faults.effects import spell_register, x86_memory
from postpanic.analysis.triage.faults.origin import Origin
from postpanic.analysis.triage.faults.uses import Use, fault_use, find_culprit, widest
from postpanic.analysis.triage.faults.wording import (
    chain_of_origin,
    evidence_of_origin,
    function_of,
    path_of,
    stack_command,
    subject_of,
    who,
)
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role

__all__ = ["find_division"]

_REG, _MEM = 1, 3
_DIVISIONS = ("div", "idiv")


@detector(
    "division",
    needs=(Need.FAULT, Need.MEMORY),
    about="the divisor that was zero, and the member it came from",
    depth=60,
    kinds=(Kind.DIVIDE_ERROR,),
)
def find_division(scene: Scene) -> Iterator[Finding]:
    """Name the divisor."""
    use, culprit = fault_use(scene), find_culprit(scene)
    if use is None or culprit is None or not use.instruction.mnemonic.startswith(_DIVISIONS):
        return
    text, divisor, origin = _divisor(use)
    if divisor is None:
        return
    path = path_of(scene, origin)
    came = f"; it was loaded from {path}" if origin is not None and origin.load is not None else ""
    load = origin.load if origin is not None else None
    is_zero = divisor == 0
    what = f"divided by zero ({text} is 0)" if is_zero else f"divided with a result that is too large (by {divisor:#x})"
    is_proven = is_zero and use.fault.is_from_stack and culprit.is_faulting and load is not None and load.is_verified
    yield Finding(
        detector="division",
        role=Role.CAUSE,
        cause=Cause.DIVISION_BY_ZERO,
        sentence=f"{who(culprit)} {what}{came}.",
        confidence=Confidence.PROVEN if is_proven else Confidence.LIKELY,
        function=culprit.function,
        module=culprit.module,
        subject=subject_of(scene, origin),
        evidence=(
            Evidence(
                f"the division, in {function_of(use)}", f"dis {use.instruction.vaddr:x}", use.text,
                use.instruction.vaddr,
            ),
            Evidence(f"{text} was {divisor:#x}", stack_command(use.fault), f"{divisor:x}"),
            *evidence_of_origin(scene, origin),
        ),
        chain=tuple(chain_of_origin(scene, f"{text} = {divisor:#x} in {function_of(use)}", origin)),
        refuted_by="another writer of the divisor",
        next_steps=(f"dis -r {use.instruction.vaddr:x}",),
        explains=("reported",),
        time_s=use.fault.report.time_s,
    )  # fmt: skip


def _divisor(use: Use) -> tuple[str, int | None, Origin | None]:
    """Give the operand that was divided by: its name, value and origin."""
    decoded = use.instruction.decoded
    operands = list(decoded.operands) if decoded is not None else []
    if not operands:
        return "", None, None
    operand = operands[0]
    if operand.type == _REG:
        register = widest(decoded.reg_name(operand.reg) or "")
        value = use.registers.get(register)
        if value is None:
            return "", None, None
        origin = None
        if use.tracer is not None:
            origin = use.tracer.trace(register, use.instruction.vaddr, use.registers)
        return spell_register(register), value & ((1 << operand.size * 8) - 1), origin
    if operand.type == _MEM and use.tracer is not None:
        origin = use.tracer.trace_memory(x86_memory(decoded, operand), use.instruction, 0, use.registers)
        load = origin.load
        value = 0 if load is not None and load.is_verified else None
        return "the word in memory", value, origin
    return "", None, None
