"""What `llmctl bench` measured, as figures, and as ratios of one provider to another. Pure.

A *turn* is one provider's round at one level of concurrency: every client sends one request, all at once, and the turn
ends with the last answer. A rate counts the work of all turns over their wall time, so that waiting in a queue is in
it. Turns of one round were measured right after one another: a ratio draws whole rounds again and again, both sides
together, so that what drifted over both is in neither.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from statistics import fmean, median

from msgspec import Struct

FEW = 20  # answers; with fewer the 95th percentile is the greatest one
DRAWS, MOST_DRAWN = 2000, 1_000_000  # of the bootstrap, and how many samples they may look at
COVERED = 0.95
LEAST_ROUNDS = 6  # for an interval: of fewer, chance alone too often puts all on one side (6: 2 of 64)

LOAD_LEAST_S, LOAD_FACTOR = 0.5, 3.0  # a warm-up that takes so much longer than the usual one has loaded the model


class Sample(Struct, frozen=True, kw_only=True):
    """One request. Seconds since it was sent.

    Attributes:
        prompt: its place in the list of prompts, from 0; never its text.
        ttft_s, last_s: to the first and to the last text, reasoning included; None unless streamed.
        whole_s: to the end of the answer, or to the error.
        input_tokens, output_tokens: as the back end reported them; None when it did not.
        error: what went wrong, in a word or two; empty when it was answered.
    """

    prompt: int
    prompt_chars: int
    whole_s: float
    ttft_s: float | None = None
    last_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str = ""

    @property
    def tpot_s(self) -> float | None:
        """Time per output token: of all but the first, as vLLM's own benchmark has it."""
        if self.ttft_s is None or self.last_s is None or self.output_tokens is None or self.output_tokens < 2:
            return None
        return (self.last_s - self.ttft_s) / (self.output_tokens - 1)


class Turn(Struct, frozen=True, kw_only=True):
    """One round of one provider. `warm_up_s`: of the call before it, None when that failed.

    `client_cpu_s` is the CPU time of the measuring process itself.
    """

    model: str
    provider: str
    concurrency: int
    round: int
    wall_s: float
    warm_up_s: float | None
    client_cpu_s: float
    samples: tuple[Sample, ...]

    @property
    def answered(self) -> list[Sample]:
        return [sample for sample in self.samples if not sample.error]


Turns = Sequence[Turn]


class Figures(Struct, frozen=True, kw_only=True):
    """One provider at one level. Times in seconds; None: nothing to tell it from.

    Attributes:
        per_s: output tokens a second over all clients together; for an embedding model embeddings a second.
        few: too few answers for a 95th percentile: what stands there is the greatest.
        without_usage: answers that came without token counts.
    """

    model: str
    provider: str
    concurrency: int
    rounds: int
    requests: int
    answered: int
    errors: dict[str, int]
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    tpot_p50_s: float | None
    whole_p50_s: float | None
    whole_p95_s: float | None
    per_s: float | None
    output_tokens_mean: float | None
    few: bool
    without_usage: int
    client_cores: float


class Ratio(Struct, frozen=True, kw_only=True):
    """A figure over the reference's; between `low` and `high` with 95% (None: too few rounds for an interval)."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def clear(self) -> bool:
        """Whether chance is an unlikely reason for the difference."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


class Comparison(Struct, frozen=True, kw_only=True):
    """One provider against the reference at one level; a ratio is None where a side has no such figure."""

    model: str
    provider: str
    reference: str
    concurrency: int
    per_s: Ratio | None
    ttft_p50: Ratio | None
    tpot_p50: Ratio | None
    whole_p50: Ratio | None


def percentile(values: Sequence[float], part: float) -> float:
    """The nearest rank: the least value that `part` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _late(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return percentile(known, 0.95 if len(known) >= FEW else 1.0) if known else None


def tokens_per_s(turns: Turns) -> float | None:
    """None without answers, and when an answer came without its count: a part would pass for the whole."""
    counts = [sample.output_tokens for turn in turns for sample in turn.answered]
    known = [count for count in counts if count is not None]
    return _rate(sum(known), turns) if counts and len(known) == len(counts) else None


def embeddings_per_s(turns: Turns) -> float | None:
    return _rate(sum(len(turn.answered) for turn in turns), turns)


def _rate(work: int, turns: Turns) -> float | None:
    wall_s = sum(turn.wall_s for turn in turns)
    return work / wall_s if work and wall_s > 0 else None


def figures(turns: Turns, *, embeds: bool = False) -> Figures:
    """The figures of one provider's turns at one level (one at least)."""
    first, samples = turns[0], [sample for turn in turns for sample in turn.samples]
    answered = [sample for sample in samples if not sample.error]
    counts = [sample.output_tokens for sample in answered if sample.output_tokens is not None]
    wall_s = sum(turn.wall_s for turn in turns)
    return Figures(
        model=first.model,
        provider=first.provider,
        concurrency=first.concurrency,
        rounds=len(turns),
        requests=len(samples),
        answered=len(answered),
        errors=dict(Counter(sample.error for sample in samples if sample.error).most_common()),
        ttft_p50_s=middle(sample.ttft_s for sample in answered),
        ttft_p95_s=_late(sample.ttft_s for sample in answered),
        tpot_p50_s=middle(sample.tpot_s for sample in answered),
        whole_p50_s=middle(sample.whole_s for sample in answered),
        whole_p95_s=_late(sample.whole_s for sample in answered),
        per_s=(embeddings_per_s if embeds else tokens_per_s)(turns),
        output_tokens_mean=fmean(counts) if counts else None,
        few=len(answered) < FEW,
        without_usage=0 if embeds else len(answered) - len(counts),
        client_cores=sum(turn.client_cpu_s for turn in turns) / wall_s if wall_s > 0 else 0.0,
    )


Figure = Callable[[Turns], float | None]

MIDDLES: Mapping[str, Figure] = {
    "ttft_p50": lambda turns: middle(sample.ttft_s for turn in turns for sample in turn.answered),
    "tpot_p50": lambda turns: middle(sample.tpot_s for turn in turns for sample in turn.answered),
    "whole_p50": lambda turns: middle(sample.whole_s for turn in turns for sample in turn.answered),
}


def compare(mine: Turns, reference: Turns, *, embeds: bool = False, seed: int = 0) -> Comparison | None:
    """One level of a provider against the same of the reference, over the rounds that both have; None without any."""
    theirs = {turn.round: turn for turn in reference}
    pairs = [(turn, theirs[turn.round]) for turn in mine if turn.round in theirs]
    if not pairs:
        return None
    first, other = pairs[0]
    return Comparison(
        model=first.model,
        provider=first.provider,
        reference=other.provider,
        concurrency=first.concurrency,
        per_s=ratio(embeddings_per_s if embeds else tokens_per_s, pairs, seed),
        **{name: ratio(figure, pairs, seed) for name, figure in MIDDLES.items()},
    )


def ratio(figure: Figure, pairs: Sequence[tuple[Turn, Turn]], seed: int = 0) -> Ratio | None:
    """A figure of the first sides over that of the second, with its bootstrap interval (Efron: percentiles).

    Equal arguments give equal intervals.
    """
    value = _quotient(figure, pairs)
    if value is None:
        return None
    if len(pairs) < LEAST_ROUNDS:
        return Ratio(value=value)
    random, samples = Random(seed), sum(len(mine.samples) + len(other.samples) for mine, other in pairs)
    draws = max(100, min(DRAWS, MOST_DRAWN // max(1, samples)))
    drawn = [_quotient(figure, random.choices(pairs, k=len(pairs))) for _ in range(draws)]
    known = [quotient for quotient in drawn if quotient is not None]
    if not known:
        return Ratio(value=value)
    return Ratio(value=value, low=percentile(known, (1 - COVERED) / 2), high=percentile(known, (1 + COVERED) / 2))


def _quotient(figure: Figure, pairs: Sequence[tuple[Turn, Turn]]) -> float | None:
    mine, other = (figure([pair[side] for pair in pairs]) for side in (0, 1))
    return mine / other if mine is not None and other else None


def loads(warm_ups: Iterable[float | None]) -> list[float]:
    """How long each load took, as told by the warm-up calls of one provider: what stands out over the quickest."""
    known = [seconds for seconds in warm_ups if seconds is not None]
    usual = min(known, default=0.0)
    return [seconds - usual for seconds in known if seconds > max(usual + LOAD_LEAST_S, usual * LOAD_FACTOR)]
