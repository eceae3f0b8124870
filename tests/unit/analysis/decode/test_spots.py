"""Which places a line names, and which of them are return addresses."""

from __future__ import annotations

import pytest

from postpanic.analysis.decode.spots import SpotReader


def read(*lines: str) -> list[tuple[str, bool]]:
    reader = SpotReader()
    return [(spot.function, spot.is_exact) for line in lines for spot in reader.read(line)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("RIP: 0010:do_open+0x10/0x20 [ext4]", [("do_open", True)]),
        ("RIP: 0010:[<ffffffff81234567>]  [<ffffffff81234567>] do_open+0x10/0x20", [("do_open", True)]),
        ("EIP: do_open+0x10/0x20", [("do_open", True)]),
        ("EIP is at do_open+0x10/0x20", [("do_open", True)]),
        ("IP: do_open+0x10/0x20", [("do_open", True)]),
        ("pc : do_open+0x10/0x20", [("do_open", True)]),
        ("lr : do_open+0x10/0x20", [("do_open", False)]),
        ("PC is at do_open+0x10/0x20", [("do_open", True)]),
        ("LR is at do_open+0x10/0x20", [("do_open", False)]),
        ("NIP [c00000000030a060] do_open+0x10/0x20", [("do_open", True)]),
        ("LR [c00000000030a060] do_open+0x10/0x20", [("do_open", False)]),
        ("epc : do_open+0x10/0x20", [("do_open", True)]),
        ("epc : do_open+0x10/0x20 ra : do_close+0x8/0x20", [("do_open", True), ("do_close", False)]),
        ("Krnl PSW : 0704c00180000000 0000000000b2f2a2 (do_open+0x10/0x20)", [("do_open", True)]),
        ("WARNING: CPU: 1 PID: 2 at fs/open.c:12 do_open+0x10/0x20", [("do_open", True)]),
        (" do_open+0x10/0x20 [ext4]", [("do_open", False)]),
        (" ? do_open+0x10/0x20", [("do_open", False)]),
        (" do_open+0x10/0x20 (P)", [("do_open", True)]),
        (" do_open+0x10/0x20 (L)", [("do_open", False)]),
        (" do_open+0x0/0x20", [("do_open", True)]),
        (" do_open.isra.0.cold+0x10/0x20", [("do_open.isra.0.cold", False)]),
        ("BUG: KASAN: use-after-free in do_open+0x10/0x20", [("do_open", False)]),
        # Symbolised before: nothing is put in twice.
        (" do_open+0x10/0x20 (fs/open.c:12)", []),
        (" do_open+0x10/0x20 fs/open.c:12", []),
        ("nothing of that", []),
        ("x+0x/0x", []),
    ],
)
def test_one_line(line: str, expected: list[tuple[str, bool]]) -> None:
    assert read(line) == expected


@pytest.mark.parametrize(
    "entry",
    [
        " el1h_64_irq+0x64/0x68",
        " el1_irq+0xb8/0x140",
        " apic_timer_interrupt+0x84/0x90",
        " handle_exception+0x100/0x120",
    ],
)
def test_behind_the_entry_of_an_exception_is_what_was_interrupted(entry: str) -> None:
    assert read(entry, " do_open+0x10/0x20", " do_close+0x4/0x8")[1:] == [("do_open", True), ("do_close", False)]


def test_a_program_counter_in_between_is_it() -> None:
    lines = (" asm_sysvec_reboot+0x16/0x20", "RIP: 0010:do_idle+0x10/0x20", " cpu_startup_entry+0x4/0x8")
    assert read(*lines)[1:] == [("do_idle", True), ("cpu_startup_entry", False)]


def test_arm() -> None:
    lines = (
        "[<c0101234>] (do_open) from [<c0105678>] (do_close+0xa0/0xc0)",
        "[<c0101234>] (__dabt_svc) from [<c0105678>] (do_open+0xa0/0xc0)",
        " __irq_svc from do_idle+0x10/0x20",
    )
    assert read(*lines) == [("do_close", False), ("do_open", True), ("do_idle", True)]


def test_module_and_its_build_id() -> None:
    build_id = "0123456789abcdef0123456789abcdef01234567"
    spot = SpotReader().read(f" do_open+0x10/0x20 [ext4 {build_id}]")[0]
    assert (spot.module, spot.module_build_id) == ("ext4", build_id)


@pytest.mark.parametrize(
    ("line", "address"),
    [
        (" 0xffffffffc0001234", 0xFFFFFFFFC0001234),
        (" ? 0xffffffffc0001234", 0xFFFFFFFFC0001234),
        (" [<ffffffffc0001234>] 0xffffffffc0001234", 0xFFFFFFFFC0001234),
        (" [<c0101234>]", 0xC0101234),
    ],
)
def test_bare_addresses(line: str, address: int) -> None:
    assert [(spot.function, spot.address) for spot in SpotReader().read(line)] == [("", address)]


def test_an_address_beside_its_symbol() -> None:
    spot = SpotReader().read(" [<ffffffff81234567>] ? do_open+0x7/0x20")[0]
    assert spot.address == 0xFFFFFFFF81234567


def test_no_line_takes_long() -> None:
    for line in ("x+0x1/0x2 " * 5000, "[<" * 20000, "a" * 100000 + "+0x1/0x", "PC is at " * 10000 + "+0x1/0x2"):
        assert len(SpotReader().read(line)) <= 5000
