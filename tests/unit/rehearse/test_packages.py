"""Package sources, stanzas and versions; which packages make a kernel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from postpanic.errors import FactAbsentError, ProcessError, UsageError
from postpanic.process import find_program, run
from postpanic.rehearse.kernels import KernelChoice, KernelStore
from postpanic.rehearse.packages import (
    Archive,
    HostSource,
    Package,
    compare_versions,
    find_keyring,
    parse_index_targets,
    parse_stanzas,
    unpack_some,
    write_sources,
)
from postpanic.rehearse.store import resolve_packages

MIRROR = "https://mirror.example/debian/"
SECURITY = "https://mirror.example/debian-security/"
TARGETS = f"""\
MetaKey: main/binary-amd64/Packages
Created-By: Packages
Release: bookworm
Repo-URI: {MIRROR}
Sourcesentry: {{entry}}

MetaKey: main/i18n/Translation-en
Created-By: Translations
Release: bookworm
Repo-URI: {MIRROR}

MetaKey: main/binary-amd64/Packages
Created-By: Packages
Release: bookworm-security
Repo-URI: {SECURITY}
"""

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg is not installed")


def test_other_suites_go_to_the_mirrors_of_the_host() -> None:
    host = parse_index_targets(TARGETS.replace("{entry}", ""))
    assert host == [HostSource(MIRROR, "bookworm"), HostSource(SECURITY, "bookworm-security")]
    assert write_sources(host, ["trixie", "trixie-security", "bookworm-backports"]) == (
        f"deb {MIRROR} trixie main\ndeb {SECURITY} trixie-security main\ndeb {MIRROR} bookworm-backports main\n"
    )


def test_security_suite_is_left_out_where_the_host_has_none() -> None:
    host = [HostSource(MIRROR, "sid")]
    assert write_sources(host, ["trixie", "trixie-security"]) == f"deb {MIRROR} trixie main\n"


def test_updates_suite_gives_no_mirror_for_a_release() -> None:
    with pytest.raises(FactAbsentError, match="name no release"):
        write_sources([HostSource(MIRROR, "bookworm-updates")], ["trixie"])


@pytest.mark.parametrize("suite", ["", "trixie main\ndeb http://elsewhere", "[trusted=yes]", "Trixie"])
def test_suite_that_is_no_name_is_refused(suite: str) -> None:
    with pytest.raises(UsageError, match="not the name of a suite"):
        write_sources([HostSource(MIRROR, "bookworm")], [suite])


def test_keyring_comes_from_the_stanza_that_the_target_names(tmp_path: Path) -> None:
    sources = tmp_path / "debian.sources"
    sources.write_text("Types: deb\nSuites: a\nSigned-By: /usr/share/keyrings/a.gpg\n\n\nTypes: deb\nSuites: b\n")
    assert find_keyring(f"{sources}:1") == "/usr/share/keyrings/a.gpg"
    assert find_keyring(f"{sources}:2") == ""
    assert find_keyring(f"{sources}:9") == ""
    assert find_keyring("") == ""
    host = parse_index_targets(TARGETS.replace("{entry}", f"{sources}:1"))
    assert write_sources(host, ["trixie"]) == f"deb [signed-by=/usr/share/keyrings/a.gpg] {MIRROR} trixie main\n"


def test_keyring_of_a_one_line_source_is_found(tmp_path: Path) -> None:
    sources = tmp_path / "sources.list"
    sources.write_text("# comment\ndeb [arch=amd64 signed-by=/k/one.gpg] http://m.example/ sid main\n")
    assert find_keyring(f"{sources}:2") == "/k/one.gpg"


def test_continuation_lines_do_not_become_fields() -> None:
    text = "Package: a\nDescription: first\n second: line\n\n\nPackage: b\n"
    assert parse_stanzas(text) == [{"Package": "a", "Description": "first"}, {"Package": "b"}]


@needs_dpkg
def test_versions_are_ordered_as_dpkg_orders_them() -> None:
    assert compare_versions("6.1.99-1", "6.1.192-2") < 0
    assert compare_versions("7.2~rc1-1", "7.2-1") < 0
    assert compare_versions("1:1.0", "2.0") > 0
    assert compare_versions("6.12.1-1", "6.12.1-1") == 0


def make_package(directory: Path, files: dict[str, bytes]) -> Path:
    root = directory / "root"
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        "Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: thing\n"
    )
    package = directory / "thing.deb"
    run([find_program("dpkg-deb"), "--build", root, package])
    return package


@needs_dpkg
def test_only_wanted_files_are_unpacked(tmp_path: Path) -> None:
    package = make_package(tmp_path, {"usr/lib/debug/vmlinux-1": b"symbols", "usr/lib/debug/other": b"x" * 4096})
    target = tmp_path / "target"
    target.mkdir()
    unpacked = unpack_some(package, target, lambda path: path.endswith("vmlinux-1"))
    assert [path.read_bytes() for path in unpacked] == [b"symbols"]
    assert not (target / "usr/lib/debug/other").exists()


@needs_dpkg
def test_damaged_package_is_one_error(tmp_path: Path) -> None:
    package = tmp_path / "broken.deb"
    package.write_bytes(b"!<arch>\nnonsense")
    with pytest.raises(ProcessError, match="dpkg-deb"):
        unpack_some(package, tmp_path, lambda _: True)


def make_archive(tmp_path: Path, stanzas: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make apt itself read package lists of ours, from a directory instead of a mirror."""
    repository = tmp_path / "repository"
    (repository / "pool").mkdir(parents=True)
    index = "\n".join("".join(f"{name}: {value}\n" for name, value in stanza.items()) for stanza in stanzas)
    (repository / "Packages").write_text(index)
    monkeypatch.setattr(
        "postpanic.rehearse.packages.write_sources", lambda *_: f"deb [trusted=yes] file:{repository} ./\n"
    )
    (tmp_path / "files").mkdir()


def describe(name: str, version: str, depends: str = "") -> dict[str, str]:
    fields = {"Package": name, "Version": version, "Architecture": "all", "Maintainer": "n <n@example.org>"}
    if depends:
        fields["Depends"] = depends
    return {**fields, "Filename": f"./pool/{name}.deb", "Size": "1", "SHA256": "0" * 64, "Description": "x"}


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is not installed")
def test_newest_version_wins_and_not_the_longest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_archive(
        tmp_path,
        [
            describe("linux-image-6.12.9+deb13-cloud-amd64", "6.12.9-1"),
            describe("linux-image-6.12.117+deb13-cloud-amd64", "6.12.117-1"),
            describe("linux-image-6.12.200+deb13-cloud-amd64-dbg", "6.12.200-1"),
            describe("linux-image-6.12.201+deb13-rt-amd64", "6.12.201-1"),
        ],
        monkeypatch,
    )
    archive = Archive(tmp_path / "apt", ["any"])
    archive.update()
    found = archive.find(r"linux-image-6\.12\.[^-]*-cloud-amd64")
    assert [package.version for package in found] == ["6.12.9-1", "6.12.117-1"]
    with pytest.raises(FactAbsentError, match="no package linux-image-9"):
        archive.find(r"linux-image-9.*")


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is not installed")
def test_what_is_virtual_is_left_out_of_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_archive(
        tmp_path,
        [
            describe("a-thing", "1", "lib-a-thing | other"),
            describe("lib-a-thing", "1", "some-virtual (>= 1)"),
        ],
        monkeypatch,
    )
    archive = Archive(tmp_path / "apt", ["any"])
    archive.update()
    bundle = resolve_packages(archive, "a-thing")
    assert [part.name for part in bundle.parts] == ["a-thing", "lib-a-thing"]
    with pytest.raises(FactAbsentError, match=r"^no package some-virtual in any$"):
        resolve_packages(archive, "a-thing some-virtual")


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is not installed")
def test_kernel_in_the_cache_needs_no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "linux-image-6.1.0-1-cloud-amd64"
    make_archive(
        tmp_path,
        [describe("linux-image-cloud-amd64", "6.1.5-1", f"{name} (= 6.1.5-1)"), describe(name, "6.1.5-1")],
        monkeypatch,
    )

    def fetch(_: Archive, package: Package, directory: Path) -> Path:
        release = package.name.removeprefix("linux-image-")
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        files = {f"boot/vmlinuz-{release}": b"kernel", f"lib/modules/{release}/modules.order": b""}
        return make_package(work, files).rename(directory / "fetched.deb")

    monkeypatch.setattr(Archive, "fetch", fetch)
    store = KernelStore(tmp_path / "cache")
    choice = KernelChoice(("any",), "linux-image-cloud-amd64")
    kernel = store.fetch(choice)
    assert (kernel.package, kernel.version, kernel.release) == (name, "6.1.5-1", "6.1.0-1-cloud-amd64")
    assert kernel.image.read_bytes() == b"kernel"

    def fail(*_: object, **__: object) -> None:
        raise ProcessError("apt-get update: no network")

    monkeypatch.setattr(Archive, "update", fail)
    assert store.fetch(choice) == kernel
    with pytest.raises(ProcessError, match="no network"):
        store.fetch(KernelChoice(("any",), "linux-image-other"))
