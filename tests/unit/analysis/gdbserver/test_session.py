"""Sessions of a client with the server, over real sockets."""

from __future__ import annotations

import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from postpanic.analysis.gdbserver.threads import Thread
from postpanic.analysis.gdbserver.transport import open_listener, parse_address
from postpanic.errors import OutputError, UsageError
from tests.unit.analysis.gdbserver.machine import EXCLUDED, KERNEL, PAGE_BYTES, USER, Client, Machine, connected, frame


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def client(machine: Machine, tmp_path: Path) -> Iterator[Client]:
    with connected(machine, tmp_path) as (client, _):
        assert client.ask(b"QStartNoAckMode") == b"OK"
        client.acks = False
        yield client


def parse(document: bytes) -> ET.Element:
    return ET.fromstring(document)  # noqa: S314 - of our own server


def little(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little").hex().encode()


def test_features(client: Client) -> None:
    features = dict(
        word.rstrip(b"+").partition(b"=")[::2] for word in client.ask(b"qSupported:multiprocess+").split(b";")
    )
    assert int(features[b"PacketSize"], 16) >= 4096
    assert {b"QStartNoAckMode", b"qXfer:features:read", b"qXfer:threads:read", b"qXfer:auxv:read"} <= set(features)


def test_acknowledgements_end_when_the_client_wants_it(machine: Machine, tmp_path: Path) -> None:
    with connected(machine, tmp_path) as (client, _):
        assert client.ask(b"qC") == b"QC2a"
        assert client.ask(b"QStartNoAckMode") == b"OK"
        client.acks = False
        assert client.ask(b"qC") == b"QC2a"


def test_a_damaged_packet_is_asked_for_again_and_a_lost_reply_sent_again(machine: Machine, tmp_path: Path) -> None:
    with connected(machine, tmp_path) as (client, _):
        client.connection.sendall(b"$qC#00")
        assert client.byte() == b"-"
        assert client.ask(b"qC") == b"QC2a"
        client.connection.sendall(b"-")
        assert client.receive() == b"QC2a"


def test_what_will_be_asked_for_is_read_while_nothing_is_asked(client: Client, machine: Machine) -> None:
    assert client.ask(b"qC") == b"QC2a"
    until = time.monotonic() + 10
    while machine.read_ahead_times < machine.read_ahead_limit and time.monotonic() < until:
        time.sleep(0.01)

    assert machine.read_ahead_times == machine.read_ahead_limit
    assert client.ask(b"qC") == b"QC2a"


def test_reading_ahead_keeps_nobody_waiting(machine: Machine, tmp_path: Path) -> None:
    machine.read_ahead_limit = 1 << 60
    with connected(machine, tmp_path) as (client, _):
        assert [client.ask(b"qC") for _ in range(100)] == [b"QC2a"] * 100
    # Nor does it keep the server from ending.
    assert machine.read_ahead_times


def test_threads_in_both_ways(client: Client) -> None:
    assert client.ask(b"qfThreadInfo") == b"m2a,1,1000000"
    assert client.ask(b"qsThreadInfo") == b"l"
    document = parse(client.read_document(b"threads"))
    found = [(thread.get("id"), thread.get("name"), thread.get("core"), thread.text) for thread in document]
    assert found == [
        ("2a", "crasher", "1", "RU, on CPU 1"),
        ("1", "init", None, "IN, CPU 0"),
        ("1000000", "swapper/0", "0", "RU, on CPU 0"),
    ]
    assert bytes.fromhex(client.ask(b"qThreadExtraInfo,1").decode()) == b"init (IN, CPU 0)"
    assert client.ask(b"T2a") == b"OK"
    assert client.ask(b"T2b") == b"E03"
    assert client.ask(b"?") == b"T05thread:2a;"


def test_ten_thousand_threads_come_in_parts(tmp_path: Path) -> None:
    threads = [Thread(number, f"t{number}", "IN") for number in range(1, 30_001)]
    with connected(Machine(threads=threads), tmp_path) as (client, _):
        names: list[bytes] = []
        reply = client.ask(b"qfThreadInfo")
        while reply != b"l":
            names += reply[1:].split(b",")
            reply = client.ask(b"qsThreadInfo")
        assert [int(name, 16) for name in names] == list(range(1, 30_001))


def test_names_that_are_no_xml(tmp_path: Path) -> None:
    with connected(Machine(threads=[Thread(1, '<&"\x01\x1b>', "IN")]), tmp_path) as (client, _):
        (thread,) = parse(client.read_document(b"threads", step=7))
        assert thread.get("name") == '<&"??>'


def test_target_description(client: Client) -> None:
    document = parse(client.read_document(b"features", b"target.xml", step=777))
    assert document.findtext("architecture") == "i386:x86-64"
    registers = document.findall(".//reg")
    assert [register.get("name") for register in registers[:18]] == [
        *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
        *("rip", "eflags"),
    ]
    assert len(client.ask(b"g")) == sum(int(register.get("bitsize", 0)) for register in registers) // 4
    assert client.ask(b"qXfer:features:read:other.xml:0,100") == b"E00"


def test_registers_that_are_not_known_are_not_zero(client: Client) -> None:
    reply = client.ask(b"g")
    assert reply[:112] == b"x" * 112
    assert reply[112:128] == little(KERNEL + 8)
    assert client.ask(b"p10") == little(0xFFFF_FFFF_8100_1234)
    assert client.ask(b"p11") == little(0x246, 4)
    assert client.ask(b"p0") == b"x" * 16
    assert client.ask(b"p400") == b"E16"


def test_registers_belong_to_the_chosen_thread_and_can_be_set(client: Client) -> None:
    assert client.ask(b"Hg1") == b"OK"
    assert client.ask(b"p10") == little(7)
    assert client.ask(b"P10=" + little(8)) == b"OK"
    assert client.ask(b"p10") == little(8)
    assert client.ask(b"P10=00") == b"E16"
    assert client.ask(b"Hg2a") == b"OK"
    assert client.ask(b"p10") == little(0xFFFF_FFFF_8100_1234)
    whole = client.ask(b"g")
    assert client.ask(b"G" + little(1) + whole[16:]) == b"OK"
    assert client.ask(b"p0") == little(1)
    assert client.ask(b"p7") == little(KERNEL + 8)
    assert client.ask(b"Hg7777") == b"E03"


def test_memory_is_read_as_far_as_it_goes(client: Client) -> None:
    assert client.ask(b"m%x,4" % (KERNEL + 1)) == b"01020304"
    end = KERNEL + 2 * PAGE_BYTES
    assert client.ask(b"m%x,100" % (end - 2)) == b"5a5a"
    assert client.ask(b"x%x,3" % (KERNEL + ord("#"))) == b"b}\x03}\x04%"


def test_pages_that_were_left_out_are_an_error_and_not_zero(client: Client) -> None:
    assert client.ask(b"m%x,8" % EXCLUDED) == b"E3d"
    assert client.ask(b"m%x,8" % (EXCLUDED + PAGE_BYTES)) == b"E0e"


def test_user_memory_is_that_of_the_chosen_thread(client: Client) -> None:
    assert client.ask(b"m%x,4" % USER) == b"E0e"
    assert client.ask(b"Hg1") == b"OK"
    assert client.ask(b"m%x,4" % USER) == b"user".hex().encode()


def test_memory_is_written(client: Client, machine: Machine) -> None:
    assert client.ask(b"M%x,2:abcd" % KERNEL) == b"OK"
    assert client.ask(b"X%x,3:}\x03}]\x01" % (KERNEL + 2)) == b"OK"
    assert machine.pages[KERNEL][:6] == b"\xab\xcd#}\x01\x05"
    assert client.ask(b"M%x,2:ab" % KERNEL) == b"E16"
    assert client.ask(b"X%x,0:" % KERNEL) == b"OK"
    assert client.ask(b"M%x,1:00" % EXCLUDED) == b"E3d"


def test_documents(client: Client) -> None:
    memory = parse(client.read_document(b"memory-map"))
    assert sum(int(area.get("length", "0"), 16) for area in memory) == 1 << 64
    assert client.ask(b"qXfer:auxv:read::0,100") == b"E00"
    assert client.ask(b"Hg1") == b"OK"
    assert client.read_document(b"auxv", step=3) == b"}#$*auxv"
    assert client.ask(b"qOffsets") == b"TextSeg=ffffffff81000000"


@pytest.mark.parametrize(
    "packet",
    [
        b"vFile:open:2f6574632f706173737764,0,0",
        b"vFile:setfs:0",
        b"vRun;2f62696e2f7368",
        b"qXfer:exec-file:read::0,100",
        b"qXfer:libraries:write::0:x",
        b"qXfer:features:read:/etc/passwd:0,100",
        b"qXfer:../etc/passwd:read::0,100",
        b"qGetTLSAddr:1,2,3",
        b"vMustReplyEmpty",
        b"R00",
        b"!",
    ],
)
def test_no_packet_reaches_files_or_programs(client: Client, packet: bytes) -> None:
    reply = client.ask(packet)
    if packet.startswith(b"vRun"):
        assert bytes.fromhex(reply[1:].decode()).startswith(b"A dump cannot run")
        reply = client.receive()
        assert reply.startswith(b"T02")
    else:
        assert reply in {b"", b"E00", b"E16"}


@pytest.mark.parametrize("packet", [b"c", b"s", b"C05", b"S05", b"vCont;c", b"vCont;s:2a;c"])
def test_nothing_runs_and_says_so(client: Client, packet: bytes) -> None:
    assert bytes.fromhex(client.ask(packet)[1:].decode()).startswith(b"A dump cannot run")
    # SIGINT: at a trap gdb would step on for ever.
    assert client.receive() == b"T02thread:2a;"


def test_breakpoints_are_refused(client: Client) -> None:
    assert client.ask(b"Z0,ffffffff81000000,1").startswith(b"E.")


def test_monitor_runs_a_line_on_the_chosen_thread(client: Client, machine: Machine) -> None:
    assert client.ask(b"Hg1") == b"OK"
    assert client.ask(b"qRcmd," + "bt -f ü".encode().hex().encode()) == b"O" + "ran bt -f ü\n".encode().hex().encode()
    assert client.receive() == b"OK"
    assert machine.lines == [("bt -f ü", 1)]
    assert client.ask(b"qRcmd,0") == b"E16"


def test_much_output_comes_in_parts_that_fit(client: Client, machine: Machine) -> None:
    machine.output = lambda _: ("0123456789" * 1000 for _ in range(20))
    client.send(b"qRcmd,6c6f67")
    found = b""
    while (reply := client.receive()) != b"OK":
        assert len(reply) < 65536
        found += bytes.fromhex(reply[1:].decode())
    assert found == b"0123456789" * 20_000


def test_detaching_ends_the_server(machine: Machine, tmp_path: Path) -> None:
    with connected(machine, tmp_path) as (client, _):
        assert client.ask(b"D") == b"OK"
        with pytest.raises(EOFError):
            client.byte()


def test_killing_ends_the_server_without_a_reply(machine: Machine, tmp_path: Path) -> None:
    with connected(machine, tmp_path) as (client, _):
        client.send(b"k")
        with pytest.raises(EOFError):
            client.byte()


def test_a_client_that_dies_ends_the_server(machine: Machine, tmp_path: Path) -> None:
    with connected(machine, tmp_path) as (client, _):
        client.connection.sendall(b"$m0,")


def test_a_second_client_is_told_and_sent_away(machine: Machine, tmp_path: Path) -> None:
    with connected(machine, tmp_path) as (client, address), socket.socket(socket.AF_UNIX) as other:
        assert client.ask(b"qC") == b"QC2a"
        other.settimeout(20)
        other.connect(str(address))
        other.sendall(frame(b"qSupported"))
        found = b""
        while data := other.recv(4096):
            found += data
        assert found.startswith(b"+$E.another gdb")
        assert client.ask(b"qC") == b"QC2a"


def test_one_client_after_the_other(machine: Machine, tmp_path: Path) -> None:
    with connected(machine, tmp_path, many=True) as (client, address):
        assert client.ask(b"P10=" + little(8)) == b"OK"
        assert client.ask(b"D") == b"OK"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(address))
            # What the first one has set is gone with it.
            assert Client(connection).ask(b"p10") == little(0xFFFF_FFFF_8100_1234)


def test_a_socket_is_for_its_owner_and_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with open_listener(parse_address(str(path))) as (_, address):
        assert str(address) == str(path)
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        with pytest.raises(OutputError), open_listener(parse_address(str(path))):
            pass
    assert not path.exists()


def test_a_socket_that_nobody_listens_at_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with open_listener(parse_address(str(path))):
        pass
    path.write_text("precious")
    with pytest.raises(OutputError), open_listener(parse_address(str(path))):
        pass
    assert path.read_text() == "precious"
    assert [entry.name for entry in tmp_path.iterdir()] == ["socket"]


def test_addresses() -> None:
    assert str(parse_address("1234")) == "127.0.0.1:1234"
    assert str(parse_address(":1234")) == "127.0.0.1:1234"
    assert str(parse_address("localhost:1234")) == "127.0.0.1:1234"
    assert str(parse_address("[::1]:1234")) == "[::1]:1234"
    assert str(parse_address("0.0.0.0:1234", anywhere=True)) == "0.0.0.0:1234"
    assert str(parse_address("./socket")) == "socket"


@pytest.mark.parametrize(
    "text", ["", "socket", "host:", "1:2:x", "127.0.0.1:65536", "10.0.0.1:1", "0.0.0.0:1", "[::]:1"]
)
def test_addresses_that_are_none_or_open_to_others(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


def test_a_free_port_is_chosen() -> None:
    with open_listener(parse_address("0")) as (listener, address):
        assert address.port == listener.getsockname()[1] > 0


def test_arm64(tmp_path: Path) -> None:
    machine = Machine("aarch64")
    machine.values = {42: {"pc": 0xFFFF_8000_0800_1234, "x29": 5, "cpsr": 0x6040_0009}}
    with connected(machine, tmp_path) as (client, _):
        document = parse(client.read_document(b"features", b"target.xml"))
        names = [register.get("name") for register in document.findall(".//reg")]
        masks = ["pauth_dmask", "pauth_cmask", "pauth_dmask_high", "pauth_cmask_high"]
        assert names == [*(f"x{number}" for number in range(31)), "sp", "pc", "cpsr", *masks]
        assert client.ask(b"p20") == little(0xFFFF_8000_0800_1234)
        assert client.ask(b"p1d") == little(5)
        assert client.ask(b"p21") == little(0x6040_0009, 4)
