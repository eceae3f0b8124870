"""``postpanic verify``: whether a dump is as it was written, whole, and of use to a debugger."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from postpanic.cli.verb import Verb
from postpanic.errors import AbsentError, CorruptError, FileFaultError
from postpanic.units import format_size

if TYPE_CHECKING:
    from postpanic.cli.progress import PageProgress
    from postpanic.dumps.memory import DumpDescription
    from postpanic.pages.checks import SelfTest
    from postpanic.pages.manifest import Manifest
    from postpanic.pages.verification import ExpectedFile, FileCheck, StructureCheck

__all__ = ["command"]

KEY_WIDTH = 15


@click.command(cls=Verb, name="verify")
@click.argument("dump", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DUMP...")
@click.option(
    "--manifest",
    "manifest_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take this manifest instead of DUMP.manifest.json.",
)
@click.option(
    "--deep", is_flag=True, help="Decompress every page, and look at all tasks and all of the kernel's tables."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(dump: tuple[Path, ...], manifest_file: Path | None, deep: bool, as_json: bool) -> int:
    """
    Say whether a dump is good.

    Three things are checked. Where there is a manifest (DUMP.manifest.json,
    which "postpanic filter" writes), sizes and SHA-256 of each 64 MiB: is the
    file as it was written? Then the file's own structure: is it complete, does
    it hold every page that it says it holds? And the self-test: can a debugger
    work with it, are the kernel's text and data, page tables, the log, the
    crashing task with its stack and the other tasks, symbols and types there?

        postpanic verify dump.kdump
        postpanic verify --deep dump.kdump
        postpanic verify --json dump.kdump | jq .faults

    Several files are the parts of one split dump; of a set with a manifest
    the first is enough. Without a manifest the rest is checked.

    The exit status is 0 if all is well, 2 if the file is at fault, 3 if the
    file is sound but something that a debugger needs is not in it.
    """
    from postpanic.cli.progress import PageProgress

    report = _Report()
    with PageProgress() as progress:
        progress("reading the manifest")
        report.read_manifest(dump, manifest_file)
        report.check_files(dump, progress)
        report.check_contents(deep, progress)
    print(json.dumps(report.to_json(), indent=2) if as_json else report.to_text())
    report.raise_faults()
    return 0


@dataclass
class _Report:
    """What has been found out so far."""

    manifest_path: Path | None = None
    manifest: Manifest | None = None
    files: list[FileCheck] = field(default_factory=list)
    set_faults: tuple[str, ...] = ()
    unopened: FileFaultError | None = None
    description: DumpDescription | None = None
    structure: StructureCheck | None = None
    self_test: SelfTest | None = None
    expected: tuple[ExpectedFile, ...] = ()

    def read_manifest(self, dump: tuple[Path, ...], manifest_file: Path | None) -> None:
        """Find the manifest and read it; of a split set it lies beside one of the files."""
        from postpanic.cli.arguments import check_readable
        from postpanic.pages.manifest import manifest_path, read_manifest

        for path in dump:
            check_readable(path)
        candidates = (manifest_path(path) for path in dump)
        found = manifest_file or next((path for path in candidates if path.exists()), None)
        if found is not None:
            self.manifest_path, self.manifest = found, read_manifest(found)

    def check_files(self, dump: tuple[Path, ...], progress: PageProgress) -> None:
        """Compare each file with its digest."""
        from postpanic.pages.verification import check_file, match_files

        self.expected, self.set_faults = match_files(dump, self.manifest)
        hashed = [file for file in self.expected if file.record is not None and file.record.digest.sha256]
        if hashed:
            progress("computing SHA-256")
            progress.begin(sum(file.path.stat().st_size for file in hashed), 1)
        self.files = [check_file(file, progress.advance) for file in self.expected]

    def check_contents(self, deep: bool, progress: PageProgress) -> None:
        """Open the dump, look at its structure, and do the self-test."""
        from postpanic.dumps.open import open_dump
        from postpanic.pages.selftest import check_dump
        from postpanic.pages.verification import check_structure, count_present

        progress("reading the dump")
        try:
            opened = open_dump([file.path for file in self.expected])
        except FileFaultError as exc:
            self.unopened = exc
            return
        with opened:
            self.description = opened.description
            if deep:
                progress.begin(count_present(opened), opened.page_size_bytes)
            self.structure = check_structure(opened, self.manifest, deep=deep, advance=progress.advance)
            progress("looking for what a debugger needs")
            self.self_test = check_dump(opened, quick=not deep)

    @property
    def faults(self) -> list[tuple[str, str]]:
        """Everything that is wrong with the files, with the place of each."""
        found = [("", fault) for fault in self.set_faults]
        found += [(str(check.path), fault) for check in self.files for fault in check.faults]
        where = ", ".join(str(file.path) for file in self.expected)
        if self.unopened is not None:
            found.append((self.unopened.where or where, self.unopened.message))
        if self.structure is not None:
            found += [(where, fault) for fault in dict.fromkeys(self.structure.faults)]
        return found

    def raise_faults(self) -> None:
        """
        Raise what decides about the exit status.

        Raises
        ------
        FileFaultError
            If a file is at fault.
        AbsentError
            If something that the self-test needs is not there.
        """
        if faults := self.faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            if self.unopened is not None and len(faults) == 1:
                raise self.unopened
            raise CorruptError(f"{faults[0][1]}{more}", where=faults[0][0])
        if self.self_test is not None and (failures := self.self_test.failures):
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise AbsentError(
                f"{failures[0].name}: {failures[0].detail}{more}",
                where=", ".join(str(file.path) for file in self.expected),
            )

    def to_json(self) -> dict[str, Any]:
        """Give everything as values that JSON has."""
        structure = None
        if self.structure is not None and self.description is not None:
            structure = {
                "format": self.description.format,
                "complete": not self.description.incomplete,
                "pages": {state.name.lower(): count for state, count in self.structure.page_counts.items()},
                "pages_read": self.structure.pages_read,
                "lost_ranges": self.structure.lost_ranges,
                "warnings": self.description.warnings,
            }
        return {
            "verdict": self.verdict,
            "faults": [fault if not where else f"{where}: {fault}" for where, fault in self.faults],
            "manifest": None if self.manifest_path is None else str(self.manifest_path),
            "files": [_file_to_json(check) for check in self.files],
            "structure": structure,
            "self_test": None if self.self_test is None else self.self_test.to_json(),
        }

    @property
    def verdict(self) -> str:
        """``good``, ``bad file`` or ``not usable``."""
        if self.faults:
            return "bad file"
        return "not usable" if self.self_test is not None and self.self_test.failures else "good"

    def to_text(self) -> str:
        """Lay everything out as ``key: value`` lines, keys padded to one width."""
        rows = [*self._manifest_rows(), *self._file_rows(), *self._structure_rows(), *self._self_test_rows()]
        rows.append(("verdict", self.verdict))
        return "\n".join(f"{key + ':':<{KEY_WIDTH}} {value}" for key, value in rows)

    def _manifest_rows(self) -> list[tuple[str, str]]:
        if self.manifest is None:
            return [("manifest", "(none: sizes and SHA-256 cannot be compared)")]
        written = self.manifest.written_at.strftime("%Y-%m-%d %H:%M:%S UTC")
        rows = [
            ("manifest", str(self.manifest_path)),
            ("written", f"{written} by {self.manifest.tool} {self.manifest.tool_version}"),
        ]
        if self.manifest.pages.lost:
            rows.append(("lost", f"{self.manifest.pages.lost:,} pages could not be read when it was written"))
        return rows + [("erased", record.request) for record in self.manifest.redactions]

    def _file_rows(self) -> list[tuple[str, str]]:
        rows: list[tuple[str, str]] = []
        for check in self.files:
            rows.append(("file", f"{check.path}, {format_size(check.size_bytes)}"))
            if check.size_fault:
                rows.append(("size", f"FAILED: {check.size_fault}"))
            if check.digest_faults:
                rows += [("SHA-256", f"FAILED: {fault}") for fault in check.digest_faults]
            elif check.hashed:
                rows.append(("SHA-256", "ok, as in the manifest"))
            elif self.manifest is not None:
                rows.append(("SHA-256", "(none in the manifest)"))
        return rows + [("set", f"FAILED: {fault}") for fault in self.set_faults]

    def _structure_rows(self) -> list[tuple[str, str]]:
        if self.structure is None or self.description is None:
            return [("structure", f"FAILED: {self.unopened.message}")] if self.unopened is not None else []
        pages = ", ".join(
            f"{count:,} {state.name.lower()}" for state, count in self.structure.page_counts.items() if count
        )
        rows = [("format", self.description.format), ("pages", pages or "none")]
        if self.structure.pages_read:
            rows.append(("read", f"{self.structure.pages_read:,} pages"))
        rows += [("warning", warning) for warning in self.description.warnings]
        faults = dict.fromkeys(self.structure.faults)
        return rows + ([("structure", f"FAILED: {fault}") for fault in faults] or [("structure", "ok, complete")])

    def _self_test_rows(self) -> list[tuple[str, str]]:
        if self.self_test is None:
            return []
        return [
            (result.name, f"{_OUTCOME_WORDS[result.outcome.value]}{result.detail}") for result in self.self_test.results
        ]


def _file_to_json(check: FileCheck) -> dict[str, Any]:
    names = ("size_bytes", "hashed", "chunk_size_bytes", "bad_chunks", "faults")
    return {"path": str(check.path)} | {name: getattr(check, name) for name in names}


_OUTCOME_WORDS = {"ok": "ok, ", "failed": "FAILED: ", "not applicable": "not applicable: "}
