"""What becomes of the guard's cuts: whose incident their evidence ends up in, and when they are withdrawn."""

import asyncio
import time
from pathlib import Path

import pytest
from checker import check
from msgspec.structs import replace
from test_live import Process, Switch, process, until

from memos_llm.control import last_good
from memos_llm.control.adopt import Cut
from memos_llm.core.commands import Actor, Audit, Incident, Maintain, Rearm, Rollback, Shift, audit
from memos_llm.core.errors import Refused, StoreUnreachable
from memos_llm.core.events import IncidentOpened, RollbackHeld
from memos_llm.core.flags import GLOBAL, SCHEMA, Flags
from memos_llm.core.verdicts import ArmWindow, Evidence, Trigger
from memos_llm.store import MemoryStore

HUMAN, OPERATOR = Actor("alice"), Actor("bob", "operator")


def cut(p: Process, by: str, scope: str = GLOBAL, trigger: Trigger = Trigger.ERROR_RATE, at: float = 5.0) -> Rollback:
    """What the guard of a process does about the epoch that is in force there."""
    speaker, judged = p.live.current().effective(scope)
    rollback = Rollback(
        provider="vllm",
        incident=f"inc-{by}-{scope}",
        scope=scope,
        trigger=trigger,
        automatic=True,
        epochs={speaker: judged.epoch},
        evidence=evidence(by, scope, trigger, at),
    )
    p.live.cut(rollback)
    return rollback


def evidence(by: str, scope: str, trigger: Trigger, at: float) -> Evidence:
    return Evidence(at=at, by=by, scope=scope, trigger=trigger, rule="too many failed", limit=0.05, n=60, k=30)


def opened(p: Process) -> list[str]:
    return [event.incident.id for event in p.events if isinstance(event, IncidentOpened)]


def held(p: Process) -> list[RollbackHeld]:
    return [event for event in p.events if isinstance(event, RollbackHeld)]


async def witnesses(store: MemoryStore, expected: int) -> list[tuple[str, list[str]]]:
    """Incidents, oldest first, and who gave evidence for each, once there is as much of it as expected."""

    async def read() -> list[tuple[str, list[str]]]:
        found = reversed(await store.incidents(10))
        return [(record.id, [one.by for one in record.evidence]) for record in found]

    async with asyncio.timeout(5):
        told = await read()
        while sum(len(by) for _, by in told) < expected:
            await asyncio.sleep(0.005)
            told = await read()
    await check(store)
    return told


async def test_the_first_makes_the_incident_and_the_others_witness_it() -> None:
    store = MemoryStore()
    async with (
        process(store, name="a", seed_ppm=500_000) as a,
        process(store, name="b") as b,
        process(store, name="script", ephemeral=True) as script,
    ):
        for p, name in ((a, "a"), (b, "b"), (script, "script")):
            cut(p, name)
            assert p.share() == 0
        ((incident, by),) = await witnesses(store, 3)
        assert sorted(by) == ["a", "b", "script"]
        assert opened(a) + opened(b) + opened(script) == [incident]
        (record,) = await store.incidents(10)
        assert (record.rule, record.n, record.k, record.limit) == ("too many failed", 60, 30, 0.05)
        assert record.holddown_until > record.at
        assert all(one.propagation_s is not None and one.propagation_s >= 0 for one in record.evidence)


async def test_what_fires_on_a_latch_that_is_known_witnesses_it_too_and_once() -> None:
    store = MemoryStore()
    async with process(store, seed_ppm=500_000) as p:
        await p.live.submit(Rollback(provider="vllm", incident="manual"), HUMAN)
        assert opened(p) == ["manual"]
        revision = p.live.current().revision
        cut(p, "p1")
        cut(p, "p1")
        cut(p, "p1", trigger=Trigger.TIMEOUTS)
        assert await witnesses(store, 2) == [("manual", ["p1", "p1"])]
        assert p.live.current().revision == revision
    assert await witnesses(store, 2) == [("manual", ["p1", "p1"])]


async def test_a_rearm_later_than_the_cut_sends_its_evidence_to_that_scope_s_newest_incident() -> None:
    inner = MemoryStore()
    ours = Switch(inner)
    async with process(ours, name="a", seed_ppm=500_000) as a, process(inner, name="b") as b:
        ours.down = True
        cut(a, "a", trigger=Trigger.HEALTH)
        for name in ("older", "newer"):
            await b.live.submit(Rollback(provider="vllm", incident=name), HUMAN)
            await b.live.submit(Rearm(provider="vllm"), HUMAN)
        await b.live.submit(Rollback(provider="vllm", incident="elsewhere", scope="synthesis"), HUMAN)
        flags = await b.live.submit(Shift(provider="vllm", share_ppm=100_000), HUMAN)
        ours.down = False
        assert await witnesses(inner, 1) == [("older", []), ("newer", ["a"]), ("elsewhere", [])]
        await until(lambda: a.live.current() == flags)


async def test_a_wider_cut_joins_the_incident_and_says_so() -> None:
    store = MemoryStore()
    async with process(store, name="a", seed_ppm=500_000) as a, process(store, name="b") as b:
        cut(a, "a", "synthesis")
        await until(lambda: b.share("synthesis") == 0)
        cut(b, "b")
        assert await witnesses(store, 2) == [("inc-a-synthesis", ["a", "b"])]
        (record,) = await store.incidents(10)
        assert [one.note for one in record.evidence] == ["", "widened to *"]
        latch = b.live.current().scope(GLOBAL).latch
        assert latch is not None
        assert latch.incident == "inc-a-synthesis"
        assert opened(b) == []


@pytest.mark.parametrize("trigger", [Trigger.ERROR_RATE, Trigger.TIMEOUTS])
@pytest.mark.parametrize("later_s", [1.0, 5.0])
async def test_only_what_judged_an_epoch_is_withdrawn_for_a_later_one(trigger: Trigger, later_s: float) -> None:
    inner = MemoryStore()
    ours = Switch(inner)
    async with process(ours, name="a", seed_ppm=500_000) as a:
        ours.down = True
        cut(a, "a", trigger=trigger)
        now = time.time()
        edited = Shift(provider="vllm", share_ppm=600_000)
        before = await inner.load()
        assert before is not None
        after = edited.apply(before, now + later_s)
        await inner.commit(before.revision, after, audit(edited, before, after, HUMAN, now + later_s))
        assert a.share() == 0
        ours.down = False
        if trigger is Trigger.ERROR_RATE and later_s > 2:
            await until(lambda: a.share() == 600_000)
            (event,) = held(a)
            assert (event.why, event.scope, event.trigger) == ("newer-epoch", GLOBAL, trigger)
            assert not await inner.incidents(10)
        else:
            assert await witnesses(inner, 1) == [("inc-a-*", ["a"])]
            assert not held(a)
            assert a.share() == 0


class Cruel(Switch):
    """Its commits happen, or not, and nobody hears."""

    def __init__(self) -> None:
        super().__init__()
        self.swallow, self.happens = 0, True

    async def commit(self, expected: int, flags: Flags, audit: Audit, incident: Incident | None = None) -> None:
        if not self.swallow:
            return await super().commit(expected, flags, audit, incident)
        self.swallow -= 1
        if self.happens:
            await super().commit(expected, flags, audit, incident)
        raise StoreUnreachable("the answer was lost")


@pytest.mark.parametrize("happens", [True, False])
async def test_a_commit_whose_answer_was_lost_makes_one_incident_that_is_told_once(happens: bool) -> None:
    store = Cruel()
    async with process(store, seed_ppm=500_000) as p:
        store.swallow, store.happens = 2, happens
        cut(p, "p1")
        assert await witnesses(store.inner, 1) == [("inc-p1-*", ["p1"])]
        await until(lambda: opened(p) == ["inc-p1-*"])
    assert opened(p) == ["inc-p1-*"]


@pytest.mark.parametrize("happens", [True, False])
async def test_a_manual_rollback_whose_answer_was_lost_is_told_of_if_it_happened(happens: bool) -> None:
    store = Cruel()
    async with process(store, seed_ppm=500_000) as p:
        store.swallow, store.happens = 1, happens
        with pytest.raises(StoreUnreachable):
            await p.live.submit(Rollback(provider="vllm", incident="manual"), HUMAN)
        if happens:
            await until(lambda: opened(p) == ["manual"])
        await p.live.submit(Rollback(provider="vllm", incident="again"), HUMAN)
    assert opened(p) == (["manual"] if happens else ["again"])


async def test_a_successor_publishes_what_its_predecessor_cut_with_all_its_evidence(tmp_path: Path) -> None:
    store, file = Switch(), tmp_path / "last_good.json"
    async with process(store, seed_ppm=500_000, last_good=file, name="dead") as p:
        store.down = True
        cut(p, "dead")
    async with process(store, last_good=file, name="heir") as heir:
        assert heir.share() == 0
        store.down = False
        assert await witnesses(store.inner, 1) == [("inc-dead-*", ["dead"])]
        assert opened(heir) == ["inc-dead-*"]
        await until(lambda: not last_good.read(file).cuts)


async def test_processes_of_one_host_do_not_take_each_other_s_cuts_out_of_the_file(tmp_path: Path) -> None:
    inner, file = MemoryStore(), tmp_path / "last_good.json"
    cut_off = Switch(inner)
    async with (
        process(cut_off, name="a", seed_ppm=500_000, last_good=file) as a,
        process(inner, name="b", last_good=file) as b,
    ):
        cut_off.down = True
        cut(a, "a", trigger=Trigger.TIMEOUTS)
        await until(lambda: len(last_good.read(file).cuts) == 1)
        flags = await b.live.submit(Shift(provider="vllm", share_ppm=200_000), HUMAN)
        await until(lambda: last_good.read(file).published == flags)
        assert [kept.actor.id for kept in last_good.read(file).cuts] == ["a"]
        cut_off.down = False
        await until(lambda: b.share() == 0)
        await until(lambda: not last_good.read(file).cuts)


def test_evidence_takes_a_bounded_place_in_the_file(tmp_path: Path) -> None:
    window = ArmWindow(provider="vllm", since=0.0, until=1.0, n=1, ended=1, failures=1, slow=0, timed=0)
    long = replace(evidence("a", GLOBAL, Trigger.TIMEOUTS, 5.0), windows=(window,) * 2_000, rule="x" * 9_000)
    file = tmp_path / "last_good.json"
    command = Rollback(provider="vllm", incident="i", automatic=True, evidence=long)
    view = last_good.read(None)
    last_good.write(file, replace(view, cuts=(Cut(command, 5.0, HUMAN),)))
    assert file.stat().st_size < 40_000
    (kept,) = last_good.read(file).cuts
    assert kept.command.evidence is not None
    assert (kept.command.evidence.by, kept.command.evidence.k) == ("a", 30)


async def test_a_store_of_a_newer_schema_is_followed_and_that_it_is_read_only_is_said() -> None:
    store = MemoryStore()
    async with process(store, seed_ppm=500_000) as p:
        before = p.live.current()
        newer = replace(Shift(provider="vllm", share_ppm=100_000).apply(before, 2.0), schema=SCHEMA + 1)
        line = audit(Shift(provider="vllm", share_ppm=100_000), before, newer, HUMAN, 2.0)
        await store.commit(before.revision, newer, line)
        await until(lambda: p.share() == 100_000)
        await until(lambda: "newer memos_llm" in p.live.store_state.detail)
        assert p.live.store_state.reachable


class Newer(Switch):
    """Takes nothing any more."""

    barred = False

    async def commit(self, expected: int, flags: Flags, audit: Audit, incident: Incident | None = None) -> None:
        if self.barred:
            raise Refused("the store is read-only for this version: upgrade this one")
        await super().commit(expected, flags, audit, incident)


async def test_a_cut_that_may_not_be_published_stays_in_force_here_and_that_is_said() -> None:
    store = Newer()
    async with process(store, seed_ppm=500_000) as p:
        store.barred = True
        cut(p, "p1")
        await until(lambda: "read-only" in p.live.store_state.detail)
        assert (p.share(), p.live.store_state.reachable) == (0, True)
        store.barred = False
        assert await witnesses(store.inner, 1) == [("inc-p1-*", ["p1"])]
        await until(lambda: not p.live.store_state.detail)


async def test_an_operator_may_begin_and_end_a_maintenance() -> None:
    async with process(MemoryStore(), seed_ppm=500_000) as p:
        begun = await p.live.submit(Maintain(provider="vllm", until=time.time() + 60), OPERATOR)
        assert list(begun.maintenance) == ["vllm"]
        assert not (await p.live.submit(Maintain(provider="vllm", until=None), OPERATOR)).maintenance
