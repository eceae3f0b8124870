"""The page: everything on it, nothing that is not, and nothing that must not leave the house."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from postpanic.findings.absent import Absent, Reason
from postpanic.findings.page import (
    Arrow,
    Bar,
    Bars,
    Fact,
    Graph,
    Line,
    Listing,
    Mark,
    Node,
    Output,
    Page,
    Section,
    Timeline,
)
from postpanic.findings.table import Answer, Column, Kind, Layout, Shape
from postpanic.findings.verdict import (
    Cause,
    Confidence,
    Evidence,
    Finding,
    Link,
    Missing,
    Role,
    Subject,
    Verdict,
    Victim,
)
from postpanic.report.html import Redactor, render_page
from postpanic.report.html.pictures import describe_picture, draw_picture

EVIL = "</script><b onclick=alert(1)>&\x1b[1m"
ADDRESS = 0xFFFF_8880_0123_4560
ROWS = Shape("things", (Column("name", title="NAME"), Column("vaddr", Kind.ADDRESS, title="WHERE")))
TEXT = Shape("said", (Column("line"),), Layout.LINES, "{line}")
FINDING = Finding(
    detector="one",
    role=Role.CAUSE,
    cause=Cause.DEADLOCK,
    sentence=f"first and second wait for each other {EVIL}",
    confidence=Confidence.LIKELY,
    function="take_both",
    evidence=(Evidence("it waits", "bt 81", "mutex_lock  at"), Evidence("only said", "", "")),
    chain=(Link("first", "waits for", "second"), Link("second", "waits for", "first", is_certain=False)),
    refuted_by="the holder runs",
)
GRAPH = Graph(
    "Waits",
    (Node("a", "first $x$ (81)", is_marked=True), Node("b", f"mutex\n{EVIL}", "lock"), Node("c", "second")),
    (Arrow("a", "b", "waits for"), Arrow("b", "c", "held by", is_certain=False), Arrow("c", "a")),
)
BARS = Bars("Memory", (Bar("free", 10.0, "10 B"), Bar("a $very$ long name " * 4, 5.0, "5 B", is_marked=True)), "bytes")
TIMELINE = Timeline("Log", {"other": (0.0, 1.5, 2.0), "error": (2.0,)}, (Mark(2.0, "it broke"),))


def make_page(**changes: object) -> Page:
    verdict = Verdict(
        kind="hung-task",
        cause=Cause.DEADLOCK,
        sentence=FINDING.sentence,
        confidence=Confidence.LIKELY,
        function="take_both",
        module="journal",
        subject=Subject("lock", "mutex", "big_lock", ADDRESS, "held"),
        findings=(FINDING,),
        victims=(Victim("cat", 81, "only waits"),),
        missing=(Missing("pages of processes", "left out", "level 23"),),
        next_steps=("bt 81",),
        signature="0123456789abcdef",
        release="6.1.0",
    )
    values: dict[str, object] = {
        "title": FINDING.sentence,
        "verdict": verdict,
        "facts": (
            Fact("Host", "crash-host-7"),
            Fact("Uptime", Absent(Reason.EXCLUDED, "its page was left out")),
            Fact("Condition", Absent(Reason.NOT_APPLICABLE)),
        ),
        "sections": (
            Section("waits", "Waits", "a note", (GRAPH, BARS, TIMELINE), (ROWS.table([(EVIL, ADDRESS)]),)),
            Section(
                "log",
                "Log",
                listings=(Listing("log", (Line("one", level="err"), Line("two", is_marked=True))),),
                is_open=False,
            ),
        ),
        "evidence": (
            Output(
                "bt 81", Answer("bt", (TEXT.table([("#0 mutex_lock at 1",), ("#1 cat",)]),)), (), ("mutex_lock at",)
            ),
        ),
        "made_of": "dump.kdump",
        "private_names": ("crash-host-7", "cat"),
    }
    return Page(**(values | changes))  # type: ignore[arg-type]


class Links(HTMLParser):
    """Collects what a page links to, what can be linked to, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if "id" in known:
            self.ids.append(known["id"] or "")
        if tag == "a":
            self.targets.append(known.get("href") or "")
        self.fetched += [known[name] or "" for name in ("src", "xlink:href", "srcset") if name in known]
        if tag not in {"meta", "br", "input", "link", "path", "use"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass


def read_links(text: str) -> Links:
    links = Links()
    links.feed(text)
    return links


def test_everything_is_on_the_page() -> None:
    text = render_page(make_page())
    for part in (
        "likely",
        "take_both",
        "journal",
        "big_lock",
        f"{ADDRESS:x}",
        "its page was left out",
        "only waits",
        "level 23",
        "It would be refuted by: the holder runs",
        "(not certain)",
        "a note",
        "crash-host-7",
    ):
        assert part in text, part
    assert "Condition" not in text
    assert text.count("<svg") == 3
    assert "<mark>#0 mutex_lock at 1</mark>" in text
    assert "<mark>two</mark>" in text


def test_links_lead_somewhere_and_nothing_is_fetched() -> None:
    links = read_links(render_page(make_page()))
    assert len(links.targets) > 5
    assert {target.removeprefix("#") for target in links.targets} <= set(links.ids)
    assert "#evidence-1" in links.targets
    assert len(links.ids) == len(set(links.ids))
    assert not [url for url in links.fetched if not url.startswith("#")]


def test_what_the_kernel_said_is_never_markup() -> None:
    text = render_page(make_page())
    assert "<b onclick" not in text
    assert "&lt;b onclick=alert(1)&gt;" in text


def test_private_things_are_taken_out_and_keep_their_identity() -> None:
    page = make_page()
    redactor = Redactor(("names", "addresses", "command-lines"), page.private_names, (page.verdict.signature,))
    text = render_page(page, redactor)
    assert "crash-host-7" not in text
    assert f"{ADDRESS:x}" not in text
    assert page.verdict.signature in text
    assert "taken out: names, addresses, command-lines" in text
    assert redactor(f"{ADDRESS:#x} {ADDRESS:016x}") == "address-1 address-1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat concat cat-er a cat.", "name-1 concat cat-er a name-1."),
        ("Kernel command line: root=/dev/secret quiet", "Kernel command line: (redacted)"),
        ("RIP: 0010:foo+0x1c/0x200", "RIP: 0010:foo+0x1c/0x200"),
        ("CR2: 0000000000000000", "CR2: 0000000000000000"),
        ("R10: ffff888001234560", "R10: address-1"),
        ("at 0x7fffdeadbeef", "at address-1"),
    ],
)
def test_only_what_is_private_is_taken_out(text: str, expected: str) -> None:
    assert Redactor(("names", "addresses", "command-lines"), ("cat",))(text) == expected


def test_redactor_without_a_task_changes_nothing() -> None:
    text = f"cat {ADDRESS:x} Command line: x"
    assert Redactor((), ("cat",))(text) == text


@pytest.mark.parametrize("picture", [GRAPH, BARS, TIMELINE])
def test_picture_is_drawn_in_the_colours_of_the_page_and_the_same_each_time(picture: Bars | Graph | Timeline) -> None:
    first, second = draw_picture(picture), draw_picture(picture)
    assert first == second
    assert first.startswith("<svg")
    assert "currentColor" in first
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", first)
    assert picture.title in describe_picture(picture)


def test_texts_of_pictures_are_text() -> None:
    assert "first $x$ (81)" in draw_picture(GRAPH)
    assert "stand-in" in draw_picture(GRAPH, lambda text: text.replace("first $x$", "stand-in"))


def test_circle_and_loop_are_drawn() -> None:
    loop = Graph("self", (Node("a", "alone"),), (Arrow("a", "a", "waits for"),))
    assert "alone" in draw_picture(loop)


def test_long_output_keeps_what_is_around_the_evidence() -> None:
    lines = tuple(Line(f"line {number}") for number in range(2000))
    text = render_page(make_page(evidence=(Output("log", None, lines, ("line 1500",)),)))
    assert "<mark>line 1500</mark>" in text
    assert "line 1495" in text
    assert "… 1488 lines …" in text
    assert "line 700" not in text


def test_output_that_could_not_be_had_says_why() -> None:
    assert "(unavailable: page is left out)" in render_page(
        make_page(evidence=(Output("rd 0", note="page is left out"),))
    )
