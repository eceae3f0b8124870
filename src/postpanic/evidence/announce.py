"""
Tell somebody of a report: a command that gets it on its standard input, or a POST to a server.

The same signature is told once in a while, however many hosts have it, with
the number of those that were kept back; and never more than so many in a time.
A thread does the telling, so that a command that hangs keeps nobody from
listening.
"""

from __future__ import annotations

import http.client
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from postpanic.errors import ProcessError, UsageError
from postpanic.evidence.quota import Quota
from postpanic.process import run

__all__ = ["Announcer", "check_webhook"]

_QUEUE = 64
_SIGNATURES_LIMIT = 4096
_TIMEOUT_S = 30.0


def check_webhook(url: str) -> str:
    """
    Return an address to post to.

    Raises
    ------
    UsageError
        If it is none of HTTP.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(f"{url}: an address of http or https is needed")
    return url


class Announcer:
    """
    Decide which reports are told, and tell them.

    Parameters
    ----------
    command : sequence of str
        Program and arguments; empty: none.
    webhook : str
        Address; empty: none.
    per_hour : int
        Announcements at most.
    again_s : float
        After which the same signature is told again.
    """

    def __init__(
        self,
        command: Sequence[str] = (),
        webhook: str = "",
        *,
        per_hour: int = 60,
        again_s: float = 3600.0,
    ) -> None:
        self.on_failure: Callable[[str], None] = lambda _: None
        """Told in one line what went wrong, by the thread."""
        self.told = 0
        self.kept_back = 0
        self._command = list(command)
        self._webhook = webhook
        self._quota = Quota(per_hour, 3600.0)
        self._again_s = again_s
        self._signatures: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUE)
        self._thread: threading.Thread | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._command or self._webhook)

    def offer(self, signature: str, document: dict[str, object] | None, now_s: float) -> bool:
        """
        Tell of a report, if it is new and there is room; does not wait.

        Parameters
        ----------
        signature : str
            By which reports are the same.
        document : dict or None
            Is sent as JSON, with ``kept_back``: how many with this signature were not told since the last that
            was. None: there are too many, the report is only counted.
        now_s : float
            Monotonic.
        """
        if not self.is_wanted:
            return False
        told_s, kept_back = self._signatures.get(signature, (float("-inf"), 0))
        is_due = document is not None and now_s - told_s >= self._again_s and not self._queue.full()
        if document is None or not is_due or not self._quota.take(now_s):
            self._remember(signature, told_s, kept_back + 1)
            self.kept_back += 1
            return False
        self._remember(signature, now_s, 0)
        self.told += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="announcer", daemon=True)
            self._thread.start()
        self._queue.put_nowait(msgspec.json.encode({**document, "kept_back": kept_back}))
        return True

    def close(self, timeout_s: float = _TIMEOUT_S) -> None:
        """Wait until all that was offered has been told, or the time is over."""
        if self._thread is not None:
            with_room = threading.Thread(target=self._queue.put, args=(None,), daemon=True)
            with_room.start()
            self._thread.join(timeout_s)
            self._thread = None

    def _remember(self, signature: str, told_s: float, kept_back: int) -> None:
        self._signatures[signature] = (told_s, kept_back)
        self._signatures.move_to_end(signature)
        while len(self._signatures) > _SIGNATURES_LIMIT:
            self._signatures.popitem(last=False)

    def _work(self) -> None:
        while (document := self._queue.get()) is not None:
            if self._command:
                try:
                    run(self._command, stdin=document, timeout_s=_TIMEOUT_S)
                except ProcessError as exc:
                    self.on_failure(f"the command: {exc}")
            if self._webhook:
                try:
                    _post(self._webhook, document)
                except (OSError, http.client.HTTPException, ValueError) as exc:
                    self.on_failure(f"{_plain(self._webhook)}: {exc}")


def _plain(url: str) -> str:
    """Return an address without what may be secret in it."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}"


def _post(url: str, document: bytes) -> None:
    request = urllib.request.Request(  # noqa: S310 - http and https alone, check_webhook() has seen to it
        url, data=document, headers={"Content-Type": "application/json", "User-Agent": "postpanic"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            answer.read(4096)
    except urllib.error.HTTPError as exc:
        with exc:
            raise OSError(f"the server said {exc.code}") from None
