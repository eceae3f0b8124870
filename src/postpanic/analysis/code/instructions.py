"""
Machine code as values: capstone decodes, we spell.

Nothing here knows drgn or a dump: bytes and an address go in. Data is decoded
as it is in memory, so self-modified text (static calls, alternatives, ftrace)
is shown as it ran.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import capstone
from capstone import arm64, x86

from postpanic.analysis.code.att import spell_att
from postpanic.errors import UnsupportedError

__all__ = ["MACHINES", "Disassembler", "Flow", "Instruction", "Syntax"]

_WORD = (1 << 64) - 1


class Syntax(StrEnum):
    """How the operands of x86 are written."""

    ATT = "att"
    INTEL = "intel"


class Flow(StrEnum):
    """Where control goes behind an instruction."""

    NEXT = "next"
    """On to the next one."""
    BRANCH = "branch"
    """To the target, or on."""
    JUMP = "jump"
    """To the target."""
    CALL = "call"
    """To the target and back."""
    RETURN = "return"
    """Back to the caller, or out of an interrupt or system call."""
    TRAP = "trap"
    """Nowhere: ``ud2``, ``int3``, ``brk``."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """
    One instruction.

    Parameters
    ----------
    vaddr : int
    data : bytes
        As it lies in memory.
    mnemonic, operands : str
        Without symbols.
    flow : Flow
    target : int, optional
        Of a direct branch or call.
    reference : int, optional
        Address of the data that a PC-relative operand names.
    decoded : object
        capstone's ``CsInsn`` with details, for who must know more; None: the bytes are no instruction.
    """

    vaddr: int
    data: bytes
    mnemonic: str
    operands: str
    flow: Flow
    target: int | None = None
    reference: int | None = None
    decoded: Any = None

    @property
    def end(self) -> int:
        """Address behind it."""
        return self.vaddr + len(self.data)


_ENGINES: dict[str, tuple[int, int, int]] = {
    "x86_64": (capstone.CS_ARCH_X86, capstone.CS_MODE_64, 1),
    "i386": (capstone.CS_ARCH_X86, capstone.CS_MODE_32, 1),
    "aarch64": (capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM, 4),
    "arm": (capstone.CS_ARCH_ARM, capstone.CS_MODE_ARM | capstone.CS_MODE_V8, 4),
    "armt": (capstone.CS_ARCH_ARM, capstone.CS_MODE_THUMB | capstone.CS_MODE_V8, 2),
    "riscv64": (capstone.CS_ARCH_RISCV, capstone.CS_MODE_RISCV64 | capstone.CS_MODE_RISCVC, 2),
    "riscv32": (capstone.CS_ARCH_RISCV, capstone.CS_MODE_RISCV32 | capstone.CS_MODE_RISCVC, 2),
    "ppc64": (capstone.CS_ARCH_PPC, capstone.CS_MODE_64 | capstone.CS_MODE_BIG_ENDIAN, 4),
    "ppc": (capstone.CS_ARCH_PPC, capstone.CS_MODE_32 | capstone.CS_MODE_BIG_ENDIAN, 4),
    "s390x": (capstone.CS_ARCH_SYSZ, capstone.CS_MODE_BIG_ENDIAN, 2),
    "mips64": (capstone.CS_ARCH_MIPS, capstone.CS_MODE_MIPS64 | capstone.CS_MODE_BIG_ENDIAN, 4),
    "mips": (capstone.CS_ARCH_MIPS, capstone.CS_MODE_MIPS32 | capstone.CS_MODE_BIG_ENDIAN, 4),
    "micromips": (
        capstone.CS_ARCH_MIPS,
        capstone.CS_MODE_MIPS32 | capstone.CS_MODE_MICRO | capstone.CS_MODE_BIG_ENDIAN,
        2,
    ),
}
"""Architecture and mode of capstone, and the bytes that are left out where there is no instruction."""
MACHINES = frozenset(_ENGINES)
"""What can be disassembled."""


class Disassembler:
    """
    Decodes the instructions of one machine.

    Parameters
    ----------
    machine : str
        As ``uname -m`` spells it, one of :data:`MACHINES`; ``armt`` is the Thumb code of arm, ``micromips`` the
        short one of mips.
    syntax : Syntax
        Of x86.

    Raises
    ------
    UnsupportedError
        For any other machine.
    """

    def __init__(self, machine: str, syntax: Syntax = Syntax.ATT) -> None:
        self.machine = machine
        self._syntax = syntax
        if machine not in _ENGINES:
            raise UnsupportedError(
                f"code of machine {machine!r} cannot be disassembled", hint=f"known are {', '.join(sorted(_ENGINES))}"
            )
        architecture, mode, self._step = _ENGINES[machine]
        self._engine = capstone.Cs(architecture, mode)
        self._engine.detail = True
        self._is_x86 = architecture == capstone.CS_ARCH_X86

    def decode(self, data: bytes, vaddr: int) -> Iterator[Instruction]:
        """
        Decode instructions one behind the other.

        Bytes that are none are an instruction ``(bad)`` each (two or four of them on
        other machines than x86); bytes at the end that are only the beginning of one are left out.
        """
        position = 0
        while position < len(data):
            found = False
            for decoded in self._engine.disasm(data[position:], vaddr + position):
                found = True
                position += decoded.size
                yield self._instruction(decoded)
            if found and position >= len(data):
                return
            rest = data[position : position + self._step]
            # An instruction of x86 has up to 15 bytes: the last ones may be the beginning of one.
            if len(rest) < self._step or (self._is_x86 and len(data) - position < 15):
                return
            yield self._repair(rest, vaddr + position) or Instruction(vaddr + position, rest, "(bad)", "", Flow.NEXT)
            position += self._step

    def _repair(self, data: bytes, vaddr: int) -> Instruction | None:
        """
        Decode what capstone 5 refuses: an unprivileged load or store of arm64 whose two registers are one.

        ``get_user()`` is made of them. Only with writing back, which they do not have, would that be unpredictable.
        """
        word = int.from_bytes(data, "little")
        number = word & 31
        is_one = self.machine == "aarch64" and word & _UNPRIVILEGED[0] == _UNPRIVILEGED[1] and word >> 5 & 31 == number
        if not is_one or number == _ZERO_REGISTER:
            return None
        for decoded in self._engine.disasm((word | _ZERO_REGISTER).to_bytes(4, "little"), vaddr):
            first = arm64.ARM64_REG_W0 if decoded.op_str.startswith("w") else arm64.ARM64_REG_X0
            # The frame pointer and the link register are numbered apart from the others.
            special = {29: arm64.ARM64_REG_X29, 30: arm64.ARM64_REG_X30} if first == arm64.ARM64_REG_X0 else {}
            # What it writes to is asked of capstone's own description, of which all else are copies.
            operand = decoded._raw.detail.contents.arch.arm64.operands[0]  # noqa: SLF001
            operand.value.reg = special.get(number, first + number)
            text = decoded.op_str.replace("zr", str(number), 1)
            return Instruction(vaddr, data, decoded.mnemonic, text, Flow.NEXT, decoded=decoded)
        return None

    def _instruction(self, decoded: Any) -> Instruction:  # noqa: ANN401 - capstone has no types
        if self.machine == "aarch64":
            return _make_arm64(decoded)
        if not self._is_x86:
            return _make_other(decoded)
        flow, target = _flow_x86(decoded)
        mnemonic, operands = decoded.mnemonic, decoded.op_str
        if self._syntax is Syntax.ATT:
            mnemonic, operands = spell_att(decoded)
        return Instruction(
            decoded.address,
            bytes(decoded.bytes),
            mnemonic,
            operands,
            flow,
            target,
            _reference_x86(decoded),
            decoded,
        )


_RETURNS_X86 = frozenset(
    {x86.X86_INS_RET, x86.X86_INS_RETF, x86.X86_INS_RETFQ, x86.X86_INS_IRET, x86.X86_INS_IRETD, x86.X86_INS_IRETQ}
    | {x86.X86_INS_SYSRET, x86.X86_INS_SYSEXIT}
)
_TRAPS_X86 = frozenset({x86.X86_INS_UD0, x86.X86_INS_UD1, x86.X86_INS_UD2, x86.X86_INS_INT3, x86.X86_INS_HLT})


def _flow_x86(decoded: Any) -> tuple[Flow, int | None]:  # noqa: ANN401 - capstone has no types
    operands = decoded.operands
    target = None
    if len(operands) == 1 and operands[0].type == x86.X86_OP_IMM:
        target = operands[0].imm & _WORD
    if decoded.id in _RETURNS_X86:
        return Flow.RETURN, None
    if decoded.id in _TRAPS_X86:
        return Flow.TRAP, None
    if decoded.group(capstone.CS_GRP_CALL):
        return Flow.CALL, target
    if decoded.id in {x86.X86_INS_JMP, x86.X86_INS_LJMP}:
        return Flow.JUMP, target
    if decoded.group(capstone.CS_GRP_JUMP) or decoded.group(capstone.CS_GRP_BRANCH_RELATIVE):
        return Flow.BRANCH, target
    return Flow.NEXT, None


def _reference_x86(decoded: Any) -> int | None:  # noqa: ANN401 - capstone has no types
    for operand in decoded.operands:
        if operand.type == x86.X86_OP_MEM and operand.mem.base == x86.X86_REG_RIP:
            return int(decoded.address + decoded.size + operand.mem.disp) & _WORD
    return None


_UNPRIVILEGED = (0x3F200C00, 0x38000800)
"""Mask and value of ``LDTR*`` and ``STTR*``: Arm ARM, C4.1.88 "Load/store register (unprivileged)"."""
_ZERO_REGISTER = 31
_CALLS_ARM64 = frozenset({arm64.ARM64_INS_BL, arm64.ARM64_INS_BLR})
_RETURNS_ARM64 = frozenset({arm64.ARM64_INS_RET, arm64.ARM64_INS_ERET})
_TRAPS_ARM64 = frozenset({arm64.ARM64_INS_BRK, arm64.ARM64_INS_UDF, arm64.ARM64_INS_HLT})


def _make_arm64(decoded: Any) -> Instruction:  # noqa: ANN401 - capstone has no types
    flow = Flow.NEXT
    operands = decoded.operands
    immediate = operands[-1].imm & _WORD if operands and operands[-1].type == arm64.ARM64_OP_IMM else None
    target = reference = None
    text = decoded.op_str
    if decoded.id in _RETURNS_ARM64 or decoded.mnemonic in {"retaa", "retab", "eretaa", "eretab"}:
        flow = Flow.RETURN
    elif decoded.id in _TRAPS_ARM64:
        flow = Flow.TRAP
    elif decoded.id in _CALLS_ARM64 or decoded.mnemonic.startswith("blra"):
        flow, target = Flow.CALL, immediate
    elif decoded.id in {arm64.ARM64_INS_B, arm64.ARM64_INS_BR} or decoded.group(capstone.CS_GRP_JUMP):
        is_plain = decoded.mnemonic in {"b", "br"} or decoded.mnemonic.startswith("bra")
        flow, target = (Flow.JUMP if is_plain else Flow.BRANCH), immediate
    elif _is_literal(decoded, immediate):
        reference = immediate
    for named in (target, reference):
        if named is not None:
            text = text.replace(f"#{named:#x}", f"{named:#x}")
    return Instruction(decoded.address, bytes(decoded.bytes), decoded.mnemonic, text, flow, target, reference, decoded)


def _is_literal(decoded: Any, immediate: int | None) -> bool:  # noqa: ANN401 - capstone has no types
    """Tell whether an immediate is the address of data."""
    if decoded.id in {arm64.ARM64_INS_ADR, arm64.ARM64_INS_ADRP}:
        return True
    return immediate is not None and decoded.mnemonic in {"ldr", "ldrsw", "prfm"}


def _make_other(decoded: Any) -> Instruction:  # noqa: ANN401 - capstone has no types
    """Make an instruction of a machine whose control flow nobody follows: what capstone's groups tell must do."""
    flow = Flow.NEXT
    if decoded.group(capstone.CS_GRP_CALL):
        flow = Flow.CALL
    elif decoded.group(capstone.CS_GRP_RET) or decoded.group(capstone.CS_GRP_IRET):
        flow = Flow.RETURN
    elif decoded.group(capstone.CS_GRP_JUMP) or decoded.group(capstone.CS_GRP_BRANCH_RELATIVE):
        flow = Flow.BRANCH
    elif decoded.group(capstone.CS_GRP_INT):
        flow = Flow.TRAP
    return Instruction(
        decoded.address, bytes(decoded.bytes), decoded.mnemonic, decoded.op_str, flow, None, None, decoded
    )
