"""The whole memory of an arm64 machine that crashed, and what QEMU itself makes of addresses in it."""

from __future__ import annotations

import json
import os
import random
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from postpanic.dumps.notes import decode_notes
from postpanic.dumps.open import open_dump
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from postpanic.kernel.recovered import read_all_symbols
from postpanic.process import find_program, run
from postpanic.rehearse.cache import build_once, digest_file, digest_recipe
from postpanic.rehearse.qmp import Monitor
from tests.vm.arm64 import INIT, MEMORY_MIB, MODULES, crashed_machine, fetch_kernel, identify
from tests.vm.lab import Lab

__all__ = ["Arm64Memory", "fetch_memory", "translate_some"]

AROUND = 4
"""Pages on either side of an address of which something is known."""
AT_RANDOM = 200
NT_PRSTATUS, REGISTERS_OFFSET = 1, 112
SEED = 64


@dataclass(frozen=True)
class Arm64Memory:
    """
    A machine's memory.

    Attributes
    ----------
    path : Path
        As QEMU writes it: an ELF file of physical memory.
    translations : dict of int to int or None
        Virtual to physical addresses, as the emulated CPU 0 itself translates them; None: not mapped.
    """

    path: Path
    translations: dict[int, int | None]


def fetch_memory(lab: Lab, key: str) -> Arm64Memory:
    """Return the memory of a kernel that was crashed by hand: about 100 MB on the disk."""
    kernel = fetch_kernel(lab, key)
    recipe = [*identify(kernel), digest_file(INIT), list(MODULES), MEMORY_MIB, SEED, AT_RANDOM]

    def build(target: Path) -> None:
        # A socket's path is limited to 107 bytes, a cache directory's is not.
        place = Path(tempfile.gettempdir()) / f"lab-arm64-{os.getpid()}.qmp"
        raw = target / "memory.elf"
        try:
            with crashed_machine(lab, kernel, target, ("-qmp", f"unix:{place},server=on,wait=off")) as machine:
                machine.dump_memory(raw)
                raw.chmod(0o644)
                translate_some(raw, place, target / "translations.json")
        finally:
            place.unlink(missing_ok=True)
        run([find_program("fallocate"), "--dig-holes", raw])

    entry = build_once(lab.cache_dir / "dumps", f"{kernel.release}-arm64-memory-{digest_recipe(recipe)}", build)
    known = json.loads((entry / "translations.json").read_text())
    return Arm64Memory(entry / "memory.elf", {int(vaddr): paddr for vaddr, paddr in known.items()})


def translate_some(raw: Path, place: Path, target: Path) -> None:
    """
    Ask QEMU for the physical addresses of some virtual ones, and keep the answers in JSON.

    Parameters
    ----------
    raw : Path
        The memory of the stopped machine.
    place : Path
        The socket of its monitor.
    target : Path
        Where the answers go.
    """
    with open_dump(raw) as dump:
        # A CPU in the kernel may not reach for the user's half (PAN), so QEMU says nothing of that.
        vaddrs = sorted(_choose_addresses(open_kernel_memory(dump), dump.description.notes))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(place))
        with connection.makefile("rb") as replies, connection.makefile("wb") as commands:
            # It reads from the descriptor itself.
            monitor = Monitor(replies, commands)
            monitor.open()
            target.write_text(json.dumps({str(vaddr): _ask(monitor, vaddr) for vaddr in vaddrs}))


def _ask(monitor: Monitor, vaddr: int) -> int | None:
    answer = str(monitor.execute("human-monitor-command", {"command-line": f"gva2gpa {vaddr:#x}"})).strip()
    return None if answer == "Unmapped" else int(answer.removeprefix("gpa: "), 16)


def _choose_addresses(memory: KernelMemory, notes: bytes) -> set[int]:
    """Choose addresses of the image, the linear map, the stacks, page structures, and others by chance."""
    table, info = read_all_symbols(memory).table, memory.vmcoreinfo
    known = [_vaddr(table, name) for name in ("_stext", "_etext", "init_task")]
    known += [info.symbol("mem_section"), memory.read_u64(_vaddr(table, "init_task") + 0x18)]
    # A kernel without modules has no list of them.
    modules = table.get("modules")
    known += [modules, memory.read_u64(modules)] if modules is not None else []
    for note in decode_notes(notes, byte_order="little"):
        if note.type == NT_PRSTATUS:
            words = [note.desc[place : place + 8] for place in range(REGISTERS_OFFSET, len(note.desc) - 7, 8)]
            known += [int.from_bytes(word, "little") for word in words]
    size = memory.page_size_bytes
    chosen = {vaddr & ~7 for vaddr in known if vaddr >> 47 == (1 << 17) - 1 or vaddr >> 52 == 0xFFF}
    chosen |= {vaddr + size * step for vaddr in list(chosen) for step in range(-AROUND, AROUND + 1)}
    chance = random.Random(SEED)
    low = (1 << 64) - (1 << memory.layout.va_bits)
    chosen |= {chance.randrange(low, 1 << 64) for _ in range(AT_RANDOM)}
    image, end = memory.layout.image_range
    chosen |= {chance.randrange(image, end) for _ in range(AT_RANDOM)}
    # The linear map begins at the bottom of the kernel's half (VA_BITS of the machine).
    chosen |= {low + chance.randrange(0, MEMORY_MIB << 20) for _ in range(AT_RANDOM)}
    return {vaddr for vaddr in chosen if vaddr >> 64 == 0}


def _vaddr(table: SymbolTable, name: str) -> int:
    vaddr = table.get(name)
    assert vaddr is not None, name
    return vaddr
