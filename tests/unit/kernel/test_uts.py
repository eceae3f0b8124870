from __future__ import annotations

import pytest

from postpanic.errors import CorruptError, FactAbsentError
from postpanic.kernel.ksymtab import make_vmcoreinfo_symbols
from postpanic.kernel.uts import UtsName, read_banner, read_utsname
from tests.unit.kernel.memories import PLACE, STEXT, open_x86_kernel

NAMES = ("Linux", "host", "6.1.0", "#1 SMP", "x86_64", "(none)")
UTS = b"".join(name.encode().ljust(65, b"\0") for name in NAMES)
INIT_UTS_NS = STEXT + 0x100000


@pytest.mark.parametrize(("offset", "lines"), [(0, [("OFFSET", "uts_namespace.name", 0)]), (4, []), (0, [])])
def test_names_of_the_system_are_read(offset: int, lines: list[tuple[str, str, int]]) -> None:
    memory = open_x86_kernel({INIT_UTS_NS + offset: UTS}, lines)
    assert read_utsname(memory) == UtsName(*NAMES)


@pytest.mark.parametrize(
    "lines", [[], [("OFFSET", "uts_namespace.name", 1 << 40)], [("OFFSET", "uts_namespace.name", 8)]]
)
def test_system_that_is_not_named_linux_is_corrupt(lines: list[tuple[str, str, int]]) -> None:
    with pytest.raises(CorruptError, match="init_uts_ns"):
        read_utsname(open_x86_kernel({INIT_UTS_NS: b"x" * 600}, lines))


def test_banner_is_read_by_its_symbol() -> None:
    memory = open_x86_kernel({PLACE: b"Linux version 6.1.0\n\0"}, [("SYMBOL", "linux_banner", PLACE)])
    assert read_banner(memory, make_vmcoreinfo_symbols(memory)) == "Linux version 6.1.0"
    with pytest.raises(FactAbsentError, match="linux_banner"):
        read_banner(memory, make_vmcoreinfo_symbols(open_x86_kernel()))
