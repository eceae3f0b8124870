"""Every command line in the examples of crash's help runs at our prompt, or is refused with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postpanic.analysis.program import OpenedProgram, open_program
from postpanic.cli.session import Session
from postpanic.findings.table import Answer
from tests.compat.answer_schema import find_schema_faults
from tests.compat.crash_examples import REPLACEMENTS, find_places, fit_example
from tests.compat.crash_facts import EXAMPLES
from tests.vm.lab import Crash

pytestmark = pytest.mark.compat

KERNELS = ("6.1", pytest.param("6.12", marks=pytest.mark.matrix))
LINES = tuple(dict.fromkeys(line for lines in EXAMPLES.values() for line in lines))
NOT_RUN = {
    "!modprobe soundcore": "the shell's command, and it would change this machine",
}
REFUSED: dict[str, str] = {
    **dict.fromkeys(("bpf -p 20", "bpf -p 20 -j", "bpf -p 13 -t", "bpf -p 13 -T", "bpf -p 13 -s"), "no program"),
    **dict.fromkeys(("bpf -m 34", "bpf -m 13 -s"), "no map"),
    **dict.fromkeys(("dev -V", "dev -v 0 device_dump_0.bin", "dev -v 1"), "no driver added a device dump"),
    # A process's code is not in a filtered dump, and the lines of the source are in no dump.
    "dis -u 81ec624 10": "left out of the dump",
    **dict.fromkeys(("dis -s mmput", "dis -s 0xffffffff811dcfb4"), "no source line is known"),
    "extend extlib1.so extlib2.so": "no plug-in",
    "extend -u extlib1.so": "is not loaded",
    "ipcs -M ffff880473a28250": "no IPC resource",
    **dict.fromkeys(("kmem -c", "kmem -C", "kmem -c c03576b8"), "no page_hash_table"),
    "log -s": "no such buffers",
    "mach -o": "only on ppc64",
    "mod -d dm_mod": "what was loaded stays",
    "mod -s dm_mod /tmp/dm_mod.ko": "no such file",
    "sys config": "does not carry its configuration",
}
"""What the answer says of an example that is refused, or for which there is nothing in the dump."""


@pytest.fixture(name="session", scope="module", params=KERNELS)
def _session(
    request: pytest.FixtureRequest, crashed: Callable[[str], Crash], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RecordingSession]:
    crash = crashed(request.param)
    with open_program([crash.filtered], cache_directory=tmp_path_factory.mktemp("debuginfo")) as opened:
        yield RecordingSession(opened)


def test_every_replacement_is_needed() -> None:
    """A list that is longer than the examples hides what is not tested."""
    words = {word for line in LINES for word in line.split()}
    assert set(REPLACEMENTS) <= words


class RecordingSession(Session):
    """A session that keeps the answers of its native commands."""

    def __init__(self, opened: OpenedProgram) -> None:
        super().__init__(opened)
        self.answers: list[Answer] = []

    def _show(self, answer: Answer, as_json: bool) -> None:
        self.answers.append(answer)
        super()._show(answer, as_json)


def test_examples_run_or_are_refused(
    session: RecordingSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What they answer is what the commands' JSON Schemas promise."""
    monkeypatch.chdir(tmp_path)
    places = find_places(session.opened.prog)
    wrong = []
    for example in LINES:
        if example in NOT_RUN:
            continue
        line = fit_example(example, places)
        session.answers.clear()
        status = session.run_line(line)
        out, err = capfd.readouterr()
        expected = REFUSED.get(example)
        as_expected = status == 0 if expected is None else status != 0 and re.search(expected, err)
        if not as_expected or "Traceback" in out + err:
            wrong.append(f"{example} -> {line}: {status} {err.strip()[:160]}")
        wrong += [f"{line}: {fault}" for answer in session.answers for fault in find_schema_faults(answer)]
    assert not wrong, "\n".join(wrong)
