"""
A virtual machine that is there to crash: QEMU, its serial console and its monitor.

Deadlines are meant for software emulation on an idle machine, and stretch with
the load of the host.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import (
    PIPE,
    Popen,  # noqa: TID251 - only the type of what process.start() returns
    TimeoutExpired,
)
from types import TracebackType
from typing import Literal, Self

from postpanic.errors import ProcessError, UsageError
from postpanic.process import find_program, start
from postpanic.rehearse.accelerators import Accelerator, detect_accelerator
from postpanic.rehearse.console import join_lines
from postpanic.rehearse.qmp import Monitor

__all__ = [
    "Disk",
    "Machine",
    "MachineConfig",
    "MachineError",
    "build_command",
    "build_console_command",
    "scale_timeout",
]

MemoryFormat = Literal["elf", "kdump-zlib", "kdump-lzo", "kdump-snappy"]

POLL_S = 0.1
TAIL_LINES = 25
TERMINATE_TIMEOUT_S = 5.0
MEMORY_DUMP_TIMEOUT_S = 120.0
STUCK_S = 20.0
"""Silence of a kernel that has not come to its first program; see :meth:`Machine.wait_for`."""
HEADROOM = 4.0
LOAD_LIMIT = 4.0
_HINT = "install qemu-system-x86"

_EARLY = re.compile(r"^\[ {0,4}\d\.\d{6}\]")
_BOOTED = "Run /init as init process"


class MachineError(ProcessError):
    """
    The virtual machine did not do what was expected of it.

    Attributes
    ----------
    command : str
        QEMU's command, as it can be pasted into a terminal.
    console_tail : str
        The last lines of the guest's console.
    """

    code = "machine-failed"

    def __init__(self, message: str, *, command: str, console_tail: str, where: str = "", hint: str = "") -> None:
        last = console_tail.rstrip().rsplit("\n", 1)[-1].strip()
        super().__init__(f"{message}; the console ends with {last!r}", where=where, hint=hint)
        self.command = command
        self.console_tail = console_tail
        self.add_note(f"command: {command}\nconsole:\n{console_tail}")


@dataclass(frozen=True)
class Disk:
    """A disk of the guest: a raw image of the host."""

    path: Path
    read_only: bool = False


@dataclass(frozen=True)
class MachineConfig:
    """
    What the machine is made of.

    Attributes
    ----------
    kernel, initrd : Path or None
        Loaded by QEMU itself, without a boot loader; without them the firmware boots from the first disk.
    command_line : str
        The kernel's; name the serial console in it.
    disks : tuple of Disk
        In order ``/dev/vda``, ``/dev/vdb``, ...
    cpu : str
        QEMU's CPU model. ``max`` alone turns 5-level paging on.
    network : bool
        Whether to have a network card, in a network of its own.
    is_isolated : bool
        Whether that network ends there; else the guest reaches the host's loopback interface as 10.0.2.2.
    vmcoreinfo : bool
        Whether the guest can tell QEMU where its VMCOREINFO is.
    extra : tuple of str
        More words for QEMU's command.
    program : str
        QEMU's, for the machine's architecture.
    dtb : Path, optional
        The machine's device tree, where QEMU is not to make it.
    """

    kernel: Path | None
    initrd: Path | None
    command_line: str
    disks: tuple[Disk, ...] = ()
    memory_mib: int = 1024
    cpus: int = 2
    cpu: str = "max,la57=off"
    machine: str = "pc"
    network: bool = False
    is_isolated: bool = True
    vmcoreinfo: bool = True
    extra: tuple[str, ...] = ()
    program: str = "qemu-system-x86_64"
    dtb: Path | None = None

    @property
    def architecture(self) -> str:
        """The machine's, as ``uname -m`` has it."""
        return self.program.rpartition("-")[2]


def build_command(config: MachineConfig, console: Path, accelerator: Accelerator) -> list[str]:
    """
    Spell QEMU's command: no defaults, console into a file, monitor on standard input and output.

    Raises
    ------
    UsageError
        If a path has a comma, which QEMU's options cannot carry as it is.
    """
    words = [config.program, "-M", config.machine, "-cpu", config.cpu]
    words += ["-accel", "kvm" if accelerator == "kvm" else "tcg,thread=multi"]
    words += ["-m", str(config.memory_mib), "-smp", str(config.cpus)]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-qmp", "stdio", "-serial", f"file:{_option_path(console)}"]
    if config.kernel is not None:
        words += ["-kernel", str(config.kernel), "-append", config.command_line]
    words += ["-dtb", str(config.dtb)] if config.dtb else []
    if config.initrd is not None:
        words += ["-initrd", str(config.initrd)]
    for number, disk in enumerate(config.disks):
        # What the guest wrote outlives QEMU, not a power cut of the host: no need to sync.
        mode = "readonly=on" if disk.read_only else "cache=unsafe"
        words += ["-drive", f"file={_option_path(disk.path)},format=raw,if=none,id=disk{number},{mode}"]
        words += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    if config.network:
        isolation = "on" if config.is_isolated else "off"
        words += ["-netdev", f"user,id=net0,restrict={isolation}", "-device", "virtio-net-pci,netdev=net0,romfile="]
    if config.vmcoreinfo:
        words += ["-device", "vmcoreinfo"]
    return [*words, *config.extra]


def build_console_command(config: MachineConfig, accelerator: Accelerator) -> list[str]:
    """Spell QEMU's command for a machine whose console is the terminal; Ctrl-A x ends it."""
    words = build_command(config, Path("console"), accelerator)
    first = words.index("-qmp")
    return [*words[:first], "-serial", "mon:stdio", *words[first + 4 :]]


def _option_path(path: Path) -> str:
    if "," in str(path):
        raise UsageError(f"qemu cannot take a path with a comma: {str(path)!r}")
    return str(path)


def scale_timeout(timeout_s: float) -> float:
    """Stretch a time measured on an idle machine: four times, and more as the host is overloaded."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return timeout_s * HEADROOM * min(max(1.0, load), LOAD_LIMIT)


class Machine:
    """
    A running virtual machine; a context manager that always ends QEMU.

    Parameters
    ----------
    directory : Path
        Where ``console.log`` and QEMU's messages go.
    watch : callable, optional
        Gets every whole line of the console, while somebody waits for one.

    Raises
    ------
    MachineError
        From every method, if QEMU or the guest fails.
    """

    def __init__(
        self,
        config: MachineConfig,
        directory: Path,
        *,
        accelerator: Accelerator | None = None,
        watch: Callable[[str], object] | None = None,
    ) -> None:
        self.config = config
        self._watch = watch
        self._lines_shown = 0
        self.console = directory / "console.log"
        self._messages = directory / "qemu.log"
        self._accelerator = accelerator or detect_accelerator(config.architecture)
        self.command = build_command(config, self.console, self._accelerator)
        self._printed, self._printed_s = 0, time.monotonic()
        self._is_second_try = False
        self._process: Popen[bytes] | None = None
        self._monitor: Monitor | None = None

    def __enter__(self) -> Self:
        self.console.write_bytes(b"")
        self._lines_shown = 0
        self._printed, self._printed_s = 0, time.monotonic()
        with self._messages.open("wb") as messages:
            self._process = start(
                _tie_to_us([find_program(self.command[0], hint=_HINT), *self.command[1:]]),
                stdin=PIPE,
                stdout=PIPE,
                stderr=messages,
            )
        try:
            self._connect()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def pid(self) -> int:
        """The process ID of QEMU."""
        return self._started().pid

    def read_console(self) -> str:
        """Return all that the guest has printed so far, each line in one piece."""
        return join_lines(self.console.read_bytes().decode(errors="replace").replace("\r\n", "\n"))

    def wait_for(self, pattern: str, *, timeout_s: float, failure: str | None = None) -> re.Match[str]:
        """
        Wait until the console matches *pattern* (a multi-line regular expression).

        Emulation loses a guest now and then while its kernel starts the second
        processor or changes its clock. One that falls silent that early is
        started again, once: it has not written anything yet.

        Parameters
        ----------
        timeout_s : float
            On an idle machine; see :func:`scale_timeout`.
        failure : str, optional
            A pattern that ends the wait at once, in failure.
        """
        deadline = time.monotonic() + scale_timeout(timeout_s)
        while True:
            # The state first: what a machine that has ended printed last must not be missed.
            running = self._running()
            text = self.read_console()
            self._show(text)
            found = re.search(pattern, text, re.MULTILINE)
            if found:
                return found
            failed = re.search(failure, text, re.MULTILINE) if failure else None
            if failed:
                raise self._error(f"the guest reports: {failed[0]}")
            if not running:
                raise self._error(f"the machine ended before the console had {pattern!r}")
            if self._is_stuck(text):
                self._is_second_try = True
                self._end()
                self.__enter__()
                deadline = time.monotonic() + scale_timeout(timeout_s)
            if time.monotonic() > deadline:
                raise self._error(f"{pattern!r} not on the console within {scale_timeout(timeout_s):.0f} s")
            time.sleep(POLL_S)

    def _is_stuck(self, text: str) -> bool:
        """Tell whether the kernel has fallen silent before its first program."""
        if len(text) != self._printed:
            self._printed, self._printed_s = len(text), time.monotonic()
        if (
            self._is_second_try
            or self._accelerator != "tcg"
            or time.monotonic() - self._printed_s < scale_timeout(STUCK_S)
        ):
            return False
        return _BOOTED not in text and _EARLY.match(text.rstrip().rsplit("\n", 1)[-1]) is not None

    def _show(self, text: str) -> None:
        if self._watch is None:
            return
        lines = text.split("\n")[:-1]
        for line in lines[self._lines_shown :]:
            self._watch(line)
        self._lines_shown = len(lines)

    def wait_exit(self, *, timeout_s: float) -> None:
        """Wait until the machine has powered off, or was reset, which ends it too."""
        process = self._started()
        try:
            status = process.wait(scale_timeout(timeout_s))
        except TimeoutExpired:
            raise self._error("the machine is still running after its time") from None
        if status != 0:
            raise self._error(f"qemu ended with status {status}")

    def dump_memory(self, path: Path, *, form: MemoryFormat = "elf") -> None:
        """Have QEMU write the guest's physical memory: an ELF file, or a flattened kdump-compressed one."""
        arguments = {"paging": False, "protocol": f"file:{path}", "format": form}
        self._execute("dump-guest-memory", arguments, timeout_s=scale_timeout(MEMORY_DUMP_TIMEOUT_S))

    def resize_memory(self, size_bytes: int) -> None:
        """Ask the guest's balloon to leave it this much memory; the guest does so when its driver gets to it."""
        self._execute("balloon", {"value": size_bytes})

    def inject_nmi(self) -> None:
        """Send a non-maskable interrupt to the guest's CPUs."""
        self._execute("inject-nmi")

    def pause(self) -> None:
        """Stop the guest's CPUs; its disks hold still then."""
        self._execute("stop")

    def resume(self) -> None:
        """Let a guest that was paused go on."""
        self._execute("cont")

    @property
    def is_running(self) -> bool:
        """Whether QEMU has not ended yet."""
        return self._running()

    def reset(self) -> None:
        """Press the reset button; with this machine's ``-no-reboot`` it ends."""
        self._execute("system_reset")

    def _execute(self, command: str, arguments: dict[str, object] | None = None, timeout_s: float = 30.0) -> None:
        if self._monitor is None:
            raise self._error("not started")
        try:
            self._monitor.execute(command, arguments, timeout_s=timeout_s)
        except ProcessError as exc:
            raise self._error(exc.message) from exc

    def _connect(self) -> None:
        process = self._started()
        assert process.stdin is not None  # noqa: S101 - both were asked for as pipes
        assert process.stdout is not None  # noqa: S101
        self._monitor = Monitor(process.stdout, process.stdin)
        try:
            self._monitor.open()
        except ProcessError as exc:
            raise self._error("qemu does not start") from exc

    def _started(self) -> Popen[bytes]:
        if self._process is None:
            raise self._error("not started")
        return self._process

    def _running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _error(self, message: str) -> MachineError:
        messages = self._messages.read_text(errors="replace").strip() if self._messages.exists() else ""
        tail = "\n".join(self.read_console().rstrip().splitlines()[-TAIL_LINES:]) if self.console.exists() else ""
        return MachineError(
            f"{message}; qemu says: {messages[-400:]}" if messages else message,
            command=shlex.join(self.command),
            console_tail=tail,
        )

    def _end(self) -> None:
        process, self._process, self._monitor = self._process, None, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(TERMINATE_TIMEOUT_S)
            except TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                # A pipe with an unsent command in it complains on closing.
                with contextlib.suppress(OSError):
                    pipe.close()


def _tie_to_us(command: Sequence[str | Path]) -> list[str | Path]:
    """Have the kernel end the program when we die without a chance to clean up, if util-linux can arrange it."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", *command] if setpriv else [*command]
