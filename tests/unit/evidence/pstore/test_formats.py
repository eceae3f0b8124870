"""Each format of persistent storage, written as the kernel writes it and read again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from postpanic.errors import CorruptError, FileFaultError, UsageError
from postpanic.evidence.pstore import (
    Record,
    RecordType,
    decode_calls,
    decode_file,
    find_layout,
    join_records,
    make_layout,
    read_directory,
    read_efivars,
    read_erst,
    read_mtdoops,
    read_pstore_blk,
    read_ramoops,
)
from postpanic.evidence.pstore.ramoops_layout import fit_layout
from postpanic.evidence.pstore.reed_solomon import reed_solomon
from postpanic.evidence.pstore.sources import Format, read_source
from tests.builders import pstore as build
from tests.unit.evidence.pstore.logs import BOOT, LOG, OOPS, PANIC, parts, tail

PANIC_TAIL = tail(LOG, 3000)


@pytest.fixture(params=[0, 16, 8, 32])
def area(request: pytest.FixtureRequest) -> build.RamoopsArea:
    return used_area(request.param)


@pytest.fixture(params=[16, 8, 32])
def area_with_parity(request: pytest.FixtureRequest) -> build.RamoopsArea:
    return used_area(request.param)


def used_area(ecc: int) -> build.RamoopsArea:
    area = build.RamoopsArea(mem_size=64 << 10, ecc=ecc, cpus=2, console_size=8192, pmsg_first=ecc in (0, 8))
    area.write_dump(0, build.dump_text("Oops", 1, 1, tail(BOOT + OOPS, 2500)))
    area.write_dump(1, build.dump_text("Panic", 2, 1, PANIC_TAIL), time_s=1_700_000_001.5)
    assert area.console is not None
    assert area.pmsg is not None
    area.console.write(b"x" * 5000 + LOG.replace(b"<6>", b""))
    area.pmsg.write(b"hello from a program")
    for number in range(300):
        area.ftrace[number % 2].write(
            build.ftrace_entry(number % 2, number, 0xFFFFFFFF81000000 + number, 0xFFFFFFFF82000000)
        )
    return area


def test_ramoops_by_its_parameters(area: build.RamoopsArea) -> None:
    layout = make_layout(mem_size=64 << 10, console_size=8192, ecc=area.ecc, ftrace_zones=2, pmsg_first=area.pmsg_first)
    assert fit_layout(area.raw, console_size=8192, ecc=area.ecc) == layout
    check_area(area, read_ramoops(area.raw, layout))


def test_ramoops_by_its_signatures(area: build.RamoopsArea) -> None:
    layout = find_layout(area.raw)
    assert layout.ecc == area.ecc
    assert layout.is_found
    check_area(area, read_ramoops(area.raw))


def test_ramoops_inside_other_memory(area: build.RamoopsArea) -> None:
    noise = random.Random(1).randbytes(1 << 20)
    check_area(area, read_ramoops(noise + area.raw + noise), skip=len(noise))


def check_area(area: build.RamoopsArea, records: list[Record], skip: int = 0, path: str = "") -> None:
    by_type: dict[RecordType, list[Record]] = {}
    for record in records:
        by_type.setdefault(record.type, []).append(record)
    oops, panic = by_type[RecordType.DMESG]
    assert (oops.reason, oops.count, oops.part, oops.time_s) == ("Oops", 1, 1, 1_700_000_000.25)
    assert panic.data == PANIC_TAIL
    assert oops.source == f"{path}+{skip:#x}"
    (console,) = by_type[RecordType.CONSOLE]
    assert console.data.endswith(PANIC)
    assert area.console is not None
    assert len(console.data) == area.console.room
    (pmsg,) = by_type[RecordType.PMSG]
    assert pmsg.data == b"hello from a program"
    traces = by_type[RecordType.FTRACE]
    assert [trace.release for trace in traces] == ["6.12.1"] * 2
    calls = decode_calls(traces)
    assert calls[-1].stamp == 299
    assert calls[-1].ip == 0xFFFFFFFF81000000 + 299
    assert [call.cpu for call in calls[-4:]] == [0, 1, 0, 1]
    assert all(record.quality.is_good and record.quality.corrected_bytes == 0 for record in records)
    assert all(record.quality.is_checked == (area.ecc > 0) for record in records)


def test_parity_corrects_and_says_so(area_with_parity: build.RamoopsArea) -> None:
    raw = bytearray(area_with_parity.raw)
    place = raw.index(b"Kernel panic - not syncing")
    for number in range(area_with_parity.ecc // 2):
        raw[place + number] ^= 0xA5
    # The header of the zone, its signature and its length.
    raw[4096] ^= 0xFF
    raw[4096 + 9] ^= 0xFF
    record = next(record for record in read_ramoops(bytes(raw)) if record.reason == "Panic")
    assert record.data == PANIC_TAIL
    assert record.quality.corrected_bytes == area_with_parity.ecc // 2 + 2
    assert record.quality.is_good


def test_more_errors_than_parity_are_said(area_with_parity: build.RamoopsArea) -> None:
    raw = bytearray(area_with_parity.raw)
    place = 4096 + 12 + 128 * 3
    for number in range(area_with_parity.ecc // 2 + 1):
        raw[place + 2 * number] ^= 0x5A
    records = read_ramoops(bytes(raw))
    record = next(record for record in records if record.reason == "Panic")
    assert record.quality.bad_blocks == 1
    assert not record.quality.is_good
    (crash,) = [crash for crash in join_records(records) if "Panic" in crash.reasons]
    assert any("beyond repair" in problem for problem in crash.problems)


def test_short_last_block_of_a_zone_is_corrected() -> None:
    zone = build.PersistentRamZone(4096, ecc=16)
    assert zone.room % 128
    header = b"====1700000000.000000-D\n" + build.dump_text("Panic", 1, 1, b"")
    zone.write(header + b"y" * (zone.room - len(header) - 1))
    raw = bytearray(zone.raw)
    last = 12 + zone.room - 2
    raw[last] ^= 1
    raw[12 + zone.room + zone.blocks * 16 - 1] ^= 1
    (record,) = read_ramoops(
        bytes(raw), make_layout(mem_size=4096, record_size=4096, console_size=0, ftrace_size=0, pmsg_size=0, ecc=1)
    )
    assert record.quality.corrected_bytes == 2
    assert set(record.data) == {ord("y")}


def test_big_endian_memory() -> None:
    area = build.RamoopsArea(mem_size=32 << 10, ecc=16, order="big")
    area.write_dump(2, build.dump_text("Panic", 1, 1, PANIC_TAIL))
    (record,) = read_ramoops(area.raw)
    assert record.data == PANIC_TAIL
    assert record.name == "dmesg-ramoops-2"


def test_zone_sizes_that_are_no_power_of_two() -> None:
    area = build.RamoopsArea(mem_size=50_000, ecc=16, cpus=3)
    area.write_dump(8, build.dump_text("Panic", 1, 1, PANIC_TAIL))
    area.ftrace[2].write(build.ftrace_entry(2, 1, 0xFFFFFFFF81000000, 0xFFFFFFFF81000001))
    layout = make_layout(mem_size=50_000, ecc=16, ftrace_zones=3, pmsg_first=False)
    assert fit_layout(area.raw, ecc=1) == layout
    for records in (read_ramoops(area.raw, layout), read_ramoops(area.raw)):
        assert [(record.name, record.reason) for record in records] == [
            ("dmesg-ramoops-8", "Panic"),
            ("ftrace-ramoops-2", ""),
        ]


def test_no_zone_is_an_error() -> None:
    with pytest.raises(CorruptError, match="DBGC"):
        read_ramoops(bytes(65536))
    with pytest.raises(CorruptError):
        read_ramoops(b"DBGC" + b"\xff" * 100)


def test_impossible_parameters_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="mem_size is 4096"):
        make_layout(mem_size=4096)
    with pytest.raises(UsageError, match="no room"):
        make_layout(mem_size=64 << 10, pmsg_size=16, ecc=16)


@pytest.mark.parametrize("algorithm", build.ALGORITHMS)
def test_each_compression(algorithm: str) -> None:
    text = build.dump_text("Panic", 1, 1, tail(LOG, 20_000))
    stored = build.compress(algorithm, text)
    assert len(stored) < len(text) * 0.8
    record = decode_file("dmesg-efi_pstore-170000000001001.enc.z", stored)
    assert record.data == tail(LOG, 20_000)
    assert record.compression == algorithm.removesuffix("-2k")
    assert record.quality.is_good
    area = build.RamoopsArea(mem_size=64 << 10, record_size=16384, ecc=16)
    area.write_dump(0, build.compress(algorithm, build.dump_text("Oops", 3, 1, PANIC_TAIL)), kind="C")
    (stored_record,) = read_ramoops(area.raw)
    assert (stored_record.data, stored_record.count) == (PANIC_TAIL, 3)


@pytest.mark.parametrize("algorithm", ["deflate", "zlib", "lz4", "842"])
def test_compressed_text_that_was_cut_gives_what_it_has(algorithm: str) -> None:
    stored = build.compress(algorithm, build.dump_text("Panic", 1, 1, tail(LOG, 300_000)))
    record = decode_file("dmesg-ramoops-0.enc.z", stored[: len(stored) * 3 // 4])
    assert tail(LOG, 300_000).startswith(record.data)
    assert len(record.data) > 2000
    assert "compressed data damaged" in record.quality.notes[0]


def test_unknown_compression_is_kept() -> None:
    stored = random.Random(2).randbytes(500)
    record = decode_file("dmesg-efi-170000000001001.enc.z", stored)
    assert (record.data, record.raw) == (b"", stored)
    assert "compressed" in record.quality.notes[0]


def test_notice_of_parity_is_a_mark_and_no_text() -> None:
    clean = decode_file("dmesg-ramoops-0", b"Panic#1 Part1\ntext\n\nECC: No errors detected\n")
    assert (clean.data, clean.quality.is_checked, clean.quality.is_good) == (b"text\n", True, True)
    bad = decode_file("console-ramoops-0", b"text\n\nECC: 12 Corrected bytes, 2 unrecoverable blocks\n")
    assert bad.data == b"text\n"
    assert (bad.quality.corrected_bytes, bad.quality.bad_blocks) == (12, 2)


def test_zone_device_of_64_and_32_bits() -> None:
    for bits in (64, 32, 28):
        pmsg, console = build.PszZone(7, 4096), build.PszZone(2, 4096)
        ftrace = [build.PszZone(3, 2048) for _ in range(2)]
        kmsg = [build.PszZone(0, 8192) for _ in range(3)]
        console.write(LOG[:3000])
        console.write(LOG[3000:])
        pmsg.write(b"from a program")
        ftrace[1].write(build.ftrace_entry(1, 5, 0xFFFFFFFF81000000, 0xFFFFFFFF81000010))
        kmsg[0].write_dump(
            build.dump_text("Oops", 1, 1, tail(BOOT + OOPS, 2500)),
            seconds=1_700_000_000, nanos=500_000_000, compressed=False, counter=1, reason=2, bits=bits,
        )  # fmt: skip
        kmsg[1].write_dump(
            build.compress("deflate", build.dump_text("Panic", 2, 1, PANIC_TAIL)),
            seconds=1_700_000_001, nanos=0, compressed=True, counter=4, reason=1, bits=bits,
        )  # fmt: skip
        raw = b"".join(zone.raw for zone in (pmsg, console, *ftrace, *kmsg))
        records = {record.name: record for record in read_pstore_blk(raw)}
        assert sorted(records) == [
            f"{name}-pstore_blk-{number}"
            for name, number in (("console", 0), ("dmesg", 0), ("dmesg", 1), ("ftrace", 0), ("pmsg", 0))
        ]
        assert records["console-pstore_blk-0"].data == LOG[-4084:]
        panic = records["dmesg-pstore_blk-1"]
        assert (panic.data, panic.reason, panic.sequence, panic.time_s) == (PANIC_TAIL, "Panic", 4, 1_700_000_001.0)
        assert records["dmesg-pstore_blk-0"].time_s == 1_700_000_000.5
        assert decode_calls(records["ftrace-pstore_blk-0"])[0].stamp == 5


def test_file_of_a_zone_device_loses_its_line_of_totals() -> None:
    record = decode_file("dmesg-pstore_blk-1", b"Panic: Total 4 times\nPanic#2 Part1\ntext\n")
    assert (record.data, record.reason, record.count, record.sequence) == (b"text\n", "Panic", 2, 4)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("record_size", [4096, 16384])
def test_mtdoops_in_order_of_its_counter(version: int, record_size: int) -> None:
    texts = [tail(LOG, size) for size in (3000, 3100, 3200, 3300)]
    pages = [
        build.mtdoops_page(text, sequence, record_size=record_size, version=version, time_ns=10**18 + sequence)
        for text, sequence in zip(texts, (0xFFFFFFFE, 0, 1, 0xFFFFFFFD), strict=True)
    ]
    raw = b"".join(pages) + b"\xff" * record_size * 4
    for records in (read_mtdoops(raw), read_mtdoops(raw, record_size)):
        assert [record.sequence for record in records] == [0xFFFFFFFD, 0xFFFFFFFE, 0, 1]
        assert [record.data for record in records] == [texts[3], texts[0], texts[1], texts[2]]
        assert (records[0].time_s is None) == (version == 1)
        assert all(record.quality.is_good for record in records)


def test_mtdoops_of_a_big_endian_machine_and_a_full_page() -> None:
    text = tail(LOG, 9000)
    (record,) = read_mtdoops(build.mtdoops_page(text, 7, order="big"))
    assert record.data == text[: 4096 - 16]
    assert record.sequence == 7


def test_erst_records_and_their_store() -> None:
    texts = parts(LOG, 3000, 3)
    first = 1_700_000_000 << 32
    records = [
        build.erst_record(build.dump_text("Panic", 1, 1, texts[0]), first, time_s=1_700_000_050),
        build.erst_record(
            build.compress("deflate", build.dump_text("Panic", 1, 2, texts[1])), first + 1, section="dmesg-z"
        ),
        build.erst_record(b"\0" * 88, first + 2, section="mce"),
    ]
    for raw in (b"".join(records), build.erst_store(records)):
        found = read_erst(raw)
        assert [record.name for record in found] == [
            f"dmesg-erst-{first}", f"dmesg-erst-{first + 1}", f"mce-erst-{first + 2}"
        ]  # fmt: skip
        assert [record.data for record in found[:2]] == texts[:2]
        assert [record.time_s for record in found] == [1_700_000_050.0, 1_700_000_000.0, 1_700_000_000.0]
        assert found[2].type is RecordType.MCE


def test_efi_variables(tmp_path: Path) -> None:
    texts = parts(LOG, 900, 5)
    for part, text in enumerate(texts, 1):
        content = build.dump_text("Panic", 2, part, text)
        name, raw = build.efi_variable(
            build.compress("deflate", content), part=part, count=2, time_s=1_700_000_000 + part, compressed=True
        )
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "Boot0000-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(b"\7\0\0\0x")
    records = read_efivars(tmp_path)
    assert len(records) == 5
    (crash,) = join_records(records)
    assert crash.text == b"".join(reversed(texts))
    assert crash.problems == ()


def test_efi_names_of_all_ages(tmp_path: Path) -> None:
    for name in (
        f"dump-type0-1-1700000000-{build.EFI_GUID}",
        f"dump-type0-1-3-1700000000-{build.EFI_GUID}",
        f"dump-type0-1-3-1700000000-D-{build.EFI_GUID}",
    ):
        (tmp_path / name).write_bytes(b"\7\0\0\0Oops#3 Part1\ntext\n")
    records = read_efivars(tmp_path)
    assert [(r.reason, r.count, r.part, r.time_s, r.data) for r in records] == [
        ("Oops", 3, 1, 1_700_000_000.0, b"text\n")
    ] * 3


def test_ids_that_overflow_are_not_believed() -> None:
    number = build.efi_id(part=101, count=1002, time_s=1_700_000_000)
    record = decode_file(f"dmesg-efi-{number}", build.dump_text("Oops", 1002, 101, b"text\n"))
    assert (record.count, record.part) == (1002, 101)


def test_directory_of_a_mounted_pstore(tmp_path: Path) -> None:
    (tmp_path / "dmesg-ramoops-0").write_bytes(
        build.dump_text("Panic", 1, 1, PANIC_TAIL) + b"\nECC: No errors detected\n"
    )
    (tmp_path / "console-ramoops-0").write_bytes(LOG)
    (tmp_path / "boot-log-ramoops-0").write_bytes(b"vendor")
    (tmp_path / "pmsg-ramoops-0").write_bytes(b"hello")
    (tmp_path / "powerpc-ofw-nvram-2").write_bytes(b"ofw")
    (tmp_path / "ftrace-ramoops-0").write_bytes(
        b"CPU:0 ts:5 ffffffff81000000  ffffffff81000010  do_sys_open <- __x64_sys_openat+0x20/0x30\n"
        b"CPU:1 ts:4 ffffffff81000001  ffffffff81000011  probe [driver] <- really_probe+0xde/0x380\n"
    )
    (tmp_path / "README").write_bytes(b"no record")
    (tmp_path / "link-ramoops-0").symlink_to("/etc/passwd")
    records = {record.name: record for record in read_directory(tmp_path) if record.name != "link-ramoops-0"}
    assert {record.type for record in records.values()} == {
        RecordType.DMESG,
        RecordType.CONSOLE,
        RecordType.UNKNOWN,
        RecordType.PMSG,
        RecordType.POWERPC_OFW,
        RecordType.FTRACE,
    }
    calls = decode_calls(records["ftrace-ramoops-0"])
    assert [(call.cpu, call.stamp, call.function) for call in calls] == [
        (1, 4, "probe [driver]"),
        (0, 5, "do_sys_open"),
    ]
    assert records["console-ramoops-0"].time_s is None


def test_archive_of_systemd_with_and_without_its_parts(tmp_path: Path) -> None:
    texts = parts(LOG, 1500, 3)
    contents = [build.dump_text("Panic", 1, part, text) for part, text in enumerate(texts, 1)]
    kept, joined = tmp_path / "1700000000" / "001", tmp_path / "1700009999" / "001"
    kept.mkdir(parents=True)
    joined.mkdir(parents=True)
    for part, content in enumerate(contents, 1):
        (kept / f"dmesg-efi_pstore-{build.efi_id(part, 1, 1_700_000_000)}").write_bytes(content)
    for directory in (kept, joined):
        (directory / "dmesg.txt").write_bytes(b"".join(reversed(contents)))
    for directory in (kept, joined):
        (crash,) = join_records(read_directory(directory))
        assert crash.text == b"".join(reversed(texts))
        assert len(crash.records) == 3


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileFaultError, match="no such"):
        read_directory(tmp_path / "none")
    with pytest.raises(FileFaultError, match="no such"):
        read_efivars(tmp_path / "none")


def test_entries_before_4_10_and_of_32_bits() -> None:
    area = build.RamoopsArea(version=0x040901)
    for number in range(200):
        area.ftrace[0].write(build.ftrace_entry_before_4_10(3, 0xFFFFFFFF81000000 + number, 0xFFFFFFFF82000000))
    calls = decode_calls(read_ramoops(area.raw))
    assert {(call.cpu, call.stamp) for call in calls} == {(3, None)}
    assert calls[-1].ip == 0xFFFFFFFF81000000 + 199
    area = build.RamoopsArea(version=0x060101)
    for number in range(300):
        area.ftrace[0].write(build.ftrace_entry(1, number, 0xC0008000 + number, 0xC0009000, bits=32))
    calls = decode_calls(read_ramoops(area.raw))
    assert (calls[-1].cpu, calls[-1].stamp, calls[-1].ip) == (1, 299, 0xC0008000 + 299)


@pytest.mark.parametrize("parity", [2, 8, 16, 32, 64])
def test_parity_is_the_kernels(parity: int) -> None:
    data = random.Random(parity).randbytes(128)
    assert reed_solomon(parity).encode(data) == build.KernelReedSolomon(parity).encode(data)
    assert reed_solomon(parity).encode(data[:12]) == build.KernelReedSolomon(parity).encode(data[:12])


def test_names_of_old_kernels() -> None:
    record = decode_file("console-ramoops", b"text\n")
    assert (record.type, record.backend, record.id) == (RecordType.CONSOLE, "ramoops", 0)
    record = decode_file("dmesg-efi-3", build.dump_text("Oops", 1, 3, b"text\n"), mtime_s=1_400_000_000.0)
    assert (record.time_s, record.part, record.count) == (1_400_000_000.0, 3, 1)
    record = decode_file("dmesg-efi-3", b"no header\n", mtime_s=1_400_000_000.0)
    assert (record.part, record.count) == (None, None)


def test_memory_with_the_code_of_a_kernel_in_it(tmp_path: Path) -> None:
    code = b"\x81\x3f\x44\x42\x47\x43\x75\x10\x81\x38\xe5\x3a\xfc\x4d" + bytes(5000)
    (tmp_path / "memory").write_bytes(code + used_area(16).raw + code)
    source = read_source(tmp_path / "memory")
    assert source.format is Format.RAMOOPS
    check_area(used_area(16), list(source.records), skip=len(code), path=str(tmp_path / "memory"))


def test_an_area_without_signatures_by_its_parameters(tmp_path: Path) -> None:
    area = used_area(0)
    (tmp_path / "memory").write_bytes(area.raw.replace(b"DBGC", b"\0\0\0\0"))
    source = read_source(tmp_path / "memory", parameters={"console_size": 8192})
    assert source.format is Format.RAMOOPS
    assert [record.reason for record in source.records if record.type is RecordType.DMESG] == ["Oops", "Panic"]
    assert all("signature" in record.quality.notes[0] for record in source.records if record.type is RecordType.DMESG)
