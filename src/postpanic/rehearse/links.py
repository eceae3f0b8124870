"""
The links of the chain from panic to dump, and which of them held: read off the console of a rehearsal.

Each link that broke is named with what the console says of it; what comes after
it was not reached, and is not judged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from postpanic.rehearse.job import PREFIX
from postpanic.saver.plan import FilePlan, HttpPlan, RawPlan, SavePlan, SshPlan, TargetPlan

__all__ = ["Link", "State", "find_unused", "judge_console"]

State = Literal["held", "broken", "not reached", "not proven", "faulted"]

_SAVER = r"^(?:\[[^\]\n]*\] ?)?postpanic: "
_NO_MEMORY = re.compile(
    r"Out of memory|deadlocked on memory|page allocation failure|Cannot allocate memory|MemoryError"
    r"|Initramfs unpacking failed|No working init found|Kernel panic - not syncing: .{0,40}(?:memory|swiotlb|swiotbl)",
)
_PANIC = re.compile(r"Kernel panic - not syncing: ([^\n]*)")
_CRASHED = re.compile(
    r"sysrq: Trigger a crash|Kernel panic - not syncing: [^\n]*|BUG: [^\n]*|kernel BUG at [^\n]*|Oops[: ][^\n]*"
    r"|Unable to handle [^\n]*|INFO: task [^\n]*|[^\n]*LOCKUP[^\n]*|NMI: [^\n]*|Out of memory[^\n]*"
)
_STARTED = re.compile(_SAVER + r"saver started", re.MULTILINE)
_BOOTED = re.compile(r"^(?:\[ *0\.000000\])?(?:\[[^\]\n]*\])? ?Linux version ", re.MULTILINE)


_SERVER_MEND = "the server must be up when the host crashes; a fallback on a disk is safer"
_DISK_MEND = "a fallback on another disk, or on a server, takes over where there is one"
# What the saver says of a target, and what to do about it; the first that fits counts.
_MENDS = (
    ("there is no block device at all", "the image has no driver for the disk's controller: capture.modules"),
    ("no block device with ", "the target's device has another identifier: lsblk -f, then postpanic arm"),
    ("the network card ", "the image has no driver for the network card: capture.modules"),
    ("no room is left", "make room, or a target with more: postpanic prune, limit, level"),
    ("saved, incomplete", "the target was full, or the time was up, as the manifest there says: make room, or a limit"),
    ("the server has no such export", "the target's export must be one of the server's: its /etc/exports"),
    (
        "does not export it to this machine",
        "the server's /etc/exports must have this host, with its root allowed to write",
    ),
    ("does not know NFS", "the image has no client of NFS: the kernel must have the module nfs"),
    ("know this version of NFS", "another version of the target, or the module of this one in the kernel"),
    ("the server has no room", "make room, or a target with more: postpanic prune, limit, level"),
)
_SERVER_WORDS = ("does not answer", "no answer", "refuses connections", "no route to", "server's name")


@dataclass(frozen=True)
class Link:
    """
    One link.

    Attributes
    ----------
    name : str
        ``image``, ``boot``, ``reservation``, ``load``, ``verification``, ``crash``, ``capture kernel``, ``saver``,
        ``target NAME``, ``self-test NAME``, ``reboot``, ``dump NAME``.
    state : str
        ``faulted``: it broke by what was made to go wrong, and cost nothing.
    evidence : str
        What was found, one line.
    mend : str
        What to do about it; empty where nothing is known or needed.
    """

    name: str
    state: State
    evidence: str = ""
    mend: str = ""


@dataclass
class _Chain:
    links: list[Link]
    is_whole: bool = True

    def add(self, name: str, held: bool, evidence: str, mend: str = "", *, is_vital: bool = True) -> bool:
        """Add a link; one behind a vital one that broke was not reached."""
        if not self.is_whole:
            self.links.append(Link(name, "not reached"))
            return False
        self.links.append(Link(name, "held" if held else "broken", evidence, "" if held else mend))
        self.is_whole = held or not is_vital
        return held


def find_unused(console: str, plan: SavePlan) -> dict[int, str]:
    """Find the fallbacks that were not needed, by number: why nothing is to be expected of them."""
    count = len(plan.targets)
    return {
        number: "a fallback that was not needed"
        for number, target in enumerate(plan.fallbacks, count)
        if f"trying the fallback {target.name}" not in console and re.search(_SAVER + "saved: ", console, re.MULTILINE)
    }


def judge_console(
    console: str,
    targets: tuple[TargetPlan, ...],
    *,
    rehearsed: frozenset[int],
    reasons: Mapping[int, str] = MappingProxyType({}),
) -> list[Link]:
    """
    Judge what a rehearsal printed.

    Parameters
    ----------
    console : str
        Of the boot that crashed, and its capture kernel.
    targets : tuple of TargetPlan
        Of the plan, fallbacks last.
    rehearsed : frozenset of int
        Numbers of those that had a stand-in.
    reasons : mapping
        Why the others had none.
    """
    chain = _Chain([])
    told = re.findall(rf"^{PREFIX}(.*?)\r?$", console, re.MULTILINE)
    failure = next((text.removeprefix("failed: ") for text in told if text.startswith("failed: ")), "")
    _judge_host(chain, console, told, failure)
    _before, crashed, after = console.partition(f"{PREFIX}crash ")
    _judge_capture(chain, after if crashed else "")
    for number, target in enumerate(targets):
        if number in rehearsed:
            _judge_target(chain, after, target)
        else:
            chain.links.append(Link(f"target {target.name}", "not proven", reasons.get(number, "it has no stand-in")))
    ended = re.search(_SAVER + r"(rebooting|powering off|halting)", after, re.MULTILINE)
    chain.add("reboot", ended is not None, ended[1] if ended else "the saver did not come to its end", is_vital=False)
    return chain.links


def _judge_host(chain: _Chain, console: str, told: list[str], failure: str) -> None:
    def find(word: str) -> str | None:
        return next((text.removeprefix(word) for text in told if text.startswith(word)), None)

    kernel = find("kernel ")
    last = console.rstrip().rsplit("\n", 1)[-1].strip()[-160:]
    chain.add("boot", kernel is not None, kernel or failure or f"it ends with: {last}")
    reserved = int(find("reserved ") or 0)
    chain.add(
        "reservation",
        reserved > 0,
        f"{reserved >> 20} MiB" if reserved else "the kernel reserved nothing",
        "a smaller crashkernel=, or crashkernel=SIZE,high",
    )
    loaded = find("loaded ")
    chain.add("load", loaded is not None, f"by {loaded}" if loaded else failure or "not loaded")
    verified = find("verified ") or ""
    chain.add("verification", not verified.startswith("bad"), verified or failure)
    after = console.partition(f"{PREFIX}crash ")[2]
    crashed = _CRASHED.search(after)
    found = crashed[0].strip() if crashed else failure or "the machine did not panic"
    if crashed is None and _BOOTED.search(after):
        # What is printed in an NMI reaches the log, and no console any more.
        crashed, found = _BOOTED.search(after), "without a word on the console"
    chain.add("crash", crashed is not None, found)


def _judge_capture(chain: _Chain, after: str) -> None:
    booted = _BOOTED.search(after) or _STARTED.search(after)
    no_memory = _NO_MEMORY.search(after)
    panic = _PANIC.findall(after[booted.start() :] if booted else "")
    why = ""
    if no_memory:
        why = f"out of memory: {no_memory[0]}"
    elif panic:
        why = f"the capture kernel panicked: {panic[0].strip()}"
    mend = "a larger crashkernel=: postpanic crashkernel" if no_memory else ""
    chain.add("capture kernel", booted is not None, "it booted" if booted else why or "it did not come up", mend)
    started = _STARTED.search(after)
    line = after[started.start() :].split("\n", 1)[0] if started else ""
    evidence = line.partition("postpanic: ")[2].strip() or why or "the saver did not start"
    chain.add("saver", started is not None, evidence, mend)


def _judge_target(chain: _Chain, after: str, target: TargetPlan) -> None:
    name = re.escape(target.name)
    saved = re.search(rf"{_SAVER}{name}: (saved, level .*?)\r?$", after, re.MULTILINE)
    failed = re.findall(rf"{_SAVER}(?:failed: {name}|{name}: given up): (.*?)\r?$", after, re.MULTILINE)
    partial = re.findall(rf"{_SAVER}{name}: ((?:saved, incomplete|log).*?)\r?$", after, re.MULTILINE)
    misfits = re.findall(rf"{_SAVER}{name}: (level \d+ does not fit: .*?)\r?$", after, re.MULTILINE)
    no_memory = _NO_MEMORY.search(after)
    evidence = saved[1] if saved else failed[-1] if failed else partial[-1] if partial else "nothing was saved"
    if not saved and misfits:
        evidence = f"{misfits[-1]}; {evidence}"
    if not saved and no_memory:
        evidence += f" ({no_memory[0]})"
    mend = "a larger crashkernel=: postpanic crashkernel" if no_memory else ""
    if not saved and not mend:
        mend = next((text for words, text in _MENDS if words in evidence), "")
    if not saved and not mend and any(words in evidence for words in _SERVER_WORDS):
        mend = _DISK_MEND if isinstance(target, FilePlan | RawPlan) else _SERVER_MEND
    chain.add(f"target {target.name}", saved is not None, evidence, mend, is_vital=False)
    if saved is None:
        chain.links.append(Link(f"self-test {target.name}", "not reached"))
        return
    if isinstance(target, RawPlan | SshPlan | HttpPlan):
        where = "a raw device" if isinstance(target, RawPlan) else "a server"
        chain.links.append(Link(f"self-test {target.name}", "not proven", f"of {where} nothing is read back"))
        return
    tested = re.search(rf"{_SAVER}{name}: self-test (.*?)\r?$", after, re.MULTILINE)
    said = re.search(rf"{_SAVER}(no self-test.*?)\r?$", after, re.MULTILINE)
    evidence = tested[1] if tested else said[1] if said else "it was not tested"
    if tested is None and re.search(_SAVER + "trying again: ", after, re.MULTILINE):
        # A saver that begins again does with as little memory as possible.
        chain.links.append(Link(f"self-test {target.name}", "not proven", "a saver that begins again leaves it out"))
        return
    chain.add(
        f"self-test {target.name}", tested is not None and tested[1].startswith("passed"), evidence, is_vital=False
    )
