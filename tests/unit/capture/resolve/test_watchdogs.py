"""A watchdog that runs needs its driver in the image, and that of what it hangs on."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.capture.config import decode_config
from postpanic.capture.resolve.resolve import resolve
from postpanic.capture.resolve.sysfs import stable_path
from postpanic.capture.resolve.watchdogs import find_watchdogs

PLACE = "devices/pci0000:00/0000:00:1f.4/iTCO_wdt.1.auto"


def make_tree(root: Path, state: str = "active") -> Path:
    sysfs = root / "sys"
    device = sysfs / PLACE
    for place, driver, module in ((device, "iTCO_wdt", "iTCO_wdt"), (device.parent, "i801_smbus", "i2c_i801")):
        at = sysfs / "bus/x/drivers" / driver
        at.mkdir(parents=True)
        (sysfs / "module" / module).mkdir(parents=True)
        (at / "module").symlink_to(sysfs / "module" / module)
        place.mkdir(parents=True, exist_ok=True)
        (place / "driver").symlink_to(at)
        (place / "modalias").write_text(f"x:{driver}")
    for name, text, below in (("watchdog0", state, True), ("watchdog1", "active", False)):
        entry = sysfs / "class/watchdog" / name
        entry.mkdir(parents=True)
        (entry / "state").write_text(f"{text}\n")
        (entry / "identity").write_text("iTCO_wdt\n" if below else "Software Watchdog\n")
        if below:
            (entry / "device").symlink_to(device)
    (sysfs / "class/block").mkdir(parents=True)
    (root / "modules").mkdir()
    return sysfs


def test_those_of_hardware_that_run_are_found(tmp_path: Path) -> None:
    sysfs = make_tree(tmp_path)
    (found,) = find_watchdogs(sysfs)
    assert (found.name, found.identity) == ("watchdog0", "iTCO_wdt")
    # Its number is given anew in each boot.
    assert stable_path(found.place, sysfs) == "pci0000:00/0000:00:1f.4/iTCO_wdt.*.auto"


@pytest.mark.parametrize(
    ("state", "config", "expected"),
    [("active", b"", True), ("inactive", b"", False), ("active", b"[limits]\nwatchdog = false\n", False)],
)
def test_their_drivers_and_places_are_planned(tmp_path: Path, state: str, config: bytes, expected: bool) -> None:
    make_tree(tmp_path, state)
    text = b'[[target]]\nkind = "http"\nurl = "http://192.0.2.1/{file}"\n'
    text += b'[[network.interface]]\nname = "e"\nmethod = "dhcp"\n'
    (tmp_path / "sys/class/net").mkdir()
    card = tmp_path / "sys/devices/pci0000:00/0000:00:03.0"
    card.mkdir()
    (tmp_path / "sys/class/net/e").mkdir()
    (tmp_path / "sys/class/net/e/device").symlink_to(card)
    found = resolve(decode_config(config + text, "x"), tmp_path / "modules", root=tmp_path)
    assert {"iTCO_wdt", "i2c_i801"} <= set(found.modules) if expected else "iTCO_wdt" not in found.modules
    assert ("pci0000:00/0000:00:1f.4/iTCO_wdt.*.auto" in found.plan.devices.sysfs_paths) is expected
    assert any("watchdog0: iTCO_wdt" in line for line in found.needs.evidence) is expected
