"""
The first module of the image: finds all others, in one file and by name.

Not even ``__future__`` can be imported before this has run. The file
``modules`` begins with the size of its table (8 bytes, little-endian),
then comes the table, a marshalled dict: name, or hash of a text, to (offset,
size, kind), the offsets from the table's end. Of what is not in there, built in or frozen,
nothing is found: no directory is searched.
"""

import gc
import marshal
import posix
import sys
from _frozen_importlib import BuiltinImporter, FrozenImporter, ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader
from _imp import source_hash

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

PATH = "/usr/lib/postpanic/modules"
EXTENSIONS = "/usr/lib/postpanic"
PACKAGE, SOURCE, EXTENSION = 1, 2, 4


class Finder:
    """Finder and loader of all modules of the image."""

    def __init__(self) -> None:
        size = int.from_bytes(self._read(0, 8), "little")
        self._table: dict[str | bytes, tuple[int, int, int]] = marshal.loads(self._read(8, size))  # noqa: S302 - of our own image
        self._begin = 8 + size

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> "ModuleSpec | None":
        """Return the spec of a module of the image."""
        place = self._table.get(name)
        if place is None:
            return None
        if place[2] & EXTENSION:
            path = f"{EXTENSIONS}/{name}.so"
            return ModuleSpec(name, ExtensionFileLoader(name, path), origin=path)
        return ModuleSpec(name, self, is_package=bool(place[2] & PACKAGE))  # type: ignore[arg-type]

    def create_module(self, _spec: "ModuleSpec") -> None:
        """Leave it to the import system."""

    def exec_module(self, module: "ModuleType") -> None:
        """Run a module."""
        name = module.__name__
        if name == "dataclasses":
            # Its methods are texts that it compiles: see run().
            module.__dict__["exec"] = self.run
        offset, size, kind = self._table[name]
        content = self._read(self._begin + offset, size)
        if kind & SOURCE:
            code = compile(content, name, "exec", dont_inherit=True, optimize=2)
        else:
            code = marshal.loads(content)  # noqa: S302 - of our own image
        exec(code, module.__dict__)  # noqa: S102 - this is what a loader does

    def run(self, text: str, *scope: dict[str, object]) -> None:
        """Do what ``exec`` does; many texts were compiled beforehand, and are in the table by their hash."""
        place = self._table.get(source_hash(0, text.encode()))
        code = text if place is None else marshal.loads(self._read(self._begin + place[0], place[1]))  # noqa: S302
        exec(code, *scope)  # noqa: S102

    def _read(self, offset: int, size: int) -> bytes:
        # Opened each time: whoever closes descriptors he does not know must not end all imports.
        descriptor = posix.open(PATH, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            return posix.pread(descriptor, size, offset)
        finally:
            posix.close(descriptor)


# Imports make much that stays: looking for garbage every 700 objects takes a tenth of their time.
gc.set_threshold(10_000, 20)
sys.path[:] = []
sys.path_hooks[:] = []
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Finder()]
