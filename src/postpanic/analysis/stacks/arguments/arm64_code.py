"""
What each instruction of arm64 does to registers and stack slots.

Sources: Arm Architecture Reference Manual, C6.2; AAPCS64 (Procedure Call Standard for the Arm 64-bit Architecture),
6.1.1 and 6.4 (which registers a call keeps, where arguments are).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from capstone import CS_ARCH_ARM64, CS_MODE_ARM, Cs
from capstone.arm64 import ARM64_OP_IMM, ARM64_OP_MEM, ARM64_OP_REG

from postpanic.analysis.stacks.arguments.machine import Control, Instruction, Operand
from postpanic.analysis.stacks.arguments.state import (
    Defined,
    Entry,
    FrameAddress,
    Loaded,
    Location,
    Number,
    State,
    Value,
    add,
    comes_from,
    low,
    too_deep,
)

__all__ = ["Arm64Machine"]

_STACK_ARGUMENTS = 6
_WORD = (1 << 64) - 1
_GENERAL = tuple(f"x{number}" for number in range(31))
_ALIASES = {"fp": "x29", "lr": "x30", "wsp": "sp"}
_KEEPING = frozenset({"nop", "hint", "bti", "cmp", "cmn", "tst", "ccmp", "ccmn", "prfm", "dmb", "dsb", "isb", "yield"})
"""Instructions that change flags or nothing."""
_LOADS = {"ldr": 0, "ldur": 0, "ldar": 0, "ldapr": 0, "ldxr": 0, "ldaxr": 0, "ldrb": 1, "ldurb": 1, "ldarb": 1}
_LOADS |= {"ldrh": 2, "ldurh": 2, "ldarh": 2, "ldrsw": 4, "ldrsb": 1, "ldrsh": 2, "ldursw": 4}
_STORES = {"str": 0, "stur": 0, "stlr": 0, "strb": 1, "sturb": 1, "stlrb": 1, "strh": 2, "sturh": 2, "stlrh": 2}
"""Sizes in bytes; 0: the register's."""
_CONDITIONAL = ("cbz", "cbnz", "tbz", "tbnz", "b.")
_ENDS = frozenset({"ret", "retaa", "retab", "eret", "eretaa", "eretab"})
_COMPARES = ("cas",)
_FETCHES = ("swp", "ldadd", "ldset", "ldclr", "ldeor", "ldsm", "ldum")
"""Atomic instructions (LSE) that give a register the old value: the first operand, the second."""


class Arm64Machine:
    """Decodes instructions, and does to a state what they do."""

    name = "aarch64"
    sp = "sp"
    frame_pointer = "x29"
    arguments = tuple(f"x{number}" for number in range(8))
    caller_saved = frozenset({*(f"x{number}" for number in range(19)), "x30"})
    callee_saved = frozenset(f"x{number}" for number in range(19, 30))
    call_sizes = (4,)

    def __init__(self) -> None:
        self._disassembler = Cs(CS_ARCH_ARM64, CS_MODE_ARM)
        self._disassembler.detail = True
        self._disassembler.skipdata = True

    def entry_state(self) -> State:
        """Give what is where when a function is entered: the return address is in a register."""
        state: State = {register: Entry(register) for register in _GENERAL}
        state["sp"] = FrameAddress(0)
        for number in range(_STACK_ARGUMENTS):
            state[8 * number] = Entry(f"stack{number}")
        return state

    def decode(self, code: bytes, vaddr: int) -> list[Instruction]:
        """Decode a stretch of code; words that are no instruction are passed over."""
        return [found for found in self._disassembler.disasm(code, vaddr) if found.id]

    def control(self, instruction: Instruction) -> Control:
        """Tell where control goes."""
        name: str = instruction.mnemonic
        if name in {"bl", "blr"} or name.startswith("blra"):
            return Control.CALL
        if name in {"b", "br"} or name.startswith("bra"):
            return Control.JUMP
        if name.startswith(_CONDITIONAL):
            return Control.BRANCH
        return Control.RETURN if name in _ENDS else Control.TRAP if name in {"brk", "hlt", "udf"} else Control.NEXT

    def target(self, instruction: Instruction) -> int | None:
        """Give the target of a direct call, jump or branch."""
        operand = instruction.operands[-1] if instruction.operands else None
        # Capstone's numbers are signed.
        return int(operand.imm) & _WORD if operand is not None and operand.type == ARM64_OP_IMM else None

    def branches_on_zero(self, instruction: Instruction) -> bool | None:
        """Tell whether a branch is taken if what was asked for is zero; None: if it is something else, or nothing."""
        name: str = instruction.mnemonic
        if name in {"cbz", "b.eq"}:
            return True
        return False if name in {"cbnz", "b.ne"} else None

    def step(self, instruction: Instruction, state: State, *, is_traced_entry: bool = False) -> State:
        """Give the state behind an instruction; a call returns as the ABI wants it."""
        return _Step(instruction, dict(state)).run(self, is_traced_entry=is_traced_entry)

    def address(self, instruction: Instruction, state: State) -> Value | None:
        """Give the address that an instruction accesses."""
        return _Step(instruction, state).address()

    def value_of(self, instruction: Instruction, number: int, state: State) -> Value | None:
        """Give what a register operand holds."""
        return _Step(instruction, state).read(instruction.operands[number])

    def addresses_taken(self, before: State, after: State) -> Iterator[int]:
        """Give the slots whose address an instruction put into a register, where others may get it from."""
        for register in _GENERAL:
            value = after.get(register)
            # The frame pointer is set up from the stack pointer, and nothing is meant by it.
            is_pointer = register == "x29" and before.get("sp") == value
            if isinstance(value, FrameAddress) and before.get(register) != value and not is_pointer:
                yield value.offset

    def saved_slots(self, instruction: Instruction, after: State) -> Iterator[int]:
        """Give the slots in which an instruction saves registers for the caller."""
        if not instruction.mnemonic.startswith(("stp", "str", "stur")):
            return
        registers = [_canonical(instruction, one.reg)[0] for one in instruction.operands if one.type == ARM64_OP_REG]
        saved = self.callee_saved & {*registers}
        for location, value in after.items():
            if isinstance(location, int) and isinstance(value, Entry) and value.register in saved:
                yield location


def _canonical(instruction: Instruction, number: int) -> tuple[str, int]:
    """Give the whole register, and how many bytes are meant; ``("", 0)``: no general one."""
    name: str = instruction.reg_name(number) or ""
    if name in {"xzr", "wzr"}:
        return "xzr", 8 if name == "xzr" else 4
    if name in _ALIASES:
        return _ALIASES[name], 4 if name == "wsp" else 8
    if name[:1] in {"x", "w"} and name[1:].isdigit():
        return f"x{name[1:]}", 8 if name[0] == "x" else 4
    return ("sp", 8) if name == "sp" else ("", 0)


class _Step:
    """One instruction at work."""

    def __init__(self, instruction: Instruction, state: State) -> None:
        self._instruction = instruction
        self._state = state
        self._operands: list[Any] = instruction.operands
        self._at: int = instruction.address

    def run(self, machine: Arm64Machine, *, is_traced_entry: bool) -> State:
        name: str = self._instruction.mnemonic
        if machine.control(self._instruction) is Control.CALL:
            if not is_traced_entry:
                for register in machine.caller_saved:
                    self._state.pop(register, None)
                self._set("x0", None)
        elif name in _KEEPING or name.startswith(("pac", "aut", "xpac")):
            pass
        elif name in _LOADS or name in _STORES or name in {"ldp", "stp", "ldpsw"}:
            self._transfer(name)
        elif not self._reckon(name):
            self._do_anything(name)
        return self._state

    def address(self) -> Value | None:
        """Give the address that the memory operand means; what is added behind the access is not in it."""
        operand = next((one for one in self._operands if one.type == ARM64_OP_MEM), None)
        if operand is None or operand.mem.index:
            return None
        base = self._state.get(_canonical(self._instruction, operand.mem.base)[0])
        disp = 0 if self._is_post_index() else int(operand.mem.disp)
        return add(base, disp) if base is not None else None

    def read(self, operand: Operand) -> Value | None:
        """Give the value of a register or a number."""
        if operand.type == ARM64_OP_IMM:
            return Number((int(operand.imm) << (operand.shift.value if operand.shift.type else 0)) & _WORD)
        if operand.type != ARM64_OP_REG:
            return None
        register, size = _canonical(self._instruction, operand.reg)
        if register == "xzr":
            return Number(0)
        value = self._state.get(register)
        return value if size == 8 or value is None else low(value, size)

    def _is_post_index(self) -> bool:
        return "], " in self._instruction.op_str

    def _transfer(self, name: str) -> None:
        """Load or store one register, or two."""
        address = self.address()
        registers = [one for one in self._operands if one.type == ARM64_OP_REG][: 2 if name[2] == "p" else 1]
        literal = next((one for one in self._operands if one.type == ARM64_OP_IMM), None)
        if name.startswith("ldr") and address is None and literal is not None and not self._is_post_index():
            address = Number(int(literal.imm) & _WORD)
        writeback = self._writeback()
        size = 0
        for number, operand in enumerate(registers):
            register, width = _canonical(self._instruction, operand.reg)
            size = _LOADS.get(name, 0) or _STORES.get(name, 0) or (4 if name == "ldpsw" else width)
            place = add(address, number * size) if address is not None else None
            if not register or not size:
                # Of another kind (SIMD): how much is written is not known.
                if name.startswith("st"):
                    self._store(place, 32, None)
            elif name.startswith("ld"):
                self._set(register, self._load(place, size))
            else:
                self._store(place, size, self.read(operand))
        if writeback is not None:
            base, value = writeback
            self._set(base, value)

    def _writeback(self) -> tuple[str, Value | None] | None:
        """Give the base register and what it holds behind the access; None: it is left as it is."""
        operand = next((one for one in self._operands if one.type == ARM64_OP_MEM), None)
        if operand is None or not self._instruction.writeback:
            return None
        register, _ = _canonical(self._instruction, operand.mem.base)
        last = self._operands[-1]
        step = int(last.imm) if self._is_post_index() and last.type == ARM64_OP_IMM else int(operand.mem.disp)
        base = self._state.get(register)
        return register, add(base, step) if base is not None else None

    def _load(self, address: Value | None, size: int) -> Value | None:
        if isinstance(address, FrameAddress):
            held = self._state.get(address.offset)
            return held if held is None or size == 8 else low(held, size)
        return Loaded(address, size, self._at) if address is not None else None

    def _store(self, address: Value | None, size: int, value: Value | None) -> None:
        if not isinstance(address, FrameAddress):
            return
        low_end, high_end = address.offset - 8, address.offset + size
        for slot in [place for place in self._state if isinstance(place, int) and low_end < place < high_end]:
            del self._state[slot]
        if value is not None and size <= 8 and not too_deep(value):
            self._state[address.offset] = value if size == 8 else low(value, size)

    def _set(self, location: Location, value: Value | None) -> None:
        if location in {"xzr", ""}:
            return
        if location == "sp" and not isinstance(value, FrameAddress):
            self._state.pop("sp", None)
            return
        if isinstance(value, Loaded) and comes_from(value.address, self._at):
            # What this instruction loaded in an earlier round of a loop.
            value = None
        if value is None or too_deep(value):
            value = Defined(self._at, str(location))
        if comes_from(value, self._at):
            for other in [place for place, held in self._state.items() if comes_from(held, self._at)]:
                del self._state[other]
        self._state[location] = value

    def _reckon(self, name: str) -> bool:
        """Do what makes a value of others; False: what this does is not known."""
        if len(self._operands) < 2 or self._operands[0].type != ARM64_OP_REG:
            return False
        register, size = _canonical(self._instruction, self._operands[0].reg)
        value: Value | None = None
        if name in {"mov", "movz"}:
            value = self.read(self._operands[1])
            if self._operands[1].type == ARM64_OP_REG and not _canonical(self._instruction, self._operands[1].reg)[0]:
                return False
        elif name in {"adr", "adrp"}:
            value = Number(int(self._operands[1].imm) & _WORD)
        elif name == "movk":
            held = self._state.get(register)
            value = self._insert(held) if isinstance(held, Number) else None
        elif name in {"add", "sub"} and len(self._operands) == 3:
            value = self._sum(1 if name == "add" else -1)
        else:
            return False
        self._set(register, low(value, size) if value is not None and size < 8 else value)
        return True

    def _insert(self, held: Number) -> Number:
        operand = self._operands[1]
        shift = operand.shift.value if operand.shift.type else 0
        return Number(held.number & ~(0xFFFF << shift) & _WORD | (int(operand.imm) & 0xFFFF) << shift)

    def _sum(self, sign: int) -> Value | None:
        first, second = self.read(self._operands[1]), self.read(self._operands[2])
        is_plain = self._operands[2].type == ARM64_OP_IMM or not (self._operands[2].shift.type or self._operands[2].ext)
        if not is_plain or first is None:
            return None
        if isinstance(second, Number):
            step = second.number - (1 << 64) if second.number >> 63 else second.number
            return add(first, sign * step)
        if isinstance(first, Number) and second is not None and sign > 0:
            return add(second, first.number)
        return None

    def _do_anything(self, name: str) -> None:
        """Forget what an instruction writes of which nothing else is known."""
        _, written = self._instruction.regs_access()
        names = {_canonical(self._instruction, number)[0] for number in written}
        # Capstone 5 does not tell of these.
        place = 0 if name.startswith(_COMPARES) else 1 if name.startswith(_FETCHES) else None
        if place is not None and len(self._operands) > place and self._operands[place].type == ARM64_OP_REG:
            names.add(_canonical(self._instruction, self._operands[place].reg)[0])
        for held_at in [where for where, held in self._state.items() if comes_from(held, self._at)]:
            del self._state[held_at]
        for register in sorted(names - {"", "xzr"}):
            self._set(register, None)
        if not name.startswith("ld") or name.startswith(_FETCHES):
            address = self.address()
            if address is not None:
                self._store(address, 32 if name.startswith("st") else 8, None)
