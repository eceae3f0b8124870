"""crashkernel= in any text: read without harm, changed without touching anything else."""

from __future__ import annotations

import contextlib
import shlex
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postpanic.capture.bootloader.bls import SIGNATURE, set_environment
from postpanic.capture.bootloader.detect import detect_loaders
from postpanic.capture.bootloader.entries import parse_entry, set_options
from postpanic.capture.bootloader.tree import BootTree
from postpanic.capture.bootloader.words import assign_words, find_values, replace_words
from postpanic.capture.crashkernel.parse import ROUND_BYTES, ParserFeatures, parse_command_line
from postpanic.capture.host import Host
from postpanic.errors import PostpanicError
from tests.builders.boot_trees import MACHINES, TREES, write_tree

M = 1 << 20
VALUES = st.lists(st.sampled_from(["160M", "1G,high", "72M,low", "512M-2G:64M,2G-:128M"]), max_size=2, unique=True)
WORD = st.text("abcdef0123456789.,:=@-_/", min_size=1, max_size=12).filter(lambda word: "crashkernel" not in word)
ASKED = st.sampled_from(["crashkernel=auto", "crashkernel=384M-:128M", "crashkernel=1G,high", "crashkernel="])
LINE = st.lists(WORD | ASKED, max_size=8).map(" ".join)


@given(st.text(max_size=200), st.integers(0, 1 << 45), st.booleans())
def test_any_text_is_read(text: str, total: int, cma: bool) -> None:
    found = parse_command_line(f"crashkernel={text}", total, ParserFeatures(cma=cma))
    assert bool(found.problem) == (found.size_bytes == 0)
    assert found.size_bytes < max(total, 1)


@given(st.text("crashkenl=0123456789MGk,:-@highlowcma ", max_size=80), st.integers(1, 1 << 45))
def test_text_like_it_is_read(text: str, total: int) -> None:
    found = parse_command_line(f"ro crashkernel=1M-:{text}", total)
    assert found.size_bytes < max(total, 1)


@given(
    st.lists(st.integers(1, 1 << 20), min_size=2, max_size=6, unique=True).map(sorted),
    st.data(),
)
def test_the_range_with_the_memory_is_chosen(borders_mib: list[int], data: st.DataObject) -> None:
    sizes = [data.draw(st.integers(1, 64)) for _ in borders_mib]
    ends = [*(f"{border}M" for border in borders_mib[1:]), ""]
    word = ",".join(f"{start}M-{end}:{size}M" for start, end, size in zip(borders_mib, ends, sizes, strict=True))
    total = data.draw(st.integers(128, 1 << 21)) * M
    rounded = -(-total // ROUND_BYTES) * ROUND_BYTES
    chosen = [size for start, size in zip(borders_mib, sizes, strict=True) if start * M <= rounded]
    found = parse_command_line(f"crashkernel={word}", total)
    assert found.size_bytes == (chosen[-1] * M if chosen else 0)
    assert len(found.ranges) == len(borders_mib)


@given(LINE, VALUES)
def test_other_words_stay(line: str, values: list[str]) -> None:
    changed = replace_words(line, values)
    assert list(find_values(changed)) == values
    assert _others(changed) == _others(line)
    assert replace_words(changed, values) == changed


def _others(line: str) -> list[str]:
    return [word for word in line.split() if not word.startswith("crashkernel=")]


@settings(max_examples=40)
@given(LINE, VALUES, st.sampled_from(['"', "'", ""]), st.text(max_size=20))
def test_a_shell_reads_what_was_meant(line: str, values: list[str], quote: str, before: str) -> None:
    comment = "".join(f"# {part}\n" for part in before.splitlines() if "\0" not in part and part.isprintable())
    value = f"{quote}{line}{quote}" if quote else shlex.quote(line)
    text = f"{comment}OTHER=1\nA={value}\nB='x y'\n"
    try:
        changed = assign_words(text, "A", values)
    except PostpanicError:
        return
    script = f'{changed}\nprintf "%s\\n" "$A" "$OTHER" "$B"\n'
    shown = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[1:] == ["1", "x y"]
    assert list(find_values(shown[0])) == values
    assert _others(shown[0]) == _others(line)
    assert changed.startswith(comment)


@given(st.lists(LINE, max_size=3), VALUES)
def test_entries_keep_their_other_options(lines: list[str], values: list[str]) -> None:
    text = "title a\nlinux /b\n" + "".join(f"options {line}\n" for line in lines)
    entry = parse_entry("a.conf", set_options(text, values))
    assert list(entry.values) == values
    assert _others(entry.command_line) == _others(parse_entry("a.conf", text).command_line)


@given(LINE, VALUES)
def test_an_environment_block_keeps_its_size(line: str, values: list[str]) -> None:
    body = f"{SIGNATURE}saved_entry=x\nkernelopts={line}\nboot_success=1\n"
    block = body + "#" * (1024 - len(body))
    changed = set_environment(block, tuple(values))
    assert len(changed) == 1024
    assert "\nboot_success=1\n" in changed
    assert changed.rstrip("#").endswith("\n")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(TREES)), st.data())
def test_damaged_configuration_is_an_error_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    root = write_tree(tmp_path_factory.mktemp("tree"), name)
    path = root / data.draw(st.sampled_from(sorted(TREES[name])))
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:start] + data.draw(st.binary(max_size=40)) + content[data.draw(st.integers(0, 400)) :])
    tree = BootTree(Host(root, MACHINES.get(name, "x86_64"), "6.1.0"))
    with contextlib.suppress(PostpanicError):
        for one in detect_loaders(tree):
            plan = one.loader.plan(tree, ("160M",))
            assert all(edit.spell_diff() for edit in plan.edits)
