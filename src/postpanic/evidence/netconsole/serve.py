"""The loop of one process that listens: fetch, hand on, and look after the time."""

from __future__ import annotations

import select
import time
from collections.abc import Callable

from postpanic.evidence.netconsole.listener import Listener
from postpanic.evidence.netconsole.receive import Receiver

__all__ = ["Statistics", "collect_statistics", "serve"]

Statistics = dict[str, int]

_BUSY_WAIT_S = 0.05
_IDLE_WAIT_S = 1.0
_ROUNDS = 32
"""Batches that are fetched before the time is looked at again."""
_CARE_S = 5.0


def serve(
    receiver: Receiver,
    listener: Listener,
    *,
    wake: int,
    should_stop: Callable[[], bool],
    care: Callable[[], None] = lambda: None,
) -> None:
    """
    Receive until told to stop, then give out all that there is.

    Parameters
    ----------
    wake : int
        A descriptor that becomes readable when *should_stop* is to be asked.
    should_stop : callable
    care : callable
        Called every few seconds.
    """
    poll = select.poll()
    poll.register(receiver.socket, select.POLLIN)
    poll.register(wake, select.POLLIN)
    cared_s = time.monotonic()
    while not should_stop():
        poll.poll(1000 * (_BUSY_WAIT_S if listener.is_busy else _IDLE_WAIT_S))
        now_s = time.monotonic()
        for _ in range(_ROUNDS):
            packets = receiver.receive()
            if not packets:
                break
            now_s = time.monotonic()
            listener.take(packets, now_s)
        else:
            continue
        if listener.is_busy:
            listener.tick_if_due(now_s)
        if now_s - cared_s >= _CARE_S:
            cared_s = now_s
            care()
    while packets := receiver.receive():
        listener.take(packets, time.monotonic())
    listener.close(time.monotonic())


def collect_statistics(receiver: Receiver, listener: Listener) -> Statistics:
    """Add up what was received and what became of it."""
    total = listener.total()
    return {
        **{name: getattr(total, name) for name in total.__struct_fields__},
        "dropped_by_kernel": receiver.count_drops(),
        "unwanted": listener.unwanted,
        "sources": listener.source_count,
        "forgotten_sources": listener.forgotten,
        "reports": listener.reports,
    }
