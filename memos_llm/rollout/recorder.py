"""Counts what this process is asked and who answers, and adds it to the store every few seconds and at the end.

On a request's path is one look-up in a dictionary; everything else is done between requests. What could not be written
is kept (bounded) and written with the next: a count is told once, or, if the process is killed, lost with the seconds
since the last flush. Failures are told as internal errors of the part `inventory`, but for a store that is known to be
away: that has a line of its own.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from memos_llm.core.call import Feature
from memos_llm.core.decision import Arm, Reason
from memos_llm.core.errors import StoreUnreachable
from memos_llm.core.events import (
    AttemptEnded,
    Bus,
    ConfigChanged,
    Event,
    InternalError,
    RequestEnded,
    StoreState,
    place_of,
)
from memos_llm.core.inventory import FELL_BACK, LOAD, OTHER, Ledger, Line, Sighting, What, day_of
from memos_llm.core.outcome import Kind
from memos_llm.core.ports import Clock, StateStore
from memos_llm.telemetry.labels import Slots
from memos_llm.telemetry.metrics import MAX_COMPONENTS, MAX_MODELS

PART = "inventory"
EVERY_S = 4.0  # on average, between two flushes
LONGEST_PAUSE_S = 60.0  # after failures in a row
CLOSE_S = 3.0  # for the last flush
MAX_KINDS = 5_000  # of requests between two flushes; what comes later is counted as `other`
MAX_OPEN = 10_000  # requests under way whose failed tries are remembered
MAX_NAME = 96  # characters


class Try(NamedTuple):
    """A try that failed, as far as it is told."""

    provider: str
    kind: Kind
    status: int
    code: str


class Sort(NamedTuple):
    """One sort of request: requests that agree in all of it are one count."""

    component: str
    model: str
    wire: str
    route: str
    caller: str
    provider: str
    arm: Arm
    reason: Reason
    outcome: Kind
    needs: Feature
    warnings: tuple[str, ...]
    failed: tuple[Try, ...]


class Tally:
    """`n` requests of one sort; `first` and `last` in Unix seconds."""

    __slots__ = ("first", "last", "n")

    def __init__(self, now: float) -> None:
        self.n, self.first, self.last = 0, now, now


class Recorder:
    """The driver. Subscribes itself; `start` it on the event loop that it belongs to, `aclose` it before the store.

    Args:
        components, models: configured names, which never become `other`.
        clock: wall clock, Unix seconds.
    """

    def __init__(
        self,
        store: StateStore,
        bus: Bus,
        *,
        components: Iterable[str] = (),
        models: Iterable[str] = (),
        clock: Clock = time.time,
        every_s: float = EVERY_S,
    ) -> None:
        self._store, self._bus, self._clock, self._every_s = store, bus, clock, every_s
        self._components, self._models = Slots(MAX_COMPONENTS), Slots(MAX_MODELS)
        self._reserve(components, models)
        self._seen: dict[tuple[object, ...], Tally] = {}
        self._failed: dict[str, tuple[Try, ...]] = {}
        self._owed = Ledger()
        self._dated = False  # the store knows that somebody records
        self._store_known_away, self._failures = False, 0
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        bus.subscribe(PART, self._ended, RequestEnded)
        bus.subscribe(PART, self._tried, AttemptEnded)
        bus.subscribe(PART, self._configured, ConfigChanged)
        bus.subscribe(PART, self._store_said, StoreState)

    def start(self) -> None:
        """Call once."""
        self._task = asyncio.create_task(self._run(), name="memos_llm inventory")

    async def aclose(self) -> None:
        """Write what is left, if the store takes it in time. Harmless when repeated."""
        self._ending.set()
        if self._task is None:
            return
        await asyncio.wait({self._task}, timeout=CLOSE_S)
        if not self._task.done():
            self._fault(TimeoutError())
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def flush(self) -> bool:
        """Write what was counted; False: it could not be, and is kept."""
        self._owed.add(self._drained())
        taken = self._owed.take()
        if not taken and self._dated:
            return True
        try:
            await self._store.record(
                taken
            )  # cancelled here, it is still carried out: so what was taken is not put back
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the store, requests go on, and it is told
            self._owed.add(taken)
            self._failed_to_write(error)
            return False
        self._dated, self._failures = True, 0
        return True

    async def _run(self) -> None:
        pause_s = self._every_s
        while True:
            ending = self._ending.is_set()
            written = await self.flush()
            if ending:
                if not written and len(self._owed):
                    self._fault(StoreUnreachable("what was counted is lost"))
                return
            pause_s = self._every_s if written else min(LONGEST_PAUSE_S, pause_s * 2)
            await waited(self._ending, random.uniform(0.5, 1.5) * pause_s)

    # On the path of a request

    def _ended(self, event: Event) -> None:
        assert isinstance(event, RequestEnded)
        decision = event.decision
        key = (
            event.component, event.model, event.wire, event.route, event.caller, event.provider,
            decision.arm, decision.reason, event.outcome.kind, event.needs, event.warnings,
            self._failed.pop(event.request_id, ()) if self._failed else (),
        )  # fmt: skip
        tally = self._seen.get(key)
        now = self._clock()
        if tally is None:
            tally = self._another(key, now)
        tally.n += 1
        tally.last = now

    def _another(self, key: tuple[object, ...], now: float) -> Tally:
        if len(self._seen) >= MAX_KINDS:
            key = (OTHER, OTHER, OTHER, "", OTHER, *key[5:9], Feature.NONE, (), ())
        return self._seen.setdefault(key, Tally(now))

    def _tried(self, event: Event) -> None:
        assert isinstance(event, AttemptEnded)
        outcome = event.outcome
        if outcome.kind in _FAILURES and len(self._failed) < MAX_OPEN:
            failed = Try(event.provider, outcome.kind, outcome.status, outcome.code)
            self._failed[event.request_id] = (*self._failed.get(event.request_id, ()), failed)

    # Between requests

    def _configured(self, event: Event) -> None:
        assert isinstance(event, ConfigChanged)
        self._reserve(event.components, event.models)

    def _store_said(self, event: Event) -> None:
        assert isinstance(event, StoreState)
        self._store_known_away = not event.reachable

    def _failed_to_write(self, error: Exception) -> None:
        """A store that is away is told of by whoever follows the flags; one that refuses only this is told of here."""
        self._failures += 1
        away = isinstance(error, StoreUnreachable) and (self._store_known_away or self._failures == 1)
        if not away:
            self._fault(error)

    def _reserve(self, components: Iterable[str], models: Iterable[str]) -> None:
        self._components.reserve(components)
        self._models.reserve(models)

    def _drained(self) -> Iterator[Sighting]:
        seen, self._seen = self._seen, {}
        for key, tally in seen.items():
            yield from sightings(Sort(*key), tally, self._line(Sort(*key)))  # type: ignore[arg-type]  # made so in `_ended`

    def _line(self, sort: Sort) -> Line:
        model = self._models[_told(sort.model)] if sort.model else ""
        return Line(self._components[sort.component], model, str(sort.wire), sort.route, sort.caller)

    def _fault(self, error: Exception) -> None:
        self._bus.emit(InternalError(part=PART, error=type(error).__name__, where=place_of(error)))


_FAILURES = frozenset(Kind) - {Kind.OK, Kind.CLIENT, Kind.CANCELLED}
_ENDS = {Kind.OK: What.REQUEST, Kind.CANCELLED: What.REQUEST, Kind.CLIENT: What.REFUSED}


def sightings(sort: Sort, tally: Tally, line: Line) -> Iterator[Sighting]:
    """What `tally.n` requests of one sort add to the counts of their line."""

    def seen(what: What, provider: str = "", detail: str = "") -> Sighting:
        day = day_of(tally.last)
        return Sighting(
            day=day, line=line, what=what.value, provider=provider, detail=detail,
            n=tally.n, first=tally.first, last=tally.last,
        )  # fmt: skip

    yield seen(_ENDS.get(sort.outcome, What.UNANSWERED), sort.provider, cause(sort))
    if cause(sort) == Reason.NOT_OFFERED:
        for feature in Feature:
            if feature & sort.needs and feature is not Feature.ALL:
                yield seen(What.NEEDS, "", (feature.name or "").lower().replace("_", "-"))
    for failed in dict.fromkeys(sort.failed):
        incompatible = failed.kind is Kind.INCOMPATIBLE
        code = "" if failed.code == "status" else failed.code  # the status says it
        said = (str(failed.status or ""), code) if incompatible else (failed.kind.value, failed.code)
        yield seen(What.INCOMPATIBLE if incompatible else What.FAILED, failed.provider, " ".join(filter(None, said)))
    for warning in sort.warnings:
        yield seen(What.WARNING, sort.provider, warning)


def cause(sort: Sort) -> str:
    """Why it was answered where it was: the decision's reason, unless what came after says more."""
    if sort.reason is Reason.NOT_OFFERED and sort.needs & Feature.LOAD:
        return LOAD
    if sort.arm is Arm.CANDIDATE and any(failed.provider != sort.provider for failed in sort.failed):
        return FELL_BACK
    return sort.reason.value


async def waited(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


def _told(name: str) -> str:
    """A model's name as its caller spelt it, fit to be stored and shown."""
    return "".join(sign if sign.isprintable() else "?" for sign in name[:MAX_NAME])
