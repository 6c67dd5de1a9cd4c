"""The plan: what is drawn, how often, and what it is held to. One process per core; the same seed draws the same."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from statistics import quantiles
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from memos_llm.bench.guard import bursts, counts, exact, faults, scenes
from memos_llm.bench.guard.bursts import Weather
from memos_llm.bench.guard.exact import REQUESTS, tripped_within
from memos_llm.bench.guard.results import Figure, Point, Report, bound
from memos_llm.bench.guard.traffic import Fired
from memos_llm.core.outcome import Kind
from memos_llm.core.policy import Limits
from memos_llm.core.verdicts import Trigger
from memos_llm.guard.sequences import parameters

Draw = Callable[[np.random.Generator], Any]
PER_S = (1, 10, 100)
ENDURED = 10_000_000

FALSE = f"False rollbacks within {REQUESTS:,} requests of a new epoch (error limit 5 %), both error rules"
SEEN = "Detection after 5 minutes with 1 % failing, both error rules"
SCENES = "Scenes, event by event"
SLOW = "Slowness (5 % may take longer than 5 s), both latency rules"
FEW = "One request a minute"


class Study(NamedTuple):
    """`draw` once: what became of it; `conclude`: what all of them say."""

    draw: Draw
    runs: int
    conclude: Callable[[list[Any]], Iterator[Figure | Point]]
    chunk: int = 50


def run(seed: int, scale: float, tell: Callable[[str], None], limits: Limits) -> Report:
    """`scale`: how much of the plan is drawn; of less than all of it the values are judged, for bounds are too wide."""
    began = time.monotonic()
    plan = [study._replace(runs=max(1, round(study.runs * scale))) for study in studies(limits)]
    found: list[Figure | Point] = [*exact.figures(limits), *exact.points(limits)]
    for study, outcomes in zip(plan, _draw(plan, seed, tell), strict=True):
        found.extend(study.conclude(outcomes))
    figures = [one for one in found if isinstance(one, Figure)]
    if scale < 1:
        figures = [replace(one, bound=False) for one in figures]
    sections = list(dict.fromkeys(figure.section for figure in figures))
    return Report(
        seed=seed,
        seconds=time.monotonic() - began,
        figures=tuple(sorted(figures, key=lambda figure: sections.index(figure.section))),
        points=tuple(one for one in found if isinstance(one, Point)),
    )


def _draw(plan: Sequence[Study], seed: int, tell: Callable[[str], None]) -> list[list[Any]]:
    """What came of each study, in the order of its runs. Longest first would be better; all are short."""
    jobs = [(place, first) for place, study in enumerate(plan) for first in range(0, study.runs, study.chunk)]
    parts: dict[tuple[int, int], list[Any]] = {}
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        waiting = {
            pool.submit(
                _chunk, plan[place].draw, min(plan[place].chunk, plan[place].runs - first), (seed, place, first)
            ): (
                place,
                first,
            )
            for place, first in jobs
        }
        for done, future in enumerate(as_completed(waiting), 1):
            parts[waiting[future]] = future.result()
            tell(f"{done} of {len(jobs)}")
    return [
        [one for first in range(0, study.runs, study.chunk) for one in parts[place, first]]
        for place, study in enumerate(plan)
    ]


def _chunk(draw: Draw, runs: int, seed: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [draw(rng) for _ in range(runs)]


def studies(limits: Limits) -> Iterator[Study]:
    yield from _false_alarms(limits)
    yield from _endurance(limits)
    yield from _detection(limits)
    yield from _stalls(limits)
    yield from _quick_errors(limits)
    yield from _slowness(limits)
    yield from _few(limits)


BATCH = 1000  # runs that `counts` draws at once


def _false_alarms(limits: Limits) -> Iterator[Study]:
    batches = {1: 5, 10: 40, 100: 60}
    for rate in (0.005, 0.01, 0.02, 0.03, 0.04):
        for per_s in PER_S:
            times = batches[per_s] * (6 if rate == 0.03 and per_s > 1 else 1)
            draw = partial(counts.false_alarms, limits=limits, rate=rate, per_s=per_s, requests=REQUESTS, runs=BATCH)
            yield Study(draw, times, partial(_false, limits, rate, per_s), chunk=10 if per_s > 1 else 1)


def _false(limits: Limits, rate: float, per_s: int, outcomes: list[int]) -> Iterator[Figure | Point]:
    """The sequential rule adds what it does exactly; both in one run count twice, to be on the safe side."""
    assert limits.error_rate is not None
    hits, runs = sum(outcomes), BATCH * len(outcomes)
    alone = tripped_within(REQUESTS, rate, parameters(limits.error_rate))
    held = rate == 0.03 and per_s > 1
    yield Figure(
        section=FALSE,
        case=f"{rate * 100:g} % failing, {per_s}/s",
        name="rolled back",
        value=hits / runs + alone,
        high=bound(hits, runs) + alone,
        unit="part",
        at_most=0.0002 if held else None,
        bound=held,
        runs=runs,
        note=f"{hits} by the window",
    )
    yield Point(picture="false_rollbacks", line=f"both rules, {per_s}/s", x=rate, y=hits / runs + alone)


def _endurance(limits: Limits) -> Iterator[Study]:
    for epoch, name in ((ENDURED, "one epoch"), (REQUESTS, f"epochs of {REQUESTS:,}")):
        draw = partial(faults.endure, limits=limits, rate=0.02, per_s=100, requests=ENDURED, epoch=epoch)
        yield Study(draw, 1, partial(_endured, name), chunk=1)


def _endured(name: str, outcomes: list[int]) -> Iterator[Figure]:
    case = f"2 % failing, 100/s, {ENDURED:,} in {name}"
    yield Figure(
        section=FALSE, case=case, name="rollbacks", value=sum(outcomes), unit="", at_most=0, runs=len(outcomes)
    )


def _detection(limits: Limits) -> Iterator[Study]:
    for rate in exact.FAULT_RATES:
        for per_s in PER_S:
            most = 40_000 if rate < 0.2 else 5_000
            draw = partial(_seen_once, limits=limits, rate=rate, per_s=per_s, most=most)
            yield Study(draw, 400, partial(_seen, rate, per_s, most), chunk=100)


def _seen_once(rng: np.random.Generator, limits: Limits, rate: float, per_s: int, most: int) -> faults.Seen | None:
    return faults.detect(rng, limits, rate, per_s, 1, most)[0]


def _seen(rate: float, per_s: int, most: int, outcomes: list[faults.Seen | None]) -> Iterator[Figure | Point]:
    seen = [one for one in outcomes if one]
    case, runs = f"{rate * 100:g} % failing, {per_s}/s", len(outcomes)
    requests = sorted([one.requests for one in seen] + [most] * (runs - len(seen)))
    at_most = exact.AT_MOST.get(rate)
    window = sum(one.by_window for one in seen)
    note = f"{window * 100 // runs} % by the window" + (
        f", {runs - len(seen)} not within {most:,}" if len(seen) < runs else ""
    )
    half, nearly = requests[(runs - 1) // 2], requests[(runs - 1) * 19 // 20]
    median = at_most if rate < 1 else None
    yield Figure(
        section=SEEN, case=case, name="median", value=half, unit="requests", at_most=median, runs=runs, note=note
    )
    yield Figure(section=SEEN, case=case, name="95 % within", value=nearly, unit="requests", runs=runs)
    if rate == 1:
        yield Figure(
            section=SEEN, case=case, name="all within", value=requests[-1], unit="requests", at_most=at_most, runs=runs
        )
    yield Point(picture="detection", line=f"median, {per_s}/s", x=rate, y=half)
    yield Point(picture="detection", line=f"95 %, {per_s}/s", x=rate, y=nearly)


def _stalls(limits: Limits) -> Iterator[Study]:
    for age_s, quick in ((300, False), (300, True), (60, False), (60, True)):
        yield _stall(limits, age_s, quick, runs=400, at_most=0.01)
    yield _stall(limits, 5, quick=True, runs=50, at_least=0.9)  # more than the limit of all that there was


def _stall(
    limits: Limits, age_s: int, quick: bool, runs: int, at_most: float | None = None, at_least: float | None = None
) -> Study:
    draw = partial(scenes.stall, limits=limits, age_s=age_s, rate=0.01, quick_errors=quick)
    how = "at once" if quick else "as slowly as answers"
    case = f"3 s stall, 50 in flight, 1 % failing {how}, epoch {age_s + 5} s old"
    conclude = partial(_rolled_back, SCENES, case, at_most=at_most, at_least=at_least)
    return Study(draw, runs, conclude, chunk=20)


def _rolled_back(
    section: str, case: str, outcomes: list[Any], at_most: float | None = None, at_least: float | None = None
) -> Iterator[Figure]:
    hits, runs = sum(one is not None for one in outcomes), len(outcomes)
    yield Figure(
        section=section,
        case=case,
        name="rolled back",
        value=hits / runs,
        high=bound(hits, runs),
        unit="part",
        at_most=at_most,
        at_least=at_least,
        bound=at_most is not None,
        runs=runs,
    )


def _quick_errors(limits: Limits) -> Iterator[Study]:
    case = "30 s answers, 2 % errors at once, 50/s"
    draw = partial(scenes.quick_errors, limits=limits, rate=0.02, per_s=50, until=20.0)
    yield Study(draw, 3200, partial(_rolled_back, SCENES, f"{case}: an epoch's first 20 s", at_most=0.001), chunk=100)
    by_counts = partial(counts.false_alarms, limits=limits, rate=0.02, per_s=50, requests=REQUESTS, runs=BATCH)
    yield Study(by_counts, 20, partial(_quick, limits, f"{case}: {REQUESTS:,} requests, by the second"), chunk=10)


def _quick(limits: Limits, case: str, outcomes: list[int]) -> Iterator[Figure]:
    """What fails is known at once, so that each second has the counts that it would have had with quick answers."""
    assert limits.error_rate is not None
    hits, runs = sum(outcomes), BATCH * len(outcomes)
    alone = tripped_within(REQUESTS, 0.02, parameters(limits.error_rate))
    yield Figure(
        section=SCENES,
        case=case,
        name="rolled back",
        value=hits / runs + alone,
        high=bound(hits, runs) + alone,
        unit="part",
        at_most=0.001,
        bound=True,
        runs=runs,
    )


def _slowness(limits: Limits) -> Iterator[Study]:
    for per_s, runs in ((1, 2000), (10, 6000), (100, 6000)):
        weather = Weather(mean=0.02, inside=0.30, burst_s=5)
        draw = partial(bursts.play, limits=limits, weather=weather, per_s=per_s, seconds=REQUESTS // per_s)
        case = f"2 % slow, in bursts of 5 s with 30 %, {per_s}/s, {REQUESTS:,} requests"
        yield Study(draw, runs, partial(_rolled_back, SLOW, case, at_most=0.002), chunk=200)
    for mean, at_most in ((0.10, 110), (0.20, 65), (0.50, 65)):
        draw = partial(bursts.play, limits=limits, weather=Weather(mean), per_s=10, seconds=1800)
        case = f"{mean * 100:g} % slow from an epoch's start, 10/s"
        yield Study(draw, 200, partial(_slow_seen, case, at_most), chunk=100)
    for per_s, steady, held in (
        (4, True, (5, 5, 5)),
        (10, True, (5, 5, 5)),
        (50, True, (5, 5, 5)),
        (4, False, (6, 8, 9)),  # by chance fewer than 4, which are looked at, may come in a second
        (10, False, (5, 5, 6)),
    ):
        late = partial(scenes.slowness, limits=limits, per_s=per_s, steady=steady, window=True)
        case = f"all slow, {per_s}/s {'evenly' if steady else 'by chance'}, after 5 good minutes"
        yield Study(late, 100, partial(_all_slow, case, held), chunk=20)


def _slow_seen(case: str, at_most: float, outcomes: list[tuple[int, Trigger] | None]) -> Iterator[Figure]:
    seconds = sorted(one[0] + 1 if one else 1800 for one in outcomes)
    half, runs = seconds[len(seconds) // 2], len(seconds)
    yield Figure(section=SLOW, case=case, name="median to verdict", value=half, unit="s", at_most=at_most, runs=runs)


def _all_slow(case: str, held: Sequence[float], outcomes: list[float | None]) -> Iterator[Figure]:
    """`held`: what half of them, 95 % and all are held to."""
    seconds, runs = sorted(80.0 if one is None else one for one in outcomes), len(outcomes)
    found = seconds[runs // 2], seconds[(runs - 1) * 19 // 20], seconds[-1]
    for name, value, at_most in zip(("median", "95 % within", "longest"), found, held, strict=True):
        name = f"after the limit passes, {name}"
        yield Figure(section=SLOW, case=case, name=name, value=value, unit="s", at_most=at_most, runs=runs)


def _few(limits: Limits) -> Iterator[Study]:
    for rate, kind, what, held in (
        (1.0, Kind.SERVER, "failing", 7),
        (1.0, Kind.TIMEOUT, "timing out after 20 s", 5),
        (1.0, Kind.OK, "slow", 20),
        (0.5, Kind.SERVER, "failing", 20),
        (0.2, Kind.SERVER, "failing", 70),
    ):
        draw = partial(scenes.few, limits=limits, rate=rate, kind=kind, hours=12.0)
        yield Study(draw, 60, partial(_few_seen, f"{rate * 100:g} % {what}", held), chunk=10)
    draw = partial(scenes.few, limits=limits, rate=0.02, kind=Kind.SERVER, hours=24.0)
    yield Study(draw, 20, partial(_rolled_back, FEW, "2 % failing, for a day"), chunk=5)


def _few_seen(case: str, at_most: float, outcomes: list[Fired | None]) -> Iterator[Figure]:
    minutes = sorted(one.at / 60 if one else 720.0 for one in outcomes)
    triggers = sorted({one.trigger.value for one in outcomes if one})
    cuts = quantiles(minutes, n=20)
    for name, value, held in (("median to verdict", cuts[9], at_most), ("95 % within", cuts[18], None)):
        yield Figure(
            section=FEW,
            case=case,
            name=name,
            value=value,
            unit="min",
            at_most=held,
            runs=len(minutes),
            note=", ".join(triggers),
        )
