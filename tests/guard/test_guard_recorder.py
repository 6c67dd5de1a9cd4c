"""What this process counts of its requests, against a naive recount of the list of them; and what its runs trip on."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from memos_llm.core.call import Feature, Operation, Target, Wire
from memos_llm.core.catalogue import Catalogue
from memos_llm.core.decision import Arm, Decision, Diversion, Reason
from memos_llm.core.events import AttemptEnded, AttemptStarted, ContentBegan, Event, RequestEnded
from memos_llm.core.flags import GLOBAL, Flags, Scope, fresh
from memos_llm.core.outcome import OUTCOMES, Kind, Outcome
from memos_llm.core.policy import GuardPolicy, Limits, Policy, Signal, Timeouts
from memos_llm.core.verdicts import Sum, Trigger
from memos_llm.core.windows import WindowDelta, bucket, failed
from memos_llm.guard import recorder as module
from memos_llm.guard.heard import raised
from memos_llm.guard.recorder import Recorder
from memos_llm.guard.runs import Trip
from memos_llm.guard.sequences import WAITS_S
from memos_llm.testing import ManualClock

STORE = 1_000_000_000.0  # Unix seconds, when the monotonic clock says 0
FAILURES = [kind for kind in Kind if OUTCOMES[kind].counts_against_arm]
LIMITS = Limits(latency_p95_s=5.0, abandon_s=20.0)


class World:
    """A recorder with everything around it under control. Its clock says 1000 at first."""

    def __init__(
        self, limits: Limits = LIMITS, fault: Callable[[Exception], None] = raised, **components: Limits
    ) -> None:
        self.clock = ManualClock(1000.0)
        self.policy = Policy(
            baseline="ollama",
            candidate="vllm",
            fallback=("ollama",),
            pins={},
            timeouts={"ollama": Timeouts(), "vllm": Timeouts()},
            catalogue=Catalogue([]),
            guard=GuardPolicy(default=limits, components=components),
        )
        self.flags: Flags = replace(fresh("i", "00"), scopes={GLOBAL: Scope(share_ppm=500_000, epoch=3)})
        self.recorder = Recorder(
            lambda: self.policy, lambda: self.flags, self.clock, lambda: STORE + self.clock.now, fault
        )
        self.recorder.at_store(STORE)
        self.ids = 0

    def decision(self, provider: str = "vllm", **changes: Any) -> Decision:
        base = Decision(
            arm=Arm.CANDIDATE if provider == "vllm" else Arm.BASELINE,
            targets=(Target(provider, "m"), Target("ollama" if provider == "vllm" else "vllm", "m")),
            reason=Reason.SPLIT,
            scope=GLOBAL,
            epoch=self.flags.scopes[GLOBAL].epoch,
            revision=1,
        )
        return replace(base, **changes)

    def tick(self) -> None:
        self.recorder.tick(self.clock.now)

    def epoch(self, number: int) -> None:
        self.tick()
        self.flags = replace(self.flags, scopes={GLOBAL: Scope(share_ppm=600_000, epoch=number)})

    def start(self, request_id: str = "", **changes: Any) -> "Request":
        self.ids += 1
        request = Request(self, request_id or f"r{self.ids}", changes.pop("decision", self.decision()), changes)
        request.attempt()
        return request

    def fail(self, count: int = 1, kind: Kind = Kind.SERVER, gap_s: float = 0.1, **changes: Any) -> None:
        """Requests one after the other, each of which fails after `gap_s`."""
        for _ in range(count):
            request = self.start(**changes)
            self.clock.advance(gap_s)
            request.ended(kind, gap_s)
            request.over(kind)
            self.clock.advance(0.01)

    def answer(self, count: int = 1, duration_s: float = 0.1, **changes: Any) -> None:
        for _ in range(count):
            request = self.start(**changes)
            self.clock.advance(duration_s)
            request.ended(Kind.OK, duration_s)
            request.over()

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            self.clock.advance(0.25)
            self.tick()

    def trips(self) -> dict[tuple[Trigger, Sum], Trip]:
        return {(trip.trigger, trip.sum): trip for trip in self.recorder.trips()}

    def counts(self) -> Counter[str]:
        """All that was drained, added up."""
        return added(self.recorder.drain())


class Request:
    """One request of a world; tells its events."""

    def __init__(self, world: World, request_id: str, decision: Decision, changes: dict[str, Any]) -> None:
        self.world, self.id, self.decision, self.changes = world, request_id, decision, changes

    def attempt(self, provider: str | None = None) -> "Request":
        base = AttemptStarted(
            request_id=self.id,
            provider=provider or self.decision.assigned,
            arm=self.decision.arm,
            endpoint="http://x",
            decision=self.decision,
            component="synthesis",
            model="qwen3:8b",
            operation=Operation.CHAT,
            stream=False,
            at=self.world.clock.now,
        )
        self.world.recorder.on_event(replace(base, **self.changes))
        return self

    def content(self, ttft_s: float, provider: str | None = None) -> None:
        self.world.recorder.on_event(
            ContentBegan(
                request_id=self.id,
                provider=provider or self.decision.assigned,
                endpoint="http://x",
                ttft_s=ttft_s,
                at=self.world.clock.now,
            )
        )

    def ended(self, kind: Kind, duration_s: float, provider: str | None = None, **more: Any) -> None:
        self.world.recorder.on_event(
            AttemptEnded(
                request_id=self.id,
                provider=provider or self.decision.assigned,
                endpoint="http://x",
                arm=self.decision.arm,
                component="synthesis",
                model="qwen3:8b",
                outcome=Outcome(kind=kind),
                duration_s=duration_s,
                **{"at": self.world.clock.now, **more},
            )
        )

    def over(self, kind: Kind = Kind.OK) -> None:
        self.world.recorder.on_event(
            RequestEnded(
                request_id=self.id,
                decision=self.decision,
                provider=self.decision.assigned,
                component="synthesis",
                model="qwen3:8b",
                operation=Operation.CHAT,
                outcome=Outcome(kind=kind),
                attempts=1,
                stream=False,
                duration_s=0.0,
                ttft_s=None,
                tpot_s=None,
                usage=None,
                warnings=(),
                wire=Wire.OPENAI_CHAT,
                at=self.world.clock.now,
            )
        )


def added(deltas: Sequence[WindowDelta]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for delta in deltas:
        for field, count in delta.counts.items():
            sums[field] += count
    return Counter({field: count for field, count in sums.items() if count})


# Against a naive recount. All times are multiples of 1/64 s, so that adding them is exact.

GRID = 64


@dataclass(frozen=True)
class Try:
    kind: Kind
    duration_s: float
    ttft_s: float | None
    tpot_s: float | None
    silent: bool


@dataclass(frozen=True)
class Script:
    """A request as it really was: the tries at its assigned provider, one after the other."""

    name: str
    provider: str
    component: str
    start_s: float
    key: int
    stream: bool
    tries: tuple[Try, ...]

    @property
    def waited_s(self) -> float:
        return sum(one.duration_s for one in self.tries)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    stream = draw(st.booleans())

    def drawn(kinds: Sequence[Kind], longest_s: int) -> Try:
        duration = draw(st.integers(1, longest_s * GRID))
        kind = draw(st.sampled_from(kinds))
        ttft = draw(st.one_of(st.none(), st.integers(0, duration))) if stream else None
        if stream and kind is Kind.OK and ttft is None:
            ttft = duration
        tpot = draw(st.integers(1, 8)) / GRID if ttft is not None and kind is Kind.OK and draw(st.booleans()) else None
        silent = kind is Kind.CANCELLED and ttft is None and draw(st.booleans())
        return Try(kind, duration / GRID, None if ttft is None else ttft / GRID, tpot, silent)

    retries = tuple(drawn([Kind.CONNECT, Kind.SERVER], 4) for _ in range(draw(st.integers(0, 1))))
    if retries:  # nothing that had content is tried again
        retries = tuple(Try(one.kind, one.duration_s, None, None, False) for one in retries)
    return Script(
        name=draw(st.uuids()).hex,
        provider=draw(st.sampled_from(["vllm", "vllm", "ollama"])),
        component=draw(st.sampled_from(["synthesis", "classification"])),
        start_s=draw(st.integers(0, 4 * GRID)) / GRID,
        key=draw(st.integers(0, 3)),
        stream=stream,
        tries=(*retries, drawn([Kind.OK, Kind.OK, Kind.CANCELLED, Kind.CLIENT, *FAILURES], 30)),
    )


def recount(all_scripts: Sequence[Script], limits: Limits) -> dict[tuple[object, ...], int]:
    """From the list of requests alone."""
    sums: Counter[tuple[object, ...]] = Counter()
    failed_keys: set[tuple[str, int, int]] = set()
    for script in sorted(all_scripts, key=lambda script: (script.start_s, script.name)):
        kinds, (slow, value_s) = _failures(script, limits), _latency(script, limits)
        if script.tries[-1].kind is Kind.CANCELLED and not kinds and slow is None:
            continue
        counts = {"n": 1, "e": 1} | ({"k": 1, failed(kinds[0]): 1} if kinds else {})
        second = int(STORE + 1000 + script.start_s)
        if kinds and script.key:
            if (script.provider, script.key, second) in failed_keys:
                continue
            failed_keys.add((script.provider, script.key, second))
        if slow is not None:
            counts |= {"t": 1, "r": 1, "s": int(slow)}
        if value_s is not None:
            counts[bucket(value_s)] = 1
        for field, count in counts.items():
            sums[script.provider, script.component, second, field] += count
    return {place: count for place, count in sums.items() if count}


def _failures(script: Script, limits: Limits) -> list[Kind]:
    last = script.tries[-1]
    silent = last.kind is Kind.CANCELLED and last.silent and script.waited_s >= limits.abandon_s
    return [one.kind for one in script.tries if one.kind in FAILURES] + [Kind.TIMEOUT] * silent


def _latency(script: Script, limits: Limits) -> tuple[bool | None, float | None]:
    last, waited_s, limit_s = script.tries[-1], script.waited_s, limits.latency_p95_s
    assert limit_s is not None
    lead_s = waited_s - last.duration_s
    if limits.signal is not Signal.E2E and not script.stream:
        return None, None
    value_s = {
        Signal.E2E: waited_s if last.kind is Kind.OK else None,
        Signal.TTFT: None if last.ttft_s is None else lead_s + last.ttft_s,
        Signal.TPOT: last.tpot_s,
    }[limits.signal]
    if value_s is not None:
        return value_s > limit_s, value_s
    midway = last.kind is Kind.CANCELLED and last.ttft_s is not None
    if limits.signal is Signal.TPOT or waited_s <= limit_s or midway:
        return None, None
    return True, waited_s


def played(all_scripts: Sequence[Script], limits: Limits, rng: Random, delay_s: int) -> list[WindowDelta]:
    """Tell a recorder of these requests, with ends told late and in any order, ticks and drains in between."""
    world = World(limits)
    steps: list[tuple[float, int, Callable[[], object]]] = []
    drained: list[WindowDelta] = []

    def at(moment_s: float, step: Callable[[], object]) -> None:
        steps.append((moment_s, len(steps), step))

    for script in all_scripts:
        request = Request(
            world,
            script.name,
            world.decision(script.provider),
            {"component": script.component, "key": script.key, "stream": script.stream},
        )
        moment_s = script.start_s
        for one in script.tries:
            is_last = one is script.tries[-1]
            late_s = rng.randint(0, delay_s * GRID) / GRID if is_last else 0.0
            at(moment_s, request.attempt)
            if one.ttft_s is not None and (one.kind is Kind.OK or rng.random() < 0.7):
                at(moment_s + one.ttft_s, lambda r=request, o=one: r.content(o.ttft_s))  # type: ignore[misc]  # mypy cannot infer a default's type
            moment_s += one.duration_s
            at(
                moment_s + late_s,
                lambda r=request, o=one, at=1000.0 + moment_s: r.ended(  # type: ignore[misc]  # mypy cannot infer a default's type
                    o.kind, o.duration_s, ttft_s=o.ttft_s, tpot_s=o.tpot_s, silent=o.silent, at=at
                ),
            )
        at(moment_s + rng.randint(0, delay_s * GRID) / GRID, request.over)
    for _ in range(rng.randint(0, 60)):
        at(rng.uniform(0, 40), lambda: world.recorder.tick(world.clock.now))
    for _ in range(rng.randint(0, 5)):
        at(rng.uniform(0, 40), lambda: drained.extend(world.recorder.drain()))
    for moment_s, _, step in sorted(steps, key=lambda step: step[:2]):
        world.clock.now = 1000.0 + moment_s
        step()
    world.wait(module.LATE_S + 1)
    assert world.recorder.in_flight == 0
    return [*drained, *world.recorder.drain()]


def by_place(deltas: Sequence[WindowDelta]) -> dict[tuple[object, ...], int]:
    sums: Counter[tuple[object, ...]] = Counter()
    for delta in deltas:
        for field, count in delta.counts.items():
            sums[delta.key.provider, delta.key.component, delta.start, field] += count
    return {place: count for place, count in sums.items() if count}


signals = st.sampled_from([LIMITS, replace(LIMITS, signal=Signal.TTFT), replace(LIMITS, signal=Signal.TPOT)])
signals = signals.map(lambda limits: replace(limits, latency_p95_s=0.05) if limits.signal is Signal.TPOT else limits)


@settings(max_examples=150)
@given(
    requests=st.lists(scripts(), max_size=12),
    limits=signals,
    rng=st.randoms(use_true_random=False),
    delay_s=st.integers(0, 9),
)
def test_no_order_or_delay_of_ends_changes_what_is_counted_once_all_is_known(
    requests: Sequence[Script], limits: Limits, rng: Random, delay_s: int
) -> None:
    assert by_place(played(requests, limits, rng, delay_s)) == recount(requests, limits)


@settings(max_examples=60)
@given(
    requests=st.lists(scripts(), max_size=12),
    processes=st.integers(1, 4),
    rng=st.randoms(use_true_random=False),
)
def test_processes_that_each_saw_a_part_count_together_what_one_counts(
    requests: Sequence[Script], processes: int, rng: Random
) -> None:
    parts: list[list[Script]] = [[] for _ in range(processes)]
    homes: dict[int, list[Script]] = {}
    for script in requests:  # a key's requests stay together: which of two failures of one second counts is told here
        home = homes.setdefault(script.key, rng.choice(parts)) if script.key else rng.choice(parts)
        home.append(script)
    deltas = [delta for part in parts for delta in played(part, LIMITS, rng, 5)]

    assert by_place(deltas) == by_place(played(requests, LIMITS, rng, 5))


# One by one.


def test_a_start_is_counted_at_once_and_in_the_second_of_the_stores_clock() -> None:
    world = World()
    world.clock.now = 1000.75
    world.recorder.at_store(STORE + 0.5)
    world.start()
    (delta,) = world.recorder.drain()

    assert (delta.start, delta.counts) == (int(STORE) + 1001, {"n": 1, "t": 1})
    assert (delta.key.scope, delta.key.epoch, delta.key.provider) == (GLOBAL, 3, "vllm")
    assert world.recorder.drain() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"operation": Operation.PASSTHROUGH},
        {"needs": Feature.LOAD},
        {"needs": Feature.LOAD | Feature.CONTEXT},
        {"decision": {"reason": Reason.OVERRIDE}},
        {"decision": {"reason": Reason.DIVERTED, "diverted": (Diversion("vllm", "down"),)}},
    ],
)
def test_what_is_no_request_of_its_assigned_provider_is_not_counted(changes: dict[str, Any]) -> None:
    world = World()
    if "decision" in changes:
        changes = {"decision": world.decision(**changes["decision"])}
    request = world.start(**changes)
    request.ended(Kind.SERVER, 1.0)
    request.over()

    assert world.recorder.drain() == []


def test_a_fallbacks_failure_and_content_are_not_the_assigned_providers() -> None:
    world = World()
    request = world.start(stream=True)
    world.clock.advance(0.5)
    request.ended(Kind.SERVER, 0.5)
    request.attempt("ollama")
    world.wait(10)
    request.content(9.0, provider="ollama")
    request.ended(Kind.TIMEOUT, 10.0, provider="ollama")
    request.over(Kind.TIMEOUT)

    assert world.counts() == {"n": 1, "e": 1, "k": 1, failed(Kind.SERVER): 1}


def test_retries_on_the_assigned_provider_are_one_request_and_one_failure_at_most() -> None:
    world = World()
    request = world.start()
    request.ended(Kind.CONNECT, 0.25)
    world.clock.advance(0.25)
    request.attempt()
    request.ended(Kind.SERVER, 0.5)
    world.clock.advance(0.5)
    request.attempt()
    request.ended(Kind.OK, 1.0)
    request.over()

    expected = {"n": 1, "e": 1, "k": 1, failed(Kind.CONNECT): 1, "t": 1, "r": 1, bucket(1.75): 1}
    assert world.counts() == expected


def test_a_refusal_that_turns_out_to_be_incompatible_counts_whenever_that_is_told() -> None:
    world = World()
    request = world.start()
    world.clock.advance(0.1)
    request.attempt("ollama")  # the refusal waits for its verdict
    world.wait(30)
    request.ended(Kind.INCOMPATIBLE, 0.1)
    request.ended(Kind.OK, 30.0, provider="ollama")
    request.over()

    assert world.counts() == {"n": 1, "e": 1, "k": 1, failed(Kind.INCOMPATIBLE): 1}


def test_the_verdict_on_a_refusal_says_nothing_of_the_latency_of_the_try_after_it() -> None:
    world = World()
    request = world.start()
    world.clock.advance(0.5)
    request.attempt()  # a fallback model on the same provider
    world.clock.advance(2.0)
    request.ended(Kind.INCOMPATIBLE, 0.5)
    request.ended(Kind.OK, 2.0)
    request.over()

    expected = {"n": 1, "e": 1, "k": 1, failed(Kind.INCOMPATIBLE): 1, "t": 1, "r": 1, bucket(2.5): 1}
    assert world.counts() == expected


def test_refusals_of_two_models_of_one_provider_are_one_request_that_is_over_at_once() -> None:
    world = World()
    request = world.start()
    request.attempt()
    request.ended(Kind.CLIENT, 0.1)
    request.ended(Kind.CLIENT, 6.0)
    request.over(Kind.CLIENT)

    counts = world.counts()
    assert (counts["n"], counts["e"], counts["t"], counts["r"]) == (1, 1, 1, 1)
    assert world.recorder.in_flight == 0


def test_a_request_that_is_given_up_leaves_nothing_unresolved() -> None:
    world = World()
    request = world.start()
    request.attempt()
    request.ended(Kind.CLIENT, 0.1)
    request.over(Kind.CLIENT)
    world.wait(module.LATE_S + 1)

    assert world.counts() == {"n": 1, "e": 1}
    assert world.recorder.in_flight == 0


def test_an_attempts_end_may_come_after_its_requests() -> None:
    world = World()
    request = world.start()
    world.clock.advance(0.5)
    request.over(Kind.SERVER)
    world.wait(2)
    request.ended(Kind.SERVER, 0.5)

    assert world.counts() == {"n": 1, "e": 1, "k": 1, failed(Kind.SERVER): 1}
    assert world.recorder.in_flight == 0


def test_a_request_whose_attempts_end_is_never_told_is_none() -> None:
    world = World()
    world.start().over(Kind.SERVER)
    world.wait(module.LATE_S + 1)

    assert world.counts() == {}
    assert world.recorder.in_flight == 0


def test_slow_is_known_in_flight_as_soon_as_the_limit_has_passed() -> None:
    world = World()
    request = world.start()
    world.wait(5)
    assert world.counts() == {"n": 1, "t": 1}
    world.wait(0.25)
    assert world.counts() == {"r": 1, "s": 1}
    request.ended(Kind.OK, 5.25)
    assert world.counts() == {"e": 1, bucket(5.25): 1}


def test_a_request_that_was_only_told_late_is_not_slow_after_all() -> None:
    world = World()
    request = world.start()
    world.wait(6)
    request.ended(Kind.OK, 4.0)

    assert world.counts() == {"n": 1, "e": 1, "t": 1, "r": 1, bucket(4.0): 1}


@pytest.mark.parametrize(
    ("waited_s", "more", "expected"),
    [
        (3.0, {}, {}),
        (8.0, {"ttft_s": 1.0}, {}),  # midway through the answer
        (8.0, {}, {"n": 1, "e": 1, "t": 1, "r": 1, "s": 1, bucket(8.0): 1}),
        (
            20.0,
            {"silent": True},
            {"n": 1, "e": 1, "k": 1, failed(Kind.TIMEOUT): 1, "t": 1, "r": 1, "s": 1, bucket(20.0): 1},
        ),
        (20.0, {}, {"n": 1, "e": 1, "t": 1, "r": 1, "s": 1, bucket(20.0): 1}),  # others got content there
        (3.0, {"silent": True}, {}),
    ],
)
def test_a_caller_who_leaves(waited_s: float, more: dict[str, Any], expected: dict[str, int]) -> None:
    world = World()
    request = world.start(stream=True)
    drained = world.recorder.drain()
    world.wait(waited_s)
    drained += world.recorder.drain()
    request.ended(Kind.CANCELLED, waited_s, **more)
    request.over(Kind.CANCELLED)

    assert added([*drained, *world.recorder.drain()]) == expected


def test_a_callers_own_fault_is_a_request_that_did_not_fail_and_no_sample_of_latency() -> None:
    world = World()
    world.fail(kind=Kind.CLIENT)

    assert world.counts() == {"n": 1, "e": 1}


def test_time_to_first_content_is_kept_of_a_stream_whose_caller_leaves_afterwards() -> None:
    """Else only the slow ones would stay."""
    world = World(replace(LIMITS, signal=Signal.TTFT))
    request = world.start(stream=True)
    request.content(1.0)
    request.ended(Kind.CANCELLED, 30.0, ttft_s=1.0)
    request.over(Kind.CANCELLED)

    assert world.counts() == {"n": 1, "e": 1, "t": 1, "r": 1, bucket(1.0): 1}


def test_one_key_has_one_failure_a_second_whatever_its_component() -> None:
    world = World()
    requests = [world.start(key=7, component=name) for name in ("synthesis", "classification", "synthesis")]
    other = world.start(key=8)
    for request in (*reversed(requests), other):
        request.ended(Kind.SERVER, 0.25)
        request.over(Kind.SERVER)
    world.answer(key=7)

    counts = world.counts()
    assert (counts["n"], counts["e"], counts["k"]) == (3, 3, 2)


def test_while_the_event_loop_is_late_no_latency_is_counted_but_errors_are() -> None:
    world = World()
    quick, waiting, failing = world.start(), world.start(), world.start()
    world.wait(4)
    world.recorder.lag(True)
    quick.ended(Kind.OK, 4.0)
    failing.ended(Kind.SERVER, 4.0)
    world.wait(2)  # beyond the limit of what waits
    world.recorder.lag(False)
    waiting.ended(Kind.OK, 6.0)
    for request in (quick, waiting, failing):
        request.over()
    assert world.counts() == {"n": 3, "e": 3, "k": 1, failed(Kind.SERVER): 1}

    world.answer()
    assert world.counts() == {"n": 1, "e": 1, "t": 1, "r": 1, bucket(0.1): 1}


def test_a_request_is_held_to_the_limits_in_force_when_it_started() -> None:
    world = World(synthesis=LIMITS)
    before = world.start()
    world.tick()
    world.policy = replace(
        world.policy,
        generation=1,
        guard=GuardPolicy(default=LIMITS, components={"synthesis": replace(LIMITS, latency_p95_s=1.0)}),
    )
    world.wait(0.25)
    after, other = world.start(), world.start(component="classification")
    world.wait(2)
    for request in (before, after, other):
        request.ended(Kind.OK, 2.0)
        request.over()

    counts = world.counts()
    assert (counts["t"], counts["r"], counts["s"]) == (3, 3, 1)


def test_without_a_latency_limit_none_is_judged() -> None:
    world = World(replace(LIMITS, latency_p95_s=None))
    world.answer(duration_s=9.0)

    assert world.counts() == {"n": 1, "e": 1, bucket(9.0): 1}


def test_the_requests_remembered_are_bounded_and_the_oldest_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OPEN", 100)
    world = World()
    requests = [world.start() for _ in range(150)]
    assert world.recorder.in_flight == 100
    for request in requests:
        request.ended(Kind.SERVER, 0.1)
        request.over()

    assert world.recorder.in_flight == 0
    assert world.counts()["n"] == 100


def test_what_is_not_drained_is_added_up_and_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 10)
    world = World()
    for _ in range(100):
        world.answer(duration_s=1.0)
        world.recorder.tick(world.clock.now)

    assert world.counts()["n"] == 100


def test_components_without_number_are_counted_together_for_the_provider() -> None:
    world = World()
    for number in range(700):
        world.answer(component=f"c{number}", duration_s=0.001)
    deltas = world.recorder.drain()

    assert added(deltas)["n"] == 700
    assert len({delta.key for delta in deltas}) < 600


# What was heard.


def test_what_was_heard_and_not_ticked_yet_is_in_all_that_the_recorder_says() -> None:
    world = World()
    world.fail(6)
    waiting = world.start()
    assert world.recorder.in_flight == 1
    waiting.over()
    waiting.ended(Kind.OK, 0.5)
    assert world.recorder.in_flight == 0
    world.start()
    assert world.recorder.epochs() == {(GLOBAL, 3)}
    world.start()
    assert world.counts()["n"] == 9
    world.fail(3, kind=Kind.TIMEOUT)
    assert {trigger for trigger, _ in world.trips()} == {Trigger.ERROR_RUN, Trigger.TIMEOUTS}
    world.fail()
    (of_provider,) = [runs for runs in world.recorder.runs if runs.sum == PROVIDER]
    assert of_provider.bad(Trigger.ERROR_RATE, 0.0)[-1] == f"r{world.ids}"


def test_a_start_is_counted_in_the_second_in_which_it_was_not_in_which_it_is_worked_off() -> None:
    world = World()
    world.clock.now = 1000.9
    world.start()
    world.clock.now = 1001.1
    world.start()
    world.clock.now = 1003.0
    world.tick()

    assert [(delta.start - int(STORE), delta.counts["n"]) for delta in world.recorder.drain()] == [(1000, 1), (1001, 1)]


def test_how_long_it_has_waited_is_counted_from_when_it_started() -> None:
    world = World()
    world.start()
    world.clock.advance(5.25)
    world.tick()

    assert world.counts() == {"n": 1, "t": 1, "r": 1, "s": 1}


def test_what_changes_meets_only_what_is_heard_afterwards() -> None:
    world = World()
    before = world.start()
    world.recorder.at_store(STORE + 10)
    world.start()
    before.ended(Kind.OK, 1.0)
    world.recorder.lag(True)

    counts = {delta.start - int(STORE): delta.counts for delta in world.recorder.drain()}
    assert counts == {1000: {"n": 1, "e": 1, "t": 1, "r": 1, bucket(1.0): 1}, 1010: {"n": 1, "t": 1}}


def test_an_end_that_is_told_late_does_not_set_the_clock_back() -> None:
    """What started before the run's first failure was known is of the same event, however long ago that was."""
    world = World()
    refused = world.start()
    ended_at = world.clock.now
    world.wait(1)
    others = [world.start() for _ in range(10)]
    refused.ended(Kind.INCOMPATIBLE, 0.0, at=ended_at)
    world.clock.advance(0.1)
    for request in others:
        request.ended(Kind.SERVER, 0.1)
        request.over(Kind.SERVER)

    assert world.trips() == {}


def test_what_an_event_raises_is_told_and_those_after_it_count() -> None:
    faults: list[Exception] = []
    world = World(fault=faults.append)
    world.answer()
    world.recorder.on_event(cast(Event, object()))
    world.answer()

    assert world.counts()["n"] == 2
    assert [type(fault) for fault in faults] == [AttributeError]


def test_what_nobody_asks_for_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memos_llm.guard.heard.MOST_HEARD", 100)
    world = World()
    for _ in range(1000):
        world.start()

    assert world.counts()["n"] == 100


# The runs.

PROVIDER, COMPONENT, MODEL = (
    Sum(provider="vllm"),
    Sum(provider="vllm", component="synthesis"),
    Sum(provider="vllm", model="qwen3:8b"),
)


def test_six_failures_in_a_row_trip_the_provider_the_component_and_the_model() -> None:
    world = World()
    began = STORE + world.clock.now + 0.1
    world.fail(5)
    assert world.trips() == {}
    world.fail(1)
    trips = world.trips()

    assert set(trips) == {(Trigger.ERROR_RUN, judged) for judged in (PROVIDER, COMPONENT, MODEL)}
    trip = trips[Trigger.ERROR_RUN, PROVIDER]
    assert (trip.n, trip.k, trip.epochs, trip.provider) == (6, 6, {GLOBAL: 3}, "vllm")
    assert trip.requests == ("r1", "r2", "r3", "r4", "r5", "r6")
    assert trip.since == pytest.approx(began)
    assert world.trips() == {}


def test_failures_of_two_components_trip_what_they_have_in_common() -> None:
    world = World()
    for _ in range(3):
        world.fail(component="synthesis", model="a")
        world.fail(component="classification", model="b")

    assert set(world.trips()) == {(Trigger.ERROR_RUN, PROVIDER)}


def test_the_baseline_has_no_runs() -> None:
    world = World()
    world.fail(50, kind=Kind.TIMEOUT, decision=world.decision("ollama"))

    assert world.trips() == {}


def test_one_stall_that_fails_all_that_is_in_flight_trips_nothing() -> None:
    world = World()
    requests = [world.start() for _ in range(50)]
    world.wait(3)
    for request in requests:
        request.ended(Kind.TIMEOUT, 3.0)
        request.over()
    world.answer(20)

    assert world.trips() == {}


def test_after_such_a_stall_a_request_that_waits_for_five_seconds_confirms_it() -> None:
    world = World()
    requests = [world.start() for _ in range(50)]
    world.wait(3)
    for request in requests:
        request.ended(Kind.TIMEOUT, 3.0)
        request.over()
    world.clock.advance(0.1)
    world.start(stream=True)
    world.wait(4.75)
    assert world.trips() == {}
    world.wait(0.5)

    assert {trigger for trigger, _ in world.trips()} == {Trigger.ERROR_RUN, Trigger.TIMEOUTS}


def test_three_time_outs_in_a_row_trip_and_content_ends_a_streak() -> None:
    world = World(replace(LIMITS, error_rate=None))
    world.fail(2, kind=Kind.TIMEOUT)
    stream = world.start(stream=True)
    stream.content(0.1)
    world.fail(2, kind=Kind.TIMEOUT)
    assert world.trips() == {}
    world.fail(1, kind=Kind.TIMEOUT)

    trip = world.trips()[Trigger.TIMEOUTS, PROVIDER]
    assert (trip.n, trip.k) == (3, 3)
    assert len(trip.requests) == 3


def test_an_sdks_own_retries_do_not_extend_a_streak_of_time_outs() -> None:
    world = World(replace(LIMITS, error_rate=None))
    for retry in (0, 1, 2, 0):
        world.fail(kind=Kind.TIMEOUT, retry=retry)

    assert world.trips() == {}


def test_a_new_epoch_begins_the_runs_anew_but_not_the_streak_of_time_outs() -> None:
    world = World()
    world.fail(3)
    world.fail(2, kind=Kind.TIMEOUT)
    world.epoch(4)
    world.fail(1, kind=Kind.TIMEOUT, decision=world.decision())

    assert {trigger for trigger, _ in world.trips()} == {Trigger.TIMEOUTS}


def test_a_rearm_forgives_the_time_outs_before_it() -> None:
    """With the streak as it was, the first answer that takes its time would be as good as failed."""
    world = World()
    world.fail(3, kind=Kind.TIMEOUT)
    assert world.trips()
    rearmed = Scope(share_ppm=500_000, epoch=4, rearmed_at=STORE + world.clock.now)
    world.flags = replace(world.flags, scopes={GLOBAL: rearmed})
    world.start(decision=world.decision())
    world.wait(WAITS_S + 1)
    assert world.trips() == {}
    world.fail(3, kind=Kind.TIMEOUT, decision=world.decision())
    assert Trigger.TIMEOUTS in {trigger for trigger, _ in world.trips()}


def test_what_was_in_flight_at_a_rearm_says_nothing_of_time_outs_after_it() -> None:
    world = World()
    requests = [world.start() for _ in range(3)]
    world.clock.advance(1.0)
    world.tick()
    rearmed = Scope(share_ppm=500_000, epoch=4, rearmed_at=STORE + world.clock.now)
    world.flags = replace(world.flags, scopes={GLOBAL: rearmed})
    world.wait(0.25)
    for request in requests:
        request.ended(Kind.TIMEOUT, 2.0)
        world.clock.advance(0.1)
    world.start(decision=world.decision())
    world.wait(WAITS_S + 1)
    assert world.trips() == {}


def test_what_was_tripped_by_an_epoch_that_is_over_is_told_of_no_more() -> None:
    world = World()
    world.fail(6)
    world.epoch(4)

    assert world.trips() == {}


def test_failures_of_requests_from_an_epoch_that_is_over_are_counted_there_and_trip_nothing() -> None:
    world = World()
    requests = []
    for _ in range(10):
        requests.append(world.start())
        world.clock.advance(0.1)
    world.epoch(4)
    world.wait(0.25)
    for request in requests:
        request.ended(Kind.SERVER, 1.0)
        request.over()
        world.clock.advance(0.1)

    assert world.trips() == {}
    assert {delta.key.epoch for delta in world.recorder.drain()} == {3}


def test_other_limits_for_a_component_begin_its_runs_anew_and_no_others() -> None:
    world = World()
    world.fail(5)
    guard = GuardPolicy(default=LIMITS, components={"synthesis": replace(LIMITS, error_rate=0.5)})
    world.tick()
    world.policy = replace(world.policy, generation=1, guard=guard)
    world.wait(0.25)
    world.fail(1)

    assert set(world.trips()) == {(Trigger.ERROR_RUN, PROVIDER), (Trigger.ERROR_RUN, MODEL)}


def test_another_candidate_has_runs_of_its_own() -> None:
    world = World()
    world.fail(5)
    world.tick()
    world.policy = replace(world.policy, generation=1, candidate="sglang", fallback=("ollama",))
    world.fail(6)  # still on their way to the former one
    world.wait(0.25)
    world.trips()
    world.fail(6, decision=world.decision("sglang"))

    assert {judged.provider for _, judged in world.trips()} == {"sglang"}


def test_a_censored_request_leaves_the_run_as_it_was() -> None:
    """Eight callers who leave between the failures do not save the candidate."""
    world = World()
    world.fail(5)
    for _ in range(8):
        request = world.start()
        request.ended(Kind.CANCELLED, 0.1)
        request.over(Kind.CANCELLED)
    world.fail(1)

    assert (Trigger.ERROR_RUN, PROVIDER) in world.trips()


def test_one_keys_failures_of_one_second_are_one_for_the_run_too() -> None:
    world = World()
    world.clock.now = 1000.0
    for _ in range(20):
        world.fail(key=7, gap_s=0.01)

    assert world.trips() == {}


def test_answers_that_are_all_slow_trip_within_five_seconds_of_the_limit() -> None:
    world = World()
    for _ in range(60):
        world.start()
        world.wait(0.25)
        if world.clock.now - 1000 <= 5:
            assert world.trips() == {}
        elif trips := world.trips():
            break
    assert world.clock.now <= 1000 + 5 + 5.5
    trip = trips[Trigger.LATENCY_RUN, PROVIDER]
    assert trip.k >= 12
    assert trip.n == trip.k
    assert len(trip.requests) == 10


def test_fast_answers_between_slow_ones_keep_the_run_of_latency_down() -> None:
    world = World()
    for number in range(200):
        request = world.start()
        request.ended(Kind.OK, 9.0 if number % 2 else 0.1)
        request.over()
        world.wait(0.25)

    assert world.trips() == {}
