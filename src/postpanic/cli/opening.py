"""What every verb that opens a dump with drgn shares: its options, and the opening."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from postpanic.analysis.program import OpenedProgram

__all__ = ["SourceOptions", "open_for_analysis", "source_options"]


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Where debug information may come from, as the options say."""

    vmlinux: Path | None
    debuginfo: str
    debuginfod: bool
    no_cache: bool
    zero_excluded: bool


_OPTIONS = (
    click.option(
        "--vmlinux", type=click.Path(path_type=Path), metavar="FILE", help="The kernel with debug information."
    ),
    click.option(
        "--debuginfo",
        type=click.Choice(["auto", "synth", "real"]),
        default="auto",
        show_default=True,
        help="Which debug information may be used.",
    ),
    click.option("--debuginfod", is_flag=True, help="Ask the servers in $DEBUGINFOD_URLS for debug information."),
    click.option("--no-cache", is_flag=True, help="Synthesize debug information anew, and do not keep it."),
    click.option("--zero-excluded", is_flag=True, help="Read pages that the dump does not hold as zeroes."),
)


def source_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for debug information to a verb; it gets them as its parameter *sources*."""

    @functools.wraps(function)
    def with_sources(
        *args: Any,  # noqa: ANN401 - whatever else the verb takes
        vmlinux: Path | None,
        debuginfo: str,
        debuginfod: bool,
        no_cache: bool,
        zero_excluded: bool,
        **kwargs: Any,  # noqa: ANN401
    ) -> object:
        sources = SourceOptions(vmlinux, debuginfo, debuginfod, no_cache, zero_excluded)
        return function(*args, sources=sources, **kwargs)

    verb: Callable[..., Any] = with_sources
    for option in reversed(_OPTIONS):
        verb = option(verb)
    return verb


def open_for_analysis(
    dump_paths: Sequence[Path], sources: SourceOptions, *, modules: Sequence[Path] = ()
) -> OpenedProgram:
    """
    Open a dump with its debug information, with progress on a terminal.

    Raises
    ------
    PostpanicError
        As :func:`postpanic.analysis.program.open_program` does.
    """
    from postpanic.analysis.crash_commands import load_plugins
    from postpanic.analysis.debug_files import DebugPolicy
    from postpanic.analysis.program import open_program
    from postpanic.cli.environment import cache_directory, show_repeated
    from postpanic.cli.progress import Progress

    policies = {"auto": DebugPolicy.AUTO, "synth": DebugPolicy.SYNTHESIZED, "real": DebugPolicy.REAL}
    with Progress() as progress:
        opened = open_program(
            dump_paths,
            vmlinux=sources.vmlinux,
            modules=modules,
            policy=policies[sources.debuginfo],
            cache_directory=None if sources.no_cache else cache_directory(),
            debuginfod=sources.debuginfod,
            zero_excluded=sources.zero_excluded,
            progress=progress,
        )
        load_plugins()
    show_repeated()
    return opened
