"""One crash in all the forms in which a kernel left it, each as the text that our readers make of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from postpanic.dumps.open import open_dump
from postpanic.evidence.netconsole.lines import format_message
from postpanic.evidence.netconsole.stream import Stream
from postpanic.evidence.pstore import (
    Record,
    join_records,
    read_directory,
    read_efivars,
    read_erst,
    read_mtdoops,
    read_pstore_blk,
    read_ramoops,
)
from postpanic.evidence.pstore.efivars import read_efi_store
from postpanic.kernel.log_text import LogStyle, format_record
from postpanic.kernel.memory import open_kernel_memory
from postpanic.kernel.printk import read_log
from tests.vm.packets import Packet
from tests.vm.records import Evidence

__all__ = ["PORTS", "join_packets", "read_dump_log", "read_stored", "read_texts"]

PORTS = {"basic": 6666, "extended": 6667, "release": 6668}


def read_dump_log(dump: Path) -> bytes:
    """Return the kernel's log out of a dump's memory."""
    with open_dump(dump) as opened:
        records = read_log(open_kernel_memory(opened))
    return "".join(f"{format_record(record, LogStyle())}\n" for record in records).encode()


def join_packets(packets: Iterable[Packet]) -> bytes:
    """Return the log that a listener would write."""
    stream = Stream()
    messages = [message for packet in packets for message in stream.accept(packet.data, packet.time_us / 1e6)]
    return b"".join(format_message(message) for message in (*messages, *stream.flush(0.0)))


def read_stored(evidence: Evidence) -> dict[str, list[Record]]:
    """Return the records of each place where the backend's can be read."""
    directory = evidence.directory
    stored = {"pstore": read_directory(evidence.pstore)}
    if evidence.recipe.backend == "ramoops":
        stored["ramoops"] = read_ramoops((directory / "ramoops.img").read_bytes())
        stored["ramoops damaged"] = read_ramoops((directory / "ramoops-damaged.img").read_bytes())
    elif evidence.recipe.backend == "efi":
        stored["efivars"] = read_efivars(evidence.efivars)
        stored["flash"] = read_efi_store((directory / "vars.fd").read_bytes())
    elif evidence.recipe.backend == "erst":
        stored["erst"] = read_erst((directory / "erst.img").read_bytes())
    else:
        stored["pstore_blk"] = read_pstore_blk((directory / "blk.img").read_bytes())
        stored["mtdoops"] = read_mtdoops((directory / "mtdoops.img").read_bytes())
    return stored


def read_texts(evidence: Evidence) -> dict[str, bytes]:
    """Return the text of every form, by its name; stored crashes are numbered."""
    texts = {"console": evidence.console}
    if evidence.memory.exists():
        texts["dump"] = read_dump_log(evidence.memory)
    for name, port in PORTS.items():
        texts[f"netconsole {name}"] = join_packets(evidence.packets(port))
    for place, records in read_stored(evidence).items():
        for number, crash in enumerate(join_records(records)):
            if crash.text:
                texts[f"{place} {number}"] = crash.text
    return texts
