"""
Timers, work and other objects that are used before or after their time, as debug objects say.

Source: ``lib/debugobjects.c`` (``debug_print_object()``, ``obj_states``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.rules.told import Rule, tell
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Finding

__all__ = ["find_lifetime"]


def _line(what: str, kind: str = r"\w{1,60}") -> re.Pattern[str]:
    return re.compile(
        rf"ODEBUG: {what} \(active state \d{{1,5}}\)(?: object: \S{{1,20}})? object type: (?P<type>{kind})"
        r"(?: hint: +(?P<hint>[A-Za-z_][\w.]{0,119})?)?"
    )


_RULES = (
    Rule(
        _line("free active"),
        Cause.USE_AFTER_FREE,
        Confidence.LIKELY,
        "{who} frees memory with a {type}{hint} in it that is active: when its time comes it is not there any more.",
        "",
        "type",
    ),
    Rule(
        _line("activate active", "rcu_head"),
        Cause.DOUBLE_FREE,
        Confidence.LIKELY,
        "{who} gives an object to call_rcu() that it has been given already, and not been freed yet.",
        "",
        "type",
    ),
    Rule(
        _line("(?:init|activate|deactivate|destroy) destroyed"),
        Cause.USE_AFTER_FREE,
        Confidence.POSSIBLE,
        "{who} uses a {type}{hint} that has been destroyed.",
        "an object that was made anew without its initialiser",
        "type",
    ),
    Rule(
        _line("(?:activate|assert_init|deactivate|destroy|free) (?:not available|none|initialized)"),
        Cause.UNINITIALIZED,
        Confidence.LIKELY,
        "{who} uses a {type}{hint} that was never initialised.",
        "an object that was cleared after it had been initialised",
        "type",
    ),
    Rule(
        _line(r"active_state [\w ]{1,20}"),
        Cause.ASSERTION,
        Confidence.POSSIBLE,
        "{who} uses a {type}{hint} that is not in the state that it must be in: it was handed over twice, or its "
        "memory was reused.",
        "",
        "type",
    ),
    Rule(
        _line("(?P<what>init|activate|destroy) active"),
        Cause.ASSERTION,
        Confidence.LIKELY,
        "{who} asks to {what} a {type}{hint} that is active.",
        "",
        "type",
    ),
)


@detector(
    "object-lifetime",
    needs=(Need.REPORT,),
    about="timers, work and RCU callbacks that are freed while active, or used before they are initialised",
    depth=65,
    kinds=(Kind.ODEBUG,),
)
def find_lifetime(scene: Scene) -> Iterator[Finding]:
    """Say what was done with the object, and in which state it was."""
    yield from tell(scene, "object-lifetime", _RULES, reword=_reword)


def _reword(words: dict[str, str]) -> None:
    hint = words.get("hint", "")
    words["hint"] = f" ({hint})" if hint else ""
    words["what"] = {"init": "initialise"}.get(words.get("what", ""), words.get("what", ""))
