"""A machine that cannot be armed is told why, before anything is changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.capture.arming.arm import arm
from postpanic.capture.arming.disarm import disarm
from postpanic.capture.config import default_config
from postpanic.capture.host import Host
from postpanic.errors import NotReadyError


def make_host(root: Path, *, crash_size: str = "268435456", load_disabled: str = "0", is_root: bool = True) -> Host:
    (root / "sys/kernel").mkdir(parents=True)
    (root / "proc/sys/kernel").mkdir(parents=True)
    if crash_size:
        (root / "sys/kernel/kexec_crash_size").write_text(crash_size + "\n")
        (root / "sys/kernel/kexec_crash_loaded").write_text("0\n")
    (root / "proc/sys/kernel/kexec_load_disabled").write_text(load_disabled + "\n")
    (root / "proc/cmdline").write_text("quiet\n")
    return Host(root, "x86_64", "6.1.0", is_root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_root": False}, "only root may load a capture kernel"),
        ({"crash_size": ""}, "kernel 6.1.0 cannot have a capture kernel"),
        (
            {"crash_size": "0"},
            "no memory is reserved for a capture kernel: the kernel's command line has no crashkernel=",
        ),
        ({"load_disabled": "1"}, "loading is switched off until the next boot"),
        ({}, "no image of kernel 6.1.0"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path: Path, options: dict[str, object], message: str) -> None:
    host = make_host(tmp_path, **options)  # type: ignore[arg-type]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(NotReadyError) as caught:
        arm(default_config(), host)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert sorted(tmp_path.rglob("*")) == before


def test_disarming_what_is_not_armed_does_nothing(tmp_path: Path) -> None:
    outcome = disarm(make_host(tmp_path))
    assert not outcome.unloaded
    assert outcome.policy == ()


def test_only_root_disarms(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="only root may disarm"):
        disarm(make_host(tmp_path, is_root=False))
