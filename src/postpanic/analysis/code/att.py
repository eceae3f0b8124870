"""
x86 instructions as GNU's tools write them: AT&T syntax, source before destination.

capstone's own AT&T text differs from objdump's in numbers, suffixes and
memory operands, so the text is made from the decoded operands.
"""

from __future__ import annotations

from typing import Any

from capstone import x86

__all__ = ["spell_att"]

_SUFFIXES = {1: "b", 2: "w", 4: "l", 8: "q"}
_RENAMED = {
    "cdqe": "cltq",
    "cwde": "cwtl",
    "cbw": "cbtw",
    "cqo": "cqto",
    "cdq": "cltd",
    "cwd": "cwtd",
    "pushfq": "pushf",
    "popfq": "popf",
    "retf": "lret",
    "retfq": "lretq",
    "iretd": "iret",
    "int1": "icebp",
}
_PREFIXES = {"repe": "repz", "repne": "repnz"}
_SIZED = frozenset(
    {
        *("mov", "add", "sub", "and", "or", "xor", "cmp", "test", "adc", "sbb", "nop"),
        *("inc", "dec", "not", "neg", "mul", "imul", "div", "idiv", "bt", "bts", "btr", "btc"),
        *("shl", "shr", "sar", "rol", "ror", "rcl", "rcr"),
    }
)
"""What gets the size of its memory operand as a suffix when no register tells it."""
_SHIFTS = frozenset({"shl", "shr", "sar", "rol", "ror", "rcl", "rcr"})
_STRINGS = frozenset(
    f"{name}{size}" for name in ("stos", "lods", "scas", "ins", "outs", "movs", "cmps") for size in "bwdq"
)
_STRING_SEGMENTS = {"rdi": "%es:", "edi": "%es:", "rsi": "%ds:", "esi": "%ds:"}
_INDIRECT = frozenset({"call", "jmp", "lcall", "ljmp"})


def spell_att(decoded: Any) -> tuple[str, str]:  # noqa: ANN401 - capstone has no types
    """
    Spell a decoded instruction.

    Parameters
    ----------
    decoded : CsInsn
        Of x86, with details, in Intel syntax.

    Returns
    -------
    mnemonic, operands : str
        ``("movzbl", "0x8(%rdi,%rax,4),%ecx")``
    """
    *prefixes, name = decoded.mnemonic.split()
    # Another encoding of the same instruction.
    name = "shl" if name == "sal" else name
    operands = list(decoded.operands)
    if name == "nop" and not operands and bytes(decoded.bytes[:1]) == b"\x66":
        return "xchg", "%ax,%ax"
    if name in _SHIFTS and len(operands) == 2 and _is_one(decoded, operands[1]):
        operands = operands[:1]
    mnemonic = _mnemonic(name, operands)
    if prefixes == ["rep"] and name == "ret":
        prefixes = ["repz"]
    if name == "nop" and operands and operands[-1].type == x86.X86_OP_MEM:
        # A segment has no meaning there: it only makes the instruction longer.
        segment = operands[-1].mem.segment
        prefixes = [*prefixes, *([decoded.reg_name(segment)] if segment else [])]
    spelt = [_operand(decoded, operand, name, operands) for operand in reversed(operands)]
    head = " ".join([*(_PREFIXES.get(prefix, prefix) for prefix in prefixes), mnemonic])
    return head, ",".join(spelt)


def _is_one(decoded: Any, operand: Any) -> bool:  # noqa: ANN401 - capstone has no types
    """Tell whether a shift is by the one that its opcode implies."""
    return operand.type == x86.X86_OP_IMM and operand.imm == 1 and decoded.opcode[0] in {0xD0, 0xD1}


def _mnemonic(name: str, operands: list[Any]) -> str:
    if name in {"movzx", "movsx", "movsxd"} and len(operands) == 2:
        stem = "movz" if name == "movzx" else "movs"
        return f"{stem}{_SUFFIXES.get(operands[1].size, '')}{_SUFFIXES.get(operands[0].size, '')}"
    if name in _STRINGS and any(operand.type == x86.X86_OP_REG for operand in operands):
        return name[:-1]
    if name in _STRINGS:
        return f"{name[:-1]}{'l' if name[-1] == 'd' else name[-1]}"
    if name not in _SIZED or not operands:
        return _RENAMED.get(name, name)
    registers = [operand for operand in operands if operand.type == x86.X86_OP_REG]
    if name in _SHIFTS and operands[0].type != x86.X86_OP_REG:
        # The count in %cl does not tell the size of what is shifted.
        registers = []
    memory = [operand for operand in operands if operand.type == x86.X86_OP_MEM]
    if registers or not memory:
        return name
    return f"{name}{_SUFFIXES.get(memory[0].size, '')}"


def _operand(decoded: Any, operand: Any, name: str, operands: list[Any]) -> str:  # noqa: ANN401 - capstone has no types
    star = "*" if name in _INDIRECT else ""
    match operand.type:
        case x86.X86_OP_REG:
            return f"{star}%{_register(decoded, operand.reg)}"
        case x86.X86_OP_IMM:
            if len(operands) == 1 and (name in _INDIRECT or name.startswith(("j", "loop", "xbegin"))):
                return f"{operand.imm & ((1 << 64) - 1):#x}"
            return f"${_immediate(operand, operands):#x}"
        case x86.X86_OP_MEM:
            implied = _STRING_SEGMENTS.get(decoded.reg_name(operand.mem.base), "") if name in _STRINGS else ""
            return f"{star}{_memory(decoded, operand, implied)}"
        case _:
            return "?"


def _register(decoded: Any, number: int) -> str:  # noqa: ANN401 - capstone has no types
    name: str = decoded.reg_name(number) or "?"
    return f"st({name[2:-1]})" if name.startswith("st(") else name


def _immediate(operand: Any, operands: list[Any]) -> int:  # noqa: ANN401 - capstone has no types
    """Mask an immediate to the width that it is used in."""
    sizes = [other.size for other in operands if other is not operand and other.type != x86.X86_OP_IMM]
    size = sizes[0] if sizes else 8 if operand.imm < 0 else max(operand.size, 1)
    return int(operand.imm) & ((1 << size * 8) - 1)


def _memory(decoded: Any, operand: Any, implied: str) -> str:  # noqa: ANN401 - capstone has no types
    memory = operand.mem
    segment = f"%{decoded.reg_name(memory.segment)}:" if memory.segment else implied
    if decoded.id == x86.X86_INS_NOP:
        segment = ""
    disp = memory.disp
    if not memory.base and not memory.index:
        return f"{segment}{disp & ((1 << 64) - 1):#x}"
    number = ""
    if decoded.disp_size or disp:
        number = f"-{-disp:#x}" if disp < 0 else f"{disp:#x}"
    base = f"%{decoded.reg_name(memory.base)}" if memory.base else ""
    index = f",%{decoded.reg_name(memory.index)},{memory.scale}" if memory.index else ""
    return f"{segment}{number}({base}{index})"
