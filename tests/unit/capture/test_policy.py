from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from postpanic.capture.host import Host
from postpanic.capture.policy import SETTINGS, PolicyChange, apply_policy, read_policy, undo_policy
from postpanic.errors import CorruptError, OutputError, UsageError

BEFORE = {"kernel.panic": 0, "kernel.panic_on_oops": 0, "kernel.softlockup_panic": 0, "vm.panic_on_oom": 0}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    for name, value in BEFORE.items():
        path = tmp_path / "proc/sys" / name.replace(".", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return Host(tmp_path, "x86_64", "6.1.0")


def present(host: Host) -> Mapping[str, int | None]:
    return {name: value for name, value in read_policy(host).items() if value is not None}


def test_what_is_set_is_remembered_and_put_back(host: Host, tmp_path: Path) -> None:
    state = tmp_path / "run/policy.json"
    changes = apply_policy(host, {"kernel.panic": 10, "kernel.panic_on_oops": 1, "vm.panic_on_oom": 0}, state)
    assert changes == [
        *(PolicyChange("kernel.panic", 0, 10), PolicyChange("kernel.panic_on_oops", 0, 1)),
        PolicyChange("vm.panic_on_oom", 0, 0),
    ]
    assert present(host) == BEFORE | {"kernel.panic": 10, "kernel.panic_on_oops": 1}
    assert undo_policy(host, state) == [PolicyChange("kernel.panic", 10, 0), PolicyChange("kernel.panic_on_oops", 1, 0)]
    assert present(host) == BEFORE
    assert not state.exists()
    assert undo_policy(host, state) == []


def test_second_time_the_first_values_are_kept(host: Host, tmp_path: Path) -> None:
    state = tmp_path / "policy.json"
    apply_policy(host, {"kernel.panic": 10}, state)
    apply_policy(host, {"kernel.panic": 20}, state)
    undo_policy(host, state)
    assert present(host) == BEFORE


def test_what_is_no_longer_asked_for_is_put_back(host: Host, tmp_path: Path) -> None:
    state = tmp_path / "policy.json"
    apply_policy(host, {"kernel.panic": 10, "kernel.panic_on_oops": 1}, state)
    apply_policy(host, {"kernel.panic": 10}, state)
    assert present(host) == BEFORE | {"kernel.panic": 10}
    undo_policy(host, state)
    assert present(host) == BEFORE


def test_setting_that_the_kernel_lacks_is_told(host: Host, tmp_path: Path) -> None:
    (change,) = apply_policy(host, {"kernel.hardlockup_panic": 1}, tmp_path / "policy.json")
    assert change == PolicyChange("kernel.hardlockup_panic", None, None, "this kernel has no such setting")
    assert read_policy(host)["kernel.hardlockup_panic"] is None
    assert not (tmp_path / "proc/sys/kernel/hardlockup_panic").exists()


@pytest.mark.parametrize(
    ("name", "value", "says", "hint"),
    [
        ("kernel.panic_on_ops", 1, "no setting of the panic policy", "kernel.panic_on_oops"),
        ("kernel.panic_on_oops", 2, "2 is not possible, 0 to 1 are", ""),
        ("vm.panic_on_oom", -1, "-1 is not possible", ""),
    ],
)
def test_impossible_wishes(host: Host, tmp_path: Path, name: str, value: int, says: str, hint: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        apply_policy(host, {"kernel.panic": 10, name: value}, tmp_path / "policy.json")
    assert hint in caught.value.hint
    assert present(host) == BEFORE, "nothing is set when something is wrong"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 9, "before": {}}', '{"version": 1, "before": []}'])
def test_state_that_cannot_be_read(host: Host, tmp_path: Path, content: str) -> None:
    state = tmp_path / "policy.json"
    state.write_text(content)
    with pytest.raises(CorruptError, match="not readable"):
        undo_policy(host, state)
    with pytest.raises(CorruptError, match="not readable"):
        apply_policy(host, {"kernel.panic": 1}, state)
    assert present(host) == BEFORE


def test_state_with_foreign_names_sets_only_ours(host: Host, tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel/core_pattern").write_text("core\n")
    state = tmp_path / "policy.json"
    state.write_text('{"version": 1, "before": {"kernel.core_pattern": 1, "../etc": 2, "kernel.panic": true}}')
    assert undo_policy(host, state) == []
    assert (tmp_path / "proc/sys/kernel/core_pattern").read_text() == "core\n"


def test_state_that_cannot_be_written_sets_nothing(host: Host, tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("nowhere/policy")
    with pytest.raises(OutputError):
        apply_policy(host, {"kernel.panic": 10}, tmp_path / "run/policy.json")
    assert present(host) == BEFORE


def test_every_setting_has_a_sensible_range() -> None:
    for name, setting in SETTINGS.items():
        assert setting.minimum < setting.maximum
        assert setting.summary
        assert name.startswith(("kernel.", "vm."))
