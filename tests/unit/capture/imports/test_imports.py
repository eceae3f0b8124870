"""Other tools' configuration, taken over: every setting becomes something or is listed with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.capture.config import FileTarget, NfsTarget, RawTarget, SshTarget, decode_config
from postpanic.capture.host import Host
from postpanic.capture.imports import Draft, encode_toml, import_file, import_host
from postpanic.cli.app import main
from postpanic.errors import FactAbsentError, UnsupportedError, UsageError

Import = Callable[[str, str], Draft]

KDUMP_CONF = """
# what is commented out does not count
#raw /dev/vg/lv_kdump
auto_reset_crashkernel yes
ext4 LABEL=/boot
nfs [2001:db8::7]:/export/tmp
ssh user@my.server.com
sshkey /root/.ssh/kdump_id
path /var/dumps
core_collector makedumpfile -l --message-level 7 -d 31
kdump_pre /usr/bin/before -x "a b"
kdump_post /var/crash/scripts/kdump-post.sh
extra_bins /usr/bin/lftp /usr/bin/strace
extra_modules gfs2 extra
failure_action dump_to_rootfs
final_action poweroff
dracut_args --omit-drivers "cfg80211 snd"
fence_kdump_nodes node1 node2
"""
SYSCONFIG = """
KDUMP_KERNELVER="6.1.0"
KDUMP_COMMANDLINE_REMOVE="hugepages quiet"
KDUMP_COMMANDLINE_APPEND="irqpoll nr_cpus=1 reset_devices novmcoredd hpsa.simple=1"
KEXEC_ARGS="-c --console-vga --no-checks"
KDUMP_IMG="vmlinuz"
"""
KDUMP_TOOLS = """
# kdump-tools configuration
USE_KDUMP=1
#KDUMP_KERNEL=/var/lib/kdump/vmlinuz
KDUMP_COREDIR="/var/crash"
KDUMP_FAIL_CMD="reboot -f"
KDUMP_DUMP_DMESG=1
KDUMP_NUM_DUMPS=5
MAKEDUMP_ARGS="-c -d 17"
KDUMP_CMDLINE_APPEND="reset_devices systemd.unit=kdump-tools-dump.service nr_cpus=1 irqpoll usbcore.nousb"
SSH="root@kdumphost"
NFS="172.16.0.1:/var/crash"
NFS_TIMEO="600"
NFS_MOUNT_RETRY="4"
FTP_PASSWORD="secret"
"""
SUSE = """
## Type: string
KDUMP_CPUS="2"
KDUMP_IMMEDIATE_REBOOT="no"
KDUMP_SAVEDIR="file:///var/crash ssh://dump:secret@server.example.com:2222/srv ftp://x/y"
KDUMP_KEEP_OLD_DUMPS="5"
KDUMP_FREE_DISK_SIZE="64"
KDUMP_DUMPLEVEL="17"
KDUMP_DUMPFORMAT="ELF"
KDUMP_POSTSCRIPT="/usr/local/bin/after"
KDUMP_SSH_IDENTITY="kdump_key"
KDUMP_SMTP_PASSWORD="hush"
"""


@pytest.fixture
def take(tmp_path: Path) -> Import:
    def call(name: str, text: str) -> Draft:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return import_file(path, Host(tmp_path))

    return call


def left(draft: Draft) -> dict[str, str]:
    return {one.name: one.outcome for one in draft.settings if not one.is_taken}


def test_fedora(take: Import, tmp_path: Path) -> None:
    (tmp_path / "etc/sysconfig").mkdir(parents=True)
    (tmp_path / "etc/sysconfig/kdump").write_text(SYSCONFIG)
    draft = take("etc/kdump.conf", KDUMP_CONF)
    config = decode_config(encode_toml(draft.encode()).encode(), "x")
    disk, nfs, ssh = config.targets
    assert isinstance(disk, FileTarget)
    assert (str(disk.device), disk.filesystem, disk.path) == ("LABEL=/boot", "ext4", "/var/dumps")
    assert isinstance(nfs, NfsTarget)
    assert (nfs.server, nfs.export, nfs.path) == ("2001:db8::7", "/export/tmp", "var/dumps")
    assert isinstance(ssh, SshTarget)
    assert (ssh.user, ssh.server, ssh.private_key) == ("user", "my.server.com", "/root/.ssh/kdump_id")
    (fallback,) = config.fallbacks
    assert isinstance(fallback, FileTarget)
    assert fallback.device is None
    assert config.dump.level == (31,)
    assert config.after.success == "poweroff"
    assert config.hooks.before[0].command == ("/usr/bin/before", "-x", "a b")
    assert config.capture.include == ("/usr/bin/lftp", "/usr/bin/strace")
    assert config.capture.modules == ("gfs2", "extra")
    assert config.capture.kernel == "6.1.0"
    assert config.capture.kexec == "legacy"
    assert config.capture.console_vga is True
    assert config.capture.kexec_options == ("--no-checks",)
    assert tuple(config.capture.command_line_append) == ("hpsa.simple=1",)
    assert left(draft).keys() == {"auto_reset_crashkernel", "dracut_args", "fence_kdump_nodes", "KDUMP_IMG"}


def test_debian(take: Import) -> None:
    draft = take("kdump-tools", KDUMP_TOOLS)
    config = decode_config(encode_toml(draft.encode()).encode(), "x")
    (ssh,), (nfs,) = config.targets, config.fallbacks
    assert isinstance(ssh, SshTarget)
    assert (ssh.server, ssh.private_key, ssh.keep_count) == ("kdumphost", "/root/.ssh/kdump_id_rsa", 5)
    assert isinstance(nfs, NfsTarget)
    assert (nfs.options, nfs.attempts) == ("timeo=600", 4)
    assert config.dump.level == (17,)
    assert config.after.failure == "reboot"
    assert config.capture.command_line_append == ()
    assert left(draft) == {"FTP_PASSWORD": "FTP is no target"}
    assert "secret" not in repr(draft)


def test_suse(take: Import) -> None:
    draft = take("kdump", SUSE)
    config = decode_config(encode_toml(draft.encode()).encode(), "x")
    disk, ssh = config.targets
    assert isinstance(disk, FileTarget)
    assert (disk.path, disk.keep_count, disk.min_free_bytes) == ("/var/crash", 6, 64 << 20)
    assert isinstance(ssh, SshTarget)
    assert (ssh.user, ssh.server, ssh.port, ssh.path, ssh.private_key) == (
        *("dump", "server.example.com", 2222, "/srv"),
        "/root/.ssh/kdump_key",
    )
    assert config.dump.level == (17,)
    assert config.capture.nr_cpus == 2
    assert config.after.success == "shell"
    assert config.hooks.after[0].command == ("/usr/local/bin/after",)
    assert left(draft).keys() == {"KDUMP_SAVEDIR", "KDUMP_DUMPFORMAT", "KDUMP_SMTP_PASSWORD"}
    assert "secret" not in repr(draft.settings)
    assert "hush" not in repr(draft)


def test_raw_device(take: Import) -> None:
    draft = take("kdump.conf", "raw /dev/disk/by-id/x\ncore_collector scp\nno_such_thing 1\n")
    (target,) = decode_config(encode_toml(draft.encode()).encode(), "x").targets
    assert isinstance(target, RawTarget)
    assert str(target.device) == "/dev/disk/by-id/x"
    assert draft.tables["dump"] == {"level": 0}
    assert left(draft) == {"no_such_thing": "is not a setting of kdump.conf that is known"}


def test_empty_configuration_saves_to_the_default(take: Import) -> None:
    assert take("kdump.conf", "# nothing\n").encode() == {"target": [{"kind": "file", "path": "/var/crash"}]}


def test_other_files_are_refused(take: Import, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="is no configuration that is known"):
        take("passwd", "root:x:0:0:root:/root:/bin/bash\n")
    with pytest.raises(UnsupportedError):
        take("other", "A=1\n")
    with pytest.raises(FactAbsentError, match="no other tool is configured"):
        import_host(Host(tmp_path))
    with pytest.raises(FactAbsentError, match="cannot be read"):
        import_file(tmp_path / "absent", Host(tmp_path))


def test_what_cannot_be_is_refused(take: Import) -> None:
    with pytest.raises(UsageError, match="what its settings become is refused"):
        take("kdump.conf", "ssh user@\n")


def test_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "kdump.conf", tmp_path / "postpanic.toml"
    source.write_text(KDUMP_CONF)
    words = ["import", "--root", str(tmp_path), str(source)]
    assert main([*words, "-o", str(target)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "left out: dracut_args --omit-drivers" in captured.err
    assert len(decode_config(target.read_bytes(), str(target)).targets) == 3
    assert main([*words, "-o", str(target)]) == 64
    assert "is there already" in capsys.readouterr().err
    assert main([*words, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["tool"] == "kdump-utils"
    assert {one["name"] for one in value["settings"] if not one["taken"]} == {
        *("auto_reset_crashkernel", "dracut_args", "fence_kdump_nodes")
    }
