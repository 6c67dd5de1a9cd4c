"""The verdict: whether what the clients saw is what the issue promises. Pure functions over the tally.

The split is deterministic, so the expected set of conversations is known exactly (slot < share); the binomial bounds
say apart from that whether such a split is a fair sample of the share at all.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from memos_llm.cli.demo.tally import BASELINE, CANDIDATE, Served, Stage, Tally, percentile_ms
from memos_llm.core.flags import PPM
from memos_llm.router.split import GROUP, slot

OUTSIDE = 0.001  # the part of fair splits that fall outside the bounds, both sides together
SHOWN = 3  # examples of a failed check

Slots = Mapping[str, int]


def slots(tally: Tally, salt: str) -> Slots:
    """Conversation → its slot, 0 … 999,999."""
    return {session.id: slot(salt, GROUP, session.key) for session in tally.sessions.values()}


def bounds(n: int, share_ppm: int, outside: float = OUTSIDE) -> tuple[int, int]:
    """The least and the most of `n` fair draws, exact binomial; each side leaves out at most half of `outside`."""
    share = share_ppm / PPM
    weights = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
    return _first_beyond(weights, outside / 2), n - _first_beyond(weights[::-1], outside / 2)


def _first_beyond(weights: list[float], limit: float) -> int:
    total = 0.0
    for k, weight in enumerate(weights):
        total += weight
        if total > limit:
            return k
    return len(weights) - 1


@dataclass(frozen=True, slots=True)
class Row:
    """One stage in figures. `expected` and `observed` count conversations on the candidate; `talked` all that spoke."""

    title: str
    share_ppm: int
    duration_s: float
    requests: int
    talked: int
    expected: int
    observed: int
    low: int
    high: int
    errors: int
    fallbacks: int
    by_baseline: int
    by_candidate: int
    p50_ms: float
    p95_ms: float


def row(tally: Tally, number: int, slots: Slots) -> Row:
    """One stage of the table."""
    stage, requests = tally.stages[number], tally.of_stage(number)
    settled = [one for one in tally.of_stage(number, settled=True) if not one.problem]
    talked = {one.session for one in settled}
    low, high = bounds(len(talked), stage.share_ppm)
    return Row(
        title=stage.title,
        share_ppm=stage.share_ppm,
        duration_s=(stage.ended_s or stage.started_s) - stage.started_s,
        requests=len(requests),
        talked=len(talked),
        expected=sum(slots[session] < stage.share_ppm for session in talked),
        observed=len({one.session for one in settled if one.arm == "candidate"}),
        low=low,
        high=high,
        errors=sum(bool(one.problem) for one in requests),
        fallbacks=sum(one.fell_back for one in requests),
        by_baseline=sum(one.provider == BASELINE for one in requests),
        by_candidate=sum(one.provider == CANDIDATE for one in requests),
        p50_ms=percentile_ms(requests, 0.5),
        p95_ms=percentile_ms(requests, 0.95),
    )


def rows(tally: Tally, slots: Slots) -> list[Row]:
    return [row(tally, number, slots) for number in range(len(tally.stages))]


def failures(tally: Tally, slots: Slots) -> list[str]:
    """What does not fit, one line each; empty: the verdict is yes."""
    found = list(_client_errors(tally))
    for number, stage in enumerate(tally.stages):
        found += _share(stage, row(tally, number, slots), len(tally.sessions))
        found += _assigned(stage, tally.of_stage(number, settled=True), slots)
        found += _answered_by(stage, tally.of_stage(number, settled=True))
    found += _flipped_back(tally)
    return found


def _client_errors(tally: Tally) -> Iterator[str]:
    wrong = tally.problems
    if wrong:
        yield f"clients saw {len(wrong)} errors: {_examples(wrong)}"


def _share(stage: Stage, row: Row, sessions: int) -> Iterator[str]:
    if row.talked < sessions and not row.errors:
        yield f"{stage.title}: only {row.talked} of {sessions} conversations spoke"
    if row.observed != row.expected:
        yield f"{stage.title}: {row.observed} conversations on vLLM, the split says {row.expected}"
    if not row.low <= row.observed <= row.high:
        yield f"{stage.title}: {row.observed} conversations on vLLM, outside {row.low} to {row.high} (binomial 99.9 %)"


def _assigned(stage: Stage, requests: list[Served], slots: Slots) -> Iterator[str]:
    """Request by request: the same conversation is always on the same arm, the one that its slot says."""
    astray = [one for one in requests if one.arm and (one.arm == "candidate") != (slots[one.session] < stage.share_ppm)]
    if astray:
        yield f"{stage.title}: {len(astray)} requests on the wrong arm: {_examples(astray)}"


def _answered_by(stage: Stage, requests: list[Served]) -> Iterator[str]:
    """The assigned provider answers at the first attempt; while the candidate is dead the baseline answers all."""
    if stage.dead:
        astray = [one for one in requests if one.provider and one.provider != BASELINE]
    else:
        astray = [one for one in requests if one.arm and (one.fell_back or one.attempts != 1)]
    if astray:
        yield f"{stage.title}: {len(astray)} requests were not answered by whom they should: {_examples(astray)}"


def _flipped_back(tally: Tally) -> Iterator[str]:
    """Shares only grow in the demo, so a conversation that was once on the candidate stays, changes included."""
    moved: set[str] = set()
    back: list[Served] = []
    for one in sorted(tally.served, key=lambda one: one.number):
        if one.arm == "candidate":
            moved.add(one.session)
        elif one.arm and one.session in moved:
            back.append(one)
    if back:
        yield f"{len({one.session for one in back})} conversations flipped back to Ollama: {_examples(back)}"


def _examples(requests: list[Served]) -> str:
    shown = [
        f"{one.session} ({one.problem or f'arm {one.arm}, answered by {one.provider}, {one.attempts} attempts'})"
        for one in requests[:SHOWN]
    ]
    return "; ".join(shown) + (" …" if len(requests) > SHOWN else "")
