"""Real kernels' debug information as we write it, judged by readelf, gdb, drgn and the kernels' own DWARF."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import drgn
import pytest

from postpanic.dumps.notes import decode_notes
from postpanic.dumps.open import open_dump
from postpanic.kernel.btf import Btf, Kind
from postpanic.kernel.btf.find import read_kernel_btf
from postpanic.kernel.debuginfo.build import SynthesizedDebuginfo, build
from postpanic.kernel.debuginfo.cache import DebuginfoCache
from postpanic.kernel.kallsyms import read_kallsyms
from postpanic.kernel.memory import open_kernel_memory
from postpanic.kernel.orc import read_orc, unwind
from postpanic.process import run
from tests.vm.lab import Crash

pytestmark = pytest.mark.compat

KERNELS = ("6.1", "6.12")
SAMPLE = 1500
NT_PRSTATUS = 1

Crasher = Callable[..., Crash]
Installed = Callable[[str], str]


@pytest.fixture(name="crash", scope="module", params=KERNELS)
def _crash(request: pytest.FixtureRequest, crashed: Crasher) -> Crash:
    return crashed(request.param)


@pytest.fixture(name="built", scope="module")
def _built(crash: Crash, tmp_path_factory: pytest.TempPathFactory) -> SynthesizedDebuginfo:
    with open_dump(crash.raw) as dump:
        cache = DebuginfoCache(tmp_path_factory.mktemp("built") / "cache")
        return build(open_kernel_memory(dump), cache=cache, include_text=True)


@pytest.fixture(name="prog", scope="module")
def _prog(crash: Crash, built: SynthesizedDebuginfo) -> drgn.Program:
    return load(crash.raw, built.vmlinux, dict(built.modules))


@pytest.fixture(name="real", scope="module")
def _real(crash: Crash) -> drgn.Program:
    if crash.vmlinux is None:
        pytest.skip("the kernel's own debug information cannot be had")
    return load(crash.raw, crash.vmlinux, {})


@pytest.fixture(name="btf", scope="module")
def _btf(crash: Crash) -> Btf:
    with open_dump(crash.raw) as dump:
        memory = open_kernel_memory(dump)
        return read_kernel_btf(memory, read_kallsyms(memory))


def load(dump: Path, vmlinux: Path, modules: dict[str, Path]) -> drgn.Program:
    prog = drgn.Program()
    prog.set_core_dump(dump)
    prog.main_module("kernel", create=True).try_file(vmlinux)
    if modules:
        for module, _ in prog.loaded_modules():
            if module.name in modules:
                module.try_file(modules[module.name])
    return prog


def sample(btf: Btf, *kinds: Kind) -> list[str]:
    """Names that one type of these kinds has, some of them, always the same."""
    names = Counter(name.decode() for kind in kinds for name in btf.names_at(btf.positions(kind)))
    alone = sorted(name for name, count in names.items() if name and count == 1)
    return random.Random(1).sample(alone, min(SAMPLE, len(alone)))


def test_everything_is_made_and_nothing_is_missing(built: SynthesizedDebuginfo) -> None:
    assert built.report.notes == []
    assert len(built.modules) > 10
    counts = built.report.vmlinux
    assert counts["prototypes"] > 0.85 * counts["functions"] - 5000
    assert counts["variables_from_table"] > 15_000


def test_second_build_takes_everything_from_the_cache(
    crash: Crash, built: SynthesizedDebuginfo, tmp_path: Path
) -> None:
    cache = DebuginfoCache(tmp_path / "cache")
    results = []
    for _ in range(2):
        with open_dump(crash.raw) as dump:
            results.append(build(open_kernel_memory(dump), cache=cache))
    first, second = results
    assert (first.from_cache, second.from_cache) == (False, True)
    assert (first.vmlinux, dict(first.modules)) == (second.vmlinux, dict(second.modules))
    assert second.report.vmlinux == built.report.vmlinux


def test_readelf_reads_every_file_without_a_warning(built: SynthesizedDebuginfo, installed: Installed) -> None:
    readelf = installed("readelf")
    for path in (built.vmlinux, *built.modules.values()):
        finished = run([readelf, "--wide", "-aw", path], timeout_s=300)
        assert finished.stderr == b"", path.name
        assert b"DW_TAG_subprogram" in finished.stdout, path.name


def test_gdb_answers_of_types_symbols_and_code(built: SynthesizedDebuginfo, installed: Installed) -> None:
    questions = [
        "ptype struct list_head",
        "info symbol schedule",
        "x/5i schedule",
        "whatis init_task",
        "p linux_banner",
    ]
    words = [word for question in questions for word in ("-ex", question)]
    finished = run([installed("gdb"), "-nx", "-batch", *words, built.vmlinux], timeout_s=300)
    answer = finished.stdout.decode()
    assert finished.stderr == b""
    assert "struct list_head *next;" in answer
    assert "schedule in section .text" in answer
    assert len(re.findall(r"<schedule(?:\+\d+)?>:", answer)) == 5
    assert "type = struct task_struct" in answer
    assert "Linux version" in answer


def describe(kind: drgn.Type) -> list[tuple[str | None, int, int | None, str]]:
    members = kind.members or ()
    return [(member.name, member.bit_offset, member.bit_field_size, member.type.type_name()) for member in members]


def describe_enumeration(kind: drgn.Type) -> tuple[str, list[tuple[str, int]]]:
    underlying = kind.type.type_name() if kind.type else ""
    return underlying, [(item.name, item.value) for item in kind.enumerators or ()]


def test_structures_are_laid_out_as_in_the_kernels_own_dwarf(prog: drgn.Program, real: drgn.Program, btf: Btf) -> None:
    """BTF does not tell [0] from [], and older pahole wrote several dimensions as one."""
    compared = 0
    for name in sample(btf, Kind.STRUCT):
        try:
            theirs = real.type(f"struct {name}")
        except LookupError:
            continue
        ours = prog.type(f"struct {name}")
        assert ours.size == theirs.size, name
        assert len(describe(ours)) == len(describe(theirs)), name
        for mine, other in zip(describe(ours), describe(theirs), strict=True):
            flattened = "][" in other[3] or other[3].endswith("[0]")
            assert mine[:3] == other[:3], name
            assert mine[3] == other[3] or flattened, name
        compared += 1
    assert compared > 0.95 * SAMPLE


def test_enumerations_have_the_values_of_the_kernels_own_dwarf(
    prog: drgn.Program, real: drgn.Program, btf: Btf
) -> None:
    compared = 0
    for name in sample(btf, Kind.ENUM):
        try:
            theirs = real.type(f"enum {name}")
        except LookupError:
            continue
        ours = prog.type(f"enum {name}")
        assert describe_enumeration(ours) == describe_enumeration(theirs), name
        compared += 1
    assert compared > 500


def test_functions_have_the_prototypes_of_the_kernels_own_dwarf(
    prog: drgn.Program, real: drgn.Program, btf: Btf
) -> None:
    verdicts: Counter[str] = Counter()
    for name in sample(btf, Kind.FUNC):
        try:
            ours, theirs = prog[name].type_.type_name(), real[name].type_.type_name()
        except (LookupError, drgn.BadDataError):
            continue
        if ours == theirs:
            verdicts["same"] += 1
        elif ours == "void (void)":
            verdicts["not given"] += 1
        else:
            # Aliases of one function differ in the names of parameters only.
            names = re.compile(r"\b\w+(?=[,)])")
            verdicts["same"] += names.sub("", ours) == names.sub("", theirs)
            verdicts["other"] += names.sub("", ours) != names.sub("", theirs)
    assert verdicts["other"] == 0
    assert verdicts["not given"] < 0.03 * verdicts["same"]


def test_type_names_of_modules_complete_from_vmlinux(prog: drgn.Program) -> None:
    info = prog.type("struct virtnet_info")
    device = info.member("vdev").type.type
    assert device.size == prog.type("struct virtio_device").size
    assert prog["virtnet_probe"].type_.type_name() == "int (struct virtio_device *vdev)"
    assert prog.symbol(prog["virtnet_probe"].address_ or 0).name == "virtnet_probe"


def test_own_unwinder_names_the_frames_that_drgn_names(crash: Crash, prog: drgn.Program) -> None:
    with open_dump(crash.raw) as dump:
        memory = open_kernel_memory(dump)
        symbols = read_kallsyms(memory)
        table = read_orc(memory, symbols)
        notes = [note for note in decode_notes(dump.description.notes, byte_order="little") if note.type == NT_PRSTATUS]
        traces = []
        for note in notes:
            words = [int.from_bytes(note.desc[112 + 8 * index : 120 + 8 * index], "little") for index in range(27)]
            traces.append(unwind(memory, table, symbols, pc=words[16], sp=words[19], fp=words[4]))
    theirs = [frame.pc for frame in prog.crashed_thread().stack_trace() if not frame.is_inline and frame.pc >> 63]
    assert theirs in [[frame.pc for frame in trace] for trace in traces]
    assert len(theirs) > 6


def test_debians_crash_starts_on_it(crash: Crash, built: SynthesizedDebuginfo, installed: Installed) -> None:
    if crash.release.startswith("6.12"):
        pytest.skip("Debian's crash is older than this kernel, and starts on no vmlinux of it")
    finished = run(
        [installed("crash"), "-s", built.vmlinux, crash.filtered], stdin=b"bt\nsym schedule\nquit\n", timeout_s=300
    )
    answer = finished.stdout.decode()
    assert re.search(r"#\d+ \[\w+\] panic at", answer)
    assert re.search(r"#\d+ \[\w+\] entry_SYSCALL_64", answer)
    assert "(T) schedule" in answer
