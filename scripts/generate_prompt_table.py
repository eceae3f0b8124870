"""
Generate the table of the prompt's commands: what crash has, option by option, and how it is answered here.

Usage::

    generate_prompt_table.py [-o docs/commands/prompt.md]

What crash has is in ``tests/compat/crash_facts.py``; what is native is in the
declarations of the commands; the rest is asked of drgn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import drgn

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.compat.crash_facts import COMMANDS, FOREACH, VARIABLES, VERSION  # noqa: E402

from postpanic.analysis.aliases import BUILT_IN  # noqa: E402
from postpanic.analysis.commands.catalog import load_commands  # noqa: E402
from postpanic.analysis.commands.registry import Command  # noqa: E402
from postpanic.analysis.commands.set_variables import REFUSALS  # noqa: E402
from postpanic.analysis.crash_commands import command_names, command_options, load_plugins  # noqa: E402
from postpanic.cli.session import END_WORDS  # noqa: E402

TARGET = ROOT / "docs" / "commands" / "prompt.md"
VMCOREINFO = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff82000000\nKERNELOFFSET=0\n"


class How(StrEnum):
    """How a command or option of crash is answered."""

    NATIVE = "native"
    DRGN = "drgn"
    REFUSED = "refused"
    ABSENT = "absent"


@dataclass(frozen=True)
class Row:
    """One command of crash, or one of its options."""

    command: str
    option: str
    how: How
    note: str


class Survey:
    """What there is at the prompt."""

    def __init__(self) -> None:
        # drgn's commands ask for a kernel, not for its memory.
        platform = drgn.Platform(drgn.Architecture.X86_64)
        self._prog = drgn.Program(platform, vmcoreinfo=VMCOREINFO)
        self._prog.set_linux_kernel_custom(VMCOREINFO, is_live=False)
        load_plugins()
        self.native = load_commands()
        self._drgn = set(command_names(self._prog))

    def rows(self) -> Iterator[Row]:
        """Answer for every command of crash, and for each of its options."""
        for name, options in sorted(COMMANDS.items()):
            command = self.native.get(name)
            how = self._how(name)
            yield Row(name, "", how, command.summary if command else self._note(name, how))
            if command is not None:
                yield from (_native_option(command, option) for option in options)
            else:
                known = set(command_options(self._prog, name)) if how is How.DRGN else set()
                yield from (Row(name, option, How.DRGN if option in known else How.ABSENT, "") for option in options)
        yield from self._foreach_rows()
        yield from self._variable_rows()

    def _how(self, name: str) -> How:
        if name in self.native or name in END_WORDS:
            return How.NATIVE
        return How.DRGN if name in self._drgn else How.ABSENT

    def _note(self, name: str, how: How) -> str:
        if name in END_WORDS:
            return "end the session"
        return "drgn's command, as text" if how is How.DRGN else ""

    def _foreach_rows(self) -> Iterator[Row]:
        for name, options in sorted(FOREACH.items()):
            command = self.native.get(name)
            is_native = command is not None and command.per_task and "foreach" in self.native
            yield Row("foreach", name, How.NATIVE if is_native else self._how("foreach"), f"{name}, for each task")
            if command is not None:
                rows = (_native_option(command, option) for option in options)
                yield from (Row("foreach", f"{name} {row.option}", row.how, row.note) for row in rows)

    def _variable_rows(self) -> Iterator[Row]:
        for name in VARIABLES:
            how = How.ABSENT if name not in REFUSALS else How.REFUSED if REFUSALS[name] else How.NATIVE
            yield Row("set", name, how, REFUSALS.get(name, "") or "a variable of the session")


def _native_option(command: Command, flag: str) -> Row:
    for option in command.options:
        # crash writes -seconds for a number, we -SECONDS.
        if flag in {option.flag, option.flag.lower()}:
            return Row(command.name, flag, How.REFUSED if option.refused else How.NATIVE, option.refused or option.help)
    return Row(command.name, flag, How.ABSENT, "")


HEADER = """\
# Commands of the prompt

What crash {version} has, option by option, and how the prompt of [open](open.md) answers it:

- **native**: computed by postpanic; typed cells, `--json`, one bad pointer spoils one cell;
- **drgn**: drgn's command of that name, as text;
- **refused**: answered with the reason that stands in the table.

Explanations of a native command are in `help COMMAND`. This page is generated
(`scripts/generate_prompt_table.py`) from the commands' declarations.

{counts}

| command | option | answered | what it does, or why not |
|---|---|---|---|
"""


def render(survey: Survey) -> str:
    """Write the page."""
    rows = list(survey.rows())
    counts = {how: sum(row.how is how for row in rows) for how in How}
    total = ", ".join(f"{count} {how}" for how, count in counts.items() if count)
    text = HEADER.format(version=VERSION, counts=f"Of {len(rows)} commands, options and variables: {total}.")
    for row in rows:
        name = f"`{row.command}`" if not row.option else ""
        option = f"`{row.option}`" if row.option else ""
        text += f"| {name} | {option} | {row.how} | {_cell(row.note)} |\n"
    return text + _ours(survey)


def _ours(survey: Survey) -> str:
    """Write what crash does not have."""
    text = "\n## What crash does not have\n\n| command | option | what it does |\n|---|---|---|\n"
    for name, command in survey.native.items():
        known = COMMANDS.get(name)
        if known is None:
            text += f"| `{name}` | | {_cell(command.summary)} |\n"
            continue
        more = [option for option in command.options if option.flag not in known and not option.refused]
        text += "".join(f"| `{name}` | `{option.flag}` | {_cell(option.help)} |\n" for option in more)
    aliases = ", ".join(f"`{alias}` is `{line}`" for alias, line in BUILT_IN.items())
    return f"{text}\nAliases: {aliases}.\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=TARGET)
    parser.parse_args().output.write_text(render(Survey()))


if __name__ == "__main__":
    main()
