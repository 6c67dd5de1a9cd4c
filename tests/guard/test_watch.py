"""The driver over a store: what it brings there and learns, when it acts, and what it does without."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from msgspec.structs import replace

from memos_llm.core.call import Operation, Target
from memos_llm.core.catalogue import Catalogue, Model, ProviderModel
from memos_llm.core.commands import Maintain, Rearm, Rollback, Shift
from memos_llm.core.decision import Arm, Decision, Reason
from memos_llm.core.errors import Refused, StoreUnreachable
from memos_llm.core.events import (
    AttemptEnded,
    AttemptStarted,
    BreakerChanged,
    Bus,
    Event,
    GuardBlind,
    GuardSaid,
    InternalError,
    ProbeEnded,
    RollbackHeld,
)
from memos_llm.core.flags import GLOBAL, PPM
from memos_llm.core.outcome import OK, Kind, Outcome
from memos_llm.core.policy import GuardPolicy, Limits, Policy
from memos_llm.core.ports import Instance, Routes, StateStore
from memos_llm.core.verdicts import Trigger, Verdict
from memos_llm.core.windows import Merged, WindowDelta
from memos_llm.guard.watch import Guard
from memos_llm.store.memory import MemoryStore
from memos_llm.testing import FakeTransport, FixedFlags, ManualClock, Recorder

START = 1_000_000.0  # Unix seconds when the manual clocks begin
VLLM, OLLAMA = "http://vllm.test", "http://ollama.test"
ILL = Outcome(kind=Kind.SERVER, status=500)
TIMED_OUT = Outcome(kind=Kind.TIMEOUT)


class Site:
    """One process's guard, without the clockwork: `turn` does what a second does."""

    def __init__(
        self, store: StateStore, clock: ManualClock, *, limits: Limits | None = None, name: str = "me"
    ) -> None:
        self.clock, self.store = clock, store
        self.bus, self.told = Bus(), Recorder()
        self.bus.subscribe("told", self.told)
        self.flags = FixedFlags(clock=ManualClock(START))
        self.apply(Shift(provider="vllm", share_ppm=PPM // 2))
        models = [
            Model(name=name, on={"ollama": ProviderModel(name), "vllm": ProviderModel(f"{name}-there")})
            for name in ("qwen3:8b", "llama3.2:3b")
        ]
        self.policy = Policy(
            baseline="ollama",
            candidate="vllm",
            fallback=("ollama",),
            pins={},
            timeouts={},
            catalogue=Catalogue(models),
            guard=GuardPolicy(default=limits or Limits()),
        )
        self.transports = {name: FakeTransport(name) for name in ("ollama", "vllm")}
        self.guard = Guard(
            self.flags,
            store,
            self.bus,
            lambda: Routes(self.policy, self.transports),
            instance=name,
            clock=clock,
            wall=lambda: clock() - 1000.0 + START,
        )
        self.asked = 0

    def at_store(self) -> float:
        return self.clock() - 1000.0 + START

    def apply(self, command: Any) -> None:
        self.flags.flags = command.apply(self.flags.flags, START)

    async def turn(self, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        self.guard.tick()
        await self.guard.flush()

    def ask(
        self,
        outcome: Outcome = OK,
        *,
        provider: str = "vllm",
        component: str = "default",
        model: str = "qwen3:8b",
        duration_s: float = 0.01,
    ) -> None:
        """One request, answered before anything else happens."""
        end = self.begin(provider, component, model)
        self.clock.advance(duration_s)
        end(outcome)

    def begin(
        self, provider: str = "vllm", component: str = "default", model: str = "qwen3:8b"
    ) -> Callable[[Outcome], None]:
        """One request; what is returned ends it."""
        self.asked += 1
        began = self.clock()
        scope, said = self.flags.current().effective(component)
        arm = Arm.CANDIDATE if provider == "vllm" else Arm.BASELINE
        decision = Decision(
            arm=arm,
            targets=(Target(provider, model),),
            reason=Reason.SPLIT,
            scope=scope,
            epoch=said.epoch,
            revision=1,
        )
        common: dict[str, Any] = {
            "request_id": f"r{self.asked}",
            "provider": provider,
            "arm": arm,
            "endpoint": f"http://{provider}.test",
            "component": component,
            "model": model,
        }
        self.bus.emit(
            AttemptStarted(
                decision=decision, operation=Operation.CHAT, stream=False, key=self.asked, at=began, **common
            )
        )

        def end(outcome: Outcome) -> None:
            now = self.clock()
            self.bus.emit(AttemptEnded(outcome=outcome, duration_s=now - began, at=now, **common))

        return end

    def probe(self, endpoint: str = VLLM, failure: str = "connect") -> None:
        provider = "vllm" if endpoint == VLLM else "ollama"
        self.bus.emit(ProbeEnded(provider=provider, endpoint=endpoint, up=not failure, failure=failure))

    @property
    def latched(self) -> dict[str, str]:
        """Scope → provider."""
        return {name: one.latch.provider for name, one in self.flags.current().scopes.items() if one.latch}

    def held(self) -> list[tuple[str, str, str]]:
        return [(one.scope, one.trigger, one.why) for one in self.told.of(RollbackHeld)]


class Away(MemoryStore):
    """A store that can be away, of a newer schema, or broken; `slow`: told when it is asked for instances."""

    fault: Exception | None = None
    slow: Callable[[], Awaitable[None]] | None = None

    async def instances(self) -> Sequence[Instance]:
        if self.slow is not None:
            await self.slow()
        return await super().instances()

    async def merge(self, deltas: Sequence[WindowDelta], cursor: int = 0) -> Merged:
        if isinstance(self.fault, Refused) and not deltas:
            return await super().merge(deltas, cursor)
        if self.fault is not None:
            raise self.fault
        return await super().merge(deltas, cursor)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock) -> Away:
    return Away(clock=lambda: clock() - 1000.0 + START)


@pytest.fixture
def site(store: Away, clock: ManualClock) -> Site:
    return Site(store, clock)


def some(site: Site, count: int, *, failing_each: int = 0, **more: Any) -> None:
    for number in range(1, count + 1):
        site.ask(ILL if failing_each and number % failing_each == 0 else OK, **more)


async def test_a_run_of_failures_acts_with_the_next_tick_and_before_any_flush(site: Site) -> None:
    some(site, 8, failing_each=1)
    assert site.latched == {}
    site.guard.tick()
    assert site.latched == {GLOBAL: "vllm"}


async def test_the_windows_of_two_processes_say_together_what_neither_could_alone(store: Away) -> None:
    clock = ManualClock()
    one, two = Site(store, clock, name="one"), Site(store, clock, name="two")
    for each in (one, two):
        some(each, 40, failing_each=5)
        each.guard.tick()
        assert each.latched == {}
    await one.turn()
    assert one.latched == {}
    await two.turn()
    assert two.latched == {GLOBAL: "vllm"}, "it saw the other's too"
    said = two.told.of(GuardSaid)[-1]
    total = next(arm for arm in said.windows if (arm.provider, arm.component, arm.model) == ("vllm", "", ""))
    assert (total.n, total.failures, dict(total.kinds)) == (80, 16, {"server": 16})


async def test_answers_that_are_all_slow_act_though_none_failed(site: Site) -> None:
    for _ in range(8):
        for _ in range(4):
            site.ask(duration_s=6.0)
        site.clock.advance(1.0)
        site.guard.tick()
    assert site.latched == {GLOBAL: "vllm"}


async def test_how_far_the_runs_are_is_said_before_they_trip(site: Site) -> None:
    some(site, 2, failing_each=1)
    await site.turn()
    said = {(one.trigger, one.sum.component): one for one in site.told.of(GuardSaid)[-1].evaluations}
    run = said[Trigger.ERROR_RUN, "default"]
    assert (run.verdict, run.k, run.limit) == (Verdict.PASS, 8, 24)
    assert said[Trigger.TIMEOUTS, "default"].limit == 3


async def test_a_rollback_carries_its_evidence(site: Site) -> None:
    cut: list[Rollback] = []
    site.flags.cut = cut.append  # type: ignore[method-assign,assignment]  # to look at what is cut
    site.probe(failure="")
    some(site, 60, failing_each=5)
    some(site, 30, provider="ollama")
    await site.turn()
    rollback, evidence = cut[0], cut[0].evidence
    assert evidence is not None
    assert (rollback.trigger, rollback.automatic, rollback.scope) == (Trigger.ERROR_RATE, True, GLOBAL)
    assert rollback.epochs == {GLOBAL: site.flags.current().scope(GLOBAL).epoch}
    assert (evidence.n, evidence.k, evidence.limit, evidence.by) == (60, 12, 0.05, "me")
    assert evidence.low is not None
    assert evidence.low > 0.05
    assert [(arm.provider, arm.n, arm.failures) for arm in evidence.windows] == [("vllm", 60, 12), ("ollama", 30, 0)]
    assert [probe.endpoint for probe in evidence.probes] == [VLLM]
    assert evidence.models == ("qwen3:8b",)
    assert evidence.requests == tuple(f"r{number}" for number in range(15, 61, 5)), "the last ten"


@pytest.mark.parametrize("trigger", [Trigger.ERROR_RATE, Trigger.LATENCY])
async def test_detection_takes_from_the_first_bad_request_to_the_verdict(site: Site, trigger: Trigger) -> None:
    """However long the window, and whatever went wrong before the share was what it is."""
    cut: list[Rollback] = []
    site.flags.cut = cut.append  # type: ignore[method-assign,assignment]  # to look at what is cut
    some(site, 20, failing_each=20)
    site.ask(duration_s=6.0)
    site.guard.tick()
    site.flags.flags = Shift(provider="vllm", share_ppm=PPM).apply(site.flags.flags, site.at_store())
    some(site, 60)
    site.clock.advance(40.0)
    bad, began, ids = site.asked + 1, site.at_store(), []
    for _ in range(40):
        slow = trigger is Trigger.LATENCY
        site.ask(OK if slow else ILL, duration_s=6.0 if slow else 0.01)
        ids.append(f"r{site.asked}")
        some(site, 9)
        await site.turn()
        if cut:
            break
    evidence = cut[0].evidence
    assert evidence is not None
    assert (cut[0].trigger, evidence.requests) == (trigger, tuple(ids[-10:]))
    assert bad == int(ids[0][1:])
    assert evidence.detection_s == pytest.approx(site.at_store() - began, abs=1.0)


async def test_the_ids_are_of_requests_that_were_judged(store: Away, clock: ManualClock) -> None:
    """What failed here long before, and what failed in another process, is not told as these."""
    site, other = Site(store, clock), Site(store, clock, name="other")
    cut: list[Rollback] = []
    site.flags.cut = cut.append  # type: ignore[method-assign,assignment]  # to look at what is cut
    some(site, 100, failing_each=100)
    await site.turn()
    clock.advance(600.0)
    some(other, 200, failing_each=5)
    await other.turn()
    await site.turn()
    evidence = cut[0].evidence
    assert evidence is not None
    assert (evidence.n, evidence.k, evidence.requests) == (200, 40, ())


async def test_the_evidence_is_of_the_epoch_that_was_judged(site: Site) -> None:
    """What an earlier share's requests died of would send whoever reads it the wrong way."""
    some(site, 20, failing_each=20)
    await site.turn()
    site.apply(Shift(provider="vllm", share_ppm=PPM))
    cut: list[Rollback] = []
    site.flags.cut = cut.append  # type: ignore[method-assign,assignment]  # to look at what is cut
    some(site, 60, failing_each=5)
    await site.turn()
    evidence = cut[0].evidence
    assert evidence is not None
    assert [(arm.provider, arm.n, arm.failures) for arm in evidence.windows] == [("vllm", 60, 12), ("ollama", 0, 0)]


async def test_without_the_store_it_judges_what_it_saw_and_brings_it_later(site: Site, store: Away) -> None:
    store.fault = StoreUnreachable("away")
    some(site, 60, failing_each=5)
    await site.turn()
    assert site.latched == {GLOBAL: "vllm"}
    assert site.told.of(InternalError) == []
    store.fault = None
    await site.turn()
    rows = (await store.merge(())).rows
    assert sum(row.counts["n"] for row in rows if row.width_s == 1) == 60


async def test_while_the_store_hangs_what_it_saw_is_judged_and_nothing_more_is_asked_of_it(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hangs(Away):
        asked, answers = 0, asyncio.Event()

        async def merge(self, deltas: Sequence[WindowDelta], cursor: int = 0) -> Merged:
            self.asked += 1
            await self.answers.wait()
            return await super().merge(deltas, cursor)

    monkeypatch.setattr("memos_llm.guard.watch.STORE_S", 0.01)
    store = Hangs(clock=lambda: clock() - 1000.0 + START)
    site = Site(store, clock)
    async with asyncio.timeout(5):
        some(site, 30, failing_each=5)
        await site.turn()
        some(site, 30, failing_each=5)
        await site.turn()
        assert site.latched == {GLOBAL: "vllm"}
        assert store.asked == 1
        store.answers.set()
        await site.turn()
        await site.turn()
        await site.guard.aclose()
    rows = (await store.merge(())).rows
    assert sum(row.counts["n"] for row in rows if row.width_s == 1) == 60


async def test_a_store_that_breaks_its_word_is_told_and_what_it_saw_is_judged(site: Site, store: Away) -> None:
    store.fault = ValueError("no store says that")
    some(site, 60, failing_each=5)
    await site.turn()
    assert site.latched == {GLOBAL: "vllm"}
    assert [(one.part, one.error) for one in site.told.of(InternalError)] == [("guard", "ValueError")]


async def test_what_the_store_may_have_is_given_again_as_it_was(site: Site, store: Away) -> None:
    some(site, 3)
    store.fault = StoreUnreachable("it did not answer in time")
    given: list[Sequence[WindowDelta]] = []
    merge = store.merge

    async def seen(deltas: Sequence[WindowDelta], cursor: int = 0) -> Merged:
        given.append(tuple(deltas))
        return await merge(deltas, cursor)

    store.merge = seen  # type: ignore[method-assign]  # of this one store
    await site.turn()
    some(site, 4)
    await site.turn()
    store.fault = None
    await site.turn()
    await site.turn()
    assert given[0] == given[1] == given[2] != given[3]
    rows = (await store.merge(())).rows
    assert sum(row.counts["n"] for row in rows if row.width_s == 1) == 7


async def test_in_a_store_of_a_newer_schema_it_only_looks(site: Site, store: Away, clock: ManualClock) -> None:
    other = Site(store, clock, name="other")
    some(other, 60, failing_each=5)
    await other.turn()
    store.fault = Refused("a newer schema")
    some(site, 1)
    await site.turn()
    assert site.latched == {GLOBAL: "vllm"}, "the others' windows are seen"
    assert site.told.of(InternalError) == []


async def test_nothing_is_said_twice_of_what_is_held_and_it_is_told_again_when_it_comes_back(site: Site) -> None:
    site.transports["ollama"].refused = "down"
    some(site, 60, failing_each=5)
    for _ in range(5):
        await site.turn()
    assert site.held() == [(GLOBAL, "error_rate", "baseline-down")]
    assert site.latched == {}
    site.transports["ollama"].refused = None
    await site.turn()
    assert site.latched == {GLOBAL: "vllm"}


async def test_a_baseline_that_is_as_bad_is_nothing_to_go_back_to(site: Site) -> None:
    some(site, 60, failing_each=5)
    some(site, 60, failing_each=5, provider="ollama")
    await site.turn()
    assert site.held() == [(GLOBAL, "error_rate", "limit-unfit")]
    assert site.latched == {}


@pytest.mark.parametrize("limit", [0.05, None])
@pytest.mark.parametrize(
    ("baseline", "latched"),
    [((TIMED_OUT,), {}), ((), {GLOBAL: "vllm"}), ((OK,), {GLOBAL: "vllm"}), (99 * (OK,) + (ILL,), {GLOBAL: "vllm"})],
    ids=["times out too", "unused", "well", "well but once"],
)
@pytest.mark.parametrize("trigger", [Trigger.TIMEOUTS, Trigger.BREAKER_OPEN])
async def test_what_is_as_bad_needs_no_limit_to_be_it(
    store: Away,
    clock: ManualClock,
    limit: float | None,
    baseline: tuple[Outcome, ...],
    latched: dict[str, str],
    trigger: Trigger,
) -> None:
    in_a_row = 3 if trigger is Trigger.TIMEOUTS else 100
    site = Site(store, clock, limits=Limits(error_rate=limit, latency_p95_s=None, consecutive_timeouts=in_a_row))
    some(site, 100)
    for _ in range(3):
        site.ask(TIMED_OUT)
        for outcome in baseline:
            site.ask(outcome, provider="ollama")
        if trigger is Trigger.BREAKER_OPEN:
            for state in ("open", "half_open"):
                site.bus.emit(BreakerChanged(provider="vllm", endpoint=VLLM, state=state))
        await site.turn()
    assert site.latched == latched
    assert site.held() == ([] if latched else [(GLOBAL, trigger, "limit-unfit")])


async def test_a_baseline_that_was_as_bad_for_long_is_gone_back_to_once_it_was_well_for_a_window(
    store: Away, clock: ManualClock
) -> None:
    site = Site(store, clock, limits=Limits(window_s=60, min_requests=10_000))

    def ten_seconds(baseline: Outcome) -> None:
        for outcome in (ILL, OK):
            site.ask(outcome)
            site.ask(baseline if outcome is ILL else OK, provider="ollama")
        site.clock.advance(10.0)
        site.guard.tick()

    for _ in range(60):
        ten_seconds(ILL)
    assert (site.latched, {why for _, _, why in site.held()}) == ({}, {"limit-unfit"})
    for _ in range(13):
        ten_seconds(OK)
    assert site.latched == {GLOBAL: "vllm"}


async def test_a_model_that_the_baseline_has_not_stays(site: Site) -> None:
    only = Model(name="new", on={"vllm": ProviderModel("new")})
    known = site.policy.catalogue.models.values()
    site.policy = replace(site.policy, catalogue=Catalogue([*known, only]))
    some(site, 60, failing_each=5, model="new")
    await site.turn()
    assert site.held() == [(GLOBAL, "error_rate", "baseline-unmapped")]
    assert site.latched == {}


async def test_what_the_baseline_cannot_take_over_keeps_nobody_else_with_a_candidate_that_fails(site: Site) -> None:
    only = Model(name="new", on={"vllm": ProviderModel("new")})
    known = site.policy.catalogue.models.values()
    site.policy = replace(site.policy, catalogue=Catalogue([*known, only]), pins={"vision": "vllm"})
    some(site, 5, model="new", component="vision")
    some(site, 60, failing_each=2)
    await site.turn()
    await site.turn()
    assert site.latched == {"default": "vllm"}
    assert site.held() == [(GLOBAL, "error_run", "baseline-unmapped")]


async def test_what_fails_and_cannot_be_taken_over_takes_nobody_else_back(site: Site) -> None:
    only = Model(name="new", on={"vllm": ProviderModel("new")})
    known = site.policy.catalogue.models.values()
    site.policy = replace(site.policy, catalogue=Catalogue([*known, only]), pins={"vision": "vllm"})
    some(site, 60, model="new", component="vision", failing_each=2)
    some(site, 5)
    await site.turn()
    assert site.latched == {}
    assert {why for _, _, why in site.held()} == {"baseline-unmapped"}


async def test_components_too_many_to_tell_apart_are_all_latched_when_they_fail(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memos_llm.guard.lanes.MOST_LANES", 2)
    for number in range(5):
        some(site, 60, component=f"c{number}")
    await site.turn()
    some(site, 60, component="c9", failing_each=2)
    await site.turn()
    assert site.latched == {GLOBAL: "vllm"}


async def test_a_component_with_a_share_of_its_own_is_judged_however_many_others_there_are(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memos_llm.guard.lanes.MOST_LANES", 2)
    site.apply(Shift(provider="vllm", share_ppm=PPM, scope="synthesis"))
    for number in range(5):
        some(site, 60, component=f"c{number}")
    await site.turn()
    some(site, 60, component="synthesis", failing_each=2)
    await site.turn()
    assert site.latched == {"synthesis": "vllm"}


async def test_names_of_models_that_only_callers_know_are_counted_as_one(site: Site) -> None:
    for number in range(100):
        site.ask(provider="ollama", model=f"gpt-{number}")
    await site.turn()
    said = site.guard.said
    assert said is not None
    assert {one.model: one.n for one in said.windows if one.provider == "ollama" and one.model} == {"other": 100}


async def test_under_maintenance_nothing_latches(site: Site) -> None:
    some(site, 60, failing_each=5)
    site.apply(Maintain(provider="vllm", until=START + 600))
    for _ in range(3):
        site.probe()
        await site.turn()
    assert {why for _, _, why in site.held()} == {"maintenance"}
    assert site.latched == {}


async def test_one_component_is_latched_while_another_is_well(site: Site) -> None:
    some(site, 60, component="analysis")
    some(site, 60, component="synthesis", failing_each=4)
    await site.turn()
    assert site.latched == {"synthesis": "vllm"}
    await site.turn()
    assert site.latched == {"synthesis": "vllm"}, "what is latched says nothing of the rest"


@pytest.mark.parametrize(("other", "scope"), [(ILL, GLOBAL), (OK, "synthesis")])
async def test_what_has_begun_to_fail_everywhere_is_not_taken_for_one_component_s(
    site: Site, other: Outcome, scope: str
) -> None:
    """The other's window is well still: only the last seconds tell."""
    for component in ("synthesis", "analysis"):
        some(site, 100, component=component)
    await site.turn()
    site.clock.advance(1.0)
    for number in range(1, 9):
        site.ask(ILL, component="synthesis")
        site.ask(other if number % 2 == 0 else OK, component="analysis")
    site.guard.tick()
    assert site.latched == {scope: "vllm"}


@pytest.mark.parametrize(
    ("other", "latched"), [(OK, {"synthesis", "analysis"}), (ILL, {GLOBAL}), (None, {"synthesis", "analysis"})]
)
async def test_a_model_that_begins_to_fail_takes_nobody_along_who_asks_for_another(
    site: Site, other: Outcome | None, latched: set[str]
) -> None:
    """Its run and the provider's trip together, for hardly anybody asks for the other one meanwhile."""
    for component in ("synthesis", "analysis", "classification"):
        some(site, 40, component=component, model="llama3.2:3b" if component == "classification" else "qwen3:8b")
    await site.turn()
    site.clock.advance(1.0)
    for _ in range(4):
        site.ask(ILL, component="synthesis")
        site.ask(ILL, component="analysis")
    if other is not None:
        site.ask(other, component="classification", model="llama3.2:3b")
    site.guard.tick()
    assert site.latched.keys() == latched


async def test_a_dead_model_latches_the_components_that_used_only_it(site: Site) -> None:
    other = FakeTransport("vllm")
    other.serving = lambda model: ("http://spare.test",) if model.startswith("llama") else (VLLM,)  # type: ignore[method-assign]  # two endpoints
    site.transports["vllm"] = other
    some(site, 5, component="analysis", model="llama3.2:3b")
    some(site, 5, component="synthesis")
    for _ in range(3):
        site.probe()
    await site.turn()
    assert site.latched == {"synthesis": "vllm"}


@pytest.mark.parametrize(("theirs", "latched"), [((), {}), ((VLLM,), {GLOBAL: "vllm"})])
async def test_dead_is_what_a_majority_finds_dead(
    site: Site, store: Away, theirs: tuple[str, ...], latched: dict[str, str]
) -> None:
    for name in ("two", "three"):
        await store.heartbeat(Instance(id=name, kind="gateway", revision=1, at=0.0, dead=theirs))
    assert site.guard.dead() is None, "it has not probed yet"
    for _ in range(3):
        site.probe()
    assert site.guard.dead() == (VLLM,)
    await site.turn()
    assert site.latched == latched


async def owes() -> None:
    raise StoreUnreachable("it did not answer in time")


async def hangs() -> None:
    await asyncio.sleep(3600)


@pytest.mark.parametrize("slow", [owes, hangs])
@pytest.mark.parametrize("asked_before", [True, False])
async def test_it_votes_alone_only_when_the_store_was_away_for_longer_than_votes_hold(
    site: Site,
    store: Away,
    asked_before: bool,
    slow: Callable[[], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("memos_llm.guard.watch.STORE_S", 0.01)
    for name in ("two", "three", "four"):
        await store.heartbeat(Instance(id=name, kind="gateway", revision=1, at=0.0, dead=()))
    await site.turn()
    for _ in range(3):
        site.probe()
    if asked_before:
        await site.turn()
    store.slow = slow
    for _ in range(5):
        await site.turn()
        assert site.latched == {}, "three of four find it alive, as far as is known"
    await site.turn()
    assert site.latched == {GLOBAL: "vllm"}
    await site.guard.aclose()


@pytest.mark.parametrize("late_s", [5.0, 0.4])
async def test_what_took_the_store_long_does_not_set_the_clock(site: Site, store: Away, late_s: float) -> None:
    """It looks at its clock when it has waited for its lock, and not half-way."""
    await site.turn()
    merge = store.merge

    async def locked(deltas: Sequence[WindowDelta], cursor: int = 0) -> Merged:
        site.clock.advance(late_s)
        return await merge(deltas, cursor)

    store.merge = locked  # type: ignore[method-assign]  # of this one store
    await site.turn()
    ahead = site.told.of(GuardSaid)[-1].at - site.at_store()
    assert ahead == pytest.approx(0.0 if late_s > 0.5 else late_s / 2)


async def test_a_breaker_that_keeps_opening_rolls_back_and_not_again_for_the_same_after_a_rearm(site: Site) -> None:
    def broke(state: str) -> None:
        site.bus.emit(BreakerChanged(provider="vllm", endpoint=VLLM, state=state))

    for _ in range(3):
        broke("open")
        await site.turn()
        broke("half_open")
        await site.turn()
    assert site.latched == {GLOBAL: "vllm"}
    now = site.clock() - 1000.0 + START
    site.flags.flags = Rearm(provider="vllm", force=True, reason="mended").apply(site.flags.flags, now)
    site.apply(Shift(provider="vllm", share_ppm=PPM))
    await site.turn()
    assert site.latched == {}


async def test_a_share_without_requests_is_said_to_be_blind_after_a_window_and_that_it_is_over(site: Site) -> None:
    await site.turn()
    assert site.told.of(GuardBlind) == []
    await site.turn(301.0)
    assert [one.what for one in site.told.of(GuardBlind)] == ["no-data"]
    assert site.latched == {}, "no data is no verdict"
    verdicts = {one.reason: one.verdict for one in site.told.of(GuardSaid)[-1].evaluations if one.reason == "no-data"}
    assert verdicts == {"no-data": Verdict.INCONCLUSIVE}
    some(site, 1)
    await site.turn()
    assert [one.what for one in site.told.of(GuardBlind)] == ["no-data", ""]


async def test_what_failed_before_a_rearm_is_not_held_against_what_follows_it(site: Site) -> None:
    """The component's share is everybody's again, and everybody's stays as it was: its old failures are over."""
    some(site, 60, component="analysis")
    some(site, 60, component="synthesis", failing_each=4)
    await site.turn()
    assert site.latched == {"synthesis": "vllm"}
    now = site.clock() - 1000.0 + START
    site.flags.flags = Rearm(provider="vllm", scope="synthesis", force=True, reason="r").apply(site.flags.flags, now)
    site.apply(Shift(provider="vllm", share_ppm=PPM // 2))
    assert site.flags.current().effective("synthesis")[0] == GLOBAL
    some(site, 20, component="synthesis")
    await site.turn()
    assert site.latched == {}


@pytest.mark.parametrize(
    ("doubt", "held"),
    [
        (BreakerChanged(provider="ollama", endpoint=OLLAMA, state="half_open"), True),
        (ProbeEnded(provider="ollama", endpoint=OLLAMA, up=True, failure="timeout"), True),
        (ProbeEnded(provider="ollama", endpoint=OLLAMA, up=True, models=("llama3.2:3b",)), True),
        (ProbeEnded(provider="ollama", endpoint=OLLAMA, up=True, models=("Qwen3:8B", "other")), False),
        (BreakerChanged(provider="ollama", endpoint=OLLAMA, state="closed"), False),
        (BreakerChanged(provider="ollama", endpoint="http://another.test", state="open"), False),
    ],
)
async def test_the_least_doubt_of_the_baseline_is_enough_to_stay(site: Site, doubt: Event, held: bool) -> None:
    site.transports["ollama"].endpoint = OLLAMA
    site.bus.emit(doubt)
    some(site, 8, failing_each=1)
    site.guard.tick()
    assert (site.held(), site.latched) == (
        ([(GLOBAL, "error_run", "baseline-down")], {}) if held else ([], {GLOBAL: "vllm"})
    )


async def test_who_has_not_probed_for_long_enough_has_no_vote(site: Site) -> None:
    for count in range(3):
        assert site.guard.dead() is None, count
        site.probe(failure="")
    assert site.guard.dead() == ()


async def test_without_any_limit_on_failures_an_open_breaker_rolls_nothing_back(
    store: Away, clock: ManualClock
) -> None:
    none = Limits(error_rate=None, latency_p95_s=None, consecutive_timeouts=None, health_failures=None)
    site = Site(store, clock, limits=none)
    for _ in range(4):
        for state in ("open", "half_open"):
            site.bus.emit(BreakerChanged(provider="vllm", endpoint=VLLM, state=state))
            await site.turn()
    assert (site.latched, site.held()) == ({}, [])
    assert not [one for one in site.told.of(GuardSaid)[-1].evaluations if one.trigger is Trigger.BREAKER_OPEN]


# What it hears


async def test_an_event_that_breaks_it_is_told_with_the_next_tick_and_the_others_count(site: Site) -> None:
    some(site, 1)
    heard = site.begin()
    site.bus.emit(replace(site.told.of(AttemptStarted)[-1], request_id="broken", decision=cast(Decision, None)))
    heard(ILL)
    assert site.told.of(InternalError) == []
    some(site, 7, failing_each=1)
    site.guard.tick()
    (fault,) = site.told.of(InternalError)
    assert (fault.part, fault.error, fault.where.split(":")[0]) == (
        "guard",
        "AttributeError",
        "memos_llm.guard.recorder",
    )
    assert site.latched == {GLOBAL: "vllm"}


async def test_once_closed_it_hears_nothing(site: Site, store: Away) -> None:
    await site.guard.aclose()
    some(site, 5)
    await site.guard.flush()
    assert (await store.merge(())).rows == ()


# The clockwork


@asynccontextmanager
async def running(store: StateStore) -> AsyncIterator[Site]:
    clock = ManualClock(time.monotonic())  # `live` has the real one
    site = Site(store, clock)
    live = Guard(
        site.flags, store, site.bus, lambda: Routes(site.policy, site.transports), instance="live", clock=time.monotonic
    )
    live.start()
    try:
        yield site
    finally:
        await live.aclose()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_breaks_in_it_is_told_and_it_goes_on() -> None:
    store = Away()
    store.fault = ValueError("no store says that")
    async with running(store) as site:
        await until(lambda: len(site.told.of(InternalError)) >= 2)
        assert {(one.part, one.error) for one in site.told.of(InternalError)} == {("guard", "ValueError")}
        store.fault = None
        await until(lambda: site.told.of(GuardSaid))


async def test_a_loop_that_is_late_is_told() -> None:
    async with running(Away()) as site:
        await until(lambda: site.told.of(GuardSaid))
        time.sleep(0.8)  # noqa: ASYNC251 - it is late
        await until(lambda: "lag" in [one.what for one in site.told.of(GuardBlind)])


async def test_closing_brings_what_is_left_to_the_store() -> None:
    store = Away()
    async with running(store) as site:
        some(site, 7)
    rows = (await store.merge(())).rows
    assert sum(row.counts["n"] for row in rows if row.width_s == 1) == 7


async def test_closing_does_not_wait_for_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hangs(Away):
        async def merge(self, deltas: Sequence[WindowDelta], cursor: int = 0) -> Merged:
            await asyncio.sleep(3600)
            raise AssertionError

    monkeypatch.setattr("memos_llm.guard.watch.CLOSE_S", 0.1)
    async with asyncio.timeout(5), running(Hangs()) as site:
        some(site, 7)
