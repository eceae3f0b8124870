"""Two CPUs oops at once: the first one's registers, printed again, are in the midst of the other's report."""

from __future__ import annotations

import random

import pytest

from postpanic.evidence.oops import Kind, find_reports


def _oops(number: int, function: str, address: int, stack: int) -> list[str]:
    """Print an oops as x86 does, without printk callers."""
    return [
        f"BUG: kernel NULL pointer dereference, address: {address:016x}",
        "#PF: supervisor read access in kernel mode",
        "#PF: error_code(0x0000) - not-present page",
        "PGD 0 P4D 0",
        f"Oops: 0000 [#{number}] PREEMPT SMP NOPTI",
        f"CPU: {number} PID: {100 + number} Comm: task-{number} Not tainted 6.1.0 #1",
        "Hardware name: a board",
        *_registers(function, address, stack),
        "Call Trace:",
        " <TASK>",
        f" caller_of_{function}+0x12/0x40",
        " kthread+0xda/0x100",
        " ret_from_fork+0x22/0x30",
        " </TASK>",
        "Modules linked in: both",
        f"CR2: {address:016x}",
        "---[ end trace 0000000000000000 ]---",
    ]


def _registers(function: str, address: int, stack: int) -> list[str]:
    return [
        f"RIP: 0010:{function}+0x5/0x20 [both]",
        "Code: Unable to access opcode bytes at 0xffffffffc0472feb.",
        f"RSP: 0018:{stack:016x} EFLAGS: 00010202",
        f"RAX: 0000000000000002 RBX: {stack + 8:016x} RCX: 0000000000000002",
        "CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033",
        f"CR2: {address:016x} CR3: 0000000013410000 CR4: 0000000000750ee0",
    ]


def _mix(one: list[str], other: list[str], seed: int) -> list[str]:
    chance = random.Random(seed)
    one, other, mixed = [*one], [*other], []
    while one or other:
        mixed.append((other if other and (not one or chance.random() < 0.5) else one).pop(0))
    return mixed


def _text(lines: list[str]) -> bytes:
    return "".join(f"[    7.{number:06d}] {line}\n" for number, line in enumerate(lines)).encode()


@pytest.mark.parametrize("name", ["other", "first"])
def test_registers_of_the_first_oops_are_no_part_of_the_second(name: str) -> None:
    """Also where both stumbled over the same instruction."""
    first, second = _oops(1, "first", 64, 0xFFFFC90000003F18), _oops(2, name, 256, 0xFFFFC90000103F18)
    summary = _registers("first", 64, 0xFFFFC90000003F18)
    alone = find_reports(_text([*first, *summary, *second, *summary]))
    assert [report.function for report in alone] == ["first", name]
    for seed in range(200):
        reports = find_reports(_text([*first, *_mix(second, summary, seed), *summary]))
        assert [(report.kind, report.damage) for report in reports] == [(Kind.NULL_DEREFERENCE, ())] * 2
        for report, expected in zip(reports, alone, strict=True):
            assert (report.function, report.comm, report.address) == (
                expected.function,
                expected.comm,
                expected.address,
            )
            assert report.signature == expected.signature, seed
            assert report.traces == expected.traces, seed
            assert report.registers == expected.registers, seed


def test_another_boot_has_a_first_oops_of_its_own() -> None:
    first = _oops(1, "first", 64, 0xFFFFC90000003F18)
    text = _text([*first, "Linux version 6.1.0 (x) #1", *first])
    assert [report.function for report in find_reports(text)] == ["first", "first"]
