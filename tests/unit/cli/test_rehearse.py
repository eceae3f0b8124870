"""What `postpanic rehearse` refuses before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.cli.app import main


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--disk", "2=x"], "--disk 2=x: there is no target 2, the last one is 1"),
        (["--disk", "0"], "--disk 0: must be NUMBER=…, as 0=disk.img"),
        (["--disk", "1=/etc/hostname"], "target 1 is no disk"),
        (["--free", "0=many"], "--free many: "),
        (["--unreachable", "0"], "--unreachable 0: target 0 is no server"),
        (["--unreachable", "2"], "--unreachable 2: target 2 is no server"),
        (["--fault", "fire"], "--fault fire: must be one of disk-error, disk-hang, saver-killed"),
        (["--fault", "disk-hang=1"], "target 1 is no disk"),
        (["--dtb", "/etc/hostname"], "is not described by a device tree"),
        (["--host-memory", "much"], "--host-memory much: "),
        (["--shell", "--json"], "--shell takes the terminal"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "lib/modules/6.1.0").mkdir(parents=True)
    (tmp_path / "etc/postpanic.toml").write_text(
        '[[target]]\nkind = "file"\npath = "/crash"\ndevice = "LABEL=x"\n'
        '[[target]]\nkind = "http"\nurl = "http://192.0.2.1/{file}"\n'
    )
    assert main(["rehearse", "--root", str(tmp_path), "--crashkernel", "160M", *words]) == 64
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.splitlines()) <= 2


def test_a_disk_that_cannot_be_used_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "lib/modules/6.1.0").mkdir(parents=True)
    (tmp_path / "etc/postpanic.toml").write_text('[[target]]\nkind = "file"\npath = "/crash"\ndevice = "LABEL=x"\n')
    (tmp_path / "disk.qcow2").write_bytes(b"QFI\xfb" + bytes(508))
    assert main(["rehearse", "--root", str(tmp_path), "--disk", f"0={tmp_path}/disk.qcow2"]) == 4
    assert "is a qcow2 image, must be a raw one" in capsys.readouterr().err
