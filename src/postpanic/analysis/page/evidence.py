"""The commands that findings name as evidence, run once each."""

from __future__ import annotations

from collections.abc import Sequence

from postpanic.analysis.commands.language import answer, find_line_command
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.crash_commands import describe_error
from postpanic.analysis.triage import Scene
from postpanic.analysis.workspace import Workspace
from postpanic.findings.page import Line, Output
from postpanic.findings.table import Answer
from postpanic.findings.verdict import Verdict

__all__ = ["LOG_COMMAND", "collect_evidence", "run_line"]

LOG_COMMAND = "log"
_MOST_COMMANDS = 60


def run_line(workspace: Workspace, line: str) -> Answer:
    """
    Run one line of the prompt; pipes and redirections are left away.

    Raises
    ------
    PostpanicError, LookupError
        If the command is not native or was typed wrong, or what it raises itself.
    """
    split, command = find_line_command(workspace, line)
    if command is None:
        raise LookupError(f"no native command {split.name}")
    return answer(workspace, command, split.words, split.source)


def collect_evidence(scene: Scene, verdict: Verdict) -> tuple[Output, ...]:
    """Run each command that findings name as evidence, and remember what they point to in its output."""
    wanted: dict[str, list[str]] = {}
    for finding in verdict.findings:
        for evidence in finding.evidence:
            if evidence.command:
                wanted.setdefault(evidence.command, []).append(evidence.shows)
    return tuple(_run(scene, command, shows) for command, shows in list(wanted.items())[:_MOST_COMMANDS])


def _run(scene: Scene, command: str, shows: Sequence[str]) -> Output:
    pointed = tuple(dict.fromkeys(text for text in shows if text))
    if command == LOG_COMMAND or scene.workspace is None:
        lines = scene.text.decode(errors="backslashreplace").splitlines()
        return Output(command, None, tuple(map(Line, lines)), pointed)
    try:
        return Output(command, run_line(scene.workspace, command), (), pointed)
    except UNREADABLE as exc:
        return Output(command, note=describe_error(exc), shows=pointed)
