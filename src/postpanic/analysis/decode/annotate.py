"""A log with the locations in its lines, as scripts/decode_stacktrace.sh of the kernel puts them there."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from postpanic.analysis.decode.codebytes import decode_code, machine_of
from postpanic.analysis.decode.context import LogContext
from postpanic.analysis.decode.listing import list_code, render_listing
from postpanic.analysis.decode.locate import Locator, Notes
from postpanic.analysis.decode.spots import Spot, SpotReader
from postpanic.analysis.decode.store import SymbolStore
from postpanic.evidence.lines import split_line
from postpanic.evidence.oops.demangle import demangle

__all__ = ["Annotator"]

_MOST_CALLERS = 256


def is_touched(raw: bytes) -> bool:
    """Tell whether a line may name a place, or say which kernel wrote it."""
    return (
        b"0x" in raw
        or b"[<" in raw
        or b"Code: " in raw
        or b"ainted" in raw
        or b"Linux version " in raw
        or b"Kernel Offset: " in raw
        or b"IP: " in raw
        or b"PC is at" in raw
        or b"pc : " in raw
        or b"NIP" in raw
        or b"era : " in raw
        or b"Krnl PSW" in raw
    )


class Annotator:
    """
    Puts locations into lines, one line after the other.

    Parameters
    ----------
    context : LogContext
        What is known of the kernel before its first line.
    """

    def __init__(self, store: SymbolStore, context: LogContext | None = None) -> None:
        self._store = store
        self._context = context or LogContext()
        self._readers: dict[str, SpotReader] = {}
        self._locator: Locator | None = None
        self.notes = Notes()

    def annotate_bytes(self, raw: bytes) -> bytes:
        """Do the same with a line as it lies in a file, with its end; most lines are passed on without a look."""
        if not is_touched(raw):
            return raw
        line = raw.decode("utf-8", "surrogateescape")
        body = line.removesuffix("\n")
        return f"{self.annotate(body)}{line[len(body) :]}".encode("utf-8", "surrogateescape")

    def annotate(self, line: str) -> str:
        """Put the locations into a line, and the instructions of a ``Code:`` line into lines of their own behind it."""
        if (context := self._context.follow(line)) is not self._context:
            if (context.release, context.build_id) != (self._context.release, self._context.build_id):
                self._locator = None
            self._context = context
        if "Code: " in line:
            return "\n".join([line, *self._disassemble(line)])
        if "+0x" not in line and "[<" not in line and " 0x" not in line:
            return line
        ending = line[len(line.rstrip("\r")) :]
        body = line[: len(line) - len(ending)]
        texts = split_line(body)
        if len(texts) != 1 or not body.endswith(texts[0].text):
            return line
        text = texts[0].text
        spots = self._reader(texts[0].caller).read(text)
        return f"{body[: len(body) - len(text)]}{''.join(self._pieces(text, spots))}{ending}" if spots else line

    def _reader(self, caller: str) -> SpotReader:
        if len(self._readers) >= _MOST_CALLERS:
            self._readers.clear()
        return self._readers.setdefault(caller, SpotReader())

    def _find_locator(self) -> Locator:
        if self._locator is None:
            chosen = self._store.find(self._context.release, self._context.build_id)
            for remark in chosen.remarks:
                self.notes.add(remark)
            self._locator = chosen.locator
        return self._locator

    def _disassemble(self, line: str) -> list[str]:
        text = line.partition("Code: ")[2]
        locator = self._find_locator()
        machine = machine_of(self._context.architecture or locator.kernel.machine, text, self._context.release)
        code = decode_code(text, machine)
        if code is None or code.mark is None:
            return []
        spot = next(iter(SpotReader().read(split_line(self._context.pc)[-1].text)), None)
        place = locator.locate(spot, self._context.slide).place if spot is not None else None
        return render_listing(list_code(code, spot, place, locator.kernel))

    def _pieces(self, text: str, spots: list[Spot]) -> Iterator[str]:
        locator = self._find_locator()
        start = 0
        for spot in spots:
            if self._context.slide is None and (slide := locator.slide_of(spot)) is not None:
                self._context = msgspec.structs.replace(self._context, slide=slide)
            yield text[start : spot.end]
            start = spot.end
            found = locator.locate(spot, self._context.slide)
            self.notes.add(found.reason)
            if not spot.function and (place := found.place) is not None:
                size = locator.kernel.size_of(place.symbol)
                yield f" {place.symbol.name}+{place.vaddr - place.symbol.vaddr:#x}/{size:#x}"
            if found.text:
                readable = demangle(spot.function)
                yield f" ({found.text})" if readable == spot.function else f" ({readable} at {found.text})"
        yield text[start:]
