"""What each instruction of x86-64 does to registers and stack slots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

from capstone import CS_ARCH_X86, CS_MODE_64, Cs
from capstone.x86 import X86_OP_IMM, X86_OP_MEM, X86_OP_REG

from postpanic.analysis.stacks import x86_64
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

__all__ = ["X86Machine"]

_CALLER_SAVED = ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
_STACK_ARGUMENTS = 6
_WORD = (1 << 64) - 1
_RETURN_ADDRESS = -8
_RETURNS = frozenset({"ret", "retq", "iretq", "sysretq"})
_ENDS = frozenset({"int3", "hlt"})


@cache
def _canonical(name: str) -> tuple[str, int]:
    """Give the whole register that a name is part of, and how many bytes it means; ``("", 0)``: no general one."""
    if name in _GENERAL:
        return name, 8
    for register in _GENERAL:
        letters = register[1:]
        if register[1].isdigit():
            parts = {f"{register}d": 4, f"{register}w": 2, f"{register}b": 1}
        elif letters[-1] == "x":
            parts = {f"e{letters}": 4, letters: 2, f"{letters[0]}l": 1, f"{letters[0]}h": 0}
        else:
            parts = {f"e{letters}": 4, letters: 2, f"{letters}l": 1}
        if name in parts:
            return register, parts[name]
    return "", 0


class X86Machine:
    """Decodes instructions, and does to a state what they do."""

    name = "x86_64"
    sp = "rsp"
    frame_pointer = "rbp"
    arguments = x86_64.ARGUMENT_REGISTERS
    caller_saved = frozenset(_CALLER_SAVED)
    callee_saved = frozenset(x86_64.CALLEE_SAVED)
    call_sizes = tuple(range(2, 8))

    def __init__(self) -> None:
        self._disassembler = Cs(CS_ARCH_X86, CS_MODE_64)
        self._disassembler.detail = True
        self._disassembler.skipdata = True

    def decode(self, code: bytes, vaddr: int) -> list[Instruction]:
        """Decode a stretch of code; bytes that are no instruction are passed over."""
        return [found for found in self._disassembler.disasm(code, vaddr) if found.id]

    def entry_state(self) -> State:
        """Give what is where when a function is entered: its caller has just pushed the return address."""
        state: State = {register: Entry(register) for register in _GENERAL if register != "rsp"}
        state["rsp"] = FrameAddress(_RETURN_ADDRESS)
        for number in range(_STACK_ARGUMENTS):
            state[8 * number] = Entry(f"stack{number}")
        return state

    def control(self, instruction: Instruction) -> Control:
        """Tell where control goes."""
        name: str = instruction.mnemonic.split()[-1]
        if name == "call":
            return Control.CALL
        if name == "jmp":
            return Control.JUMP
        if name.startswith(("j", "loop")):
            return Control.BRANCH
        if name in _RETURNS:
            return Control.RETURN
        return Control.STOP if name in _ENDS else Control.TRAP if name == "ud2" else Control.NEXT

    def target(self, instruction: Instruction) -> int | None:
        """Give the target of a direct call, jump or branch."""
        operand = instruction.operands[0] if instruction.operands else None
        # Capstone's numbers are signed.
        return int(operand.imm) & _WORD if operand is not None and operand.type == X86_OP_IMM else None

    def branches_on_zero(self, instruction: Instruction) -> bool | None:
        """Tell whether a branch is taken if what was asked for is zero; None: if it is something else."""
        name: str = instruction.mnemonic.split()[-1]
        if name in {"je", "jz", "jns"}:
            return True
        return False if name in {"jne", "jnz", "js"} else None

    def address(self, instruction: Instruction, state: State) -> Value | None:
        """Give the address that an instruction accesses."""
        operand = next((one for one in instruction.operands if one.type == X86_OP_MEM), None)
        return _Step(instruction, state).address(operand) if operand is not None else None

    def value_of(self, instruction: Instruction, number: int, state: State) -> Value | None:
        """Give the value of an operand that is a register or a number."""
        operand = instruction.operands[number]
        return _Step(instruction, state).read(operand) if operand.type != X86_OP_MEM else None

    def step(self, instruction: Instruction, state: State, *, is_traced_entry: bool = False) -> State:
        """Give the state behind an instruction; a call returns as the ABI wants it."""
        return _Step(instruction, dict(state)).run(is_traced_entry=is_traced_entry)

    def addresses_taken(self, before: State, after: State) -> Iterator[int]:
        """Give the slots whose address an instruction put into a register, where others may get it from."""
        for register in _GENERAL:
            value = after.get(register)
            # The frame pointer is set up from the stack pointer, and nothing is meant by it.
            is_pointer = register == "rsp" or (register == "rbp" and before.get("rsp") == value)
            if isinstance(value, FrameAddress) and before.get(register) != value and not is_pointer:
                yield value.offset

    def saved_slots(self, instruction: Instruction, after: State) -> Iterator[int]:
        """Give the slot in which an instruction saves a register for the caller."""
        top = after.get("rsp")
        if instruction.mnemonic != "push" or not isinstance(top, FrameAddress):
            return
        value = after.get(top.offset)
        if isinstance(value, Entry) and value.register in x86_64.CALLEE_SAVED:
            yield top.offset


class _Step:
    """One instruction at work."""

    def __init__(self, instruction: Instruction, state: State) -> None:
        self._instruction = instruction
        self._state = state
        self._operands = instruction.operands
        self._at: int = instruction.address

    def run(self, *, is_traced_entry: bool) -> State:
        mnemonic: str = self._instruction.mnemonic.split()[-1]
        if mnemonic == "call":
            if not is_traced_entry:
                self._forget(_CALLER_SAVED)
            return self._state
        do = getattr(self, f"_do_{mnemonic}", None)
        if do is None or not do():
            self._do_anything()
        return self._state

    def address(self, operand: Operand) -> Value | None:
        """Give the address that a memory operand means."""
        memory = operand.mem
        if memory.segment or memory.index:
            return None
        displacement = memory.disp
        if not memory.base:
            return Number(displacement & _WORD)
        name = self._instruction.reg_name(memory.base)
        if name == "rip":
            return Number((self._at + self._instruction.size + displacement) & _WORD)
        register, size = _canonical(name)
        base = self._state.get(register) if size == 8 else None
        return add(base, displacement) if base is not None else None

    def read(self, operand: Operand) -> Value | None:
        """Give what an operand holds."""
        if operand.type == X86_OP_IMM:
            return Number(operand.imm & _WORD)
        if operand.type == X86_OP_REG:
            register, size = _canonical(self._instruction.reg_name(operand.reg))
            value = self._state.get(register)
            return value if size == 8 or value is None else low(value, size)
        if operand.type != X86_OP_MEM:
            return None
        address = self.address(operand)
        if isinstance(address, FrameAddress):
            held = self._state.get(address.offset)
            return None if held is None else (held if operand.size == 8 else low(held, operand.size))
        return Loaded(address, operand.size, self._at) if address is not None else None

    def _write(self, operand: Operand, value: Value | None) -> None:
        if operand.type == X86_OP_REG:
            register, size = _canonical(self._instruction.reg_name(operand.reg))
            if register:
                self._set(register, value if size >= 4 else None)
        elif operand.type == X86_OP_MEM:
            self._store(self.address(operand), operand.size, value)

    def _set(self, location: Location, value: Value | None) -> None:
        if isinstance(value, Loaded) and comes_from(value.address, self._at):
            # What this instruction loaded in an earlier round of a loop.
            value = None
        if value is None or too_deep(value):
            value = Defined(self._at, str(location))
        if comes_from(value, self._at):
            for other in [place for place, held in self._state.items() if comes_from(held, self._at)]:
                del self._state[other]
        self._state[location] = value

    def _store(self, address: Value | None, size: int, value: Value | None) -> None:
        if not isinstance(address, FrameAddress):
            return
        self._erase(address.offset, size)
        if value is not None and not too_deep(value):
            self._state[address.offset] = value if size == 8 else low(value, size)

    def _erase(self, offset: int, size: int) -> None:
        for slot in [place for place in self._state if isinstance(place, int) and offset - 8 < place < offset + size]:
            del self._state[slot]

    def _forget(self, registers: Iterable[str]) -> None:
        for register in registers:
            self._state.pop(register, None)
        self._set("rax", None)

    def _do_anything(self) -> None:
        """Forget what an instruction writes of which nothing else is known."""
        _, written = self._instruction.regs_access()
        names = {_canonical(self._instruction.reg_name(number))[0] for number in written} - {""}
        if "rsp" in names and self._instruction.mnemonic not in {"push", "pop"}:
            self._state.pop("rsp", None)
            names.discard("rsp")
        mnemonic = self._instruction.mnemonic
        if "stos" in mnemonic or "movs" in mnemonic.split()[-1][:4]:
            self._forget_filled()
        for place in [place for place, held in self._state.items() if comes_from(held, self._at)]:
            del self._state[place]
        for name in sorted(names):
            self._state[name] = Defined(self._at, name)
        for operand in self._operands:
            if operand.type == X86_OP_MEM and operand.access & 2:
                self._store(self.address(operand), operand.size, None)

    def _forget_filled(self) -> None:
        target = self._state.get("rdi")
        if isinstance(target, FrameAddress):
            self._erase(target.offset, max(8, -target.offset))

    def _do_mov(self) -> bool:
        target, source = self._operands
        if target.type == X86_OP_REG and not _canonical(self._instruction.reg_name(target.reg))[0]:
            return False
        if source.type == X86_OP_REG and not _canonical(self._instruction.reg_name(source.reg))[0]:
            return False
        self._write(target, self.read(source))
        return True

    _do_movabs = _do_mov

    def _do_movsxd(self) -> bool:
        return self._extend()

    def _do_movzx(self) -> bool:
        return self._extend()

    def _do_movsx(self) -> bool:
        return self._extend()

    def _extend(self) -> bool:
        target, source = self._operands
        value = self.read(source)
        if isinstance(value, Number):
            value = None
        self._write(target, low(value, source.size) if value is not None else None)
        return True

    def _do_lea(self) -> bool:
        value = self.address(self._operands[1])
        if self._operands[0].size < 8 and value is not None:
            value = low(value, self._operands[0].size)
        self._write(self._operands[0], value)
        return True

    def _do_push(self) -> bool:
        value = self.read(self._operands[0])
        self._move_stack(-8)
        self._store(self._state.get("rsp"), 8, value)
        return True

    def _do_pop(self) -> bool:
        top = self._state.get("rsp")
        value = self._state.get(top.offset) if isinstance(top, FrameAddress) else None
        self._write(self._operands[0], value)
        self._move_stack(8)
        return True

    def _do_leave(self) -> bool:
        pointer = self._state.get("rbp")
        if not isinstance(pointer, FrameAddress):
            return False
        held = self._state.get(pointer.offset)
        self._state["rsp"] = FrameAddress(pointer.offset + 8)
        self._set("rbp", held)
        return True

    def _move_stack(self, step: int) -> None:
        top = self._state.get("rsp")
        if isinstance(top, FrameAddress):
            self._state["rsp"] = FrameAddress(top.offset + step)
        else:
            self._state.pop("rsp", None)

    def _do_add(self) -> bool:
        return self._add_constant(1)

    def _do_sub(self) -> bool:
        target, source = self._operands
        if target.type == X86_OP_REG and source.type == X86_OP_REG and target.reg == source.reg:
            self._write(target, Number(0))
            return True
        return self._add_constant(-1)

    def _do_xor(self) -> bool:
        target, source = self._operands
        if target.type == X86_OP_REG and source.type == X86_OP_REG and target.reg == source.reg:
            self._write(target, Number(0))
            return True
        return False

    def _do_inc(self) -> bool:
        return self._add_number(1)

    def _do_dec(self) -> bool:
        return self._add_number(-1)

    def _add_constant(self, sign: int) -> bool:
        return self._operands[1].type == X86_OP_IMM and self._add_number(sign * self._operands[1].imm)

    def _add_number(self, number: int) -> bool:
        target = self._operands[0]
        if target.type != X86_OP_REG or target.size != 8:
            return False
        register, _ = _canonical(self._instruction.reg_name(target.reg))
        value = self._state.get(register)
        if value is None:
            return False
        self._set(register, add(value, number))
        return True

    def _do_nop(self) -> bool:
        return True

    def _do_endbr64(self) -> bool:
        return True

    def _do_cmp(self) -> bool:
        return True

    def _do_test(self) -> bool:
        return True
