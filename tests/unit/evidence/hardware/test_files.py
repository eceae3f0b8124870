"""Files of binary records, and reports that are explained by the errors beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.cli.app import main
from postpanic.errors import FileFaultError
from postpanic.evidence.hardware import (
    Part,
    decode_record_file,
    explain_reports,
    find_hardware_errors,
    is_record_file,
)
from postpanic.evidence.oops import Kind, find_reports
from tests.builders import cper
from tests.unit.evidence.hardware import logs
from tests.unit.evidence.hardware.logs import stamped

MEMORY = cper.record([(cper.MEMORY, cper.memory_section(error_type=3, node=1))])
PCIE = cper.record([(cper.PCIE, cper.pcie_section(uncorrectable=1 << 20))])
MCE = cper.struct_mce(status=0xBE00000000800400, cpuid=0x50657, bank=3)


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        (MEMORY, "anything", True),
        (MCE, "mce-erst-7710718605704298497", True),
        (MCE, "anything", False),
        (b"CPER, the format", "notes.txt", False),
        (bytes(64), "BERT", True),
        (b"[    0.000000] Linux", "dmesg-erst-1", False),
    ],
)
def test_which_files_hold_records(data: bytes, name: str, expected: bool) -> None:
    assert is_record_file(data[:64], name) is expected


def test_several_records_in_one_file() -> None:
    errors = decode_record_file(MEMORY + bytes(5000) + PCIE + bytes(100), "x")
    assert [error.part for error in errors] == [Part.MEMORY, Part.PCIE]


def test_damaged_record_ends_the_list_or_is_an_error() -> None:
    assert len(decode_record_file(MEMORY + PCIE[:100], "x")) == 1
    with pytest.raises(FileFaultError, match=r"x\+0x0"):
        decode_record_file(MEMORY[:100], "x")


def test_machine_check_of_pstore() -> None:
    (error,) = decode_record_file(MCE, "mce-erst-1")
    assert error.part is Part.PROCESSOR
    with pytest.raises(FileFaultError, match="88 to 4096 bytes, this has 10"):
        decode_record_file(MCE[:10], "mce-erst-1")


def test_boot_error_records() -> None:
    block = cper.status_block([(cper.MEMORY, cper.memory_section(error_type=3))], severity=cper.FATAL)
    assert len(decode_record_file(block + block + bytes(500), "BERT")) == 2


def test_report_of_a_machine_check_says_which_part_failed() -> None:
    text = stamped(logs.AER_OLD + logs.FATAL)
    (report,) = explain_reports(find_reports(text), find_hardware_errors(text))
    assert report.kind is Kind.MACHINE_CHECK
    assert report.details["hardware_part"] == "memory"
    assert report.details["hardware_what"].startswith("bad data was loaded")
    assert report.details["hardware_verdict"].startswith("hardware (confidence medium): ")


def test_other_reports_stay_as_they_are() -> None:
    text = stamped(logs.AER_OLD) + b"[  101.000000] BUG: unable to handle page fault for address: 0000000000001000\n"
    reports = find_reports(text)
    assert explain_reports(reports, find_hardware_errors(text)) == reports


def test_decode_shows_registers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "--mce", "bank=17,status=dc2040000000011b,ipid=9600350f00", "--cpu", "AMD:0x19:1"]) == 0
    shown = capsys.readouterr().out
    assert "Unified Memory Controller: DRAM ECC error" in shown
    assert "channel 3" in shown


@pytest.mark.parametrize(
    "words", [["--mce", "xyz"], ["--cpu", "Intel"], ["--mce", "1", "/dev/null"], ["--mce", "1", "--cpu", "x"]]
)
def test_decode_refuses_registers_that_are_none(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", *words]) == 64
    assert capsys.readouterr().err.startswith("error[usage]")


def test_decode_takes_files_of_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mce-erst-5"
    path.write_bytes(MCE)
    assert main(["decode", str(path)]) == 0
    assert "internal timer error" in capsys.readouterr().out


def test_decode_joins_reports_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(stamped(logs.FATAL))
    assert main(["decode", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "KIND: machine-check" in shown
    assert "Hardware: parts that failed" in shown


def test_decode_of_errors_without_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(stamped(logs.AER_OLD))
    assert main(["decode", str(path)]) == 0
    assert capsys.readouterr().out.startswith("Hardware: parts that failed")
