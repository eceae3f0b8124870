"""
Who waits for whom, and who holds everybody up.

The wait-for graph (``picture``, of what ``sleeping`` and ``cpus`` read) is built
once. Its cycles are deadlocks (``deadlocks``), its chains end at roots (``roots``,
``stories``, ``chains``); CPUs that do not come back are another matter
(``lockups``, ``spinning``, ``resting``, ``circles``), and so is who slept with a
spinlock held (``atomic``), or returned with one (``returned``). Holders that no lock records
are found by the code that takes locks (``locksets``, ``leaks``). ``from_log`` does
with texts what the others do with memory; ``census`` tells what is left.
"""

from postpanic.analysis.triage.hangs import atomic, census, chains, deadlocks, from_log, lockups, returned

__all__ = ["atomic", "census", "chains", "deadlocks", "from_log", "lockups", "returned"]
