"""A real host is armed, armed again, armed otherwise, and disarmed."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from postpanic.rehearse.kernels import Kernel
from tests.vm.hosts import ROOT_UUID, CommandResult, run_on_host
from tests.vm.lab import Lab

HALT = '[[target]]\nkind = "file"\npath = "/var/crash"\nkeep = 3\n[after]\nsuccess = "halt"\n[panic]\npanic = 7\n'
BAD_LOAD = HALT + '[capture]\nkexec = "legacy"\nkexec_options = ["--nonsense"]\n'
SHOW = "cat /sys/kernel/kexec_crash_loaded /proc/sys/kernel/panic_on_oops /proc/sys/kernel/panic"
AS_NOBODY = "setpriv --reuid 65534 --clear-groups env PATH=$PATH"
COMMAND_TIMEOUT_S = 90.0

Run = Callable[..., list[CommandResult]]


@pytest.fixture(scope="module")
def on_host(crash_lab: Lab, fetch_kernel: Callable[[str], Kernel]) -> Run:
    def run(*commands: str, files: dict[str, str] | None = None, crashkernel: str = "256M") -> list[CommandResult]:
        fetch_kernel("6.1")
        return run_on_host(
            crash_lab,
            "6.1",
            ["mkdir -p /var/crash", *commands],
            files=files,
            crashkernel=crashkernel,
            packages=("python3-pyelftools",),
            command_timeout_s=COMMAND_TIMEOUT_S,
        )[1:]

    return run


def test_arming_is_verified_repeated_changed_and_undone(on_host: Run) -> None:
    dry, first, shown, second, kept, changed, failed, still, undone, empty = on_host(
        "postpanic arm --dry-run && ls /var/lib/postpanic",
        "postpanic arm --json",
        f"{SHOW}; stat -c '%a %n' /var/lib/postpanic /var/lib/postpanic/*",
        "postpanic arm",
        "stat -c %y /var/lib/postpanic/capture.img >/root/before; cp /root/halt.toml /etc/postpanic.toml",
        f"postpanic arm -q && {SHOW}",
        "postpanic arm --config /root/bad.toml",
        f"{SHOW}; postpanic arm --json",
        f"postpanic disarm && {SHOW}",
        f"postpanic disarm; {AS_NOBODY} postpanic arm",
        files={"/root/halt.toml": HALT, "/root/bad.toml": BAD_LOAD},
    )
    assert dry.status != 0, "nothing was written"
    assert "stale     there is no image yet" in dry.stdout
    assert f"found again by UUID={ROOT_UUID}" in dry.stdout
    assert "modules" in dry.stdout

    judge_first(first)
    assert shown.stdout.splitlines() == [
        *("1", "1", "0"),
        "700 /var/lib/postpanic",
        "600 /var/lib/postpanic/armed.json",
        "600 /var/lib/postpanic/capture.img",
        "600 /var/lib/postpanic/lock",
    ]

    assert second.status == 0
    assert "nothing has changed" in second.stdout
    assert "loaded    already, by kexec_file_load" in second.stdout
    assert second.stdout.endswith("ready: a crash will be captured\n")
    assert second.seconds < first.seconds / 2

    assert kept.status == 0
    assert changed.status == 0, changed.stderr
    assert (changed.stdout, changed.stderr) == ("1\n1\n7\n", "")

    assert failed.status == 4
    message, *hint = failed.stderr.splitlines()
    assert message.startswith("error[load-refused]: ")
    assert "unrecognized option '--nonsense'" in message
    assert message.endswith("; what was loaded before is loaded still")
    assert [line[:8] for line in hint] == ["  hint: "]
    loaded, _, again = still.stdout.partition("{")
    assert loaded == "1\n1\n7\n"
    assert json.loads("{" + again)["stale"] == []
    assert json.loads("{" + again)["load"]["now"] is False

    judge_last(undone, empty)


def judge_first(first: CommandResult) -> None:
    """Look at what the first arming says of itself."""
    assert first.status == 0, first.stderr
    armed = json.loads(first.stdout)
    assert armed["stale"] == ["there is no image yet"]
    assert armed["load"]["method"] == "file"
    assert armed["verification"]["outcome"] == "good"
    assert {"kernel", "initramfs", "command line", "core header", "memory"} <= {
        check["name"] for check in armed["verification"]["checks"]
    }
    assert armed["plan"]["targets"][0]["device"]["uuid"] == ROOT_UUID
    assert {"virtio_pci", "virtio_blk"} <= set(armed["image"]["modules"])
    assert armed["image"]["size_bytes"] < 20_000_000
    assert armed["image"]["unpacked_bytes"] < 60_000_000


def judge_last(undone: CommandResult, empty: CommandResult) -> None:
    """Look at what is left when everything is undone, and who may not begin again."""
    first_line, *policy = undone.stdout.splitlines()
    assert first_line == "the capture kernel is unloaded"
    assert sorted(policy[:2]) == ["kernel.panic = 0, was 7", "kernel.panic_on_oops = 0, was 1"]
    assert policy[2:] == ["0", "0", "0"]
    assert empty.stdout == "no capture kernel was loaded\n"
    assert empty.status == 4
    assert empty.stderr.startswith("error[load-refused]: only root may load a capture kernel\n")


def test_without_a_reservation_nothing_is_built(on_host: Run) -> None:
    arm, build, disabled = on_host(
        "postpanic arm",
        "postpanic arm --build /root/capture.img -q && stat -c '%a %s' /root/capture.img",
        "echo 1 >/proc/sys/kernel/kexec_load_disabled; postpanic arm",
        crashkernel="",
    )
    assert arm.status == 4
    assert arm.stderr.startswith("error[load-refused]: no memory is reserved for a capture kernel")
    assert build.status == 0, build.stderr
    mode, size = build.stdout.split()
    assert mode == "600"
    assert 1_000_000 < int(size) < 20_000_000
    assert disabled.status == 4
    assert "kexec_load_disabled" in disabled.stderr
