"""From the options of ``postpanic filter`` to a job, with everything that can be wrong in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postpanic.cli.filter_job import FilterJob, available_threads
from postpanic.errors import UsageError
from postpanic.units import KIB, MIB, format_size, parse_size

if TYPE_CHECKING:
    from postpanic.dumps.kdump.codecs import Compression
    from postpanic.pages.filtering import WritePlan

__all__ = ["choose_outputs", "make_job", "parse_levels", "parse_limit"]

_SMALLEST_MEMORY = MIB
_HIGHEST_LEVEL = 31
_CODEC_OPTIONS = {
    "use_zlib": ("-c", "ZLIB"),
    "use_lzo": ("-l", "LZO"),
    "use_snappy": ("-p", "SNAPPY"),
    "use_zstd": ("-z", "ZSTD"),
    "use_raw": ("--uncompressed", None),
}
_LEVEL_RANGES = {"ZLIB": (1, 9), "ZSTD": (-7, 22)}


def make_job(files: tuple[Path, ...], options: Mapping[str, Any]) -> FilterJob:
    """
    Put a job together.

    Raises
    ------
    UsageError
        If options contradict each other, or values are out of range.
    """
    inputs, outputs = choose_outputs(
        files, flattened=options["flattened"], split=options["split"], dry_run=options["dry_run"]
    )
    if options["no_manifest"] and options["manifest_path"]:
        raise UsageError("--manifest excludes --no-manifest")
    return FilterJob(
        inputs=inputs,
        outputs=outputs,
        plan=_make_plan(options),
        levels=parse_levels(options["level_list"]),
        flattened=options["flattened"],
        overwrite=options["overwrite"],
        limit_bytes=parse_limit("-L", options["limit"]),
        erase=options["erase"],
        erase_symbols=options["erase_symbol"],
        vmlinux=options["vmlinux"],
        vmcoreinfo_file=options["info_file"],
        dry_run=options["dry_run"],
        check=not options["no_self_test"],
        # A stream's reader is not told where to find a manifest.
        manifest=not options["no_manifest"] and (bool(outputs) or options["manifest_path"] is not None),
        manifest_path=options["manifest_path"],
        sync=options["sync"],
    )


def choose_outputs(
    files: tuple[Path, ...], *, flattened: bool, split: bool, dry_run: bool
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """
    Tell the input from the outputs.

    Raises
    ------
    UsageError
        If there are too few or too many.
    """
    if not files:
        raise UsageError("no VMCORE was named")
    source, outputs = files[0], files[1:]
    if split:
        if flattened:
            raise UsageError("--split excludes -F: a stream is one")
        if len(outputs) < 2:
            raise UsageError(f"--split needs two OUT files or more, {len(outputs)} named")
    elif len(outputs) > 1:
        raise UsageError(f"{len(outputs)} OUT files; several go with --split only")
    if outputs == (Path("-"),):
        if not flattened:
            raise UsageError("a dump cannot be written to a pipe as it is", hint="-F writes a flattened stream")
        outputs = ()
    if not outputs and not flattened and not dry_run:
        raise UsageError("no OUT was named", hint="-F without OUT writes a stream to standard output")
    return (source,), outputs


def parse_levels(text: str) -> tuple[int, ...]:
    """
    Read the value of ``-d``: numbers from 0 to 31, separated by commas.

    Raises
    ------
    UsageError
        If it is anything else.
    """
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() and int(word) <= _HIGHEST_LEVEL for word in words):
        raise UsageError(f"-d {text}: must be a number from 0 to {_HIGHEST_LEVEL}, or several separated by commas")
    return tuple(int(word) for word in words)


def parse_limit(option: str, text: str | None) -> int | None:
    """
    Read a size of the command line.

    Raises
    ------
    UsageError
        If it is none.
    """
    if text is None:
        return None
    try:
        return parse_size(text)
    except ValueError as exc:
        raise UsageError(f"{option}: {exc}") from None


def _make_plan(options: Mapping[str, Any]) -> WritePlan:
    from postpanic.pages.filtering import OutputForm, WritePlan
    from postpanic.pages.pump import DEFAULT_BUFFER_BYTES, MAX_THREADS

    compression = _choose_compression(options)
    if options["as_elf"]:
        chosen = [letters for name, (letters, _) in _CODEC_OPTIONS.items() if options[name]]
        if chosen or options["compression_level"] is not None:
            raise UsageError(f"-E excludes {(chosen or ['--compression-level'])[0]}: ELF files are not compressed")
        if options["split"]:
            raise UsageError("-E excludes --split: an ELF dump is one file")
    memory = parse_limit("--memory", options["memory"])
    if memory is None and options["cyclic_kib"]:
        memory = max(options["cyclic_kib"] * KIB, DEFAULT_BUFFER_BYTES)
    if memory is not None and memory < _SMALLEST_MEMORY:
        raise UsageError(f"--memory {format_size(memory)}: at least {format_size(_SMALLEST_MEMORY)} are needed")
    return WritePlan(
        form=OutputForm.ELF if options["as_elf"] else OutputForm.KDUMP,
        compression=compression,
        compression_level=options["compression_level"],
        threads=min(options["threads"] or available_threads(), MAX_THREADS),
        buffer_bytes=memory or DEFAULT_BUFFER_BYTES,
        by_worth=options["order"] == "worth",
    )


def _choose_compression(options: Mapping[str, Any]) -> Compression | None:
    from postpanic.dumps.kdump.codecs import Compression

    chosen = [name for name in _CODEC_OPTIONS if options[name]]
    if len(chosen) > 1:
        letters = " and ".join(_CODEC_OPTIONS[name][0] for name in chosen)
        raise UsageError(f"{letters} exclude each other")
    name = _CODEC_OPTIONS[chosen[0]][1] if chosen else "ZSTD"
    level = options["compression_level"]
    if level is not None:
        if name not in _LEVEL_RANGES:
            raise UsageError(f"--compression-level: {(name or 'uncompressed').lower()} has no levels")
        low, high = _LEVEL_RANGES[name]
        if not low <= level <= high:
            raise UsageError(f"--compression-level {level}: must be from {low} to {high} for {name.lower()}")
    return Compression[name] if name else None
