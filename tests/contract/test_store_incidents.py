"""What every store must do, whichever it is (`stores.STORES`): incidents' evidence, and who is to tell of them."""

import asyncio

import pytest
import stores
from msgspec.structs import replace
from stores import ManualClock

from memos_llm.core.commands import Actor, Incident, Rollback, audit, incident
from memos_llm.core.errors import StoreUnreachable
from memos_llm.core.flags import fresh
from memos_llm.core.ports import MOST_EVIDENCE, StateStore
from memos_llm.core.verdicts import ArmWindow, Evidence, ProbeSeen, Trigger

GUARD = Actor("gateway-1", "guard")

clock, store = stores.clock, stores.store  # where pytest finds its fixtures


def evidence(by: str, at: float = 5.0) -> Evidence:
    return Evidence(
        at=at,
        by=by,
        scope="synthesis",
        trigger=Trigger.ERROR_RATE,
        rule="more than 5 % of 120 requests",
        limit=0.05,
        n=120,
        k=19,
        low=0.071,
        windows=(ArmWindow(provider="vllm", since=1.0, until=61.0, n=120, ended=118, failures=19, slow=0, timed=0),),
        probes=(ProbeSeen(provider="vllm", endpoint="http://a:1", up=False, detail="connect"),),
        versions={"vllm": "0.11.0"},
        requests=("r1", "r2"),
    )


async def roll_back(store: StateStore, name: str, own: Evidence | None = None) -> Incident:
    """A component's, in a store that need not have flags yet."""
    before = await store.load()
    if before is None:
        before = fresh("i" * 16, "5a" * 16, 300_000)
        await store.commit(0, before, audit(Rollback(provider="vllm", incident=""), before, before, GUARD, 1.0))
    command = Rollback(provider="vllm", incident=name, scope=name, trigger=Trigger.ERROR_RATE, evidence=own)
    after = command.apply(before, 2.0)
    record = incident(command, before, after, GUARD, 2.0)
    assert record is not None
    await store.commit(before.revision, after, audit(command, before, after, GUARD, 2.0), record)
    return record


async def by_of(store: StateStore, name: str) -> list[str]:
    (found,) = [record for record in await store.incidents(10) if record.id == name]
    return [one.by for one in found.evidence]


async def test_evidence_is_kept_as_it_was_the_incidents_own_first(store: StateStore) -> None:
    record = await roll_back(store, "a", evidence("first"))
    others = [evidence("third", 3.0), evidence("second", 9.0), evidence("fourth", 1.0)]
    for one in others:
        await store.note("a", one)
    (found,) = await store.incidents(10)
    assert found == replace(record, evidence=(evidence("first"), *others))


async def test_each_incident_has_its_own_evidence(store: StateStore) -> None:
    for name in ("a", "b", "c"):
        await roll_back(store, name, evidence(f"own-{name}") if name != "b" else None)
    for by in ("x", "y"):
        await store.note("b", evidence(by))
    await store.note("a", evidence("z"))
    assert [await by_of(store, name) for name in ("a", "b", "c")] == [["own-a", "z"], ["x", "y"], ["own-c"]]
    assert [record.id for record in await store.incidents(2)] == ["c", "b"]


async def test_evidence_beyond_the_most_is_dropped(store: StateStore) -> None:
    await roll_back(store, "a", evidence("own"))
    await asyncio.gather(*(store.note("a", evidence(f"p{n}")) for n in range(MOST_EVIDENCE + 5)))
    found = await by_of(store, "a")
    assert (len(found), found[0]) == (MOST_EVIDENCE, "own")


async def test_evidence_of_an_unknown_incident_is_dropped(store: StateStore) -> None:
    await store.note("later", evidence("early"))
    await roll_back(store, "later")
    assert await by_of(store, "later") == []


async def test_an_incident_is_to_be_told_once_it_is_committed_oldest_first(store: StateStore) -> None:
    assert await store.claim("p", 30.0) is None
    a = await roll_back(store, "a", evidence("own"))
    b = await roll_back(store, "b")
    assert [await store.claim("p", 30.0) for _ in range(3)] == [a, b, None]


async def test_what_is_claimed_comes_with_the_evidence_of_others(store: StateStore) -> None:
    await roll_back(store, "a", evidence("own"))
    await store.note("a", evidence("other"))
    claimed = await store.claim("p", 30.0)
    assert claimed is not None
    assert [one.by for one in claimed.evidence] == ["own", "other"]


async def test_a_claim_ends_with_its_lease_by_the_stores_clock(store: StateStore, clock: ManualClock) -> None:
    record = await roll_back(store, "a")
    assert await store.claim("p", 30.0) == record
    clock.now += 29.0
    assert await store.claim("q", 30.0) is None
    clock.now += 1.5
    assert await store.claim("q", 30.0) == record
    clock.now += 1.0
    assert await store.claim("p", 30.0) is None


async def test_a_claim_that_is_renewed_stays_whose_it_is(store: StateStore, clock: ManualClock) -> None:
    await roll_back(store, "a")
    await roll_back(store, "b")
    await store.claim("p q", 30.0)  # whatever a process is called
    await store.claim("p", 30.0)
    clock.now += 29.0
    assert await store.renew("a", "p q", 30.0)
    clock.now += 29.0
    claimed = [await store.claim("q", 30.0) for _ in range(2)]
    assert [one and one.id for one in claimed] == ["b", None]
    assert await store.renew("a", "p q", 1.0)
    clock.now += 2.0
    assert await store.renew("a", "p q", 30.0), "its lease was over, and nobody else has claimed it"
    assert await store.claim("q", 30.0) is None


async def test_what_another_has_claimed_or_was_told_is_not_renewed(store: StateStore, clock: ManualClock) -> None:
    record = await roll_back(store, "a")
    assert not await store.renew("a", "p", 30.0), "nobody has claimed it"
    await store.claim("p", 1.0)
    clock.now += 2.0
    assert await store.claim("q", 30.0) == record
    assert not await store.renew("a", "p", 30.0)
    assert await store.renew("a", "q", 30.0)
    await store.told("a")
    assert not await store.renew("a", "q", 30.0)
    assert not await store.renew("unknown", "q", 30.0)


async def test_of_many_that_claim_at_once_one_gets_it(store: StateStore) -> None:
    record = await roll_back(store, "a")
    claims = await asyncio.gather(*(store.claim(f"p{n}", 30.0) for n in range(20)))
    assert [claimed for claimed in claims if claimed is not None] == [record]


async def test_what_was_told_is_never_claimed_again(store: StateStore, clock: ManualClock) -> None:
    record = await roll_back(store, "a")
    await roll_back(store, "b")
    await store.claim("p", 30.0)
    await store.told("a")
    await store.told("a")
    await store.told("unknown")
    clock.now += 3_600.0
    flags = await store.load()
    assert flags is not None
    again = replace(flags, revision=flags.revision + 1)
    line = audit(Rollback(provider="vllm", incident="a"), flags, again, GUARD, 3.0)
    await store.commit(flags.revision, again, line, record)  # the same incident once more
    await store.note("a", evidence("late"))
    claimed = [await store.claim("q", 30.0) for _ in range(2)]
    assert [one and one.id for one in claimed] == ["b", None]


async def test_whose_lease_is_over_may_still_have_told_it(store: StateStore, clock: ManualClock) -> None:
    await roll_back(store, "a")
    await store.claim("slow", 1.0)
    clock.now += 2.0
    await store.told("a")
    assert await store.claim("other", 1.0) is None


async def test_a_closed_store_says_so(store: StateStore) -> None:
    await roll_back(store, "a")
    await store.aclose()
    for call in (store.note("a", evidence("x")), store.claim("p", 1.0), store.renew("a", "p", 1.0), store.told("a")):
        with pytest.raises(StoreUnreachable, match="closed"):
            await call
