"""What must hold for any store: parity corrects what it can, parts join, no image is too bad to be read."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from postpanic.errors import PostpanicError
from postpanic.evidence.oops import find_reports
from postpanic.evidence.pstore import (
    Record,
    RecordType,
    decode_calls,
    decode_file,
    join_records,
    make_layout,
    read_erst,
    read_mtdoops,
    read_pstore_blk,
    read_ramoops,
)
from postpanic.evidence.pstore.answer import pstore_answer
from postpanic.evidence.pstore.compression import decompress_dump
from postpanic.evidence.pstore.content import _HEADER, _NOTICE, _TOTAL
from postpanic.evidence.pstore.directory import _NAME as FILE_NAME
from postpanic.evidence.pstore.efivars import _NAME as VARIABLE_NAME
from postpanic.evidence.pstore.efivars import decode_efi_variable, read_efi_store
from postpanic.evidence.pstore.ftrace import _LINE
from postpanic.evidence.pstore.overlap import merge_logs
from postpanic.evidence.pstore.reed_solomon import reed_solomon
from postpanic.evidence.pstore.sources import Format, Source, read_source
from postpanic.findings.schema import answer_value
from tests.builders import pstore as build
from tests.unit.evidence.pstore.logs import LOG, parts, tail

DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=60)
FEW = settings(derandomize=True, deadline=None, max_examples=25)
TIME = 1_700_000_000


def make_ramoops(ecc: int = 16) -> bytes:
    area = build.RamoopsArea(mem_size=24 << 10, ecc=ecc, cpus=2)
    area.write_dump(0, build.compress("deflate", build.dump_text("Oops", 1, 1, tail(LOG, 6000))), TIME, "C")
    area.write_dump(1, build.dump_text("Panic", 2, 1, tail(LOG, 3000)), TIME)
    assert area.console is not None
    area.console.write(LOG)
    area.ftrace[1].write(build.ftrace_entry(1, 9, 0xFFFFFFFF81000000, 0xFFFFFFFF81000001) * 50)
    return area.raw


def make_zones() -> bytes:
    console, ftrace, kmsg = build.PszZone(2, 2048), build.PszZone(3, 2048), build.PszZone(0, 8192)
    console.write(LOG)
    ftrace.write(build.ftrace_entry(0, 1, 0xFFFFFFFF81000000, 0xFFFFFFFF81000001) * 9)
    kmsg.write_dump(
        build.dump_text("Panic", 1, 1, tail(LOG, 5000)), seconds=TIME, nanos=1, compressed=False, counter=1, reason=1
    )
    return console.raw + ftrace.raw + kmsg.raw


def make_mtdoops() -> bytes:
    return b"".join(build.mtdoops_page(tail(LOG, 3000 + n), n) for n in range(3)) + b"\xff" * 4096


def make_erst() -> bytes:
    first = TIME << 32
    texts = parts(LOG, 2000, 3)
    return build.erst_store(
        [
            build.erst_record(
                build.compress("zlib", build.dump_text("Panic", 1, n, text)), first + n, section="dmesg-z"
            )
            for n, text in enumerate(texts, 1)
        ]
        + [build.erst_record(bytes(88), first + 9, section="mce")]
    )


IMAGES: dict[str, tuple[bytes, Callable[[bytes], list[Record]]]] = {
    "ramoops": (make_ramoops(), read_ramoops),
    "ramoops-plain": (make_ramoops(0), read_ramoops),
    "pstore_blk": (make_zones(), read_pstore_blk),
    "mtdoops": (make_mtdoops(), read_mtdoops),
    "erst": (make_erst(), read_erst),
}


def use_all(records: list[Record]) -> None:
    """Do with the records what the command does."""
    crashes = join_records(records)
    assert sorted(id(record) for crash in crashes for record in crash.records) == sorted(map(id, records))
    pairs = [(crash, find_reports(crash.text)) for crash in crashes]
    answer = pstore_answer([Source(Path("x"), Format.PSTORE, tuple(records))], pairs, full=True)
    answer_value(answer)
    for record in records:
        decode_calls(record)


def read_whatever(read: Callable[[bytes], list[Record]], raw: bytes) -> list[Record]:
    try:
        return read(raw)
    except PostpanicError:
        return []


@DETERMINISTIC
@given(st.data())
def test_parity_corrects_half_of_itself(data: st.DataObject) -> None:
    parity_bytes = data.draw(st.sampled_from([2, 3, 8, 16, 17, 32, 64]))
    block = data.draw(st.binary(min_size=1, max_size=min(128, 255 - parity_bytes)))
    code = reed_solomon(parity_bytes)
    parity = code.encode(block)
    assert parity == build.kernel_reed_solomon(parity_bytes).encode(block)
    word = bytearray(block + parity)
    most = min(parity_bytes // 2, len(word))
    places = data.draw(st.lists(st.integers(0, len(word) - 1), unique=True, max_size=most))
    for place in places:
        word[place] ^= data.draw(st.integers(1, 255))
    assert code.correct(bytes(word[: len(block)]), bytes(word[len(block) :])) == (block, len(places))


@DETERMINISTIC
@given(st.binary(min_size=1, max_size=128), st.binary(min_size=16, max_size=16))
def test_parity_of_something_else_is_no_error(block: bytes, parity: bytes) -> None:
    found = reed_solomon(16).correct(block, parity)
    if found is not None:
        assert 0 <= found[1] <= 8
        assert sum(a != b for a, b in zip(block, found[0], strict=True)) <= found[1]


@DETERMINISTIC
@given(st.lists(st.binary(max_size=700), max_size=30), st.sampled_from([0, 4, 16]))
def test_a_ring_holds_the_last_that_was_written(writes: list[bytes], ecc: int) -> None:
    zone = build.PersistentRamZone(2048, ecc=ecc)
    for text in writes:
        if text:
            zone.write(text)
    layout = make_layout(mem_size=2048, record_size=0, console_size=2048, ftrace_size=0, pmsg_size=0, ecc=ecc)
    records = read_ramoops(zone.raw, layout)
    assert b"".join(record.data for record in records) == b"".join(writes)[-zone.room :]


@DETERMINISTIC
@given(st.lists(st.binary(min_size=1, max_size=700), min_size=1, max_size=30))
def test_a_ring_of_a_device_holds_the_last_that_was_written(writes: list[bytes]) -> None:
    zone = build.PszZone(2, 1024)
    for text in writes:
        zone.write(text)
    (record,) = read_pstore_blk(zone.raw)
    assert record.data == b"".join(writes)[-1012:]


@DETERMINISTIC
@given(st.binary(max_size=3000), st.sampled_from(build.ALGORITHMS))
@example(b"\0" * 3000, "842")
@example(b"abcdefgh" * 300, "842")
def test_compressed_text_comes_back(text: bytes, algorithm: str) -> None:
    content = build.dump_text("Panic", 1, 1, text)
    record = decode_file("dmesg-erst-1.enc.z", build.compress(algorithm, content))
    assert record.data == text
    assert record.quality.is_good


@FEW
@given(st.data())
def test_flipped_bits_within_the_strength_of_parity_change_nothing(data: st.DataObject) -> None:
    raw, _ = IMAGES["ramoops"]
    clean = read_ramoops(raw)
    zone_bytes = 4096
    flipped = bytearray(raw)
    # In each zone: at most eight bytes wrong in any block with its parity, so eight in all.
    for start in range(0, 12288, zone_bytes):
        for _ in range(8):
            place = start + data.draw(st.integers(0, zone_bytes - 1))
            flipped[place] = raw[place] ^ data.draw(st.integers(1, 255))
    found = read_ramoops(bytes(flipped), make_layout(mem_size=24 << 10, ecc=16, ftrace_zones=2, pmsg_first=False))
    assert [record.data for record in found] == [record.data for record in clean]
    assert all(record.quality.is_good for record in found)


@pytest.mark.parametrize("name", IMAGES)
def test_cut_anywhere(name: str) -> None:
    raw, read = IMAGES[name]
    whole = read(raw)
    for end in {*range(0, len(raw), 97), *range(300), *range(len(raw) - 50, len(raw))}:
        records = read_whatever(read, raw[:end])
        assert len(records) <= len(whole)
        if end % 11 == 0:
            use_all(records)


@FEW
@given(st.data())
@pytest.mark.parametrize("name", IMAGES)
def test_damaged_anywhere(name: str, data: st.DataObject) -> None:
    raw, read = IMAGES[name]
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 40))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        change = data.draw(st.sampled_from(["flip", "field", "cut", "zero"]))
        if change == "flip":
            damaged[place] ^= data.draw(st.integers(1, 255))
        elif change == "field":
            damaged[place : place + 4] = data.draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\1\0\0\0", b"DBGC"]))
        elif change == "cut":
            del damaged[place : place + data.draw(st.integers(1, 300))]
        else:
            damaged[place : place + 64] = bytes(64)
        if not damaged:
            break
    use_all(read_whatever(read, bytes(damaged)))


@FEW
@given(st.lists(st.one_of(
    st.sampled_from([b"DBGC", b"CGBD", b"FBGC", b"CBGC", b"CPER\0\1\xff\xff\xff\xff", b"\xe5\x3a\xfc\x4d", b"====1-D\n",
                     b"\0\x5d\0\x5d", b"Panic#1 Part1\n", b"\xff" * 16, bytes(12), b"ERSTSTOR", b"_FVH"]),
    st.binary(max_size=60), st.integers(0, 1 << 12).map(lambda n: n.to_bytes(4, "little")),
), max_size=60).map(b"".join))  # fmt: skip
def test_forged_signatures(raw: bytes) -> None:
    for read in (read_ramoops, read_pstore_blk, read_mtdoops, read_erst, read_efi_store):
        use_all(read_whatever(read, raw))


@FEW
@given(st.binary(max_size=2000))
def test_noise_as_a_file_of_any_name(raw: bytes) -> None:
    for name in ("dmesg-ramoops-0", "dmesg-efi-1.enc.z", "ftrace-ramoops-0", "mce-erst-5", "console-ramoops-0"):
        use_all([decode_file(name, raw, mtime_s=1e9)])
    use_all([decode_efi_variable(f"dump-type0-1-1-1700000000-C-{build.EFI_GUID}", raw)])


@FEW
@given(st.binary(max_size=6000))
def test_noise_as_an_image(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "image"
    path.write_bytes(raw)
    records = read_whatever(lambda _: list(read_source(path).records), raw)
    use_all(records)


@DETERMINISTIC
@given(st.data())
def test_two_windows_of_one_log_become_their_union(data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(LOG) - 2000))
    first_end = data.draw(st.integers(first + 1000, len(LOG)))
    second = data.draw(st.integers(first, first_end - 500))
    second_end = data.draw(st.integers(first_end, len(LOG)))
    assert merge_logs(LOG[first:first_end], LOG[second:second_end]) == LOG[first:second_end]


@DETERMINISTIC
@given(st.data())
def test_order_of_the_files_does_not_matter(data: st.DataObject) -> None:
    records = [
        decode_file(f"dmesg-efi-{build.efi_id(part, count, TIME + count)}", build.dump_text(reason, count, part, text))
        for count, (reason, log) in enumerate((("Oops", LOG[:-400]), ("Panic", LOG)), 1)
        for part, text in enumerate(parts(log, 900, 5), 1)
    ]
    shuffled = data.draw(st.permutations(records))
    assert [crash.text for crash in join_records(shuffled)] == [crash.text for crash in join_records(records)]


PATTERNS = {"header": _HEADER, "total": _TOTAL, "notice": _NOTICE, "call": _LINE}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(
    "text", [b"A" * 99999, b"CPU:1 " * 20000, b"\nECC: 1" * 9999, b"Panic#1 Part" * 9999, b" " * 99999]
)
def test_patterns_take_linear_time(name: str, text: bytes) -> None:
    steps = 0
    for found in PATTERNS[name].finditer(text):
        steps += 1
        assert found.end() > found.start()
    assert steps <= len(text)


def test_names_of_any_length_are_refused_at_once() -> None:
    for name in ("a-" * 50000, "dmesg-" + "e" * 99999, "dump-type0-" + "1-" * 50000):
        assert FILE_NAME.fullmatch(name) is None
        assert VARIABLE_NAME.fullmatch(name) is None


def test_a_bomb_does_not_grow() -> None:
    bomb = build.compress("deflate", b"Panic#1 Part1\n" + bytes(64 << 20))
    found = decompress_dump(bomb, _HEADER)
    assert found is not None
    assert len(found.data) <= 9 << 20
    assert not found.is_whole


def test_memory_that_has_decayed_is_read_in_time() -> None:
    noise = random.Random(5)
    zone = build.PersistentRamZone(1 << 20, ecc=16)
    raw = bytearray(noise.randbytes(1 << 20))
    zone.used = zone.room
    raw[:12] = zone.raw[:12]
    raw[-16:] = zone.raw[-16:]
    layout = make_layout(mem_size=1 << 20, record_size=0, console_size=1 << 20, ftrace_size=0, pmsg_size=0, ecc=16)
    (record,) = read_ramoops(bytes(raw), layout)
    assert record.type is RecordType.CONSOLE
    assert record.quality.bad_blocks > 7000
