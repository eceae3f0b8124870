"""Which report a line belongs to, and in which order things happened."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from benchmarks.oops import BARS, judge, read_expected

from postpanic.evidence.oops import Kind, find_reports
from postpanic.evidence.oops.answer import SHAPES, answer_of
from postpanic.evidence.oops.demangle import demangle
from postpanic.evidence.sources import plain_text
from postpanic.findings.schema import answer_schema, answer_value
from postpanic.report.text import render_text
from tests.unit.evidence import texts
from tests.unit.evidence.texts import stamped

CORPUS = Path(__file__).resolve().parents[4] / "shared/corpus/oops"


def interleaved(*parts: str) -> bytes:
    lines = [part.splitlines(keepends=True) for part in parts]
    longest = max(map(len, lines))
    return "".join(part[n] for n in range(longest) for part in lines if n < len(part)).encode()


def test_two_cpus_that_print_at_once_are_told_apart_by_their_callers() -> None:
    first, second = find_reports(interleaved(stamped(texts.PAGE_FAULT, "T812"), stamped(texts.WARNING, "T41")))
    assert (first.kind, first.function, first.pid) == (Kind.NULL_DEREFERENCE, "widget_attach", 812)
    assert (second.kind, second.function, second.pid) == (Kind.WARNING, "widget_release", 41)
    assert second.consequence_of == 0
    assert first.is_panic
    assert second.is_panic, "the panic came after both"


ONE = texts.PAGE_FAULT.replace("Kernel panic - not syncing: Fatal exception\n", "").splitlines(keepends=True)
OTHER = [
    line.replace("0000000000000018", "0000000000000138")
    .replace("[#1]", "[#2]")
    .replace("CPU: 3 UID: 0 PID: 812 Comm: modprobe", "CPU: 1 UID: 0 PID: 913 Comm: gadgetd")
    .replace("widget_attach", "gadget_attach")
    for line in ONE
]


@pytest.mark.parametrize(
    "lines",
    [
        [*ONE[:4], *OTHER[:4], *ONE[4:], *OTHER[4:]],
        [*ONE[:4], *OTHER[:4], *OTHER[4:], *ONE[4:]],
        [*(line for pair in zip(ONE[:4], OTHER[:4], strict=True) for line in pair), *ONE[4:], *OTHER[4:]],
        [*(line for pair in zip(ONE[:4], OTHER[:4], strict=True) for line in pair), *OTHER[4:], *ONE[4:]],
    ],
    ids=["in order", "the second dies first", "line by line", "line by line, the second dies first"],
)
def test_two_cpus_without_callers_die_one_after_the_other(lines: list[str]) -> None:
    # die() takes a lock, but what the CPU could not handle is printed before it.
    first, second = find_reports("".join(lines).encode())
    assert (first.function, first.pid, first.cpu, first.address) == ("widget_attach", 812, 3, 0x18)
    assert (second.function, second.pid, second.cpu, second.address) == ("gadget_attach", 913, 1, 0x138)
    assert first.damage == second.damage == ()


def test_error_code_tells_whose_exception_it_is() -> None:
    other = [line.replace("0x0002", "0x0000").replace("0002 [#2]", "0000 [#2]") for line in OTHER if "CR2:" not in line]
    one = [line for line in ONE if "CR2:" not in line]
    first, second = find_reports("".join([*one[:4], *other[:4], *other[4:], *one[4:]]).encode())
    assert (first.function, first.address) == ("widget_attach", 0x18)
    assert (second.function, second.address) == ("gadget_attach", 0x138)


@pytest.mark.parametrize(
    "text",
    [
        interleaved("".join(ONE), "".join(OTHER)),
        interleaved(texts.WARNING, "".join(ONE)),
        interleaved(texts.WARNING, texts.WARNING.replace("PID: 41", "PID: 42").replace("widget", "gadget")),
    ],
    ids=["two oopses", "a warning and an oops", "two warnings"],
)
def test_what_cannot_be_told_apart_is_said_to_be_damaged(text: bytes) -> None:
    first, second = find_reports(text)
    assert first.damage
    assert second.damage


def test_second_report_in_the_same_stream_is_a_report_of_its_own() -> None:
    reports = find_reports((stamped(texts.WARNING) + stamped(texts.PAGE_FAULT, start_s=20)).encode())
    assert [report.function for report in reports] == ["widget_release", "widget_attach"]
    assert [report.consequence_of for report in reports] == [None, 0]


OFFSET = "Kernel Offset: 0x2b000000 from 0xffffffff81000000 (relocation range: 0xffffffff80000000-0xffffffffbfffffff)"


@pytest.mark.parametrize("caller", ["", "T9"])
def test_place_of_the_kernel_holds_for_all_reports_of_its_boot(caller: str) -> None:
    text = (
        stamped(texts.WARNING, caller)
        + stamped(texts.PAGE_FAULT, caller, start_s=20)
        + stamped("quiet\n" * 200, "T1", start_s=30)
        + stamped(OFFSET + "\n", "C3", start_s=40)
        + "[    0.000000] Linux version 6.1.0-9-amd64 (gcc)\n"
        + stamped("BUG: odd\n", start_s=50)
    )
    *moved, last = find_reports(text.encode())
    assert [(report.kaslr_offset, report.kaslr_base) for report in moved] == [(0x2B000000, 0xFFFFFFFF81000000)] * 2
    assert (last.kaslr_offset, last.kaslr_base, last.release) == (None, None, "6.1.0-9-amd64")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("Kernel Offset: disabled", (0, None)),
        ("Kernel Offset: 0x1f5e3a400000 from 0xffff800080000000", (0x1F5E3A400000, 0xFFFF800080000000)),
        ("Kernel relocated by 0x2c40000", (0x2C40000, None)),
    ],
)
def test_place_of_the_kernel_is_read_after_the_panic(line: str, found: tuple[int, int | None]) -> None:
    text = "Kernel panic - not syncing: Fatal exception\n" + line + "\n---[ end Kernel panic - not syncing\n"
    (report,) = find_reports(text.encode())
    assert (report.kaslr_offset, report.kaslr_base) == found


def test_build_ids_of_the_kernel_and_of_modules_are_kept() -> None:
    kernel, module = "ab" * 20, "0123456789" * 4
    text = texts.PAGE_FAULT.replace("PREEMPT(voluntary)", f"PREEMPT(voluntary)  {kernel}")
    text = text.replace("0x70 [widget]", f"0x70 [widget {module}]")
    (report,) = find_reports(text.encode())
    assert (report.build_id, report.release, report.comm) == (kernel, "6.12.1-test", "modprobe")
    frames = [frame for trace in report.traces for frame in trace.frames]
    assert [(f.module, f.module_build_id) for f in frames if f.function == "widget_probe"] == [("widget", module)]


def test_panic_does_not_reach_over_a_boot() -> None:
    text = stamped(texts.WARNING) + "[    0.000000] Linux version 6.1.0 (gcc)\n" + stamped(texts.PAGE_FAULT)
    first, second = find_reports(text.encode())
    assert not first.is_panic
    assert second.is_panic
    assert second.consequence_of is None


def test_panic_on_warn_belongs_to_the_warning() -> None:
    text = texts.WARNING.replace("Modules linked in:\n", "Kernel panic - not syncing: panic_on_warn set ...\n")
    (report,) = find_reports(text.encode())
    assert (report.kind, report.is_panic, report.panic_message) == (Kind.WARNING, True, "panic_on_warn set ...")


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Attempted to kill init! exitcode=0x0000000b", Kind.INIT_DIED),
        ("VFS: Unable to mount root fs on unknown-block(0,0)", Kind.NO_ROOT),
        ("stack-protector: Kernel stack is corrupted in: widget_read+0x10/0x20", Kind.STACK_PROTECTOR),
        ("System is deadlocked on memory", Kind.OUT_OF_MEMORY),
        ("Fatal machine check", Kind.MACHINE_CHECK),
        ("Hard LOCKUP", Kind.HARD_LOCKUP),
        ("sysrq triggered crash", Kind.SYSRQ),
        ("something of a driver", Kind.PANIC),
    ],
)
def test_panic_tells_its_kind(message: str, kind: Kind) -> None:
    (report,) = find_reports(f"[    1.0] Kernel panic - not syncing: {message}\n".encode())
    assert (report.kind, report.is_panic) == (kind, True)


@pytest.mark.parametrize(
    "line",
    [
        "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.356 msecs",
        "WARNING: the mand mount option is being deprecated",
        "WARNING: /etc/ssh/moduli does not exist, using fixed modulus",
        "DEBUG: nothing happened",
        "INFO: lockdep is turned off.",
        "traps: a.out[77] general protection fault ip:4011 sp:7ffd error:0 in a.out[400000+1000]",
        "traps: a.out[77] trap divide error ip:4011 sp:7ffd error:0 in a.out[400000+1000]",
        "XFS (loop0): WARNING: Reset corrupted AGFL on AG 0.",
        "Internal error: the program could not start",
        'systemd[1]: Oops: "BUG: unable" is only quoted here',
        "Out of memory: Killed process 77 (hog) total-vm:1kB, anon-rss:1kB",
    ],
)
def test_harmless_lines_are_no_reports(line: str) -> None:
    assert find_reports(f"[    1.000000] {line}\n".encode() * 3) == []


def test_killed_process_is_a_notice() -> None:
    text = b"[    1.000000] Out of memory: Killed process 77 (hog) total-vm:1kB\n"
    (report,) = find_reports(text, with_notices=True)
    assert (report.kind, report.is_notice) == (Kind.OUT_OF_MEMORY, True)


@pytest.mark.parametrize("cut", [2, 5, 9, 16])
def test_report_that_was_cut_short_is_damaged(cut: int) -> None:
    text = "".join(stamped(texts.PAGE_FAULT).splitlines(keepends=True)[:cut])
    (report,) = find_reports(text.encode())
    assert report.kind is Kind.NULL_DEREFERENCE
    assert report.damage


def test_damage_names_what_is_mixed_in() -> None:
    text = texts.WARNING.replace(" widget_exit", " should_fail+0x1/0x2\n widget_exit")
    (report,) = find_reports(text.encode())
    assert report.damage == ("the trace of a forced failure is mixed in",)


def test_answer_is_tables_and_fits_its_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    reports = find_reports((stamped(texts.KASAN) + stamped(texts.DEADLOCK, start_s=30)).encode())
    answer = answer_of(reports)
    jsonschema.validate(answer_value(answer), answer_schema("decode", SHAPES))
    text = render_text(answer)
    shown = text if isinstance(text, str) else "\n".join(text)
    assert "KASAN: slab-use-after-free read in widget_flush" in shown
    assert answer.table.records()[1]["kind"] == "possible-deadlock"


@pytest.mark.parametrize(
    ("mangled", "readable"),
    [
        ("_RNvNtCs1234_7mycrate3foo3bar", "mycrate::foo::bar"),
        (
            "_RNvXs1_CscPPBqWtAqum_11widget_rustNtB5_6WidgetNtNtCs43vyB533jt3_6kernel10miscdevice10MiscDevice4mmap",
            "<widget_rust::Widget as kernel::miscdevice::MiscDevice>::mmap",
        ),
        ("_RNCNvCs1234_7mycrate4main0B3_", "mycrate::main::{closure}"),
        ("_ZN6kernel5print11call_printk17h0123456789abcdefE", "kernel::print::call_printk"),
        ("_RNvB", "_RNvB"),
        ("_R" + "N" * 3000, "_R" + "N" * 3000),
        ("_RB0_", "_RB0_"),
        ("plain_function", "plain_function"),
    ],
)
def test_rust_names_are_readable(mangled: str, readable: str) -> None:
    assert demangle(mangled) == readable


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus of real reports is not here")
def test_real_reports_are_read_as_well_as_asked_for() -> None:
    found = judge([read_expected(path) for path in sorted(CORPUS.glob("*.txt"))])
    # Few pairs of these files are the same crash, and in some the truth itself calls one crash two names.
    bars = {**BARS, "same precision": 0.97}
    assert {question: found[question] for question, bar in bars.items() if found[question] < bar} == {}
    assert found["false reports"] == 0


def test_mapped_file_is_read_as_bytes_are(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(stamped(texts.PAGE_FAULT).encode())
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        (report,) = find_reports(plain_text(mapped))
    assert report.function == "widget_attach"


def test_two_thousand_callers_at_once_lose_no_report() -> None:
    text = b"".join(
        b"[%12.6f][ %5s] BUG: KASAN: use-after-free in widget_%d+0x1/0x2\n" % (n / 1e6, b"C%d" % n, n)
        for n in range(2000)
    )
    assert len(find_reports(text)) == 2000
