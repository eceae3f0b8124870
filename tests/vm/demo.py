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

from postpanic.capture.initramfs.image import BuiltImage
from postpanic.errors import PostpanicError, ProcessError
from postpanic.process import find_program, start
from postpanic.rehearse.accelerators import detect_accelerator
from postpanic.rehearse.cache import build_once
from tests.vm.captures import OUTPUT, Request, build_capture_image, plan_for, save_capture
from tests.vm.lab import Lab, default_cache_dir, find_missing_programs

__all__ = ["ConsoleFilter", "Demo", "main"]

KERNEL = "6.1"
DUMP = "vmcore"
IMAGE = "capture.img"
COMMANDS = (
    ("Is it whole, and is all in it that a debugger needs?", f"postpanic verify {DUMP}"),
    ("What is in it?", f"postpanic info {DUMP}"),
    ("Who crashed, and where? Nothing but the dump is needed to tell.", f"postpanic open -e bt {DUMP}"),
    ("What did the kernel say last?", f"postpanic dmesg {DUMP} | grep -A 14 'Kernel panic'"),
)
STEPS = 3 + len(COMMANDS)
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
        r"|^lab: (?!\s|Mem:|Swap:)|^crash: |^postpanic: "
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
        request = Request(plan_for(OUTPUT), kernel=KERNEL)
        with self._working("Build the image that captures the crash: the saver, a small Python, a few modules"):
            built = build_capture_image(lab, request)
            size = f"{len(built.data) / (1 << 20):.1f} MiB, {built.unpacked_bytes / (1 << 20):.1f} MiB in memory"
            self._say(f"{built.entries} files, {size}")
        how = "KVM" if detect_accelerator() == "kvm" else "software emulation"
        with self._working(f"Boot the kernel in QEMU ({how}), load it with work, crash it, capture the crash"):
            directory = self._capture(lab, request, built, cached=cached)
            self._say(f"saved {directory / DUMP} ({(directory / DUMP).stat().st_size / (1 << 20):.1f} MiB)")
        for question, line in COMMANDS:
            self._head(question)
            self._run(line, directory)
        self._print(f"\nAll done in {time.monotonic() - started:.0f} s. Open the dump yourself:", style="bold")
        self._print(f"    {_spell_program()} open {directory / DUMP}", style="bold green")

    @staticmethod
    def _capture(lab: Lab, request: Request, built: BuiltImage, *, cached: bool) -> Path:
        def build(target: Path) -> None:
            image = target / IMAGE
            image.write_bytes(built.data)
            save_capture(lab, request, image, target)

        if cached:
            return build_once(lab.cache_dir / "captures", f"{request.kernel}-{built.sha256[:20]}", build)
        return lab.keep_newest("demo", build)

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
