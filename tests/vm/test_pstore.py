"""A kernel's own mounted pstore: read, archived, and erased where it is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec

from postpanic.evidence.pstore import join_records, read_ramoops
from tests.vm.hosts import run_on_host
from tests.vm.lab import Lab
from tests.vm.records import RAMOOPS, Evidence

ARCHIVE = "/var/lib/systemd/pstore"
# As if the machine had been reset: the image is put into the memory before the driver looks at it.
LOAD = f"modprobe ramoops {RAMOOPS.options} && mount -t pstore pstore /sys/fs/pstore"
RESTORE = f"""python3 -c '
import mmap, os
with open("/dev/mem", "r+b", buffering=0) as memory, open("/ramoops.img", "rb") as image:
    area = mmap.mmap(memory.fileno(), {RAMOOPS.size_bytes:#x}, offset={RAMOOPS.paddr:#x})
    area[:] = image.read()
' && {LOAD} && ls /sys/fs/pstore"""
COMMANDS = (
    RESTORE,
    "postpanic pstore --json",
    "postpanic pstore --archive --erase",
    "ls -A /sys/fs/pstore",
    f"umount /sys/fs/pstore && rmmod ramoops && {LOAD} && ls -A /sys/fs/pstore",
    f"ls -A {ARCHIVE}/*/*",
    "postpanic pstore --text",
    "postpanic pstore --archive --erase --quiet",
)


def test_a_mounted_pstore_is_archived_and_erased(crash_lab: Lab, evidence: Callable[..., Evidence]) -> None:
    image = evidence("ramoops").directory / "ramoops.img"
    results = run_on_host(
        crash_lab,
        "6.1",
        COMMANDS,
        options=f"memmap={RAMOOPS.size_bytes:#x}${RAMOOPS.paddr:#x}",
        # The same interpreter's, which the distribution does not have.
        files={
            "/ramoops.img": image,
            "/usr/lib/python3/dist-packages/msgspec": Path(msgspec.__file__).parent,
        },
    )
    assert [result.status for result in results] == [0] * len(COMMANDS), results
    restored, shown, archived, left, left_later, kept, text, again = (result.stdout for result in results)
    assert {"dmesg-ramoops-0", "dmesg-ramoops-1", "console-ramoops-0"} <= set(restored.split())
    expected = next(crash for crash in join_records(read_ramoops(image.read_bytes())) if "Panic" in crash.reasons)
    (crash,) = json.loads(shown)["tables"][1]["rows"]
    assert crash["text"].encode() == expected.text
    assert f"{len(restored.split())} of {len(restored.split())} records erased" in archived
    assert (left, left_later) == ("", "")
    assert set(kept.split()) == {*restored.split(), "dmesg.txt", "postpanic.json"}
    assert text.encode() == expected.text
    assert again == ""
