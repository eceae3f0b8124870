"""Debian's kdump-config looks at the same machine: all that it shows is in our status, and the state is the same."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.capture.status.distributions import read_assignments
from postpanic.capture.status.model import StatusReport
from postpanic.errors import FactAbsentError, ProcessError
from postpanic.rehearse.programs import resolve_libraries
from postpanic.rehearse.store import PackageStore
from tests.unit.capture.status.machines import StatusTree, arm_debian
from tests.vm.lab import default_cache_dir

SUITES = ("bookworm", "bookworm-security")
MOVED = re.compile(r"(?<![\w$}/-])(/etc/default/kdump-tools|/var/lib/kdump|/var/crash|/sys/kernel|/proc/iomem)")

Show = Callable[[StatusTree], str]


@pytest.fixture(scope="session")
def package() -> Path:
    """Unpack the package; its maintainer's scripts do not run."""
    try:
        _, tree = PackageStore(default_cache_dir(), "unpacked").fetch(SUITES, "kdump-tools", resolve_libraries)
    except (ProcessError, FactAbsentError) as exc:
        pytest.skip(f"kdump-tools is neither in the cache nor to be fetched: {exc}")
    if shutil.which("file") is None:
        pytest.skip("kdump-config needs the program file")
    return tree


@pytest.fixture
def show(package: Path, tmp_path: Path) -> Show:
    """Return a function that runs ``kdump-config show`` on a tree: only the paths in it are moved below the tree."""

    def run(tree: StatusTree) -> str:
        def move(text: str) -> str:
            return MOVED.sub(lambda match: f"{tree.root}{match[1]}", text)

        script = tmp_path / "kdump-config"
        functions = tmp_path / "functions"
        functions.write_text("")
        config = tree.root / "etc/default/kdump-tools"
        kept = config.read_text()
        moved = move((package / "usr/sbin/kdump-config").read_text())
        script.write_text(moved.replace("/lib/lsb/init-functions", str(functions)))
        config.write_text(move(kept))
        try:
            words = ["sh", str(script), "show"]
            shown = subprocess.run(words, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"})
        finally:
            config.write_text(kept)
        return shown.stdout.replace(str(tree.root), "")

    return run


@pytest.fixture
def debian(package: Path, tmp_path: Path) -> StatusTree:
    """Make a machine with the package's own configuration."""
    tree = arm_debian(tmp_path / "root")
    tree.put("etc/default/kdump-tools", (package / "usr/share/kdump-tools/kdump-tools.conf").read_text())
    return tree


def list_facts(shown: str) -> list[str]:
    """List what it says: the values of its lines, links as two paths; below another root they are broken."""
    facts: list[str] = []
    for line in shown.splitlines():
        if match := re.fullmatch(r"\s*(\S+): (?:broken )?symbolic link to (\S+)", line):
            facts += match.groups()
        elif match := re.fullmatch(r"(?:[A-Z_]+|crashkernel addr):\s+(\S.*)", line):
            facts.append(match[1])
        elif line.startswith("  ") and line.strip():
            facts.append(line.strip())
    return [fact for fact in facts if fact != "kdump"]


def spell(report: StatusReport) -> str:
    """Spell everything that is in a report."""
    texts = [text for check in report.checks for text in (check.name, check.found)]
    return "\n".join([*texts, *(f"{fact.source} {fact.says}" for check in report.checks for fact in check.evidence)])


def test_all_that_kdump_config_shows_is_in_the_status(show: Show, debian: StatusTree) -> None:
    shown = show(debian)
    report = debian.examine()
    # The modes are ours to name: of the two the firmware's has a check of its own.
    assert "DUMP_MODE:\t\tkdump" in shown
    assert "current state:    ready to kdump" in shown
    assert report.is_ready
    everything = spell(report)
    facts = list_facts(shown)
    assert len(facts) >= 7
    assert [fact for fact in facts if fact not in everything] == []


def test_both_say_that_nothing_is_loaded(show: Show, debian: StatusTree) -> None:
    debian.put("sys/kernel/kexec_crash_loaded", 0)
    assert "current state:    Not ready to kdump" in show(debian)
    report = debian.examine()
    assert not report.is_ready
    assert report.find("capture kernel", "loaded").mend == "kdump-config unload; kdump-config load"


def test_both_name_the_servers(show: Show, debian: StatusTree) -> None:
    text = (debian.root / "etc/default/kdump-tools").read_text()
    debian.put("etc/default/kdump-tools", text + 'SSH="kdump@vault.example.org"\nSSH_KEY="/root/.ssh/kdump"\n')
    debian.answers = {"vault.example.org": ""}
    facts = list_facts(show(debian))
    assert "kdump@vault.example.org" in facts
    everything = spell(debian.examine())
    assert [fact for fact in facts if fact not in everything and fact != "ip"] == []


def test_a_tool_that_is_switched_off_has_not_armed_the_machine(show: Show, debian: StatusTree) -> None:
    debian.edit("etc/default/kdump-tools", "USE_KDUMP=1", "USE_KDUMP=0")
    debian.put("sys/kernel/kexec_crash_loaded", 0)
    assert "USE_KDUMP:\t\t0" in show(debian)
    assert debian.check("capture kernel", "loaded").mend == "postpanic arm"


ASSIGNMENTS = r"""
A=plain
B="with blanks"   # and a comment
C='single $A "quotes"'
 D=indented
export E=exported
F="in\"side" ; G=not-first
H=a"b c"'d e'f
I="back\\slash \\ \$A \`x\` \n"
J=a\ b\#c
K=hash#inside
L=
M=""
N="folded \
line"
O=first
O=last
#P=comment
Q=#x
R='a'\''b'
S="a=b:c,d/e-f"
"""


def test_assignments_are_read_as_a_shell_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "defaults"
    path.write_text(ASSIGNMENTS)
    names = "ABCDEFHIJKLMNOPQRS"
    script = f". {path}; " + "; ".join(f'printf "%s\\0" "${name}"' for name in names)
    shown = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True, env={})
    found = read_assignments(ASSIGNMENTS)
    assert dict(zip(names, shown.stdout.split("\0"), strict=False)) == {name: found.get(name, "") for name in names}
