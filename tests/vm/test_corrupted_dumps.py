"""Dumps whose structures were damaged on purpose: every command ends, says where it stopped, and finds loops."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from drgn import Object, Program, container_of
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.pid import find_task

from postpanic import open_dump
from postpanic.analysis.commands.catalog import load_commands
from postpanic.analysis.open_dump import OpenDump
from postpanic.errors import PostpanicError
from postpanic.findings.table import Answer
from postpanic.units import VirtAddr
from tests.vm.arm64 import fetch_dump
from tests.vm.lab import Crash, Lab

pytestmark = pytest.mark.vm

KERNELS = ("6.1", "6.12")
ARM64_KERNELS = ("6.1", "6.12")
GARBAGE = 0xDEAD4EAD_5A5A5A58
NOT_MAPPED = 0xFFFFC000_00001000
LIMIT_S = 60.0
"""Of one command; whole commands take a second or two, on a machine that does nothing else."""
ALWAYS = ("ps", "bt", "mod", "mount", "kmem -i", "runq", "files", "vm 1", "sys", "set")
TASKS = ("ps -c", "ps -g", "ps -t", "bt -a", "foreach bt", "foreach task -R pid", "fuser /", "timer", "locks", "wq")
SLABS = (
    "kmem -s",
    "kmem -S kmalloc-64",
    "kmem -v",
    "kmem -f",
    "kmem -n",
    "kmem -z",
    "list -H slab_caches -o kmem_cache.list",
)
FILES = ("files 1", "foreach files", "net", "net -s", "dev", "swap", "ipcs", "irq", "waitq log_wait", "log")
MODULES = ("mod -t", "sym schedule", "bt -a", "kmem -v", "dis schedule 5")
MEMORY = (
    "vm -p 1",
    "foreach vm",
    "ps -a 1",
    "vtop -c 1 400000",
    "vtop -c 1 8000000000",
    "rd -u 400000",
    "search -u deadbeef",
)


@dataclass(frozen=True)
class Changes:
    """Writes into an opened dump, and takes them back."""

    dump: OpenDump
    before: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def prog(self) -> Program:
        return self.dump.prog

    def translate(self, vaddr: int) -> int:
        return self.dump.workspace.memory.translate(VirtAddr(vaddr))

    def write(self, vaddr: int, data: bytes) -> None:
        self.before.append((vaddr, self.prog.read(vaddr, len(data))))
        self.dump.workspace.write_virtual(vaddr, data)

    def point(self, pointer: Object, target: int) -> None:
        """Make a pointer of the kernel point elsewhere."""
        assert pointer.address_ is not None
        self.write(pointer.address_, target.to_bytes(8, "little"))

    def undo(self) -> None:
        for vaddr, data in reversed(self.before):
            self.dump.workspace.write_virtual(vaddr, data)


@dataclass(frozen=True)
class Damage:
    """
    What is broken.

    Attributes
    ----------
    write : callable
        Breaks it in an opened dump.
    lines : tuple of str
        Command lines that come by, besides those of :data:`ALWAYS`.
    complaint : dict
        Commands that must say so, and a pattern of what they say.
    """

    write: Callable[[Changes], None]
    lines: tuple[str, ...]
    complaint: dict[str, str]


def loop_modules(changes: Changes) -> None:
    """Let the third module's next one be the second, or the last one's itself."""
    modules = list(list_for_each_entry("struct module", changes.prog["modules"].address_of_(), "list"))
    last = min(2, len(modules) - 1)
    changes.point(modules[last].list.next, int(modules[min(1, last)].list.address_of_()))


def lose_modules(changes: Changes) -> None:
    modules = list(list_for_each_entry("struct module", changes.prog["modules"].address_of_(), "list"))
    changes.point(modules[min(2, len(modules) - 1)].list.next, GARBAGE)


def loop_caches(changes: Changes) -> None:
    caches = list(list_for_each_entry("struct kmem_cache", changes.prog["slab_caches"].address_of_(), "list"))
    changes.point(caches[5].list.next, int(caches[3].list.address_of_()))


def lose_caches(changes: Changes) -> None:
    caches = list(list_for_each_entry("struct kmem_cache", changes.prog["slab_caches"].address_of_(), "list"))
    changes.point(caches[5].list.next, NOT_MAPPED)


def loop_slabs(changes: Changes) -> None:
    """Let the second partial slab of a cache, or the only one, be followed by the first."""
    caches = list_for_each_entry("struct kmem_cache", changes.prog["slab_caches"].address_of_(), "list")
    partial = (cache.node[0].partial.address_of_() for cache in caches)
    slabs = max((list(list_for_each_entry("struct slab", head, "slab_list")) for head in partial), key=len)
    if not slabs:
        pytest.skip("no cache of this small machine has partial slabs")
    changes.point(slabs[min(1, len(slabs) - 1)].slab_list.next, int(slabs[0].slab_list.address_of_()))


def loop_tasks(changes: Changes) -> None:
    """Let the list of processes go round in a circle that does not come back to its head."""
    one, other = find_task(changes.prog, 1), find_task(changes.prog, 2)
    changes.point(other.tasks.next, int(one.tasks.address_of_()))


def lose_tasks(changes: Changes) -> None:
    """Break the tree of PIDs, the list of processes, and the children of PID 1."""
    prog = changes.prog
    one = find_task(prog, 1)
    changes.point(one.tasks.next, GARBAGE)
    changes.point(one.children.next, NOT_MAPPED)
    changes.point(prog["init_pid_ns"].idr.idr_rt.xa_head, (GARBAGE & ~3) | 2)


def has_list(prog: Program) -> bool:
    """Tell whether a namespace has its mounts in a list; since 6.8 they are in a tree (2eea9ce4310d)."""
    return bool(prog.type("struct mnt_namespace").has_member("list"))


def loop_mounts(changes: Changes) -> None:
    """Let the mounts below the root go round, in the list and in the tree."""
    namespace = changes.prog["init_task"].nsproxy.mnt_ns
    root = namespace.root
    children = list(list_for_each_entry("struct mount", root.mnt_mounts.address_of_(), "mnt_child"))
    changes.point(children[1].mnt_child.next, int(children[0].mnt_child.address_of_()))
    if has_list(changes.prog):
        first = container_of(namespace.list.next, "struct mount", "mnt_list")
        changes.point(first.mnt_list.next, int(first.mnt_list.address_of_()))
    else:
        changes.point(children[0].mnt_node.rb_right, int(children[0].mnt_node.address_of_()))


def lose_mounts(changes: Changes) -> None:
    prog = changes.prog
    namespace = prog["init_task"].nsproxy.mnt_ns
    if has_list(prog):
        changes.point(namespace.list.next, GARBAGE)
    else:
        changes.point(namespace.mounts.rb_node, GARBAGE)


def break_page_tables(changes: Changes) -> None:
    """Let the first tables of PID 1 point to themselves, and to memory that there is not."""
    mm = find_task(changes.prog, 1).mm
    pgd = int(mm.pgd)
    own = changes.translate(pgd)
    is_arm64 = changes.dump.workspace.memory.machine == "aarch64"
    entries = [own | 0x3, 0x0000_FFFF_FFFF_F003] if is_arm64 else [own | 0x67, 0x000F_FFFF_FFFF_F067]
    for number, entry in enumerate(entries):
        changes.write(pgd + 8 * number, entry.to_bytes(8, "little"))


def break_files(changes: Changes) -> None:
    """Let a file, a dentry and a name of PID 1 be garbage, and its dentries a loop."""
    task = find_task(changes.prog, 1)
    table = task.files.fdt
    changes.point(table.fd[0], GARBAGE)
    dentry = table.fd[10].f_path.dentry
    changes.point(dentry.d_parent.d_parent, int(dentry))
    changes.point(dentry.d_parent, int(dentry.d_parent))


def break_memory(changes: Changes) -> None:
    """Let the areas of PID 1 be nowhere."""
    mm = find_task(changes.prog, 1).mm
    changes.point(mm.mm_mt.ma_root, (NOT_MAPPED & ~0xFF) | 0x1E)


DAMAGES = {
    "loop of modules": Damage(loop_modules, MODULES, {"mod": "loop"}),
    "modules lost": Damage(lose_modules, MODULES, {"mod": "stops after"}),
    "loop of caches": Damage(loop_caches, SLABS, {"kmem -s": "loop"}),
    "caches lost": Damage(lose_caches, SLABS, {"kmem -s": "stops after"}),
    "loop of slabs": Damage(loop_slabs, SLABS, {"kmem -s": "loop"}),
    "loop of tasks": Damage(loop_tasks, TASKS, {"list task_struct.tasks -h init_task": "loop"}),
    "tasks lost": Damage(lose_tasks, TASKS, {"ps": "stops after"}),
    "loop of mounts": Damage(loop_mounts, FILES, {"mount": "loop|twice"}),
    "mounts lost": Damage(lose_mounts, FILES, {"mount": "cannot read memory"}),
    "page tables": Damage(break_page_tables, MEMORY, {}),
    "files": Damage(break_files, FILES, {}),
    "areas": Damage(break_memory, MEMORY, {"vm 1": ""}),
}


@pytest.fixture(
    name="dump",
    params=[*KERNELS, *(pytest.param(f"arm64-{key}", marks=pytest.mark.matrix) for key in ARM64_KERNELS)],
    scope="module",
)
def _dump(
    request: pytest.FixtureRequest,
    crashed: Callable[[str], Crash],
    crash_lab: Lab,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OpenDump]:
    key: str = request.param
    is_arm64 = key.startswith("arm64-")
    path = fetch_dump(crash_lab, key.removeprefix("arm64-")).path if is_arm64 else crashed(key).filtered
    with open_dump(path, debuginfo="synth", cache_directory=tmp_path_factory.mktemp("cache")) as dump:
        yield dump


@pytest.fixture(name="broken", params=sorted(DAMAGES))
def _broken(request: pytest.FixtureRequest, dump: OpenDump) -> Iterator[tuple[OpenDump, Damage]]:
    """Give a dump with one thing broken; afterwards it is whole again."""
    damage = DAMAGES[request.param]
    changes = Changes(dump)
    damage.write(changes)
    yield dump, damage
    changes.undo()


def ask(dump: OpenDump, line: str) -> tuple[Answer | None, str, float]:
    started = time.monotonic()
    try:
        answer = dump.run(line)
    except PostpanicError as exc:
        # One clear line is an answer, too.
        return None, str(exc), time.monotonic() - started
    return answer, "\n".join(problem.what for problem in answer.problems), time.monotonic() - started


def test_every_command_ends_and_says_where_it_stopped(broken: tuple[OpenDump, Damage]) -> None:
    dump, damage = broken
    native = load_commands()
    slow, silent = [], []
    for line in dict.fromkeys((*ALWAYS, *damage.lines, *damage.complaint)):
        assert line.split()[0] in native, line
        _, said, took_s = ask(dump, line)
        if took_s > LIMIT_S:
            slow.append(f"{line}: {took_s:.0f} s")
        if line in damage.complaint and not re.search(damage.complaint[line], said):
            silent.append(f"{line}: {said!r}")
    assert (slow, silent) == ([], [])
