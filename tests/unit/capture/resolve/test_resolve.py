"""Paths, devices and servers of a configuration are found on a machine, or refused with the reason."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from postpanic.capture.config import Config, decode_config
from postpanic.capture.resolve import FoundNetwork, Resolved, list_servers, resolve
from postpanic.errors import NotReadyError
from postpanic.saver.plan import BlockPlan, FilePlan, HttpPlan, NetworkPlan, NfsPlan, RawPlan, SshPlan
from postpanic.saver.plan_json import decode_plan, encode_plan
from tests.unit.capture.resolve.machine import EXT4_UUID, SWAP_UUID, MachineTree, make_ext4, make_virtio_machine

INDEX = """\
# Aliases extracted from modules themselves.
alias virtio:d00000002v* virtio_blk
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
alias pci:v*d*sv*sd*bc01sc06i01* ahci
"""


@pytest.fixture
def modules_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "modules"
    directory.mkdir()
    (directory / "modules.alias").write_text(INDEX)
    for name in ("virtio_pci", "virtio_blk", "ahci"):
        (directory / f"{name}.ko").touch()
    return directory


@pytest.fixture
def machine(tmp_path: Path) -> MachineTree:
    (tmp_path / "machine").mkdir()
    return make_virtio_machine(tmp_path / "machine")


def config_of(text: str) -> Config:
    return decode_config(text.encode(), "c.toml")


def resolve_text(text: str, machine: MachineTree, modules_dir: Path, *, same_kernel: bool = True) -> Resolved:
    def find_network(_: Config, servers: object) -> FoundNetwork:
        return FoundNetwork(NetworkPlan(nameservers=(str(servers),)), ("virtio_net",), ("pci0000:00/0000:00:03.0",))

    return resolve(config_of(text), modules_dir, root=machine.root, same_kernel=same_kernel, find_network=find_network)


def refuse(text: str, machine: MachineTree, modules_dir: Path) -> NotReadyError:
    with pytest.raises(NotReadyError) as caught:
        resolve_text(text, machine, modules_dir)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 4
    return caught.value


FILE = '[[target]]\nkind = "file"\n'


def test_var_crash_is_found_on_its_disk(machine: MachineTree, modules_dir: Path) -> None:
    found = resolve_text("", machine, modules_dir)
    (target,) = found.plan.targets
    assert target == FilePlan(
        name=f"file /var/crash on UUID={EXT4_UUID}",
        device=BlockPlan(uuid=EXT4_UUID),
        filesystem="ext4",
        options="data=ordered",
        path="/var/crash",
    )
    assert found.plan.devices.sysfs_paths == ("pci0000:00/0000:00:04.0/virtio*",)
    assert not found.plan.devices.bind_all
    assert found.plan.network is None
    assert found.plan.node == "crashy"
    assert {"virtio_pci", "virtio_blk", "ext4"} <= set(found.modules)
    assert found.needs.evidence == (
        f"file /var/crash: /var/crash of the ext4 on vda1, found again by UUID={EXT4_UUID}",
    )
    assert decode_plan(encode_plan(found.plan)) == found.plan


def test_a_driver_that_is_built_in_here_is_found_for_another_kernel(machine: MachineTree, modules_dir: Path) -> None:
    for driver in (machine.root / "sys/bus").glob("*/drivers/*"):
        (driver / "module").unlink()
    assert "virtio_blk" not in resolve_text("", machine, modules_dir).modules
    assert {"virtio_blk", "virtio_pci"} <= set(resolve_text("", machine, modules_dir, same_kernel=False).modules)


def test_a_bind_mount_is_followed_to_the_directory_behind_it(machine: MachineTree, modules_dir: Path) -> None:
    machine.mount("vda1", "/var/crash", "ext4", inside="/srv/with\\040blank")
    (target,) = resolve_text(FILE + 'path = "/var/crash/deep"', machine, modules_dir).plan.targets
    assert isinstance(target, FilePlan)
    assert target.path == "/srv/with blank/deep"


def test_a_symbolic_link_is_followed(machine: MachineTree, modules_dir: Path) -> None:
    (machine.root / "srv").mkdir()
    (machine.root / "var").mkdir()
    (machine.root / "var/crash").symlink_to("../srv")
    (target,) = resolve_text("", machine, modules_dir).plan.targets
    assert isinstance(target, FilePlan)
    assert target.path == "/srv"


def test_what_was_mounted_last_in_a_place_counts(machine: MachineTree, modules_dir: Path) -> None:
    machine.mount("0:40 tmpfs", "/var", "tmpfs")
    machine.mount("vda1", "/var", "ext4", inside="/other")
    (target,) = resolve_text("", machine, modules_dir).plan.targets
    assert isinstance(target, FilePlan)
    assert target.path == "/other/crash"


@pytest.mark.parametrize(
    ("inside", "subvolume", "path"),
    [("/@var", "/@var", "/crash"), ("/@var/sub", "/@var", "/sub/crash"), ("/", "/", "/crash")],
)
def test_a_subvolume_of_btrfs_keeps_its_name(
    machine: MachineTree, modules_dir: Path, inside: str, subvolume: str, path: str
) -> None:
    image = machine.root / "btrfs.img"
    block = bytearray(4096)
    block[32:48] = bytes(range(16))
    block[64:72] = b"_BHRfS_M"
    image.write_bytes(bytes(65536) + bytes(block) + bytes(65536))
    for number in (2, 3):
        pci = f"pci0000:00/0000:00:0{4 + number}.0"
        machine.add_device(pci, driver="nvme", module="nvme")
        machine.add_block(f"{pci}/nvme/nvme{number}/nvme{number}n1", image)
    members = machine.root / "sys/fs/btrfs/00010203-0405-0607-0809-0a0b0c0d0e0f/devices"
    members.mkdir(parents=True)
    for number in (2, 3):
        (members / f"nvme{number}n1").symlink_to(machine.root / f"sys/class/block/nvme{number}n1")
    options = f"rw,ssd,space_cache=v2,compress=zstd:3,subvolid=257,subvol={subvolume}"
    machine.mount("0:33 /dev/nvme2n1", "/var", "btrfs", inside=inside, options=options)
    found = resolve_text("", machine, modules_dir)
    (target,) = found.plan.targets
    assert isinstance(target, FilePlan)
    assert (target.path, target.options) == (path, f"compress=zstd:3,subvol={subvolume}")
    assert target.device == BlockPlan(uuid="00010203-0405-0607-0809-0a0b0c0d0e0f")
    assert found.plan.devices.sysfs_paths == ("pci0000:00/0000:00:06.0", "pci0000:00/0000:00:07.0")
    assert {"nvme", "btrfs"} <= set(found.modules)


def test_a_disk_of_scsi_is_named_by_its_address(machine: MachineTree, modules_dir: Path) -> None:
    pci = "pci0000:00/0000:00:05.0"
    machine.add_device(pci, driver="virtio-pci", module="virtio_pci")
    machine.add_device(f"{pci}/virtio2", driver="virtio_scsi", module="virtio_scsi", bus="virtio")
    device = f"{pci}/virtio2/host3/target3:0:1/3:0:1:2"
    machine.add_device(device, driver="sd", module="sd_mod", bus="scsi")
    other = "11111111-2222-3333-4444-555555555555"
    machine.add_block(f"{device}/block/sda", make_ext4(machine.root / "sda.img", other))
    found = resolve_text(FILE + f'device = "UUID={other}"\npath = "/dumps"', machine, modules_dir)
    assert found.plan.devices.sysfs_paths == ("pci0000:00/0000:00:05.0/virtio*/host*/target*:0:1/*:0:1:2",)
    assert {"sd_mod", "virtio_scsi", "virtio_pci"} <= set(found.modules)
    (target,) = found.plan.targets
    assert isinstance(target, FilePlan)
    assert (target.filesystem, target.path, target.options) == ("ext4", "/dumps", "")


def test_a_copy_of_the_disk_is_told_apart(machine: MachineTree, modules_dir: Path) -> None:
    pci = "pci0000:00/0000:00:05.0"
    machine.add_device(pci, driver="virtio-pci", module="virtio_pci")
    machine.add_block(f"{pci}/virtio2/block/vdb", serial="disk-2")
    machine.add_block(f"{pci}/virtio2/block/vdb/vdb1", machine.root / "vda1.img", partition=1)
    (target,) = resolve_text("", machine, modules_dir).plan.targets
    assert isinstance(target, FilePlan)
    assert target.device == BlockPlan(uuid=EXT4_UUID, serial="disk-1", partition=1)


@pytest.mark.parametrize(
    "device",
    ["UUID=" + EXT4_UUID, "LABEL=root", "/dev/vda1", "/dev/disk/by-uuid/" + EXT4_UUID, "/dev/disk/by-label/root"],
)
def test_a_device_is_found_by_each_of_its_names(machine: MachineTree, modules_dir: Path, device: str) -> None:
    found = resolve_text(FILE + f'device = "{device}"\npath = "/x"', machine, modules_dir)
    (target,) = found.plan.targets
    assert isinstance(target, FilePlan)
    assert target.device == (BlockPlan(label="root") if "root" in device else BlockPlan(uuid=EXT4_UUID))
    assert found.plan.devices.sysfs_paths == ("pci0000:00/0000:00:04.0/virtio*",)


def test_a_swap_area_is_a_raw_target_when_it_is_given_up(machine: MachineTree, modules_dir: Path) -> None:
    text = f'{FILE}[[fallback]]\nkind = "raw"\ndevice = "UUID={SWAP_UUID}"\nswap = true\n'
    found = resolve_text(text, machine, modules_dir)
    assert found.plan.fallbacks == (RawPlan(name=f"raw UUID={SWAP_UUID}", device=BlockPlan(uuid=SWAP_UUID), swap=True),)


@pytest.mark.parametrize(
    ("device", "swap", "message"),
    [
        ("/dev/vda2", "false", "there is swap on it"),
        ("/dev/vda1", "false", "there is ext4 on it, which a dump would overwrite"),
        ("/dev/vda1", "true", "is no swap area: there is ext4 on it"),
        ("/dev/vda", "true", "is no swap area: nothing known is on it"),
        ("/dev/vdz", "true", "there is no block device /dev/vdz"),
        ("UUID=abc", "true", "no block device with UUID=abc"),
    ],
)
def test_a_raw_device_that_holds_something_is_refused(
    machine: MachineTree, modules_dir: Path, device: str, swap: str, message: str
) -> None:
    error = refuse(f'[[target]]\nkind = "raw"\ndevice = "{device}"\nswap = {swap}', machine, modules_dir)
    assert message in str(error)


@pytest.mark.parametrize(
    ("uuid", "kind"),
    [
        ("LVM-abc", "LVM"),
        ("CRYPT-LUKS2-abc-root", "LUKS"),
        ("mpath-3600", "multipath"),
        ("part1-mpath-3600", "multipath"),
        ("", "device mapper"),
    ],
)
def test_a_stack_is_named_with_what_to_do(machine: MachineTree, modules_dir: Path, uuid: str, kind: str) -> None:
    machine.add_block("virtual/block/dm-0", machine.root / "vda1.img", dm__uuid=uuid, dm__name="vg-root")
    machine.mount("dm-0", "/var", "ext4")
    error = refuse("", machine, modules_dir)
    assert "vg-root" in str(error)
    assert f"({kind})" in str(error)
    assert "dracut" in error.hint
    assert "initramfs-tools" in error.hint


def test_a_stack_is_left_to_the_image_of_a_distribution(machine: MachineTree, modules_dir: Path) -> None:
    image = make_ext4(machine.root / "lv.img", "11111111-2222-3333-4444-555555555555")
    volume = machine.add_block("virtual/block/dm-1", image, dm__uuid="LVM-abc", dm__name="vg-crash")
    below = machine.add_block("virtual/block/dm-0", dm__uuid="CRYPT-LUKS2-abc", dm__name="crypt")
    for place, name, slave in ((volume, "dm-0", below), (below, "vda1", machine.root / "sys/class/block/vda1")):
        (place / "slaves").mkdir()
        (place / "slaves" / name).symlink_to(slave)
    machine.mount("dm-1", "/var", "ext4")
    found = resolve_text('[capture]\nimage = "dracut"\n', machine, modules_dir)
    (target,) = found.plan.targets
    assert isinstance(target, FilePlan)
    assert target.device == BlockPlan(uuid="11111111-2222-3333-4444-555555555555")
    assert found.plan.devices.bind_all
    assert found.modules == ("ext4",)
    assert found.needs.evidence[0].endswith(", on LVM, on LUKS")
    assert "nobody is there to type a passphrase" in found.needs.warnings[0]


def test_a_raid_is_named(machine: MachineTree, modules_dir: Path) -> None:
    machine.add_block("virtual/block/md0", machine.root / "vda1.img", md__level="raid1")
    machine.mount("md0", "/var", "ext4")
    assert "md0 is a RAID (raid1) (md)" in str(refuse("", machine, modules_dir))


@pytest.mark.parametrize(
    ("filesystem", "source", "message", "hint"),
    [
        ("tmpfs", "tmpfs", "/var is tmpfs from tmpfs", "a directory on a disk"),
        ("nfs4", "srv:/export", "/var is nfs4 from srv:/export", 'kind = "nfs", server = "srv", export = "/export"'),
        ("overlay", "overlay", "/var is overlay", "live system"),
    ],
)
def test_what_is_no_disk_is_refused(
    machine: MachineTree, modules_dir: Path, filesystem: str, source: str, message: str, hint: str
) -> None:
    machine.mount(f"0:50 {source}", "/var", filesystem)
    error = refuse("", machine, modules_dir)
    assert message in str(error)
    assert hint in error.hint


def test_a_file_system_that_the_saver_does_not_know_is_refused(machine: MachineTree, modules_dir: Path) -> None:
    machine.mount("vda1", "/var", "f2fs")
    assert "vda1 is f2fs, must be one of" in str(refuse("", machine, modules_dir))
    text = f'{FILE}device = "/dev/vda1"\npath = "/x"\nfilesystem = "xfs"'
    assert "there is ext4 on vda1, not xfs" in str(refuse(text, machine, modules_dir))


def test_without_proc_a_device_must_be_named(machine: MachineTree, modules_dir: Path) -> None:
    (machine.root / "proc/self/mountinfo").unlink()
    assert 'device = "UUID=…"' in refuse("", machine, modules_dir).hint


def test_a_device_that_hangs_on_nothing_makes_all_be_bound(machine: MachineTree, modules_dir: Path) -> None:
    image = make_ext4(machine.root / "pmem.img", "11111111-2222-3333-4444-555555555555")
    machine.add_block("virtual/block/pmem0", image)
    machine.mount("pmem0", "/var", "ext4")
    found = resolve_text("", machine, modules_dir)
    assert found.plan.devices.bind_all
    assert "pmem0 has no place of its own" in found.needs.warnings[-1]


def test_all_devices_are_bound_where_the_configuration_says_so(machine: MachineTree, modules_dir: Path) -> None:
    assert resolve_text('[capture]\ndevices = "all"\nmodules = ["extra"]', machine, modules_dir).plan.devices.bind_all


def test_a_server_brings_its_network(machine: MachineTree, modules_dir: Path) -> None:
    text = '[[target]]\nkind = "nfs"\nserver = "nas"\nexport = "/x"\nversion = "3"\n[network]\nwait = 7\n'
    found = resolve_text(text, machine, modules_dir)
    assert isinstance(found.plan.targets[0], NfsPlan)
    assert found.plan.network == NetworkPlan(nameservers=("['nas']",), wait_s=7.0)
    assert {"virtio_net", "nfs", "nfsv3"} <= set(found.modules)
    assert found.plan.devices.sysfs_paths == ("pci0000:00/0000:00:03.0",)


def test_options_of_modprobe_reach_the_modules(machine: MachineTree, modules_dir: Path) -> None:
    for directory, text in (
        ("etc", "options virtio-blk queue_depth=4\n"),
        ("lib", "options virtio_blk poll_queues=1\n"),
    ):
        (machine.root / directory / "modprobe.d").mkdir(parents=True)
        (machine.root / directory / "modprobe.d" / f"{directory}.conf").write_text(f"# x\n{text}options other a=1\n")
    found = resolve_text("", machine, modules_dir)
    assert found.module_options == {"virtio_blk": "queue_depth=4 poll_queues=1"}


SSH = '[[target]]\nkind = "ssh"\nserver = "Srv.example"\nport = {port}\nkey = "/etc/key"\nknown_hosts = "/etc/known"\n'


@pytest.fixture
def keys(machine: MachineTree) -> MachineTree:
    for name, passphrase in (("key", ""), ("locked", "secret")):
        path = str(machine.root / "etc" / name)
        subprocess.run(["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", path], check=True)
    public = (machine.root / "etc/key.pub").read_text()
    (machine.root / "etc/known").write_text(f"# hosts\nother,*.example {public}[srv.example]:2222 {public}")
    return machine


@pytest.mark.parametrize("port", [22, 2222])
@pytest.mark.parametrize("hashed", [False, True])
def test_a_server_of_ssh_is_known_by_its_host_key(
    keys: MachineTree, modules_dir: Path, port: int, *, hashed: bool
) -> None:
    known = keys.root / "etc/known"
    if hashed:
        # ssh-keygen hashes no patterns.
        known.write_text(known.read_text().replace("other,*.example", "srv.example"))
        subprocess.run(["/usr/bin/ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
        assert "srv" not in known.read_text()
    found = resolve_text(SSH.format(port=port), keys, modules_dir)
    (target,) = found.plan.targets
    assert isinstance(target, SshPlan)
    assert [(one.path, one.source.name) for one in found.needs.files] == [
        (target.key, "key"),
        (target.known_hosts, "known"),
    ]
    assert found.needs.has_ssh


def test_ssh_without_its_keys_is_refused(keys: MachineTree, modules_dir: Path) -> None:
    assert "has no host key of Srv.example" in str(refuse(SSH.format(port=23), keys, modules_dir))
    locked = SSH.format(port=22).replace("/etc/key", "/etc/locked")
    assert "has a passphrase" in str(refuse(locked, keys, modules_dir))
    missing = SSH.format(port=22).replace("/etc/key", "/etc/none")
    assert "/etc/none: no such file" in str(refuse(missing, keys, modules_dir))


def test_https_takes_the_certificates_of_the_machine(machine: MachineTree, modules_dir: Path) -> None:
    text = '[[target]]\nkind = "http"\nurl = "https://u:p@x.example:444/{name}/{file}?secret=1"\n'
    assert "no certificates" in str(refuse(text, machine, modules_dir))
    (machine.root / "etc/ssl/certs").mkdir(parents=True)
    (machine.root / "etc/ssl/certs/ca-certificates.crt").write_text("x")
    found = resolve_text(text, machine, modules_dir)
    (target,) = found.plan.targets
    assert isinstance(target, HttpPlan)
    assert target.ca_file == found.needs.files[0].path
    assert found.needs.has_https
    assert "secret" not in target.name
    assert "p@" not in target.name


def test_http_warns_that_it_is_not_encrypted(machine: MachineTree, modules_dir: Path) -> None:
    found = resolve_text('[[target]]\nkind = "http"\nurl = "http://x/{name}/{file}"\n', machine, modules_dir)
    assert "in the clear" in found.needs.warnings[0]
    text = '[[target]]\nkind = "http"\nurl = "http://x/presigned"\nmode = "whole"\n'
    assert "no place for the log" in resolve_text(text, machine, modules_dir).needs.warnings[1]


def test_each_server_is_listed_once() -> None:
    nfs = '[[target]]\nkind = "nfs"\nserver = "a"\nexport = "/x"\n'
    http = '[[fallback]]\nkind = "http"\nurl = "http://[2001:db8::1]:80/{file}"\n'
    assert list_servers(config_of(nfs + nfs + http)) == ["a", "2001:db8::1"]


def test_a_target_keeps_its_own_settings(machine: MachineTree, modules_dir: Path) -> None:
    text = '[dump]\nlevel = [31, 15]\ncompression = "none"\n' + FILE + "level = 1\nkeep = 2\n" + FILE
    first, second = resolve_text(text, machine, modules_dir).plan.targets
    assert (first.dump_levels, first.compression, first.retention.keep_count) == ((1,), "none", 2)
    assert (second.dump_levels, second.compression) == ((31, 15), "none")


def test_devices_of_another_root_tree_are_taken_at_their_word(tmp_path: Path, modules_dir: Path) -> None:
    (tmp_path / "tree/etc").mkdir(parents=True)
    text = f'{FILE}device = "UUID=1-2"\npath = "/dumps"\nfilesystem = "xfs"\n[capture]\nmodules = ["ahci", "sd_mod"]'
    found = resolve(config_of(text), modules_dir, root=tmp_path / "tree", same_kernel=False)
    (target,) = found.plan.targets
    assert isinstance(target, FilePlan)
    assert (target.device, target.filesystem, target.path) == (BlockPlan(uuid="1-2"), "xfs", "/dumps")
    assert found.plan.devices.bind_all
    assert {"ahci", "sd_mod", "xfs"} <= set(found.modules)
    assert "modules must be named" in found.needs.warnings[0]
    with pytest.raises(NotReadyError, match="file system on the device is not known"):
        resolve(config_of(text.replace('filesystem = "xfs"\n', "")), modules_dir, root=tmp_path / "tree")
    with pytest.raises(NotReadyError, match="cannot tell what is mounted"):
        resolve(config_of(""), modules_dir, root=tmp_path / "tree")
