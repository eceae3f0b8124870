"""
The table of what triage says of each scenario, and how far that can be trusted.

::

    python -m tests.vm.triage_table KERNEL... [--cached] [-o docs/concepts/triage-calibration.md]

Kernels of arm64 are ``arm64-6.1`` and so on.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from postpanic.findings.verdict import Confidence
from tests.vm import arm64_triage
from tests.vm.arm64_triage import Arm64TriageLab
from tests.vm.lab import KERNELS, Lab, default_cache_dir
from tests.vm.triage_judge import Judgement, judge_dump
from tests.vm.triage_lab import TriageLab
from tests.vm.triage_truth import list_truths

HEAD = """\
# How far verdicts can be trusted

Every scenario crashes a real kernel in a way of its own, and has a file that says what is true of it. This table
compares; it is made by `python -m tests.vm.triage_table`. Dumps are filtered (`-d 31`) and opened without the kernel's
debug information. A verdict is right if it has the kind, the cause, the function and the module that the file has,
and blames nobody whom the file spares; its sentence is right if it names besides what the file asks for.

The machines of arm64 are emulated. What is no crash there is left out, and the names of modules' variables are not
asked for where the kernel keeps none (6.1, without `CONFIG_KALLSYMS_ALL`). The newest is 7.2.
"""


_ARM64 = "arm64-"
_BUILT_AT = re.compile(r"/\S+/module/(?=\w+\.c:)")
_NAMES = (*sorted(KERNELS), *(f"{_ARM64}{key}" for key in sorted(arm64_triage.KERNELS)))


def _shorten(text: str) -> str:
    # Where a module was built says nothing.
    return " ".join(_BUILT_AT.sub("", text).replace("|", "\\|").split())


def render(results: dict[str, list[Judgement]]) -> str:
    """Return the page."""
    lines = [HEAD]
    everything = [judgement for judgements in results.values() for judgement in judgements]
    lines += ["| confidence | verdicts | right |", "|---|---|---|"]
    for confidence in Confidence:
        those = [judgement for judgement in everything if judgement.verdict.confidence is confidence]
        right = sum(judgement.is_right for judgement in those)
        share = f"{100 * right // len(those)} %" if those else ""
        lines.append(f"| {confidence} | {len(those)} | {right} {share and f'({share})'} |".replace("  |", " |"))
    lines += ["", "| kernel | scenarios | kind | function and module | sentence |", "|---|---|---|---|---|"]
    for key, judgements in results.items():
        counts = [
            sum(judgement.is_kind_right for judgement in judgements),
            sum(judgement.is_blame_right for judgement in judgements),
            sum(judgement.is_sentence_right for judgement in judgements),
        ]
        lines.append(f"| {key} | {len(judgements)} | {' | '.join(str(count) for count in counts)} |")
    head = ("scenario", "kernel", "kind", "function", "sentence", "confidence", "right")
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for key, judgements in results.items():
        for judgement in judgements:
            verdict = judgement.verdict
            wrong = "no: " + ", ".join(judgement.faults)
            cells = (judgement.truth.name, key, verdict.kind, verdict.function, verdict.sentence, verdict.confidence)
            lines.append(f"| {' | '.join(_shorten(cell) for cell in cells)} | {wrong if judgement.faults else 'yes'} |")
    return "\n".join(lines) + "\n"


def choose_lab(lab: Lab, name: str) -> tuple[TriageLab, str]:
    """Give the lab of a kernel as it is named here, and the kernel's key in it: ``6.1``, ``arm64-6.1``."""
    key = name.removeprefix(_ARM64)
    return (TriageLab(lab) if key == name else Arm64TriageLab(lab)), key


def collect(lab: TriageLab, key: str, names: Iterable[str], *, only_cached: bool) -> list[Judgement]:
    """Judge the scenarios of one kernel."""
    judgements = []
    truths = [truth for truth in list_truths() if not names or truth.name in names]
    truths = [truth for truth in truths if lab.has(truth, key)]
    if not only_cached:
        lab.build_modules(truths, key)
    for truth in truths:
        try:
            found = lab.find(truth, key) if only_cached else lab.crash(truth, key)
            if found is not None:
                judgements.append(judge_dump(found))
        except Exception as exc:  # noqa: BLE001 - the others are wanted all the same
            print(f"{key} {truth.name}: {type(exc).__name__}: {exc}", file=sys.stderr)  # noqa: T201
    return judgements


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.vm.triage_table", description="judge triage by what is true")
    parser.add_argument("kernels", nargs="+", choices=_NAMES)
    parser.add_argument("--only", action="append", default=[], help="a scenario; may be repeated")
    parser.add_argument("--cached", action="store_true", help="only dumps that are there")
    parser.add_argument("-o", "--output", type=Path)
    chosen = parser.parse_args(words)
    lab = Lab(default_cache_dir(), say=lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    page = render(
        {name: collect(*choose_lab(lab, name), chosen.only, only_cached=chosen.cached) for name in chosen.kernels}
    )
    if chosen.output:
        chosen.output.write_text(page)
    else:
        print(page)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
