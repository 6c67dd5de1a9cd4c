"""The guard's driver: hears, counts, asks and brings to the store, judges, and acts through `live.cut`.

Every `TICK_S` what happened in this process is looked at: runs that tripped act at once. About every second, with a
phase of its own, what was counted goes to the store, what all the others counted comes back, and every rule is judged
over it: whoever flushes evaluates. While the store is away, or hangs, this process goes on with what it saw itself.

Nothing here is on a request's path, and nothing that goes wrong here reaches one: it is told as an internal error of
the part `guard`.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random

from msgspec.structs import replace

from memos_llm.core.errors import Refused, StoreUnreachable
from memos_llm.core.events import (
    BreakerChanged,
    Bus,
    ConfigChanged,
    Event,
    GuardBlind,
    GuardSaid,
    InternalError,
    ProbeEnded,
    RollbackHeld,
    place_of,
)
from memos_llm.core.flags import GLOBAL, Flags
from memos_llm.core.policy import Policy
from memos_llm.core.ports import Clock, Instance, LiveFlags, Routes, StateStore, Transport
from memos_llm.core.verdicts import HARD, Evaluation, Sum
from memos_llm.core.windows import WindowDelta
from memos_llm.guard.act import Fired, Knowledge, act, from_run, from_said
from memos_llm.guard.health import Health, judge_breakers, judge_probes
from memos_llm.guard.judge import Reading, Saying, failing, of_runs, read
from memos_llm.guard.recorder import Recorder
from memos_llm.guard.scope import has_share
from memos_llm.guard.windows import Windows

PART = "guard"
TICK_S = 0.25
FLUSH_S = 1.0  # on average, between two flushes
LATE_S = 0.25  # of the event loop: what is measured then says nothing of a provider
BLIND_S = 5.0  # how long that is held against it
PRUNE_S = 60.0
KEEP_EPOCHS = 2  # that are over: what is wrong may have outlived them
STORE_S = 1.0  # that an answer of the store is waited for before what is known here is judged
SLICE_S = 0.005  # of judging, then others have their turn
VOTES_S = 5.0  # that the others' hold while the store does not tell them; an instance is live for as long
QUICK_S = 0.5  # of an answer that took the store longer nobody knows when it looked at its clock
CLOSE_S = 3.0  # for the last flush
QUIET_S = 30.0  # what was held is told again once it was not so for that long
MOST_HELD = 100


class Guard:
    """One process's guard. Make it before calls are routed; `start` it on their event loop, `aclose` it before the
    flags are closed.

    Args:
        routes: the policy and the transports in force.
        instance: the id that this process has among the instances.
        clock: monotonic, as the engine's. wall: Unix seconds, until the store tells its own.

    Attributes:
        said: what it said last; None before the first time.
    """

    def __init__(
        self,
        live: LiveFlags,
        store: StateStore,
        bus: Bus,
        routes: Callable[[], Routes],
        *,
        instance: str,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
        rng: Random | None = None,
    ) -> None:
        self._live, self._store, self._bus, self._routes, self._instance = live, store, bus, routes, instance
        self._clock, self._rng = clock, rng or Random()
        self._windows, self._health = Windows(), Health()
        self._recorder = Recorder(self._policy, live.current, clock, wall, self._fault)
        self.said: GuardSaid | None = None
        self._others: Sequence[Instance] | None = None  # that probe; None: not asked since something is dead
        self._told_at = clock()  # when the store answered last
        self._knows_time = False  # by the store's clock
        self._asking: asyncio.Task[None] | None = None  # what the store has not answered yet
        self._given: Sequence[WindowDelta] = ()  # to `merge`, and it may have them: they are given again as they are
        self._held: OrderedDict[tuple[object, ...], float] = OrderedDict()
        self._blind = GuardBlind(what="")
        self._drained: frozenset[str] = frozenset()  # who was under maintenance a second ago
        self._born = clock()
        self._late_at, self._pruned_at = float("-inf"), clock()
        self._ending = asyncio.Event()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._off = [
            bus.subscribe(PART, self._recorder.on_event, *self._recorder.kinds),
            bus.subscribe(PART, self._probed, ProbeEnded),
            bus.subscribe(PART, self._broke, BreakerChanged),
            bus.subscribe(PART, self._configured, ConfigChanged),
        ]

    def start(self) -> None:
        """Call once."""
        self._tasks = (
            asyncio.create_task(self._tick_forever(), name="memos_llm guard tick"),
            asyncio.create_task(self._flush_forever(), name="memos_llm guard flush"),
        )

    async def aclose(self) -> None:
        """Judge and bring to the store what is left, so that a short process takes part. Harmless when repeated."""
        if self._ending.is_set():
            return
        self._ending.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        for unsubscribe in self._off:
            unsubscribe()

    def dead(self) -> tuple[str, ...] | None:
        """The endpoints that are dead for this process, for its heartbeats; None: it does not probe, or not for long
        enough to tell: a short script must not outvote those that know.
        """
        policy = self._policy()
        failures = policy.guard.of(policy.candidate or "").health_failures
        return tuple(sorted(self._dead())) if failures is not None and self._health.probes >= failures else None

    def tick(self) -> None:
        """Look at what happened here; what tripped acts."""
        now = self._clock()
        self._recorder.tick(now)
        trips = self._recorder.trips()
        if not trips:
            return
        self._drain()
        self._act([from_run(trip) for trip in trips])

    async def flush(self) -> None:
        """Bring what was counted to the store, learn what all have counted, judge, act."""
        self._drain()
        await self._exchange()
        await self._judge()
        if self._clock() - self._pruned_at > PRUNE_S:
            self._pruned_at = self._clock()
            flags = self._live.current()
            self._windows.prune(self._at(), lambda key: key.epoch >= flags.scope(key.scope).epoch - KEEP_EPOCHS)

    # The clockwork

    async def _tick_forever(self) -> None:
        while not self._ending.is_set():
            due = self._clock() + TICK_S
            await _waited(self._ending, TICK_S)
            if self._clock() - due > LATE_S:
                self._late_at = self._clock()
            self._recorder.lag(self._clock() - self._late_at < TICK_S)
            try:
                self.tick()
            except Exception as error:  # noqa: BLE001 - told; requests and flags go on without the guard
                self._fault(error)

    async def _flush_forever(self) -> None:
        await _waited(self._ending, self._rng.uniform(0, FLUSH_S))
        ending = False
        while not ending:
            ending = self._ending.is_set()
            try:
                await self.flush()
            except Exception as error:  # noqa: BLE001 - told, and flushed again soon: the guard must never end
                self._fault(error)
            await _waited(self._ending, FLUSH_S * self._rng.uniform(0.9, 1.1))

    def _fault(self, error: Exception) -> None:
        self._bus.emit(InternalError(part=PART, error=type(error).__name__, where=place_of(error)))

    def _policy(self) -> Policy:
        return self._routes().policy

    @property
    def _offset(self) -> float:
        """From this process's clock to the store's."""
        return self._recorder.offset

    def _at(self) -> float:
        """Now, in Unix seconds by the store's clock as far as it is known."""
        return self._clock() + self._offset

    # What is heard besides requests

    def _probed(self, event: Event) -> None:
        assert isinstance(event, ProbeEnded)
        self._health.probed(event, self._clock(), self._at())

    def _broke(self, event: Event) -> None:
        assert isinstance(event, BreakerChanged)
        self._health.broke(event, self._clock())

    def _configured(self, event: Event) -> None:
        assert isinstance(event, ConfigChanged)
        self._health.keep(frozenset(event.endpoints))

    # The store

    def _drain(self) -> None:
        for delta in self._recorder.drain():
            self._windows.add(delta)

    async def _exchange(self) -> None:
        """Ask the store, and wait for it as long as judging can wait. While it hangs it is asked nothing more."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_store(), name="memos_llm guard store")
        await asyncio.wait((self._asking,), timeout=STORE_S)
        if self._asking.done():
            self._asking = None

    async def _ask_store(self) -> None:
        told = await self._tried(self._merge)
        if self._dead():  # then it matters what the others' probes say
            told = await self._tried(self._ask_others)
        else:
            self._others = None
        if told:
            self._told_at = self._clock()

    async def _tried(self, step: Callable[[], Awaitable[None]]) -> bool:
        try:
            await step()
        except StoreUnreachable:  # whoever follows the flags tells of it
            return False
        except Exception as error:  # noqa: BLE001 - told; what this process saw itself is judged all the same
            self._fault(error)
            return False
        return True

    async def _merge(self) -> None:
        if not self._given:
            self._given = self._windows.owed()
        brought, asked_at = self._given, self._clock()
        try:
            merged = await self._store.merge(brought, self._windows.cursor)
        except Refused:  # of a newer schema: nothing may be added, and what others count is seen
            brought = ()
            merged = await self._store.merge(brought, self._windows.cursor)
        answered_at = self._clock()
        if answered_at - asked_at <= QUICK_S or not self._knows_time:
            self._recorder.at_store(merged.at - (asked_at + answered_at) / 2)
            self._knows_time = True
        self._windows.learn(merged, brought)
        self._given = ()

    async def _ask_others(self) -> None:
        self._others = [one for one in await self._store.instances() if one.id != self._instance]

    def _votes(self) -> Sequence[Instance] | None:
        """The others, with what their probes say; None while that is not known. Nobody, once the store was away for too
        long: then this process is alone.
        """
        return self._others if self._clock() - self._told_at <= VOTES_S else ()

    # Judging

    async def _judge(self) -> None:
        flags = self._live.current()
        reading = read(self._windows, self._policy(), flags, self._at())
        said = await self._say(reading)
        policy, transports = self._routes()
        more = (*of_runs(self._recorder.runs, reading.at), *self._of_endpoints(policy, transports, reading.at))
        self.said = GuardSaid(at=said.at, evaluations=said.evaluations + more, windows=said.windows)
        self._bus.emit(self.said)
        if policy.candidate is not None:
            known = self.said if self._live.current() is flags else replace(self.said, evaluations=more)  # or too late
            over = [self._fired(one, reading, flags) for one in failing(known, policy.candidate)]
            trips = self._recorder.trips()  # what tripped since the last tick is of the same moment
            self._drain()
            self._act([*map(from_run, trips), *over])
        self._tell_blindness(reading)

    async def _say(self, reading: Reading) -> GuardSaid:
        """Sum by sum; where they are many the requests have their turns in between."""
        saying, began = Saying(reading), time.monotonic()
        for _ in saying:
            if time.monotonic() - began > SLICE_S:
                await asyncio.sleep(SLICE_S)
                began = time.monotonic()
        return saying.said

    def _of_endpoints(self, policy: Policy, transports: Mapping[str, Transport], at: float) -> list[Evaluation]:
        candidate = policy.candidate
        if candidate is None or candidate not in transports:
            return []
        serving, now = self._serving(policy, transports), self._clock()
        limits, found = policy.guard.of(candidate), []
        if limits.failing:
            rearmed_at = self._live.current().rearmed_at
            found += judge_breakers(self._health, candidate, serving, rearmed_at - self._offset, now, at)
        if limits.health_failures is not None:
            found += judge_probes(self._health, candidate, serving, limits.health_failures, self._votes(), now, at)
        return found

    def _serving(self, policy: Policy, transports: Mapping[str, Transport]) -> dict[str, Sequence[str]]:
        """The candidate's endpoints, by logical model."""
        candidate = policy.candidate or ""
        mapped = {name: model.target(candidate) for name, model in policy.catalogue.models.items()}
        serving = {name: transports[candidate].serving(target.model) for name, target in mapped.items() if target}
        return {name: endpoints for name, endpoints in serving.items() if endpoints}

    def _dead(self) -> frozenset[str]:
        policy = self._policy()
        return self._health.dead(lambda provider: policy.guard.of(provider).health_failures)

    # Acting

    def _fired(self, said: Evaluation, reading: Reading, flags: Flags) -> Fired:
        """With the ids of bad ones that this process had itself."""
        own = (runs for runs in self._recorder.runs if runs.sum == said.sum and said.trigger not in HARD)
        ids = (runs.bad(said.trigger, said.since - self._offset) for runs in own)
        return from_said(replace(said, requests=next(ids, ())), reading, flags)

    def _act(self, fired: Sequence[Fired]) -> None:
        policy, transports = self._routes()
        candidate = policy.candidate
        mine = [one for one in fired if one.evaluation.sum.provider == candidate]
        flags, at = self._live.current(), self._at()
        before, self._drained = self._drained, flags.maintained(at)
        if candidate in before - self._drained:
            self._health.forgive(candidate, self._clock())
            return  # what fires now was seen under maintenance
        if not mine or candidate is None or not policy.guard.enabled:
            return
        reading = read(self._windows, policy, flags, at)
        done = act(mine, candidate, reading, flags, self._knowledge(policy, transports))
        for held in done.held:
            self._hold(held, flags)
        if done.rollback is not None:
            self._live.cut(done.rollback)

    def _knowledge(self, policy: Policy, transports: Mapping[str, Transport]) -> Knowledge:
        def down(model: str) -> str:
            """As this process sees it; a sign of it is enough to stay where we are."""
            if policy.baseline in self._live.current().maintained(self._at()):
                return "it is under maintenance"
            transport = transports.get(policy.baseline)
            if transport is None:
                return "it is switched off"
            doubt = self._health.doubt(policy.baseline, transport.serving(model), model)
            return doubt or transport.offer(model).refused or ""

        candidate = policy.candidate or ""
        return Knowledge(
            judged=self.said.evaluations if self.said else (),
            served=tuple(self._serving(policy, transports)) if candidate in transports else (),
            down=down,
            probes=self._health.seen(candidate, policy.baseline),
            by=self._instance,
        )

    def _hold(self, held: RollbackHeld, flags: Flags) -> None:
        """Told once, until something changes."""
        key = (held.provider, held.scope, held.trigger, held.why, flags.effective(held.scope)[1].epoch)
        now, before = self._clock(), self._held.pop(key, float("-inf"))
        self._held[key] = now
        while len(self._held) > MOST_HELD:
            self._held.popitem(last=False)
        if now - before > QUIET_S:
            self._bus.emit(held)

    def _tell_blindness(self, reading: Reading) -> None:
        blind = GuardBlind(what="")
        if self._clock() - self._late_at < BLIND_S:
            blind = GuardBlind(what="lag", detail=f"the event loop was more than {LATE_S * 1000:.0f} ms late")
        elif self._starves(reading):
            blind = GuardBlind(what="no-data", detail=f"no request of {reading.policy.candidate} for a whole window")
        if blind.what != self._blind.what:
            self._blind = blind
            self._bus.emit(blind)

    def _starves(self, reading: Reading) -> bool:
        """The candidate has a share, and nobody has asked anything of it for as long as a window."""
        policy, flags, candidate = reading.policy, self._live.current(), reading.policy.candidate
        if candidate is None or not policy.guard.enabled or not has_share(GLOBAL, flags, policy):
            return False
        grace_s = policy.guard.of(candidate).window_s
        began = max(flags.scope(GLOBAL).since, flags.maintenance.get(candidate, 0.0), self._born + self._offset)
        if reading.at - began < grace_s or candidate in flags.maintained(reading.at):
            return False
        of = reading.current.of(Sum(provider=candidate))
        return reading.windows.counted(of, reading.at - grace_s, reading.at + 1).n == 0


async def _waited(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
