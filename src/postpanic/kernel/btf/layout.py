"""
BTF as it lies in memory: the kinds, the header and how long each record is.

Sources: the kernel's ``include/uapi/linux/btf.h`` and
``Documentation/bpf/btf.rst``.
"""

from __future__ import annotations

import enum

import numpy as np

__all__ = [
    "BTF_MAGIC",
    "EXTRA_WORDS",
    "HEADER_SIZE_BYTES",
    "MAX_DATA_BYTES",
    "MAX_TYPES",
    "WORDS_PER_ITEM",
    "IntEncoding",
    "Kind",
]

BTF_MAGIC = 0xEB9F
HEADER_SIZE_BYTES = 24
"""``struct btf_header`` up to and including ``str_len``; a later kernel may append fields."""

MAX_DATA_BYTES = 32 << 20
"""Of header, types and strings; vmlinux's have some 5 MiB."""

MAX_TYPES = 1 << 22
"""Far above ``BTF_MAX_TYPE`` (1 << 20, base and split together) and still a bounded table."""


class Kind(enum.IntEnum):
    """``BTF_KIND_*``."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


class IntEncoding(enum.IntFlag):
    """``BTF_INT_*`` bits of the word that follows a ``BTF_KIND_INT``."""

    SIGNED = 1
    CHAR = 2
    BOOL = 4


EXTRA_WORDS = np.zeros(len(Kind), dtype=np.int32)
"""32-bit words behind ``struct btf_type`` of each kind, whatever its ``vlen``."""
for _kind, _words in ((Kind.INT, 1), (Kind.ARRAY, 3), (Kind.VAR, 1), (Kind.DECL_TAG, 1)):
    EXTRA_WORDS[_kind] = _words

WORDS_PER_ITEM = np.zeros(len(Kind), dtype=np.int32)
"""32-bit words of each of the ``vlen`` items behind ``struct btf_type``."""
for _kind, _words in (
    (Kind.STRUCT, 3),
    (Kind.UNION, 3),
    (Kind.ENUM, 2),
    (Kind.FUNC_PROTO, 2),
    (Kind.DATASEC, 3),
    (Kind.ENUM64, 3),
):
    WORDS_PER_ITEM[_kind] = _words
