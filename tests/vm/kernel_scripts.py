"""The scripts for gdb that the kernel's source has, with what its build would have made of them."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from postpanic.process import find_program, run
from postpanic.rehearse.cache import build_once
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.packages import Archive
from postpanic.rehearse.store import Bundle, PackageStore
from tests.vm.kernel_modules import resolve_headers

__all__ = ["fetch_scripts"]

_DIRECTORY = "scripts/gdb"
_MARKER = "<!-- end-c-headers -->\n"
_TIMEOUT_S = 600.0


def fetch_scripts(kernel: Kernel, suites: Sequence[str], cache_dir: Path) -> Path:
    """
    Return ``vmlinux-gdb.py`` of a kernel, beside which its modules are.

    Raises
    ------
    ProcessError
        If the source or the headers cannot be fetched.
    """
    series = ".".join(kernel.release.split(".")[:2])
    store = PackageStore(cache_dir, "headers")
    _, headers = store.fetch(suites, f"linux-headers-{kernel.release}", resolve_headers)

    def build(target: Path) -> None:
        _, entry = PackageStore(cache_dir, "sources").fetch(suites, f"linux-source-{series}", _resolve_source)
        # The archive is compressed and long, and its members are sorted: it is read once.
        with tarfile.open(entry / f"usr/src/linux-source-{series}.tar.xz", "r|xz") as archive:
            for member in archive:
                _, _, path = member.name.partition("/")
                if member.isfile() and path.startswith(f"{_DIRECTORY}/"):
                    content = archive.extractfile(member)
                    assert content is not None
                    place = target / path
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content.read())
        scripts = target / _DIRECTORY / "linux"
        text = _preprocess(scripts / "constants.py.in", headers / "usr/src", kernel.release)
        (scripts / "constants.py").write_text(text.partition(_MARKER)[2])
        (target / "vmlinux-gdb.py").symlink_to(f"{_DIRECTORY}/vmlinux-gdb.py")

    entry = build_once(cache_dir / "kernel-scripts", f"{kernel.release}_{kernel.version}", build)
    # It looks for its modules below the directory of its name, as a build puts it beside vmlinux.
    return entry / "vmlinux-gdb.py"


def _resolve_source(archive: Archive, name: str) -> Bundle:
    package = replace(archive.find(re.escape(name))[-1], depends=())
    return Bundle(package, (package,))


def _preprocess(source: Path, headers: Path, release: str) -> str:
    """Do what ``scripts/gdb/linux/Makefile`` does."""
    own = headers / f"linux-headers-{release}"
    shared = next(path for path in headers.iterdir() if path.name.endswith("-common"))
    include = [
        *(shared / "arch/x86/include", own / "arch/x86/include/generated", shared / "include", own / "include"),
        *(shared / "arch/x86/include/uapi", own / "arch/x86/include/generated/uapi"),
        *(shared / "include/uapi", own / "include/generated/uapi"),
    ]
    before = [shared / "include/linux" / name for name in ("compiler-version.h", "kconfig.h", "compiler_types.h")]
    words = ["-E", "-x", "c", "-P", "-nostdinc", "-D__KERNEL__", "-fshort-wchar", "-m64", "-fno-PIE", "-mcmodel=kernel"]
    words += [f"-I{path}" for path in include]
    words += [word for path in before for word in ("-include", str(path))]
    return run([find_program("gcc"), *words, source], timeout_s=_TIMEOUT_S).stdout.decode()
