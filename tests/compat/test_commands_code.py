"""``p``, ``struct``, ``whatis``, ``list``, ``tree``, ``sym``, ``dis`` against crash, objdump, gcc, real debuginfo."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drgn import Architecture, Platform, Program
from drgn.helpers.linux.pid import find_task

from postpanic import open_dump
from postpanic.analysis.code.instructions import Disassembler
from postpanic.analysis.code.listing import spell_instruction
from postpanic.analysis.expressions import evaluate
from postpanic.analysis.open_dump import OpenDump
from postpanic.findings.table import Answer, Table
from postpanic.process import run
from postpanic.report.text import render_text
from tests.compat.judged import Judged
from tests.vm.lab import Crash

pytestmark = pytest.mark.compat

KERNELS = ("6.1", "6.12")
Installed = Callable[[str], str]

SAME_AS_CRASH = (
    *("p init_task.tasks", "p &init_task.tasks", "p init_task.comm", "p jiffies", "px jiffies", "p runqueues"),
    *("p runqueues:0", "p irq_stat", "p irq_stat:a", "px irq_stat:1", "p 1+1", "p (char)97", "p sizeof(struct page)"),
    *("p init_task.sched_class", "p *init_task.sched_class", "p init_task.cpus_mask", "p &init_task"),
    *("p init_uts_ns.name", "p modules", "p tcp_prot.name", "p (struct list_head *)0x0", "p system_state"),
    *("p init_task.flags", "p &schedule", "p 'a'", "p 7/2.0", "p init_task.se", "p saved_command_line"),
    *("p file_systems", "p *file_systems", "p (enum zone_type)2", "p/x (enum zone_type)2", "px (enum zone_type)2"),
    *("p (enum zone_type)99", "px (char)97", "p (_Bool)1", "px (_Bool)1", "p/t 5", "p/o 64", "p/c 65", "p/z 5"),
    *("p/s init_task.comm", "p/x init_task.comm", "p/u -1", "p/d -1", "px (short)-1", "p 3000000000"),
    *("p 0xffffffffffffffff", "p *&jiffies", "p &init_task.tasks.next", "p sizeof init_task"),
    *("p (long)&((struct task_struct *)0)->tasks", "p 1 ? 2 : 3", "p *init_task.comm@4", "p init_task.comm[0]@4"),
    *("p schedule+4", "p init_mm.pgd", "p init_mm.mmap_lock.count", "p nr_cpu_ids"),
    *("p tcp_prot.close", "p super_blocks", "p init_task.restart_block", "p panic_cpu"),
    *("p poweroff_cmd", "p init_task.thread", "p init_cred.uid", "px init_task.cpus_mask.bits"),
    *("struct list_head", "struct list_head -o", "struct page", "struct page -o", "struct slab -o", "struct sk_buff"),
    *("struct percpu_ref", "struct bpf_insn", "struct lock_class_key", "struct -o irqaction", "union rcu_special"),
    *("struct irq_cpustat_t", "struct mutex.wait_list", "struct task_struct.tasks", "task_struct.in_execve -o"),
    *("task_struct.in_execve -o init_task", "task_struct.in_execve,jobctl,comm,on_rq init_task -x"),
    *("task_struct.pending init_task -d", "task_struct.comm,pid,tasks init_task", "list_head init_task 2"),
    *("list_head init_task -c -2", "list_head init_task -r", "list_head -l 8 init_task", "struct file_system_type"),
    *("struct list_head -o init_task", "struct task_struct.tasks -o init_task", "struct task_struct.mm init_task -p"),
    *("whatis linux_binfmt", "whatis -o linux_binfmt", "whatis jiffies", "whatis schedule", "whatis pid_t"),
    *("whatis list_head", "whatis -r 192", "whatis init_task", "whatis zone_type"),
    # crash needs seconds for each element of a list that is shown with -s.
    *("list task_struct.tasks -h init_task", "list task_struct.tasks -S task_struct.pid,comm -h init_task"),
    *("list -H modules", "list -H modules module.list -S module.name", "list modules", "list -r -H modules"),
    *("list 8 modules", "list -h init_task -o task_struct.tasks -S task_struct.pid"),
    *("tree -t x -r pid_namespace.idr init_pid_ns -p", "tree -t xarray -r pid_namespace.idr init_pid_ns"),
    *("sym jiffies", "sym -np jiffies", "sym -q virtio_pci_pro", "ascii 41 4200"),
    *("eval 128m", "eval -b 41dc065", "eval -lb 64g", "eval jiffies", "eval jiffies + 8", "eval ~1", "eval 1 - 2"),
    *("eval 7 / 2", "eval 10", "eval a", "eval 0x10 * 2k", "eval schedule", "dis sysrq_handle_crash"),
    *("dis -x schedule 1", "dis virtio_pci_probe 5", "dis ret_from_fork 9", "dis (schedule+5) 2"),
)
"""Their text is crash's, but for what :func:`plain` takes away."""

OF_6_1 = (
    "p current_task:a",
    *("tree -t rbtree -o vmap_area.rb_node vmap_area_root", "tree -t rbtree -o vmap_area.rb_node vmap_area_root -l"),
    *("tree -t rbtree -o vmap_area.rb_node vmap_area_root -p", "dis -r schedule+28", "dis -f schedule+62"),
)
OF_6_12 = (*("tree -t maple sparse_irqs", "tree -t maple sparse_irqs -p", "tree -t maple -r mm_struct.mm_mt init_mm"),)


def text_of(answer: Answer) -> str:
    return "\n".join(render_text(answer))


def plain(text: str) -> list[str]:
    """
    Leave out what is meant to differ.

    crash counts values by a number of its own, leaves spaces at the ends of
    lines, breaks the line of a value that is long, and writes no empty line
    between the copies of a per-CPU variable.
    """
    text = re.sub(r"\$\d+ = \n ", "$ = ", text)
    text = re.sub(r"\$\d+ = ", "$ = ", text)
    text = re.sub(r"^\d{18,}$", lambda found: f"{int(found[0]):x}", text, flags=re.MULTILINE)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def is_known(line: str) -> bool:
    """
    Tell whether a line of crash's may differ.

    gdb names the symbol before an address even if the address is behind it;
    crash's -x -d have no say in the offsets of symbols.
    """
    return bool(re.search(r"<\w+\+\d+>", line))


def test_text_is_crashs(judged: Judged) -> None:
    lines = [*SAME_AS_CRASH, *(OF_6_1 if judged.kernel == "6.1" else OF_6_12)]
    theirs = judged.ask(lines)
    wrong = []
    for line in lines:
        if line not in theirs:
            wrong.append(f"{line}: crash has no answer")
            continue
        answer = run_line(judged.dump, line)
        mine, other = plain(text_of(answer)), plain(theirs[line])
        pairs = zip(mine, other, strict=False)
        differing = [(one, two) for one, two in pairs if one != two and not is_known(two)]
        if len(mine) != len(other) or differing:
            wrong.append(f"{line}: {len(mine)} and {len(other)} lines, {differing[:2]}")
    assert not wrong, "\n".join(wrong)


def run_line(dump: OpenDump, line: str) -> Answer:
    return dump.run(dump.workspace.aliases.expand(line))


@pytest.fixture(scope="module", params=KERNELS)
def pair(
    request: pytest.FixtureRequest, crashed: Callable[..., Crash], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[OpenDump, OpenDump]]:
    """Open a dump twice: with synthesized and with real debug information."""
    crash = crashed(request.param)
    if crash.vmlinux is None:
        pytest.skip("the kernel's own debug information cannot be had")
    cache = tmp_path_factory.mktemp("debuginfo")
    with (
        open_dump(crash.filtered, debuginfo="synth", cache_directory=cache) as synthesized,
        open_dump(crash.filtered, vmlinux=crash.vmlinux, cache_directory=cache) as real,
    ):
        yield synthesized, real


def without_source(answer: Answer) -> list[list[tuple[object, ...]]]:
    """Leave out what only real debug information can tell: files and lines."""
    tables = []
    for table in answer.tables:
        names = [column.name for column in table.shape.columns]
        kept = [place for place, name in enumerate(names) if name not in {"file", "line"}]
        text = names.index("text") if "text" in names else -1
        tables.append(
            [
                tuple(
                    _flat(re.sub(r" \S+: \d+\Z", "", str(row[place]))) if place == text else _flat(row[place])
                    for place in kept
                )
                for row in table.rows
            ]
        )
    return tables


def _flat(cell: object) -> object:
    if isinstance(cell, Table):
        return cell.records()
    # Where a symbol ends, kallsyms does not tell: what lies right behind it may seem to be a part of it.
    # BTF does not tell [0] from [].
    return re.sub(r" <[\w.]+\+\d+>", "", cell).replace("[0]", "[]") if isinstance(cell, str) else cell


def test_synthesized_and_real_debuginfo_give_the_same_answers(pair: tuple[OpenDump, OpenDump]) -> None:
    synthesized, real = pair
    lines = [line for line in SAME_AS_CRASH if not re.match(r"whatis -r|p 'a'|sym -q", line)]
    wrong = [
        line for line in lines if without_source(run_line(synthesized, line)) != without_source(run_line(real, line))
    ]
    assert wrong == []


def test_real_debuginfo_tells_files_and_lines(pair: tuple[OpenDump, OpenDump]) -> None:
    synthesized, real = pair
    row = real.run("sym schedule").table.records()[0]
    assert str(row["file"]).endswith("kernel/sched/core.c")
    assert isinstance(row["line"], int)
    assert row["line"] > 1000
    assert synthesized.run("sym schedule").table.records()[0]["file"] is None
    files = {row["file"] for row in real.run("dis -l schedule").table.records()}
    assert any(str(file).endswith("kernel/sched/core.c") for file in files)
    (source,) = real.run("dis -s schedule").tables
    assert "kernel/sched/core.c" in str(source.title)


OBJDUMP_LINE = re.compile(r"^ *([0-9a-f]{8,16}):\t((?:[0-9a-f]{2} )+) *(?:\t(.*))?$", re.MULTILINE)
RANGES = 8
FUNCTIONS_EACH = 40


def code_ranges(nm: str, vmlinux: Path) -> list[tuple[int, int]]:
    """Choose stretches of the kernel's functions, always the same ones."""
    lines = run([nm, "--defined-only", vmlinux], timeout_s=120).stdout.decode().splitlines()
    starts = sorted({int(line.split()[0], 16) for line in lines if line.split()[1] in "Tt"})
    starts = [start for start in starts if start >> 63]
    chosen = random.Random(1).sample(range(len(starts) // 4, len(starts) * 3 // 4), RANGES)
    return [(starts[place], starts[place + FUNCTIONS_EACH]) for place in chosen]


def spelt(text: str) -> str:
    """Leave out symbols, comments, and how a number is marked as hexadecimal."""
    text = re.sub(r"<[^>]*>|#.*|//.*", "", text)
    return " ".join(text.replace("0x", "").replace("data16 ", "").replace("cs ", "").split())


def test_dis_decodes_as_objdump_does(judged: Judged, installed: Installed) -> None:
    """Addresses and lengths are the same, and so is the spelling of nearly all instructions."""
    disassembler = Disassembler("x86_64")
    compared = functions = 0
    differing: list[tuple[str, str]] = []
    for start, end in code_ranges(installed("nm"), judged.vmlinux):
        words = [installed("objdump"), "-d", "-w", f"--start-address={start:#x}", f"--stop-address={end:#x}"]
        text = run([*words, judged.vmlinux], timeout_s=120).stdout.decode()
        theirs = [(int(one, 16), bytes.fromhex(two), three) for one, two, three in OBJDUMP_LINE.findall(text)]
        data = b"".join(code for _, code, _ in theirs)
        mine = list(disassembler.decode(data, theirs[0][0]))
        places = [(one.vaddr, len(one.data)) for one in mine]
        assert places == [(vaddr, len(code)) for vaddr, code, _ in theirs][: len(places)]
        assert len(theirs) - len(mine) < 15
        for one, (_, _, other) in zip(mine, theirs, strict=False):
            text = spelt(spell_instruction(one, lambda _: "")[0])
            if text != spelt(other):
                differing.append((text, spelt(other)))
        compared += len(mine)
        functions += FUNCTIONS_EACH
    assert functions >= 300
    assert compared > 5_000
    mnemonics = [(mine, other) for mine, other in differing if mine.split()[0] != other.split()[0]]
    assert len(mnemonics) < compared / 1000, mnemonics[:20]
    assert len(differing) < compared / 200, differing[:20]


CAST_TYPES = ("char", "unsigned char", "short", "unsigned int", "long", "unsigned long")


def random_expression(rng: random.Random, depth: int) -> str:
    """Make an expression that C defines with -fwrapv: no division by zero, shifts within 31 bits."""
    if depth == 0 or rng.random() < 0.15:
        number = rng.randint(-1000, 1000)
        return rng.choice([str(number), f"{abs(number):#x}", f"{abs(number)}U", f"{abs(number)}L", "'a'", "0x80000000"])
    inner = [f"({random_expression(rng, depth - 1)})" for _ in range(3)]
    match rng.randrange(8):
        case 0:
            return f"{rng.choice('+-~!')}{inner[0]}"
        case 1:
            return (
                f"({rng.choice(['char', 'unsigned char', 'short', 'unsigned int', 'long', 'unsigned long'])}){inner[0]}"
            )
        case 2:
            return f"{inner[0]} ? {inner[1]} : {inner[2]}"
        case 3:
            return f"{inner[0]} {rng.choice(['/', '%'])} ({inner[1]} | 1)"
        case 4:
            return f"{inner[0]} {rng.choice(['<<', '>>'])} ({inner[1]} & 15)"
        case 5:
            return f"{inner[0]} {rng.choice(['==', '!=', '<', '>', '<=', '>=', '&&', '||'])} {inner[1]}"
        case _:
            return f"{inner[0]} {rng.choice('+-*&|^')} {inner[1]}"


def test_arithmetic_is_that_of_a_compiler(installed: Installed, tmp_path: Path) -> None:
    rng = random.Random(7)
    expressions = [random_expression(rng, rng.randint(1, 4)) for _ in range(400)]
    source = tmp_path / "expressions.c"
    lines = [f'printf("%llx\\n", (unsigned long long)({text}));' for text in expressions]
    source.write_text("#include <stdio.h>\nint main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n")
    run([installed("gcc"), "-w", "-fwrapv", "-O0", "-o", tmp_path / "expressions", source])
    theirs = run([tmp_path / "expressions"]).stdout.decode().split()
    prog = Program(Platform(Architecture.X86_64))
    mine = [f"{int(evaluate(prog, text).value_()) & (1 << 64) - 1:x}" for text in expressions]
    differing = [(text, one, two) for text, one, two in zip(expressions, mine, theirs, strict=True) if one != two]
    assert differing == []


@pytest.fixture
def damaged(crashed: Callable[..., Crash], tmp_path: Path) -> Iterator[OpenDump]:
    with open_dump(crashed("6.1").filtered, debuginfo="synth", cache_directory=tmp_path) as dump:
        yield dump


def test_damaged_lists_and_trees_end(damaged: OpenDump) -> None:
    """What a list or tree has lost is said; the rest of it is shown."""
    whole = [row["address"] for row in damaged.run("list -H modules").table.records()]
    third, last = whole[2], whole[-1]
    assert isinstance(third, int)
    assert isinstance(last, int)
    workspace = damaged.workspace
    workspace.write_virtual(last, third.to_bytes(8, "little"))
    looped = damaged.run("list -B -H modules")
    assert [row["address"] for row in looped.table.records()] == whole
    assert looped["loop"].records() == [{"length": len(whole) - 2, "start": third, "last": last}]
    assert "loops" in looped.problems[0].what
    workspace.write_virtual(third, (0x123456789000).to_bytes(8, "little"))
    cut = damaged.run("list -H modules")
    assert len(cut.table) == 4
    assert "123456789000" in cut.problems[0].what
    nodes = [row["address"] for row in damaged.run("tree vmap_area_root").table.records()]
    top, child = nodes[0], nodes[1]
    assert isinstance(top, int)
    assert isinstance(child, int)
    # The right side of the left child leads back to the root.
    workspace.write_virtual(child + 8, top.to_bytes(8, "little"))
    for line in ("tree vmap_area_root", "tree -l vmap_area_root"):
        answer = damaged.run(line)
        assert 0 < len(answer.table) < len(nodes)
        assert "root/l/r" in answer.problems[0].what


def test_memory_of_a_process_is_read_with_u(crashed: Callable[..., Crash], tmp_path: Path) -> None:
    """A program without relocation begins with its ELF header, its code with the first function of crt1.o."""
    with open_dump(crashed("6.1").raw, debuginfo="synth", cache_directory=tmp_path) as dump:
        dump.run("set 1")
        base = int(find_task(dump.prog, 1).mm.start_code) & ~0xFFFFFF | 0x400000
        (row,) = dump.run(f"p -u *(char *){base:#x}@4").table.records()
        assert row["value"] == r'"\177ELF"'
        (header,) = dump.run(f"struct -u elf64_hdr.e_machine {base:x}").table.records()
        assert header["number"] == 62
        entry = dump.run(f"struct -u elf64_hdr.e_entry {base:x}").table.records()[0]["number"]
        assert isinstance(entry, int)
        first = [(row["mnemonic"], row["operands"]) for row in dump.run(f"dis -u {entry:x} 3").table.records()]
        assert ("xor", "%ebp,%ebp") in first or ("xor", "%rbp,%rbp") in first
        assert dump.run(f"p *(char *){base:#x}").problems
        kept = dump.run("p $1").table.records()[0]
        assert kept["value"] == r'"\177ELF"'
