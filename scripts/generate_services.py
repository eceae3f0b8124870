"""
Generate the table of kernel functions that serve everybody, from the kernel's source.

A function that copies, allocates, locks or keeps lists for others is seldom at
fault when the kernel crashes in it: the caller is. What a function does is told
best by the file that it is in (:mod:`postpanic.evidence.oops.places`). This script
lists the functions of those files, of all architectures and configurations, by the
part they play. A name that other files have as well is left out, unless those are
private ones of drivers beside a global one of the kernel's core.

Usage::

    generate_services.py -o src/postpanic/evidence/oops/services.tsv.gz linux-5.10.tar.xz linux-6.12.tar.xz ...

The archives are what Debian's ``linux-source-*`` packages hold. The output is
gzip-compressed text, sorted, free of time stamps: a part, a tab, and the names,
separated by spaces; last, as ``DISPATCHER``, the functions that call what others registered.
"""

from __future__ import annotations

import argparse
import gzip
import io
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from postpanic.evidence.oops.places import Part, dispatches, part_of_place

_DEFINITION = re.compile(
    rb"^((?:[A-Za-z_][\w \t*,]*?[ \t*]\n?)?)([A-Za-z_]\w*)[ \t]?\([^;{}#]{0,2000}?\)[^;{}()=]{0,100}\n\{", re.MULTILINE
)
_ASSEMBLY = re.compile(
    rb"^\s*(?:SYM_(?:TYPED_)?(?:FUNC|CODE)_START(?:_WEAK|_LOCAL|_NOALIGN)*|SYM_FUNC_ALIAS(?:_WEAK)?|ENTRY|WEAK|FUNC"
    rb"|FEXPORT|LEAF|NESTED|_GLOBAL(?:_TOC)?(?:_KASAN)?)\(\s*(\w+)",
    re.MULTILINE,
)
_NO_KERNEL = ("tools/", "Documentation/", "samples/", "scripts/", "usr/")
_PRIVATE_PLACES = ("drivers/", "sound/", "arch/", "security/", "virt/", "samples/")
_RARE = re.compile(
    r"arch/(?:alpha|arc|c6x|csky|h8300|hexagon|ia64|m68k|microblaze|nds32|nios2|openrisc|parisc|sh|sparc|um|xtensa)/.*"
    r"|arch/\w+/(?:boot|tools|purgatory|platforms|mach-\w+|kvm/hyp|pi|vdso\w*)/.*"
)
_OWN = re.compile(r"process_one_work|\w{1,3}")
"""Names in those files that do work of their own, or say nothing."""


class Definition:
    """Where a name is defined, and whether only its file can call it."""

    __slots__ = ("is_static", "path")

    def __init__(self, path: str, *, is_static: bool) -> None:
        self.path = path
        self.is_static = is_static


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("source", type=Path, nargs="+")
    arguments = parser.parse_args()
    found: defaultdict[str, list[Definition]] = defaultdict(list)
    for path in arguments.source:
        for name, definition in definitions(path):
            found[name].append(definition)
    parts: defaultdict[Part, set[str]] = defaultdict(set)
    for name, places in found.items():
        part = choose_part(places)
        if part is not None and _OWN.fullmatch(name.lstrip("_")) is None:
            parts[part].add(name.lstrip("_"))
    callers = {name.lstrip("_") for name, places in found.items() if dispatches_all(places)}
    twice = Counter(name for names in parts.values() for name in names)
    text = "".join(
        f"{part.name}\t{' '.join(sorted(name for name in names if twice[name] == 1))}\n"
        for part, names in sorted(parts.items(), key=lambda pair: pair[0].name)
    )
    text += f"DISPATCHER\t{' '.join(sorted(callers))}\n"
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as stream:
        stream.write(text.encode())
    arguments.output.write_bytes(buffer.getvalue())
    print({part.name: len(names) for part, names in parts.items()}, len(buffer.getvalue()), "bytes")


def choose_part(places: list[Definition]) -> Part | None:
    """Tell the part of a name from all the places that define it."""
    common = [place for place in places if _RARE.fullmatch(place.path) is None]
    core = [place for place in common if not place.path.startswith(_PRIVATE_PLACES)]
    # What a header defines beside the file of the function does nothing: it is there for other configurations.
    whole = [place for place in core if not place.is_static and place.path.endswith(".c")]
    if whole or any(not place.is_static for place in core):
        common = whole or core
    parts = {part_of_place(place.path) for place in common}
    return parts.pop() if len(parts) == 1 else None


def dispatches_all(places: list[Definition]) -> bool:
    """Tell whether a name is only defined in files that call what others registered."""
    common = [place.path for place in places if _RARE.fullmatch(place.path) is None]
    return bool(common) and all(map(dispatches, common))


def definitions(archive: Path) -> Iterator[tuple[str, Definition]]:
    """Yield the functions that the source of a kernel defines."""
    with tarfile.open(archive, mode="r|*") as files:
        for member in files:
            path = member.name.partition("/")[2]
            if not member.isfile() or path.startswith(_NO_KERNEL) or not path.endswith((".c", ".h", ".S")):
                continue
            stream = files.extractfile(member)
            text = stream.read() if stream is not None else b""
            if path.endswith(".S"):
                for name in set(_ASSEMBLY.findall(text)):
                    yield name.decode(), Definition(path, is_static=False)
            else:
                for prefix, name in set(_DEFINITION.findall(text)):
                    if b"__init" in prefix or b"__exit" in prefix:
                        continue
                    # A header's inline function is everybody's.
                    is_static = path.endswith(".c") and b"static" in prefix
                    yield name.decode(), Definition(path, is_static=is_static)


if __name__ == "__main__":
    main()
