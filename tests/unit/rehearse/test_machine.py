"""The pure parts of the virtual machine: QEMU's command, the monitor's lines, deadlines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from postpanic.errors import UsageError
from postpanic.rehearse.machine import Disk, MachineConfig, MachineError, build_command, scale_timeout
from postpanic.rehearse.qmp import Monitor, MonitorError

CONFIG = MachineConfig(
    kernel=Path("/boot/vmlinuz"),
    initrd=Path("/boot/initrd"),
    command_line="console=ttyS0 crashkernel=256M",
    disks=(Disk(Path("/run/in.img"), read_only=True), Disk(Path("/run/out.img"))),
)


def following(words: list[str], option: str) -> list[str]:
    return [words[place + 1] for place, word in enumerate(words) if word == option]


def test_command_has_no_defaults_and_one_machine() -> None:
    words = build_command(CONFIG, Path("/run/console.log"), "tcg")
    assert words[0] == "qemu-system-x86_64"
    assert "-nodefaults" in words
    assert "-no-reboot" in words
    assert following(words, "-accel") == ["tcg,thread=multi"]
    assert following(words, "-append") == ["console=ttyS0 crashkernel=256M"]
    assert following(words, "-serial") == ["file:/run/console.log"]
    assert following(words, "-m") == ["1024"]


def test_command_gives_disks_in_order_and_protects_the_read_only_one() -> None:
    drives = following(build_command(CONFIG, Path("c"), "kvm"), "-drive")
    assert [drive.split(",")[0] for drive in drives] == ["file=/run/in.img", "file=/run/out.img"]
    assert "readonly=on" in drives[0]
    assert "readonly=on" not in drives[1]


def test_network_is_closed_to_the_outside() -> None:
    with_network = MachineConfig(CONFIG.kernel, CONFIG.initrd, "", network=True)
    assert following(build_command(with_network, Path("c"), "tcg"), "-netdev") == ["user,id=net0,restrict=on"]
    assert not following(build_command(CONFIG, Path("c"), "tcg"), "-netdev")


def test_without_a_kernel_the_firmware_boots() -> None:
    words = build_command(MachineConfig(None, None, "", disks=CONFIG.disks), Path("c"), "tcg")
    assert not {"-kernel", "-initrd", "-append"} & set(words)


def test_path_with_comma_is_refused() -> None:
    with pytest.raises(UsageError, match="comma"):
        build_command(CONFIG, Path("/run/a,b/console"), "tcg")


def test_timeouts_only_grow() -> None:
    assert 10.0 < scale_timeout(10.0) <= 160.0


def test_error_carries_command_and_console() -> None:
    error = MachineError("it ended", command="qemu -M pc", console_tail="one\nlast line\n")
    assert str(error) == "it ended; the console ends with 'last line'"
    assert error.exit_status == 1
    assert any("qemu -M pc" in note and "one" in note for note in error.__notes__)


@pytest.fixture
def pipes() -> Iterator[tuple[Monitor, IO[bytes], IO[bytes]]]:
    """Give a monitor, the end into which QEMU writes and the end from which it reads."""
    reply_read, reply_write = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
    command_read, command_write = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
    with reply_read, reply_write, command_read, command_write:
        yield Monitor(reply_read, command_write), reply_write, command_read


def test_events_between_command_and_answer_are_dropped(pipes: tuple[Monitor, IO[bytes], IO[bytes]]) -> None:
    monitor, replies, commands = pipes
    replies.write(b'{"event": "STOP"}\r\n{"return": {"status": "running"}}\r\n')
    replies.flush()
    assert monitor.execute("query-status") == {"status": "running"}
    assert commands.readline() == b'{"execute": "query-status"}\n'


def test_refusal_names_command_and_reason(pipes: tuple[Monitor, IO[bytes], IO[bytes]]) -> None:
    monitor, replies, _ = pipes
    replies.write(b'{"error": {"class": "GenericError", "desc": "no such device"}}\n')
    replies.flush()
    with pytest.raises(MonitorError, match="inject-nmi: no such device"):
        monitor.execute("inject-nmi")


@pytest.mark.parametrize("line", [b"not json\n", b"[1, 2]\n", b"\xff\xfe\n"])
def test_garbage_from_the_monitor_is_one_error(line: bytes, pipes: tuple[Monitor, IO[bytes], IO[bytes]]) -> None:
    monitor, replies, _ = pipes
    replies.write(line)
    replies.flush()
    with pytest.raises(MonitorError, match="monitor sent no"):
        monitor.execute("stop")


def test_endless_line_from_the_monitor_is_bounded(pipes: tuple[Monitor, IO[bytes], IO[bytes]]) -> None:
    monitor, replies, _ = pipes
    monitor._pending = b"x" * (1 << 20)
    replies.write(b"x")
    replies.flush()
    with pytest.raises(MonitorError, match="more than 1048576 bytes"):
        monitor.execute("stop")


def test_silence_and_end_of_the_monitor_are_errors(pipes: tuple[Monitor, IO[bytes], IO[bytes]]) -> None:
    monitor, replies, _ = pipes
    with pytest.raises(MonitorError, match="does not answer in time"):
        monitor.execute("stop", timeout_s=0.05)
    replies.close()
    with pytest.raises(MonitorError, match="qemu is gone"):
        monitor.execute("stop")
