"""One fault, from its beginning until every process has taken the share back."""

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet.fleet import ASKS, QWEN, Fleet, Log
from fleet.judging import GLOBAL, ZERO_S, Row, judge, keep, latched_at
from fleet.traffic import PATIENCE_S, Asks, Traffic

TRIES = 3  # for what depends on how busy this machine is: nothing else is tried again
LOOK_S = 0.05
VERDICT_S = 90.0  # more than enough for any verdict
SCOPE_S = 20.0  # that the whole scope may be found later than its first part: what is down gets no requests to judge
AFTER_S = 0.3  # requests that come later than a second after the verdict are looked at, too


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong, and what must come of it.

    Attributes:
        spec: as the emulator takes it. models: whose servers are hit; none: all.
        triggers: any of these is right. scope: what is latched, all of it, at once or one part after the other.
        by_chance: some requests fail, so that one model's or component's may be proven ill before all of them are; then
            some of them, or all one by one, are as right as a scope of everything.
        patience_s: of the clients.
        rules: of `rollback`, in place of the defaults. known: what every component has asked of the candidate before.
        rate, rate_then: requests a second at each gateway before, and from then on (None: as before).
    """

    name: str
    spec: str
    triggers: tuple[str, ...]
    scope: tuple[str, ...] = (GLOBAL,)
    by_chance: bool = False
    models: tuple[str, ...] = ()
    share: float = 0.5
    rate: float = 20.0
    rate_then: float | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)
    known: int = 50
    patience_s: float = PATIENCE_S
    asks: Sequence[Asks] = ASKS

    def is_right(self, scope: Collection[str]) -> bool:
        """Whether this is what ought to be latched."""
        whole = set(scope) in (set(self.scope), set(self.parts))
        return whole or (self.by_chance and set(scope) <= set(self.parts))

    @property
    def parts(self) -> tuple[str, ...]:
        """The scope in as many pieces as there are."""
        return tuple(one.component for one in self.asks) if GLOBAL in self.scope else self.scope


async def prove(store: str, fleet: Fleet, fault: Fault) -> Row:
    """Raises:
    AssertionError: something that must hold does not.
    """
    await fleet.begin(fault.share, fault.rules)
    for tried in range(1, TRIES + 1):
        row = await once(store, fleet, fault)
        keep(row)
        assert row.incidents == 1, row
        assert row.trigger in fault.triggers, row
        assert fault.is_right(row.scope), row
        assert row.errors == 0, row
        if row.in_time or tried == TRIES:
            break
        await fleet.begin(fault.share, fault.rules)
    assert row.in_time, row
    return row


async def once(store: str, fleet: Fleet, fault: Fault) -> Row:
    known = {one["id"] for one in await fleet.incidents()}
    traffic = Traffic(fleet.urls, fault.asks, fault.rate, patience_s=fault.patience_s)
    async with traffic:
        await until_known(fleet, fault.asks, fault.known)
        traffic.rate = fault.rate_then or fault.rate
        since = fleet.set(fault.spec, *fault.models)
        await _first_new(fleet, known)
        await _until_latched(fleet, fault, since)
        await asyncio.sleep(ZERO_S + AFTER_S)
    new = [one for one in await fleet.incidents() if one["id"] not in known]
    return judge(store, fault.name, fleet, traffic, new, since)


async def until_known(fleet: Fleet, asks: Sequence[Asks], least: int) -> None:
    """Every component has had so many requests on the candidate, in the epoch that is in force."""
    wanted = {one.component for one in asks if not one.spoils}
    async with asyncio.timeout(VERDICT_S):
        known: set[str] = set()
        while not wanted <= known:
            rows = (await fleet.get("status"))["windows"]
            known = {row["component"] for row in rows if row["provider"] == "vllm" and row["n"] >= least}
            await asyncio.sleep(LOOK_S)


async def _first_new(fleet: Fleet, known: set[str]) -> None:
    """Found by its line, for asking for it again and again would slow down what is measured."""
    async with asyncio.timeout(VERDICT_S):
        while True:
            lines = [line for log in fleet.logs for line in log.of("rollback")]
            if any(line["incident"] not in known for line in lines):
                return
            await asyncio.sleep(LOOK_S)


async def _until_latched(fleet: Fleet, fault: Fault, since: float) -> None:
    with contextlib.suppress(TimeoutError):  # the judge tells who has not, and what else was latched
        async with asyncio.timeout(SCOPE_S):
            while not all(_latches(log, fault.scope, since) or _latches(log, fault.parts, since) for log in fleet.logs):
                await asyncio.sleep(LOOK_S)


def _latches(log: Log, scopes: Sequence[str], since: float) -> bool:
    return all(latched_at(log.lines(), scope, since) for scope in scopes)


BROKEN, REFUSED = Asks("broken", QWEN, spoils="json"), Asks("refused", QWEN, spoils="message")


async def prove_quiet(store: str, fleet: Fleet, *, seconds: float) -> None:
    """Clients who send what no server takes, or leave at once, among those who do neither.

    Raises:
        AssertionError: the guard held it against the candidate.
    """
    await fleet.begin(0.5, {})
    known = await fleet.incidents()
    traffic = Traffic(fleet.urls, (*ASKS, BROKEN, REFUSED), 20.0, leaves_early=0.4)
    async with traffic:
        await until_known(fleet, ASKS, 20)
        await asyncio.sleep(seconds)
        await traffic.stop()
        await _until_counted(fleet, sum(answer.whole for answer in traffic.answers))
    assert await fleet.incidents() == known, store
    status = await fleet.get("status")
    assert status["latched"] == [], store
    rows = [row for row in status["windows"] if row["provider"] == "vllm"]
    assert {row["verdict"] for row in rows} <= {"pass", "inconclusive"}, rows
    assert sum(row["failures"] for row in rows) == 0, rows
    bad = [answer for answer in traffic.answers if answer.asks.spoils and not answer.left]
    assert len(bad) > 10
    assert {answer.status for answer in bad} == {400}
    assert {answer.arm for answer in bad if answer.asks is REFUSED} == {"baseline", "candidate"}
    assert sum(answer.left for answer in traffic.answers) > 20
    good = [answer for answer in traffic.answers if not answer.asks.spoils]
    assert not any(answer.failed_unbegun or answer.cut for answer in good)


async def _until_counted(fleet: Fleet, least: int) -> None:
    """The store knows of at least so many requests."""
    async with asyncio.timeout(VERDICT_S):
        counted = 0
        while counted < least:
            await asyncio.sleep(LOOK_S)
            rows = (await fleet.get("status"))["windows"]
            counted = sum(row["n"] for row in rows if not row["component"] and not row["model"])
