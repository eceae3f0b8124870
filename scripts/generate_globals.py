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
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import drgn
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

MIN_PATTERN_NAMES = 30
"""A prefix becomes a pattern when so many names agree on one type, in every kernel that has it."""

_GENERATED_NAME = re.compile(r"^(__UNIQUE_ID_[A-Za-z_]*?)\d+$")
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


def find_patterns(kernels: list[dict[str, str]]) -> dict[str, str]:
    """
    Find prefixes that decide the type: ``__tracepoint_`` is a ``struct tracepoint``.

    A new kernel's new trace point has a new name that no table holds.
    """
    by_prefix: dict[str, Counter[str]] = defaultdict(Counter)
    for kernel in kernels[:1] + kernels[-1:]:
        for name, spelled in kernel.items():
            generated = _GENERATED_NAME.match(name)
            if generated:
                by_prefix[generated.group(1)][spelled] += 1
                continue
            for end in (position + 1 for position, letter in enumerate(name) if letter == "_" and position > 3):
                by_prefix[name[:end]][spelled] += 1
    agreed = {
        prefix: next(iter(types))
        for prefix, types in by_prefix.items()
        if len(types) == 1 and sum(types.values()) >= MIN_PATTERN_NAMES
    }
    contradicted = {
        prefix
        for prefix, spelled in agreed.items()
        for kernel in kernels
        for name, other in kernel.items()
        if name.startswith(prefix) and other != spelled
    }
    kept: dict[str, str] = {}
    for prefix in sorted(set(agreed) - contradicted, key=len):
        if not any(prefix.startswith(shorter) for shorter in kept):
            kept[prefix] = agreed[prefix]
    return kept


def write_table(kernels: list[dict[str, str]], patterns: dict[str, str], output: Path) -> int:
    """Write the table; return the number of names in it."""
    candidates: dict[str, list[str]] = {}
    for kernel in kernels:
        for name, spelled in kernel.items():
            if any(spelled == patterns[prefix] for prefix in patterns if name.startswith(prefix)):
                continue
            types = candidates.setdefault(name, [])
            if spelled not in types:
                types.append(spelled)
    counts = Counter(spelled for types in candidates.values() for spelled in types)
    counts.update(patterns.values())
    numbered = {
        spelled: number for number, (spelled, _) in enumerate(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))
    }
    text = io.StringIO()
    text.write(f"{len(numbered)} {len(patterns)} {len(candidates)}\n")
    text.writelines(f"{spelled}\n" for spelled in numbered)
    text.writelines(f"{prefix}\t{numbered[spelled]}\n" for prefix, spelled in sorted(patterns.items()))
    text.writelines(
        f"{name}\t{' '.join(str(numbered[spelled]) for spelled in types)}\n"
        for name, types in sorted(candidates.items())
    )
    with (
        output.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0, compresslevel=9) as packed,
    ):
        packed.write(text.getvalue().encode())
    return len(candidates)


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
    patterns = find_patterns(kernels)
    count = write_table(kernels, patterns, arguments.output)
    print(f"{arguments.output}: {count} names, {len(patterns)} patterns", file=sys.stderr)


if __name__ == "__main__":
    main()
