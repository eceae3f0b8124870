r"""
Persistent storage: what the kernel saved of its log when it crashed, in any of its places.

Each format has a module; all give :class:`Record` values, which :func:`join_records` makes crashes of.

>>> from postpanic.evidence.pstore import decode_file, join_records
>>> parts = [decode_file("dmesg-erst-7", b"Oops#1 Part1\nnew\n"), decode_file("dmesg-erst-8", b"Oops#1 Part2\nold\n")]
>>> [crash.text for crash in join_records(parts)]
[b'old\nnew\n']
"""

from postpanic.evidence.pstore.directory import decode_file, read_directory
from postpanic.evidence.pstore.efivars import read_efivars
from postpanic.evidence.pstore.erst import read_erst
from postpanic.evidence.pstore.ftrace import Call, decode_calls
from postpanic.evidence.pstore.joining import join_records
from postpanic.evidence.pstore.model import Crash, Quality, Record, RecordType
from postpanic.evidence.pstore.mtdoops import read_mtdoops
from postpanic.evidence.pstore.ramoops import read_ramoops
from postpanic.evidence.pstore.ramoops_layout import Layout, make_layout
from postpanic.evidence.pstore.ramoops_search import find_layout
from postpanic.evidence.pstore.zone import read_pstore_blk

__all__ = [
    "Call",
    "Crash",
    "Layout",
    "Quality",
    "Record",
    "RecordType",
    "decode_calls",
    "decode_file",
    "find_layout",
    "join_records",
    "make_layout",
    "read_directory",
    "read_efivars",
    "read_erst",
    "read_mtdoops",
    "read_pstore_blk",
    "read_ramoops",
]
