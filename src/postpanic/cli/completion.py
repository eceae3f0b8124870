"""``postpanic completion``: the completion script of a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from postpanic.cli.verb import Verb

__all__ = ["command"]

PROGRAM = "postpanic"
VARIABLE = "_POSTPANIC_COMPLETE"


@click.command(cls=Verb, name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """
    Print the completion script of a shell.

    The script lets the shell complete commands, options and files (Tab).

        bash    postpanic completion bash > ~/.local/share/bash-completion/completions/postpanic
        zsh     postpanic completion zsh > "${fpath[1]}/_postpanic"
        fish    postpanic completion fish > ~/.config/fish/completions/postpanic.fish
    """
    from postpanic.cli.app import cli

    script = get_completion_class(shell)
    if script is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(script(cli, {}, PROGRAM, VARIABLE).source())
