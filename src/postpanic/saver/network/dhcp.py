"""
A client of DHCP for IPv4, as far as a machine needs it that soon boots again.

The lease is not renewed: it outlasts the dump, or the server gives the address
to nobody else so soon. Pauses between tries are shorter than RFC 2131 §4.1 has
them, because somebody waits; they grow as they do there.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass

from postpanic.errors import OutputError
from postpanic.saver.network.dhcp_packets import Kind, Lease, Reply, encode_request, parse_reply, read_lease

__all__ = ["acquire_lease"]

_ETH_P_IP = 0x0800
_BROADCAST = b"\xff" * 6
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 8.0
_REQUEST_TRIES = 3
_RECEIVE_BYTES = 4096


def acquire_lease(interface: str, mac: bytes, *, timeout_s: float) -> Lease:
    """
    Get an address for an interface that is up.

    Parameters
    ----------
    mac : bytes
        Its hardware address.
    timeout_s : float
        In all.

    Raises
    ------
    OutputError
        If no server gives one in time.
    """
    try:
        # Needs no address of ours: the socket works below IP.
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP)) as link:
            link.bind((interface, _ETH_P_IP))
            return _Client(link, interface, mac, timeout_s).run()
    except OSError as exc:
        raise OutputError(f"DHCP failed: {(exc.strerror or str(exc)).lower()}", where=f"network {interface}") from exc


@dataclass
class _Client:
    link: socket.socket
    interface: str
    mac: bytes
    timeout_s: float

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._deadline = self._started + self.timeout_s
        self._transaction = int.from_bytes(os.urandom(4), "big")
        self._refusals = 0
        self._has_offers = False

    def run(self) -> Lease:
        """Ask for offers, take the first good one, until one is confirmed."""
        pause = _FIRST_PAUSE_S
        while (left := self._deadline - time.monotonic()) > 0:
            reply = self._exchange(Kind.DISCOVER, min(pause, left), wanted=(Kind.OFFER,))
            pause = min(pause * 2, _LONGEST_PAUSE_S)
            if reply is not None:
                self._has_offers = True
                lease = self._take(reply)
                if lease is not None:
                    return lease
                # Somebody may answer wrongly at once and for ever.
                time.sleep(min(_FIRST_PAUSE_S, max(self._deadline - time.monotonic(), 0)))
        if self._refusals:
            why = "the server takes its offers back"
        elif self._has_offers:
            why = "a server makes offers, but does not confirm them"
        else:
            why = "no server answers"
        raise OutputError(f"no address by DHCP after {self.timeout_s:g} s: {why}", where=f"network {self.interface}")

    def _take(self, offer: Reply) -> Lease | None:
        """Ask for what was offered; None if it is refused, or nobody answers."""
        for _ in range(_REQUEST_TRIES):
            left = self._deadline - time.monotonic()
            if left <= 0:
                break
            reply = self._exchange(
                Kind.REQUEST, min(_FIRST_PAUSE_S * 2, left), wanted=(Kind.ACK, Kind.NAK), offer=offer
            )
            if reply is None:
                continue
            if reply.kind == Kind.NAK:
                self._refusals += 1
                return None
            return read_lease(reply)
        return None

    def _exchange(
        self, kind: int, wait_s: float, *, wanted: tuple[int, ...], offer: Reply | None = None
    ) -> Reply | None:
        """Send a message, and wait for an answer of a kind that is wanted."""
        elapsed = int(time.monotonic() - self._started)
        packet = encode_request(
            kind,
            self.mac,
            self._transaction,
            elapsed,
            address=offer.address if offer is not None else b"",
            server=offer.server if offer is not None else b"",
        )
        try:
            self.link.settimeout(wait_s)
            self.link.sendto(packet, (self.interface, _ETH_P_IP, 0, 0, _BROADCAST))
        except TimeoutError:
            return None
        until = time.monotonic() + wait_s
        while (left := until - time.monotonic()) > 0:
            self.link.settimeout(left)
            try:
                received = self.link.recv(_RECEIVE_BYTES)
            except TimeoutError:
                return None
            reply = parse_reply(received, self.mac, self._transaction)
            if reply is None or reply.kind not in wanted:
                continue
            if offer is not None and reply.server != offer.server:
                continue
            if reply.kind == Kind.NAK or read_lease(reply) is not None:
                return reply
        return None
