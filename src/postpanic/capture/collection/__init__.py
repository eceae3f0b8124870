"""The dumps of a machine after the crash: fetched, checked, listed, deleted."""

from postpanic.capture.collection.collect import CollectOutcome, collect, list_directories, mark_told, mark_triaged
from postpanic.capture.collection.index import SavedDump, find_dumps
from postpanic.capture.collection.prune import PruneRules, prune, select
from postpanic.capture.collection.record import RECORD_NAME, DumpRecord

__all__ = [
    "RECORD_NAME",
    "CollectOutcome",
    "DumpRecord",
    "PruneRules",
    "SavedDump",
    "collect",
    "find_dumps",
    "list_directories",
    "mark_told",
    "mark_triaged",
    "prune",
    "select",
]
