"""
Sockets that receive from many senders, many packets at a time.

``recvmmsg`` fetches a batch with one call: half the time of one call for each
packet. Several processes may share a port (``SO_REUSEPORT``); a small filter
then lets the sender's address alone decide whose packet it is, so that one
sender's packets stay together whatever ports it sends from.

References
----------
recvmmsg(2); socket(7) ``SO_ATTACH_REUSEPORT_CBPF``; ``include/uapi/linux/filter.h``, ``sock_diag.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from contextlib import suppress
from typing import TypeAlias

from postpanic.errors import NotReadyError
from postpanic.evidence.netconsole.packets import PACKET_LIMIT

__all__ = ["BATCH", "Receiver", "Sender", "name_sender", "open_socket", "share_by_sender"]

Sender: TypeAlias = bytes
"""Port (2 bytes, zeros: all ports are one sender), IPv6 address (16), scope (4); IPv4 mapped into IPv6."""

BATCH = 128
"""Packets that are fetched with one call."""

_BUFFER_BYTES = 64 << 20
_SO_MEMINFO, _MEMINFO_DROPS, _MEMINFO_WORDS = 55, 8, 9
_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_RCVBUFFORCE = 33
_NAME_BYTES = 28
_MAPPED = bytes(10) + b"\xff\xff"


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Slot(ctypes.Structure):
    _fields_ = (("header", _Header), ("length", ctypes.c_uint32))


def open_socket(
    address: str, port: int, *, is_shared: bool = False, buffer_bytes: int = _BUFFER_BYTES
) -> socket.socket:
    """
    Open a socket that receives.

    Parameters
    ----------
    address : str
        Of this machine; empty: all, IPv6 and IPv4.
    port : int
    is_shared : bool
        Whether other sockets have the same port.
    buffer_bytes : int
        Wanted for packets that wait; without privileges the kernel gives ``net.core.rmem_max``.

    Raises
    ------
    NotReadyError
        If the address is not this machine's, or somebody else has the port.
    """
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    family = socket.AF_INET if address and ":" not in address else socket.AF_INET6
    try:
        receiving = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError as exc:
        if address or exc.errno != errno.EAFNOSUPPORT:
            raise NotReadyError(f"no socket: {exc.strerror}", where=where) from exc
        receiving = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        if receiving.family == socket.AF_INET6:
            receiving.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if is_shared:
            receiving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            receiving.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        except PermissionError:
            receiving.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        receiving.settimeout(0)
        receiving.bind(_bound_to(receiving.family, address, port))
    except (OSError, OverflowError) as exc:
        receiving.close()
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        hint = "who has it: ss -ulnp" if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE else ""
        raise NotReadyError(f"cannot listen: {reason.lower()}", where=where, hint=hint) from exc
    return receiving


def _bound_to(family: int, address: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    if family == socket.AF_INET:
        return address, port
    host, _, zone = address.partition("%")
    return host, port, 0, socket.if_nametoindex(zone) if zone else 0


def share_by_sender(sockets: list[socket.socket]) -> bool:
    """
    Let the sender's address decide which of the sockets of one port gets a packet; False: the kernel cannot.

    The sockets must have been bound in the order of the list.
    """
    # Classic BPF on the packet's network header: version in the first nibble, then the source's last four bytes.
    net_offset = 0xFFF00000
    load_byte, load_word, shift_right, jump_equal, modulo, give = 0x30, 0x20, 0x74, 0x15, 0x94, 0x16
    program = [
        (load_byte, 0, 0, net_offset),
        (shift_right, 0, 0, 4),
        (jump_equal, 0, 2, 4),
        (load_word, 0, 0, net_offset + 12),
        (0x05, 0, 0, 1),
        (load_word, 0, 0, net_offset + 20),
        (modulo, 0, 0, len(sockets)),
        (give, 0, 0, 0),
    ]
    code = b"".join(struct.pack("=HBBI", *each) for each in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    pointer = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    try:
        sockets[0].setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, pointer)
    except OSError:
        return False
    return True


class Receiver:
    """
    Fetch packets from a socket that does not block.

    Parameters
    ----------
    receiving : socket
    by_port : bool
        Whether each port of an address is a sender of its own.
    """

    def __init__(self, receiving: socket.socket, *, by_port: bool = False) -> None:
        self.socket = receiving
        self._by_port = by_port
        self._is_ipv6 = receiving.family == socket.AF_INET6
        self._data = bytearray(BATCH * PACKET_LIMIT)
        self._names = bytearray(BATCH * _NAME_BYTES)
        self._slots = (_Slot * BATCH)()
        self._vectors = (_Vector * BATCH)()
        data = ctypes.addressof(ctypes.c_char.from_buffer(self._data))
        names = ctypes.addressof(ctypes.c_char.from_buffer(self._names))
        for place, (slot, vector) in enumerate(zip(self._slots, self._vectors, strict=True)):
            vector.base, vector.length = data + place * PACKET_LIMIT, PACKET_LIMIT
            slot.header.name, slot.header.name_length = names + place * _NAME_BYTES, _NAME_BYTES
            slot.header.vectors, slot.header.vector_count = ctypes.pointer(vector), 1
        self._view = memoryview(self._data)
        words = memoryview(self._slots).cast("B").cast("I")
        self._lengths = words[_Slot.length.offset // 4 :: ctypes.sizeof(_Slot) // 4]
        self._call = getattr(ctypes.CDLL(None, use_errno=True), "recvmmsg", None)

    def receive(self) -> list[tuple[Sender, bytes]]:
        """Return the packets that are there, at most a batch of them."""
        if self._call is None:
            return self._receive_one_by_one()
        count = self._call(self.socket.fileno(), self._slots, BATCH, socket.MSG_DONTWAIT, None)
        if count <= 0:
            number = ctypes.get_errno() if count < 0 else 0
            if number in {0, errno.EAGAIN, errno.EINTR, errno.ECONNREFUSED, errno.ENOMEM, errno.ENOBUFS}:
                return []
            raise OSError(number, os.strerror(number))
        names, view, lengths = bytes(self._names[: count * _NAME_BYTES]), self._view, self._lengths
        found: list[tuple[Sender, bytes]] = []
        data_at = name_at = 0
        for place in range(count):
            sender = self._sender(names, name_at)
            found.append((sender, bytes(view[data_at : data_at + lengths[place]])))
            data_at += PACKET_LIMIT
            name_at += _NAME_BYTES
        return found

    def _sender(self, names: bytes, at: int) -> Sender:
        port = names[at + 2 : at + 4] if self._by_port else b"\0\0"
        if self._is_ipv6:
            return port + names[at + 8 : at + 28]
        return port + _MAPPED + names[at + 4 : at + 8] + b"\0\0\0\0"

    def _receive_one_by_one(self) -> list[tuple[Sender, bytes]]:
        found: list[tuple[Sender, bytes]] = []
        with suppress(BlockingIOError, InterruptedError):
            for _ in range(BATCH):
                data, address = self.socket.recvfrom(PACKET_LIMIT)
                port = address[1].to_bytes(2, "big") if self._by_port else b"\0\0"
                if self._is_ipv6:
                    packed = socket.inet_pton(socket.AF_INET6, address[0].partition("%")[0])
                    found.append((port + packed + struct.pack("=I", address[3]), data))
                else:
                    found.append((port + _MAPPED + socket.inet_aton(address[0]) + b"\0\0\0\0", data))
        return found

    def count_drops(self) -> int:
        """Count the packets that the kernel dropped because they were not fetched soon enough; since Linux 4.13."""
        try:
            raw = self.socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * _MEMINFO_WORDS)
        except OSError:
            return 0
        words = struct.unpack(f"={len(raw) // 4}I", raw)
        return int(words[_MEMINFO_DROPS]) if len(words) > _MEMINFO_DROPS else 0


def name_sender(sender: Sender) -> str:
    """
    Spell a sender's address; IPv4 as IPv4, and the port behind ``#`` where it is part of the name.

    >>> name_sender(bytes.fromhex("0000" + "00" * 10 + "ffff" + "c0000207" + "00000000"))
    '192.0.2.7'
    """
    port, address, scope = int.from_bytes(sender[:2], "big"), sender[2:18], sender[18:22]
    if address.startswith(_MAPPED):
        text = socket.inet_ntop(socket.AF_INET, address[12:])
    else:
        text = socket.inet_ntop(socket.AF_INET6, address)
        index = struct.unpack("=I", scope)[0]
        if index and text.startswith("fe80:"):
            try:
                text += f"%{socket.if_indextoname(index)}"
            except OSError:
                text += f"%{index}"
    return f"{text}#{port}" if port else text
