"""Types of inodes, as pages of files are shown with."""

from __future__ import annotations

from postpanic.analysis.filesystems.paths import inode_type


def test_types_of_inodes() -> None:
    kinds = {0o100644: "REG", 0o040755: "DIR", 0o020600: "CHR", 0o060600: "BLK", 0o010600: "FIFO", 0o140777: "SOCK"}
    assert {mode: inode_type(mode) for mode in kinds} == kinds
    assert (inode_type(0o120777), inode_type(0o600)) == ("LNK", "UNKN")
