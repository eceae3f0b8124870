"""``tree``: red-black trees, XArrays, radix trees, maple trees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from drgn import Program

from postpanic.analysis.cells import problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.elements import MEMBERS_COLUMN, STRUCT, STRUCT_SHORT, ElementWriter
from postpanic.analysis.commands.output_style import DECIMAL, HEXADECIMAL, is_hex
from postpanic.analysis.commands.per_cpu_words import find_vaddr
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.structures import parse_offset
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.walks.branches import Element
from postpanic.analysis.walks.maple import MapleNode, MapleTree
from postpanic.analysis.walks.red_black import walk_red_black
from postpanic.analysis.walks.xarray import detect_xarray, walk_xarray
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape

__all__ = ["tree"]

_TYPES = {
    **dict.fromkeys(("rbtree", "rb"), "rbtree"),
    **dict.fromkeys(("radix", "ra"), "radix"),
    **dict.fromkeys(("xarray", "x", "xa"), "xarray"),
    **dict.fromkeys(("maple", "m"), "maple"),
}
_ELEMENTS = Shape(
    "tree",
    (
        Column("address", Kind.ADDRESS, format="x", help="Of the element; of an XArray: what it holds."),
        Column("index", Kind.NUMBER, help="Of an XArray or radix tree: its index; of a maple tree: its number."),
        Column("first", Kind.HEX, help="Of a maple tree: the first index of its range."),
        Column("last", Kind.HEX, help="Of a maple tree: the last index of its range."),
        Column("position", help="The way from the root (-p)."),
        Column("text", help="As it is shown."),
        MEMBERS_COLUMN,
    ),
    Layout.LINES,
    "{text}",
)
_NODES = Shape(
    "maple_nodes",
    (
        Column("address", Kind.ADDRESS, help="``struct maple_node *``."),
        Column("type", Kind.NUMBER, help="``enum maple_type``."),
        Column("depth", Kind.NUMBER, help="Nodes above it."),
        Column("first", Kind.HEX, help="First index."),
        Column("last", Kind.HEX, help="Last index."),
        Column("parent", Kind.HEX, help="``maple_node.parent`` as it is."),
        Column("text", help="As it is shown."),
    ),
    Layout.LINES,
    "{text}",
)


@command(
    "tree",
    summary="red-black tree, XArray, radix tree or maple tree",
    description=(
        "Show what a tree holds. The start is the root (rb_root, xarray, radix_tree_root, maple_tree), the structure "
        "that it is in (-r), or a node (-N). Each node is read once: a branch of a damaged tree that cannot be read, "
        "or that leads back, ends there and is named, the others go on."
    ),
    options=(
        Option("-t", "type", "rbtree (what is shown without it), radix, xarray or maple", "TYPE"),
        Option("-r", "root_offset", "offset of the root in the structure at start: bytes, or struct.member", "OFFSET"),
        Option("-o", "offset", "red-black trees: offset of the rb_node in an element", "OFFSET"),
        STRUCT,
        STRUCT_SHORT,
        Option("-l", "linear", "red-black trees: from the leftmost element to the rightmost"),
        Option("-p", "position", "show the way from the root to each element"),
        Option("-v", "nodes", "maple trees: show each node with its slots"),
        Option("-N", "node", "the start is a node, not a root"),
        HEXADECIMAL,
        DECIMAL,
    ),
    operands=(Operand("start", "address, symbol or (expression)", required=True),),
    shapes=(_ELEMENTS, _NODES),
    examples=(
        Example("tree -o vmap_area.rb_node vmap_area_root -s vmap_area.va_start,va_end", "areas of vmalloc()"),
        Example("tree -t xarray -r address_space.i_pages ffff94c235e76828 -p", "pages of a file"),
        Example("tree -t maple -r mm_struct.mm_mt ffff9034c006aec0 -s vm_area_struct.vm_start", "areas of a process"),
    ),
)
def tree(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show what a tree holds."""
    kind = _TYPES.get(arguments.get("type") or "rbtree")
    if kind is None:
        raise UsageError(f"tree -t: {arguments.get('type')!r} is none of rbtree, radix, xarray, maple")
    _check_options(arguments, kind)
    problems: list[Problem] = []
    start = find_vaddr(workspace, arguments.operands[0])
    start += parse_offset(workspace, arguments.get("root_offset") or "0")
    offset = parse_offset(workspace, arguments.get("offset") or "0")
    try:
        if kind == "maple":
            root = start if arguments.has("node") else _read_root(workspace.prog, kind, start)
            maple = MapleTree(workspace.prog, root, problems)
            return _answer_maple(workspace, arguments, maple, (start, root), problems)
        elements = _walk(workspace.prog, arguments, kind, start, problems)
    except UNREADABLE as exc:
        if isinstance(exc, FactAbsentError):
            raise
        problems.append(problem(f"the root {start:x}", exc))
        return Answer("tree", (_ELEMENTS.table(),), tuple(problems))
    rows = list(_rows(workspace, arguments, elements, offset, problems))
    return Answer("tree", (_ELEMENTS.table(rows),), tuple(problems))


def _check_options(arguments: Arguments, kind: str) -> None:
    if kind != "rbtree":
        for name, flag in (("offset", "-o"), ("linear", "-l")):
            if arguments.has(name):
                raise UsageError(f"tree {flag}: for red-black trees only")
    if kind != "maple" and arguments.has("nodes"):
        raise UsageError("tree -v: for maple trees only")


def _read_root(prog: Program, kind: str, start: int) -> int:
    """Read what a root holds."""
    match kind:
        case "rbtree":
            offset = prog.type("struct rb_root").member("rb_node").offset
        case "maple":
            offset = _maple_root_offset(prog)
        case _:
            offset = detect_xarray(prog).head
    return int(prog.read_word(start + offset))


def _maple_root_offset(prog: Program) -> int:
    try:
        return int(prog.type("struct maple_tree").member("ma_root").offset)
    except LookupError:
        raise FactAbsentError("the kernel has no maple trees") from None


def _walk(prog: Program, arguments: Arguments, kind: str, start: int, problems: list[Problem]) -> Iterator[Element]:
    root = start if arguments.has("node") else _read_root(prog, kind, start)
    if kind == "rbtree":
        return walk_red_black(prog, root, problems, in_order=arguments.has("linear"))
    layout = detect_xarray(prog)
    if arguments.has("node"):
        root = root & ~3 | layout.node_mark
    return walk_xarray(prog, root, layout, problems)


def _rows(
    workspace: Workspace, arguments: Arguments, elements: Iterable[Element], offset: int, problems: list[Problem]
) -> Iterator[tuple[Cell, ...]]:
    writer = ElementWriter(workspace, arguments, problems)
    shows_position = arguments.has("position")
    hexadecimal = is_hex(workspace, arguments)
    for element in elements:
        vaddr = element.vaddr - offset
        text = f"{vaddr:x}"
        if shows_position and element.index is not None:
            index = f"{element.index:#x}" if hexadecimal else str(element.index)
            text += f"\n  index: {index}  position: {element.position}"
        elif shows_position:
            text += f"\n  position: {element.position}"
        members = None if writer.is_idle else writer.members(vaddr)
        yield vaddr, element.index, element.first, element.last, element.position, text, members


def _answer_maple(
    workspace: Workspace, arguments: Arguments, maple: MapleTree, root: tuple[int, int], problems: list[Problem]
) -> Answer:
    walked = list(maple.walk())
    if not arguments.has("nodes"):
        elements = [entry for entry in walked if isinstance(entry, Element)]
        rows = list(_rows(workspace, arguments, elements, 0, problems))
        return Answer("tree", (_ELEMENTS.table(rows),), tuple(problems))
    hexadecimal = is_hex(workspace, arguments)
    title = None
    if not arguments.has("node"):
        flags = workspace.prog.read_u32(root[0] + workspace.prog.type("struct maple_tree").member("ma_flags").offset)
        title = f"maple_tree({root[0]:x}) flags {flags:X}, height {flags >> 2 & 0x1F} root 0x{root[1]:x}\n"
    nodes = [_node_row(node, is_hex=hexadecimal) for node in walked if isinstance(node, MapleNode)]
    return Answer("tree", (_NODES.table(nodes, title=title),), tuple(problems))


def _node_row(node: MapleNode, *, is_hex: bool) -> tuple[Cell, ...]:
    def spell(value: int) -> str:
        return f"{value:#x}" if is_hex else str(value)

    indent = "  " * node.depth
    span = f"{spell(node.first)}-{spell(node.last)}"
    lines = [f"{indent}{span}: node {node.vaddr:#x} depth {node.depth} type {node.type} parent {node.parent:#x}"]
    if node.type <= 1:
        for first, last, entry in node.slots:
            span = spell(first) if first == last else f"{spell(first)}-{spell(last)}"
            lines.append(f"{indent}  {span}: {entry:#x}")
    return node.vaddr, node.type, node.depth, node.first, node.last, node.parent, "\n".join(lines)
