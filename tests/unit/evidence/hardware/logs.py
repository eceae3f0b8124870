"""Messages about hardware, in the words of several kernels and programs, written for the tests."""

from __future__ import annotations

__all__ = [
    "AER_APEI",
    "AER_NEW",
    "AER_OLD",
    "AMD_DEFERRED",
    "AMD_OLD",
    "AMD_SCALABLE",
    "ARM_PROCESSOR",
    "BROKEN_UP",
    "EDAC_SKYLAKE",
    "FATAL",
    "GHES_MEMORY",
    "GHES_OLD",
    "MCELOG",
    "OLD_KERNEL",
    "stamped",
]

FATAL = """\
mce: [Hardware Error]: CPU 3: Machine Check Exception: 5 Bank 1: bd80000000100134
mce: [Hardware Error]: RIP !INEXACT! 33:<00007f2d11d0c3ab>
mce: [Hardware Error]: TSC 1f0a8bb4c9d ADDR 7b5a3c40 MISC 86 PPIN 1234567890abcdef
mce: [Hardware Error]: PROCESSOR 0:50657 TIME 1700000000 SOCKET 1 APIC 46 microcode 5003302
mce: [Hardware Error]: Run the above through 'mcelog --ascii'
mce: [Hardware Error]: Machine check: Action required: data load in error recoverable area of kernel
Kernel panic - not syncing: Fatal local machine check
"""
OLD_KERNEL = """\
HARDWARE ERROR
CPU 2: Machine Check Exception:                4 Bank 0: b200004000000800
TSC 2c90fb6b8d9a4c
PROCESSOR 0:106a5 TIME 1300000000 SOCKET 1 APIC 10
This is not a software problem!
Run through mcelog --ascii to decode and contact your hardware vendor
Kernel panic - not syncing: Machine check
"""
AMD_SCALABLE = """\
[Hardware Error]: Corrected error, no action required.
[Hardware Error]: CPU:24 (19:1:1) MC18_STATUS[Over|CE|MiscV|AddrV|-|-|SyndV|CECC|-|-|-]: 0xdc2040000000011b
[Hardware Error]: Error Addr: 0x00000002f4ac3c40
[Hardware Error]: PPIN: 0x02b6bd1f2d7f0041
[Hardware Error]: IPID: 0x0000009600450f00, Syndrome: 0x0000f1c90a801202
[Hardware Error]: Unified Memory Controller Ext. Error Code: 0, DRAM ECC error.
EDAC MC0: 1 CE Cannot decode normalized address on mc#0csrow#2channel#4 \
(csrow:2 channel:4 page:0x4d2a1 offset:0xc40 grain:64 syndrome:0xf1c9)
[Hardware Error]: cache level: L3/GEN, tx: GEN, mem-tx: RD
"""
EDAC_SKYLAKE = """\
EDAC skx MC2: HANDLING MCE MEMORY ERROR
EDAC skx MC2: CPU 24: Machine Check Event: 0x0 Bank 13: 0x8c00004200800090
EDAC skx MC2: TSC 0x0
EDAC skx MC2: ADDR 0x2bd5c4f3c0
EDAC skx MC2: MISC 0x200004c000101086
EDAC skx MC2: PROCESSOR 0:0x50654 TIME 1600000000 SOCKET 1 APIC 0x40
EDAC MC2: 1 CE memory read error on CPU_SrcID#1_MC#0_Chan#0_DIMM#1 \
(channel:0 slot:1 page:0x2bd5c4f offset:0x3c0 grain:32 syndrome:0x0 -  err_code:0x0080:0x0090 \
SystemAddress:0x2bd5c4f3c0 ProcessorSocketId:0x1 MemoryControllerId:0x0 ChannelAddress:0x1 ChannelId:0x0 \
RankAddress:0x1 PhysicalRankId:0x0 DimmSlotId:0x1 Row:0x93e7 Column:0x1c0 Bank:0x2 BankGroup:0x1 \
ChipSelect:0x4 ChipId:0x0)
"""
GHES_MEMORY = """\
{12}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 3
{12}[Hardware Error]: It has been corrected by h/w and requires no further action
{12}[Hardware Error]: event severity: corrected
{12}[Hardware Error]:  Error 0, type: corrected
{12}[Hardware Error]:  fru_text: P2-DIMMC1
{12}[Hardware Error]:   section_type: memory error
{12}[Hardware Error]:   error_status: Storage error in DRAM memory (0x0000000000000400)
{12}[Hardware Error]:   physical_address: 0x000000203f8d4a80
{12}[Hardware Error]:   node:1 card:2 module:0 rank:0 bank:3 row:51234 column:248 bit_position:61
{12}[Hardware Error]:   error_type: 2, single-bit ECC
{12}[Hardware Error]:   DIMM location: P2-DIMMC1 NODE 2
Memory failure: 0x203f8d4: recovery action for free buddy page: Recovered
"""
GHES_OLD = """\
{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 1
{1}[Hardware Error]: APEI generic hardware error status
{1}[Hardware Error]: severity: 2, corrected
{1}[Hardware Error]: section: 0, severity: 2, corrected
{1}[Hardware Error]: flags: 0x01
{1}[Hardware Error]: primary
{1}[Hardware Error]: section_type: memory error
{1}[Hardware Error]: error_status: 0x0000000000000400
{1}[Hardware Error]: physical_address: 0x0000000123456780
{1}[Hardware Error]: node: 1
{1}[Hardware Error]: card: 0
{1}[Hardware Error]: module: 2
{1}[Hardware Error]: error_type: 3, multi-bit ECC
"""
AER_NEW = """\
pcieport 0000:00:03.0: AER: Multiple Uncorrectable (Non-Fatal) error message received from 0000:02:00.0
nvme 0000:02:00.0: PCIe Bus Error: severity=Uncorrectable (Non-Fatal), type=Transaction Layer, (Requester ID)
nvme 0000:02:00.0:   device [144d:a80a] error status/mask=00004000/00400000
nvme 0000:02:00.0:    [14] CmpltTO                (First)
nvme 0000:02:00.0: AER: can't recover (no error_detected callback)
pcieport 0000:00:03.0: AER: device recovery failed
"""
AER_OLD = """\
pcieport 0000:00:1d.0: AER: Corrected error received: id=00e8
pcieport 0000:00:1d.0: PCIe Bus Error: severity=Corrected, type=Data Link Layer, id=00e8(Transmitter ID)
pcieport 0000:00:1d.0:   device [8086:9d18] error status/mask=00001000/00002000
pcieport 0000:00:1d.0:    [12] Replay Timer Timeout
"""
MCELOG = """\
Hardware event. This is not a software error.
MCE 0
CPU 0 BANK 8 TSC 1bb6a8d2fd74
MISC 41 ADDR 2c1f40
TIME 1400000000 Tue May 13 16:53:20 2014
MCG status:
MCi status:
Corrected error
MCi_MISC register valid
MCi_ADDR register valid
MCA: MEMORY CONTROLLER MS_CHANNEL1_ERR
Transaction: Memory scrubbing error
STATUS 8c000044000100c1 MCGSTATUS 0
MCGCAP 1c09 APICID 20 SOCKETID 1
CPUID Vendor Intel Family 6 Model 44
"""
BROKEN_UP = """\
[   10.000000][    C1] mce: [Hardware Error]: CPU 1: Machine Check Exception: 4 Bank 3: be00000000000400
[   10.000001][    C7] mce: [Hardware Error]: CPU 7: Machine Check Exception: 4 Bank 2: b200000000010005
[   10.000002][    C1] mce: [Hardware Error]: TSC 1 ADDR 1000 MISC 86
[   10.000003][    C7] mce: [Hardware Error]: TSC 2
[   10.000004][    C1] mce: [Hardware Error]: PROCESSOR 0:906ea TIME 1 SOCKET 0 APIC 2 microcode f0
[   10.000005][    C7] mce: [Hardware Error]: PROCESSOR 0:906ea TIME 1 SOCKET 0 APIC e microcode f0
"""


AMD_OLD = """\
[Hardware Error]: Error Status: Corrected error, no action required.
[Hardware Error]: CPU:16 (10:9:1) MC4_STATUS[-|CE|MiscV|-|AddrV|-|-|CECC]: 0x9c0941006a080813
[Hardware Error]: MC4_ADDR: 0x0000000fd1b2ee30
[Hardware Error]: MC4 Error (node 2): DRAM ECC error detected on the NB.
EDAC MC2: 1 CE on mc#2csrow#3channel#0 (csrow:3 channel:0 page:0xfd1b2e offset:0xe30 grain:0 syndrome:0x6a12)
[Hardware Error]: cache level: L3/GEN, mem/io: MEM, mem-tx: RD, part-proc: RES (no timeout)
"""
AMD_DEFERRED = """\
[Hardware Error]: Deferred error, no action required.
[Hardware Error]: CPU:0 (17:1:1) MC15_STATUS[Over|-|MiscV|AddrV|-|SyndV|UECC|Deferred|-|-]: 0xdc20b08000000000
[Hardware Error]: Error Addr: 0x0000000180000080
[Hardware Error]: IPID: 0x0000009600050f00, Syndrome: 0x0000000000000000
[Hardware Error]: Unified Memory Controller Extended Error Code: 0
[Hardware Error]: Unified Memory Controller Error: DRAM ECC error.
[Hardware Error]: cache level: RESV, tx: INSN
"""
ARM_PROCESSOR = """\
{3}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 2
{3}[Hardware Error]: event severity: recoverable
{3}[Hardware Error]:  Error 0, type: recoverable
{3}[Hardware Error]:   section_type: ARM processor error
{3}[Hardware Error]:   MIDR: 0x00000000481fd010
{3}[Hardware Error]:   Multiprocessor Affinity Register (MPIDR): 0x0000000081080000
{3}[Hardware Error]:   running state: 0x1
{3}[Hardware Error]:   Power State Coordination Interface state: 0
{3}[Hardware Error]:   Error info structure 0:
{3}[Hardware Error]:   num errors: 1
{3}[Hardware Error]:    error_type: 0, cache error
{3}[Hardware Error]:    error_info: 0x0000000020800091
{3}[Hardware Error]:     transaction type: Data Access
{3}[Hardware Error]:     operation type: data read
{3}[Hardware Error]:     cache level: 2
{3}[Hardware Error]:     the error has not been corrected
{3}[Hardware Error]:    physical fault address: 0x0000002023202e80
{3}[Hardware Error]:   Context info structure 0:
{3}[Hardware Error]:    register context type: AArch64 general purpose registers
"""
AER_APEI = """\
pcieport 0000:00:01.1: AER: aer_status: 0x00004000, aer_mask: 0x00000000
pcieport 0000:00:01.1: AER:    [14] CmpltTO
pcieport 0000:00:01.1: AER: aer_layer=Transaction Layer, aer_agent=Requester ID
pcieport 0000:00:01.1: AER: aer_uncor_severity: 0x004ef030
pcieport 0000:00:01.1: AER:   TLP Header: 4a000001 00000004 00000000 00000000
"""


def stamped(text: str, *, level: str = "", start: float = 100.0) -> bytes:
    """Put printk's time before every line."""
    return "".join(f"{level}[{start + n / 1000:12.6f}] {line}\n" for n, line in enumerate(text.splitlines())).encode()
