"""Which kernel wrote a line, and where it lay."""

from __future__ import annotations

import pytest

from postpanic.analysis.decode.context import LogContext, find_context

BUILD_ID = "0123456789abcdef0123456789abcdef01234567"


def follow(*lines: str) -> LogContext:
    context = LogContext()
    for line in lines:
        context = context.follow(line)
    return context


def test_release_and_build_id() -> None:
    context = follow(
        "[    0.000000] Linux version 6.1.0-56-amd64 (x@y) (gcc) #1 SMP",
        f"[    1.000000] CPU: 0 PID: 1 Comm: init Not tainted 6.1.0-56-amd64 #1 {BUILD_ID}",
        "[    1.000000] Kernel Offset: 0x2a000000 from 0xffffffff81000000 (relocation range: 0x0-0x1)",
        "[    1.000000] nothing of that",
    )
    assert (context.release, context.build_id, context.slide) == ("6.1.0-56-amd64", BUILD_ID, 0x2A000000)


def test_another_kernel_begins_anew() -> None:
    """The kernel that captured the crash may be another one, and lies elsewhere."""
    context = follow(
        f"CPU: 0 PID: 1 Comm: init Not tainted 6.1.0 #1 {BUILD_ID}",
        "Kernel Offset: 0x2a000000 from 0xffffffff81000000",
        "Linux version 6.12.0 (x@y) (gcc) #1 SMP",
    )
    assert context == LogContext("6.12.0")


def test_an_offset_that_was_not_taken() -> None:
    assert follow("Kernel Offset: disabled").slide == 0


@pytest.mark.parametrize(
    ("line", "architecture"),
    [
        ("RIP: 0010:f+0x1/0x2", "x86_64"),
        ("EIP: f+0x1/0x2", "x86"),
        ("PC is at f+0x1/0x2", "arm"),
        ("pc : f+0x1/0x2", "aarch64"),
        ("epc : f+0x1/0x2", "riscv64"),
        ("NIP [c000000000000000] f+0x1/0x2", "ppc64"),
        ("era : 9000000000000000 f+0x1/0x2", "loongarch64"),
        ("Krnl PSW : 0704c00180000000 0000000000b2f2a2 (f+0x1/0x2)", "s390x"),
    ],
)
def test_machine(line: str, architecture: str) -> None:
    assert follow(line).architecture == architecture


def test_of_a_whole_text_the_first_kernel_counts() -> None:
    text = (
        b"noise\x00\xff\n[    0.0] Linux version 6.1.0 (x@y) (gcc)\n"
        b"CPU: 0 PID: 1 Comm: init Not tainted 6.1.0 #1 " + BUILD_ID.encode() + b"\n"
        b"Kernel Offset: 0x1000000 from 0xffffffff81000000\n"
        b"Linux version 6.12.0 (x@y) (gcc)\nKernel Offset: 0x2000000 from 0xffffffff81000000"
    )
    context = find_context(text)
    assert (context.release, context.build_id, context.slide) == ("6.1.0", BUILD_ID, 0x1000000)


def test_of_nothing_nothing_is_known() -> None:
    assert find_context(b"") == LogContext()
    assert find_context(b"ainted" * 1000) == LogContext()
