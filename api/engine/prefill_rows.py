"""How a step's prompt tokens are divided among the prompts that are being computed.

    budget  -> scopes ...... equal parts; what one does not need, the others get
    a part  -> prompts ..... no prompt more than `part` of it while another one wants some

Within a scope the oldest prompt is served first, so that it ends however many follow. Then come those that others
wait for, those of smaller `priority` number, and the ones that have the fewest tokens left: a short prompt is
through in a step, and costs a long one beside it no more than that. A prompt alone gets everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prefill:
    """A prompt in prefill."""

    scope: str
    rows: int
    """Tokens left to compute."""
    priority: int = 0
    is_awaited: bool = False
    """Others wait for chunks that it has claimed."""


def prefill_rows(prompts: Sequence[Prefill], budget: int, part: float, turn: int = 0) -> list[int]:
    """How many tokens of each prompt a step computes: `budget` together, or all there are.

    Args:
        prompts: oldest first.
        budget: tokens, at least 1.
        part: most that one prompt takes of what its scope has, between 0 and 1, while others want some.
        turn: counts steps. Where there are more scopes than tokens, it is another scope's turn in each.
    """
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt.scope, []).append(place)
    scopes = list(places.values())
    begin = turn % max(1, len(scopes))
    scopes = scopes[begin:] + scopes[:begin]
    wanted = [sum(prompts[place].rows for place in scope) for scope in scopes]
    rows = [0] * len(prompts)
    for scope, share in zip(scopes, equal_parts(wanted, budget)):
        for place, given in zip(scope, _within([prompts[place] for place in scope], share, part)):
            rows[place] = given
    return rows


def equal_parts(wanted: Sequence[int], budget: int) -> list[int]:
    """Divides a budget equally, none more than it wants, and all of it where they want as much."""
    given = [0] * len(wanted)
    while budget > 0 and (hungry := [place for place, want in enumerate(wanted) if given[place] < want]):
        share = max(1, budget // len(hungry))
        for place in hungry:
            more = min(share, wanted[place] - given[place], budget)
            given[place] += more
            budget -= more
    return given


def _within(prompts: Sequence[Prefill], budget: int, part: float) -> list[int]:
    """Divides one scope's tokens among its prompts, oldest first."""
    rows = [0] * len(prompts)
    most = max(1, int(budget * part))
    order = [0, *sorted(range(1, len(prompts)), key=lambda place: _rank(prompts[place]))]
    for place, limit in _passes(order, most, budget):
        more = max(0, min(limit, prompts[place].rows) - rows[place])
        rows[place] += min(more, budget)
        budget -= min(more, budget)
        if not budget:
            break
    return rows


def _passes(order: Sequence[int], most: int, budget: int) -> Iterator[tuple[int, int]]:
    """Each prompt up to its most; then what is left, in the same order."""
    for limit in (most, budget):
        for place in order:
            yield place, limit


def _rank(prompt: Prefill) -> tuple[bool, int, int]:
    return not prompt.is_awaited, prompt.priority, prompt.rows
