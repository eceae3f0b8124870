"""What a program changes of this machine is found, where it is run through overlays: whoever relies on that may."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.overlaid import Overlaid, OverlayError, run_overlaid

CHANGES = {
    "touch /etc/overlaid": "file: /etc/overlaid",
    "rm /etc/passwd": "file: /etc/passwd",
    "chmod 600 /etc/group": "file: /etc/group",
    ": > /var/tmp/overlaid && rm /var/tmp/overlaid": "file: /var/tmp",
    "echo > $TMPDIR/one": "left behind: {temporary}/one",
    "echo > /dev/shm/two": "/dev/shm/two",  # noqa: S108
    "mount -t tmpfs left /mnt": "mount left ",
    # Of the name spaces; those that are the machine's own are not to be touched by a test.
    "echo 1 > /proc/sys/net/ipv4/ip_forward": "setting net/ipv4/ip_forward: 0 became 1",
    "sleep 100 &": "process: sleep",
}


def run_script(script: str, tmp_path: Path) -> Overlaid:
    (tmp_path / "temporary").mkdir()
    try:
        return run_overlaid(["sh", "-c", script], tmp_path / "overlaid", writable=[tmp_path / "temporary"])
    except OverlayError as exc:
        pytest.skip(f"nothing can be seen through overlays here: {exc}")


def test_what_changes_something_is_seen(tmp_path: Path) -> None:
    done = run_script("\n".join(CHANGES), tmp_path)
    assert (done.status, done.out, done.err) == (0, "", "")
    for script, expected in CHANGES.items():
        expected = expected.format(temporary=tmp_path / "temporary")
        assert any(expected in line for line in done.changes), (script, done.changes)
    assert not Path("/etc/overlaid").exists()


def test_what_changes_nothing_has_changed_nothing(tmp_path: Path) -> None:
    done = run_script("cat /etc/passwd; echo no >&2; exit 3", tmp_path)
    assert done == Overlaid(3, Path("/etc/passwd").read_text(), "no\n", [])
