"""Faults as the command line has them, and what is excused by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.errors import UsageError
from postpanic.rehearse.faults import Fault, excuse, parse_faults, plan_kill, spell_drive
from postpanic.rehearse.links import Link
from postpanic.saver.plan import FilePlan, HttpPlan, SavePlan

TARGETS = (FilePlan(name="file a"), HttpPlan(name="http b"), FilePlan(name="file c"))
KINDS = tuple(target.kind for target in TARGETS)


def test_the_first_target_is_meant_unless_said() -> None:
    words = ["disk-error", "disk-hang=2", "saver-killed"]
    assert parse_faults(words, KINDS) == (Fault("disk-error", 0), Fault("disk-hang", 2), Fault("saver-killed"))


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("fire", "must be one of disk-error, disk-hang, saver-killed"),
        ("disk-hang=x", "must be KIND=NUMBER"),
        ("disk-hang=", "must be KIND=NUMBER"),
        ("disk-error=1", "target 1 is no disk"),
        ("disk-error=3", "target 3 is no disk"),
        ("disk-error=²", "must be KIND=NUMBER"),
        ("saver-killed=0", "saver-killed is not of one target"),
    ],
)
def test_others_are_refused(word: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_faults([word], KINDS)


def test_a_drive_is_spelled_with_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "d.img"
    assert spell_drive(path, "raw", ()) == f"file={path},format=raw"
    assert "throttling.iops-total=1" in spell_drive(path, "raw", ["disk-hang"])
    assert spell_drive(path, "qcow2", ["disk-error"]) == f"file=blkdebug:{path}.blkdebug:{path},format=qcow2"
    assert 'errno = "5"' in (tmp_path / "d.img.blkdebug").read_text()


def test_the_saver_is_killed_by_a_hook_that_comes_first() -> None:
    plan, files = plan_kill(SavePlan(), "/usr/bin/python3.11")
    (content,) = files.values()
    assert content.startswith(b"#!/usr/bin/python3.11 ")
    assert [hook.command[0] for hook in plan.before] == list(files)


def test_what_broke_by_a_fault_is_excused_only_where_the_dump_is_elsewhere() -> None:
    links = [Link("target file a", "broken", "EIO"), Link("dump file a", "not reached"), Link("saver", "held")]
    faults = [Fault("disk-error", 0)]
    assert excuse(links, faults, TARGETS) == links
    elsewhere = [*links, Link("dump file c", "held")]
    assert [link.state for link in excuse(elsewhere, faults, TARGETS)] == ["faulted", "not reached", "held", "held"]
    assert excuse(elsewhere, [], TARGETS) == elsewhere
