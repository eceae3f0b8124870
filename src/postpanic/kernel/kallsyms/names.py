"""
Decompress the names of kallsyms.

A name, with its type letter in front, is a sequence of bytes that each stand for
a token, a string of one or more characters. The stream of names holds, for each
symbol, the number of bytes and the bytes (``scripts/kallsyms.c``,
``kallsyms_expand_symbol()`` of ``kernel/kallsyms.c``). Since 6.1 a number above
127 takes two bytes, the low seven bits first, with bit 7 set (73bbb94466fd,
"kallsyms: support "big" kernel symbols").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import CorruptError
from postpanic.kernel.kallsyms.records import find_name_starts
from postpanic.units import MIB, format_size

__all__ = ["TOKEN_COUNT", "DecodedNames", "TokenTable", "decode_names", "decode_token_table"]

TOKEN_COUNT = 256
_SEPARATOR = TOKEN_COUNT
_EXPANDED_LIMIT_BYTES = 128 * MIB
_LONG = 0x80


@dataclass(frozen=True, slots=True)
class TokenTable:
    """256 strings and, as number 256, a single NUL that stands between names."""

    data: NDArray[np.uint8]
    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class DecodedNames:
    """All names, NUL-terminated, each with its type letter before it."""

    blob: bytes
    offsets: NDArray[np.int64]
    """Of the names themselves, behind the letters."""
    types: NDArray[np.uint8]


def decode_token_table(table: bytes, index: NDArray[np.uint16]) -> TokenTable:
    """
    Decode ``kallsyms_token_table`` by ``kallsyms_token_index``.

    Parameters
    ----------
    table : bytes
        256 NUL-terminated strings; anything may follow.
    index : ndarray of uint16, shape (256,)
        Offset of each string in *table*.

    Raises
    ------
    CorruptError
        If a string does not start or end where the index says.
    """
    data = np.frombuffer(table, dtype=np.uint8)
    starts = index.astype(np.int64)
    nuls = np.nonzero(data == 0)[0]
    if len(starts) != TOKEN_COUNT or bool((starts >= len(data)).any()) or not len(nuls):
        raise CorruptError(f"kallsyms token index leaves its token table of {len(data)} bytes")
    which = np.searchsorted(nuls, starts)
    if bool((which >= len(nuls)).any()) or bool((np.diff(starts) <= 0).any()):
        raise CorruptError("kallsyms token table does not hold the 256 strings of its index")
    lengths = nuls[which] - starts
    # Number 256 is the NUL behind the first token.
    return TokenTable(
        data,
        np.append(starts, nuls[which[0]]).astype(np.int32),
        np.append(lengths, 1).astype(np.int32),
    )


def decode_names(names: bytes, count: int, tokens: TokenTable) -> DecodedNames:
    """
    Expand all names at once.

    Parameters
    ----------
    names : bytes
        The stream; what follows it may be there too, and makes it faster when
        that is ``kallsyms_markers``.
    count : int
        Number of symbols.
    tokens : TokenTable
        What each byte stands for.

    Raises
    ------
    CorruptError
        If a name is empty or all names together are unreasonably long.
    TruncatedError
        If the stream ends before *count* symbols.
    """
    starts, end = find_name_starts(names, count)
    codes = np.frombuffer(names, dtype=np.uint8, count=end).astype(np.int16)
    is_long = codes[starts] >= _LONG
    codes[starts] = _SEPARATOR
    if bool(is_long.any()):
        codes = np.delete(codes, starts[is_long] + 1)
        starts = starts - (np.cumsum(is_long) - is_long)
    lengths = tokens.lengths[codes]
    total = int(lengths.sum(dtype=np.int64))
    if total > _EXPANDED_LIMIT_BYTES:
        raise CorruptError(
            f"kallsyms names expand to {format_size(total)}, must be at most {format_size(_EXPANDED_LIMIT_BYTES)}"
        )
    if bool((lengths == 0).any()):
        raise CorruptError("a kallsyms name has a token that is empty")
    before = np.cumsum(lengths, dtype=np.int32) - lengths
    blob = tokens.data[_spread(tokens.starts[codes], lengths, before, total)].tobytes() + b"\0"
    separators = before[starts].astype(np.int64)
    offsets = separators + 2
    if bool((np.diff(np.append(separators, total)) < 2).any()):
        raise CorruptError("kallsyms has a symbol without a name")
    types = np.frombuffer(blob, dtype=np.uint8)[offsets - 1]
    return DecodedNames(blob, offsets, types)


def _spread(
    starts: NDArray[np.int32], lengths: NDArray[np.int32], before: NDArray[np.int32], total: int
) -> NDArray[np.int32]:
    """Give, for each character of all names, where in the token table it comes from."""
    # Within a token each character comes from behind the last; only between tokens the place jumps.
    jumps = np.ones(total, dtype=np.int32)
    jumps[before[1:]] = starts[1:] - (starts[:-1] + lengths[:-1] - 1)
    if total:
        jumps[0] = starts[0]
    return np.cumsum(jumps, dtype=np.int32)
