"""The serial log of every crash that the lab makes tells what happened, as the log in its dump does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from postpanic.evidence.oops import Kind, Report, find_reports
from tests.vm.evidence_texts import read_dump_log
from tests.vm.guest import SCENARIOS_DIR
from tests.vm.lab import Crash, Lab


@dataclass(frozen=True)
class Expected:
    """What a scenario's report says; *is_shown*: on the console too, before the capture kernel runs."""

    kind: Kind
    function: str
    comm: str
    is_panic: bool = False
    is_shown: bool = True


SYSRQ = Expected(Kind.SYSRQ, "sysrq_handle_crash", "panic-maker", is_panic=True)
EXPECTED = {
    **dict.fromkeys(("sysrq-c", "filter-load", "locked", "many-tasks", "views"), SYSRQ),
    # Oopses do not get as far as their panic: the capture kernel runs before.
    "module-null": Expected(Kind.NULL_DEREFERENCE, "dummy_xmit", "packet-sender"),
    "module-call": Expected(Kind.NULL_DEREFERENCE, "dummy_xmit", "packet-sender"),
    "module-recursion": Expected(Kind.STACK_OVERFLOW, "dummy_xmit", "packet-sender", is_shown=False),
    "irq-null": Expected(Kind.NULL_DEREFERENCE, "skb_recv_done", ""),
    "nmi": Expected(Kind.NMI, "", "", is_panic=True, is_shown=False),
    # 6.12 finds pages bad that a process has declared so.
    "memory-kinds": Expected(Kind.SYSRQ, "sysrq_handle_crash", "panic-maker", is_panic=True),
}
CRASHES = [
    *((kernel, "sysrq-c") for kernel in ("5.10", "6.1", "6.12", "newest")),
    *(("6.1", scenario) for scenario in ("module-null", "module-call", "module-recursion", "nmi", "views")),
    *(("6.12", scenario) for scenario in ("irq-null", "locked", "views")),
]


def _check(reports: list[Report], expected: Expected, where: str) -> Report:
    assert [report.kind for report in reports] == [expected.kind], where
    (report,) = reports
    assert report.is_panic == expected.is_panic, where
    assert report.comm == expected.comm or not expected.comm, where
    if expected.function:
        # Where a function calls itself its callers are blamed too.
        assert expected.function in [blame.function for blame in report.blame[:3]], where
    assert report.damage == (), where
    return report


@pytest.mark.parametrize(("kernel", "scenario"), CRASHES)
def test_console_and_dump_say_the_same(crashed: Callable[..., Crash], kernel: str, scenario: str) -> None:
    crash = crashed(kernel, scenario=scenario)
    expected = EXPECTED[scenario]
    logged = _check(find_reports(read_dump_log(crash.raw)), expected, "dump")
    assert logged.release == crash.release
    shown = find_reports(crash.console.read_bytes())
    if not expected.is_shown:
        assert shown == []
        return
    assert _check(shown, expected, "console").signature == logged.signature


def test_every_console_in_the_cache(crash_lab: Lab, crashed: Callable[..., Crash]) -> None:
    crashed("6.1")
    consoles = sorted(crash_lab.cache_dir.glob("dumps/[!.]*/console.log"))
    assert consoles
    for console in consoles:
        scenario = _scenario_of(console.parent)
        reports = find_reports(console.read_bytes())
        expected = EXPECTED.get(scenario)
        where = f"{console}: {[report.title for report in reports]}"
        if scenario == "memory-kinds":
            assert reports[0].kind in {Kind.SYSRQ, Kind.BAD_PAGE}, where
            assert all(report.is_panic for report in reports), where
        elif expected is None:
            assert reports, where
        elif expected.is_shown:
            _check(reports, expected, where)
        else:
            assert reports == [], where


def _scenario_of(entry: Path) -> str:
    """Return the scenario that an entry of the cache is named after: ``RELEASE-SCENARIO-KIND-DIGEST``; of x86-64."""
    if "-arm64-" in entry.name:
        return ""
    names = [path.stem for path in SCENARIOS_DIR.glob("*.sh") if f"-{path.stem}-" in entry.name]
    return max(names, key=len, default="")
