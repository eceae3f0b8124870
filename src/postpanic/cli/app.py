"""The ``postpanic`` command: its verbs, and the one place where errors become exit statuses."""

from __future__ import annotations

import sys

import click

from postpanic import __version__
from postpanic.errors import PostpanicError, UsageError

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="postpanic")
def cli() -> None:
    """Everything that happens after a Linux kernel panics."""


def main(arguments: list[str] | None = None) -> int:
    """
    Run the command line and return its exit status.

    0 done, 1 failed, 2 the file is at fault, 3 the page or fact is not there,
    4 the machine is not ready, 64 usage, 130 interrupted.
    """
    try:
        status = cli.main(args=arguments, prog_name="postpanic", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as exc:
        exc.show()
        return UsageError.exit_status
    except PostpanicError as exc:
        print(f"error[{exc.code}]: {exc}", file=sys.stderr)
        if exc.hint:
            print(f"  hint: {exc.hint}", file=sys.stderr)
        return exc.exit_status
    except BrokenPipeError:
        return 1
    return status if isinstance(status, int) else 0
