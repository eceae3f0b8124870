"""Which link of a rehearsal broke, by what the console says."""

from __future__ import annotations

import pytest

from postpanic.rehearse.links import Link, find_unused, judge_console
from postpanic.rehearse.rehearsal import RehearsalOutcome
from postpanic.saver.plan import BlockPlan, FilePlan, HttpPlan, RawPlan, SavePlan

TARGET = FilePlan(name="file /var/crash on vda1", device=BlockPlan(uuid="x"))
HOST = """[    0.000000] Linux version 6.1.0 (a@b)
rehearsal: kernel 6.1.0
rehearsal: reserved 167772160
rehearsal: loaded file
rehearsal: verified good
rehearsal: crash sysrq
[   17.0] sysrq: Trigger a crash
[   17.0] Kernel panic - not syncing: sysrq triggered crash
"""
BOOTED = "[    0.000000] Linux version 6.1.0 (a@b)\n"
STARTED = "postpanic: saver started, 4.6 s after the capture kernel, 80 MiB of memory free\n"
SAVED = """postpanic: file /var/crash on vda1: log saved
postpanic: file /var/crash on vda1: saved, level 31: /var/crash/host-20261121-200702 on vdb
postpanic: file /var/crash on vda1: self-test passed (11 items)
postpanic: saved: /var/crash/host-20261121-200702 on vdb
postpanic: rebooting
"""


def judge(console: str) -> dict[str, tuple[str, str]]:
    links = judge_console(console, (TARGET,), rehearsed=frozenset({0}))
    return {link.name: (link.state, link.evidence) for link in links}


def test_all_hold() -> None:
    found = judge(HOST + BOOTED + STARTED + SAVED)
    assert {state for state, _ in found.values()} == {"held"}
    assert list(found) == [
        *("boot", "reservation", "load", "verification", "crash", "capture kernel", "saver"),
        *("target file /var/crash on vda1", "self-test file /var/crash on vda1", "reboot"),
    ]
    assert found["reservation"][1] == "160 MiB"
    assert found["target file /var/crash on vda1"][1].startswith("saved, level 31: ")


@pytest.mark.parametrize(
    ("console", "broken", "evidence"),
    [
        ("", "boot", "it ends with: "),
        (HOST.replace("reserved 167772160", "reserved 0"), "reservation", "the kernel reserved nothing"),
        (
            "rehearsal: kernel 6.1.0\nrehearsal: reserved 9999999\nrehearsal: failed: it is not signed\n",
            "load",
            "it is not signed",
        ),
        (
            HOST.replace("verified good", "verified bad; core header: not there"),
            "verification",
            "bad; core header: not there",
        ),
        (HOST.partition("rehearsal: crash")[0], "crash", "the machine did not panic"),
        (HOST, "capture kernel", "it did not come up"),
        (
            HOST + BOOTED + "Kernel panic - not syncing: System is deadlocked on memory\n",
            "saver",
            "out of memory: Kernel panic - not syncing: System is deadlocked on memory",
        ),
        (
            HOST + BOOTED + "Kernel panic - not syncing: Attempted to kill init!\n",
            "saver",
            "the capture kernel panicked: Attempted to kill init!",
        ),
        (
            HOST
            + BOOTED
            + STARTED
            + "postpanic: failed: file /var/crash on vda1: no block device has UUID=x\npostpanic: rebooting\n",
            "target file /var/crash on vda1",
            "no block device has UUID=x",
        ),
        (HOST + BOOTED + STARTED + SAVED.replace("postpanic: rebooting\n", ""), "reboot", "the saver did not"),
        (
            HOST + BOOTED + STARTED + SAVED.replace("self-test passed (11 items)", "self-test failed: no stack"),
            "self-test file /var/crash on vda1",
            "failed: no stack",
        ),
    ],
)
def test_the_broken_link_is_named(console: str, broken: str, evidence: str) -> None:
    found = judge(console)
    first = next(name for name, (state, _) in found.items() if state == "broken")
    assert first == broken
    assert found[first][1].startswith(evidence)


def test_what_lies_behind_a_broken_link_is_not_judged() -> None:
    found = judge(HOST)
    names = list(found)
    behind = names[names.index("capture kernel") + 1 :]
    assert {found[name][0] for name in behind} == {"not reached"}


def test_target_without_a_stand_in_is_not_proven() -> None:
    links = judge_console(HOST + BOOTED + STARTED + "postpanic: rebooting\n", (TARGET,), rehearsed=frozenset())
    (target,) = [link for link in links if link.name.startswith("target ")]
    assert target.state == "not proven"
    outcome = RehearsalOutcome(links=tuple(links))
    assert outcome.broken == target, "nothing at all was shown to be saved"
    other = Link("target file /x", "held")
    assert RehearsalOutcome(links=(*links, other)).broken is None


def test_crash_that_reaches_no_console_is_seen_by_the_capture_kernel() -> None:
    silent = HOST.partition("[   17.0]")[0]
    assert judge(silent + BOOTED + STARTED + SAVED)["crash"] == ("held", "without a word on the console")
    assert judge(silent)["crash"][0] == "broken"


def test_self_test_of_a_raw_device_is_not_proven() -> None:
    target = RawPlan(name="raw x", device=BlockPlan(uuid="x"))
    console = HOST + BOOTED + STARTED + SAVED.replace("file /var/crash on vda1", "raw x").replace("self-test", "x")
    links = {link.name: link for link in judge_console(console, (target,), rehearsed=frozenset({0}))}
    assert links["target raw x"].state == "held"
    assert links["self-test raw x"].state == "not proven"


def test_a_fallback_that_was_not_needed_is_no_broken_link() -> None:
    plan = SavePlan(targets=(TARGET,), fallbacks=(RawPlan(name="raw vdb", device=BlockPlan(name="vdb")),))
    console = HOST + BOOTED + STARTED + SAVED
    assert find_unused(console, plan) == {1: "a fallback that was not needed"}
    links = judge_console(
        console, (*plan.targets, *plan.fallbacks), rehearsed=frozenset({0}), reasons=find_unused(console, plan)
    )
    assert [link for link in links if link.state == "broken"] == []
    used = console.replace(
        "postpanic: saved: ", "postpanic: no target has it: trying the fallback raw vdb\npostpanic: saved: "
    )
    assert find_unused(used, plan) == {}


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        ("no block device with UUID=x within 30 s; there are vda", "another identifier"),
        ("there is no block device at all", "no driver for the disk's controller"),
        ("the network card 52:54:00:12:34:56 is not there", "no driver for the network card"),
        ("no answer for 60 s", "another disk, or on a server"),
        ("cannot mount a:/srv as nfs4: the server has no such export (ENOENT)", "its /etc/exports"),
        ("cannot mount a:/srv as nfs: the server does not export it to this machine (EACCES)", "must have this host"),
        ("the kernel or the server does not know this version of NFS: is a module missing?", "another version"),
    ],
)
def test_what_is_to_be_done_is_said(said: str, mend: str) -> None:
    console = HOST + BOOTED + STARTED + f"postpanic: failed: {TARGET.name}: {said}\npostpanic: rebooting\n"
    links = judge_console(console, (TARGET,), rehearsed=frozenset({0}))
    (broken,) = [link for link in links if link.state == "broken"]
    assert mend in broken.mend


def test_a_server_that_is_away_is_to_be_brought_up() -> None:
    target = HttpPlan(name="http a")
    console = HOST + BOOTED + STARTED + "postpanic: http a: given up: no answer for 60 s\npostpanic: rebooting\n"
    links = judge_console(console, (target,), rehearsed=frozenset({0}))
    (broken,) = [link for link in links if link.state == "broken"]
    assert "the server must be up" in broken.mend


def test_a_saver_that_began_again_leaves_the_self_test_out() -> None:
    again = SAVED.replace(f"postpanic: {TARGET.name}: self-test passed (11 items)\n", "")
    found = judge(HOST + BOOTED + STARTED + "postpanic: trying again: with as little memory as possible\n" + again)
    assert found[f"self-test {TARGET.name}"][0] == "not proven"
    assert not [name for name, (state, _) in found.items() if state == "broken"]


def test_a_dump_that_does_not_fit_says_so() -> None:
    name = TARGET.name
    console = HOST + BOOTED + STARTED
    console += f"postpanic: {name}: level 31 does not fit: no room is left: 8 MiB were free\n"
    console += f"postpanic: {name}: saved, incomplete, level 31: /x\npostpanic: rebooting\n"
    (broken,) = [one for one in judge_console(console, (TARGET,), rehearsed=frozenset({0})) if one.state == "broken"]
    assert broken.evidence == "level 31 does not fit: no room is left: 8 MiB were free; saved, incomplete, level 31: /x"
    assert "make room" in broken.mend


def test_a_dump_that_was_cut_says_so() -> None:
    name = TARGET.name
    console = HOST + BOOTED + STARTED + f"postpanic: {name}: log saved\n"
    console += f"postpanic: {name}: saved, incomplete, level 31: /x\npostpanic: rebooting\n"
    (broken,) = [one for one in judge_console(console, (TARGET,), rehearsed=frozenset({0})) if one.state == "broken"]
    assert broken.evidence == "saved, incomplete, level 31: /x"
    assert "the target was full" in broken.mend
