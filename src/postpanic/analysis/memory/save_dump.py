"""Write a new dump that has what was written over the open one."""

from __future__ import annotations

from pathlib import Path

from postpanic.dumps.overlay import Overlay
from postpanic.dumps.sink import FileSink
from postpanic.errors import OutputError, UsageError
from postpanic.kernel.memory import KernelMemory
from postpanic.pages.classify import select_pages
from postpanic.pages.filtering import OutputForm, WritePlan, write_dump

__all__ = ["save_dump"]


def save_dump(overlay: Overlay, memory: KernelMemory, path: Path) -> int:
    """
    Write all pages of a dump, changes included, to a new file of the same format.

    Parameters
    ----------
    path : Path
        Must not be there yet.

    Returns
    -------
    int
        How many pages were written.

    Raises
    ------
    OutputError
        If the file cannot be written, or is there already.
    UsageError
        If it is the dump itself.
    """
    description = overlay.description
    if path.exists():
        if any(path.samefile(source) for source in description.paths):
            raise UsageError(f"{path} is the dump that is open")
        raise OutputError("exists already", where=str(path), hint="choose another name")
    form = OutputForm.KDUMP if description.is_paged else OutputForm.ELF
    plan = WritePlan(form, by_worth=False)
    plan.require_codec(overlay.page_size_bytes)
    # Level 0: what the dump has stays in.
    selection = select_pages(overlay, memory, 0, by_worth=False)
    sources = [Path(source) for source in description.paths]
    sink = FileSink(path, overwrite=False, hashed=False, synced=False, sources=sources)
    try:
        result = write_dump(overlay, memory, selection, [sink], plan)
    finally:
        sink.close()
    if result.error is not None:
        raise result.error
    if not result.complete:
        raise OutputError(f"incomplete: {'; '.join(result.faults)}", where=str(path))
    return result.written_pages
