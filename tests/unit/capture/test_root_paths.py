"""Links of another root are followed inside of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.capture.host import Host
from postpanic.capture.root_paths import follow_below


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("boot/vmlinuz-6.1", "/images/vmlinuz"),
        ("boot/vmlinuz-6.1", "../images/vmlinuz"),
        ("boot/vmlinuz-6.1", "../../../../images/vmlinuz"),
        ("boot/vmlinuz-6.1", "/images/../images/./vmlinuz"),
        ("boot", "/images"),
    ],
)
def test_absolute_and_relative_links(tmp_path: Path, link: str, target: str) -> None:
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    (root / "images/vmlinuz").write_text("inside")
    (root / "images/vmlinuz-6.1").write_text("inside")
    (root / link).parent.mkdir(exist_ok=True)
    (root / link).symlink_to(target)
    assert follow_below(root, "/boot/vmlinuz-6.1").read_text() == "inside"
    host = Host(root, "x86_64", "6.1")
    assert host.find_kernel_image().read_text() == "inside"
    assert host.read_text("boot/vmlinuz-6.1") == "inside"


def test_what_is_not_there_stays_as_it_is_written(tmp_path: Path) -> None:
    assert follow_below(tmp_path, "/a/b/../c") == tmp_path / "a/c"
    assert follow_below(Path("/"), "etc/x") == Path("/etc/x")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/b")
    (tmp_path / "b").symlink_to("a")
    assert not follow_below(tmp_path, "a/file").exists()
