"""
Generate the table of global variables' types from the DWARF of real kernels.

BTF types only per-CPU variables (before ``pahole --btf_features=global_var``),
so a dump does not say that ``slab_caches`` is a ``struct list_head``. Kernels
agree on such things far more than they differ: this script collects, for every
global variable with a unique name, the C type that each kernel's DWARF gives
it, newest kernel first. At run time a type is used only where it resolves
against the dump's own BTF and fits the symbol's size.

Usage::

    generate_globals.py -o src/postpanic/kernel/debuginfo/globals.tsv.gz VMLINUX...

The vmlinux files are given newest first. The output is gzip-compressed text,
sorted, free of time stamps, described in ``postpanic/kernel/debuginfo/globals.py``.
"""

from __future__ import annotations

import argparse
import gzip
import io
import mmap
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import drgn
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from postpanic.kernel.btf import decode_btf

MIN_PATTERN_NAMES = 30
MIN_PATTERN_SHARE = 0.85
"""A prefix becomes a pattern when so many of its names, and such a share of them, agree on one type."""

_GENERATED_NAME = re.compile(r"^(__UNIQUE_ID_[A-Za-z_]*?)\d+$")
_LENGTH = re.compile(r"^([^\[\]()]*)\[(\d+)\](.*)$")
_COUNT = re.compile(
    r"^(?:__|NR_|MAX_|NUM_|N_)|(?:_MAX|_COUNT|_COUNTERS|_NUM|_ITEMS|_NR|_LAST|_SIZE|_CNT|_ENTRIES|_TYPES|_STATES|_MAX_SHIFT)_*$"
)
"""Names of enumerators that end a list, and thus count it."""
_COMMON_WORDS = frozenset(
    [
        "max",
        "num",
        "count",
        "items",
        "last",
        "size",
        "cnt",
        "entries",
        "type",
        "types",
        "states",
        "attr",
        "attrs",
        "const",
        "struct",
    ]
)
MIN_UNRELATED_LENGTH = 28
MIN_LENGTHS = 2
"""So many different lengths must an enumerator explain to be taken for more than chance."""
_COMPOSITES = {
    drgn.TypeKind.STRUCT: "struct",
    drgn.TypeKind.UNION: "union",
    drgn.TypeKind.CLASS: "class",
}


def unique_object_names(vmlinux: Path) -> list[str]:
    """List the data symbols whose name occurs once and carries no compiler suffix."""
    with vmlinux.open("rb") as file:
        symtab = ELFFile(file).get_section_by_name(".symtab")
        if not isinstance(symtab, SymbolTableSection):
            raise SystemExit(f"{vmlinux}: no symbol table")
        counts = Counter(symbol.name for symbol in symtab.iter_symbols() if symbol.entry.st_info.type == "STT_OBJECT")
    return sorted(name for name, count in counts.items() if count == 1 and "." not in name)


def describe_anonymous(type_: drgn.Type) -> str | None:
    """
    Spell an anonymous structure by its member names: ``struct {a, b, {c, d}}``.

    BTF holds the structure, but nothing names it; its members do.
    """
    if type_.is_complete() is False:
        return None
    names = []
    for member in type_.members:
        if member.name is not None:
            names.append(member.name)
            continue
        inner = describe_anonymous(member.type)
        if inner is None:
            return None
        names.append(inner[inner.index("{") :])
    return f"{_COMPOSITES[type_.kind]} {{{', '.join(names)}}}"


def spell_type(type_: drgn.Type) -> str | None:
    """Spell a type as C, None where a name cannot express it."""
    text: str = type_.type_name()
    if "<anonymous>" not in text:
        return text
    base = type_
    while base.kind in (drgn.TypeKind.ARRAY, drgn.TypeKind.POINTER):
        base = base.type
    if base.kind == drgn.TypeKind.ENUM and base.enumerators:
        spelled: str | None = f"enum {{{', '.join(name for name, _ in base.enumerators)}}}"
    elif base.kind in _COMPOSITES:
        spelled = describe_anonymous(base)
    else:
        return None
    found = re.search(r"(struct|union|enum|class) <anonymous>", text)
    if spelled is None or found is None:
        return None
    return text.replace(str(found.group(0)), spelled)


def read_globals(vmlinux: Path) -> dict[str, str]:
    """Map each global variable of one kernel to the spelling of its type."""
    program = drgn.Program()
    module = program.extra_module("vmlinux", create=True)
    module.try_file(vmlinux, force=True)
    found = {}
    for name in unique_object_names(vmlinux):
        try:
            type_ = program.variable(name).type_
        except LookupError:
            continue
        spelled = spell_type(type_)
        if spelled is not None:
            found[name] = spelled
    return found


def read_series(vmlinux: Path) -> str:
    """Read the series of a kernel, such as ``6.12``, from its banner."""
    with vmlinux.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
        found = re.search(rb"Linux version (\d+\.\d+)", contents)
        if found is None:
            raise SystemExit(f"{vmlinux}: no banner")
        return found.group(1).decode()


def read_enumerators(vmlinux: Path) -> dict[str, int]:
    """Map the enumerators of one kernel to their values, by its BTF; those with one value everywhere."""
    with vmlinux.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".BTF")
        if section is None:
            raise SystemExit(f"{vmlinux}: no BTF")
        btf = decode_btf(section.data())
    return btf.enumerators


def _words(name: str) -> set[str]:
    """Words of a name that mean something."""
    return {word for word in re.findall(r"[a-z0-9]{3,}", name.lower()) if word not in _COMMON_WORDS}


def name_lengths(kernels: list[dict[str, str]], enumerators: list[dict[str, int]]) -> int:
    """
    Say array lengths that differ between kernels by the enumerator that they are.

    ``vm_zone_stat`` has ``NR_VM_ZONE_STAT_ITEMS`` elements in every kernel. Only
    an enumerator that explains every kernel's length and is named like a count
    is taken, and only if it is the only one and shares a word with the variable
    or its type, or the length is no small number: those meet by chance.
    Changes *kernels*; returns how many were named.
    """
    named = 0
    for name in set().union(*kernels):
        found = [
            (index, match.group(1), int(match.group(2)), match.group(3))
            for index, kernel in enumerate(kernels)
            if (match := _LENGTH.match(kernel.get(name, "")))
        ]
        lengths = {length for _, _, length, _ in found}
        if len(lengths) < MIN_LENGTHS:
            continue
        explaining = set.intersection(
            *({word for word, value in enumerators[index].items() if value == length} for index, _, length, _ in found)
        )
        counts = {word for word in explaining if _COUNT.search(word)}
        related = counts and _words(min(counts)) & _words(f"{name}_{found[0][1]}")
        if len(counts) == 1 and (related or min(lengths) >= MIN_UNRELATED_LENGTH):
            for index, before, _, after in found:
                kernels[index][name] = f"{before}[{min(counts)}]{after}"
            named += 1
    return named


def find_patterns(kernels: list[dict[str, str]]) -> dict[str, str]:
    """
    Find prefixes that decide the type: ``__tracepoint_`` is a ``struct tracepoint``.

    A new kernel's new trace point has a new name that no table holds. A prefix
    counts when nearly all its names agree; a longer one overrules it
    (``__tracepoint_ptr_``). At run time the size must fit besides.
    """
    types_of: dict[str, set[str]] = defaultdict(set)
    for kernel in kernels:
        for name, spelled in kernel.items():
            types_of[name].add(spelled)
    by_prefix: dict[str, Counter[str]] = defaultdict(Counter)
    for name, types in types_of.items():
        generated = _GENERATED_NAME.match(name)
        ends = [position + 1 for position, letter in enumerate(name) if letter == "_" and position > 3]
        for prefix in [generated.group(1)] if generated else [name[:end] for end in ends]:
            by_prefix[prefix].update(types)
    agreed = {}
    for prefix, votes in by_prefix.items():
        spelled, count = votes.most_common(1)[0]
        if count >= MIN_PATTERN_NAMES and count >= MIN_PATTERN_SHARE * votes.total():
            agreed[prefix] = spelled
    kept: dict[str, str] = {}
    for prefix in sorted(agreed, key=len):
        above = max((shorter for shorter in kept if prefix.startswith(shorter)), key=len, default="")
        if kept.get(above) != agreed[prefix]:
            kept[prefix] = agreed[prefix]
    return kept


def write_table(kernels: list[dict[str, str]], series: list[str], patterns: dict[str, str], output: Path) -> int:
    """Write the table, one column of types per kernel; return the number of names in it."""
    rows: dict[str, list[str | None]] = {}
    for name in sorted(set().union(*kernels)):
        spelled = [kernel.get(name) for kernel in kernels]
        prefix = max((prefix for prefix in patterns if name.startswith(prefix)), key=len, default=None)
        if prefix is None or {type_ for type_ in spelled if type_ is not None} != {patterns[prefix]}:
            rows[name] = spelled
    counts = Counter(spelled for row in rows.values() for spelled in row if spelled is not None)
    counts.update(patterns.values())
    ordered = sorted(counts, key=lambda spelled: (-counts[spelled], spelled))
    numbered = {spelled: str(number) for number, spelled in enumerate(ordered)}
    text = io.StringIO()
    text.write(f"{len(numbered)} {len(patterns)} {len(rows)} {len(kernels)}\n")
    text.writelines(f"{spelled}\n" for spelled in numbered)
    text.writelines(f"{prefix}\t{numbered[spelled]}\n" for prefix, spelled in sorted(patterns.items()))
    text.write(" ".join(rows) + "\n")
    text.write(" ".join(series) + "\n")
    for column in zip(*rows.values(), strict=True):
        text.write(" ".join("-1" if spelled is None else numbered[spelled] for spelled in column) + "\n")
    with (
        output.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0, compresslevel=9) as packed,
    ):
        packed.write(text.getvalue().encode())
    return len(rows)


def main() -> None:
    """Generate the table that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vmlinux", nargs="+", type=Path, help="kernels with DWARF, newest first")
    parser.add_argument("-o", "--output", required=True, type=Path)
    arguments = parser.parse_args()
    kernels = []
    for vmlinux in arguments.vmlinux:
        kernels.append(read_globals(vmlinux))
        print(f"{vmlinux.name}: {len(kernels[-1])} typed globals", file=sys.stderr)
    series = [read_series(vmlinux) for vmlinux in arguments.vmlinux]
    enumerators = [read_enumerators(vmlinux) for vmlinux in arguments.vmlinux]
    named = name_lengths(kernels, enumerators)
    print(f"{named} array lengths are enumerators", file=sys.stderr)
    patterns = find_patterns(kernels)
    count = write_table(kernels, series, patterns, arguments.output)
    print(f"{arguments.output}: {count} names, {len(patterns)} patterns", file=sys.stderr)


if __name__ == "__main__":
    main()
