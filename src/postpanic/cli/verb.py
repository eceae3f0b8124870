"""How a verb shows its help: paragraphs wrapped, indented blocks as they stand."""

from __future__ import annotations

import inspect
import re

import click

__all__ = ["Verb", "keep_blocks"]


def keep_blocks(text: str) -> str:
    r"""
    Mark the indented paragraphs of a help text, so that click does not wrap them.

    click leaves a paragraph alone that begins with a backspace character.

    >>> keep_blocks("Say so:\n\n    postpanic open DUMP")
    'Say so:\n\n\x08\n    postpanic open DUMP'
    """
    paragraphs = re.split(r"\n{2,}", inspect.cleandoc(text))
    return "\n\n".join(f"\b\n{part}" if part.startswith(" ") else part for part in paragraphs)


class Verb(click.Command):
    """A command whose docstring is its manual: indented blocks are examples."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Write the docstring with its examples kept in their lines."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(keep_blocks(self.help or ""))
