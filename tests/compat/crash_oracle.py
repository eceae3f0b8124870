"""
The judge of our commands: crash 9, run where it is unpacked, on the same dump with the real vmlinux.

A session is expensive and a dump does not change: the texts are kept in the
lab's cache under the dump, crash's version and the command lines, so that a
second run reads a file. crash writes the text of each command into a file of
its own; where a command ends the session (crash dies of a few), the session
goes on behind it, and the command's text is None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from postpanic.errors import ProcessError
from postpanic.process import run
from postpanic.rehearse.cache import build_once, digest_recipe
from postpanic.rehearse.programs import ProgramStore, UnpackedProgram

__all__ = ["QUESTIONS", "CrashOracle", "fetch_oracle"]

TIMEOUT_S = 600.0
# crash would otherwise read the user's ~/.crashrc and ask a terminal for its size.
ENVIRONMENT = {"HOME": "/nonexistent", "TERM": "dumb", "TZ": "UTC", "LANG": "C"}

QUESTIONS = (
    *("ps", "ps -k", "ps -u", "ps -G", "ps -s", "ps -A", "ps -S", "ps -l", "ps -m", "ps -t", "ps -a", "ps -g"),
    *("ps -p", "ps -c", "ps -r", "ps -y NO"),
    *("mod", "mod -t", "sym -l", "sym schedule", "sym -q alloc_pages"),
    *("kmem -i", "kmem -s", "kmem -S kmalloc-64", "kmem -n", "kmem -z", "kmem -v", "kmem -V", "kmem -o", "kmem -h"),
    *("kmem -g", "kmem -f"),
    *("bt", "bt -a", "foreach bt", "foreach bt -s", "foreach bt -t", "bt -e", "bt -f"),
    *("log", "log -m", "log -t", "log -T", "log -d", "log -c", "log -s", "log -a"),
    *("task", "foreach task -R pid,comm,stack,mm,flags", "set", "foreach set", "sys", "sys -t", "sys -c", "sys -i"),
    *("files", "foreach files", "foreach files -c", "vm", "foreach vm", "runq", "runq -t", "runq -T", "runq -m"),
    *("runq -g", "mount", "mount -n 1", "fuser /", "swap", "ipcs", "irq", "irq -a", "irq -s", "irq -b", "irq -u"),
    *("dev", "dev -i", "dev -p", "dev -d", "net", "net -a", "foreach net -s", "timer", "timer -r", "waitq log_wait"),
    *("mach", "mach -m", "sig -l", "sig -s 800A000000000201", "foreach sig"),
    *(f"struct -o {name}" for name in ("task_struct", "page", "list_head", "vm_area_struct", "mm_struct", "file")),
    *(f"struct -o {name}" for name in ("inode", "dentry", "rq", "kmem_cache", "module", "sk_buff", "net_device")),
    *("union -o sigval", "struct list_head", "whatis linux_binfmt", "whatis pid_t", "whatis schedule"),
    *("whatis -r 192", "p jiffies", "p init_task.comm", "p sizeof(struct task_struct)", "px jiffies"),
    *("dis schedule", "dis vfs_read", "dis do_exit", "dis panic", "dis -r schedule+20", "dis -f schedule+20"),
    *("dis -x schedule 12", "dis schedule 3"),
    *("rd linux_banner 28", "rd -a linux_banner", "rd -8 linux_banner 8", "rd -16 linux_banner 4"),
    *("rd -32 linux_banner 2", "rd -s init_task 28", "rd -d linux_banner 4"),
    *("list -H slab_caches -o kmem_cache.list", "tree -t rbtree -o vmap_area.rb_node vmap_area_root"),
    *("search schedule", "eval 128m", "eval (1 << 32)", "eval -b 41dc065", "ascii 62696c2f7273752f"),
    *("btop 512a000", "ptob 512a", "ptov 56e000", "pte d8e067", "pte 8000000001001063"),
)
"""What every dump is asked, in one session; what needs an address of the dump is asked in another one."""


@dataclass(frozen=True)
class CrashOracle:
    """
    crash of a newer Debian release than the host's.

    Attributes
    ----------
    cache_dir : Path
        The lab's.
    """

    program: UnpackedProgram
    cache_dir: Path

    def ask(self, vmlinux: Path, dump: Path, lines: Sequence[str] = QUESTIONS) -> Mapping[str, str | None]:
        """
        Return what crash prints for each of the command lines; None where it died of one.

        A line must not have redirections or pipes of its own.

        Raises
        ------
        ProcessError
            If crash does not start on these files.
        """

        def build(target: Path) -> None:
            answers = self._run(vmlinux, dump, lines, target)
            (target / "answers.json").write_text(json.dumps(answers))

        # The lab's directories are named by the recipe of what is in them.
        status = dump.stat()
        recipe = {
            "dump": [dump.parent.name, dump.name, status.st_size, status.st_mtime_ns],
            "version": self.program.version,
            "lines": list(lines),
        }
        entry = build_once(self.cache_dir / "oracle", f"crash-{digest_recipe(recipe)}", build)
        answers: dict[str, str | None] = json.loads((entry / "answers.json").read_text())
        return answers

    def command(self, vmlinux: Path, dump: Path) -> list[str | Path]:
        """Spell how a session is started."""
        return [*self.program.command, "-s", vmlinux, dump]

    def _run(self, vmlinux: Path, dump: Path, lines: Sequence[str], target: Path) -> dict[str, str | None]:
        answers: dict[str, str | None] = {}
        while len(answers) < len(set(lines)):
            left = [line for line in lines if line not in answers]
            texts, status = self._run_session(vmlinux, dump, left, target)
            if not texts:
                raise ProcessError(f"crash {self.program.version} does not start on {dump}: exit status {status}")
            answers.update(zip(left, texts, strict=False))
            if status != 0:
                # The file of the command that it died of is there, and ends anywhere.
                answers[left[len(texts) - 1]] = None
        return answers

    def _run_session(self, vmlinux: Path, dump: Path, lines: Sequence[str], target: Path) -> tuple[list[str], int]:
        """Run one session up to its end, and return the texts of the commands that it came to, and its status."""
        files = [target / f"{number:04d}" for number in range(len(lines))]
        commands = [f"{line} > {file.name}" for line, file in zip(lines, files, strict=True)]
        finished = run(
            self.command(vmlinux, dump),
            stdin="\n".join(["set scroll off", *commands, "quit", ""]).encode(),
            cwd=target,
            env=ENVIRONMENT,
            timeout_s=TIMEOUT_S,
            check=False,
        )
        texts = []
        for file in files:
            if not file.exists():
                break
            texts.append(file.read_text(errors="backslashreplace"))
            file.unlink()
        return texts, finished.returncode


def fetch_oracle(cache_dir: Path) -> CrashOracle:
    """Return the newest crash of Debian, from the cache or fetched now."""
    return CrashOracle(ProgramStore(cache_dir).fetch("crash", "usr/bin/crash"), cache_dir)
