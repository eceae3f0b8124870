"""
Who waits for whom, and who holds everybody up.

The wait-for graph (``picture``, made of ``sleeping`` and ``cpus``) is built once;
its cycles are deadlocks (``deadlocks``), its chains end at roots (``roots``,
``stories``, ``chains``).
"""

from postpanic.analysis.triage.hangs import chains, deadlocks, from_log, lockups

__all__ = ["chains", "deadlocks", "from_log", "lockups"]
