"""The modules of all native commands."""

from __future__ import annotations

from functools import cache

from postpanic.analysis.commands.registry import Command, declared_commands

__all__ = ["find_command", "load_commands"]


@cache
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


def load_commands() -> dict[str, Command]:
    """Return the native commands by name, sorted; those of plug-ins that are loaded among them."""
    _import_modules()
    return declared_commands()


def find_command(name: str) -> Command | None:
    """Return the native command of this name; None if there is none."""
    return load_commands().get(name)
