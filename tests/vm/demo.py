"""
Crash a real kernel before the user's eyes, and look at its dump with nothing but the dump.

::

    python -m tests.vm.demo             crash a machine now
    python -m tests.vm.demo --cached    take the dump of the tests, if there is one
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from postpanic.errors import PostpanicError, ProcessError
from postpanic.process import find_program, start
from postpanic.rehearse.machine import detect_accelerator
from tests.vm.lab import Crash, Lab, Recipe, default_cache_dir, find_missing_programs

__all__ = ["ConsoleFilter", "Demo", "main"]

KERNEL = "6.1"
DUMP = "dump"
COMMANDS = (
    ("Leave out what nobody needs, and prove that the rest is enough.", "postpanic filter -f -d 31 {raw} {dump}"),
    ("What is in it?", "postpanic info {dump}"),
    ("Who crashed, and where? Nothing but the dump is needed to tell.", "postpanic open -e bt {dump}"),
    ("What did the kernel say last?", "postpanic dmesg {dump} | grep -A 14 'Kernel panic'"),
)
STEPS = 2 + len(COMMANDS)
WIDTH = 110
INTERRUPTED = 130
TERMINATED = 143


class ConsoleFilter:
    """
    Picks the lines of a guest's console that tell the story.

    Everything between the crash and the first line of the capture kernel is
    one; of two boots the landmarks are.
    """

    LANDMARK = re.compile(
        r"Linux version|\] Command line:|for crashkernel|crashkernel reserved|Run /init|reboot:"
        r"|^lab: (?!\s|Mem:|Swap:)|^crash: "
    )
    CRASH = re.compile(r"sysrq: Trigger a crash|Kernel panic|BUG:|Oops")
    BOOT = re.compile(r"Linux version")

    def __init__(self) -> None:
        self._crashed = False

    def takes(self, line: str) -> bool:
        """Tell whether to show the next line of the console."""
        if self.BOOT.search(line):
            self._crashed = False
        elif self.CRASH.search(line):
            self._crashed = True
        return self._crashed or self.LANDMARK.search(line) is not None


class Demo:
    """What is shown, on a terminal or as plain lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._filter = ConsoleFilter()
        self._step = 0
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._width = console.width if console.is_terminal else WIDTH

    def run(self, *, cached: bool) -> None:
        """
        Go through all steps.

        Raises
        ------
        PostpanicError
            If one of them fails.
        """
        started = time.monotonic()
        missing = find_missing_programs()
        if missing:
            raise ProcessError(f"programs are not installed: {', '.join(missing)}", hint="run scripts/setup-machine")
        lab = Lab(default_cache_dir(), watch=self._show_console_line)
        with self._working("Fetch the kernel of Debian 12, as it is in the archive"):
            kernel = lab.fetch_kernel(KERNEL)
            self._say(f"{kernel.package} {kernel.version}: the image and its modules, no debug information")
        how = "KVM" if detect_accelerator() == "kvm" else "software emulation"
        recipe = Recipe(KERNEL)
        with self._working(f"Boot it in QEMU ({how}), load it with work, crash it, save the dump as kdump does"):
            crash = lab.crash(recipe) if cached else lab.crash_anew(recipe, "demo")
            self._say(f"saved {crash.raw} ({crash.raw.stat().st_size / (1 << 20):.1f} MiB)")
        self._look_at(crash)
        self._print(f"\nAll done in {time.monotonic() - started:.0f} s. Open the dump yourself:", style="bold")
        self._print(f"    {_spell_program()} open {crash.raw.with_name(DUMP)}", style="bold green")

    def _look_at(self, crash: Crash) -> None:
        directory = crash.raw.parent
        for question, line in COMMANDS:
            self._head(question)
            self._run(line.format(raw=crash.raw.name, dump=DUMP), directory)

    def _run(self, line: str, directory: Path) -> None:
        self._print(f"$ {line}", style="bold green")
        self.console.file.flush()
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        bash = find_program("bash")
        with start([bash, "-o", "pipefail", "-c", line], cwd=directory, env={**os.environ, "PATH": path}) as running:
            status = running.wait()
        if status != 0:
            raise ProcessError(f"{line}: exit status {status}")

    @contextlib.contextmanager
    def _working(self, text: str) -> Iterator[None]:
        """Show a step that takes a while: a moving line on a terminal, its time at the end."""
        self._head(text)
        started = time.monotonic()
        columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
        with contextlib.ExitStack() as stack:
            if self.console.is_terminal:
                self._progress = stack.enter_context(Progress(*columns, console=self.console, transient=True))
                self._task = self._progress.add_task("working")
                stack.callback(setattr, self, "_progress", None)
            yield
        self._say(f"{time.monotonic() - started:.0f} s")

    def _show_console_line(self, line: str) -> None:
        line = line.expandtabs()
        cut = line if len(line) <= self._width - 2 else f"{line[: self._width - 3]}…"
        if self._filter.takes(line):
            alarming = ConsoleFilter.CRASH.search(line) is not None
            self._print(f"│ {cut}", style="bold red" if alarming else "cyan")
        elif self._progress is not None:
            self._progress.update(self._task, description=line[: max(10, self._width - 16)])

    def _head(self, text: str) -> None:
        self._step += 1
        self._print(f"\n[{self._step}/{STEPS}] {text}", style="bold")

    def _say(self, text: str) -> None:
        self._print(f"      {text}", style="dim")

    def _print(self, text: str, *, style: str) -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)


def _spell_program() -> str:
    program = Path(sys.executable).parent / "postpanic"
    with contextlib.suppress(ValueError):
        return str(program.relative_to(Path.cwd()))
    return str(program)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    # An exception, so that the machine is ended and what is half built is removed.
    raise SystemExit(TERMINATED)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.vm.demo", description="crash a real kernel, and look at its dump")
    parser.add_argument("--cached", action="store_true", help="take the dump of the tests, if there is one")
    chosen = parser.parse_args(words)
    signal.signal(signal.SIGTERM, _end)
    # A shell starts what it puts into the background with this one ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console = Console(highlight=False)
    try:
        Demo(console).run(cached=chosen.cached)
    except KeyboardInterrupt:
        console.print("\ninterrupted")
        return INTERRUPTED
    except PostpanicError as exc:
        hint = [f"  hint: {exc.hint}"] if exc.hint else []
        print(f"error[{exc.code}]: {exc}", *hint, *getattr(exc, "__notes__", ()), sep="\n", file=sys.stderr)  # noqa: T201
        return exc.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
