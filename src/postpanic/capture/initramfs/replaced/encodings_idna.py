"""``encodings.idna``, which is asked for every host name, for names in ASCII: others were looked up beforehand."""

from __future__ import annotations

import codecs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["getregentry"]


def _encode(text: str, _errors: str = "strict") -> tuple[bytes, int]:
    return text.encode("ascii"), len(text)


def _decode(data: Buffer, _errors: str = "strict") -> tuple[str, int]:
    text = bytes(data).decode("ascii")
    return text, len(text)


def getregentry() -> codecs.CodecInfo:
    """Return the codec."""
    return codecs.CodecInfo(_encode, _decode, name="idna")
