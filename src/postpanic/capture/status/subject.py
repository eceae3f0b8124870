"""
The host under examination: everything that the checks read goes through here, each thing once.

Nothing is changed. What cannot be read is told from what is not there: to the
first of the two root may have an answer.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from postpanic.capture.arming.state import ArmedState, StatePaths, read_state
from postpanic.capture.config import CONFIG_PATH, Config, default_config, read_config
from postpanic.capture.host import Host, IoMemory
from postpanic.capture.kexec.command_line import split_command_line, word_name
from postpanic.capture.kexec.verify import Expected, Verification, verify
from postpanic.capture.resolve import NetworkFinder
from postpanic.capture.resolve.mounts import Mount, read_mounts
from postpanic.capture.status.distributions import DEBIAN, DumpTool, find_tools
from postpanic.capture.status.model import Fact
from postpanic.errors import PostpanicError, UsageError

__all__ = ["Connector", "Reading", "Room", "Subject", "connect_tcp", "read_room"]

SHOWN_CHARS = 300
_LIST_LIMIT = 4096
_CONNECT_TIMEOUT_S = 3.0

Connector = Callable[[str, int], str]
"""Connects to a server's port, and says what is wrong; empty: nothing."""


@dataclass(frozen=True)
class Reading:
    """
    A file that was read, or was not.

    Attributes
    ----------
    source : str
        Its path, as from the host's root.
    text : str or None
        Without the white space around it.
    problem : str
        Why there is no text: ``not there``, ``permission denied``.
    """

    source: str
    text: str | None
    problem: str = ""

    @property
    def fact(self) -> Fact:
        """As evidence, in one line that is not too long."""
        line = self.problem if self.text is None else " ".join(self.text.split())
        return Fact(self.source, line if len(line) <= SHOWN_CHARS else line[:SHOWN_CHARS] + "…")

    @property
    def is_there(self) -> bool:
        """Whether there is such a file, readable or not."""
        return self.text is not None or self.problem != NOT_THERE

    @property
    def number(self) -> int | None:
        """The number that it holds."""
        try:
            return None if self.text is None else int(self.text, 0)
        except ValueError:
            return None


NOT_THERE = "not there"


@dataclass(frozen=True)
class Room:
    """Of a file system: what is free for us, and whether it is mounted read-only."""

    free_bytes: int
    total_bytes: int
    is_read_only: bool = False


def read_room(path: Path) -> Room:
    """Ask the file system, by statvfs(3)."""
    found = os.statvfs(path)
    return Room(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, bool(found.f_flag & os.ST_RDONLY))


def connect_tcp(server: str, port: int) -> str:
    """Open a connection and close it: what keeps us from it, empty if nothing does."""
    try:
        socket.create_connection((server, port), _CONNECT_TIMEOUT_S).close()
    except TimeoutError:
        return f"no answer within {_CONNECT_TIMEOUT_S:g} s"
    except OSError as exc:
        return (exc.strerror or str(exc)).lower()
    return ""


class Subject:
    """
    What is examined.

    Parameters
    ----------
    config : Config
        Of postpanic; the default one where there is none.
    config_source : str
        Where it is from; empty for the default one.
    config_problem : PostpanicError, optional
        Why it cannot be used.
    find_network, connect : callable, optional
        Without them servers are not looked for.
    """

    def __init__(
        self,
        host: Host,
        config: Config,
        *,
        config_source: str = "",
        config_problem: PostpanicError | None = None,
        kernel: str = "",
        room: Callable[[Path], Room] = read_room,
        find_network: NetworkFinder | None = None,
        connect: Connector | None = None,
    ) -> None:
        self.host = host
        self.config = config
        self.config_source = config_source
        self.config_problem = config_problem
        self.kernel = kernel
        self.read_room = room
        self.find_network = find_network
        self.connect = connect

    @classmethod
    def find(
        cls,
        host: Host,
        config_path: Path | None = None,
        *,
        kernel: str = "",
        room: Callable[[Path], Room] = read_room,
        find_network: NetworkFinder | None = None,
        connect: Connector | None = None,
    ) -> Subject:
        """
        Take a host with its configuration; a mistake in it is the host's state, and found by a check.

        Parameters
        ----------
        config_path : Path, optional
            Instead of the host's own.

        Raises
        ------
        UsageError
            If that one cannot be used.
        """
        path = config_path or host.path(str(CONFIG_PATH))
        config, problem = default_config(), None
        try:
            config = read_config(path, must_exist=config_path is not None)
        except UsageError as exc:
            if config_path is not None:
                raise
            problem = exc
        source = str(config_path or CONFIG_PATH) if problem is not None or path.exists() else ""
        return cls(
            host,
            config,
            config_source=source,
            config_problem=problem,
            kernel=kernel,
            room=room,
            find_network=find_network,
            connect=connect,
        )

    @property
    def is_running(self) -> bool:
        """Whether it is this machine, and not a tree of another's files."""
        return self.host.root == Path("/")

    def read(self, name: str) -> Reading:
        """Read a small text file."""
        source = f"/{name.lstrip('/')}"
        try:
            with self.host.path(name).open("rb") as stream:
                return Reading(source, stream.read(1 << 20).decode(errors="replace").strip())
        except FileNotFoundError:
            return Reading(source, None, NOT_THERE)
        except OSError as exc:
            if exc.errno in {errno.ENOTDIR, errno.EISDIR}:
                return Reading(source, None, NOT_THERE)
            return Reading(source, None, (exc.strerror or str(exc)).lower())

    def list_names(self, name: str) -> list[str]:
        """List a directory, sorted; nothing where there is none, or it may not be read."""
        try:
            with os.scandir(self.host.path(name)) as entries:
                return sorted(entry.name for _, entry in zip(range(_LIST_LIMIT), entries, strict=False))
        except OSError:
            return []

    def exists(self, name: str) -> bool:
        """Tell whether a path leads to something; an absolute link leads to a place of the host's."""
        return self.resolve(name) is not None

    @cached_property
    def has_sysfs(self) -> bool:
        """Whether there is a sysfs: below another root there may be none, and then nothing can be said by it."""
        return self.exists("sys/kernel")

    def resolve(self, name: str) -> Path | None:
        """Follow a path's links within the host's tree; None where nothing is."""
        from postpanic.capture.initramfs.root import RootTree

        tree = RootTree(self.host.root)
        found = tree.resolve(f"/{name.lstrip('/')}")
        return None if found is None else tree.place(found)

    def show(self, path: Path) -> str:
        """Spell a path as from the host's own root."""
        try:
            return f"/{path.relative_to(self.host.root)}"
        except ValueError:
            return str(path)

    @cached_property
    def words(self) -> list[str]:
        """Of the running kernel's command line."""
        return split_command_line(self.host.read_command_line())

    def find_words(self, *names: str) -> list[str]:
        """List the words of the command line that set these parameters."""
        wanted = {name.replace("-", "_") for name in names}
        return [word for word in self.words if word_name(word) in wanted]

    @cached_property
    def kernel_config(self) -> dict[str, str] | None:
        """Of the running kernel."""
        return self.host.read_kernel_config()

    @cached_property
    def io_memory(self) -> IoMemory:
        """The map of physical memory."""
        return self.host.read_io_memory()

    @cached_property
    def crash_size_bytes(self) -> int | None:
        """What is reserved; None where the kernel says nothing of it."""
        return self.host.read_crash_size_bytes()

    @cached_property
    def is_loaded(self) -> bool | None:
        """Whether the kernel says that a capture kernel is loaded."""
        return self.host.read_crash_loaded()

    @cached_property
    def fadump(self) -> str:
        """
        Tell whether the firmware of a POWER machine keeps the memory: ``registered``, ``enabled`` (no more), or empty.

        ``Documentation/arch/powerpc/firmware-assisted-dump.rst``; before 5.9 the files were ``fadump_…``.
        """
        for directory in ("sys/kernel/fadump/", "sys/kernel/fadump_"):
            if self.host.read_text(f"{directory}enabled") == "1":
                return "registered" if self.host.read_text(f"{directory}registered") == "1" else "enabled"
        return ""

    @cached_property
    def has_notifiers_first(self) -> bool:
        """Whether panic notifiers and kmsg dumpers run before the capture kernel (``crash_kexec_post_notifiers``)."""
        return self.host.read_text("sys/module/kernel/parameters/crash_kexec_post_notifiers") == "Y"

    @cached_property
    def state_paths(self) -> StatePaths:
        """Where arming keeps what it remembers."""
        return StatePaths.of(self.host)

    @cached_property
    def state(self) -> ArmedState | None:
        """What is remembered of the last arming, of this boot or an earlier one."""
        return read_state(self.state_paths.state)

    @cached_property
    def is_state_hidden(self) -> bool:
        """Whether something may be remembered that only root can read."""
        reading = self.read("var/lib/postpanic/armed.json")
        return reading.text is None and reading.is_there

    @cached_property
    def is_armed_by_us(self) -> bool:
        """Whether postpanic has loaded something since the machine was booted."""
        boot_id = self.host.read_text("proc/sys/kernel/random/boot_id")
        return self.state is not None and boot_id is not None and self.state.boot_id == boot_id

    @cached_property
    def tools(self) -> list[DumpTool]:
        """The distributions' tools that are set up here."""
        return find_tools(self.host)

    @cached_property
    def tool(self) -> DumpTool | None:
        """The distribution's tool that has armed the machine, or is meant to."""
        if self.is_armed_by_us or self.is_state_hidden:
            return None
        enabled = [tool for tool in self.tools if tool.is_enabled]
        if not enabled and self.is_loaded and self.state is None:
            # Without systemd it is not seen what is started; kdump-tools says it in its own file.
            enabled = [tool for tool in self.tools if tool.name != DEBIAN]
        is_ours = bool(self.config_source) or self.state is not None
        return enabled[0] if enabled and (self.is_loaded or not is_ours) else None

    @cached_property
    def expected(self) -> Expected | None:
        """What should be loaded, by what is known of who has loaded it."""
        if self.is_armed_by_us and self.state is not None:
            return Expected(Path(self.state.kernel), self.state_paths.image, self.state.command_line)
        if self.tool is not None:
            kernel, initrd = self.resolve(self.tool.kernel), self.resolve(self.tool.initrd)
            return Expected(kernel, initrd)
        return None

    @cached_property
    def verification(self) -> Verification:
        """What is loaded, read and compared."""
        return verify(self.host, self.expected)

    @cached_property
    def mounts(self) -> list[Mount]:
        """What is mounted; nothing where that cannot be read."""
        try:
            return read_mounts(self.host.root)
        except PostpanicError:
            return []

    def list_tool_units(self) -> Iterator[tuple[str, str]]:
        """Yield the units that arm at boot and are enabled: name and link."""
        masked = {word.partition("=")[2] for word in self.find_words("systemd.mask")}
        for directory in ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"):
            for wants in self.list_names(directory):
                if wants.endswith((".wants", ".requires")):
                    for unit in self.list_names(f"{directory}/{wants}"):
                        if unit not in masked and not self._is_masked(unit):
                            yield unit, f"/{directory}/{wants}/{unit}"

    def _is_masked(self, unit: str) -> bool:
        """Tell whether ``systemctl mask`` has taken a unit away."""
        place = self.host.path(f"etc/systemd/system/{unit}")
        return place.is_symlink() and place.readlink() == Path("/dev/null")
