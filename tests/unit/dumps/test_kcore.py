from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from postpanic.dumps.kcore import open_kcore
from postpanic.errors import FileFaultError, PostpanicError, UnsupportedError
from postpanic.units import PhysAddr
from tests.builders.elfcore import Segment, build_elf_core, build_note, build_vmcoreinfo_note

PAGE = 4096
NO_PADDR = (1 << 64) - 1
TEXT = b"kernel text".ljust(PAGE, b"t")
RAM = b"memory".ljust(4 * PAGE, b"r")


def build_kcore(*, vmcoreinfo: bool = True, paddrs: bool = True) -> bytes:
    """As fs/proc/kcore.c lays it out: notes of a process and VMCOREINFO, then text, vmalloc, vmemmap, RAM."""
    notes = build_note(b"CORE", 1, bytes(336)) + build_note(b"CORE", 3, bytes(136)) + build_note(b"CORE", 4, bytes(64))
    if vmcoreinfo:
        notes += build_vmcoreinfo_note(b"OSRELEASE=6.12.0-live\nPAGESIZE=4096\n")
    segments = [
        Segment(0x1000000 if paddrs else 0, TEXT, 0xFFFFFFFF81000000),
        Segment(NO_PADDR if paddrs else 0, bytes(PAGE), 0xFFFFC90000000000),
        Segment(NO_PADDR if paddrs else 0, bytes(PAGE), 0xFFFFEA0000000000),
        Segment(0x100000 if paddrs else 0, RAM, 0xFFFF888000100000),
    ]
    return build_elf_core(segments, notes=notes).raw


def test_memory_is_where_segments_of_ram_and_text_say(tmp_path: Path) -> None:
    (tmp_path / "kcore").write_bytes(build_kcore())
    with open_kcore(tmp_path / "kcore") as dump:
        assert dump.ram_ranges.tolist() == [[0x100000, 0x104000], [0x1000000, 0x1001000]]
        assert dump.read(PhysAddr(0x1000000), 11) == b"kernel text"
        assert dump.read(PhysAddr(0x100000), 6) == b"memory"
        assert dump.description.vmcoreinfo.startswith(b"OSRELEASE=6.12.0-live")
        assert not dump.description.warnings
        assert not dump.description.incomplete


def test_kernel_without_the_note_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kcore").write_bytes(build_kcore(vmcoreinfo=False))
    with pytest.raises(PostpanicError):
        open_kcore(tmp_path / "kcore")
    (tmp_path / "kcore").write_bytes(build_elf_core([Segment(0x1000, RAM, 1 << 63)], notes=b"").raw)
    with pytest.raises(UnsupportedError, match="no VMCOREINFO note"):
        open_kcore(tmp_path / "kcore")


def test_kernel_without_physical_addresses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kcore").write_bytes(build_kcore(paddrs=False))
    with pytest.raises(PostpanicError):
        open_kcore(tmp_path / "kcore")


def test_masked_by_a_container(tmp_path: Path) -> None:
    (tmp_path / "kcore").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="empty or not ELF") as caught:
        open_kcore(tmp_path / "kcore")
    assert "container" in caught.value.hint
    with pytest.raises(UnsupportedError, match="empty or not ELF"):
        open_kcore(Path("/dev/null"))
    with pytest.raises(UnsupportedError, match="is not there") as caught:
        open_kcore(tmp_path / "absent")
    assert "CONFIG_PROC_KCORE" in caught.value.hint


@pytest.mark.parametrize(
    ("euid", "lockdown", "hint"),
    [
        (1000, "none integrity [confidentiality]", "run it as root"),
        (0, "none integrity [confidentiality]\n", "lockdown=confidentiality"),
        (0, "none [integrity] confidentiality\n", "CAP_SYS_RAWIO"),
        (0, None, "CAP_SYS_RAWIO"),
    ],
)
def test_refusal_has_its_reason(
    euid: int, lockdown: str | None, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lockdown is not None:
        (tmp_path / "lockdown").write_text(lockdown)

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    with pytest.raises(FileFaultError, match="may not be read") as caught:
        open_kcore(tmp_path / "kcore", lockdown_path=tmp_path / "lockdown")
    assert hint in caught.value.hint


def test_another_error_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(FileFaultError, match="input/output error"):
        open_kcore(tmp_path / "kcore")
