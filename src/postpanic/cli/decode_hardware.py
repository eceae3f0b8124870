"""``postpanic decode`` of what is no text: registers on the command line, files of binary records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from postpanic.errors import FactAbsentError, FileFaultError, UsageError

if TYPE_CHECKING:
    from postpanic.evidence.hardware import HardwareError

__all__ = ["decode_record_files", "decode_registers"]


def decode_registers(texts: Sequence[str], processor: str, files: Sequence[Path], *, as_json: bool) -> int:
    """
    Print what registers of machine checks mean.

    Parameters
    ----------
    texts : sequence of str
        The values of ``--mce``.
    processor : str
        The value of ``--cpu``; empty: not given.
    files : sequence of Path
        Logs, which there must not be.

    Raises
    ------
    UsageError
        If the words are no registers or no processor, or there are logs as well.
    """
    from postpanic.evidence.hardware import direct

    if files:
        raise UsageError("--mce stands in place of a LOG", hint="decode the LOG by itself")
    if not texts:
        raise UsageError("--cpu without --mce", hint="--cpu names the processor of --mce")
    cpu = direct.parse_cpu(processor) if processor else None
    return _print([direct.decode_registers(direct.parse_registers(text), cpu) for text in texts], as_json=as_json)


def decode_record_files(paths: Sequence[Path], *, as_json: bool) -> int:
    """
    Print the errors in files of binary records: CPER, machine checks of pstore, BERT.

    Raises
    ------
    FileFaultError
        If a file cannot be read, or its records are damaged.
    """
    from postpanic.evidence.hardware import decode_record_file
    from postpanic.evidence.hardware.files import FILE_LIMIT

    errors: list[HardwareError] = []
    for path in paths:
        try:
            with path.open("rb") as stream:
                data = stream.read(FILE_LIMIT)
        except OSError as exc:
            raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
        errors += decode_record_file(data, path.name)
    return _print(errors, as_json=as_json)


def _print(errors: Sequence[HardwareError], *, as_json: bool) -> int:
    from postpanic.evidence.hardware import hardware_answer
    from postpanic.report.json import encode_json
    from postpanic.report.text import render_text

    answer = hardware_answer(errors)
    if as_json:
        print(encode_json(answer))
    elif errors:
        for line in render_text(answer):
            print(line)
    return 0 if errors else FactAbsentError.exit_status
