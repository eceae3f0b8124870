"""``postpanic arm`` says in one line what is wrong with its command line or its configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.cli.app import main


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[dump\n", "c.toml:1: no TOML: expected ']'", ""),
        ("[dump]\nlevle = 1\n", "c.toml:2: dump.levle is not known", "did you mean level?"),
        ('[[target]]\nkind = "ftp"\n', 'c.toml:2: target[1].kind is "ftp", must be one of "file"', ""),
    ],
)
def test_a_wrong_configuration_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str, hint: str
) -> None:
    (tmp_path / "c.toml").write_text(text)
    assert main(["arm", "--config", str(tmp_path / "c.toml")]) == 64
    output = capsys.readouterr()
    assert output.out == ""
    first, *rest = output.err.splitlines()
    assert message in first
    assert first.startswith("error[usage]: ")
    assert rest == ([f"  hint: {hint}"] if hint else [])


def test_a_configuration_that_was_named_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["arm", "--config", str(tmp_path / "none.toml")]) == 64
    assert "there is no such file" in capsys.readouterr().err


def test_another_root_tree_is_built_for_and_not_armed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["arm", "--root", str(tmp_path)]) == 64
    assert "only this machine can be armed" in capsys.readouterr().err
    assert main(["arm", "--root", str(tmp_path), "--dry-run"]) == 64
    assert "its modules are of: none" in capsys.readouterr().err
    for release in ("6.1.0", "6.12.0"):
        (tmp_path / "lib/modules" / release).mkdir(parents=True)
    assert main(["arm", "--root", str(tmp_path), "--dry-run"]) == 64
    assert "its modules are of: 6.1.0, 6.12.0" in capsys.readouterr().err
    assert main(["arm", "--root", str(tmp_path), "--dry-run", "--kernel", "6.1.0"]) == 4
    assert "no image of kernel 6.1.0" in capsys.readouterr().err
