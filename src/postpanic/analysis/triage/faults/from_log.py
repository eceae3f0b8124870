"""Bad pointers by a log alone: the registers and the bytes of code that the kernel prints."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.code.instructions import MACHINES, Disassembler, Instruction
from postpanic.analysis.decode.codebytes import decode_code, machine_of
from postpanic.analysis.decode.operands import find_accesses
from postpanic.analysis.triage.faults.uses import bad_register, choose_access, find_culprit, full_registers
from postpanic.analysis.triage.faults.values import BadKind
from postpanic.analysis.triage.faults.wording import who
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report
from postpanic.evidence.oops.kinds import Family
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role

__all__ = ["find_printed_pointer"]

_CAUSES = {
    BadKind.NULL: Cause.NULL_POINTER,
    BadKind.SMALL: Cause.NULL_POINTER,
    BadKind.FREED: Cause.USE_AFTER_FREE,
    BadKind.LIST_POISON: Cause.LIST_CORRUPTION,
    BadKind.UNSET: Cause.UNINITIALIZED,
    BadKind.RED_ZONE: Cause.OUT_OF_BOUNDS,
}


def _marked(report: Report) -> tuple[Instruction, str] | None:
    """Decode the instruction that the kernel marks in its ``Code:`` line."""
    machine = machine_of(report.architecture, report.code, report.release)
    code = decode_code(report.code, machine) if report.code else None
    if code is None or code.mark is None or machine not in MACHINES:
        return None
    # Bytes behind the end let the last instruction be told from the beginning of a longer one.
    rest = code.data[code.mark :] + bytes(16)
    instruction = next(Disassembler(machine).decode(rest, 0), None)
    return (instruction, machine) if instruction is not None and instruction.decoded is not None else None


@detector(
    "printed-pointer",
    needs=(Need.REPORT,),
    about="which register held the bad pointer, by the registers and code that the kernel printed",
    depth=40,
    families=(Family.MEMORY_ACCESS,),
)
def find_printed_pointer(scene: Scene) -> Iterator[Finding]:
    """Name the register and its value; with a dump, others say more."""
    report, culprit = scene.first, find_culprit(scene)
    if scene.workspace is not None or report is None or culprit is None or not report.registers:
        return
    found = _marked(report)
    if found is None:
        return
    instruction, machine = found
    accesses = find_accesses(instruction, machine, full_registers(report.registers))
    access = choose_access(accesses, report.address, machine)
    if access is None:
        return
    register, value, offset = bad_register(access, machine)
    if value is None or not value.is_bad:
        return
    verb = "wrote" if access.is_write else "read"
    fits = report.address is None or access.vaddr == report.address
    yield Finding(
        detector="printed-pointer",
        role=Role.CAUSE,
        cause=_CAUSES.get(value.kind, Cause.WILD_POINTER),
        sentence=(
            f"{who(culprit)} {verb} through a pointer that is {value.text} (register {register}, offset {offset:#x})."
        ),
        confidence=Confidence.LIKELY if fits and value.kind in _CAUSES else Confidence.POSSIBLE,
        function=culprit.function,
        module=culprit.module,
        evidence=(
            Evidence(f"the instruction that faulted is {instruction.mnemonic} {instruction.operands}", "log", "Code: "),
            Evidence(f"{register.upper()} is {value.text}", "log", f"{register.upper()}"),
        ),
        refuted_by="memory: with a dump it can be seen from where the pointer was loaded",
        explains=("reported",),
        time_s=report.time_s,
    )
