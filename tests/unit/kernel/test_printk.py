from __future__ import annotations

import struct

import pytest

from postpanic.dumps.memory import PageState
from postpanic.errors import CorruptError, FactAbsentError, PostpanicError
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from postpanic.kernel.printk import LogRecord, RecordState, caller_name, read_log
from tests.builders.printk_ring import (
    COMMITTED,
    ID_MASK,
    RESERVED,
    Message,
    RingBuilder,
    RingImage,
    build_linear_log,
)
from tests.unit.kernel.memories import PLACE, image_paddr, make_x86_kernel, open_x86_kernel


def _ring(
    messages: list[Message], *, count_bits: int = 4, size_bits: int = 9, exact_fit_wraps: bool = False
) -> RingImage:
    builder = RingBuilder(PLACE, count_bits=count_bits, size_bits=size_bits, exact_fit_wraps=exact_fit_wraps)
    for message in messages:
        builder.log(message)
    return builder.build()


def _read(image: RingImage) -> list[LogRecord]:
    return read_log(open_x86_kernel(image.parts, image.lines))


def test_record_has_all_that_the_kernel_stored() -> None:
    message = Message(
        b"pci 0000:00:03.0: first line\nsecond \xff line",
        level=3,
        timestamp_ns=12345678901,
        caller_id=0x80000002,
        facility=3,
        flags=8,
        subsystem="pci",
        device="+pci:0000:00:03.0",
    )
    (record,) = _read(_ring([message]))
    assert record == LogRecord(
        seq=0,
        timestamp_ns=12345678901,
        level=3,
        facility=3,
        flags=8,
        caller_id=0x80000002,
        text=b"pci 0000:00:03.0: first line\nsecond \xff line",
        subsystem="pci",
        device="+pci:0000:00:03.0",
    )
    assert record.is_finalized


@pytest.mark.parametrize("exact_fit_wraps", [False, True])
@pytest.mark.parametrize("count_bits", [2, 4, 6])
@pytest.mark.parametrize("size_bits", [7, 9, 12])
def test_log_that_went_round_many_times_keeps_its_last_records(
    count_bits: int, size_bits: int, exact_fit_wraps: bool
) -> None:
    messages = [Message(b"%03d " % number + b"x" * (number * 7 % 41), timestamp_ns=number) for number in range(300)]
    image = _ring(messages, count_bits=count_bits, size_bits=size_bits, exact_fit_wraps=exact_fit_wraps)
    records = _read(image)
    assert [record.seq for record in records] == image.kept
    assert records[-1].seq == 299
    assert [record.text for record in records] == [messages[number].text for number in image.kept]
    assert not any(record.damage for record in records)


def test_empty_log_and_empty_lines_are_read() -> None:
    assert _read(_ring([])) == []
    records = _read(_ring([Message(b""), Message(b"x"), Message(b"")]))
    assert [(record.text, record.damage) for record in records] == [(b"", ""), (b"x", ""), (b"", "")]


def test_record_whose_text_found_no_space_says_so() -> None:
    records = _read(_ring([Message(b"a"), Message(b"bc", failed=True)]))
    assert records[1].text == b""
    assert "no space" in records[1].damage


def test_records_that_writers_were_at_are_shown_and_marked() -> None:
    records = _read(_ring([Message(b"a"), Message(b"b", state=COMMITTED), Message(b"c", state=RESERVED)]))
    assert [(record.text, record.state) for record in records] == [
        (b"a", RecordState.FINALIZED),
        (b"b", RecordState.COMMITTED),
        (b"c", RecordState.RESERVED),
    ]
    assert [record.is_finalized for record in records] == [True, False, False]


def test_record_whose_text_belongs_to_another_is_damaged_and_the_others_are_not() -> None:
    image = _ring([Message(b"one"), Message(b"two"), Message(b"three")])
    text = bytearray(image.parts[image.places["text"]])
    text[16:24] = struct.pack("<Q", 77)
    image.parts[image.places["text"]] = bytes(text)
    records = _read(image)
    assert [record.text for record in records] == [b"one", b"", b"three"]
    assert "belongs to record 0x4d" in records[1].damage


@pytest.mark.parametrize(("begin", "next_"), [(0, 0), (8, 1 << 40), (64, 32), (3, 8), (1 << 63, 8), (0, 8 * 3 + 4)])
def test_text_block_that_cannot_be_is_damage(begin: int, next_: int) -> None:
    image = _ring([Message(b"one"), Message(b"two"), Message(b"three")])
    descs = bytearray(image.parts[image.places["descs"]])
    slot = (1 - 16) % 16
    struct.pack_into("<QQ", descs, 24 * slot + 8, begin, next_)
    image.parts[image.places["descs"]] = bytes(descs)
    records = _read(image)
    assert len(records) == 3
    assert records[1].damage
    assert records[1].seq == 1
    assert records[2].text == b"three"


def test_text_length_beyond_its_block_is_cut_and_said() -> None:
    image = _ring([Message(b"one"), Message(b"two")])
    infos = bytearray(image.parts[image.places["infos"]])
    struct.pack_into("<H", infos, 88 * ((1 - 16) % 16) + 16, 60000)
    image.parts[image.places["infos"]] = bytes(infos)
    record = _read(image)[1]
    assert record.text == b"two\0\0\0\0\0"
    assert "8 of 60000 bytes" in record.damage


def _without_page(image: RingImage, vaddr: int) -> KernelMemory:
    dump, _ = make_x86_kernel(image.parts, image.lines)
    dump.states[image_paddr(vaddr) // 4096] = PageState.EXCLUDED
    return open_kernel_memory(dump)


MESSAGES = [Message(b"message %d " % number + b"." * 60) for number in range(200)]


def test_records_whose_text_is_missing_are_reported_in_their_place() -> None:
    image = _ring(MESSAGES, count_bits=8, size_bits=15)
    records = read_log(_without_page(image, image.places["text"] + 0x1000))
    assert [record.seq for record in records] == list(range(200))
    assert {record.text for record in records if record.damage} == {b""}
    assert 40 < sum("text is not in the dump" in record.damage for record in records) < 70
    assert all(record.text == MESSAGES[record.seq].text for record in records if not record.damage)


@pytest.mark.parametrize("table", ["descs", "infos"])
def test_records_of_which_nothing_is_left_are_reported_once_for_each_run(table: str) -> None:
    image = _ring(MESSAGES, count_bits=8, size_bits=15)
    records = read_log(_without_page(image, image.places[table] + 0x1000))
    lost = [record for record in records if record.damage]
    sound = [record for record in records if not record.damage]
    runs = [(record.seq, int(record.damage.split()[0])) for record in lost]
    assert all("not in the dump" in record.damage for record in lost)
    assert 1 <= len(runs) <= 2
    gone = {seq for first, count in runs for seq in range(first, first + count)}
    assert {record.seq for record in sound} == set(range(200)) - gone
    assert all(record.text == MESSAGES[record.seq].text for record in sound)


def test_huge_table_that_is_missing_is_one_line() -> None:
    image = _ring([Message(b"one")])
    del image.parts[image.places["descs"]], image.parts[image.places["infos"]]
    ring = bytearray(image.parts[image.places["ring"]])
    struct.pack_into("<I", ring, 0, 20)
    struct.pack_into("<Q", ring, 8, PLACE + 0x8000)
    struct.pack_into("<QQ", ring, 24, 0x123456789, 0x123456789 - (1 << 20) + 1)
    image.parts[image.places["ring"]] = bytes(ring)
    (record,) = _read(image)
    assert record.damage.startswith("1048576 records are lost")


@pytest.mark.parametrize(
    ("table", "offset", "value"),
    [("ring", 0, 40), ("ring", 0, 0), ("ring", 48, 60), ("ring", 48, 0), ("ring", 24, 5000)],
)
def test_ring_that_contradicts_itself_is_corrupt(table: str, offset: int, value: int) -> None:
    image = _ring([Message(b"one"), Message(b"two")])
    data = bytearray(image.parts[image.places[table]])
    struct.pack_into("<Q" if offset == 24 else "<I", data, offset, value & ID_MASK)
    image.parts[image.places[table]] = bytes(data)
    with pytest.raises(CorruptError, match="printk ring"):
        _read(image)


@pytest.mark.parametrize("name", ["printk_info", "prb_desc"])
@pytest.mark.parametrize("size", [0, -8, 1, 1 << 40])
def test_structure_size_out_of_bounds_is_an_error(name: str, size: int) -> None:
    image = _ring([Message(b"one")])
    image.lines = [(kind, key, size if (kind, key) == ("SIZE", name) else value) for kind, key, value in image.lines]
    with pytest.raises(CorruptError, match="VMCOREINFO"):
        _read(image)


def test_kernel_that_describes_no_log_is_a_fact_that_is_absent() -> None:
    with pytest.raises(FactAbsentError, match="no kernel log"):
        read_log(open_x86_kernel())


@pytest.mark.parametrize("has_caller", [False, True])
@pytest.mark.parametrize("count", [1, 8, 100])
def test_older_log_is_read_also_when_it_went_round(count: int, has_caller: bool) -> None:
    messages = [
        Message(
            b"%03d " % number + b"y" * (number * 5 % 37),
            level=number % 8,
            timestamp_ns=number * 10**9,
            caller_id=number,
            subsystem="usb" if number % 3 else "",
            device="c189:1" if number % 3 else "",
        )
        for number in range(count)
    ]
    records = read_log(open_x86_kernel(*build_linear_log(messages, PLACE, has_caller=has_caller)))
    last = messages[-len(records) :]
    assert len(records) >= min(count, 10)
    assert [(record.text, record.level, record.timestamp_ns) for record in records] == [
        (message.text, message.level, message.timestamp_ns) for message in last
    ]
    assert [(record.subsystem, record.device) for record in records] == [
        (message.subsystem, message.device) for message in last
    ]
    assert [record.caller_id for record in records] == [message.caller_id * has_caller for message in last]


def test_older_log_ends_at_a_length_that_cannot_be() -> None:
    parts, lines = build_linear_log([Message(b"one"), Message(b"two"), Message(b"three")], PLACE)
    data = bytearray(parts[PLACE])
    struct.pack_into("<H", data, 20 + 8, 2)
    parts[PLACE] = bytes(data)
    records = read_log(open_x86_kernel(parts, lines))
    assert [record.text for record in records] == [b"one", b""]
    assert "impossible" in records[1].damage


@pytest.mark.parametrize(("offset", "value"), [(8, 0), (8, 1 << 31), (12, 1 << 20), (16, 1 << 20)])
def test_older_log_that_contradicts_itself_is_corrupt(offset: int, value: int) -> None:
    parts, lines = build_linear_log([Message(b"one")], PLACE)
    variables = bytearray(parts[PLACE + 1024])
    struct.pack_into("<I", variables, offset, value)
    parts[PLACE + 1024] = bytes(variables)
    with pytest.raises(PostpanicError):
        read_log(open_x86_kernel(parts, lines))


def test_caller_is_a_thread_or_a_cpu() -> None:
    assert caller_name(1) == "T1"
    assert caller_name(0) == "T0"
    assert caller_name(0x80000003) == "C3"
