"""Steps that lead to a value, and the rounds of a loop that gave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from postpanic.analysis.triage.faults.known_values import KnownValues
from postpanic.analysis.triage.faults.origin import Step, StepKind

__all__ = ["Chain", "go_round", "score", "shifted"]

_WORD = (1 << 64) - 1
_MOST_ROUNDS = 200_000


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps, the value that they lead to, and where a loop came back to itself."""

    steps: tuple[Step, ...]
    computed: int | None
    loops: Mapping[tuple[int, str], int] = field(default_factory=dict)
    """Definition that the loop came from, to the number of steps before it."""
    is_only: bool = True


def go_round(values: KnownValues, chain: Chain, key: tuple[int, str], wanted: int | None) -> Chain:
    """Where a loop gave the value, find the round that did: memory tells, from the first element on."""
    count = chain.loops.get(key)
    if count is None or wanted is None or chain.computed == wanted or count >= len(chain.steps):
        return chain
    ops = list(reversed(chain.steps[:count]))
    begin = chain.steps[count].value
    if begin is None or any(step.kind not in {StepKind.LOAD, StepKind.ADDRESS} for step in ops):
        return chain
    at = begin
    for rounds in range(_MOST_ROUNDS):
        bases: list[int] = []
        value: int | None = at
        for step in ops:
            assert value is not None  # noqa: S101 - the loop ends where it is not
            bases.append(value)
            value = (value + step.offset) & _WORD
            if step.kind is StepKind.LOAD:
                value = values.read(value, 64)
            if value is None:
                return chain
        if value == wanted:
            return _with_round(chain, bases, wanted, rounds)
        if value is None or value in {begin, at}:
            return chain
        at = value
    return chain


def _with_round(chain: Chain, bases: Sequence[int], value: int, rounds: int) -> Chain:
    steps = list(chain.steps)
    after = value
    for place, base in enumerate(reversed(bases)):
        step = steps[place]
        address = (base + step.offset) & _WORD if step.kind is StepKind.LOAD else None
        steps[place] = replace(
            step, base_value=base, value=after, address=address, is_verified=step.kind is StepKind.LOAD, rounds=rounds
        )
        after = base
    return replace(chain, steps=tuple(steps), computed=value)


def shifted(loops: Mapping[tuple[int, str], int]) -> dict[tuple[int, str], int]:
    """Count one step more before the loops."""
    return {key: count + 1 for key, count in loops.items()}


def score(chain: Chain, wanted: int | None) -> tuple[int, bool, int]:
    """Prefer what memory confirms, then what nothing speaks against, then what leads further."""
    if not chain.steps:
        return (0, False, 0)
    if wanted is None or chain.computed is None:
        fits = 2
    else:
        fits = 3 if chain.computed == wanted else 1
    if chain.steps[0].kind is StepKind.CHANGE:
        fits = min(fits, 2)
    load = next((step for step in chain.steps if step.kind is StepKind.LOAD), None)
    return (fits, load is not None and load.is_verified, len(chain.steps))
