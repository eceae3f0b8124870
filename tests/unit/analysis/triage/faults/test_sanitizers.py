"""What sanitizers report, as verdicts."""

from __future__ import annotations

import pytest

from postpanic.analysis.triage import triage_log
from postpanic.findings.verdict import Cause, Verdict

TAGGED = """\
==================================================================
BUG: KASAN: {variant} in {function}+0x10/0x90 [harbour]
Read at addr f7ff000012345678 by task tender/318
Pointer tag: [f7], memory tag: [f2]

CPU: 1 PID: 318 Comm: tender Not tainted 6.12.7 #1
Call trace:
 {function}+0x10/0x90 [harbour]
 vfs_write+0xf5/0x440
==================================================================
"""
GUARDED = """\
==================================================================
BUG: KFENCE: {variant} in {function}+0x10/0x90 [harbour]

Invalid read at 0xffff888012345678:
 {function}+0x10/0x90 [harbour]
 vfs_write+0xf5/0x440

CPU: 1 PID: 318 Comm: tender Not tainted 6.12.7 #1
==================================================================
"""


def judge(text: str) -> Verdict:
    return triage_log("\n".join(f"[   41.000000] {line}" for line in text.splitlines()).encode())


@pytest.mark.parametrize("function", ["harbour_dock", "harbour_uninit", "harbour_infoleak_check"])
@pytest.mark.parametrize(("text", "variant"), [(TAGGED, "invalid-access"), (GUARDED, "invalid read")])
def test_the_name_of_a_function_is_no_cause(text: str, variant: str, function: str) -> None:
    verdict = judge(text.format(variant=variant, function=function))
    assert (verdict.cause, verdict.function, verdict.module) == (Cause.WILD_POINTER, function, "harbour")


def test_what_repeats_the_report_names_the_same_module() -> None:
    verdict = judge(TAGGED.format(variant="invalid-access", function="harbour_dock"))
    assert {finding.module for finding in verdict.findings if finding.function} == {"harbour"}


@pytest.mark.parametrize(
    ("variant", "cause"),
    [("slab-use-after-free", Cause.USE_AFTER_FREE), ("slab-out-of-bounds", Cause.OUT_OF_BOUNDS)],
)
def test_the_name_of_the_report_is_the_cause(variant: str, cause: Cause) -> None:
    assert judge(TAGGED.format(variant=variant, function="harbour_uninit")).cause is cause
