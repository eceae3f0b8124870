"""
The units of AMD's scalable machine check architecture, and their errors.

The words are short on purpose; which part an error means, and whether software
can be behind it, is what a reader wants first.

References
----------
Processor Programming References of families 17h, 19h and 1Ah, "MCA Banks" and the ErrorCodeExt tables of each;
arch/x86/kernel/cpu/mce/amd.c ``smca_hwid_mcatypes``.
"""

from __future__ import annotations

import msgspec

from postpanic.evidence.hardware.model import Part

__all__ = ["Unit", "UnitError", "find_unit", "find_unit_by_name"]


class UnitError(msgspec.Struct, frozen=True):
    """An extended error code: words, the verdict's hint, and the part if it is not the unit's own."""

    words: str
    hint: str = ""
    part: Part | None = None


class Unit(msgspec.Struct, frozen=True):
    """
    What a bank belongs to.

    Parameters
    ----------
    key : str
        The kernel's short name.
    name : str
    part : Part
        That its errors mean, unless the error says otherwise.
    errors : dict
        By ErrorCodeExt.
    """

    key: str
    name: str
    part: Part
    errors: dict[int, UnitError] = {}

    @property
    def has_system_address(self) -> bool:
        """Whether MCA_ADDR is a physical address of the system; a memory controller has addresses of its own."""
        return self.key in {"load_store", "insn_fetch", "l2_cache", "l3_cache"}


def _table(hint: str, *words: str) -> dict[int, UnitError]:
    return {code: UnitError(word, hint) for code, word in enumerate(words) if word}


_LOAD_STORE = _table(
    "cache",
    "load queue parity",
    "store queue parity",
    "miss address buffer parity",
    "L1 TLB parity",
    "data cache tag error",
    "data cache tag error",
    "data cache tag error",
    "internal error",
    "internal error",
    "system read data error, thread 0",
    "system read data error, thread 1",
    "data cache tag error",
    "data cache data error: poison was consumed",
    "data cache data error",
    "data cache data error",
    "data cache tag error",
    "L2 TLB parity",
    "page directory cache parity",
    "data cache tag error",
    "data cache tag error",
    "L2 fill data error",
) | {
    3: UnitError("L1 TLB parity", "tlb", Part.TLB),
    9: UnitError("system read data error, thread 0: bad data came from outside the core", "poison", Part.BUS),
    10: UnitError("system read data error, thread 1: bad data came from outside the core", "poison", Part.BUS),
    12: UnitError("poison was consumed: data that was bad before it came here", "poison", Part.MEMORY),
    16: UnitError("L2 TLB parity", "tlb", Part.TLB),
    17: UnitError("page directory cache parity", "tlb", Part.TLB),
}
_LOAD_STORE_V2 = _table(
    "cache",
    "ECC error on a data cache read by a probe or victimization",
    "ECC error or poison on a data cache read by a load",
    "ECC error on a data cache read-modify-write by a store",
    "ECC error in a tag read by a probe or victimization",
    "ECC error in a tag read by a load",
    "ECC error in a tag read by a store",
    "ECC error in the error memory read by a load",
    "ECC error in the error memory written by a store",
    "L1 TLB parity",
    "L2 TLB parity",
    "page walk cache parity",
    "store queue parity",
    "load queue parity",
    "miss address buffer parity",
    "store coalescing buffer parity (state)",
    "store coalescing buffer parity (address)",
    "store coalescing buffer parity (data)",
    "write combining buffer parity",
    "poison in a line of the store coalescing buffer",
    "system read data error for a load",
    "system read data error for a store",
    "system read data error for write combining",
    "hardware assertion",
) | {
    8: UnitError("L1 TLB parity", "tlb", Part.TLB),
    9: UnitError("L2 TLB parity", "tlb", Part.TLB),
    10: UnitError("page walk cache parity", "tlb", Part.TLB),
    18: UnitError("poison in a line of the store coalescing buffer", "poison", Part.MEMORY),
    19: UnitError("system read data error for a load: bad data came from outside the core", "poison", Part.BUS),
    20: UnitError("system read data error for a store: bad data came from outside the core", "poison", Part.BUS),
    21: UnitError("system read data error for write combining", "poison", Part.BUS),
    22: UnitError("hardware assertion", "internal", Part.PROCESSOR),
}
_FETCH = _table(
    "cache",
    "microtag probe port parity",
    "microtag or tag multi-hit",
    "full tag parity",
    "instruction cache data parity",
    "prediction queue parity",
    "L0 ITLB parity",
    "L1 ITLB parity",
    "L2 ITLB parity",
    "branch prediction queue parity, thread 0",
    "branch prediction queue parity, thread 1",
    "L1 branch target buffer multi-hit",
    "L2 branch target buffer multi-hit",
    "poison in an answer of the L2 cache",
    "system read data error",
    "hardware assertion",
    "L1 ITLB multi-hit",
    "L2 ITLB multi-hit",
) | {
    10: UnitError("L1 branch target buffer multi-hit", "erratum-btb"),
    12: UnitError("poison in an answer of the L2 cache", "poison", Part.MEMORY),
    13: UnitError("system read data error: bad data came from outside the core", "poison", Part.BUS),
    **{code: UnitError(f"{name} ITLB parity", "tlb", Part.TLB) for code, name in ((5, "L0"), (6, "L1"), (7, "L2"))},
    15: UnitError("L1 ITLB multi-hit", "tlb", Part.TLB),
    16: UnitError("L2 ITLB multi-hit", "tlb", Part.TLB),
}
_L2 = _table(
    "cache",
    "tag multi-way hit",
    "ECC error in a tag or state",
    "ECC error in data",
    "hardware assertion",
    "parity error in an answer of the data fabric",
)
_DECODE = _table(
    "internal",
    "micro-op cache tag parity",
    "micro-op cache data parity",
    "instruction byte buffer parity",
    "micro-op queue parity",
    "dispatch queue parity",
    "fetch address FIFO parity",
    "patch RAM data parity",
    "patch RAM sequencer parity",
    "micro-op buffer parity",
    "hardware assertion",
)
_EXECUTION = _table(
    "internal",
    "watchdog timeout",
    "physical register file parity",
    "flag register file parity",
    "immediate displacement register file parity",
    "address generator payload parity",
    "payload parity",
    "checkpoint queue parity",
    "retire dispatch queue parity",
    "retire status queue parity",
    "scheduler queue parity",
    "branch buffer queue parity",
    "hardware assertion",
    "speculative map parity",
    "retire map parity",
) | {0: UnitError("watchdog timeout: an instruction did not finish in time", "timer")}
_FLOATING = _table(
    "internal",
    "physical register file parity",
    "freelist parity",
    "schedule queue parity",
    "NSQ parity",
    "retire queue parity",
    "status register file parity",
    "hardware assertion",
)
_L3 = _table(
    "cache",
    "shadow tag ECC error",
    "shadow tag multi-way hit",
    "tag ECC error",
    "tag multi-way hit",
    "data ECC error",
    "parity error in data from the fabric",
    "error of the victim queue",
    "hardware assertion",
)
_COHERENT = _table(
    "bus",
    "illegal request",
    "address violation",
    "security violation",
    "illegal response",
    "unexpected response",
    "request or probe parity",
    "read response parity",
    "atomic request parity",
) | {
    1: UnitError("address violation: no such address in the system", "unmapped"),
    2: UnitError("security violation: access to protected memory", "software-access"),
}
_POWER = _table(
    "bus",
    "hardware assertion",
    "register security violation",
    "link error",
    "poison was consumed",
    "a deferred error was found in the data fabric",
    "watchdog timeout",
) | {
    1: UnitError("register security violation", "software-access"),
    3: UnitError("poison was consumed: data that was bad before it came here", "poison", Part.MEMORY),
    4: UnitError("a deferred error was found in the data fabric", "poison", Part.MEMORY),
    5: UnitError("watchdog: a request was not answered in time", "timeout"),
}
_MEMORY = {
    0: UnitError("DRAM ECC error", "memory"),
    1: UnitError("poison was written to or read from DRAM", "poison"),
    2: UnitError("parity error in data from the fabric", "bus", Part.MEMORY_CONTROLLER),
    3: UnitError("advanced peripheral bus error", "internal", Part.MEMORY_CONTROLLER),
    4: UnitError("command or address parity error", "command-address"),
    5: UnitError("write data CRC error", "command-address"),
    6: UnitError("ECC error in the controller's command queue", "internal", Part.MEMORY_CONTROLLER),
    7: UnitError("ECC error in the controller's encryption memory", "internal", Part.MEMORY_CONTROLLER),
    8: UnitError("error check and scrub: a row has too many errors", "memory"),
    9: UnitError("error check and scrub: errors in the module", "memory"),
    10: UnitError("throttling", "thermal", Part.MEMORY_CONTROLLER),
    11: UnitError("read data CRC error", "command-address"),
}
_MEMORY_V2 = {
    0: UnitError("DRAM ECC error", "memory"),
    1: UnitError("poison was written to or read from DRAM", "poison"),
    2: UnitError("parity error in data from the fabric", "bus", Part.MEMORY_CONTROLLER),
    4: UnitError("command or address parity error", "command-address"),
    5: UnitError("write data parity error", "command-address"),
    6: UnitError("ECC error in the controller's command queue", "internal", Part.MEMORY_CONTROLLER),
    8: UnitError("read data parity error", "command-address"),
    9: UnitError("ECC error in the controller's read buffer", "internal", Part.MEMORY_CONTROLLER),
    10: UnitError("ECC error in the controller's answer buffer", "internal", Part.MEMORY_CONTROLLER),
    11: UnitError("error of the controller's microprocessor", "internal", Part.MEMORY_CONTROLLER),
}
_NORTHBRIDGE_IO = {
    0: UnitError("ECC or parity error", "internal"),
    1: UnitError("a PCIe error: see the AER messages", "pcie", Part.PCIE),
    2: UnitError("an external SERR signal", "external"),
    3: UnitError("an external NMI signal", "external"),
    4: UnitError("poison was consumed", "poison"),
    5: UnitError("parity error of the internal bus", "internal"),
}

_UNITS: dict[tuple[int, int], Unit] = {
    (0xB0, 0x00): Unit("load_store", "Load Store Unit", Part.CACHE, _LOAD_STORE),
    (0xB0, 0x10): Unit("load_store", "Load Store Unit", Part.CACHE, _LOAD_STORE_V2),
    (0xB0, 0x01): Unit("insn_fetch", "Instruction Fetch Unit", Part.CACHE, _FETCH),
    (0xB0, 0x02): Unit("l2_cache", "L2 Cache", Part.CACHE, _L2),
    (0xB0, 0x03): Unit("decode_unit", "Decode Unit", Part.PROCESSOR, _DECODE),
    (0xB0, 0x05): Unit("execution_unit", "Execution Unit", Part.PROCESSOR, _EXECUTION),
    (0xB0, 0x06): Unit("floating_point", "Floating Point Unit", Part.PROCESSOR, _FLOATING),
    (0xB0, 0x07): Unit("l3_cache", "L3 Cache", Part.CACHE, _L3),
    (0x2E, 0x00): Unit("coherent_slave", "Coherent Slave", Part.BUS, _COHERENT),
    (0x2E, 0x02): Unit("coherent_slave", "Coherent Slave", Part.BUS, _COHERENT),
    (0x2E, 0x01): Unit("pie", "Power, Interrupts, etc.", Part.BUS, _POWER),
    (0x2E, 0x04): Unit("ma_llc", "Memory Attached Last Level Cache", Part.CACHE),
    (0x96, 0x00): Unit("umc", "Unified Memory Controller", Part.MEMORY, _MEMORY),
    (0x96, 0x01): Unit("umc_v2", "Unified Memory Controller V2", Part.MEMORY, _MEMORY_V2),
    (0x05, 0x00): Unit("param_block", "Parameter Block", Part.PROCESSOR),
    (0xFF, 0x00): Unit("psp", "Platform Security Processor", Part.PROCESSOR),
    (0xFF, 0x01): Unit("psp", "Platform Security Processor", Part.PROCESSOR),
    (0xFF, 0x02): Unit("mpart", "MPART", Part.PROCESSOR),
    (0xFD, 0x00): Unit("mpasp", "MPASP", Part.PROCESSOR),
    (0xFD, 0x01): Unit("mpasp", "MPASP", Part.PROCESSOR),
    (0x01, 0x00): Unit("smu", "System Management Unit", Part.POWER),
    (0x01, 0x01): Unit("smu", "System Management Unit", Part.POWER),
    (0x01, 0x02): Unit("mp5", "Microprocessor 5 Unit", Part.PROCESSOR),
    (0x01, 0x03): Unit("mpdma", "MPDMA Unit", Part.PROCESSOR),
    (0x12, 0x00): Unit("mpras", "MPRAS", Part.PROCESSOR),
    (0xF9, 0x00): Unit("mpm", "MPM", Part.PROCESSOR),
    (0x18, 0x00): Unit("nbio", "Northbridge IO Unit", Part.IO, _NORTHBRIDGE_IO),
    (0x46, 0x00): Unit("pcie", "PCI Express Unit", Part.PCIE),
    (0x46, 0x01): Unit("pcie", "PCI Express Unit", Part.PCIE),
    (0x1E1, 0x00): Unit("pcie_pl", "PCI Express Physical Layer", Part.PCIE),
    (0x50, 0x00): Unit("xgmi_pcs", "Ext Global Memory Interconnect PCS Unit", Part.BUS),
    (0x6C, 0x00): Unit("nbif", "NBIF Unit", Part.IO),
    (0x80, 0x00): Unit("shub", "System Hub Unit", Part.IO),
    (0xA8, 0x00): Unit("sata", "SATA Unit", Part.IO),
    (0xAA, 0x00): Unit("usb", "USB Unit", Part.IO),
    (0x170, 0x00): Unit("usr_dp", "Ultra Short Reach Data Plane Controller", Part.BUS),
    (0x180, 0x00): Unit("usr_cp", "Ultra Short Reach Control Plane Controller", Part.BUS),
    (0x241, 0x00): Unit("gmi_pcs", "Global Memory Interconnect PCS Unit", Part.BUS),
    (0x259, 0x00): Unit("xgmi_phy", "Ext Global Memory Interconnect PHY Unit", Part.BUS),
    (0x267, 0x00): Unit("wafl_phy", "WAFL PHY Unit", Part.BUS),
    (0x269, 0x00): Unit("gmi_phy", "Global Memory Interconnect PHY Unit", Part.BUS),
}
"""By the hardware ID (IPID bits 43:32) and the type (bits 63:48)."""

_BY_NAME = {unit.name: unit for unit in reversed(_UNITS.values())}


def find_unit(ipid: int) -> Unit | None:
    """
    Find the unit that an MCA_IPID names; None: none that is known.

    >>> find_unit(0x9600050F00).name
    'Unified Memory Controller'
    """
    return _UNITS.get((ipid >> 32 & 0xFFF, ipid >> 48 & 0xFFFF))


def find_unit_by_name(name: str) -> Unit | None:
    """Find a unit by the name that the kernel prints; None: none that is known."""
    return _BY_NAME.get(name)
