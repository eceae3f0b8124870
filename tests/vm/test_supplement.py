"""What types and symbols add to VMCOREINFO is what the kernel itself exported."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from postpanic.dumps.open import open_dump
from postpanic.errors import MismatchError
from postpanic.kernel.btf.find import read_kernel_btf
from postpanic.kernel.kallsyms import read_kallsyms
from postpanic.kernel.memory import open_kernel_memory
from postpanic.kernel.supplement import generate_vmcoreinfo, supplement_from_vmlinux, supplement_vmcoreinfo
from postpanic.kernel.vmcoreinfo import Vmcoreinfo, parse_vmcoreinfo
from tests.vm.lab import Crash

KERNELS = ("5.10", "6.1", "6.12", "newest")
IDENTITY = ("OSRELEASE", "BUILD-ID", "PAGESIZE", "KERNELOFFSET")
NOT_EXPORTED_BY_ALL = {
    # Exported later than the kernel had them.
    *("OFFSET(uts_namespace.name)", "NUMBER(PAGE_UNACCEPTED_MAPCOUNT_VALUE)"),
}


def _bare(info: Vmcoreinfo) -> Vmcoreinfo:
    return parse_vmcoreinfo("".join(f"{key}={info.entries[key]}\n" for key in IDENTITY).encode())


def _judge(added: Vmcoreinfo, exported: Vmcoreinfo, least: int) -> None:
    compared = 0
    for key, value in added.entries.items():
        if key in exported.entries:
            assert value == exported.entries[key], key
            compared += 1
        else:
            assert key in NOT_EXPORTED_BY_ALL
    assert compared >= least
    for key in ("OFFSET(page.flags)", "OFFSET(page._mapcount)", "NUMBER(PG_lru)", "LENGTH(zone.free_area)"):
        assert key in added.entries


@pytest.mark.parametrize("kernel", KERNELS)
def test_entries_from_the_dump_are_the_exported_ones(kernel: str, crashed: Callable[..., Crash]) -> None:
    with open_dump(crashed(kernel).raw) as dump:
        memory = open_kernel_memory(dump)
        symbols = read_kallsyms(memory)
        btf = read_kernel_btf(memory, symbols)
        named = {name: symbols.get(name) for name in ("prb", "_stext", "init_uts_ns", "init_top_pgt", "node_data")}
        addresses = {name: int(vaddr) for name, vaddr in named.items() if vaddr is not None}
        added = supplement_vmcoreinfo(_bare(memory.vmcoreinfo), btf=btf, symbols=addresses)
        _judge(added, memory.vmcoreinfo, 40)
        # Nothing of what the kernel wrote itself is touched.
        whole = supplement_vmcoreinfo(memory.vmcoreinfo, btf=btf)
        assert set(whole.entries) - set(memory.vmcoreinfo.entries) <= NOT_EXPORTED_BY_ALL


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "newest"])
def test_entries_from_vmlinux_are_the_exported_ones(kernel: str, crashed: Callable[..., Crash]) -> None:
    crash = crashed(kernel)
    if crash.vmlinux is None:
        pytest.skip("the kernel's own debug information cannot be had")
    with open_dump(crash.raw) as dump:
        exported = open_kernel_memory(dump).vmcoreinfo
    _judge(supplement_from_vmlinux(_bare(exported), crash.vmlinux), exported, 50)
    text = parse_vmcoreinfo(generate_vmcoreinfo(crash.vmlinux))
    assert text.osrelease == exported.osrelease
    assert text.build_id == exported.build_id
    assert text.symbol("prb") + (exported.kerneloffset or 0) == exported.symbol("prb")


def test_vmlinux_of_another_kernel_is_refused(crashed: Callable[..., Crash]) -> None:
    other = crashed("6.1").vmlinux
    if other is None:
        pytest.skip("the kernel's own debug information cannot be had")
    with open_dump(crashed("6.12").raw) as dump, pytest.raises(MismatchError, match="build ID"):
        supplement_from_vmlinux(open_kernel_memory(dump).vmcoreinfo, other)
