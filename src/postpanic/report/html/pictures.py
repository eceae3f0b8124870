"""
Pictures as SVG, drawn by matplotlib; graphs are laid out by networkx.

Colours are stand-ins that become variables of the page's style, so that one
picture is right on light and dark ground; text stays text, so that it can be
searched, copied and read aloud.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from postpanic.findings.page import Bars, Graph, Node, Picture, Timeline

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

__all__ = ["describe_picture", "draw_picture"]

_TEXT, _PLAIN, _BAD, _WARN, _FAINT = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {
    _TEXT: "currentColor",
    _PLAIN: "var(--plain)",
    _BAD: "var(--bad)",
    _WARN: "var(--warn)",
    _FAINT: "var(--faint)",
}
_COLOURS = re.compile("|".join(_VARIABLES))
_PROLOGUE = re.compile(r"\A.*?(?=<svg)", re.DOTALL)
_IDS = re.compile(r'((?<= )id="|url\(#|xlink:href="#)')
_SIZE = re.compile(r'(<svg[^>]*?) width="[^"]*"')
_HEIGHT = re.compile(r'(<svg[^>]*?) height="[^"]*"')
_WIDTH_INCHES = 9.0
_SVG_DPI = 72
"""What matplotlib's SVG has, so that what is measured before is right."""
_BAR_INCHES = 0.32
_LABEL_CHARACTERS = 34
_SERIES = {"error": _BAD, "warning": _WARN}
_MOST_MARKS = 12
_BINS = 120


def draw_picture(picture: Picture, redact: Callable[[str], str] = lambda text: text, name: str = "picture") -> str:
    """
    Draw a picture.

    Parameters
    ----------
    redact : callable
        Is given each text before it is drawn.
    name : str
        Begins every ``id`` in it: those of a page must differ.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        # The same picture has the same bytes.
        "svg.hashsalt": "postpanic",
        "text.color": _TEXT,
        "axes.labelcolor": _TEXT,
        "axes.edgecolor": _FAINT,
        "xtick.color": _TEXT,
        "ytick.color": _TEXT,
        "font.family": ["sans-serif"],
        "font.size": 9,
        # A name may have a dollar sign in it, which begins a formula otherwise.
        "text.parse_math": False,
    }

    def say(text: str) -> str:
        return "".join(letter if letter.isprintable() or letter == "\n" else "·" for letter in redact(text))

    with mpl.rc_context(settings), warnings.catch_warnings():
        # The font only measures: the reader's browser has the glyphs of other scripts.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")
        figure = Figure(figsize=(_WIDTH_INCHES, _height(picture)), dpi=_SVG_DPI)
        if not isinstance(picture, Graph):
            figure.set_layout_engine("constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_axes((0, 0, 1, 1)) if isinstance(picture, Graph) else figure.add_subplot()
        axes.patch.set_alpha(0)
        match picture:
            case Bars():
                _draw_bars(axes, picture, say)
            case Timeline():
                _draw_timeline(axes, picture, say)
            case Graph():
                _draw_graph(axes, picture, say)
        return _to_svg(figure, name)


def describe_picture(picture: Picture) -> str:
    """Say in a sentence what can be seen, for those who do not see it."""
    match picture:
        case Bars():
            return f"{picture.title}: " + ", ".join(f"{bar.label} {bar.text}" for bar in picture.bars) + "."
        case Timeline():
            counts = ", ".join(f"{len(times)} {name}" for name, times in picture.series.items())
            marks = "; ".join(f"{mark.label} at {mark.time_s:.3f} s" for mark in picture.marks[:_MOST_MARKS])
            return f"{picture.title}: {counts}." + (f" Reports: {marks}." if marks else "")
        case Graph():
            labels = {node.name: node.label.replace("\n", " ") for node in picture.nodes}
            arrows = [
                f"{labels.get(arrow.source, arrow.source)} {arrow.label} {labels.get(arrow.target, arrow.target)}"
                for arrow in picture.arrows
            ]
            return f"{picture.title}: " + "; ".join(arrows) + "."


def _height(picture: Picture) -> float:
    match picture:
        case Bars():
            return 0.5 + _BAR_INCHES * max(len(picture.bars), 1)
        case Timeline():
            return 2.6
        case Graph():
            return min(12.0, 1.0 + 0.4 * len(picture.nodes))


def _to_svg(figure: Figure, name: str) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = _PROLOGUE.sub("", stream.getvalue())
    text = _HEIGHT.sub(r"\1", _SIZE.sub(r"\1", text, count=1), count=1)
    text = _IDS.sub(lambda found: f"{found[1]}{name}-", text)
    return _COLOURS.sub(lambda found: _VARIABLES[found[0]], text)


def _draw_bars(axes: Axes, picture: Bars, redact: Callable[[str], str]) -> None:
    places = range(len(picture.bars))
    colours = [_BAD if bar.is_marked else _PLAIN for bar in picture.bars]
    axes.barh(list(places), [bar.value for bar in picture.bars], color=colours, height=0.7)
    axes.set_yticks(list(places), [_short(redact(bar.label)) for bar in picture.bars])
    axes.invert_yaxis()
    axes.set_xticks([])
    widest = max((bar.value for bar in picture.bars), default=0.0) or 1.0
    axes.set_xlim(0, widest * 1.2)
    for place, bar in zip(places, picture.bars, strict=True):
        axes.text(bar.value + widest * 0.01, place, bar.text, va="center")
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _short(text: str) -> str:
    return text if len(text) <= _LABEL_CHARACTERS else f"{text[: _LABEL_CHARACTERS - 1]}…"


def _draw_timeline(axes: Axes, picture: Timeline, redact: Callable[[str], str]) -> None:
    names = sorted(picture.series, key=lambda name: name in _SERIES)
    times = [list(picture.series[name]) for name in names]
    axes.hist(times, bins=_BINS, stacked=True, color=[_SERIES.get(name, _PLAIN) for name in names], label=names)
    # A burst at boot or in the report itself would make everything else invisible.
    axes.set_yscale("symlog", linthresh=10)
    axes.set_xlabel("seconds since boot")
    axes.set_ylabel("messages")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for mark in picture.marks[:_MOST_MARKS]:
        axes.axvline(mark.time_s, color=_BAD, linestyle="--", linewidth=1)
    if picture.marks:
        first = picture.marks[0]
        axes.annotate(
            _short(redact(first.label)), (first.time_s, 0.98), xycoords=("data", "axes fraction"), ha="right", va="top"
        )
    if len(names) > 1:
        axes.legend(frameon=False, loc="upper left", ncols=len(names))


def _draw_graph(axes: Axes, picture: Graph, redact: Callable[[str], str]) -> None:
    import networkx as nx

    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(node.name for node in picture.nodes)
    graph.add_edges_from((arrow.source, arrow.target) for arrow in picture.arrows)
    places = _lay_out(graph)
    across, down = [place[0] for place in places.values()], [place[1] for place in places.values()]
    axes.set_xlim(min(across, default=0) - 0.5, max(across, default=0) + 0.5)
    axes.set_ylim(min(down, default=0) - 0.5, max(down, default=0) + 0.5)
    boxes = {node.name: _draw_node(axes, node, places[node.name], redact) for node in picture.nodes}
    axes.set_axis_off()
    # Only what is drawn knows how large its box is, which the arrows end at.
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    for arrow in picture.arrows:
        axes.annotate(
            "",
            xy=places[arrow.target],
            xytext=places[arrow.source],
            arrowprops={
                "arrowstyle": "-|>",
                "color": _TEXT,
                "linestyle": "-" if arrow.is_certain else ":",
                "patchA": boxes[arrow.source],
                "patchB": boxes[arrow.target],
                "shrinkA": 2,
                "shrinkB": 2,
                "connectionstyle": "arc3,rad=0.08",
            },
        )
        (x, y), (other_x, other_y) = places[arrow.source], places[arrow.target]
        if arrow.label:
            # Nearer to where it begins: those of two that go opposite ways do not meet.
            middle = (x * 0.55 + other_x * 0.45, y * 0.55 + other_y * 0.45)
            axes.text(*middle, redact(arrow.label), ha="center", va="bottom", fontsize=7)


def _draw_node(axes: Axes, node: Node, place: tuple[float, float], redact: Callable[[str], str]) -> Patch | None:
    label = "\n".join(textwrap.fill(line, _LABEL_CHARACTERS) for line in redact(node.label).split("\n"))
    box = {
        "boxstyle": "round,pad=0.4" if node.category == "task" else "square,pad=0.4",
        "facecolor": "none",
        "edgecolor": _BAD if node.is_marked else _PLAIN,
        "linewidth": 2 if node.is_marked else 1,
    }
    return axes.text(*place, label, ha="center", va="center", bbox=box).get_bbox_patch()


def _lay_out(graph: nx.DiGraph[str]) -> dict[str, tuple[float, float]]:
    """Put who waits to the left of what it waits for, one step a column; circles stay circles."""
    import networkx as nx

    placed: dict[str, tuple[float, float]] = {}
    top = 0.0
    for members in sorted(nx.weakly_connected_components(graph), key=lambda each: (-len(each), min(each))):
        part: nx.DiGraph[str] = nx.DiGraph()
        # Sets have no order, and the same graph is to be the same picture.
        part.add_nodes_from(sorted(members))
        part.add_edges_from(sorted(graph.subgraph(members).edges))
        groups = list(nx.strongly_connected_components(part))
        # Two that wait for each other are drawn side by side.
        found = _circle(part) if len(groups) == 1 and len(part) > 2 else _columns(part)
        highest = max(place[1] for place in found.values())
        for node, (x, y) in found.items():
            placed[node] = (x, top - highest + y)
        top = min(place[1] for place in placed.values()) - 1.0
    return placed


def _circle(part: nx.DiGraph[str]) -> dict[str, tuple[float, float]]:
    radius = max(1.0, len(part) / 4)
    order = _around(part)
    turns = {node: 2 * math.pi * place / len(order) for place, node in enumerate(order)}
    return {node: (radius - math.cos(turn) * radius, math.sin(turn) * radius) for node, turn in turns.items()}


def _around(part: nx.DiGraph[str]) -> list[str]:
    """Give the nodes in the order in which arrows lead from one to the next."""
    order: dict[str, None] = {}
    node: str = min(part)
    while node not in order:
        order[node] = None
        node = min((each for each in part.successors(node) if each not in order), default=node)
    return [*order, *(each for each in part if each not in order)]


def _columns(part: nx.DiGraph[str]) -> dict[str, tuple[float, float]]:
    import networkx as nx

    condensed = nx.condensation(part)
    columns: dict[int, list[str]] = {}
    column = 0
    for generation in nx.topological_generations(condensed):
        members = [list(condensed.nodes[group]["members"]) for group in generation]
        # What waits for each other stands side by side, behind those that wait for it.
        for place in range(max(map(len, members))):
            columns[column] = sorted(group[place] for group in members if place < len(group))
            column += 1
    return {
        node: (float(place), (len(nodes) - 1) / 2 - row)
        for place, nodes in columns.items()
        for row, node in enumerate(nodes)
    }
