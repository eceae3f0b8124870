"""``dev``: device numbers, I/O ports, PCI, disks and device dumps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from drgn import Object
from drgn.helpers.linux.device import MAJOR, for_each_registered_blkdev, for_each_registered_chrdev
from drgn.helpers.linux.pci import for_each_pci_root_bus, pci_bus_name

from postpanic.analysis.cells import absent, cell, decode, guarded, problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_number
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.devices.device_dumps import DeviceDump, find_device_dumps
from postpanic.analysis.devices.disks import Request, read_disk_name, read_disks, read_requests, uptime_s
from postpanic.analysis.devices.pci import read_pci_devices
from postpanic.analysis.devices.resources import read_resources
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, FileFaultError, UsageError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["dev"]

_CHARACTER = Shape(
    "character_devices",
    (
        Column("major", Kind.NUMBER, title="CHRDEV", help="Major number."),
        Column("name", title="NAME", help="Name of the range, as in /proc/devices.", width=13),
        Column("cdev", Kind.ADDRESS, title="CDEV", help="struct cdev *.", align="^"),
        Column("operations", title="OPERATIONS", help="Symbol of cdev->ops."),
    ),
)
_BLOCK = Shape(
    "block_devices",
    (
        Column("major", Kind.NUMBER, title="BLKDEV", help="Major number."),
        Column("name", title="NAME", help="Name of the driver, as in /proc/devices.", width=13),
        Column("gendisk", Kind.ADDRESS, title="GENDISK", help="struct gendisk * of a disk.", align="^"),
        Column("operations", title="OPERATIONS", help="Symbol of gendisk->fops."),
        Column("disk", title="DISK", help="Name of the disk.", hidden=True),
    ),
)
_RESOURCE_COLUMNS = (
    Column("resource", Kind.ADDRESS, title="RESOURCE", help="struct resource *.", align="^"),
    Column("range", title="RANGE", help="First and last number.", align="^"),
    Column("name", title="NAME", help="What it belongs to."),
    Column("start", Kind.HEX, help="First number.", hidden=True),
    Column("end", Kind.HEX, help="Last number.", hidden=True),
    Column("depth", Kind.NUMBER, help="0 at the top of the tree.", hidden=True),
)
_PORTS = Shape("io_ports", _RESOURCE_COLUMNS)
_MEMORY = Shape("io_memory", _RESOURCE_COLUMNS)
_PCI = Shape(
    "pci_devices",
    (
        Column("device", Kind.ADDRESS, title="PCI DEV", help="struct pci_dev *.", align="^"),
        Column("name", title="DO:BU:SL.FN", help="Domain, bus, slot and function."),
        Column("class_code", Kind.HEX, title="CLASS", help="Class and subclass.", format="04x", align="<"),
        Column("id", title="PCI_ID", help="Vendor and device."),
        Column("type", title="TYPE", help="Type of a PCI Express port; of others BRIDGE or ENDPOINT."),
    ),
    indent=2,
)
_BUSES = Shape(
    "pci_buses",
    (
        Column("bus", Kind.ADDRESS, title="ROOT BUS", help="struct pci_bus *.", align="^"),
        Column("name", title="BUSNAME", help="Domain and bus."),
        Column("devices", Kind.ROWS, shape=_PCI, help="Its devices, and those of the buses below it."),
    ),
)
_REQUESTS = Shape(
    "requests",
    (
        Column("request", Kind.ADDRESS, title="REQUEST", help="struct request *.", align="^"),
        Column("operation", title="OP", help="Operation, without REQ_OP_."),
        Column("sector", Kind.NUMBER, title="SECTOR", help="First sector, of 512 bytes."),
        Column("size", Kind.NUMBER, title="BYTES", help="Bytes that are left."),
        Column("age", Kind.REAL, title="AGE", suffix=" s", help="Seconds since it was begun."),
    ),
    indent=2,
)
_DISKS = Shape(
    "disks",
    (
        Column("major", Kind.NUMBER, title="MAJOR", help="Major number."),
        Column("gendisk", Kind.ADDRESS, title="GENDISK", help="struct gendisk *.", align="^"),
        Column("name", title="NAME", help="Name of the disk.", width=9),
        Column("queue", Kind.ADDRESS, title="REQUEST_QUEUE", help="struct request_queue *.", align="^"),
        Column("total", Kind.NUMBER, title="TOTAL", help="Requests that are under way."),
        Column("reads", Kind.NUMBER, title="READ", help="Those that read."),
        Column("writes", Kind.NUMBER, title="WRITE", help="Those that write, flush or discard."),
        Column("requests", Kind.ROWS, shape=_REQUESTS, help="The requests; in text with -D."),
    ),
)
_DUMPS = Shape(
    "device_dumps",
    (
        Column("index", Kind.NUMBER, title="INDEX", help="For -v."),
        Column("offset", Kind.HEX, title="OFFSET", prefix="0x", help="In the notes of the dump."),
        Column("size", Kind.NUMBER, title="SIZE", help="Bytes."),
        Column("name", title="NAME", help="What the driver called it."),
    ),
)
_CONTENTS = Shape(
    "device_dump",
    (
        Column("offset", Kind.HEX, help="In the notes of the dump."),
        Column("first", Kind.ADDRESS, help="8 bytes."),
        Column("second", Kind.ADDRESS, help="The next 8."),
        Column("text", help="The 16 bytes as ASCII."),
    ),
    Layout.LINES,
    "{offset:>20}:  {first} {second}   {text}",
)
_COPIED = Shape(
    "copied",
    (
        Column("name", prefix="DEVICE: ", help="What the driver called it."),
        Column("size", Kind.NUMBER, help="Bytes that were written."),
        Column("file", help="The file."),
    ),
    Layout.LINES,
    "{name}\n{size} bytes copied to {file}",
)


@command(
    "dev",
    summary="device data",
    description=(
        "Show the numbers of character and block devices; all disks of a driver, where crash shows the first. -i also "
        "shows I/O memory. -D shows each request that is under way, with its age.\n\n"
        "Offsets of device dumps (-V, -v) count from the start of the dump's notes."
    ),
    operands=(Operand("file", "with -v: copy the device dump into this file"),),
    options=(
        Option("-i", "resources", "show the use of I/O ports and I/O memory"),
        Option("-p", "pci", "show PCI devices"),
        Option("-d", "disks", "show the disks, and how many requests are under way on each"),
        Option("-D", "busy", "show only disks with requests under way, and these"),
        Option("-V", "device_dumps", "list the device dumps that drivers added to the dump"),
        Option("-v", "device_dump", "show one device dump", "INDEX"),
    ),
    shapes=(_CHARACTER, _BLOCK, _PORTS, _MEMORY, _BUSES, _DISKS, _DUMPS, _CONTENTS, _COPIED),
    examples=(
        Example("dev", "character and block devices"),
        Example("dev -D", "which disks are busy, and with what"),
        Example("dev -i", "I/O ports and memory"),
        Example("dev -v 0 dump.bin", "save the first device dump"),
    ),
)
def dev(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show devices."""
    problems: list[Problem] = []
    if arguments.operands and not arguments.has("device_dump"):
        raise UsageError(f"dev: {arguments.operands[0]!r} is only taken with -v", hint="help dev")
    if arguments.has("resources"):
        tables: tuple[Table, ...] = tuple(_resources(workspace, problems))
    elif arguments.has("pci"):
        tables = (_pci(workspace, problems),)
    elif arguments.has("disks") or arguments.has("busy"):
        tables = (_disks(workspace, problems, only_busy=arguments.has("busy")),)
    elif arguments.has("device_dumps") or arguments.has("device_dump"):
        tables = (_device_dumps(workspace, arguments),)
    else:
        tables = (_character_devices(workspace, problems), _block_devices(workspace, problems))
    return Answer("dev", tables, tuple(problems))


def _character_devices(workspace: Workspace, problems: list[Problem]) -> Table:
    prog = workspace.prog
    rows: list[tuple[Cell, ...]] = []
    try:
        entries = for_each_registered_chrdev(prog)
        for number, _, name, cdev in guarded(entries, "character devices", problems, key=lambda entry: entry[0]):
            rows.append((MAJOR(number), decode(name), *_cdev_cells(workspace, cdev)))
    except UNREADABLE as exc:
        problems.append(problem("character devices", exc))
    return _CHARACTER.table(rows)


_NONE = Absent(Reason.NOT_PRESENT)


def _cdev_cells(workspace: Workspace, cdev: Object) -> tuple[Cell, Cell]:
    if not cdev:
        return _NONE, None
    return int(cdev.value_()), cell(lambda: _symbol(workspace, cdev.ops))


def _symbol(workspace: Workspace, pointer: Object) -> str:
    """Name operations; where data has no names, what stands before them is not they."""
    vaddr = int(pointer.value_())
    try:
        symbol = workspace.prog.symbol(vaddr)
    except LookupError:
        return f"{vaddr:#x}"
    return str(symbol.name) if symbol.address == vaddr else f"{vaddr:#x}"


def _block_devices(workspace: Workspace, problems: list[Problem]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    disks: dict[int, list[Object]] = {}
    try:
        for disk in read_disks(workspace.prog, problems):
            disks.setdefault(int(disk.major.value_()), []).append(disk)
        entries = for_each_registered_blkdev(workspace.prog)
        for major, name, _ in guarded(entries, "block devices", problems, key=lambda entry: entry[0]):
            own = disks.get(int(major), [])
            rows += [_block_row(workspace, int(major), decode(name), disk) for disk in own]
            if not own:
                rows.append((int(major), decode(name), _NONE, None, None))
    except UNREADABLE as exc:
        problems.append(problem("block devices", exc))
    return _BLOCK.table(rows)


def _block_row(workspace: Workspace, major: int, name: str, disk: Object) -> tuple[Cell, ...]:
    operations = cell(lambda: _symbol(workspace, disk.fops))
    return major, name, int(disk.value_()), operations, cell(lambda: read_disk_name(disk))


def _resources(workspace: Workspace, problems: list[Problem]) -> Iterator[Table]:
    for shape, name, digits in ((_PORTS, "ioport_resource", 4), (_MEMORY, "iomem_resource", 8)):
        rows: list[tuple[Cell, ...]] = []
        try:
            root = workspace.prog[name]
            rows += [
                (
                    entry.vaddr,
                    f"{entry.start:0{digits}x}-{entry.end:0{digits}x}",
                    *(entry.name, entry.start, entry.end, entry.depth),
                )
                for entry in read_resources(root, name, problems)
            ]
        except UNREADABLE as exc:
            problems.append(problem(name, exc))
        yield shape.table(rows)


def _pci(workspace: Workspace, problems: list[Problem]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    try:
        for bus in guarded(for_each_pci_root_bus(workspace.prog), "PCI root buses", problems):
            devices = [
                (entry.vaddr, entry.name, entry.class_code, f"{entry.vendor:04x}:{entry.device:04x}", entry.type)
                for entry in read_pci_devices(bus, problems)
            ]
            rows.append((int(bus.value_()), _bus_name(bus), _PCI.table(devices)))
    except UNREADABLE as exc:
        problems.append(problem("PCI devices", exc))
    return _BUSES.table(rows)


def _bus_name(bus: Object) -> Cell:
    return cell(lambda: pci_bus_name(bus))


def _disks(workspace: Workspace, problems: list[Problem], *, only_busy: bool) -> Table:
    rows: list[tuple[Cell, ...]] = []
    now_s = uptime_s(workspace.prog)
    try:
        for disk in read_disks(workspace.prog, problems):
            row = _disk_row(disk, now_s, problems)
            if not only_busy or row[4] != 0:
                rows.append(row)
    except UNREADABLE as exc:
        problems.append(problem("disks", exc))
    shape = _DISKS if only_busy else _QUIET_DISKS
    return shape.table(rows)


_QUIET_DISKS = Shape(
    _DISKS.name,
    (*_DISKS.columns[:-1], Column("requests", Kind.ROWS, shape=_REQUESTS, hidden=True)),
)


def _disk_row(disk: Object, now_s: int | None, problems: list[Problem]) -> tuple[Cell, ...]:
    head = (
        cell(lambda: int(disk.major.value_())),
        int(disk.value_()),
        cell(lambda: read_disk_name(disk)),
        cell(lambda: int(disk.queue.value_())),
    )
    try:
        requests = list(read_requests(disk, problems))
    except UNREADABLE as exc:
        return (*head, *[absent(exc)] * 3, None)
    writes = sum(request.is_write for request in requests)
    table = _REQUESTS.table([_request_row(request, now_s) for request in requests]) if requests else None
    return (*head, len(requests), len(requests) - writes, writes, table)


def _request_row(request: Request, now_s: int | None) -> tuple[Cell, ...]:
    age = max(0.0, now_s - request.start_s) if now_s is not None and request.start_s is not None else None
    return request.vaddr, request.operation, request.sector, request.size_bytes, age


def _device_dumps(workspace: Workspace, arguments: Arguments) -> Table:
    """
    List the device dumps, show one of them, or save it.

    Raises
    ------
    FactAbsentError
        If there are none.
    UsageError
        If there is none of that number.
    FileFaultError
        If it cannot be saved.
    """
    description = workspace.opened.dump.description
    found = find_device_dumps(description.notes, byte_order=description.byte_order)
    if not found:
        raise FactAbsentError("no driver added a device dump to this dump")
    if not arguments.has("device_dump"):
        rows = [(index, entry.offset, len(entry.contents), entry.name) for index, entry in enumerate(found)]
        return _DUMPS.table(rows)
    index = parse_number(arguments.get("device_dump") or "", "dev -v")
    if not 0 <= index < len(found):
        raise UsageError(f"dev -v: there is no device dump {index}, they are 0 to {len(found) - 1}")
    entry = found[index]
    if not arguments.operands:
        return _CONTENTS.table(list(_hexadecimal_rows(entry)), title=f"DEVICE: {entry.name}")
    try:
        Path(arguments.operands[0]).write_bytes(entry.contents)
    except OSError as exc:
        raise FileFaultError(f"cannot be written: {exc.strerror}", where=arguments.operands[0]) from exc
    return _COPIED.table([(entry.name, len(entry.contents), arguments.operands[0])])


def _hexadecimal_rows(entry: DeviceDump) -> Iterator[tuple[Cell, ...]]:
    for start in range(0, len(entry.contents), 16):
        part = entry.contents[start : start + 16]
        words = [int.from_bytes(part[at : at + 8], "little") if part[at : at + 8] else None for at in (0, 8)]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield entry.offset + start, words[0], words[1], text
