"""The driver of this process's flags: reads, watches and writes the store; decides nothing (`control.adopt` does).

Five tasks: `follow` adopts what is published, `publish` brings cuts to the store, `beat` tells the fleet which revision
is in force here, `keep` writes the last-good file, and `tick` notices that the event loop has stood still: `follow` has
heard of nothing then, so whoever is the first to ask for the flags looks at the store. All state is one immutable
`View`, replaced on the event loop only, so no lock guards it. A store that fails is waited for, with growing pauses;
meanwhile the last flags stay in force.
"""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from memos_llm.control.adopt import (
    Cut,
    Verdict,
    View,
    adopt,
    blank,
    decided,
    due,
    given_up,
    judge,
    owed,
    permit,
    published,
    remaining,
    with_cut,
)
from memos_llm.control.adoption import Proposal, propose, took_over
from memos_llm.control.awake import STALE_S, Awake
from memos_llm.control.confirm import Confirmation, confirm
from memos_llm.control.keeper import Keeper
from memos_llm.control.pauses import LONGEST_PAUSE_S, briefly, for_ever, pauses_s, woken
from memos_llm.control.records import Records
from memos_llm.control.standing import Standing
from memos_llm.control.words import founding, seeded, withdrawn
from memos_llm.core.commands import Actor, Audit, Command, Incident, Rollback, audit, incident
from memos_llm.core.errors import Refused, StoreUnreachable
from memos_llm.core.events import Bus, FlagsChanged, InternalError, StoreState, place_of
from memos_llm.core.flags import Flags
from memos_llm.core.ports import Clock, Conflict, Instance, StateStore

PART = "control"
GLANCE_S = 0.25  # how long a decision waits for a store, once after the event loop has stood still
CLOSE_S = 3.0  # for what is owed to the store; what it has not taken by then is in the last-good file
LEAVE_S = 1.0  # to deregister, and to close the store
TRIES = 40  # of a command that always finds somebody else faster; a rollback has no such limit


class Live:
    """`core.ports.LiveFlags` over a store. All methods belong to the event loop that `start` ran on.

    Args:
        store: shared or own; closed by `aclose` only if `owns_store`.
        instance_id, kind, ephemeral: how this process appears among the instances (nobody waits for an ephemeral one).
        last_good: the file for a start without the store; None for none.
        seed: makes the first flags of a new store. Without it a new store stays as it is, and share 0 is in force.
        clock: wall clock, Unix seconds.
        heartbeat_s: seconds between heartbeats.
        stale_s: how long the event loop may have stood still before the store is looked at.
    """

    def __init__(
        self,
        store: StateStore,
        bus: Bus,
        *,
        instance_id: str,
        kind: str,
        ephemeral: bool = False,
        last_good: Path | None = None,
        seed: Callable[[], Flags] | None = None,
        clock: Clock = time.time,
        heartbeat_s: float = 1.0,
        stale_s: float = STALE_S,
        owns_store: bool = False,
    ) -> None:
        self._store, self._bus, self._clock = store, bus, clock
        self._instance = Instance(id=instance_id, kind=kind, revision=0, at=0.0, ephemeral=ephemeral)
        self._last_good, self._seed = last_good, seed
        self._heartbeat_s, self._owns_store = heartbeat_s, owns_store
        self._view = View(blank())
        self._current = self._view.published
        self._standing = Standing(bus, last_good)
        self._paid: tuple[str, tuple[Cut, ...]] = ("", ())  # what `publish` has brought to a store with that fault
        self._records = Records(store, bus)
        self._keeper = Keeper(last_good, lambda: self._view, clock)
        self._awake = Awake(stale_s, self._glance)
        self._wake_publish, self._wake_beat = asyncio.Event(), asyncio.Event()
        self._submitting = asyncio.Lock()  # our own commands in turn: they would only conflict with each other
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._closed = False
        self.dead: Callable[[], tuple[str, ...] | None] = lambda: None  # for heartbeats; the guard says

    @property
    def instance_id(self) -> str:
        """What this process is called among the instances."""
        return self._instance.id

    @property
    def store(self) -> StateStore:
        """For reading history, incidents and instances; flags are changed through `submit` only."""
        return self._store

    @property
    def store_state(self) -> StoreState:
        """How the store looks from here, for `status`."""
        return self._standing.state

    async def start(self) -> None:
        """Have flags in force, from the store, else from the last-good file, else baseline only; keep them fresh."""
        self._view = self._keeper.read()
        for cut in self._view.cuts:  # whoever made it may have died while it was being committed
            self._records.doubt(cut.command.incident)
        before = self._current = self._view.in_force()
        try:
            await self._sync()
            await self._beat()
        except StoreUnreachable as error:
            self._lost(error)
        if self._current is before:
            self._bus.emit(FlagsChanged(flags=before))
        self._awake.renew()
        steps = [self._follow, self._publish, self._beat_when_due, self._awake.tick]
        if self._last_good is not None:
            steps.append(self._keeper.keep)
        self._tasks = tuple(
            asyncio.create_task(for_ever(step, self._failed), name=f"memos_llm {PART} {step.__name__.strip('_')}")
            for step in steps
        )

    def current(self) -> Flags:
        self._awake.check()
        return self._current

    def cut(self, rollback: Rollback) -> None:
        self._cut(decided(rollback, self._view.published, Actor(self._instance.id, "guard"), self._clock()))

    async def submit(self, command: Command, actor: Actor) -> Flags:
        """As the port says; the new flags are in force here when this returns.

        Raises:
            Refused: by the command, by who asks, by a regressed store, or after too many conflicts in a row.
            StoreUnreachable: nothing was changed, as far as can be known.
        """
        tries = itertools.count() if isinstance(command, Rollback) else range(TRIES)
        async with self._submitting:
            try:
                for attempt in tries:
                    with contextlib.suppress(Conflict):
                        return await self._submit_once(command, actor)
                    await asyncio.sleep(random.uniform(0, 0.001 * 2 ** min(attempt, 4)))
            except StoreUnreachable as error:
                self._lost(error)
                raise
        raise Refused(f"the flags changed {TRIES} times under this {command.name}: try again when fewer change them")

    async def propose_adoption(self, reason: str = "") -> Proposal | None:
        """What adopting a regressed store would do; None when the store is well.

        Raises:
            StoreUnreachable
        """
        read = await self._look()
        if not self._view.fault:
            return None
        return propose(self._view.in_force(), read, founding(), self._view.fault, reason, self._clock())

    async def adopt_store(self, proposal: Proposal, actor: Actor) -> Flags:
        """Make the regressed store the one in force, everywhere; see `control.adoption`.

        Raises:
            Refused: the store is not what it was when this was proposed.
            StoreUnreachable: nothing was changed, as far as can be known.
        """
        async with self._submitting:
            read = await self._look()
            if not self._view.fault or read != proposal.read:
                raise Refused("the store has changed meanwhile: look again at what adopting it would do")
            if read is None and owed(self._view):
                read, proposal = await self._begin_anew(proposal)
            before, after = self._view.in_force(), proposal.after
            entry = audit(proposal.command, before, after, actor, self._clock())
            try:
                await self._store.commit(read.revision if read else 0, after, entry)
            except Conflict:
                raise Refused("the store was changed meanwhile: look again at what adopting it would do") from None
            self._adopt(after)
            self._found()
            return after

    async def _begin_anew(self, proposal: Proposal) -> tuple[Flags | None, Proposal]:
        """Found an empty store, without a share, and bring it what it is owed: no latch is without its incident."""
        await self._plant(replace(founding(), revision=1))
        await self._pay(owed(self._view))
        read, reason, known = await self._look(), proposal.command.reason, self._view.in_force()
        return read, propose(known, read, founding(), proposal.fault, reason, self._clock())

    async def confirm(self, revision: int, timeout_s: float = 10.0) -> Confirmation:
        """Wait for the fleet to follow `revision`.

        Raises:
            StoreUnreachable
        """
        return await confirm(self._store, revision, timeout_s)

    async def aclose(self) -> None:
        """Publish what is owed if the store lets us, write the last-good file, deregister; in time, if it hangs."""
        if self._closed:
            return
        self._closed = True
        self._awake.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        ended = [await briefly(self._settle(), CLOSE_S)]
        with contextlib.suppress(OSError):
            await self._keeper.save()
        ended.append(await briefly(self._store.leave(self._instance.id), LEAVE_S))
        if self._owns_store:
            ended.append(await briefly(self._store.aclose(), LEAVE_S))
        if not all(ended):
            self._lost(StoreUnreachable("the store did not answer in time, and this process ends without it"))

    async def _settle(self) -> None:
        await self._pay(owed(self._view))
        await self._record()

    # What is in force here

    def _put(self, view: View) -> None:
        """Replace the view; tell when requests see something new."""
        before, self._view = self._view, view
        if view.notes != before.notes or view.fault != before.fault:
            self._wake_publish.set()
        if view.published is before.published and view.cuts == before.cuts:
            return
        self._current = view.in_force()
        self._wake_beat.set()
        self._keeper.wake()
        self._bus.emit(FlagsChanged(flags=self._current))

    def _cut(self, cut: Cut) -> None:
        self._put(with_cut(self._view, cut))
        self._wake_publish.set()

    def _adopt(self, flags: Flags) -> None:
        """Of two readings that overtook each other the newer stays."""
        known = self._view.published
        if self._view.fault or flags.revision > known.revision or took_over(flags, known):
            self._take(flags)

    def _take(self, flags: Flags) -> None:
        late = given_up(self._view, flags)
        self._put(adopt(self._view, flags))
        for cut, scope in late:
            self._bus.emit(withdrawn(cut, scope))

    def _observe(self, known: Flags, read: Flags | None) -> None:
        """Judge what the store said against what was in force before it was asked."""
        judgement = judge(known, read)
        if judgement.verdict is Verdict.REGRESSED:
            self._regressed(judgement.why)
            return
        if judgement.verdict is Verdict.ADOPT and read is not None:
            self._adopt(read)
        elif read is not None and any(cut.stale for cut in self._view.cuts):
            self._take(read)
        elif self._view.fault:
            self._put(replace(self._view, fault=""))
        self._found()

    def _regressed(self, why: str) -> None:
        if self._view.fault != why:
            self._put(replace(self._view, fault=why))
            self._wake_beat.set()
            self._wake_publish.set()
        self._found()

    # What is said of the store

    def _found(self) -> None:
        self._standing.found(self._view)

    def _lost(self, error: StoreUnreachable) -> None:
        self._standing.lost(self._view, error)

    # Reading

    async def _sync(self) -> None:
        await self._look(self._seed)

    async def _look(self, seed: Callable[[], Flags] | None = None) -> Flags | None:
        """Read the store and judge what it said against what was in force before it was asked; a new one is seeded."""
        known = self._view.published
        read = await self._store.load()
        if read is None and known.revision == 0 and seed is not None:
            read = await self._plant(seed())
        self._observe(known, read)
        return read

    async def _plant(self, flags: Flags) -> Flags | None:
        try:
            await self._store.commit(0, flags, seeded(flags, self._clock(), self._instance.id))
        except Conflict:  # somebody else was first
            return await self._store.load()
        return flags

    async def _follow(self) -> None:
        """Subscribe first and read then, so that nothing falls between."""
        watch = self._store.watch()
        await self._sync()
        async for flags in watch:
            known = self._view.published
            if judge(known, flags).verdict is Verdict.REGRESSED:
                await self._sync()  # or it is only older than what we committed ourselves: ask again
            else:
                self._observe(known, flags)
        raise StoreUnreachable("the store was closed")

    def _glance(self) -> None:
        """What was published while the event loop stood still was not heard of, so ask; once, whatever comes of it."""
        known = self._view.published
        try:
            read = self._store.glance(GLANCE_S)
        except Exception as error:  # noqa: BLE001 - told; the flags in force stay in force
            self._failed(error)
            return
        if read is not None:
            self._observe(known, read)

    # Writing

    async def _submit_once(self, command: Command, actor: Actor) -> Flags:
        read = await self._look()
        if self._view.fault:
            return await self._submit_regressed(command, actor)
        if self._view.cuts:  # these first: nobody raises through us what we took back and could not publish yet
            await self._pay(self._view.cuts)
            read = await self._look()
        return await self._commit(command, actor, read if read is not None else founding())

    async def _submit_regressed(self, command: Command, actor: Actor) -> Flags:
        if not isinstance(command, Rollback):
            raise Refused(f"{self.store_state.detail}; until then only a rollback is accepted")
        self._cut(Cut(command, self._clock(), actor))
        await self._pay(owed(self._view))
        return self._current

    async def _commit(self, command: Command, actor: Actor, before: Flags) -> Flags:
        now = self._clock()
        after = command.apply(before, now)
        permit(before, after, actor)
        record = incident(command, before, after, actor, now)
        await self._bring(before.revision, after, audit(command, before, after, actor, now), record)
        self._standing.barred = ""
        if not self._view.fault:
            self._adopt(after)
        if record is not None:
            self._records.opened(record)
        return after

    async def _bring(self, expected: int, flags: Flags, line: Audit, record: Incident | None) -> None:
        try:
            await self._store.commit(expected, flags, line, record)
        except (Conflict, Refused):
            raise
        except BaseException:  # raised again: cut off, it may have happened or not
            if record is not None:
                self._records.doubt(record.id)
                self._wake_publish.set()
            raise

    async def _publish(self) -> None:
        fault, debts = self._view.fault, owed(self._view)  # what a regressed store was brought the well one may lack
        if (fault, debts) == self._paid and not self._to_record:
            await woken(self._wake_publish)
            return
        try:
            for pause_s in pauses_s():
                if await self._pay(debts):
                    self._paid = (fault, debts)
                    break
                await asyncio.sleep(pause_s)
            await self._record()
        except Refused as error:  # of a newer schema: what was cut stays in force here, and we try again
            self._standing.barred = error.message
            self._found()
            await asyncio.sleep(LONGEST_PAUSE_S)

    async def _pay(self, debts: tuple[Cut, ...]) -> bool:
        """Bring cuts to the store; False when it has no flags yet that could be latched."""
        return all([await self._pay_one(cut) for cut in debts])

    async def _pay_one(self, cut: Cut) -> bool:
        while True:
            read = await self._look()
            if read is None:
                return False
            owing = due(self._view, cut)
            left = owing and remaining(owing, read)
            if left is None:
                return True
            with contextlib.suppress(Conflict):
                await self._commit(published(left, self._clock()), cut.actor, read)
                return True
            await asyncio.sleep(random.uniform(0, 0.01))  # somebody was faster: at once again, so that nobody beats it

    @property
    def _to_record(self) -> bool:
        return self._records.unsure or bool(self._view.notes and not self._view.fault)

    async def _record(self) -> None:
        """What is known of incidents only now; a regressed store does not know them."""
        if self._records.unsure:
            await self._records.look()
        while self._view.notes and not self._view.fault:
            note = self._view.notes[0]
            await self._records.add(note, self._clock())
            self._put(replace(self._view, notes=tuple(other for other in self._view.notes if other is not note)))

    # Telling

    async def _beat_when_due(self) -> None:
        await woken(self._wake_beat, self._heartbeat_s)
        await self._beat()

    async def _beat(self) -> None:
        """A process whose store has regressed follows no revision of it."""
        revision = 0 if self._view.fault else self._view.published.revision
        await self._store.heartbeat(replace(self._instance, revision=revision, dead=self.dead()))
        self._found()

    def _failed(self, error: Exception) -> None:
        """Of a step that is taken again; no error of ours ever reaches a request."""
        if isinstance(error, StoreUnreachable):
            self._lost(error)
        else:
            self._bus.emit(InternalError(part=PART, error=type(error).__name__, where=place_of(error)))
