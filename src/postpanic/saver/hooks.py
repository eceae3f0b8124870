"""The user's own programs, before and after saving; what becomes of them never costs the dump."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from postpanic.errors import PostpanicError
from postpanic.saver.plan import HookPlan

__all__ = ["run_hooks"]

_SHOWN_CHARACTERS = 400


def run_hooks(hooks: Sequence[HookPlan], say: Callable[[str], None], environment: dict[str, str]) -> None:
    """
    Run programs, one after the other, each for no longer than its time.

    Parameters
    ----------
    environment : dict
        All that they know: ``PATH``, and what the saver wants to tell.
    """
    if not hooks:
        return
    from postpanic.process import run

    for hook in hooks:
        name = hook.command[0]
        try:
            finished = run(hook.command, env=environment, timeout_s=hook.timeout_s, check=False)
        except PostpanicError as exc:
            say(f"hook {name}: {exc.message}")
            continue
        said = (finished.stdout + finished.stderr).decode("utf-8", "replace").strip()[-_SHOWN_CHARACTERS:]
        status = "" if finished.returncode == 0 else f" ended with status {finished.returncode}"
        say(f"hook {name}{status}{': ' if said else ''}{said}" if said or status else f"hook {name}: done")
