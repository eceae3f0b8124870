"""Whatever is in the configuration, it is read or refused in one line; never an error of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpanic.capture.config import Config, decode_config
from postpanic.capture.config.tables import list_keys
from postpanic.capture.resolve.mounts import find_place, read_mounts
from postpanic.capture.resolve.servers import has_host_key, is_key_locked
from postpanic.errors import NotReadyError, UsageError

NAMES = sorted({part.split("[")[0] for key in list_keys(Config) for part in key.name.split(".")})
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["file", "raw", "nfs", "ssh", "http", "/x", "20 GiB", "1 h", "UUID=a", "http://x/{file}"]),
)


def as_toml(value: object) -> str:
    """Spell a value as TOML, whose inline forms are nearly those of JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {as_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value) if not isinstance(value, str) else json.dumps(value).replace("\x7f", "\\u007f")


VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from([*NAMES, "kind"]), st.text(max_size=4)), inner, max_size=4),
    ),
    max_leaves=12,
)
TABLES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4)


def read(data: bytes) -> None:
    message = "c.toml"
    try:
        assert isinstance(decode_config(data, "c.toml"), Config)
    except UsageError as exc:
        message = str(exc)
    assert message.startswith("c.toml")
    assert "\n" not in message


@given(TABLES)
def test_tables_of_anything(table: dict[str, Any]) -> None:
    read("".join(f"{name} = {as_toml(value)}\n" for name, value in table.items()).encode(errors="replace"))


@given(st.one_of(st.binary(max_size=200), st.text(alphabet="[]{}=\"'#.\n abd01", max_size=60).map(str.encode)))
def test_bytes_that_are_anything(data: bytes) -> None:
    read(data)


@given(st.binary(max_size=300), st.text(min_size=1, max_size=20), st.integers(1, 65535))
def test_keys_and_known_hosts_that_are_anything(content: bytes, server: str, port: int) -> None:
    is_key_locked(b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + content)
    has_host_key(content + b"|1|" + content, server, port)


@given(st.text(alphabet="0123456789:/ -\\abc,=\n", max_size=200), st.text(alphabet="/ab.", max_size=12))
def test_mounts_that_are_anything(tmp_path_factory: pytest.TempPathFactory, text: str, path: str) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text("1 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + text)
    message = ""
    try:
        find_place("/" + path, read_mounts(root), root)
    except NotReadyError as exc:
        message = str(exc)
    assert "\n" not in message
