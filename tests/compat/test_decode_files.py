"""``postpanic decode`` with the symbols of a small kernel that gcc builds: names, sizes, modules, build IDs."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import lzma
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest
import zstandard

from postpanic.analysis.decode.answer import SHAPES
from postpanic.cli.app import main
from postpanic.findings.schema import answer_schema
from postpanic.process import find_program

pytestmark = pytest.mark.compat
RELEASE = "6.99.0-test"
ONE = """
int sink(int);
static __attribute__((noinline)) int show(int x) { return sink(x) + 1; }
static __attribute__((noinline)) int twin(int x) { return sink(x) + 2; }
static inline __attribute__((always_inline)) int inner(int x) { return sink(x + 3); }
static inline __attribute__((always_inline)) int middle(int x) { return inner(x) * 5; }
int outer(int x) { return middle(x) + show(x) + twin(x); }
const char linux_banner[] = "Linux version 6.99.0-test (x@y) (gcc) #1";
"""
TWO = """
int sink(int);
static __attribute__((noinline)) int show(int x) { return sink(x) + sink(x + 1) + sink(x + 2) + 1; }
static __attribute__((noinline)) int twin(int x) { return sink(x) + 4; }
int other(int x) { return show(x) + twin(x); }
int _stext(int x) { return other(x); }
"""
SINK = 'int sink(int x) { __asm__ volatile("" ::: "memory"); return x; }\n'
MODULE = """
int sink(int);
static __attribute__((noinline)) int llc_show(int x) { return sink(x) + 1; }
__attribute__((section(".init.text"))) int init_module(int x) { return sink(x) + 7; }
int llc_outer(int x) { return llc_show(x) + 1; }
"""
FLAGS = (
    "-g",
    "-O2",
    "-ffreestanding",
    "-fno-pic",
    "-mcmodel=kernel",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
)


@dataclass
class Built:
    """A kernel and a module, their symbols and build IDs."""

    vmlinux: Path
    module: Path
    symbols: list[tuple[str, int, int]]
    module_symbols: list[tuple[str, int, int]]
    build_id: str
    module_build_id: str

    def size(self, name: str, number: int = 0) -> int:
        return [size for one, _, size in self.symbols if one == name][number]


def _nm(path: Path) -> list[tuple[str, int, int]]:
    command: list[str | Path] = [find_program("nm"), "-nS", path]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in printed.splitlines()]
    return [(row[3], int(row[0], 16), int(row[1], 16)) for row in rows if len(row) == 4]


def _build_id(path: Path) -> str:
    command: list[str | Path] = [find_program("readelf"), "-n", path]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"Build ID: ([0-9a-f]{40})", printed)
    assert match is not None
    return match[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    directory = tmp_path_factory.mktemp("kernel")
    objects = []
    for name, text in (("one.c", ONE), ("two.c", TWO), ("sink.c", SINK), ("llc.c", MODULE)):
        (directory / name).write_text(text)
        compiled = directory / name.replace(".c", ".o")
        subprocess.run([find_program("gcc"), *FLAGS, "-c", name, "-o", compiled], cwd=directory, check=True)
        objects.append(compiled)
    vmlinux, module = directory / "vmlinux", directory / "llc.ko"
    link: list[str | Path] = [
        find_program("ld"),
        "--build-id=sha1",
        "-Ttext=0xffffffff81000000",
        "-e",
        "_stext",
        "-o",
        vmlinux,
    ]
    subprocess.run([*link, *objects[:3]], check=True)
    subprocess.run([find_program("ld"), "-r", "--build-id=sha1", "-o", module, objects[3]], check=True)
    return Built(vmlinux, module, _nm(vmlinux), _nm(module), _build_id(vmlinux), _build_id(module))


@dataclass
class Printed:
    status: int
    out: str
    err: str


@pytest.fixture
def decode(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Printed]:
    """Return a function that decodes lines: as a filter, or with ``as_log`` as a log."""

    def run(*words: object, lines: str, as_log: bool = False) -> Printed:
        log = tmp_path / "log"
        log.write_bytes(lines.encode())
        arguments = [str(word) for word in words]
        with log.open("rb") as file:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
            status = main(["decode", *arguments, *([str(log)] if as_log else [])])
        captured = capsysbinary.readouterr()
        return Printed(status, captured.out.decode(), captured.err.decode())

    return run


def frame(name: str, offset: int, size: int, more: str = "") -> str:
    return f" {name}+{offset:#x}/{size:#x}{more}\n"


@pytest.mark.parametrize(("number", "file"), [(0, "one.c:3"), (1, "two.c:3")])
def test_the_size_tells_functions_of_one_name_apart(
    built: Built, decode: Callable[..., Printed], number: int, file: str
) -> None:
    size = built.size("show", number)
    assert file in decode(built.vmlinux, lines=frame("show", 9, size)).out


def test_all_that_fit_are_shown(built: Built, decode: Callable[..., Printed]) -> None:
    assert built.size("twin", 0) == built.size("twin", 1)
    printed = decode(built.vmlinux, lines=frame("twin", 9, built.size("twin")))
    assert printed.out.strip().endswith(")")
    assert "one.c:4 | " in printed.out
    assert "two.c:4" in printed.out


def test_no_line_is_better_than_a_wrong_one(built: Built, decode: Callable[..., Printed]) -> None:
    printed = decode(built.vmlinux, lines=frame("show", 9, 0x999))
    assert printed.out == frame("show", 9, 0x999)
    assert "show: 0x999 bytes in the log" in printed.err


def test_inlined_callers(built: Built, decode: Callable[..., Printed]) -> None:
    size = built.size("outer")
    found = {}
    for offset in range(1, size):
        printed = decode(built.vmlinux, lines=f"RIP: 0010:outer+{offset:#x}/{size:#x}\n").out
        found[offset] = re.findall(r"(\w+\.c:\d+)", printed)
    assert ["one.c:5", "one.c:6", "one.c:7"] in found.values()


def test_a_return_address_is_looked_up_in_the_call(built: Built, decode: Callable[..., Printed]) -> None:
    """Behind the call is another line: the address of the call is that of the line that calls."""
    name, vaddr, size = next(one for one in built.symbols if one[0] == "other")
    command: list[str | Path] = [find_program("objdump"), "-d", f"--disassemble={name}", built.vmlinux]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    starts = [int(match, 16) for match in re.findall(r"^([0-9a-f]{16}):", printed, re.MULTILINE)]
    calls = [
        start
        for start, line in zip(starts, printed.split("<other>:\n")[1].splitlines(), strict=False)
        if "call" in line
    ]
    behind = starts[starts.index(calls[0]) + 1] - vaddr
    addresses = [f"{vaddr + behind - 1:#x}", f"{vaddr + behind:#x}"]
    asked: list[str | Path] = [find_program("addr2line"), "-e", built.vmlinux, *addresses]
    call, after = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[:2]
    assert call.rpartition("/")[2] in decode(built.vmlinux, lines=frame(name, behind, size)).out
    exact = decode(built.vmlinux, lines=f"RIP: 0010:{name}+{behind:#x}/{size:#x}\n").out
    assert after.rpartition("/")[2].partition(" ")[0] in exact


@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".zst"])
def test_modules_of_a_tree(built: Built, decode: Callable[..., Printed], tmp_path: Path, ending: str) -> None:
    pack: dict[str, Callable[[bytes], bytes]] = {
        "": bytes,
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }
    tree = tmp_path / "modules" / "kernel" / "net"
    tree.mkdir(parents=True)
    (tree / f"llc.ko{ending}").write_bytes(pack[ending](built.module.read_bytes()))
    size = next(size for name, _, size in built.module_symbols if name == "llc_show")
    init = next(size for name, _, size in built.module_symbols if name == "init_module")
    lines = frame("llc_show", 9, size, " [llc]") + frame("init_module", 9, init, " [llc]")
    printed = decode(built.vmlinux, "auto", tmp_path / "modules", lines=lines).out
    assert "[llc] (" in printed
    assert "llc.c:3)" in printed
    assert "llc.c:4)" in printed


def test_a_module_of_another_build_is_not_used(built: Built, decode: Callable[..., Printed]) -> None:
    size = next(size for name, _, size in built.module_symbols if name == "llc_show")
    other = "f" * 40
    good = decode(built.vmlinux, built.module, lines=frame("llc_show", 9, size, f" [llc {built.module_build_id}]"))
    assert "llc.c:3" in good.out
    bad = decode(built.vmlinux, built.module, lines=frame("llc_show", 9, size, f" [llc {other}]"))
    assert "llc.c" not in bad.out
    assert f"its build ID is {built.module_build_id}, the log has {other}" in bad.err


def log(built: Built, build_id: str = "", offset: str = "") -> str:
    return (
        "[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000008\n"
        "[    1.000000] Oops: 0002 [#1] SMP\n"
        f"[    1.000000] CPU: 0 PID: 1 Comm: init Tainted: G        W  OE      {RELEASE} #1 {build_id}\n"
        f"[    1.000000] RIP: 0010:outer+{0x9:#x}/{built.size('outer'):#x}\n"
        "[    1.000000] Code: 55 48 89 fb <48> 89 43 08 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90\n"
        "[    1.000000] RAX: dead000000000100 RBX: 0000000000000000 RCX: fffffffffffffff4\n"
        "[    1.000000] Call Trace:\n"
        f"[    1.000000] {frame('other', 9, built.size('other'))}"
        "[    1.000000]  0xffffffff8f000020\n"
        f"[    1.000000] {frame('_stext', 9, built.size('_stext'))}"
        f"[    1.000000] ---[ end trace 0000000000000000 ]---\n{offset}"
    )


def test_another_build_of_the_kernel_is_said_and_not_used(built: Built, decode: Callable[..., Printed]) -> None:
    other = "e" * 40
    lines = log(built, other)
    refused = decode(built.vmlinux, lines=lines, as_log=True)
    assert refused.status == 0
    assert "two.c" not in refused.out
    assert f"its build ID is {built.build_id}, the log has {other}: not used" in refused.err
    forced = decode("--force", built.vmlinux, lines=lines, as_log=True)
    assert "two.c:5" in forced.out
    assert "used because of --force" in forced.err
    assert "build ID" not in decode(built.vmlinux, lines=log(built, built.build_id), as_log=True).err


def test_another_release_is_said(built: Built, decode: Callable[..., Printed]) -> None:
    printed = decode(built.vmlinux, lines=log(built).replace(RELEASE, "6.98.0"), as_log=True)
    assert f"is of release {RELEASE}, the log of 6.98.0" in printed.err


@pytest.mark.parametrize("place", [".build-id", "boot", "lib/modules"])
def test_debug_directories(built: Built, decode: Callable[..., Printed], tmp_path: Path, place: str) -> None:
    path = {
        ".build-id": tmp_path / ".build-id" / built.build_id[:2] / f"{built.build_id[2:]}.debug",
        "boot": tmp_path / "boot" / f"vmlinux-{RELEASE}",
        "lib/modules": tmp_path / "lib/modules" / RELEASE / "vmlinux",
    }[place]
    path.parent.mkdir(parents=True)
    shutil.copy(built.vmlinux, path)
    printed = decode("-d", tmp_path, lines=log(built, built.build_id), as_log=True)
    assert "two.c:5" in printed.out
    assert str(path) in printed.out


def test_a_server_of_debug_information(
    built: Built, decode: Callable[..., Printed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            found = {built.build_id: built.vmlinux, built.module_build_id: built.module}.get(self.path.split("/")[2])
            if found is None or not self.path.endswith("/debuginfo"):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(found.stat().st_size))
            self.end_headers()
            self.wfile.write(found.read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("DEBUGINFOD_URLS", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path / "cache"))
        size = next(size for name, _, size in built.module_symbols if name == "llc_show")
        lines = log(built, built.build_id) + frame("llc_show", 9, size, f" [llc {built.module_build_id}]")
        without = decode("-d", tmp_path, "-a", lines=lines, as_log=True)
        assert not asked
        assert ".c:" not in without.out
        printed = decode("-d", tmp_path, "-a", "--debuginfod", lines=lines, as_log=True)
        server.shutdown()
    assert "two.c:5" in printed.out
    assert "llc.c:3" in printed.out
    assert asked


def test_where_nothing_is_found(built: Built, decode: Callable[..., Printed], tmp_path: Path) -> None:
    printed = decode("-d", tmp_path, lines=log(built), as_log=True)
    assert printed.status == 0
    assert f"no symbols of kernel {RELEASE} were found" in printed.err
    assert "writes to 0x8(%rbx) = 0x8 (NULL + 0x8), rbx = 0x0: the address of the fault" in printed.out
    assert "LIST_POISON1" in printed.out
    assert "write in kernel mode, page not present" in printed.out
    assert "error number -12 (ENOMEM" in printed.out


def test_bare_addresses(built: Built, decode: Callable[..., Printed]) -> None:
    vaddr = next(vaddr for name, vaddr, _ in built.symbols if name == "other")
    offset = 0xFFFFFFFF8F000020 - vaddr - 9
    line = f"[    1.100000] Kernel Offset: {offset:#x} from 0xffffffff81000000 (relocation range: 0x0-0x1)\n"
    printed = decode("-a", built.vmlinux, lines=log(built, offset=line), as_log=True).out
    assert re.search(r"0xffffffff8f000020 other\+0x9/0x[0-9a-f]+ \(.*two\.c:5", printed)
    unknown = decode("-a", built.vmlinux, lines=log(built), as_log=True)
    assert "0xffffffff8f000020\n" in unknown.out


def test_bare_addresses_by_one_beside_its_symbol(built: Built, decode: Callable[..., Printed]) -> None:
    places = {name: vaddr for name, vaddr, _ in built.symbols}
    slide = 0x12000000
    lines = (
        f" [<{places['other'] + slide + 9:016x}>] other+0x9/{built.size('other'):#x}\n"
        f" [<{places['_stext'] + slide + 9:016x}>]\n"
    )
    assert re.search(r">\] _stext\+0x9/0x[0-9a-f]+ \(.*two\.c:6\)\n", decode(built.vmlinux, lines=lines).out)


@pytest.mark.parametrize("kind", ["System.map", "kallsyms"])
def test_maps(built: Built, decode: Callable[..., Printed], tmp_path: Path, kind: str) -> None:
    """Without lines, sizes are checked all the same and bare addresses are named."""
    table = tmp_path / kind
    names = "".join(f"{vaddr:016x} T {name}\n" for name, vaddr, _ in built.symbols)
    table.write_text(names + "ffffffffc0000010 t llc_show\t[llc]\n" * (kind == "kallsyms"))
    vaddr = next(vaddr for name, vaddr, _ in built.symbols if name == "other")
    offset = f"[    1.100000] Kernel Offset: {0xFFFFFFFF8F000020 - vaddr - 9:#x} from 0xffffffff81000000\n"
    assert (
        " other+0x9/" in decode("-a", table, lines=log(built, offset=offset), as_log=True).out.partition("8f000020")[2]
    )


def test_addresses_that_were_hidden(decode: Callable[..., Printed], tmp_path: Path) -> None:
    table = tmp_path / "kallsyms"
    table.write_text("0000000000000000 T _stext\n0000000000000000 t other\n")
    printed = decode(table, lines=" other+0x1/0x2\n")
    assert printed.status == 2
    assert "all its addresses are zero" in printed.err


def test_a_stripped_kernel(built: Built, decode: Callable[..., Printed], tmp_path: Path) -> None:
    stripped = tmp_path / "vmlinux"
    subprocess.run([find_program("objcopy"), "--strip-all", built.vmlinux, stripped], check=True)
    printed = decode(stripped, lines=" other+0x1/0x2\n")
    assert printed.status == 2
    assert "it has no symbols" in printed.err
    subprocess.run([find_program("objcopy"), "--strip-debug", built.vmlinux, stripped], check=True)
    assert decode(stripped, lines=frame("other", 9, built.size("other"))).out == frame("other", 9, built.size("other"))


def test_json_is_as_its_schema_says(built: Built, decode: Callable[..., Printed]) -> None:
    printed = decode("--json", built.vmlinux, lines=log(built), as_log=True)
    document = json.loads(printed.out)
    jsonschema.validate(document, answer_schema("decode", SHAPES))
    row = document["tables"][0]["rows"][0]
    assert row["operand"].endswith("the address of the fault")
    assert [one["place"] for one in row["instructions"] if one["mark"]] == ["outer+0x9"]
    assert {one["name"] for one in row["meanings"]} >= {"error code", "taint W", "taint O", "taint E", "RAX", "RCX"}
    assert any(one["is_inline"] for one in row["traces"][0]["frames"])


def test_the_filter_leaves_other_lines_as_they_are(built: Built, decode: Callable[..., Printed]) -> None:
    located = frame("other", 9, built.size("other")).rstrip()
    lines = f"\x1b[31mno\x1b[0m\r\n<4>[ 1.5] x\ttab \n{located}\r\nlast, without an end"
    printed = decode(built.vmlinux, lines=lines).out
    assert re.sub(r" \([^()]*two\.c:\d+[^()]*\)", "", printed) == lines
    assert printed != lines
