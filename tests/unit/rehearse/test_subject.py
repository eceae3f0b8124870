"""What cannot be rehearsed is refused before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.capture.config import decode_config
from postpanic.capture.host import Host
from postpanic.errors import NotReadyError
from postpanic.rehearse.subject import read_subject


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="a machine of riscv64 cannot be rehearsed yet"):
        read_subject(decode_config(b"", "x"), Host(tmp_path, "riscv64", "6.1.0"))
    assert list(tmp_path.iterdir()) == []


def test_images_of_the_distribution_are_refused(tmp_path: Path) -> None:
    config = decode_config(b'[capture]\nimage = "dracut"\n', "x")
    with pytest.raises(NotReadyError, match="an image of dracut cannot be rehearsed"):
        read_subject(config, Host(tmp_path, "x86_64", "6.1.0"))
