"""Open a dump of any known format, told by its contents."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from postpanic.dumps.detect import FileKind, detect_kind, explain_foreign
from postpanic.dumps.elfcore.reader import ElfCoreReader
from postpanic.dumps.flattened.reader import FlattenedSource
from postpanic.dumps.kdump.reader import KdumpReader
from postpanic.dumps.memory import Dump
from postpanic.dumps.source import ByteSource, open_file
from postpanic.errors import MismatchError, NotADumpError, UsageError

__all__ = ["open_dump"]

_HEAD_BYTES = 4096


def open_dump(paths: Path | Sequence[Path]) -> Dump:
    """
    Open a dump: ELF vmcore or kdump-compressed, each also flattened.

    Parameters
    ----------
    paths : path or sequence of paths
        One file, or the files of a split set in any order.

    Returns
    -------
    Dump
        A context manager. A damaged dump opens as long as its headers are
        there; ``description.incomplete`` says what is missing.

    Raises
    ------
    FileFaultError
        If a file cannot be opened, is no dump, is cut within its headers or
        does not belong with the others; one of the classes below it.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    if not files:
        raise UsageError("no dump file was named")
    with ExitStack() as stack:
        sources = [_open_source(path, stack) for path in files]
        kinds = [_require_dump(source) for source in sources]
        if len(set(kinds)) > 1:
            raise MismatchError("dumps of different formats are not parts of one set", where=sources[1].name)
        dump: Dump
        if kinds[0] is FileKind.ELF:
            if len(sources) > 1:
                raise MismatchError(
                    "an ELF vmcore is one file, it has no parts", where=sources[1].name, hint="open one at a time"
                )
            dump = ElfCoreReader(sources[0])
        else:
            dump = KdumpReader(sources)
        stack.pop_all()
        return dump


def _open_source(path: Path, stack: ExitStack) -> ByteSource:
    """Open one file, and look into it if it is a flattened stream."""
    file = open_file(path)
    stack.callback(file.close)
    if detect_kind(file.read(0, _HEAD_BYTES)) is not FileKind.FLATTENED:
        return file
    return FlattenedSource(file)


def _require_dump(source: ByteSource) -> FileKind:
    head = source.read(0, _HEAD_BYTES)
    kind = detect_kind(head)
    if kind in (FileKind.ELF, FileKind.KDUMP):
        return kind
    if source.container:
        raise NotADumpError("a flattened stream that holds no dump", where=source.name)
    raise explain_foreign(head, source.name)
