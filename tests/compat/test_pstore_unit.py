"""systemd judges the unit that ``postpanic pstore --enable`` writes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from postpanic.capture.host import Host
from postpanic.capture.pstore_service import UNIT, enable_service

pytestmark = pytest.mark.compat


@pytest.mark.parametrize("erase", [False, True])
def test_systemd_has_nothing_against_the_unit(tmp_path: Path, erase: bool) -> None:
    judge = shutil.which("systemd-analyze")
    if judge is None:
        pytest.skip("no systemd-analyze")
    (tmp_path / "usr/lib/systemd").mkdir(parents=True)
    (tmp_path / "usr/lib/systemd/systemd").touch()
    enable_service(Host(tmp_path), erase=erase)
    unit = tmp_path / "etc/systemd/system" / UNIT
    said = subprocess.run([judge, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")
    # It looks at the units of this machine, too.
    assert not [line for line in said.stderr.splitlines() if UNIT in line]
    broken = unit.with_name("broken.service")
    broken.write_text(unit.read_text().replace("Type=oneshot", "Type=never").replace("[Unit]", "[Unit]\nNoSuchKey=1"))
    said = subprocess.run([judge, "verify", "--man=no", str(broken)], capture_output=True, text=True, check=False)
    assert "NoSuchKey" in said.stderr
