"""The modules of all native commands."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec

from postpanic.analysis.commands.registry import Command, complete_with, declared_commands, imported_command

__all__ = ["find_command", "load_commands"]


_PACKAGE = "postpanic.analysis.commands"


@cache
def _import_modules() -> None:
    """Import all commands, which takes a moment: the first command pays it."""
    from postpanic.analysis.commands import (  # noqa: F401 - importing a module declares its commands
        addresses,
        alias,
        args,
        arithmetic,
        bpf,
        bt,
        dev,
        dis,
        extend,
        files,
        foreach,
        fuser,
        gdb,
        help_pages,
        ipcs,
        irq,
        lists,
        locks,
        log,
        mach,
        mod,
        mount,
        net,
        print_value,
        ps,
        repeat,
        runq,
        rustfilt,
        sbitmapq,
        set_context,
        sig,
        structures,
        swap,
        sym,
        sys_data,
        task,
        timer,
        tree,
        vm,
        waitq,
        whatis,
        wq,
    )
    from postpanic.analysis.commands.memory import (  # noqa: F401
        kmem,
        owners,
        read,
        search,
        translate,
        whereis,
        write,
    )


complete_with(_import_modules)


def load_commands() -> dict[str, Command]:
    """Return the native commands by name, sorted; those of plug-ins that are loaded among them."""
    return declared_commands()


def find_command(name: str) -> Command | None:
    """
    Return the native command of this name; None if there is none.

    A command that lives in a module of its name is found without importing all others.
    """
    command = imported_command(name)
    if command is None and name.isidentifier() and find_spec(f"{_PACKAGE}.{name}") is not None:
        import_module(f"{_PACKAGE}.{name}")
        command = imported_command(name)
    return command if command is not None else declared_commands().get(name)
