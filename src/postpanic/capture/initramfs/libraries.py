"""
Shared libraries: found in a tree as its own dynamic loader would find them, without running anything of it.

The order of places is that of ld.so(8): DT_RPATH of the object and of what
loads it (unless there is a DT_RUNPATH), DT_RUNPATH of the object, what
ldconfig was told (``/etc/ld.so.conf``), the loader's own directories.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from postpanic.capture.initramfs.elf import ElfFacts, is_elf, read_elf
from postpanic.capture.initramfs.root import RootTree
from postpanic.errors import CorruptError, FactAbsentError

__all__ = ["Library", "LibraryFinder", "find_libraries"]

# Of 64-bit systems: Debian's multiarch directories (https://wiki.debian.org/Multiarch/Tuples), then everybody's.
_MULTIARCH = {
    "EM_X86_64": "x86_64-linux-gnu",
    "EM_AARCH64": "aarch64-linux-gnu",
    "EM_PPC64": "powerpc64le-linux-gnu",
    "EM_S390": "s390x-linux-gnu",
    "EM_RISCV": "riscv64-linux-gnu",
    "EM_LOONGARCH": "loongarch64-linux-gnu",
}
_DIRECTORIES = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")
_CONFIGURATION_DEPTH = 8


@dataclass(frozen=True)
class Library:
    """
    A library of the image.

    Attributes
    ----------
    name : str
        As those spell it that need it.
    path : str
        Where the tree has it, symbolic links followed.
    place : str
        Where it was found: links not followed.
    content : bytes
        The file.
    """

    name: str
    path: str
    place: str
    content: bytes


@dataclass(frozen=True)
class _Object:
    path: str
    facts: ElfFacts

    def expand(self, directory: str) -> str:
        origin = str(PurePosixPath(self.path).parent)
        return directory.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)


class LibraryFinder:
    """
    Collects the libraries of programs and extension modules, each once.

    Parameters
    ----------
    root : RootTree
        The tree that is searched.
    substitute : callable, optional
        Gets the name of a library and the content of what needs it; what it
        returns goes in in its place, None leaves it to the search.
    """

    def __init__(
        self, root: RootTree, substitute: Callable[[str, bytes], bytes | None] = lambda _name, _content: None
    ) -> None:
        self._root = root
        self._substitute = substitute
        self._configured: list[str] | None = None
        self.libraries: dict[str, Library] = {}
        self.loaders: dict[str, bytes] = {}
        """Dynamic loaders, by the path that programs name."""

    def add(self, path: str, loader: str = "") -> ElfFacts | None:
        """
        Collect what a file needs, directly or not; return what it says about itself, None if it is no ELF file.

        Parameters
        ----------
        path : str
            In the tree.
        loader : str
            The program that will load it, if it is none itself: its DT_RPATH counts too.

        Raises
        ------
        FactAbsentError
            If a library is not in the tree.
        CorruptError
            If a file is damaged.
        """
        content = self._root.read(path)
        if not is_elf(content):
            return None
        resolved = self._root.resolve(path) or path
        chain = [_Object(resolved, read_elf(content, path))]
        if loader:
            chain.append(_Object(self._root.resolve(loader) or loader, read_elf(self._root.read(loader), loader)))
        self._add_needed(chain, content)
        return chain[0].facts

    def add_by_name(self, names: Iterable[str], like: str) -> None:
        """Collect libraries that nothing names as needed, as far as they are there; of the kind that *like* is."""
        chain = [_Object(like, read_elf(self._root.read(like), like))]
        for name in names:
            if name not in self.libraries:
                try:
                    found, library = self._search(name, chain)
                except FactAbsentError:
                    continue
                self.libraries[name] = library
                self._add_needed([found, *chain], library.content)

    def find_directory(self) -> str:
        """Return a directory that the loader searches by itself: the one that has the C library."""
        library = self.libraries.get("libc.so.6")
        return str(PurePosixPath(library.path).parent) if library else "/usr/lib"

    def _add_needed(self, chain: list[_Object], content: bytes) -> None:
        facts = chain[0].facts
        if facts.interpreter and facts.interpreter not in self.loaders:
            self.loaders[facts.interpreter] = self._root.read(facts.interpreter)
        for name in facts.needed:
            if name in self.libraries or any(PurePosixPath(path).name == name for path in self.loaders):
                continue
            replaced = self._substitute(name, content)
            if replaced is not None:
                self.libraries[name] = Library(name, name, name, replaced)
                continue
            found, library = self._search(name, chain)
            self.libraries[name] = library
            self._add_needed([found, *chain], library.content)

    def _search(self, name: str, chain: list[_Object]) -> tuple[_Object, Library]:
        wanted = chain[0].facts
        for directory in self._list_directories(chain) if "/" not in name else [""]:
            place = f"{directory}/{name}" if directory else name
            path = self._root.resolve(place)
            if path is None or not self._root.place(path).is_file():
                continue
            content = self._root.read(path)
            if not is_elf(content):
                continue
            try:
                facts = read_elf(content, path)
            except CorruptError:
                continue
            if (facts.machine, facts.bits) == (wanted.machine, wanted.bits):
                return _Object(path, facts), Library(name, path, place, content)
        raise FactAbsentError(
            f"no library {name} for {wanted.machine.removeprefix('EM_').lower()}, which {chain[0].path} needs",
            where=str(self._root.directory),
            hint="install the package that has it",
        )

    def _list_directories(self, chain: list[_Object]) -> Iterable[str]:
        first = chain[0]
        if not first.facts.runpath:
            for item in chain:
                yield from map(item.expand, item.facts.rpath)
        yield from map(first.expand, first.facts.runpath)
        if self._configured is None:
            self._configured = self._read_configuration("/etc/ld.so.conf", _CONFIGURATION_DEPTH)
        yield from self._configured
        multiarch = _MULTIARCH.get(first.facts.machine)
        if multiarch:
            yield from (f"/lib/{multiarch}", f"/usr/lib/{multiarch}")
        yield from _DIRECTORIES
        if multiarch:
            # Alternatives of one library (BLAS), where no link names the chosen one: packages only unpacked.
            yield from (f"/usr/lib/{multiarch}/{name}" for name in self._root.list_names(f"/usr/lib/{multiarch}"))

    def _read_configuration(self, path: str, depth: int) -> list[str]:
        """Return the directories of ldconfig(8)'s configuration; what is not there says nothing."""
        if depth == 0 or self._root.find(path) is None:
            return []
        found = []
        for line in self._root.read(path).decode(errors="replace").splitlines():
            words = line.split("#", 1)[0].split()
            if words[:1] == ["include"]:
                for pattern in words[1:]:
                    parent = str(PurePosixPath(path).parent / PurePosixPath(pattern).parent)
                    for name in fnmatch.filter(self._root.list_names(parent), PurePosixPath(pattern).name):
                        found += self._read_configuration(f"{parent}/{name}", depth - 1)
            elif words and words[0].startswith("/"):
                found.append(words[0])
        return found


def find_libraries(program: Path) -> list[Path]:
    """
    Return the shared libraries of a program of the host, the dynamic loader included; none when it is static.

    Raises
    ------
    FactAbsentError
        If a library, or the program, is missing.
    CorruptError
        If a file is damaged.
    """
    finder = LibraryFinder(RootTree(Path("/")))
    finder.add(str(program.absolute()))
    return [Path(path) for path in (*(library.place for library in finder.libraries.values()), *finder.loaders)]
