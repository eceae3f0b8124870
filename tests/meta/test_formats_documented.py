"""The tables of docs/formats are those of the code."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from postpanic.dumps.elfcore import layout as elf
from postpanic.dumps.flattened import layout as flattened
from postpanic.dumps.kdump import layout as kdump
from postpanic.dumps.kdump.codecs import Compression
from postpanic.saver.superblocks import RAW_DUMP_SIGNATURE, SWAP_SIGNATURE
from postpanic.saver.targets import raw_table

DOCS = Path(__file__).parents[2] / "docs" / "formats"
IDENT = "16s"

Place = tuple[int, int]
Row = list[str]

FORMS: dict[tuple[str, str], str] = {
    ("kdump", "Header, 64-bit"): kdump._HEADER_FORMS[8],
    ("kdump", "Header, 32-bit"): kdump._HEADER_FORMS[4],
    ("kdump", "Sub header, 64-bit"): kdump._SUB_HEADER_FORMS["lp64"],
    ("kdump", "Sub header, 32-bit x86"): kdump._SUB_HEADER_FORMS["packed"],
    ("kdump", "Sub header, other 32-bit machines"): kdump._SUB_HEADER_FORMS["aligned"],
    ("elf", "ELF header, 64-bit"): IDENT + elf._HEADER[2],
    ("elf", "ELF header, 32-bit"): IDENT + elf._HEADER[1],
    ("elf", "Section header 0, 64-bit"): elf._SECTION_HEADER_64,
    ("flattened", "Header"): f"{len(flattened.FLAT_SIGNATURE)}s" + flattened._TYPE_AND_VERSION.format.lstrip(">"),
    ("flattened", "Record"): flattened.RECORD.format.lstrip(">"),
    ("raw", "Table header"): raw_table.HEADER.format.lstrip("<"),
}
DTYPES: dict[tuple[str, str], np.dtype[np.void]] = {
    ("kdump", "Page descriptor"): kdump.descriptor_dtype("<"),
    ("elf", "Program header, 64-bit"): elf.program_header_dtype("<"),
    ("elf", "Program header, 32-bit"): elf.program_header_dtype("<", is_64bit=False, entry_bytes=32),
}


def read_tables(name: str) -> dict[str, list[Row]]:
    """Read the tables of a page by their headings: the cells of each row."""
    tables: dict[str, list[Row]] = {}
    for section in re.split(r"^## ", (DOCS / f"{name}.md").read_text(), flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        lines = [line for line in text.splitlines() if line.startswith("|")]
        tables[heading] = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return tables


def places_of(form: str) -> list[Place]:
    """Work out offset and size of each field of a structure."""
    places: list[Place] = []
    at = 0
    for count, letter in re.findall(r"(\d*)([a-zA-Z])", form):
        repeat = int(count or 1)
        for size in [repeat] if letter in "sx" else [struct.calcsize("<" + letter)] * repeat:
            if letter != "x":
                places.append((at, size))
            at += size
    assert at == struct.calcsize("<" + form)
    return places


@pytest.mark.parametrize(("name", "heading"), FORMS)
def test_offsets_are_those_of_the_structure(name: str, heading: str) -> None:
    rows = read_tables(name)[heading]
    assert [(int(row[0]), int(row[1])) for row in rows] == places_of(FORMS[name, heading])
    assert all(row[2] and row[4] for row in rows)


@pytest.mark.parametrize(("name", "heading"), DTYPES)
def test_offsets_are_those_of_the_array(name: str, heading: str) -> None:
    kind = DTYPES[name, heading]
    assert kind.fields is not None
    expected = [[str(kind.fields[field][1]), str(kind.fields[field][0].itemsize), field] for field in kind.names or ()]
    rows = read_tables(name)[heading]
    assert [row[:3] for row in rows] == expected
    assert all(row[4] for row in rows)


def test_every_offset_table_is_checked() -> None:
    for name in ("kdump", "elf", "flattened", "raw"):
        text = (DOCS / f"{name}.md").read_text()
        sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
        tables = {part.partition("\n")[0] for part in sections if "| Offset | Size |" in part}
        assert tables == {heading for page, heading in (*FORMS, *DTYPES) if page == name}


def test_numbers_of_fields_have_the_names_that_the_code_has() -> None:
    rows = read_tables("kdump")["Status and page flags"]
    status = {name: value for name, value in vars(kdump.Status).items() if name.isupper()}
    expected = {str(kind.name): int(kind) for kind in Compression} | status
    assert {row[1]: int(row[0], 16) for row in rows} == expected
    assert struct.calcsize("<" + kdump._HEADER_FORMS[8]) == kdump.HEADER_BYTES
    assert struct.calcsize("<" + kdump._SUB_HEADER_FORMS["lp64"]) == kdump.SUB_HEADER_BYTES
    assert kdump.descriptor_dtype("<").itemsize == kdump.DESCRIPTOR_BYTES
    assert struct.calcsize("<" + IDENT + elf._HEADER[2]) == elf.ELF_HEADER_BYTES
    assert struct.calcsize("<" + elf._SECTION_HEADER_64) == elf.SECTION_HEADER_BYTES
    assert elf._SECTION_INFO[2] == (44, "I")


def test_dumps_on_a_raw_device_are_where_the_page_says() -> None:
    text = (DOCS / "raw.md").read_text()
    assert f"`{RAW_DUMP_SIGNATURE.decode()}`" in text
    assert SWAP_SIGNATURE.hex() == "53574150535041434532"
    offsets = re.findall(r"^(\d+) ([KM])iB ", text, flags=re.MULTILINE)
    assert [int(number) << {"K": 10, "M": 20}[unit] for number, unit in offsets] == [
        *raw_table.TABLE_OFFSETS,
        raw_table.DATA_OFFSET,
    ]
    keys = {row[0].strip("`") for row in read_tables("raw")["Table"]}
    table = raw_table.RawTable(
        1 << 30,
        4096,
        SWAP_SIGNATURE,
        (raw_table.RawEntry("a", writing=raw_table.RawFile("b", raw_table.DATA_OFFSET, 0)),),
    )
    value = json.loads(raw_table._encode(table))
    # The rows between two tables of one section are no keys.
    assert keys - {"Key", "---"} == {*value, *value["dumps"][0]}
