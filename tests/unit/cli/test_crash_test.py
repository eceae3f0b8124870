"""``postpanic crash-test`` on a copy of a host's files, where the trigger is a file like any other."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.capture.crashing import KINDS, CrashKind, check_kind, trigger_crash
from postpanic.capture.host import Host
from postpanic.cli import crash_test
from postpanic.errors import NotReadyError, PostpanicError
from tests.unit.capture.kexec.loaded_host import LINE, LoadedHost
from tests.unit.cli.conftest import Outcome

NODE = os.uname().nodename


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Take the place of the running host, so that nothing here can reach its trigger."""
    host = LoadedHost(files={"proc/sysrq-trigger": "", "proc/sys/kernel/panic": "10\n"}).build(tmp_path)
    monkeypatch.setattr(Host, "running", classmethod(lambda _: host))
    return host


def trigger_of(host: Host) -> str:
    return host.path("proc/sysrq-trigger").read_text()


def test_dry_run_says_what_would_happen(host: Host, run_cli: Callable[..., Outcome]) -> None:
    outcome = run_cli("crash-test", "--dry-run")
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert lines[0] == "  ok  loaded         4.0 MiB reserved"
    assert f"{NODE} (6.1.0-test) will crash: the SysRq command c, a panic in the writing process." in lines
    assert "The capture kernel saves the dump" in outcome.out
    assert trigger_of(host) == ""


def test_json_of_a_dry_run(host: Host, run_cli: Callable[..., Outcome]) -> None:
    value = json.loads(run_cli("crash-test", "--dry-run", "--json").out)
    assert (value["node"], value["kind"], value["outcome"]) == (NODE, "sysrq", "good")
    assert {"name": "loaded", "outcome": "good", "evidence": "4.0 MiB reserved"} in value["checks"]
    assert trigger_of(host) == ""


def test_what_was_armed_is_compared(host: Host, run_cli: Callable[..., Outcome]) -> None:
    boot_id = host.path("proc/sys/kernel/random/boot_id")
    boot_id.parent.mkdir(parents=True)
    boot_id.write_text("this-boot\n")
    state = {"schema_version": 1, "kernel": str(host.find_kernel_image()), "command_line": LINE, "boot_id": "this-boot"}
    place = host.path("var/lib/postpanic/armed.json")
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(state))
    (place.parent / "capture.img").write_bytes(host.path("initrd").read_bytes())
    outcome = run_cli("crash-test", "--dry-run")
    assert outcome.status == 0
    assert "not compared" not in outcome.out
    (place.parent / "capture.img").write_bytes(b"another")
    outcome = run_cli("crash-test", "--dry-run")
    assert outcome.status == 4
    assert "BAD  initramfs" in outcome.out


def test_nothing_loaded_is_refused(host: Host, run_cli: Callable[..., Outcome]) -> None:
    host.path("sys/kernel/kexec_crash_loaded").write_text("0\n")
    outcome = run_cli("crash-test", "--yes-crash", NODE)
    assert outcome.status == 4
    assert "no dump would come of it: loaded: no capture kernel is loaded" in outcome.err
    assert "--force" in outcome.err
    assert "the machine reboots after 10 s (kernel.panic is 10)" in outcome.out
    assert trigger_of(host) == ""
    assert run_cli("crash-test", "--dry-run", "--force").status == 0


def test_what_cannot_be_verified_is_refused(host: Host, run_cli: Callable[..., Outcome]) -> None:
    host.path("proc/kcore").unlink()
    outcome = run_cli("crash-test", "--yes-crash", NODE)
    assert outcome.status == 4
    assert "not verified" in outcome.err
    assert trigger_of(host) == ""


def test_nobody_to_ask(host: Host, run_cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{NODE}\n"))
    outcome = run_cli("crash-test")
    assert outcome.status == 64
    assert f"--yes-crash {NODE}" in outcome.err
    assert trigger_of(host) == ""


def test_name_of_another_machine(host: Host, run_cli: Callable[..., Outcome]) -> None:
    outcome = run_cli("crash-test", "--yes-crash", "elsewhere")
    assert outcome.status == 64
    assert f"this machine is {NODE}" in outcome.err
    assert outcome.out == ""
    assert trigger_of(host) == ""


@pytest.mark.parametrize("typed", ["", "y", "yes", NODE.upper() + "x"])
def test_anything_but_the_name_is_no(
    typed: str, host: Host, run_cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "r") as terminal, os.fdopen(ours, "wb", buffering=0) as keyboard:
        keyboard.write(typed.encode() + b"\n")
        monkeypatch.setattr("sys.stdin", terminal)
        outcome = run_cli("crash-test")
    assert outcome.status == 64
    assert "Type the machine's name" in outcome.err
    assert "not crashed" in outcome.err
    assert trigger_of(host) == ""


def test_confirmed_crash_writes_the_command(
    host: Host, run_cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "sysrq", CrashKind("sysrq", "a test", "proc/sysrq-trigger", "c", wait_s=0.0))
    monkeypatch.setattr(crash_test, "SYNC_TIMEOUT_S", 0.0)
    outcome = run_cli("crash-test", "--yes-crash", NODE)
    assert trigger_of(host) == "c"
    assert outcome.status == 1
    assert "still alive 0 s after" in outcome.err


def test_kinds_that_would_do_nothing(host: Host) -> None:
    with pytest.raises(NotReadyError, match="provoke-crash/DIRECT is not there") as caught:
        check_kind(host, KINDS["softlockup"])
    assert "lkdtm" in caught.value.hint
    place = host.path("sys/kernel/debug/provoke-crash/DIRECT")
    place.parent.mkdir(parents=True)
    place.write_text("")
    with pytest.raises(NotReadyError, match=r"kernel\.softlockup_panic is 0"):
        check_kind(host, KINDS["softlockup"])
    host.path("proc/sys/kernel/softlockup_panic").write_text("1\n")
    check_kind(host, KINDS["softlockup"])
    check_kind(host, KINDS["panic"])
    with pytest.raises(NotReadyError, match="only root"):
        check_kind(Host(host.root, "x86_64", "6.1.0", is_root=False), KINDS["sysrq"])
    with pytest.raises(PostpanicError, match="cannot crash by null"):
        trigger_crash(Host(host.root / "nowhere"), KINDS["null"])


def test_kinds_of_the_option_are_all_there_are() -> None:
    assert set(crash_test.KIND_NAMES) == set(KINDS)
