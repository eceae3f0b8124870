"""The ``postpanic`` command: its verbs, and the one place where errors become exit statuses."""

from __future__ import annotations

import gc
import importlib
import os
import sys

import click

from postpanic.cli.verb import keep_blocks
from postpanic.errors import FileFaultError, PostpanicError, UsageError
from postpanic.version import __version__

__all__ = ["VERBS", "cli", "main"]

VERBS: dict[str, tuple[str, str]] = {
    "arm": ("arm", "Make the machine ready to capture its crash."),
    "collect": ("collect", "Fetch and check what a crash left."),
    "completion": ("completion", "Print the completion script of a shell."),
    "convert": ("convert", "Write the same dump in another format."),
    "crash-test": ("crash_test", "Crash this machine on purpose, to see its capture work."),
    "crashkernel": ("crashkernel", "Reserve memory for the capture kernel."),
    "debuginfo": ("debuginfo", "Write the debug information that a dump holds."),
    "decode": ("decode", "Say what the kernel's reports in a text mean."),
    "disarm": ("disarm", "Take the capture kernel away."),
    "dmesg": ("dmesg", "Print the kernel log of a dump."),
    "filter": ("filter", "Write a smaller dump, as makedumpfile does."),
    "gdb": ("gdb", "Debug a dump with gdb, or with an editor."),
    "import": ("import_config", "Take over the configuration of another tool."),
    "info": ("info", "Say what a dump file is and what is in it."),
    "join": ("join", "Make one file of the parts of a split dump."),
    "listen": ("listen", "Receive what kernels send by netconsole, and find the reports in it."),
    "list": ("list", "List the dumps that this machine has saved."),
    "open": ("open", "Open a dump at a prompt with the commands of crash."),
    "pstore": ("pstore", "Show what the kernel saved of its log when it crashed."),
    "recover": ("recover", "Fetch dumps that were saved onto raw devices and swap areas."),
    "prune": ("prune", "Delete old dumps."),
    "rehearse": ("rehearse", "Prove in a virtual machine that a crash will be captured."),
    "report": ("report", "Write one page about a crash: the verdict, its evidence, and the facts."),
    "save": ("save", "Save the memory of the kernel that crashed."),
    "script": ("script", "Run a Python program on a dump."),
    "service": ("service", "Arm this machine at every boot, and collect what a crash left."),
    "split": ("split", "Divide a dump among several files."),
    "status": ("status", "Say whether this machine is ready to capture its crash."),
    "triage": ("triage", "Say what happened, who is at fault, and how that can be seen."),
    "verify": ("verify", "Say whether a dump is good."),
}
"""Verb: module of this package, summary. The modules are imported only when their verb is used."""

INTERRUPTED_STATUS = 130
READER_GONE_STATUS = 141


class _ReaderGoneError(Exception):
    """Nobody reads what we print any more (``postpanic dmesg DUMP | head -1``)."""


class _Verbs(click.Group):
    """A group that imports a verb when it is used, so that every start is a fast one."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"postpanic.cli.{VERBS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, VERBS[name][1]) for name in self.list_commands(ctx)])

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(keep_blocks(self.help or ""))

    def invoke(self, ctx: click.Context) -> object:
        try:
            status: object = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as exc:
            # click would turn it into status 1 and a patched stdout.
            raise _ReaderGoneError from exc
        return status


_EPILOG = """
Exit status: 0 done; 1 failed; 2 the file is at fault; 3 the page or the fact is
not in the dump; 4 the machine is not ready; 64 wrong usage; 130 interrupted;
141 the reader of the output went away.
"""


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(__version__, prog_name="postpanic")
def cli() -> None:
    """
    Everything that happens after a Linux kernel panics.

        postpanic info DUMP           what the file is, and what it holds
        postpanic dmesg DUMP          its kernel log; nothing but the dump is needed
        postpanic open DUMP           a prompt with the commands of crash
        postpanic open -e bt DUMP     one command, then back to the shell

    "postpanic COMMAND --help" explains each command with examples.
    """


def main(arguments: list[str] | None = None) -> int:
    """
    Run the command line and return its exit status.

    0 done, 1 failed, 2 the file is at fault, 3 the page or fact is not there,
    4 the machine is not ready, 64 usage, 130 interrupted, 141 the reader of
    our output went away. Every failure is one line on stderr, and a hint
    where there is one; with ``POSTPANIC_TRACEBACK`` set in the environment an
    error of postpanic's own shows where it happened.
    """
    # Start-up makes a hundred thousand objects that stay; looking for cycles among them would be a tenth of it.
    gc.set_threshold(100_000, 20, 20)
    # Nothing here multiplies matrices: numpy's library for that would start a thread for each processor.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        status = cli.main(args=arguments, prog_name="postpanic", standalone_mode=False)
    except click.exceptions.Abort:
        return INTERRUPTED_STATUS
    except click.ClickException as exc:
        # A class that click has since 8.2: the message is the whole help.
        if type(exc).__name__ == "NoArgsIsHelpError":
            exc.show()
            return UsageError.exit_status
        return _report(UsageError.code, exc.format_message(), _usage_hint(exc), UsageError.exit_status)
    except PostpanicError as exc:
        return _report(exc.code, str(exc), exc.hint, exc.exit_status)
    except _ReaderGoneError:
        # The interpreter flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE_STATUS
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        return _report(FileFaultError.code, f"{where}{exc.strerror or exc}", "", FileFaultError.exit_status)
    except MemoryError:
        return _report("memory", "not enough memory", "", PostpanicError.exit_status)
    except Exception as exc:  # noqa: BLE001 - a traceback is no answer to a user
        if os.environ.get("POSTPANIC_TRACEBACK"):
            import traceback

            traceback.print_exc()
        return _report(
            "internal",
            f"{type(exc).__name__}: {exc}".split("\n", 1)[0],
            "this is an error of postpanic; POSTPANIC_TRACEBACK=1 shows where",
            PostpanicError.exit_status,
        )
    return status if isinstance(status, int) else 0


def _report(code: str, message: str, hint: str, status: int) -> int:
    print(f"error[{code}]: {message}", file=sys.stderr)
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)
    return status


def _usage_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help explains the usage" if isinstance(context, click.Context) else ""
