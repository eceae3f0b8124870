"""The cache gives back what was stored, or nothing: never another user's file, never a damaged one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from postpanic.kernel.debuginfo.cache import CacheRefusedError, DebuginfoCache
from postpanic.kernel.debuginfo.module_layout import ModuleLayout
from postpanic.kernel.debuginfo.state import CacheState, decode_cache_state, encode_cache_state

KEY = "abc-def"


@pytest.fixture(name="cache")
def _cache(tmp_path: Path) -> DebuginfoCache:
    return DebuginfoCache(tmp_path / "cache")


def test_stored_file_is_found_with_its_contents(cache: DebuginfoCache) -> None:
    path = cache.store(KEY, "modules/a.ko", [b"one", np.arange(3, dtype=np.uint8), b""])
    assert cache.detect(KEY, "modules/a.ko") == path
    assert cache.read(KEY, "modules/a.ko") == b"one\0\1\2"
    assert path.read_bytes().startswith(b"one\0\1\2")


def test_nothing_is_found_before_anything_is_stored(cache: DebuginfoCache) -> None:
    assert cache.detect(KEY, "vmlinux") is None
    assert cache.read(KEY, "vmlinux") is None
    assert not cache.directory.exists()


def test_file_cut_at_any_byte_is_not_used(cache: DebuginfoCache) -> None:
    path = cache.store(KEY, "vmlinux", [b"contents of a file"])
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert cache.detect(KEY, "vmlinux") is None, size
    path.write_bytes(whole)
    assert cache.detect(KEY, "vmlinux") == path


def test_file_changed_at_any_byte_is_not_used(cache: DebuginfoCache) -> None:
    path = cache.store(KEY, "vmlinux", [b"contents of a file"])
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes((whole[at] ^ 0x20,)) + whole[at + 1 :])
        assert cache.detect(KEY, "vmlinux") is None, at


def test_damaged_file_is_replaced_by_storing_again(cache: DebuginfoCache) -> None:
    path = cache.store(KEY, "vmlinux", [b"first"])
    path.write_bytes(b"garbage")
    assert cache.store(KEY, "vmlinux", [b"second"]) == path
    assert cache.read(KEY, "vmlinux") == b"second"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
@pytest.mark.parametrize("which", ["cache", "key"])
def test_directory_that_others_can_write_is_refused(cache: DebuginfoCache, mode: int, which: str) -> None:
    path = cache.store(KEY, "vmlinux", [b"x"])
    (cache.directory if which == "cache" else path.parent).chmod(mode)
    assert cache.detect(KEY, "vmlinux") is None
    with pytest.raises(CacheRefusedError, match="only user"):
        cache.store(KEY, "vmlinux", [b"y"])


def test_file_that_others_can_write_is_not_used(cache: DebuginfoCache) -> None:
    cache.store(KEY, "vmlinux", [b"x"]).chmod(0o666)
    assert cache.detect(KEY, "vmlinux") is None


def test_link_in_place_of_a_file_is_not_followed(cache: DebuginfoCache, tmp_path: Path) -> None:
    path = cache.store(KEY, "vmlinux", [b"x"])
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert cache.detect(KEY, "vmlinux") is None


def test_link_in_place_of_a_directory_is_refused(cache: DebuginfoCache, tmp_path: Path) -> None:
    path = cache.store(KEY, "vmlinux", [b"x"])
    path.parent.rename(tmp_path / "elsewhere")
    path.parent.symlink_to(tmp_path / "elsewhere")
    assert cache.detect(KEY, "vmlinux") is None
    with pytest.raises(CacheRefusedError):
        cache.store(KEY, "vmlinux", [b"y"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_file_of_another_user_is_not_used(cache: DebuginfoCache) -> None:
    os.chown(cache.store(KEY, "vmlinux", [b"x"]), 1234, -1)
    assert cache.detect(KEY, "vmlinux") is None


def test_cache_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    cache = DebuginfoCache(tmp_path / "cache")
    assert cache.detect(KEY, "vmlinux") is None
    with pytest.raises(CacheRefusedError):
        cache.store(KEY, "vmlinux", [b"x"])


def test_new_directories_are_for_the_user_alone(cache: DebuginfoCache) -> None:
    path = cache.store(KEY, "vmlinux", [b"x"])
    assert [directory.stat().st_mode & 0o777 for directory in (cache.directory, path.parent)] == [0o700, 0o700]
    assert path.stat().st_mode & 0o777 == 0o600


def test_writers_at_the_same_time_leave_one_whole_file_and_nothing_else(cache: DebuginfoCache) -> None:
    contents = [bytes((index,)) * 100_000 for index in range(8)]
    seen: list[bytes | None] = []

    def write(data: bytes) -> None:
        for _ in range(10):
            cache.store(KEY, "vmlinux", [data])
            seen.append(cache.read(KEY, "vmlinux"))

    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) <= set(contents)
    assert [path.name for path in (cache.directory / KEY).iterdir()] == ["vmlinux"]


def test_failed_write_leaves_nothing_behind(cache: DebuginfoCache) -> None:
    cache.store(KEY, "vmlinux", [b"x"])
    with pytest.raises(TypeError):
        cache.store(KEY, "vmlinux", [b"y", None])  # type: ignore[list-item]
    assert [path.name for path in (cache.directory / KEY).iterdir()] == ["vmlinux"]
    assert cache.read(KEY, "vmlinux") == b"x"


def layout() -> ModuleLayout:
    numbers = {name: 8 * index for index, name in enumerate(ModuleLayout.__dataclass_fields__) if name != "ranges"}
    return ModuleLayout.from_json({**numbers, "ranges": [[1, 2], [3, 4]]})


def test_facts_beside_the_files_come_back_as_they_were() -> None:
    state = CacheState({"types": 5}, ["a note"], layout(), 0xFFFFFFFF82000000)
    assert decode_cache_state(encode_cache_state(state)) == state
    without = CacheState({}, [], None, 0)
    assert decode_cache_state(encode_cache_state(without)) == without


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"null",
        b'{"counts": {"a": "b"}, "notes": [], "module_layout": null, "modules_head": 0}',
        b'{"counts": {}, "notes": [], "module_layout": null, "modules_head": -1}',
        b'{"counts": {}, "notes": [], "module_layout": null, "modules_head": true}',
        b'{"counts": {}, "notes": [], "module_layout": {"size": 1}, "modules_head": 0}',
        b'{"counts": {}, "notes": [], "module_layout": 7, "modules_head": 0}',
    ],
)
def test_facts_that_we_did_not_write_are_not_used(data: bytes | None) -> None:
    assert decode_cache_state(data) is None


@pytest.mark.parametrize("bad", [-2, 1 << 40, "1", None, 1.5, True])
def test_offset_beyond_reason_spoils_the_layout(bad: object) -> None:
    values = {**layout().to_json(), "ranges": [[1, 2]]}
    values["name"] = bad
    encoded = encode_cache_state(CacheState({}, [], layout(), 0))
    assert decode_cache_state(encoded) is not None
    with pytest.raises(Exception, match=r"no offset"):
        ModuleLayout.from_json(values)
    with pytest.raises(Exception, match=r"no pair|no list|no offset"):
        ModuleLayout.from_json({**layout().to_json(), "ranges": [[bad]]})
