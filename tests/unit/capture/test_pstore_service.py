"""The boot service, written into a copy of a host's files, and what systemd-pstore is told to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.capture.host import Host
from postpanic.capture.pstore_service import (
    UNIT,
    PstoreConf,
    disable_service,
    enable_service,
    is_enabled,
    read_pstore_conf,
)
from postpanic.errors import NotReadyError

PYTHON = Path("/opt/postpanic/bin/python")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "usr/lib/systemd/system").mkdir(parents=True)
    (tmp_path / "usr/lib/systemd/systemd").touch()
    return Host(tmp_path, "x86_64", "6.12.0")


def write(host: Host, name: str, text: str) -> None:
    path = host.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def unit_of(host: Host) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for line in host.path(f"etc/systemd/system/{UNIT}").read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals:
            values.setdefault(key, []).append(value)
    return values


def test_enabled_before_systemd_pstore_and_only_with_records(host: Host) -> None:
    change = enable_service(host, erase=True, interpreter=PYTHON)
    assert is_enabled(host)
    unit = unit_of(host)
    assert unit["ConditionDirectoryNotEmpty"] == ["/sys/fs/pstore"]
    assert "systemd-pstore.service" in unit["Before"][0].split()
    assert unit["ExecStart"] == [f"{PYTHON} -m postpanic pstore --archive --erase"]
    assert unit["DefaultDependencies"] == ["no"]
    link = host.path(f"etc/systemd/system/sysinit.target.wants/{UNIT}")
    assert link.resolve() == host.path(f"etc/systemd/system/{UNIT}").resolve()
    assert set(change.paths) == {host.path(f"etc/systemd/system/{UNIT}"), link}


def test_enabled_again_with_other_options(host: Host) -> None:
    enable_service(host, erase=True, interpreter=PYTHON)
    enable_service(host, erase=False, interpreter=PYTHON)
    assert unit_of(host)["ExecStart"] == [f"{PYTHON} -m postpanic pstore --archive"]
    assert is_enabled(host)


def test_disabled_leaves_nothing(host: Host) -> None:
    enable_service(host, erase=True, interpreter=PYTHON)
    assert len(disable_service(host).paths) == 2
    assert not is_enabled(host)
    assert not [path for path in host.path("etc").rglob("*") if path.is_file() or path.is_symlink()]
    assert disable_service(host).paths == ()


def test_without_systemd_there_is_a_hint(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError) as caught:
        enable_service(Host(tmp_path), erase=True)
    assert "--archive --erase" in caught.value.hint


def test_an_interpreter_with_a_path_of_many_words_is_refused(host: Host) -> None:
    with pytest.raises(NotReadyError, match="cannot be put into a service"):
        enable_service(host, erase=True, interpreter=Path("/opt/my programs/python"))


def test_configuration_of_systemd_pstore(host: Host) -> None:
    assert read_pstore_conf(host) == PstoreConf()
    write(host, "usr/lib/systemd/system/systemd-pstore.service", "")
    write(host, "etc/systemd/pstore.conf", "[PStore]\n#Storage=none\nUnlink=no\n")
    assert read_pstore_conf(host) == PstoreConf(storage="external", unlink=False, is_installed=True)
    write(host, "usr/lib/systemd/pstore.conf.d/50-a.conf", "[PStore]\nStorage=none\n")
    write(host, "etc/systemd/pstore.conf.d/50-a.conf", "[PStore]\nStorage=journal\n")
    write(host, "run/systemd/pstore.conf.d/60-b.conf", "[PStore]\nUnlink=yes\n")
    write(host, "run/systemd/pstore.conf.d/70-c.conf", "no section at all\n")
    assert read_pstore_conf(host) == PstoreConf(storage="journal", unlink=True, is_installed=True)


@pytest.mark.parametrize(
    ("conf", "erase", "expected"),
    [
        ("Storage=external\n", True, "finds nothing to do"),
        ("Storage=external\n", False, "moves the records into its archive, too"),
        ("Storage=journal\nUnlink=no\n", False, "copies the records into the journal"),
        ("Storage=none\n", False, "leaves pstore alone"),
    ],
)
def test_what_the_neighbour_does_is_said(host: Host, conf: str, erase: bool, expected: str) -> None:
    write(host, "usr/lib/systemd/system/systemd-pstore.service", "")
    write(host, "etc/systemd/pstore.conf", f"[PStore]\n{conf}")
    assert expected in " ".join(enable_service(host, erase=erase, interpreter=PYTHON).notes)
