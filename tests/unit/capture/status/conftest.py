"""What would take most of the time."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from postpanic.capture.arming import prepare


@pytest.fixture(scope="package", autouse=True)
def sources_are_digested_once() -> Iterator[None]:
    """Remember the digest of our own source files, which stay as they are meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "digest_tree", functools.cache(prepare.digest_tree))
        yield
