"""Records become crashes: order of parts, what is missing, dumps of one event."""

from __future__ import annotations

import itertools

from postpanic.evidence.oops import find_reports
from postpanic.evidence.pstore import Crash, Record, RecordType, decode_file, join_records
from postpanic.evidence.pstore.overlap import merge_logs
from tests.builders import pstore as build
from tests.unit.evidence.pstore.logs import BOOT, LOG, OOPS, PANIC, parts, tail

T = 1_700_000_000


def efi(reason: str, count: int, part: int, text: bytes, time_s: int = T) -> Record:
    return decode_file(
        f"dmesg-efi_pstore-{build.efi_id(part, count, time_s)}", build.dump_text(reason, count, part, text)
    )


def dump(reason: str, count: int, log: bytes, size: int = 900, most: int = 5, time_s: int = T) -> list[Record]:
    return [efi(reason, count, part, text, time_s) for part, text in enumerate(parts(log, size, most), 1)]


def one(records: list[Record]) -> Crash:
    (crash,) = join_records(records)
    return crash


def test_parts_in_any_order_of_files() -> None:
    records = dump("Panic", 1, LOG, most=4)
    texts = parts(LOG, 900, 4)
    for order in itertools.permutations(records):
        crash = one(list(order))
        assert crash.text == b"".join(reversed(texts))
        assert crash.problems == ()


def test_more_parts_than_digits() -> None:
    records = dump("Panic", 1, LOG, size=120, most=130)
    assert len(records) > 100
    assert one(records).text == b"".join(reversed(parts(LOG, 120, 130)))


def test_missing_parts_are_said_and_marked() -> None:
    records = dump("Panic", 1, LOG, most=6)
    crash = one([record for record in records if record.part not in (2, 3)])
    assert crash.problems == ("parts 2 to 3 of Panic#1 missing",)
    assert b"--- parts 2 to 3 of Panic#1 missing ---\n" in crash.text
    crash = one([record for record in records if record.part != 1])
    assert crash.problems == ("part 1 of Panic#1 missing: the newest lines",)


def test_dumps_of_two_boots_with_the_same_count() -> None:
    first, second = BOOT + OOPS, BOOT.replace(b"device", b"gadget") + OOPS.replace(b"31.", b"77.")
    records = [*dump("Oops", 1, first, time_s=T), *dump("Oops", 1, second, time_s=T + 40)]
    crashes = join_records(records)
    assert [crash.text for crash in crashes] == [b"".join(reversed(parts(log, 900, 5))) for log in (first, second)]
    assert [crash.time_s for crash in crashes] == [T, T + 40]


def test_parts_written_over_several_seconds_are_one_dump() -> None:
    texts = parts(LOG, 900, 5)
    records = [efi("Panic", 1, part, text, T + part * 2) for part, text in enumerate(texts, 1)]
    assert one(records).text == b"".join(reversed(texts))


def test_an_oops_and_its_panic_that_overlap_are_one_crash() -> None:
    records = [*dump("Oops", 1, BOOT + OOPS), *dump("Panic", 2, LOG, time_s=T + 1)]
    crash = one(records)
    assert crash.reasons == ("Oops", "Panic")
    assert LOG.endswith(crash.text)
    assert len(crash.text) > 4000
    assert crash.problems == ()
    reports = find_reports(crash.text)
    assert len(reports) == 1
    assert reports[0].is_panic


def test_an_oops_and_its_panic_without_overlap() -> None:
    chatter = b"".join(b"<6>[   31.15%04d] other cpu line %d of many that were printed\n" % (n, n) for n in range(60))
    records = [*dump("Oops", 1, BOOT + OOPS), *dump("Panic", 2, chatter + PANIC, most=1, time_s=T + 1)]
    crash = one(records)
    assert crash.reasons == ("Oops", "Panic")
    assert crash.problems == ("lines between Oops and Panic may be missing: the dumps do not overlap",)


def test_a_panic_of_another_day_is_another_crash() -> None:
    later = b"<0>[99999.000000] Kernel panic - not syncing: something else\n"
    crashes = join_records([*dump("Oops", 1, BOOT + OOPS), *dump("Panic", 2, later, time_s=T + 100_000)])
    assert [crash.reasons for crash in crashes] == [("Oops",), ("Panic",)]


def test_overlapping_parts_have_their_lines_once() -> None:
    crash = one([efi("Panic", 1, 1, tail(LOG, 2000)), efi("Panic", 1, 2, tail(LOG[:-1500], 2000))])
    assert LOG.endswith(crash.text)
    assert len(crash.problems) == 1
    assert "in the part before it, too" in crash.problems[0]


def test_console_of_the_same_boot_completes_the_dump() -> None:
    console = decode_file("console-ramoops-0", LOG.replace(b"<6>", b"").replace(b"<4>", b"")[500:])
    panic = decode_file("dmesg-ramoops-0", build.dump_text("Panic", 1, 1, tail(LOG, 3000)))
    pmsg = decode_file("pmsg-ramoops-0", b"from a program")
    crash = one([console, panic, pmsg])
    assert len(crash.records) == 3
    assert crash.text.endswith(tail(LOG, 3000))
    assert len(crash.text) > len(console.data)
    assert crash.text.count(b"Kernel panic - not syncing") == 1


def test_console_of_another_boot_is_its_own() -> None:
    console = decode_file("console-ramoops-0", b"[    1.000000] nothing happened in this boot at all\n")
    panic = decode_file("dmesg-ramoops-0", build.dump_text("Panic", 1, 1, tail(LOG, 3000)))
    crashes = join_records([console, panic])
    assert sorted(crash.reasons for crash in crashes) == [(), ("Panic",)]


def test_console_of_another_boot_of_the_same_kernel_is_its_own() -> None:
    begin = b"".join(b"[    0.000000] BIOS-e820: the same line %d of each boot\n" % number for number in range(40))
    early = b"".join(b"[    0.00%04d] and some that are the same by chance %d\n" % (n, n) for n in range(1, 9))
    other = b"".join(b"[   %d.500000] this boot did something else %d\n" % (n, n) for n in range(10, 99))
    panic = decode_file("dmesg-ramoops-0", build.dump_text("Panic", 1, 1, begin + early + LOG))
    crashes = join_records([decode_file("console-ramoops-0", begin + early + other), panic])
    assert sorted(len(crash.records) for crash in crashes) == [1, 1]


def test_every_record_is_in_exactly_one_crash() -> None:
    records = [
        *dump("Oops", 1, BOOT + OOPS),
        *dump("Panic", 1, LOG, time_s=T + 5000),
        decode_file("mce-erst-17", bytes(88)),
        decode_file("pmsg-ramoops-0", b"x"),
        decode_file("rtas-nvram-3", b"y"),
        decode_file("boot-log-ramoops-1", b"z"),
    ]
    found = [record.name for crash in join_records(records) for record in crash.records]
    assert sorted(found) == sorted(record.name for record in records)


def test_records_of_mtdoops_have_no_header_and_join_by_their_lines() -> None:
    texts = [tail(BOOT + OOPS, 3000), tail(LOG, 3000)]
    records = [
        Record(type=RecordType.DMESG, backend="mtdoops", name=f"dmesg-mtdoops-{n}", data=text, sequence=n)
        for n, text in enumerate(texts)
    ]
    assert LOG.endswith(one(records[::-1]).text)


def test_merging_logs_whose_ends_are_cut_inside_lines() -> None:
    for start, end in ((777, 5001), (1000, 4321), (0, 6000), (3, len(LOG))):
        for from_second in (start, start + 13, start + 500):
            merged = merge_logs(LOG[start:end], LOG[from_second : end + 700])
            assert merged is not None
            assert merged == LOG[start : max(end, end + 700)], (start, end, from_second)


def test_logs_that_share_nothing_do_not_merge() -> None:
    other = LOG.replace(b"[", b"[ 9")
    assert merge_logs(LOG, other) is None
    assert merge_logs(b"", LOG) is None
    assert merge_logs(b"same short\n", b"same short\n") is None
