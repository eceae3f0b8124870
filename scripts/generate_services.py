"""
Generate the table of kernel functions that serve everybody, from the DWARF of real kernels.

A function that copies, allocates, locks or keeps lists for others is seldom at
fault when the kernel crashes in it: the caller is. What a function does is told
best by the file it is compiled from. This script lists the functions of the
files below, by the part they play; a name that some other file has as well is
left out.

Usage::

    generate_services.py -o src/postpanic/evidence/oops/services.tsv.gz VMLINUX...

The output is gzip-compressed text, sorted, free of time stamps: a part, a tab,
and the names, separated by spaces.
"""

from __future__ import annotations

import argparse
import bisect
import gzip
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

FILES: dict[str, str] = {
    "REPORTING": (
        r"mm/(?:kasan|kfence|kmsan)/.*|kernel/kcsan/.*|mm/(?:kmemleak|usercopy|page_owner|page_poison)\.c"
        r"|kernel/(?:panic|kallsyms|stacktrace|fail_function|kcov|watchdog\w*|hung_task)\.c|kernel/locking/lockdep\w*\.c"
        r"|lib/(?:bug|ubsan|dump_stack|hexdump|debugobjects|fault-inject|refcount|list_debug|stackdepot|ref_tracker"
        r"|smp_processor_id|nmi_backtrace)\.c|arch/\w+/kernel/(?:dumpstack\w*|stacktrace)\.c"
    ),
    "EXCEPTION": r"arch/\w+/kernel/traps\.c|arch/\w+/mm/(?:fault|extable)\.c|kernel/notifier\.c",
    "INTERRUPT": r"kernel/softirq\.c",
    "ALLOCATOR": (
        r"mm/(?:slub|slab|slab_common|util|vmalloc|page_alloc|mempool|dmapool|percpu|page_frag\w*)\.c|lib/percpu\w*\.c"
    ),
    "LOCKING": r"kernel/locking/(?!lockdep).*|lib/lockref\.c|lib/dec_and_lock\.c",
    "WAITING": r"kernel/(?:workqueue|kthread|smp|stop_machine|smpboot)\.c",
    "LIBRARY": (
        r"lib/(?!test|kunit|iov_iter|timerqueue|maple_tree|rhashtable|assoc_array)[\w-]+\.c|lib/crypto/.*|arch/\w+/lib/.*"
        r"|crypto/(?!af_alg|algif|crypto_user|algapi|api)\w+\.c|arch/\w+/crypto/.*|mm/(?:maccess|list_lru)\.c"
        r"|drivers/base/(?:core|dd|bus|driver|class|devres|map|attribute_container|transport_class)\.c"
        r"|drivers/usb/core/(?:urb|hcd|buffer)\.c"
    ),
}
"""Which files serve, in the order in which a part is chosen."""

_ROOT = re.compile(
    r"(?:^|/)((?:arch|block|crypto|drivers|fs|include|init|io_uring|ipc|kernel|lib|mm|net|rust|security|sound|virt)/.*)$"
)
_OWN = re.compile(r"process_one_work|\w+_init")
"""Names in those files that do work of their own."""


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("vmlinux", type=Path, nargs="+")
    arguments = parser.parse_args()
    files: defaultdict[str, set[str]] = defaultdict(set)
    for path in arguments.vmlinux:
        for name, source in functions(path):
            files[name].add(source)
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for name, sources in files.items():
        found = {part_of(source) for source in sources}
        if len(found) == 1 and (part := found.pop()) is not None and _OWN.fullmatch(name) is None:
            parts[part].append(name)
    text = "".join(f"{part}\t{' '.join(sorted(names))}\n" for part, names in sorted(parts.items()))
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as stream:
        stream.write(text.encode())
    arguments.output.write_bytes(buffer.getvalue())
    print({part: len(names) for part, names in parts.items()})


def part_of(source: str) -> str | None:
    """Tell the part of the functions of a file."""
    for part, pattern in FILES.items():
        if re.fullmatch(pattern, source):
            return part
    return None


def functions(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the functions of a kernel with the file each is compiled from."""
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False)
        aranges = dwarf.get_aranges()
        if aranges is None:
            raise SystemExit(f"{path}: it has no .debug_aranges")
        ranges = sorted((e.begin_addr, e.begin_addr + e.length, e.info_offset) for e in aranges.entries)
        starts = [start for start, _, _ in ranges]
        sources: dict[int, str] = {}
        table = elf.get_section_by_name(".symtab")
        if not isinstance(table, SymbolTableSection):
            raise SystemExit(f"{path}: it has no symbols")
        for symbol in table.iter_symbols():
            if symbol["st_info"]["type"] != "STT_FUNC":
                continue
            place = bisect.bisect_right(starts, symbol["st_value"]) - 1
            if place < 0 or symbol["st_value"] >= ranges[place][1]:
                continue
            offset = ranges[place][2]
            if offset not in sources:
                unit = dwarf.get_CU_at(offset).get_top_DIE()
                sources[offset] = unit.attributes["DW_AT_name"].value.decode()
            match = _ROOT.search(sources[offset])
            if match is not None:
                yield symbol.name.partition(".")[0].lstrip("_"), match[1]


if __name__ == "__main__":
    main()
