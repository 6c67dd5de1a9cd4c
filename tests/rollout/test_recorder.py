"""Counting: what a request adds, that nothing is counted twice or lost while the store fails, and the bounds."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace
from stack import until

from memos_llm.core.call import Feature, Operation, Target, Wire
from memos_llm.core.decision import Arm, Decision, Reason
from memos_llm.core.errors import Refused, StoreUnreachable
from memos_llm.core.events import AttemptEnded, Bus, ConfigChanged, InternalError, RequestEnded, StoreState
from memos_llm.core.inventory import OTHER, Recorded, Sighting
from memos_llm.core.outcome import OK, Kind, Outcome
from memos_llm.rollout import recorder as module
from memos_llm.rollout.recorder import Recorder
from memos_llm.store import MemoryStore
from memos_llm.testing import Recorder as Told

DECISION = Decision(
    arm=Arm.CANDIDATE, targets=(Target("vllm", "Q"),), reason=Reason.SPLIT, scope="*", epoch=1, revision=1
)
REFUSED = Outcome(kind=Kind.INCOMPATIBLE, status=400, code="status")


def ended(request_id: str = "r1", **changes: Any) -> RequestEnded:
    event = RequestEnded(
        request_id=request_id,
        decision=DECISION,
        provider="vllm",
        component="synthesis",
        model="qwen3:8b",
        operation=Operation.CHAT,
        outcome=OK,
        attempts=1,
        stream=False,
        duration_s=1.0,
        ttft_s=None,
        tpot_s=None,
        usage=None,
        warnings=(),
        wire=Wire.OPENAI_CHAT,
        caller="team-a",
        at=1.0,
    )
    return replace(event, **changes)


def tried(outcome: Outcome, request_id: str = "r1", provider: str = "vllm") -> AttemptEnded:
    return AttemptEnded(
        request_id=request_id,
        provider=provider,
        endpoint="http://v:1",
        arm="candidate",
        component="synthesis",
        model="qwen3:8b",
        outcome=outcome,
        duration_s=1.0,
        at=1.0,
    )


class Failing(MemoryStore):
    """A store that can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.writes = 0

    async def record(self, sightings: Sequence[Sighting]) -> None:
        self.writes += 1
        if self.error is not None:
            raise self.error
        await super().record(sightings)


class Counting:
    """A recorder, its bus, and its store."""

    def __init__(self, every_s: float) -> None:
        self.store, self.bus, self.told = Failing(), Bus(), Told()
        self.recorder = Recorder(self.store, self.bus, components=["synthesis"], models=["qwen3:8b"], every_s=every_s)
        self.bus.subscribe("test", self.told)

    async def read(self) -> dict[tuple[str, str, str], int]:
        found: dict[tuple[str, str, str], int] = {}
        for one in (await self.store.recorded()).sightings:
            key = (one.what, one.provider, one.detail)
            found[key] = found.get(key, 0) + one.n
        return found


@asynccontextmanager
async def counting(every_s: float = 3600.0) -> AsyncIterator[Counting]:
    made = Counting(every_s)
    made.recorder.start()
    await until(lambda: made.store.writes)
    yield made
    await made.recorder.aclose()
    await made.store.aclose()


async def test_the_first_flush_dates_the_beginning_and_the_last_writes_what_is_left() -> None:
    async with counting() as on:
        assert (await on.store.recorded()).since is not None
        for n in range(3):
            on.bus.emit(ended(str(n)))
        assert await on.read() == {}
        await on.recorder.aclose()
        await on.recorder.aclose()
        assert await on.read() == {("request", "vllm", "split"): 3}


CAUSES: list[tuple[dict[str, Any], list[Outcome], dict[tuple[str, str, str], int]]] = [
    ({}, [], {("request", "vllm", "split"): 1}),
    (
        {"provider": "ollama"},
        [REFUSED],
        {("request", "ollama", "fell-back"): 1, ("incompatible", "vllm", "400"): 1},
    ),
    (
        {"provider": "ollama", "warnings": ("dropped:a", "repaired:b")},
        [Outcome(kind=Kind.TIMEOUT, code="ttft")],
        {
            ("request", "ollama", "fell-back"): 1,
            ("failed", "vllm", "timeout ttft"): 1,
            ("warning", "ollama", "dropped:a"): 1,
            ("warning", "ollama", "repaired:b"): 1,
        },
    ),
    (
        {"provider": "ollama", "decision": replace(DECISION, reason=Reason.DIVERTED)},
        [],
        {("request", "ollama", "diverted"): 1},
    ),
    (
        {
            "provider": "ollama",
            "decision": replace(DECISION, reason=Reason.NOT_OFFERED, arm=Arm.BASELINE),
            "needs": Feature.TOKEN_IDS | Feature.SUFFIX,
        },
        [],
        {("request", "ollama", "not-offered"): 1, ("needs", "", "token-ids"): 1, ("needs", "", "suffix"): 1},
    ),
    (
        {
            "provider": "ollama",
            "decision": replace(DECISION, reason=Reason.NOT_OFFERED, arm=Arm.BASELINE),
            "needs": Feature.LOAD,
        },
        [],
        {("request", "ollama", "load"): 1},
    ),
    ({"outcome": Outcome(kind=Kind.CLIENT, status=400)}, [], {("refused", "vllm", "split"): 1}),
    ({"outcome": Outcome(kind=Kind.CANCELLED)}, [], {("request", "vllm", "split"): 1}),
    (
        {"outcome": Outcome(kind=Kind.CONNECT)},
        [Outcome(kind=Kind.CONNECT, code="refused")],
        {("unanswered", "vllm", "split"): 1, ("failed", "vllm", "connect refused"): 1},
    ),
]


@pytest.mark.parametrize(("changes", "tries", "counts"), CAUSES)
async def test_what_a_request_adds(
    changes: dict[str, Any], tries: list[Outcome], counts: dict[tuple[str, str, str], int]
) -> None:
    async with counting() as on:
        for outcome in tries:
            on.bus.emit(tried(outcome))
        on.bus.emit(ended(**changes))
        assert await on.recorder.flush()
        assert await on.read() == counts


async def test_a_failed_try_belongs_to_its_own_request() -> None:
    async with counting() as on:
        on.bus.emit(tried(REFUSED, "r1"))
        on.bus.emit(ended("r2"))
        on.bus.emit(ended("r1", provider="ollama"))
        on.bus.emit(ended("r3"))
        await on.recorder.flush()
        assert await on.read() == {
            ("request", "vllm", "split"): 2,
            ("request", "ollama", "fell-back"): 1,
            ("incompatible", "vllm", "400"): 1,
        }


@pytest.mark.parametrize("error", [StoreUnreachable("odd"), Refused("newer"), RuntimeError("a bug")])
async def test_what_could_not_be_written_is_kept_told_and_written_once(error: Exception) -> None:
    async with counting() as on:
        on.store.error = error
        for n in range(4):
            on.bus.emit(ended(str(n)))
            assert not await on.recorder.flush()
        assert {(event.part, event.error) for event in on.told.of(InternalError)} == {
            ("inventory", type(error).__name__)
        }
        on.store.error = None
        assert await on.recorder.flush()
        assert await on.recorder.flush()
        assert await on.read() == {("request", "vllm", "split"): 4}


async def test_a_store_that_is_known_to_be_away_is_told_of_only_when_counts_are_lost_with_the_end() -> None:
    async with counting() as on:
        on.bus.emit(StoreState(reachable=False))
        on.store.error = StoreUnreachable("gone")
        on.bus.emit(ended())
        for _ in range(3):
            assert not await on.recorder.flush()
        assert on.told.of(InternalError) == []
        await on.recorder.aclose()
        assert [(event.part, event.error) for event in on.told.of(InternalError)] == [("inventory", "StoreUnreachable")]


async def test_it_writes_by_itself_and_comes_back_by_itself() -> None:
    async with counting(every_s=0.01) as on:
        on.store.error = StoreUnreachable("gone")
        on.bus.emit(ended())
        writes = on.store.writes
        await until(lambda: on.store.writes > writes + 1)
        on.store.error = None
        async with asyncio.timeout(5):
            while not await on.read():
                await asyncio.sleep(0.01)
        assert await on.read() == {("request", "vllm", "split"): 1}


async def test_nothing_to_tell_is_no_write() -> None:
    async with counting() as on:
        before = on.store.writes
        assert await on.recorder.flush()
        assert on.store.writes == before


async def test_the_end_does_not_wait_for_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.05)

    class Hanging(MemoryStore):
        async def record(self, sightings: Sequence[Sighting]) -> None:
            await asyncio.Event().wait()

    bus, told, store = Bus(), Told(), Hanging()
    bus.subscribe("test", told)
    recorder = Recorder(store, bus)
    recorder.start()
    async with asyncio.timeout(5):
        await recorder.aclose()
    assert [event.error for event in told.of(InternalError)] == ["TimeoutError"]
    await store.aclose()


async def test_names_that_callers_make_up_are_bounded_and_configured_ones_never_lose_theirs() -> None:
    async with counting() as on:
        for n in range(400):
            on.bus.emit(ended(str(n), component=f"c{n}", model=f"m{n}\n{'x' * 500}"))
        on.bus.emit(ended())
        await on.recorder.flush()
        on.bus.emit(
            ConfigChanged(
                path="", changed=True, generation=1, providers=(), endpoints=(), candidate="vllm",
                components=("new",), models=("new:1b",),
            )
        )  # fmt: skip
        on.bus.emit(ended(component="new", model="new:1b"))
        await on.recorder.flush()
        lines = {one.line for one in (await on.store.recorded()).sightings}
        assert {"synthesis", "new", OTHER} <= {line.component for line in lines}
        assert len(lines) <= 203
        assert {"qwen3:8b", "new:1b", OTHER} <= {line.model for line in lines}
        assert all(line.model.isprintable() and len(line.model) < 100 for line in lines)
        assert sum((await on.read()).values()) == 402


async def test_kinds_of_request_between_two_flushes_are_bounded_and_all_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_KINDS", 10)
    async with counting() as on:
        for n in range(50):
            on.bus.emit(ended(str(n), caller=f"k{n}"))
        await on.recorder.flush()
        found: Recorded = await on.store.recorded()
        assert (len(found.sightings), sum(one.n for one in found.sightings)) == (11, 50)
        assert [one.n for one in found.sightings if one.line.caller == OTHER] == [40]
