"""Judges a verdict by a scenario's truth, field by field."""

from __future__ import annotations

from dataclasses import dataclass, field

from postpanic import open_dump
from postpanic.analysis.triage import triage_dump
from postpanic.findings.verdict import Confidence, Verdict
from tests.vm.triage_lab import TriageDump
from tests.vm.triage_truth import Truth

__all__ = ["Judgement", "judge", "judge_dump"]


@dataclass(frozen=True)
class Judgement:
    """
    What is right about a verdict.

    Attributes
    ----------
    fields : dict
        By the name of each part of the truth, whether the verdict has it right.
    """

    truth: Truth
    verdict: Verdict
    fields: dict[str, bool] = field(default_factory=dict)

    @property
    def is_kind_right(self) -> bool:
        return self.fields["kind"]

    @property
    def is_blame_right(self) -> bool:
        """Whether function and module are right."""
        return self.fields["function"] and self.fields["module"]

    @property
    def is_sentence_right(self) -> bool:
        """Whether the cause is, with all that the sentence has to say and whom it has to spare."""
        return all(self.fields[name] for name in ("cause", "says", "subject", "victims", "spared"))

    @property
    def is_right(self) -> bool:
        """Whether the verdict may be believed: kind, cause, and whom it blames."""
        return self.is_kind_right and self.is_blame_right and self.fields["cause"] and self.fields["spared"]

    @property
    def is_overclaimed(self) -> bool:
        """Whether it calls proven what is wrong, or what no dump can show."""
        return self.verdict.confidence is Confidence.PROVEN and not (self.is_right and self.truth.may_be_proven)

    @property
    def faults(self) -> list[str]:
        """The fields that are wrong."""
        return [name for name, right in self.fields.items() if not right]


def judge(truth: Truth, verdict: Verdict) -> Judgement:
    """Compare a verdict with the truth."""
    function = verdict.function.partition(".")[0]
    subject = verdict.subject
    seen = {
        "category": subject.category if subject else "",
        "type": subject.type if subject else "",
        "name": subject.name if subject else "",
    }
    blamed = {function, *([seen["name"]] if seen["category"] == "task" else [])}
    text = verdict.sentence.lower()
    if function or truth.functions in {("",), ()}:
        module_right = not function or verdict.module in {truth.module, *([""] if truth.module == "vmlinux" else [])}
    else:
        module_right = verdict.module in {"", truth.module}
    return Judgement(
        truth,
        verdict,
        {
            "kind": verdict.kind in truth.kinds,
            "cause": verdict.cause in truth.causes,
            "function": function in truth.functions,
            "module": module_right,
            "says": all(any(words.lower() in text for words in group) for group in truth.says),
            "subject": all(wanted in seen[name] for name, wanted in truth.subject.items()),
            "victims": {*truth.victims} <= {victim.comm for victim in verdict.victims},
            "spared": not blamed & {*truth.not_blamed},
        },
    )


def judge_dump(dump: TriageDump) -> Judgement:
    """Open a scenario's dump as anybody would, without debug information, and judge what triage says of it."""
    with open_dump(dump.dump, debuginfo="synth") as opened:
        return judge(dump.truth, triage_dump(opened.workspace))
