"""``postpanic decode``: its words, its two outputs, and what it says where something is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.cli.decode_arguments import DecodeArguments, sort_arguments
from postpanic.errors import UsageError
from tests.builders.vmlinux import Section, build_vmlinux
from tests.unit.cli.conftest import Outcome

Run = Callable[..., Outcome]
SYMBOLS = [("start", 0xFFFFFFFF81000000, 0x40), ("do_open", 0xFFFFFFFF81000040, 0x20)]
LOG = """[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000028
[    1.000000] #PF: supervisor read access in kernel mode
[    1.000000] #PF: error_code(0x0000) - not-present page
[    1.000000] Oops: 0000 [#1] PREEMPT SMP
[    1.000000] CPU: 0 PID: 1 Comm: init Tainted: G      D W          6.1.0 #1
[    1.000000] RIP: 0010:do_open+0x4/0x20
[    1.000000] Code: 90 55 48 89 e5 <48> 8b 47 28 5d c3 90 90 90 90 90 90 90 90 90 90 90 90 90 90
[    1.000000] RAX: 0000000000000000 RBX: dead000000000122 RDI: 0000000000000000
[    1.000000] Call Trace:
[    1.000000]  start+0x10/0x40
[    1.000000] ---[ end trace 0000000000000000 ]---
"""


@pytest.fixture
def vmlinux(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinux"
    code = Section(".text", bytes(0x60), vaddr=0xFFFFFFFF81000000, flags=6)
    path.write_bytes(build_vmlinux([code], SYMBOLS, has_segments=True))
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "oops.log"
    path.write_text(LOG)
    return path


def test_a_report_without_symbols(run_cli: Run, log: Path, tmp_path: Path) -> None:
    done = run_cli("decode", "-d", tmp_path, log)
    assert done.status == 0
    assert "ADDRESS IS: NULL + 0x28" in done.out
    assert "reads 0x28(%rdi) = 0x28 (NULL + 0x28), rdi = 0x0: the address of the fault" in done.out
    assert re.search(r"=>  do_open\+0x4 +48 8b 47 28 +mov +0x28\(%rdi\),%rax", done.out)
    assert "the kernel had an oops or BUG before this" in done.out
    assert "LIST_POISON2" in done.out
    assert "no symbols of kernel 6.1.0 were found" in done.err


def test_json(run_cli: Run, log: Path, vmlinux: Path) -> None:
    done = run_cli("decode", "--json", vmlinux, log)
    tables = {table["name"]: table["rows"] for table in json.loads(done.out)["tables"]}
    assert tables["reports"][0]["operand"].startswith("reads 0x28(%rdi)")
    assert tables["symbols"][0]["file"] == str(vmlinux)


def test_several_logs_are_told_apart(run_cli: Run, log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.log"
    other.write_text("nothing\n")
    done = run_cli("decode", "-d", tmp_path, other, log)
    assert done.status == 0
    assert done.out.startswith(f"{log}:\n")
    assert str(other) not in done.out


def test_no_report(run_cli: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("all is well\n")
    assert run_cli("decode", log).status == 3
    log.write_bytes(b"")
    assert run_cli("decode", log).status == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-a", "--json", "LOG"), "--annotate prints the log, --json the reports"),
        (("-k", "VMLINUX", "VMLINUX", "LOG"), "symbols of the kernel twice"),
        (("VMLINUX", "VMLINUX"), "symbols of the kernel twice"),
    ],
)
def test_wrong_usage(run_cli: Run, log: Path, vmlinux: Path, words: tuple[str, ...], message: str) -> None:
    names = {"LOG": log, "VMLINUX": vmlinux}
    done = run_cli("decode", *(names.get(word, word) for word in words))
    assert done.status == 64
    assert message in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing.log",), "no such file"),
        (("-k", "nothing", "LOG"), "no such file"),
        (("-k", "LOG", "LOG"), "a text, not"),
    ],
)
def test_files_at_fault(run_cli: Run, log: Path, words: tuple[str, ...], message: str) -> None:
    done = run_cli("decode", *(log if word == "LOG" else word for word in words))
    assert done.status == 2
    assert message in done.err
    assert done.err.count("error[") == 1


def test_words_as_of_the_kernels_script(vmlinux: Path, log: Path, tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    assert sort_arguments([vmlinux]) == DecodeArguments(kernel=vmlinux)
    assert sort_arguments([vmlinux, Path("auto")]) == DecodeArguments(kernel=vmlinux)
    assert sort_arguments([vmlinux, Path("auto"), modules]) == DecodeArguments(kernel=vmlinux, modules=(modules,))
    built = Path("/build/nowhere")
    assert sort_arguments([vmlinux, built, modules]).base == "/build/nowhere/"
    assert sort_arguments([vmlinux, modules]) == DecodeArguments(kernel=vmlinux, modules=(modules,))
    assert sort_arguments([log, vmlinux]) == DecodeArguments(logs=(log,), kernel=vmlinux)
    assert sort_arguments([Path("-")]) == DecodeArguments(logs=(Path("-"),))
    with pytest.raises(UsageError):
        sort_arguments([vmlinux, vmlinux])


def test_a_map_is_told_by_what_is_in_it(tmp_path: Path, log: Path) -> None:
    table = tmp_path / "some.txt"
    table.write_text("ffffffff81000000 T start\n")
    assert sort_arguments([table, log]) == DecodeArguments(logs=(log,), kernel=table)


def test_a_pipe_is_filtered_line_by_line(vmlinux: Path) -> None:
    """The first line is out before the second one is in."""
    command = [sys.executable, "-m", "postpanic", "decode", str(vmlinux), "auto"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b" [<ffffffff82000050>] do_open+0x10/0x20\n", b" [<ffffffff82000010>]\n", b"\x00\xff\r\n"):
            process.stdin.write(line)
            process.stdin.flush()
            out = process.stdout.readline()
            assert out.startswith(line.rstrip())
            if b"000010" in line:
                assert b"start+0x10/0x40" in out
        process.stdin.close()
        assert process.wait(60) == 0


def test_annotated_log_has_the_code_below_its_line(vmlinux: Path, log: Path) -> None:
    command = [sys.executable, "-m", "postpanic", "decode", "-a", str(vmlinux), str(log)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    place = next(number for number, line in enumerate(lines) if "Code: " in line)
    assert lines[place + 4].startswith("=> do_open+0x4")
    kept = [line for line in lines if line.startswith("[")]
    assert kept == LOG.splitlines()


def test_what_is_said_of_each_log_is_said_of_each(run_cli: Run, log: Path, vmlinux: Path, tmp_path: Path) -> None:
    """Symbols are shared by logs of one kernel; what is missing is told for every log."""
    other = tmp_path / "other.log"
    other.write_text(LOG.replace("start+0x10/0x40", "nowhere+0x10/0x40"))
    done = run_cli("decode", "--json", vmlinux, log, other, other)
    decoder = json.JSONDecoder()
    documents, place = [], 0
    while place < len(done.out.rstrip()):
        document, place = decoder.raw_decode(done.out, place)
        place += 1
        documents.append([problem["what"] for problem in document["problems"]])
    assert [["nowhere: no such symbol"] * (number > 0) for number in range(3)] == documents


def test_a_jump_to_nowhere(run_cli: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = re.sub(r"Code: .*", "Code: Unable to access opcode bytes at 0xffffffffffffffd6.", LOG)
    log.write_text(text.replace("do_open+0x4/0x20", "0x0"))
    done = run_cli("decode", "-d", tmp_path, log)
    assert "NO CODE: Unable to access opcode bytes at 0xffffffffffffffd6.; the kernel jumped to 0x0 (NULL)" in done.out


def test_many_notes_are_not_all_told(run_cli: Run, tmp_path: Path, vmlinux: Path) -> None:
    log = tmp_path / "log"
    frames = "".join(f"[    1.000000]  unknown_{number}+0x1/0x2\n" for number in range(100))
    log.write_text(LOG.replace("[    1.000000]  start+0x10/0x40\n", frames))
    done = run_cli("decode", vmlinux, log)
    assert done.err.count("no such symbol") == 16
    assert "more of that kind" in done.err
