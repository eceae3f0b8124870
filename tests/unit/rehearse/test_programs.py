"""Programs of another release: which packages they need, and that they run."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.capture.initramfs.libraries import find_libraries
from postpanic.errors import FactAbsentError
from postpanic.process import run
from postpanic.rehearse.packages import Archive, Package
from postpanic.rehearse.programs import LOADER, ProgramStore, resolve_libraries

PACKAGES = {
    "tool": Package("tool", "2.0-1", ("perl", "libtool", "zlib1g")),
    "libtool": Package("libtool", "2.0-1", ("libc6", "tool-common")),
    "zlib1g": Package("zlib1g", "1:1.3-1", ("libc6",)),
    "libc6": Package("libc6", "2.43-1", ("libgcc-s1",)),
    "libgcc-s1": Package("libgcc-s1", "16-1", ("gcc-16-base", "libc6")),
    "perl": Package("perl", "5.42-1", ()),
    "broken": Package("broken", "1", ("libnone", "libc6")),
}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    def find(self: Archive, pattern: str) -> list[Package]:
        names = [name.replace("\\", "") for name in pattern.split("|")]
        found = [PACKAGES[name] for name in names if name in PACKAGES]
        if not found:
            raise FactAbsentError(f"no package {pattern} in {self.suites}")
        return found

    monkeypatch.setattr(Archive, "find", find)
    monkeypatch.setattr(Archive, "update", lambda *_, **__: None)
    return Archive(tmp_path / "apt", ("any",))


def test_libraries_are_followed_and_other_packages_are_not(archive: Archive) -> None:
    bundle = resolve_libraries(archive, "tool")
    assert bundle.main == Package("tool", "2.0-1")
    assert bundle.parts[0].name == "tool"
    assert {part.name for part in bundle.parts} == {"tool", "libtool", "zlib1g", "libc6", "libgcc-s1"}
    assert bundle.entry_name == "tool_2.0-1"


def test_library_that_does_not_exist_is_named(archive: Archive) -> None:
    with pytest.raises(FactAbsentError, match="no package libnone in any, which broken needs"):
        resolve_libraries(archive, "broken")


def test_program_runs_with_the_loader_it_came_with(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Path("/bin/cat").resolve()
    libraries = [path for path in find_libraries(program) if path.name != LOADER]
    loader = next(path for path in find_libraries(program) if path.name == LOADER)
    missing: list[str] = []

    def unpack(_: object, directory: Path) -> None:
        places = {loader: "usr/lib64", program: "usr/bin", **dict.fromkeys(libraries, "usr/lib/x86_64-linux-gnu")}
        for path, place in places.items():
            if path.name not in missing:
                (directory / place).mkdir(parents=True, exist_ok=True)
                (directory / place / path.name).write_bytes(path.read_bytes())
                (directory / place / path.name).chmod(0o755)

    def fetch(_: Archive, package: Package, directory: Path) -> Path:
        (directory / f"{package.name}.deb").touch()
        return directory / f"{package.name}.deb"

    monkeypatch.setattr("postpanic.rehearse.store.unpack", unpack)
    monkeypatch.setattr(Archive, "fetch", fetch)
    found = ProgramStore(tmp_path / "cache").fetch("tool", f"usr/bin/{program.name}", archive.suites)
    assert found.version == "2.0-1"
    assert str(tmp_path / "cache") in found.command[0]
    assert run([*found.command, "-"], stdin=b"text").stdout == b"text"

    missing.append(program.name)
    with pytest.raises(FactAbsentError, match=f"no usr/bin/{program.name} in the package"):
        ProgramStore(tmp_path / "other").fetch("tool", f"usr/bin/{program.name}", archive.suites)
    assert not list((tmp_path / "other" / "unpacked").glob("tool*"))
