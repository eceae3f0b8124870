"""``postpanic status``: exit status, text and JSON, of machines below a directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.capture.status.examine import GROUPS
from postpanic.capture.status.model import STATES
from tests.unit.capture.status.machines import RELEASE, StatusTree, arm_debian, arm_machine
from tests.unit.cli.conftest import Outcome

Run = Callable[..., Outcome]
COLORS = "\x1b["


@pytest.fixture
def tree(tmp_path: Path) -> StatusTree:
    return arm_machine(tmp_path)


def test_a_machine_that_is_ready(run_cli: Run, tree: StatusTree) -> None:
    outcome = run_cli("status", "--root", tree.root)
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == "reservation"
    assert "  ok       size          256.0 MiB" in lines
    assert lines[-1].startswith("ready: a crash will be captured")
    assert [line for line in lines if line in GROUPS] == list(GROUPS)
    assert COLORS not in outcome.out


def test_quiet_shows_what_has_to_be_mended(run_cli: Run, tree: StatusTree) -> None:
    assert run_cli("status", "-q", "--root", tree.root).out == "ready: a crash will be captured\n"
    tree.put("sys/kernel/kexec_crash_loaded", 0)
    outcome = run_cli("status", "-q", "--root", tree.root)
    assert outcome.status == 4
    assert outcome.out.splitlines() == [
        "capture kernel",
        "  FAILING  loaded        no capture kernel",
        "                         /sys/kernel/kexec_crash_loaded: 0",
        "                         mend: postpanic arm",
        "",
        "not ready: no capture kernel (capture kernel, loaded)",
    ]


def test_verbose_shows_the_evidence_of_everything(run_cli: Run, tree: StatusTree) -> None:
    brief, verbose = (run_cli("status", *words, "--root", tree.root).out for words in ([], ["-v"]))
    assert f"/boot/config-{RELEASE}: CONFIG_PROC_VMCORE=y" in verbose
    assert f"/boot/config-{RELEASE}: CONFIG_PROC_VMCORE=y" not in brief


def test_json_has_every_condition_with_its_evidence(run_cli: Run, tree: StatusTree) -> None:
    tree.put("proc/sys/kernel/panic", 0)
    outcome = run_cli("status", "--json", "--root", tree.root)
    assert outcome.status == 0
    report = json.loads(outcome.out)
    assert {key: report[key] for key in ("version", "node", "release", "armed_by", "ready")} == {
        "version": 1,
        "node": "crashy.example.org",
        "release": RELEASE,
        "armed_by": "postpanic",
        "ready": True,
    }
    assert report["verdict"] == "ready: a crash will be captured (1 warning)"
    for check in report["checks"]:
        assert set(check) == {"group", "name", "state", "found", "evidence", "mend", "needs_root"}
        assert check["state"] in STATES
        assert all(set(fact) == {"source", "says"} for fact in check["evidence"])
    (warning,) = [check for check in report["checks"] if check["state"] == "warning"]
    assert warning["evidence"] == [{"source": "/proc/sys/kernel/panic", "says": "0"}]
    assert warning["mend"].startswith("sysctl -w kernel.panic=10")


def test_strict_takes_a_warning_for_not_ready(run_cli: Run, tree: StatusTree) -> None:
    assert run_cli("status", "--strict", "--root", tree.root).status == 0
    tree.put("proc/sys/kernel/panic", 0)
    assert run_cli("status", "--root", tree.root).status == 0
    assert run_cli("status", "--strict", "--root", tree.root).status == 4


def test_a_machine_of_another_tool(run_cli: Run, tmp_path: Path) -> None:
    tree = arm_debian(tmp_path)
    report = json.loads(run_cli("status", "--json", "--root", tree.root).out)
    assert (report["ready"], report["armed_by"]) == (True, "kdump-tools")


def test_a_broken_configuration_is_the_machines_unless_it_was_named(run_cli: Run, tree: StatusTree) -> None:
    tree.put("etc/postpanic.toml", "[dump]\nlevle = 1\n")
    outcome = run_cli("status", "-q", "--root", tree.root)
    assert (outcome.status, outcome.err) == (4, "")
    assert "FAILING  configuration  dump.levle is not known" in outcome.out
    named = run_cli("status", "--root", tree.root, "--config", tree.root / "etc/postpanic.toml")
    assert (named.status, named.out) == (64, "")
    assert "dump.levle is not known" in named.err


def test_a_tree_without_a_running_kernel_needs_one_that_is_named(run_cli: Run, tmp_path: Path) -> None:
    for release in ("6.1.0", "6.12.0"):
        (tmp_path / "lib/modules" / release).mkdir(parents=True)
    outcome = run_cli("status", "--root", tmp_path)
    assert outcome.status == 64
    assert "its modules are of: 6.1.0, 6.12.0" in outcome.err
    outcome = run_cli("status", "--root", tmp_path, "--kernel", "6.12.0")
    assert outcome.status == 4
    assert "not known to be ready" in outcome.out


def test_what_a_file_holds_does_not_steer_the_terminal(run_cli: Run, tree: StatusTree) -> None:
    tree.put("proc/sys/kernel/printk", "\x1b[2J\x07 7")
    tree.put("proc/cmdline", "crashkernel=256M console=\x1b]0;owned\x07")
    out = run_cli("status", "-v", "--root", tree.root).out
    assert not {char for char in out if not char.isprintable()} - {"\n"}


def test_this_machine_is_looked_at(run_cli: Run) -> None:
    outcome = run_cli("status", "--json", "--offline")
    report = json.loads(outcome.out)
    assert outcome.err == ""
    assert outcome.status == (0 if report["ready"] else 4)
    assert {check["group"] for check in report["checks"]} == set(GROUPS)
