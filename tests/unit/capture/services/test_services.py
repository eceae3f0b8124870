"""Boot services: written whole, understood by systemd and the shell, written once, taken away."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import click
import pytest

import postpanic
from postpanic.capture.host import Host
from postpanic.capture.services import ServiceKind, detect_kind, disable, enable, find_enabled
from postpanic.cli.app import main
from postpanic.errors import NotReadyError, OutputError
from postpanic.process import run

PYTHON = Path("/opt/postpanic/bin/python")
MAKERS = {"systemd": "usr/lib/systemd/systemd", "openrc": "sbin/openrc-run", "local.d": "etc/local.d/README"}


@pytest.fixture(params=list(MAKERS))
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    for name in (MAKERS[request.param], "usr/bin/kernel-install"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "etc/kernel/postinst.d").mkdir(parents=True)
    return Host(tmp_path)


def list_all(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or path.is_file())


def test_what_runs_services_is_found(host: Host) -> None:
    assert detect_kind(host) in MAKERS
    assert host.path(MAKERS[detect_kind(host) or ""]).exists()


def test_what_runs_counts_more_than_files(tmp_path: Path) -> None:
    for name in MAKERS.values():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert detect_kind(Host(tmp_path)) == "systemd"
    (tmp_path / "run/openrc").mkdir(parents=True)
    assert detect_kind(Host(tmp_path)) == "openrc"
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert detect_kind(Host(tmp_path)) == "systemd"


def test_nothing_runs_services(tmp_path: Path) -> None:
    assert detect_kind(Host(tmp_path)) is None
    with pytest.raises(NotReadyError, match="nothing that is known runs services"):
        enable(Host(tmp_path))


def test_written_once_and_taken_away(host: Host) -> None:
    before = list_all(host.root)
    change = enable(host, interpreter=PYTHON, tell=("--webhook", "https://example.org/crashes"))
    assert change.kind == detect_kind(host)
    assert {str(path.relative_to(host.root)) for path in change.paths} == set(list_all(host.root)) - set(before)
    assert sorted(find_enabled(host)) == sorted(change.paths)
    assert enable(host, interpreter=PYTHON, tell=("--webhook", "https://example.org/crashes")).paths == ()
    again = enable(host, interpreter=PYTHON)
    assert 0 < len(again.paths) <= 3, "only what tells somebody has changed"
    assert "example.org" not in "".join(path.read_text() for path in find_enabled(host) if not path.is_symlink())
    left = set(list_all(host.root)) - set(before)
    assert {str(path.relative_to(host.root)) for path in disable(host).paths} == left
    assert list_all(host.root) == before
    assert disable(host).paths == ()


def test_scripts_are_scripts(host: Host) -> None:
    change = enable(host, interpreter=PYTHON)
    texts = {path: path.read_text() for path in change.paths if not path.is_symlink()}
    assert any(f"{PYTHON} -m postpanic arm -q" in text for text in texts.values())
    assert any(f"{PYTHON} -m postpanic collect" in text for text in texts.values())
    for path, text in texts.items():
        is_script = text.startswith("#!")
        assert os.access(path, os.X_OK) == is_script
        if is_script:
            run(["sh", "-n", path])
        assert "{" not in text.replace("{\n", "") or "ATTRS{crash_hotplug}" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    place = tmp_path / "usr/lib/systemd/systemd"
    place.parent.mkdir(parents=True)
    place.write_text("")
    enable(Host(tmp_path), kind="systemd", interpreter=Path("/bin/true"), tell=("--command", "/bin/true"))
    units = sorted((tmp_path / "etc/systemd/system").glob("*.service"))
    assert [path.name for path in units] == ["postpanic-collect.service", "postpanic-tell.service", "postpanic.service"]
    finished = run(["systemd-analyze", "verify", "--man=no", *units], check=False)
    said = finished.stderr.decode()
    assert not [line for line in said.splitlines() if "postpanic" in line], said


def test_other_peoples_files_stay(tmp_path: Path) -> None:
    place = tmp_path / "etc/systemd/system/postpanic.service"
    place.parent.mkdir(parents=True)
    place.write_text("[Unit]\n")
    with pytest.raises(OutputError, match="is there already, and not ours"):
        enable(Host(tmp_path), kind="systemd", interpreter=PYTHON)
    assert disable(Host(tmp_path)).paths == ()
    assert place.read_text() == "[Unit]\n"


@pytest.mark.parametrize("word", ["a b", "x;y", "$(id)", "50%"])
def test_words_that_need_quotes_are_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(NotReadyError, match="cannot be put into a service"):
        enable(Host(tmp_path), kind="systemd", interpreter=PYTHON, tell=("--command", word))


@pytest.mark.parametrize("init", ["systemd", "openrc", "local.d"])
def test_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], init: ServiceKind) -> None:
    words = ["service", "--root", str(tmp_path), "--json"]

    def call(*more: str) -> dict[str, object]:
        assert main([*words, *more]) == 0
        value: dict[str, object] = json.loads(capsys.readouterr().out)
        return value

    assert call()["state"] == "not enabled"
    made = call("--enable", "--init", init)
    assert (made["state"], made["init"]) == ("enabled", init)
    assert call()["state"] == "enabled"
    assert call("--disable")["state"] == "disabled"
    assert call()["state"] == "not enabled"
    assert main([*words, "--enable", "--disable"]) == 64
    assert main([*words, "--init", init]) == 64


def test_a_copied_tree_is_found_without_whoever_started_it(tmp_path: Path) -> None:
    library = tmp_path / "lib"
    shutil.copytree(
        Path(postpanic.__file__).parent, library / "postpanic", ignore=shutil.ignore_patterns("__pycache__")
    )
    script = "from postpanic.capture.services import spell_command; print(spell_command())"
    # As an interpreter has it to which nobody has installed postpanic.
    bare = tmp_path / "env"
    run([sys.executable, "-m", "venv", "--without-pip", bare], timeout_s=60)
    packages = next(bare.glob("lib/python3*/site-packages"))
    (packages / "others.pth").write_text(f"{Path(click.__file__).parent.parent}\n")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(library)}
    told = run([bare / "bin/python", "-c", script], env=environment, cwd=tmp_path, timeout_s=60)
    command = told.stdout.decode().strip()
    assert command == f"/usr/bin/env PYTHONPATH={library} {bare}/bin/python -m postpanic"
    shown = run([*command.split(), "service", "--help"], env={"PATH": os.environ["PATH"]}, cwd=Path("/"), timeout_s=60)
    assert shown.stdout.startswith(b"Usage: ")
    by_itself = run([sys.executable, "-c", script], cwd=tmp_path, timeout_s=60)
    assert by_itself.stdout.decode().strip() == f"{sys.executable} -m postpanic"
