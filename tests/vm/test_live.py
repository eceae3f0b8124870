"""The prompt on a running kernel, whose lists change while they are walked."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import drgn
import pytest

from postpanic.rehearse.kernels import Kernel
from tests.vm.hosts import run_on_host
from tests.vm.lab import Lab

PACKAGES = ("drgn", "drgn.libs", "_drgn_util", "msgspec", "capstone")
OPEN = "PYTHONPATH=/opt/host/src:/opt/site python3 -m postpanic open --live"
CHURN = "while :; do /bin/true; done"
LINES = (
    *("ps", "ps -l", "foreach bt", "files", "vm", "mount", "net", "net -s", "runq", "timer", "irq", "dev", "mod"),
    *("log", "sys", "kmem -i", "kmem -s", "task", "wq", "locks", "vtop ffffffff81000000", "ps 1 --json"),
)
COMMAND_TIMEOUT_S = 240.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gather what Debian does not package, for the Python of the host."""
    installed, site = Path(drgn.__file__).parents[1], tmp_path_factory.mktemp("site")
    for name in PACKAGES:
        shutil.copytree(installed / name, site / name)
    for entry in [*installed.glob("_drgn*.so"), *installed.glob("drgn-*.dist-info/entry_points.txt")]:
        place = site / entry.relative_to(installed)
        place.parent.mkdir(exist_ok=True)
        shutil.copy2(entry, place)
    metadata = next(installed.glob("drgn-*.dist-info")) / "METADATA"
    shutil.copy2(metadata, site / metadata.parent.name / metadata.name)
    return site


def test_every_command_ends_on_a_kernel_that_runs(
    crash_lab: Lab, fetch_kernel: Callable[[str], Kernel], site: Path
) -> None:
    fetch_kernel("6.1")
    script = "\n".join(f"!echo == {line}\n{line}" for line in LINES)
    nobody, ran = run_on_host(
        crash_lab,
        "6.1",
        [
            "setpriv --reuid 65534 --clear-groups " + OPEN.replace("PYTHONPATH", "env PYTHONPATH"),
            f"({CHURN}) & {OPEN} -s -i /root/commands </dev/null; kill $!",
        ],
        files={"/opt/site": site, "/root/commands": script},
        command_timeout_s=COMMAND_TIMEOUT_S,
    )
    assert nobody.status == 4
    assert "/proc/kcore may not be read" in nobody.stderr
    assert "be root" in nobody.stderr

    parts = dict(zip(LINES, re.split(r"^== .*\n", ran.stdout, flags=re.MULTILINE)[1:], strict=True))
    empty = {line for line, text in parts.items() if not text.strip()}
    assert empty <= {"locks"}, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "internal" not in ran.stderr
    assert re.search(r"^ +1 +0 +\d ", parts["ps"], re.MULTILINE)
    assert "python3" in parts["ps"]
    assert len(re.findall(r"^PID: ", parts["foreach bt"], re.MULTILINE)) > 30

    rows = json.loads(parts["ps 1 --json"])["tables"][0]["rows"]
    assert [(row["pid"], row["state"]) for row in rows] == [(1, "IN")]
