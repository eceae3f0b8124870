"""Which tool a configuration file is of, and reading it."""

from __future__ import annotations

from pathlib import Path

from postpanic.capture.config import decode_config
from postpanic.capture.host import Host
from postpanic.capture.imports.debian import import_debian
from postpanic.capture.imports.draft import Draft
from postpanic.capture.imports.fedora import import_fedora, knows_directive
from postpanic.capture.imports.suse import import_suse
from postpanic.capture.imports.toml_text import encode_toml
from postpanic.capture.status.distributions import (
    DEBIAN,
    FEDORA,
    SUSE,
    read_assignments,
    read_directives,
)
from postpanic.errors import FactAbsentError, UnsupportedError, UsageError

__all__ = ["PLACES", "import_file", "import_host"]

PLACES = ("etc/kdump.conf", "etc/default/kdump-tools", "etc/sysconfig/kdump")
"""Where the distributions have their configuration."""

_LIMIT_BYTES = 1 << 20


def import_host(host: Host) -> Draft:
    """
    Take over the configuration that a host has.

    Raises
    ------
    FactAbsentError
        If it has none of these files.
    UsageError
        If what comes out is not a configuration of ours: names the setting.
    """
    for place in PLACES:
        if host.path(place).is_file():
            return import_file(host.path(place), host)
    raise FactAbsentError(
        "no other tool is configured here", hint=f"looked for: {', '.join('/' + one for one in PLACES)}"
    )


def import_file(path: Path, host: Host) -> Draft:
    """
    Take over one file; which tool it is of is told by what is in it.

    Raises
    ------
    FactAbsentError
        If it cannot be read.
    UnsupportedError
        If it is of none of the tools.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(_LIMIT_BYTES).decode(errors="replace")
    except OSError as exc:
        raise FactAbsentError(f"cannot be read: {(exc.strerror or str(exc)).lower()}", where=str(path)) from exc
    values, directives = read_assignments(text), read_directives(text)
    if "KDUMP_SAVEDIR" in values:
        draft = Draft(SUSE, str(path))
        import_suse(values, draft)
    elif "USE_KDUMP" in values:
        draft = Draft(DEBIAN, str(path))
        import_debian(values, draft)
    elif not values and (not directives or any(knows_directive(name) for name, _ in directives)):
        draft = Draft(FEDORA, str(path))
        sysconfig = read_assignments(host.read_text("etc/sysconfig/kdump") or "")
        import_fedora(directives, {} if "KDUMP_SAVEDIR" in sysconfig else sysconfig, draft)
    else:
        raise UnsupportedError(
            "is no configuration that is known", where=str(path), hint="kdump.conf, kdump-tools, or sysconfig/kdump"
        )
    _check(draft)
    return draft


def _check(draft: Draft) -> None:
    """Read what was made as it will be read."""
    try:
        decode_config(encode_toml(draft.encode()).encode(), draft.source)
    except UsageError as exc:
        raise UsageError(
            f"what its settings become is refused: {exc.message}", where=draft.source, hint=exc.hint
        ) from exc
