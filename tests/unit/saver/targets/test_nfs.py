"""What the kernel's client of NFS is told, and what is said where it cannot be asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.errors import OutputError
from postpanic.saver.plan import NfsPlan
from postpanic.saver.targets.nfs import NfsTarget, make_nfs_options


def test_version_3_needs_no_daemons() -> None:
    options = make_nfs_options(NfsPlan(version="3", timeout_s=60.0), "192.0.2.1", "192.0.2.7").split(",")
    assert options == [
        *("vers=3", "proto=tcp", "soft", "timeo=200", "retrans=2", "sec=sys"),
        *("nolock", "mountproto=tcp", "mountaddr=192.0.2.1", "mountvers=3", "addr=192.0.2.1"),
    ]


def test_version_4_tells_our_address() -> None:
    options = make_nfs_options(NfsPlan(version="4.1", timeout_s=3.0), "2001:db8::1", "2001:db8::7").split(",")
    assert options == [
        *("vers=4.1", "proto=tcp6", "soft", "timeo=10", "retrans=2", "sec=sys"),
        *("clientaddr=2001:db8::7", "addr=2001:db8::1"),
    ]


def test_options_that_would_hang_or_contradict_are_left_out() -> None:
    plan = NfsPlan(options="rw,hard,bg,retry=5,vers=3,nfsvers=4,addr=10.0.0.1,rsize=65536,noresvport,lock,sec=krb5p")
    options = make_nfs_options(plan, "192.0.2.1", "192.0.2.7").split(",")
    assert [option for option in options if option in plan.options.split(",")] == ["rw", "rsize=65536", "noresvport"]
    assert options.count("soft") == 1


def test_name_that_is_none(tmp_path: Path) -> None:
    target = NfsTarget(NfsPlan(server="h\u00f6st", export="/x"), mounts_dir=tmp_path)
    with pytest.raises(OutputError, match="cannot be looked up"):
        target.open("node-20260131-235959")
    target.close()
    assert not list(tmp_path.iterdir())
