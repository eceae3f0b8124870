"""What real kernels stored, read where it was stored: it is what the next kernel shows in its mounted pstore."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from postpanic.evidence.pstore import Quality, Record, RecordType, decode_calls, find_layout, join_records
from postpanic.rehearse.console import join_lines
from tests.vm.evidence_texts import read_stored
from tests.vm.records import RAMOOPS, Evidence

PLACES = {"ramoops": ("ramoops damaged",), "efi": ("efivars", "flash"), "erst": ("erst",), "blk": ("pstore_blk",)}
OTHER_KERNELS = [
    pytest.param(name, kernel, marks=pytest.mark.matrix)
    for name in ("ramoops", "efi")
    for kernel in ("5.10", "6.1", "newest")
]
PREFIX = re.compile(rb"^(?:<\d+>)?\[ *\d+\.\d{6}\] ", re.MULTILINE)


def _by_id(records: list[Record]) -> dict[tuple[str, int | None], Record]:
    return {(record.type.value, record.id): record for record in records if record.type is not RecordType.FTRACE}


@pytest.mark.parametrize(("name", "kernel"), [*((name, "") for name in PLACES), *OTHER_KERNELS])
def test_records_are_read_as_the_kernel_reads_them(evidence: Callable[..., Evidence], name: str, kernel: str) -> None:
    stored = read_stored(evidence(name, kernel))
    shown = _by_id(stored["pstore"])
    for place in PLACES[name]:
        _compare(_by_id(stored[place]), shown)


def _compare(ours: dict[tuple[str, int | None], Record], shown: dict[tuple[str, int | None], Record]) -> None:
    assert set(ours) == set(shown)
    for key, record in ours.items():
        other = shown[key]
        # What the kernel could not decompress it shows as it was stored.
        assert record.data == other.data, key
        assert (record.reason, record.count, record.part) == (other.reason, other.count, other.part), key
        assert record.quality == other.quality, key
        if record.type is RecordType.DMESG:
            assert record.time_s is not None
            assert other.time_s is not None
            assert int(record.time_s) == int(other.time_s), key


@pytest.mark.parametrize(
    "kernel", ["6.12", *(pytest.param(kernel, marks=pytest.mark.matrix) for kernel in ("5.10", "6.1", "newest"))]
)
def test_zones_are_found_and_damage_is_known(evidence: Callable[..., Evidence], kernel: str) -> None:
    found = evidence("ramoops", kernel)
    layout = find_layout((found.directory / "ramoops.img").read_bytes())
    kept = {"dmesg": RAMOOPS.record_size, "console": RAMOOPS.console_size, "pmsg": RAMOOPS.pmsg_size}
    sizes = [(zone.type.value, zone.size) for zone in layout.zones if zone.type is not RecordType.FTRACE]
    assert layout.ecc == 16
    assert set(sizes) == set(kept.items())
    assert sum(zone.size for zone in layout.zones) == RAMOOPS.size_bytes
    stored = read_stored(found)
    whole = {record.name: record for record in stored["ramoops"]}
    assert {record.quality for record in whole.values()} == {Quality(is_checked=True)}
    marks = {record.name: (record.quality.corrected_bytes, record.quality.bad_blocks) for record in stored["pstore"]}
    assert marks == {
        "console-ramoops-0": (0, 1),
        "dmesg-ramoops-0": (0, 0),
        "dmesg-ramoops-1": (10, 0),
        "dmesg-ramoops-2.enc.z": (0, 1),
        "pmsg-ramoops-0": (0, 0),
    }
    for name, record in {record.name: record for record in stored["ramoops damaged"]}.items():
        if name in whole and record.quality.bad_blocks == 0:
            assert record.data == whole[name].data, name


def test_zones_of_the_other_front_ends(evidence: Callable[..., Evidence]) -> None:
    found = evidence("ramoops")
    records = {record.name: record for record in read_stored(found)["ramoops"]}
    messages = [b"lab: message %d of a process" % number for number in range(1, 9)]
    assert records["pmsg-ramoops-0"].data.splitlines() == messages
    shown = join_lines(found.console.decode(errors="replace").replace("\r\n", "\n")).splitlines()
    # The zone's console prints the log from its start, the serial one with what processes say.
    lines = [line for line in records["console-ramoops-0"].data.splitlines() if line]
    assert lines[0].startswith(b"[    0.000000] Linux version ")
    assert lines[-1].endswith(b"---[ end Kernel panic - not syncing: Fatal exception in interrupt ]---")
    assert {line.decode(errors="replace") for line in lines} <= set(shown)
    calls = [decode_calls(records[f"ftrace-ramoops-{number}"]) for number in (0, 1)]
    assert [[call.cpu for call in of_cpu] for of_cpu in calls] == [[0] * 3, [1] * 3]
    assert [call.ip for call in calls[0]] == [call.ip for call in calls[1]]
    assert all([call.stamp for call in of_cpu] == sorted(call.stamp or 0 for call in of_cpu) for of_cpu in calls)


@pytest.mark.parametrize("name", ["efi", "erst"])
def test_parts_make_one_log(evidence: Callable[..., Evidence], name: str) -> None:
    """Two dumps of many parts each, of an oops and of its panic: the log once, without a line missing."""
    found = evidence(name)
    records = read_stored(found)[PLACES[name][0]]
    crash = next(crash for crash in join_records(records) if crash.text)
    assert crash.problems == ()
    assert crash.reasons == (("Oops", "Panic") if name == "efi" else ("Panic",))
    stamped = [line for line in crash.text.splitlines() if PREFIX.match(line)]
    assert len(set(stamped)) == len(stamped)
    there = {re.sub(rb"^<\d+>", b"", line) for line in stamped}
    # The first line may be cut; the panic's last ones are printed when it has been stored.
    shown = [line for line in found.console.replace(b"\r\n", b"\n").splitlines() if PREFIX.match(line)]
    start = next(number for number, line in enumerate(shown) if line in there)
    end = next(number for number, line in enumerate(shown) if b"Kernel Offset:" in line)
    assert end - start > 100
    assert set(shown[start : end + 1]) <= there
