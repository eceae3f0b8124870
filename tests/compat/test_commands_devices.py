"""``net``, ``dev``, ``irq``, ``ipcs``, ``swap``, ``mach``, ``bpf`` … against what /proc said right before the crash."""
# ruff: noqa: S108 - names of files in the guest

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from drgn import Object, TypeKind, sizeof

from postpanic import open_dump
from postpanic.analysis.open_dump import OpenDump
from postpanic.errors import FactAbsentError, UsageError
from postpanic.findings.table import Table
from postpanic.units import VirtAddr
from tests.compat.proc_views import ProcViews
from tests.vm.lab import Crash

KERNELS = ("6.1", "6.12")
TCP_STATES = {1: "ESTABLISHED", 7: "CLOSE", 8: "CLOSE_WAIT", 10: "LISTEN"}


@pytest.fixture(scope="module", params=KERNELS)
def crash(request: pytest.FixtureRequest, crashed: Callable[..., Crash]) -> Crash:
    return crashed(request.param, scenario="views")


@pytest.fixture(scope="module")
def dump(crash: Crash) -> Iterator[OpenDump]:
    with open_dump(crash.filtered) as opened:
        yield opened


@pytest.fixture(scope="module")
def views(crash: Crash) -> ProcViews:
    return ProcViews(crash.views)


def _nested(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    table = row[name]
    assert isinstance(table, Table), table
    return table.records()


def _sockets(dump: OpenDump, *tasks: str | int) -> list[dict[str, Any]]:
    rows = dump.run("net -s", task=list(tasks)).table.records()
    return [socket for row in rows for socket in _nested(row, "sockets")]


@pytest.mark.parametrize(
    ("file", "family", "type_"),
    [
        ("net/tcp", "INET", "STREAM"),
        ("net/tcp6", "INET6", "STREAM"),
        ("net/udp", "INET", "DGRAM"),
        ("net/udp6", "INET6", "DGRAM"),
        ("net/raw", "INET", "RAW"),
    ],
)
def test_inet_sockets_are_those_of_proc(file: str, family: str, type_: str, dump: OpenDump, views: ProcViews) -> None:
    expected = views.sockets(file)
    found = {
        socket["inode"]: (
            *(socket["source_address"], socket["source_port"]),
            *(socket["destination_address"], socket["destination_port"], socket["state"]),
        )
        for socket in _sockets(dump, "tcp-server/0", "udp-server/0", "view-holder")
        if (socket["family"], socket["type"]) == (family, type_)
    }
    # Inode 0 is one that nobody accepted yet; one that was never bound is in none of these files.
    shared = {inode for inode in expected if inode} & set(found)
    assert shared == {inode for inode in expected if inode}
    for inode in shared:
        *ends, state = expected[inode]
        assert found[inode] == (*ends, TCP_STATES[state]), inode
    unlisted = [found[inode] for inode in set(found) - shared]
    assert all(row[1] == 0 or row[-1] == "CLOSE" for row in unlisted)


def test_unix_sockets_are_those_of_proc(dump: OpenDump, views: ProcViews) -> None:
    expected = {}
    for line in views.lines("net/unix")[1:]:
        *_, type_, _, inode, name = (line + " ").split(" ", 7) if line.endswith(" ") else [*line.split(), ""][:8]
        expected[int(inode)] = (int(type_, 16), name.strip())
    types = {"STREAM": 1, "DGRAM": 2, "SEQPACKET": 5}
    found = [socket for socket in _sockets(dump, "unix-server/0", "view-holder") if socket["family"] == "UNIX"]
    assert len(found) > 15
    assert {socket["inode"]: (types[socket["type"]], socket["source"]) for socket in found} == {
        socket["inode"]: expected[socket["inode"]] for socket in found
    }
    by_inode = {socket["inode"]: socket for socket in found}
    pair = [socket for socket in found if socket["type"] == "SEQPACKET"]
    assert pair[0]["destination"] == f"[{pair[1]['inode']}]"
    assert by_inode[pair[1]["inode"]]["destination"] == f"[{pair[0]['inode']}]"
    assert {socket["source"] for socket in found} >= {"/tmp/held/socket", "@held-abstract", "/tmp/service.sock"}


def test_netlink_and_packet_sockets(dump: OpenDump, views: ProcViews) -> None:
    sockets = {socket["family"]: socket for socket in _sockets(dump, views.holder)}
    netlink, packet = sockets["NETLINK"], sockets["PACKET"]
    line = next(line.split() for line in views.lines("net/netlink") if line.split()[-1] == str(netlink["inode"]))
    assert (netlink["source"], netlink["destination"]) == (f"ROUTE-{line[2]}", f"groups {line[3]}")
    line = next(line.split() for line in views.lines("net/packet") if line.split()[-1] == str(packet["inode"]))
    assert line[3:5] == ["0806", "1"]
    assert packet["source"] == "ARP on lo"


def test_sockets_by_reference(dump: OpenDump, views: ProcViews) -> None:
    listener = next(socket for socket in _sockets(dump, views.holder) if socket["source_port"] == 7101)
    for word in (listener["fd"], f"{listener['socket']:x}", f"{listener['sock']:x}"):
        (row,) = dump.run(f"net -s -R {word} {views.holder}").table.records()
        assert [socket["fd"] for socket in _nested(row, "sockets")] == [listener["fd"]]
    (row,) = dump.run(f"net -Sx -R {listener['fd']} {views.holder}").table.records()
    (socket,) = _nested(row, "sockets")
    members = _nested(socket, "structures")
    assert [member["text"] for member in members if member["depth"] == 0] == ["struct socket {", "struct sock {"]
    assert next(member for member in members if member["name"].endswith("sk"))["number"] == listener["sock"]
    for line in ("net 1", "net -R 3"):
        with pytest.raises(UsageError):
            dump.run(line)


def test_network_devices_and_neighbours(dump: OpenDump, views: ProcViews) -> None:
    found = {row["name"]: row for row in dump.run("net").table.records()}
    assert set(found) == {line.split(":")[0].strip() for line in views.lines("net/dev")[2:]}
    addresses = {name: row["addresses"].split(", ") for name, row in found.items()}
    assert "10.0.2.15" in addresses["eth0"]
    for line in views.lines("net/if_inet6"):
        text, index, *_, name = line.split()
        spelled = ":".join(text[at : at + 4] for at in range(0, 32, 4))
        assert str(ipaddress.ip_address(spelled)) in addresses[name]
        assert found[name]["index"] == int(index, 16)
    container = next(int(name.split("/")[2]) for name in views.sections if re.fullmatch(r"/proc/\d+/net/dev", name))
    assert [row["name"] for row in dump.run("net -n", task=container).table.records()] == ["lo"]
    (arp,) = [line.split() for line in views.lines("net/arp")[1:]]
    neighbour = next(row for row in dump.run("net -a").table.records() if row["address"] == arp[0])
    assert (neighbour["hardware_address"], neighbour["device"]) == (arp[3], arp[5])
    assert (neighbour["state"], neighbour["hardware"]) == ("PERMANENT", "ETHER")
    assert dump.run("net -N 1041236234").table.records() == [{"address": "10.1.16.62"}]


def test_device_numbers_are_those_of_proc(dump: OpenDump, views: ProcViews) -> None:
    text = "\n".join(views.lines("devices"))
    answer = dump.run("dev")
    for table, heading in (("character_devices", "Character"), ("block_devices", "Block")):
        part = re.search(rf"{heading} devices:\n((?: *\d+ .*\n?)+)", text)
        assert part is not None
        expected = {(int(line.split()[0]), line.split()[1]) for line in part[1].splitlines()}
        assert {(row["major"], row["name"]) for row in answer[table].records()} == expected
    operations = {row["name"]: row["operations"] for row in answer["character_devices"].records()}
    assert operations["mem"] == "memory_fops"
    disks = {row["name"] for row in dump.run("dev -d").table.records()}
    assert disks == {line.split()[2] for line in views.lines("diskstats")}
    assert dump.run("dev -D").table.rows == ()


def test_resources_are_those_of_proc(dump: OpenDump, views: ProcViews) -> None:
    answer = dump.run("dev -i")
    for table, name in (("io_ports", "ioports"), ("io_memory", "iomem")):
        expected = []
        for line in views.lines(name):
            span, owner = line.strip().split(" : ")
            start, end = (int(word, 16) for word in span.split("-"))
            expected.append((start, end, owner, (len(line) - len(line.lstrip())) // 2))
        found = [(row["start"], row["end"], row["name"], row["depth"]) for row in answer[table].records()]
        assert found == expected


def test_pci_devices_are_those_of_sys(dump: OpenDump, views: ProcViews) -> None:
    expected = {}
    for name, text in views.sections.items():
        if name.startswith("pci "):
            code, vendor, device = (int(word, 16) for word in text.split())
            expected[name.removeprefix("pci ")] = (code >> 8, f"{vendor:04x}:{device:04x}")
    found = [device for bus in dump.run("dev -p").table.records() for device in _nested(bus, "devices")]
    assert {device["name"]: (device["class_code"], device["id"]) for device in found} == expected
    with pytest.raises(FactAbsentError):
        dump.run("dev -V")


def test_interrupts_are_those_of_proc(dump: OpenDump, views: ProcViews) -> None:
    found = {row["irq"]: row for row in dump.run("irq -s").table.records()}
    lines = [line for line in views.lines("interrupts") if re.match(r"\s*\d+:", line)]
    compared = 0
    for line in lines:
        number, *rest = line.replace(":", " ", 1).split()
        row = found.pop(int(number))
        counts = [cpu["count"] for cpu in _nested(row, "per_cpu")]
        before = [int(word) for word in rest[:2]]
        # The disk and the console were used after the view.
        assert all(now >= then for now, then in zip(counts, before, strict=True)), line
        compared += counts == before
        assert row["name"].split(",")[0] == rest[-1]
        assert rest[2].startswith(row["chip"].rsplit("-", 1)[0]), line
    assert compared > len(lines) // 2
    assert found == {}
    affinity = {row["irq"]: row["cpus"] for row in dump.run("irq -a").table.records()}
    for number, cpus in affinity.items():
        assert views.sections[f"/proc/irq/{number}/smp_affinity_list"].strip() == cpus
    (one,) = dump.run("irq -s -c 1").table.records()[:1]
    assert [cpu["cpu"] for cpu in _nested(one, "per_cpu")] == [1]
    (timer,) = dump.run("irq 0").table.records()
    assert (timer["name"], timer["handler"]) == ("timer", "timer_interrupt")


def test_vectors_and_soft_interrupts(dump: OpenDump, views: ProcViews) -> None:
    vectors = dump.run("irq -d").table.records()
    assert len(vectors) == 256
    assert vectors[14]["handler"] == "asm_exc_page_fault"
    names = {row["name"] for row in dump.run("irq -b").table.records()}
    assert {"tasklet_action", "net_rx_action", "run_timer_softirq"} <= names
    assert len(names) == len(views.lines("softirqs")) - 1
    used = dump.run("irq -u").table.records()
    assert {row["irq"] for row in used if row["irq"] is not None} >= {0, 1, 4}


def test_ipc_is_that_of_proc(dump: OpenDump, views: ProcViews) -> None:
    answer = dump.run("ipcs")
    shared = {
        int(words[1]): (int(words[0]) & 0xFFFFFFFF, int(words[2], 8) & 0o777, int(words[3]), int(words[6]))
        for words in (line.split() for line in views.lines("sysvipc/shm")[1:])
    }
    found = answer["shared_memory"].records()
    assert {row["id"]: (row["key"], row["permissions"], row["size"], row["attached"]) for row in found} == shared
    assert {row["id"]: row["status"] for row in found if row["key"] == 0} == {2: "dest"}
    arrays = {int(line.split()[1]): int(line.split()[3]) for line in views.lines("sysvipc/sem")[1:]}
    assert {row["id"]: row["count"] for row in answer["semaphores"].records()} == arrays
    queues = {
        int(words[1]): (int(words[3]), int(words[4]))
        for words in (line.split() for line in views.lines("sysvipc/msg")[1:])
    }
    assert {row["id"]: (row["used"], row["messages"]) for row in answer["message_queues"].records()} == queues


def test_pages_of_shared_memory_are_those_of_proc(dump: OpenDump, views: ProcViews) -> None:
    pages = {row["id"]: _nested(row, "pages")[0] for row in dump.run("ipcs -M").table.records()}
    for line in views.lines("sysvipc/shm")[1:]:
        words = line.split()
        resident, swapped = int(words[-2]) // 4096, int(words[-1]) // 4096
        found = pages[int(words[1])]
        assert (found["resident"], found["swapped"]) == (resident, swapped), line
        assert found["allocated"] == -(-int(words[3]) // 4096)
    one = dump.run("ipcs -m 1").table.records()
    assert [row["id"] for row in one] == [1]
    assert dump.run(f"ipcs -m {one[0]['shmid_kernel']:x}").table.records() == one
    container = next(int(name.split("/")[2]) for name in views.sections if re.fullmatch(r"/proc/\d+/net/dev", name))
    assert all(not table.rows for table in dump.run("ipcs", namespace=container).tables)


def test_swap_is_that_of_proc(dump: OpenDump, views: ProcViews) -> None:
    (row,) = dump.run("swap").table.records()
    file, type_, size, _, priority = views.lines("swaps")[1].split()
    assert (row["file"], row["type"].lower(), row["size"]) == (file, type_, int(size))
    assert (row["priority"], 0 < row["used"] < row["size"]) == (int(priority), True)


def test_machine(dump: OpenDump, views: ProcViews) -> None:
    (machine,) = dump.run("mach")["machine"].records()
    assert (machine["cpus"], machine["hz"], machine["stack_size"]) == (2, 250, 16384)
    speed = next(float(line.split(": ")[1]) for line in views.lines("cpuinfo") if line.startswith("cpu MHz"))
    assert machine["speed"] == pytest.approx(speed, abs=1)
    ranges = {(row["start"], row["end"] - 1): row["type"] for row in dump.run("mach -m").table.records()}
    for name, text in views.sections.items():
        if name.startswith("memmap "):
            start, end, kind = text.splitlines()
            # The kernel reserves the first page for itself.
            first = max(int(start, 16), 0x1000)
            expected = "E820_RAM" if kind == "System RAM" else "E820_RESERVED"
            assert ranges[first, int(end, 16)] == expected
    processors = dump.run("mach -cx").table.records()
    assert [row["cpu"] for row in processors] == [0, 1]
    model = next(line.split(": ")[1] for line in views.lines("cpuinfo") if line.startswith("model name"))
    texts = [member["value"] for member in _nested(processors[0], "structure") if member["name"] == "x86_model_id"]
    assert model in texts[0]
    with pytest.raises(UsageError, match="ppc64"):
        dump.run("mach -o")
    irq_stacks = next(row for row in dump.run("mach")["stacks"].records() if row["kind"] == "IRQ")
    assert len({row["vaddr"] for row in _nested(irq_stacks, "stacks")}) == 2


def test_bpf_is_that_of_proc(dump: OpenDump, views: ProcViews) -> None:
    infos = [
        dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        for name, text in views.sections.items()
        if f"/proc/{views.holder}/fdinfo/" in name
    ]
    answer = dump.run("bpf -PM -tj")
    (program,) = answer["programs"].records()
    info = next(info for info in infos if "prog_id" in info)
    assert (program["id"], program["tag"]) == (int(info["prog_id"]), info["prog_tag"].strip())
    assert program["type"] == "SOCKET_FILTER"
    (details,) = _nested(program, "details")
    assert (details["name"], details["gpl"], details["locked"]) == ("held_filter", "yes", int(info["memlock"]))
    loaded = dt.datetime.strptime(details["load_time"], "%a %b %d %H:%M:%S %Y").replace(tzinfo=dt.UTC).timestamp()
    made = int(views.lines("sysvipc/msg")[2].split()[-1])
    assert loaded == pytest.approx(made, abs=3)
    assert any("bpf-map" in path for path in views.links(f"{views.holder}/fd").values())
    for info in (info for info in infos if "map_id" in info):
        row = next(row for row in answer["maps"].records() if row["id"] == int(info["map_id"]))
        (found,) = _nested(row, "details")
        sizes = (int(info["key_size"]), int(info["value_size"]), int(info["max_entries"]))
        assert (found["key_size"], found["value_size"], found["max_entries"]) == sizes
        assert row["flags"] == int(info["map_flags"], 16)


def test_instructions_of_a_program(dump: OpenDump, views: ProcViews) -> None:
    (program,) = dump.run(f"bpf -p {1} -Tj").table.records()
    code = _nested(program, "bytecode")
    texts = [line["text"] for line in code]
    # What the guest loaded, after the verifier put its own in place of the load from the packet and the call.
    assert texts[0] == "(bf) r6 = r1"
    assert any(text.startswith("(85) call bpf_skb_load_helper_8_no_cache#") for text in texts)
    assert f"(18) r1 = map[id:{program['maps']}]" in texts
    assert texts[-3:] == ["(db) lock *(u64 *)(r0 +0) += r1", "(b7) r0 = 0", "(95) exit"]
    assert code[-1]["bytes"] == "95 00 00 00 00 00 00 00"
    machine_code = _nested(program, "machine_code")
    assert any(line["target"] == "bpf_skb_load_helper_8_no_cache" for line in machine_code)
    assert any(line["text"].startswith("lock addq") for line in machine_code)
    assert machine_code[-1]["address"] - machine_code[0]["address"] < 200
    for line in ("bpf -t", "bpf -s"):
        with pytest.raises(UsageError):
            dump.run(line)
    with pytest.raises(FactAbsentError):
        dump.run("bpf -p 99")
    assert views.holder


def test_waiters(dump: OpenDump) -> None:
    reader = next(iter(dump.run("files pipe-reader/0").table.records()))
    pipe = next(entry for entry in _nested(reader, "files") if entry["path"].startswith("pipe:"))
    file = Object(dump.prog, "struct file *", pipe["file"])
    (waiter,) = dump.run(f"waitq pipe_inode_info.rd_wait {file.private_data.value_():x}").table.records()
    assert (waiter["pid"], waiter["function"]) == (reader["pid"], "autoremove_wake_function")
    queue = Object(dump.prog, "struct pipe_inode_info *", file.private_data).rd_wait.address_
    assert dump.run(f"waitq {queue:x}").table.records() == [waiter]
    assert str(dump.run("waitq log_wait").table.title).endswith("is empty")
    with pytest.raises(FactAbsentError):
        dump.run("waitq task_struct.nosuch 1000")


def test_users_of_files(dump: OpenDump, views: ProcViews) -> None:
    (user,) = dump.run("fuser /tmp/mapped").table.records()
    assert (user["pid"], user["usage"]) == (views.holder, "fd mmap")
    shells = [pid for pid in views.pids if any(area.name == "/bin/busybox" for area in views.areas(pid))]
    found = {row["pid"] for row in dump.run("fuser /bin/busybox").table.records() if "mmap" in row["usage"]}
    alive = {row["pid"] for row in dump.run("files 'init' 'unshare' 'sleep' 'sh'").table.records()}
    assert found == alive & set(shells)
    assert {row["usage"] for row in dump.run("fuser /").table.records()} >= {"root cwd", "root"}


def test_bits_of_a_bitmap_queue(dump: OpenDump) -> None:
    disk = next(row for row in dump.run("dev -d").table.records() if row["name"] == "vda")
    tags = Object(dump.prog, "struct gendisk *", disk["gendisk"]).queue.tag_set.tags[0]
    queue = tags.bitmap_tags
    vaddr = queue.value_() if queue.type_.kind is TypeKind.POINTER else queue.address_
    answer = dump.run(f"sbitmapq {vaddr:x}")
    (row,) = answer["queue"].records()
    assert (row["depth"], row["busy"], row["map_nr"] * row["bits_per_word"]) == (256, 0, 256)
    assert len(_nested(row, "waiters")) == 8
    assert answer["bitmap"].records()[1]["offset"] == 16
    assert dump.run(f"sbitmapq {vaddr + 8:x}").problems
    with pytest.raises(UsageError):
        dump.run(f"sbitmapq -s request {vaddr:x}")


class Machine:
    """The first disk of a dump that is written to."""

    def __init__(self, dump: OpenDump) -> None:
        self.dump = dump
        disk = next(row for row in dump.run("dev -d").table.records() if row["name"] == "vda")
        self.queue = Object(dump.prog, "struct gendisk *", disk["gendisk"]).queue.read_()
        self.tags = self.queue.tag_set.tags[0].read_()
        bitmap = self.tags.bitmap_tags
        # A pointer in some kernels, part of the structure in others.
        self.bitmap = bitmap.read_() if bitmap.type_.kind is TypeKind.POINTER else bitmap.address_of_()

    def write(self, place: Object, value: int) -> None:
        memory = self.dump.workspace.memory
        data = value.to_bytes(sizeof(place), "little")
        self.dump.workspace.opened.overlay.write(memory.translate(VirtAddr(place.address_ or 0)), data)

    def set_bits(self, *words: tuple[int, int]) -> None:
        for number in range(self.bitmap.sb.map_nr.value_()):
            word, cleared = words[number] if number < len(words) else (0, 0)
            self.write(self.bitmap.sb.map[number].word, word)
            self.write(self.bitmap.sb.map[number].cleared, cleared)
        self.dump.workspace.forget()


def test_bits_in_use_lead_to_their_structures(crash: Crash) -> None:
    with open_dump(crash.filtered) as dump:
        machine = Machine(dump)
        machine.set_bits((0b1011, 0b0010), (1 << 63, 0))
        vaddr = machine.bitmap.value_()
        answer = dump.run(f"sbitmapq {vaddr:x}")
        (row,) = answer["queue"].records()
        assert (row["busy"], row["cleared"]) == (3, 1)
        assert answer["bitmap"].records()[0]["bytes"] == "0900 0000 0000 0000 0000 0000 0000 0080"
        requests = machine.tags.static_rqs
        entries = dump.run(f"sbitmapq -s request.q -p -a {requests.value_():x} {vaddr:x}").table.records()
        assert [entry["index"] for entry in entries] == [0, 3, 127]
        assert [entry["address"] for entry in entries] == [requests[index].value_() for index in (0, 3, 127)]
        assert _nested(entries[0], "structure")[0]["name"] == "q"


def test_requests_under_way(crash: Crash) -> None:
    with open_dump(crash.filtered) as dump:
        machine = Machine(dump)
        assert not machine.queue.elevator, "the tags of a scheduler would be others"
        for tag, flags in ((0, 0), (3, 1)):
            request = machine.tags.static_rqs[tag].read_()
            machine.write(machine.tags.rqs[tag], request.value_())
            for name, value in (
                ("tag", tag),
                ("q", machine.queue.value_()),
                ("cmd_flags", flags),
                ("__sector", 4096 + tag),
                ("__data_len", 8192),
                ("start_time_ns", 5_000_000_000),
            ):
                machine.write(request.member_(name), value)
        machine.set_bits((0b1001, 0))
        (disk,) = dump.run("dev -D").table.records()
        assert (disk["name"], disk["total"], disk["reads"], disk["writes"]) == ("vda", 2, 1, 1)
        requests = _nested(disk, "requests")
        assert [(one["operation"], one["sector"], one["size"]) for one in requests] == [
            ("READ", 4096, 8192),
            ("WRITE", 4099, 8192),
        ]
        assert all(0 < one["age"] < 600 for one in requests)
