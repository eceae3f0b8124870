"""``net``: devices, neighbours, and the sockets of tasks."""

from __future__ import annotations

import ipaddress

from drgn import Object

from postpanic.analysis.cells import absent, cell, problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.output_style import DECIMAL, HEXADECIMAL, choose_style
from postpanic.analysis.commands.per_task import TASK_COLUMNS, TASK_LINE, task_rows
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import find_tasks
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.filesystems.open_files import OpenFile, read_open_files
from postpanic.analysis.network.devices import (
    device_addresses,
    device_name,
    network_namespace,
    read_devices,
    read_neighbours,
)
from postpanic.analysis.network.sockets import file_socket, read_socket
from postpanic.analysis.objects.braces import MEMBERS
from postpanic.analysis.objects.members import members_table
from postpanic.analysis.objects.style import Style
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["net"]

_DEVICES = Shape(
    "devices",
    (
        Column("device", Kind.ADDRESS, title="NET_DEVICE", help="struct net_device *.", align="^"),
        Column("name", title="NAME", help="Name of the device.", width=9),
        Column("addresses", title="IP ADDRESS(ES)", help="IPv4 and IPv6 addresses, joined by a comma."),
        Column("index", Kind.NUMBER, title="INDEX", help="ifindex.", hidden=True),
    ),
)
_NEIGHBOURS = Shape(
    "neighbours",
    (
        Column("neighbour", Kind.ADDRESS, title="NEIGHBOUR", help="struct neighbour *.", align="^"),
        Column("address", title="IP ADDRESS", help="Its IPv4 address.", width=14),
        Column("hardware", title="HW TYPE", help="Kind of the device.", width=9),
        Column("hardware_address", title="HW ADDRESS", help="Its hardware address.", width=17),
        Column("device", title="DEVICE", help="Name of the device."),
        Column("state", title="STATE", help="nud_state."),
    ),
)
_SOCKET_ADDRESSES = (
    Column("fd", Kind.NUMBER, title="FD", help="File descriptor.", width=2),
    Column("socket", Kind.ADDRESS, title="SOCKET", help="struct socket *.", align="^"),
    Column("sock", Kind.ADDRESS, title="SOCK", help="struct sock *.", align="^"),
)
_SOCKETS = Shape(
    "sockets",
    (
        *_SOCKET_ADDRESSES,
        Column("kind", title="FAMILY:TYPE", help="Family and type."),
        Column(
            "source",
            title="SOURCE-PORT",
            help="Its own address and port; of unix sockets path or @name, of netlink protocol and port ID, of packet "
            "sockets protocol and device.",
        ),
        Column(
            "destination",
            title="DESTINATION-PORT",
            help="The other end's; of unix sockets its path or [inode], of netlink the multicast groups.",
        ),
        Column("state", title="STATE", help="Of struct sock (TCP's names), or of struct socket."),
        Column("family", help="Family, without AF_.", hidden=True),
        Column("type", help="Type, without SOCK_.", hidden=True),
        Column("protocol", Kind.NUMBER, help="sk_protocol.", hidden=True),
        Column("source_address", help="Its own address.", hidden=True),
        Column("source_port", Kind.NUMBER, help="Its own port.", hidden=True),
        Column("destination_address", help="The other end's address.", hidden=True),
        Column("destination_port", Kind.NUMBER, help="The other end's port.", hidden=True),
        Column("inode", Kind.NUMBER, help="Inode number, as in /proc/PID/fd.", hidden=True),
    ),
)
_STRUCTURES = Shape(
    "socket_structures",
    (*_SOCKET_ADDRESSES, Column("structures", Kind.ROWS, shape=MEMBERS, help="struct socket and struct sock.")),
)
_TASKS = Shape(
    "tasks",
    (*TASK_COLUMNS, Column("sockets", Kind.ROWS, shape=_SOCKETS, help="Its sockets.")),
    Layout.LINES,
    TASK_LINE,
    gap=True,
)
_TASKS_STRUCTURES = Shape(
    "tasks_structures",
    (*TASK_COLUMNS, Column("sockets", Kind.ROWS, shape=_STRUCTURES, help="Its sockets.")),
    Layout.LINES,
    TASK_LINE,
    gap=True,
)
_TRANSLATED = Shape("translated", (Column("address", help="In dotted decimal."),), Layout.LINES, "{address}")
_NO_SOCKETS = Shape("none", (), Layout.LINES, title="No open sockets.")


@command(
    "net",
    summary="network devices, neighbours and sockets",
    description=(
        "Without options, the network devices of the initial namespace with their addresses. -s and -S show the "
        "sockets that tasks have open: their state, and both ends also of unix, netlink and packet sockets, of which "
        "crash shows the type alone."
    ),
    operands=(Operand("task", "for -n, -s and -S: PID, task_struct address, command name or 'regex'", many=True),),
    options=(
        Option("-n", "namespace", "the devices that a task sees"),
        Option("-s", "sockets", "show the sockets of tasks: family, type, addresses and ports"),
        Option("-S", "structures", "show the sockets of tasks with struct socket and struct sock"),
        Option("-R", "reference", "with -s or -S: only this file descriptor, socket or sock", "REF"),
        Option("-a", "neighbours", "show the ARP cache"),
        Option("-N", "translate", "spell an IPv4 address that is in memory as this number", "ADDRESS"),
        HEXADECIMAL,
        DECIMAL,
    ),
    shapes=(_DEVICES, _NEIGHBOURS, _TASKS, _TASKS_STRUCTURES, _TRANSLATED),
    examples=(
        Example("net", "the network devices"),
        Example("net -s 2517", "the sockets of PID 2517"),
        Example("foreach net -s -R c08ea3cc", "all tasks that have a socket open"),
        Example("net -N 1041236234", "an address that a structure shows as a number"),
    ),
    per_task=True,
)
def net(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show network devices, neighbours or sockets."""
    problems: list[Problem] = []
    number = arguments.get("translate")
    if number is not None:
        return Answer("net", (_TRANSLATED.table([(_translate(number),)]),))
    if arguments.has("neighbours"):
        return Answer("net", (_neighbours(workspace, problems),), tuple(problems))
    if arguments.has("sockets") or arguments.has("structures"):
        return Answer("net", (_tasks(workspace, arguments, problems),), tuple(problems))
    if arguments.has("reference"):
        raise UsageError("net: -R needs -s or -S", hint="help net")
    if arguments.operands and not arguments.has("namespace"):
        raise UsageError(f"net: {arguments.operands[0]!r} needs -n, -s or -S", hint="help net")
    tasks = find_tasks(workspace, arguments.operands, problems) if arguments.has("namespace") else [None]
    tables = tuple(_devices(workspace, task, problems) for task in tasks)
    return Answer("net", tables, tuple(problems))


def _translate(word: str) -> str:
    try:
        value = int(word, 0 if word.lower().startswith("0x") else 10)
    except ValueError:
        try:
            value = int(word, 16)
        except ValueError:
            raise UsageError(f"net -N: {word!r} is not a number") from None
    if not 0 <= value < 1 << 32:
        raise UsageError(f"net -N: {word} is wider than 32 bits")
    return str(ipaddress.IPv4Address(value.to_bytes(4, "little")))


def _devices(workspace: Workspace, task: Object | None, problems: list[Problem]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    try:
        namespace = workspace.prog["init_net"].address_of_() if task is None else network_namespace(task)
        for device in read_devices(namespace, problems):
            rows.append(_device_row(device, problems))  # noqa: PERF401 - what was read stays when the list breaks off
    except UNREADABLE as exc:
        problems.append(problem("network devices", exc))
    return _DEVICES.table(rows)


def _device_row(device: Object, problems: list[Problem]) -> tuple[Cell, ...]:
    return (
        int(device.value_()),
        cell(lambda: device_name(device)),
        cell(lambda: ", ".join(device_addresses(device, problems))),
        cell(lambda: int(device.ifindex.value_())),
    )


def _neighbours(workspace: Workspace, problems: list[Problem]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    try:
        for entry in read_neighbours(workspace.prog, problems):
            row = (entry.vaddr, entry.address, entry.hardware, entry.hardware_address, entry.device, entry.state)
            rows.append(row)
    except UNREADABLE as exc:
        problems.append(problem("table of neighbours", exc))
    return _NEIGHBOURS.table(rows)


def _tasks(workspace: Workspace, arguments: Arguments, problems: list[Problem]) -> Table:
    """Make a row for each task, or for each that has what is looked for."""
    with_structures = arguments.has("structures")
    style = choose_style(workspace, arguments)
    reference = arguments.get("reference")
    rows = []
    for task in find_tasks(workspace, arguments.operands, problems):
        found = []
        for entry in read_open_files(task, problems):
            row = _structure_row(entry, style) if with_structures else _socket_row(entry)
            if row is not None and (reference is None or _is_meant(reference, row)):
                found.append(row)
        if reference is None or found:
            inner = _STRUCTURES if with_structures else _SOCKETS
            rows.append((*task_rows(workspace, [task])[0], inner.table(found) if found else _NO_SOCKETS.table()))
    return (_TASKS_STRUCTURES if with_structures else _TASKS).table(rows)


def _is_meant(reference: str, row: tuple[Cell, ...]) -> bool:
    fd, *addresses = row[:3]
    if reference.isdecimal() and int(reference) == fd:
        return True
    try:
        return int(reference, 16) in addresses
    except ValueError:
        raise UsageError(f"net -R: {reference!r} is neither a file descriptor nor an address") from None


def _socket_row(entry: OpenFile) -> tuple[Cell, ...] | None:
    """Make the row of a socket; None for a file that is none."""
    try:
        socket = file_socket(entry.file)
        if socket is None:
            return None
        found = read_socket(socket)
    except UNREADABLE as exc:
        return (entry.fd, *[absent(exc)] * (len(_SOCKETS.columns) - 1))
    source, destination = found.source, found.destination
    return (
        *(entry.fd, found.socket, found.sock, f"{found.family}:{found.type}", source.text, destination.text),
        *(found.state, found.family, found.type, found.protocol),
        *(source.address, source.port, destination.address, destination.port, found.inode),
    )


def _structure_row(entry: OpenFile, style: Style) -> tuple[Cell, ...] | None:
    try:
        socket = file_socket(entry.file)
        if socket is None:
            return None
        sock = socket.sk.read_()
        table = members_table([socket[0], sock[0]] if sock else [socket[0]], style)
    except UNREADABLE as exc:
        return (entry.fd, *[absent(exc)] * 3)
    return entry.fd, int(socket.value_()), int(sock.value_()), table
