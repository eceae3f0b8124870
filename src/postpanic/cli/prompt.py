"""The interactive prompt: line editing, history, completion; Ctrl-C and Ctrl-D as in a shell."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.shortcuts import CompleteStyle

from postpanic.cli.completions import Completions
from postpanic.cli.session import Session, SessionEndError

__all__ = ["PROMPT", "run_prompt"]

PROMPT = "postpanic> "


class _Completer(Completer):
    def __init__(self, completions: Completions) -> None:
        self._completions = completions

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:  # noqa: ARG002 - prompt_toolkit's signature
        suggestions = self._completions.suggest(document.text_before_cursor)
        return [Completion(text, start_position=-suggestions.replaced) for text in suggestions.texts]


def run_prompt(session: Session, *, history_file: Path) -> None:
    """
    Read and run lines until Ctrl-D, ``q``, ``quit`` or ``exit``.

    Ctrl-C throws away the line that is being typed, or stops the command that
    runs. Lines are remembered in *history_file*, readable by the user alone;
    if it cannot be written, for this session only.
    """
    prompt: PromptSession[str] = PromptSession(
        PROMPT,
        history=_open_history(history_file),
        completer=_Completer(Completions(session.opened)),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        enable_history_search=True,
    )
    while True:
        try:
            line = prompt.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        try:
            session.run_line(line)
        except SessionEndError:
            return
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
        except BrokenPipeError:
            return


def _open_history(path: Path) -> History:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as exc:
        print(f"warning: {path}: {exc.strerror}; lines are not remembered", file=sys.stderr)
        return InMemoryHistory()
    return FileHistory(path)
