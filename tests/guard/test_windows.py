"""The fleet's counts: merging is adding, a stretch is every request that started in it, once, and memory is bounded."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from memos_llm.core.flags import EMBEDDING, GLOBAL, Flags, Latch, Scope, fresh
from memos_llm.core.outcome import Kind
from memos_llm.core.policy import Limits
from memos_llm.core.verdicts import Sum
from memos_llm.core.windows import KEEP_COARSE_S, Merged, WindowDelta, WindowKey, bucket, failed
from memos_llm.guard.deltas import Deltas
from memos_llm.guard.triggers import error_rate, latency
from memos_llm.guard.windows import Windows, belongs, current
from memos_llm.store.rows import Rows

BEGIN = 1_000_000_020  # a whole minute
SYNTHESIS, CLASSIFICATION = (
    WindowKey(scope=GLOBAL, epoch=3, provider="vllm", model="qwen3:8b", component=component)
    for component in ("synthesis", "classification")
)


JUDGED = Sum(provider="vllm")
SEEN_MEANWHILE = WindowDelta(key=SYNTHESIS, start=BEGIN, counts={"n": 1})  # while the store answered


def everything(_: WindowKey) -> bool:
    return True


@dataclass(frozen=True)
class Seen:
    """What one request adds to its row."""

    key: WindowKey
    start: int
    failure: Kind | None
    slow: bool
    latency_s: float

    def delta(self, *parts: str) -> WindowDelta:
        told: dict[str, dict[str, int]] = {
            "start": {"n": 1, "t": 1},
            "end": {"e": 1} | ({"k": 1, failed(self.failure): 1} if self.failure else {}),
            "latency": {"r": 1, bucket(self.latency_s): 1} | ({"s": 1} if self.slow else {}),
        }
        counts = {field: count for part in parts for field, count in told[part].items()}
        return WindowDelta(key=self.key, start=self.start, counts=counts)


seen = st.builds(
    Seen,
    key=st.sampled_from([SYNTHESIS, CLASSIFICATION, replace(SYNTHESIS, provider="ollama")]),
    start=st.integers(BEGIN, BEGIN + 400),
    failure=st.sampled_from([None, None, Kind.SERVER, Kind.TIMEOUT]),
    slow=st.booleans(),
    latency_s=st.floats(0.0, 700.0),
)


def naive(requests: Iterable[Seen], since: int, until: int) -> tuple[int, ...]:
    mine = [one for one in requests if since <= one.start < until]
    failures, slow = sum(one.failure is not None for one in mine), sum(one.slow for one in mine)
    return len(mine), len(mine), failures, len(mine), len(mine), slow


def asked(windows: Windows, since: float, until: float, block_s: int = 10) -> tuple[object, ...]:
    """All that windows say of a stretch."""
    return (
        windows.counted(everything, since, until),
        windows.blocks(everything, since, until, block_s),
        windows.kinds(everything, since, until),
        windows.p95_s(everything, since, until),
    )


@settings(max_examples=60)
@given(requests=st.lists(seen, max_size=40), processes=st.integers(1, 4), rng=st.randoms(use_true_random=False))
def test_any_number_of_processes_that_add_in_any_order_count_what_one_that_saw_everything_counts(
    requests: Sequence[Seen], processes: int, rng: Random
) -> None:
    parts = [one.delta(part) for one in requests for part in ("start", "end", "latency")]
    rng.shuffle(parts)
    store, fleet = Rows(), [Windows() for _ in range(processes)]
    for part in parts:
        windows = rng.choice(fleet)
        windows.add(part)
        if rng.random() < 0.3:
            owed = windows.owed()
            merged = store.merge(owed, windows.cursor, BEGIN + 400)
            windows.add(SEEN_MEANWHILE)
            windows.learn(merged, owed)
            windows.add(replace(SEEN_MEANWHILE, counts={"n": -1}))
    for windows in [*fleet, *fleet]:  # once to bring the rest, once to learn of it
        owed = windows.owed()
        windows.learn(store.merge(owed, windows.cursor, BEGIN + 400), owed)
    whole = Windows()
    for one in requests:
        whole.add(one.delta("start", "end", "latency"))

    for windows in fleet:
        assert not windows.owed()
        for since, until in [(BEGIN, BEGIN + 401), (BEGIN + 70, BEGIN + 200), (BEGIN + 7.5, BEGIN + 9.5)]:
            assert asked(windows, since, until) == asked(whole, since, until)


@settings(max_examples=60)
@given(
    requests=st.lists(seen, max_size=40),
    since=st.integers(BEGIN - 20, BEGIN + 420),
    length=st.integers(0, 420),
    brought=st.booleans(),
)
def test_a_window_is_what_counting_the_requests_one_by_one_gives(
    requests: Sequence[Seen], since: int, length: int, brought: bool
) -> None:
    windows, until = Windows(), since + length
    for one in requests:
        windows.add(one.delta("start"))
        windows.add(one.delta("end", "latency"))
    if brought:
        owed = windows.owed()
        windows.learn(Rows().merge(owed, 0, BEGIN + 400), owed)
    mine = [one for one in requests if since <= one.start < until]
    blocks: dict[int, list[int]] = {}
    for one in mine:
        block = blocks.setdefault(one.start // 10, [0, 0])
        block[0] += 1
        block[1] += one.slow

    assert windows.counted(everything, since, until) == naive(requests, since, until)
    assert windows.blocks(everything, since, until, 10) == [(t, s) for _, (t, s) in sorted(blocks.items())]
    assert windows.kinds(everything, since, until) == Counter(one.failure.value for one in mine if one.failure)
    for provider in ("vllm", "ollama"):
        expected = naive([one for one in requests if one.key.provider == provider], since, until)
        found = windows.counted(lambda key, p=provider: key.provider == p, since, until)  # type: ignore[misc]  # mypy cannot infer a default's type
        assert found == expected


@settings(max_examples=60)
@given(
    requests=st.lists(seen, min_size=1, max_size=30),
    age_s=st.integers(0, 2_500),
    cut=st.integers(-30, 430),
    brought=st.booleans(),
)
def test_as_seconds_grow_old_and_minutes_take_over_nothing_is_counted_twice_or_lost(
    requests: Sequence[Seen], age_s: int, cut: int, brought: bool
) -> None:
    """Two stretches that meet anywhere are the whole, at every age, whether the store has got the counts or not."""
    store, windows, now = Rows(), Windows(), BEGIN + 400 + age_s
    for one in requests:
        windows.add(one.delta("start", "end", "latency"))
    if brought:
        owed = windows.owed()
        windows.learn(store.merge(owed, 0, BEGIN + 400), owed)
        windows.learn(store.merge([], windows.cursor, now))
    windows.prune(now, everything)

    whole = windows.counted(everything, BEGIN, now)
    parts = [windows.counted(everything, BEGIN, BEGIN + cut), windows.counted(everything, max(BEGIN, BEGIN + cut), now)]
    assert whole == naive(requests, BEGIN, now)
    assert [sum(pair) for pair in zip(*parts, strict=True)] == list(whole)


@settings(max_examples=30)
@given(requests=st.lists(seen, min_size=1, max_size=30), age_s=st.integers(0, 2_500), at=st.integers(0, 2_500))
def test_a_process_that_comes_late_sees_what_the_others_see(requests: Sequence[Seen], age_s: int, at: int) -> None:
    store, now = Rows(), BEGIN + 400 + age_s
    store.merge([one.delta("start", "end", "latency") for one in requests], 0, BEGIN + 400)
    late = Windows()
    late.learn(store.merge([], 0, now))
    late.prune(now + 1, everything)

    assert late.counted(everything, BEGIN, now) == naive(requests, BEGIN, now)


def test_a_request_that_ends_when_its_second_is_long_past_is_counted_in_its_minute() -> None:
    store, windows = Rows(), Windows()
    request = Seen(SYNTHESIS, BEGIN + 5, Kind.TIMEOUT, slow=True, latency_s=1300.0)
    for at, part in [(BEGIN + 5, "start"), (BEGIN + 1305, "end"), (BEGIN + 1305, "latency")]:
        windows.add(request.delta(part))
        owed = windows.owed()
        windows.learn(store.merge(owed, windows.cursor, at), owed)

    assert windows.counted(everything, BEGIN, BEGIN + 1400) == (1, 1, 1, 1, 1, 1)
    assert windows.counted(everything, BEGIN + 60, BEGIN + 1400).n == 0


def test_what_the_store_has_not_got_counts_meanwhile_and_once() -> None:
    store, windows = Rows(), Windows()
    request = Seen(SYNTHESIS, BEGIN, None, slow=False, latency_s=1.0)
    windows.add(request.delta("start"))
    assert windows.counted(everything, BEGIN, BEGIN + 1).n == 1
    owed = windows.owed()
    merged = store.merge(owed, windows.cursor, BEGIN)
    windows.add(request.delta("end"))
    windows.learn(merged, owed)

    assert windows.counted(everything, BEGIN, BEGIN + 1)[:2] == (1, 1)
    assert windows.owed() == [request.delta("end")]


def test_what_was_asked_before_is_asked_anew_once_more_is_known() -> None:
    store, windows = Rows(), Windows()
    request = Seen(SYNTHESIS, BEGIN + 61, Kind.SERVER, slow=False, latency_s=1.0)
    for part, expected in [("start", (1, 0, 0)), ("end", (1, 1, 1))]:
        windows.learn(store.merge([request.delta(part)], windows.cursor, BEGIN + 200))
        assert windows.counted(everything, BEGIN, BEGIN + 200)[:3] == expected


def test_what_was_folded_while_the_store_answered_is_taken_off_where_it_is_now() -> None:
    deltas = Deltas(seconds=2)
    one, two, three = (WindowDelta(key=SYNTHESIS, start=BEGIN + second, counts={"n": 1}) for second in (1, 2, 3))
    deltas.add(one)
    deltas.add(two)
    given = list(deltas)
    deltas.add(three)
    deltas.subtract(given)

    assert list(deltas) == [WindowDelta(key=SYNTHESIS, start=BEGIN, counts={"n": 1})]


def test_another_store_makes_it_forget_what_the_first_one_told() -> None:
    windows = Windows()
    request = Seen(SYNTHESIS, BEGIN, None, slow=False, latency_s=1.0)
    Rows().merge([request.delta("start")], 0, BEGIN)
    first = Rows()
    windows.learn(first.merge([request.delta("start")], 0, BEGIN))
    assert windows.counted(everything, BEGIN, BEGIN + 1).n == 1
    windows.learn(Merged(at=BEGIN, cursor=1, rows=(), whole=True))

    assert windows.counted(everything, BEGIN, BEGIN + 1).n == 0


def test_a_clock_that_was_an_hour_ahead_for_a_moment_hides_nothing_afterwards() -> None:
    store, windows = Rows(), Windows()
    deltas = [Seen(SYNTHESIS, BEGIN + second, None, slow=False, latency_s=1.0).delta("start") for second in range(40)]
    windows.learn(store.merge(deltas[:10], windows.cursor, BEGIN + 10))
    windows.learn(store.merge(deltas[10:20], windows.cursor, BEGIN + 3620))
    for second in range(20, 40):
        windows.learn(store.merge([deltas[second]], windows.cursor, BEGIN + second))

    assert windows.counted(everything, BEGIN + 20, BEGIN + 40).n == 20


def test_a_failure_whose_start_was_forgotten_is_a_request_that_failed() -> None:
    """A clock that is a day ahead for a moment has a store forget what is in flight, and be told the rest later."""
    windows, request = Windows(), Seen(SYNTHESIS, BEGIN, Kind.SERVER, slow=True, latency_s=9.0)
    windows.add(request.delta("end", "latency"))
    assert windows.counted(everything, BEGIN, BEGIN + 1) == (1, 1, 1, 1, 1, 1)
    assert windows.blocks(everything, BEGIN, BEGIN + 1, 10) == [(1, 1)]


@given(
    requests=st.lists(st.tuples(seen, st.sets(st.sampled_from(["start", "end", "latency"]))), max_size=40),
    taken_back=st.lists(st.sampled_from(["n", "e", "k", "t", "r", "s", failed(Kind.SERVER)]), max_size=5),
)
@settings(max_examples=60)
def test_whatever_was_forgotten_every_count_can_be_and_can_be_judged(
    requests: Sequence[tuple[Seen, set[str]]], taken_back: Sequence[str]
) -> None:
    windows = Windows()
    for one, parts in requests:
        windows.add(one.delta(*parts))
    for field in taken_back:  # of requests that turned out to be none
        windows.add(WindowDelta(key=SYNTHESIS, start=BEGIN, counts={field: -1}))
    counted = windows.counted(everything, BEGIN, BEGIN + 400)
    assert 0 <= counted.failures <= counted.ended <= counted.n
    assert 0 <= counted.slow <= counted.resolved <= counted.timed
    blocks = windows.blocks(everything, BEGIN, BEGIN + 400, 10)
    assert all(0 <= slow <= timed for timed, slow in blocks)
    limits = Limits(error_rate=0.05, latency_p95_s=5.0, min_requests=1)
    for verdict in (
        error_rate(JUDGED, limits, counted, BEGIN),
        latency(JUDGED, limits, counted, blocks, BEGIN),
    ):
        assert verdict.k <= verdict.n
    assert all(count > 0 for count in windows.arm(JUDGED, everything, BEGIN, BEGIN + 400).kinds.values())


def test_keys_that_are_not_kept_are_forgotten() -> None:
    store, windows = Rows(), Windows()
    for key in (SYNTHESIS, replace(SYNTHESIS, epoch=4)):
        store.merge([Seen(key, BEGIN, None, slow=False, latency_s=1.0).delta("start")], 0, BEGIN)
    windows.learn(store.merge([], 0, BEGIN))
    windows.prune(BEGIN + 1, lambda key: key.epoch == 4)

    assert {key.epoch for key in windows.keys()} == {4}  # noqa: SIM118 - no dictionary


def test_what_is_remembered_is_bounded_while_the_store_is_away_for_a_day() -> None:
    windows = Windows()
    for second in range(0, 26 * 3600, 10):
        windows.add(Seen(SYNTHESIS, BEGIN + second, None, slow=False, latency_s=1.0).delta("start"))
        if second % 600 == 0:
            windows.prune(BEGIN + second, everything)
    now = BEGIN + 26 * 3600
    windows.prune(now, everything)

    assert len(windows) < 2_000
    assert windows.counted(everything, now - KEEP_COARSE_S, now).n == KEEP_COARSE_S // 10
    assert windows.lost == pytest.approx(2 * 360, abs=12)


def by_minute(found: Iterable[WindowDelta]) -> dict[object, int]:
    sums: Counter[object] = Counter()
    for delta in found:
        for field, count in delta.counts.items():
            sums[delta.key, delta.start // 60, field] += count
    return {place: count for place, count in sums.items() if count}


@settings(max_examples=60)
@given(
    requests=st.lists(seen, max_size=60),
    rng=st.randoms(use_true_random=False),
)
def test_folding_seconds_into_minutes_loses_no_count(requests: Sequence[Seen], rng: Random) -> None:
    deltas, brought = Deltas(seconds=4), Deltas()
    for one, part in product(requests, ("start", "end", "latency")):
        deltas.add(one.delta(part))
        if rng.random() < 0.2:
            taken = list(deltas)
            deltas.add(SEEN_MEANWHILE)
            deltas.subtract(taken)
            deltas.add(replace(SEEN_MEANWHILE, counts={"n": -1}))
            for delta in taken:
                brought.add(delta)
    for delta in deltas:
        brought.add(delta)

    assert by_minute(brought) == by_minute(one.delta("start", "end", "latency") for one in requests)
    assert deltas.lost == 0


def test_the_95th_percentile_is_within_five_per_cent() -> None:
    windows, latencies = Windows(), [0.01 * 1.013**n for n in range(800)]
    for latency_s in latencies:
        windows.add(Seen(SYNTHESIS, BEGIN, None, slow=False, latency_s=latency_s).delta("start", "latency"))
    exact = sorted(latencies)[int(0.95 * len(latencies)) - 1]

    assert windows.p95_s(everything, BEGIN, BEGIN + 1) == pytest.approx(exact, rel=0.05)
    assert windows.p95_s(everything, BEGIN + 1, BEGIN + 2) is None


def test_an_arm_of_a_stretch_says_what_an_incident_needs() -> None:
    windows = Windows()
    for number in range(20):
        request = Seen(SYNTHESIS, BEGIN + number, Kind.SERVER if number < 3 else None, number < 2, 0.5)
        windows.add(request.delta("start", "end", "latency"))
    arm = windows.arm(Sum(provider="vllm", component="synthesis"), everything, BEGIN, BEGIN + 20)

    assert (arm.n, arm.ended, arm.failures, arm.timed, arm.slow) == (20, 20, 3, 20, 2)
    assert arm.kinds == {"server": 3}
    assert arm.p95_ms == pytest.approx(500, rel=0.05)


def flags(**scopes: Scope) -> Flags:
    return replace(fresh("i", "00"), scopes={GLOBAL: Scope(share_ppm=1, epoch=3), **scopes})


@pytest.mark.parametrize(
    ("said", "key", "expected"),
    [
        (flags(), SYNTHESIS, True),
        (flags(), replace(SYNTHESIS, epoch=2), False),
        (flags(synthesis=Scope(share_ppm=5, epoch=9)), SYNTHESIS, False),
        (flags(synthesis=Scope(share_ppm=5, epoch=9)), CLASSIFICATION, True),
        (flags(synthesis=Scope(share_ppm=5, epoch=9)), replace(SYNTHESIS, scope="synthesis", epoch=9), True),
        (flags(synthesis=Scope(epoch=9, latch=Latch("vllm", 1.0, "inc", 1.0))), SYNTHESIS, False),
        (flags(embedding=Scope(share_ppm=0, epoch=1)), replace(SYNTHESIS, scope=EMBEDDING, epoch=1), True),
    ],
)
def test_current_is_what_the_flags_in_force_would_assign(said: Flags, key: WindowKey, expected: bool) -> None:
    assert current(said, key) is expected


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        (Sum(provider="vllm"), True),
        (Sum(provider="vllm", component="synthesis"), True),
        (Sum(provider="vllm", model="qwen3:8b"), True),
        (Sum(provider="vllm", component="classification"), False),
        (Sum(provider="vllm", model="llama3.2:3b"), False),
        (Sum(provider="ollama"), False),
    ],
)
def test_a_key_belongs_to_its_provider_component_and_model(judged: Sum, expected: bool) -> None:
    assert belongs(judged, SYNTHESIS) is expected
