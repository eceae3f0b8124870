"""The configuration is read whole, or refused in one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.capture.config import (
    DeviceName,
    FileTarget,
    HttpTarget,
    NfsTarget,
    RawTarget,
    SshTarget,
    decode_config,
    default_config,
    read_config,
)
from postpanic.errors import UsageError

EVERYTHING = """
[dump]
level = [31, 15]
compression = "none"
compression_level = 3
self_test = false

[[target]]
kind = "file"
path = "/var/crash"
keep = 5
keep_bytes = "20 GiB"
min_free = "1GiB"
limit = "512M"
attempts = 1
timeout = "2 min"
level = 31
compression = "zstd"

[[target]]
kind = "file"
device = "LABEL=dumps"
path = "/here"
filesystem = "xfs"
options = "noatime"

[[target]]
kind = "nfs"
server = "192.0.2.1"
export = "/srv/dumps"
path = "mine/"
version = "3"

[[target]]
kind = "ssh"
server = "[2001:db8::1]"
user = "crash"
port = 2222
key = "/etc/key"
known_hosts = "/etc/known"

[[target]]
kind = "http"
url = "https://dumps.example:8443/{name}/{file}?x=1"
mode = "range"
part_size = "1 MiB"
headers = { Authorization = "Bearer 1", X-A = "b" }
ca_file = "/etc/ca.pem"

[[fallback]]
kind = "raw"
device = "PARTUUID=0f-01"
swap = true

[capture]
kernel = "6.1.0-1-amd64"
command_line_append = 'mce=off dyndbg="file a.c +p"'
command_line_remove = ["quiet"]
nr_cpus = 2
kexec = "legacy"
reset_vga = true
core_headers = "elf64"
kexec_options = ["--debug"]
modules = ["ahci"]
firmware = ["bnx2/bnx2-mips-06-6.2.3.fw"]
include = ["/usr/bin/true"]
devices = "all"

[panic]
panic = 30
panic_on_oops = false
sysrq = 8

[network]
nameservers = ["192.0.2.53"]
wait = 5

[[network.interface]]
name = "eno1"

[[network.interface]]
name = "eno1.7"
kind = "vlan"
parent = "eno1"
vlan_id = 7
method = "static"
addresses = ["192.0.2.7/24"]
[[network.interface.route]]
gateway = "192.0.2.1"

[[hooks.before]]
command = ["/usr/bin/logger", "crash"]
timeout = 1.5

[after]
success = "poweroff"
failure = "shell"

[limits]
timeout = "1.5 h"
device_wait = 10
buffer = "32MiB"
threads = 2
watchdog = false
"""


def refuse(text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        decode_config(text.encode(), "c.toml")
    assert "\n" not in str(caught.value)
    return caught.value


def test_every_table_is_read() -> None:
    config = decode_config(EVERYTHING.encode(), "c.toml")
    first, second, nfs, ssh, http = config.targets
    assert config.dump.level == (31, 15)
    assert isinstance(first, FileTarget)
    assert (first.keep_count, first.keep_bytes, first.min_free_bytes) == (5, 20 << 30, 1 << 30)
    assert (first.limit_bytes, first.attempts, first.timeout_s, first.level) == (512 << 20, 1, 120.0, (31,))
    assert isinstance(second, FileTarget)
    assert (second.device, second.filesystem, second.level) == (DeviceName("LABEL", "dumps"), "xfs", None)
    assert isinstance(nfs, NfsTarget)
    assert (nfs.version, nfs.path) == ("3", "mine")
    assert isinstance(ssh, SshTarget)
    assert (ssh.server, ssh.private_key, ssh.port) == ("2001:db8::1", "/etc/key", 2222)
    assert isinstance(http, HttpTarget)
    assert http.headers == (("Authorization", "Bearer 1"), ("X-A", "b"))
    assert http.part_bytes == 1 << 20
    assert config.fallbacks == (RawTarget(device=DeviceName("PARTUUID", "0f-01"), swap=True),)
    assert config.capture.command_line_append == ("mce=off", 'dyndbg="file a.c +p"')
    assert config.capture.firmware == ("bnx2/bnx2-mips-06-6.2.3.fw",)
    assert (config.panic.panic, config.panic.panic_on_oops, config.panic.panic_on_warn) == (30, False, None)
    assert config.network.interfaces[1].routes[0].gateway == "192.0.2.1"
    assert config.hooks.before[0].command == ("/usr/bin/logger", "crash")
    assert (config.after.success, config.after.failure) == ("poweroff", "shell")
    assert (config.limits.timeout_s, config.limits.buffer_bytes, config.limits.watchdog) == (5400.0, 32 << 20, False)


def test_without_a_file_var_crash_is_saved_to(tmp_path: Path) -> None:
    assert read_config(tmp_path / "none.toml") == default_config()
    assert default_config().targets == (FileTarget(path="/var/crash"),)


def test_a_file_without_targets_saves_to_var_crash_too() -> None:
    config = decode_config(b'[after]\nsuccess = "halt"\n', "c.toml")
    assert config.targets == default_config().targets
    assert config.after.success == "halt"


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_config(tmp_path / "none.toml", must_exist=True)


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a =\n", 1),
        ("\n\n[dump\n", 3),
        ("[dump]\nlevel = 1\nlevel = 2\n", 3),
        ('x = """\nno end\n', 2),
        ("[dump]\n[dump]\n", 2),
        ("\x00", 1),
    ],
)
def test_broken_toml_names_its_line(text: str, line: int) -> None:
    error = refuse(text)
    assert error.where == f"c.toml:{line}"
    assert "no TOML" in str(error)
    assert error.exit_status == 64


def test_bytes_that_are_no_utf8_name_their_line() -> None:
    with pytest.raises(UsageError, match=r"c\.toml:2: no UTF-8: byte 0xff"):
        decode_config(b"# fine\n# \xff\n", "c.toml")


def test_a_file_that_is_nested_without_end_is_refused() -> None:
    assert "no TOML" in str(refuse("a = " + "[" * 20000))


def test_a_file_that_is_too_large_is_refused() -> None:
    assert "256 KiB" in str(refuse("#" * (300 << 10)))


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("[dump]\nlevle = 3\n", 2, "dump.levle is not known", "did you mean level?"),
        ("[capture]\n# why\nnr-cpus = 3\n", 3, "capture.nr-cpus is not known", "did you mean nr_cpus?"),
        ("[dmup]\n", 1, "dmup is not known", "did you mean dump?"),
        ("[[targets]]\n", 1, "targets is not known", "did you mean target?"),
        (
            '[[target]]\nkind="raw"\ndevice="/dev/vda"\npath="/x"\n',
            4,
            "target[1].path is not known",
            "known here: level",
        ),
        ('[[target]]\npath="/x"\n', 1, "target[1] lacks the key kind", 'one of "file", "raw"'),
        ('[[target]]\nkind="raw"\n', 1, "target[1] lacks the key device", "device:"),
        ('[[target]]\nkind="fil"\n', 2, 'target[1].kind is "fil", must be one of "file"', ""),
        ('[target]\nkind="file"\n', 1, "must be a list of tables", "[[target]]"),
        ("target = [1]\n", 1, "target[1] lacks the key kind", ""),
        ("dump = 1\n", 1, "dump is 1, must be a table", ""),
        ("\n[dump]\nlevel = [\n31,\n# x\n\n99]\n", 3, "dump.level is [31, 99], must be a dump level from 0 to 31", ""),
        ("[dump]\nlevel = true\n", 2, "dump.level is true, must be", ""),
        ("[dump]\nlevel = []\n", 2, "dump.level is []", ""),
        ('[dump]\nself_test = "yes"\n', 2, 'dump.self_test is "yes", must be true or false', ""),
        ('[limits]\nbuffer = "20 X"\n', 2, 'limits.buffer is "20 X", must be a size', ""),
        ("[limits]\nbuffer = -1\n", 2, "limits.buffer is -1, must be a size", ""),
        ('[limits]\ntimeout = "1 week"\n', 2, 'limits.timeout is "1 week", must be a time from 30 s to 7 d', ""),
        ("[limits]\ntimeout = nan\n", 2, "limits.timeout is nan, must be a time", ""),
        ('[[target]]\nkind="file"\npath="crash"\n', 3, 'path is "crash", must be a path that begins with /', ""),
        ('[[target]]\nkind="file"\npath="/a/../b"\n', 3, "must not go up by ..", ""),
        ('[[target]]\nkind="raw"\ndevice="vda"\n', 3, 'device is "vda", must be "UUID=…"', ""),
        ('[[target]]\nkind="http"\nurl="ftp://x/{file}"\n', 3, "must be an address that begins with http://", ""),
        ('[[target]]\nkind="http"\nurl="http://x:99999/{file}"\n', 3, "must be an address", ""),
        ('[[target]]\nkind="http"\nurl="http://x/"\n', 3, "lacks {file}", "{name}/{file}"),
        ('[[target]]\nkind="nfs"\nserver="a b"\nexport="/x"\n', 3, "must be the name or the address of a host", ""),
        ('[[target]]\nkind="file"\nfilesystem="ext4"\n', 3, "filesystem goes with device only", ""),
        ('[[target]]\nkind="file"\ntimeout=0\n', 3, "must be a time from 1 s", ""),
        ('[capture]\nkind = "x"\n', 2, "capture.kind is not known", ""),
        ('[[hooks.before]]\ncommand=["true"]\n', 2, "must begin with a program's whole path", ""),
        ("[[hooks.before]]\ncommand=[]\n", 2, "must begin with a program's whole path", ""),
        ('[[network.interface]]\nname="a"\nkind="vlan"\n', 1, "is a VLAN: it needs parent and vlan_id", ""),
        (
            '[[network.interface]]\nname="a"\n[[network.interface]]\nname="b"\nkind="bond"\nmembers=["c"]\n',
            6,
            'network.interface[2].members has "c", which no',
            "",
        ),
        ('[[network.interface]]\nname="a"\nmethod="static"\n', 3, "addresses are needed", ""),
        (
            '[[network.interface]]\nname="a"\naddresses=["192.0.2.300/24"]\n',
            3,
            "must be a list, each member an address",
            "",
        ),
        ("[panic]\nsysrq = 512\n", 2, "panic.sysrq is 512, must be a number from 0 to 511", ""),
        ("[panic]\npanic_on_oops = 1\n", 2, "panic.panic_on_oops is 1, must be true or false", ""),
    ],
)
def test_a_wrong_key_names_line_value_and_what_is_allowed(text: str, line: int, message: str, hint: str) -> None:
    error = refuse(text)
    assert error.where == f"c.toml:{line}"
    assert message in str(error)
    assert hint in error.hint


def test_the_line_of_a_key_is_found_in_a_long_file() -> None:
    text = "".join(f"# {number}\n" for number in range(2000)) + "[dump]\nlevel = 77\n" + "# more\n" * 2000
    assert refuse(text).where == "c.toml:2002"


def test_the_line_of_a_key_of_the_second_table_is_that_one() -> None:
    one = '[[target]]\nkind = "file"\nattempts = 3\n\n'
    assert refuse(one + one.replace("3", "0")).where == "c.toml:7"


def test_too_many_targets_are_refused() -> None:
    assert "at most 16" in str(refuse('[[target]]\nkind = "file"\n' * 17))
