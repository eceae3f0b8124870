"""Netlink against the kernel that runs here, and attributes that are damaged."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpanic.errors import OutputError
from postpanic.saver.network.links import Interfaces, LinkFlag, parse_prefix
from postpanic.saver.network.netlink import Netlink, NetlinkError, encode_attribute, parse_attributes


def test_loopback_is_found() -> None:
    with Netlink() as netlink:
        interfaces = Interfaces(netlink)
        loopback = interfaces.find_link("lo")
        assert loopback is not None
        assert loopback.index == socket.if_nametoindex("lo")
        assert loopback.flags & LinkFlag.LOOPBACK
        assert {link.name for link in interfaces.list_links()} == {name for _, name in socket.if_nameindex()}
        assert interfaces.find_link("no-such-link") is None


def test_what_the_kernel_refuses_is_told() -> None:
    with Netlink() as netlink, pytest.raises(NetlinkError, match="cannot rename it to x: ") as caught:
        Interfaces(netlink).change_link(0x7FFFFFFF, name="x")
    assert caught.value.number


def test_route_to_ourselves() -> None:
    with Netlink() as netlink:
        interfaces = Interfaces(netlink)
        loopback = interfaces.find_link("lo")
        assert loopback is not None
        if not loopback.flags & LinkFlag.UP:
            pytest.skip("loopback is down here")
        route = interfaces.find_route("127.0.0.1")
        assert route.is_local
        assert route.index == loopback.index


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", "a b"])
def test_names_that_no_interface_can_have(name: str) -> None:
    with Netlink() as netlink, pytest.raises(OutputError, match="is no name of an interface"):
        Interfaces(netlink).add_link(name, "bond")


@pytest.mark.parametrize("text", ["", "x", "192.0.2.1/33", "192.0.2.1/", "::1/129", "::1/-1", "192.0.2.1/x", "1.2.3"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(OutputError):
        parse_prefix(text)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8, unique_by=lambda pair: pair[0]))
def test_attributes_there_and_back(pairs: list[tuple[int, bytes]]) -> None:
    body = b"".join(encode_attribute(kind, value) for kind, value in pairs)
    assert parse_attributes(body) == dict(pairs)


@given(st.binary(max_size=100))
def test_attributes_of_any_bytes(body: bytes) -> None:
    try:
        parse_attributes(body)
    except OutputError:
        return
