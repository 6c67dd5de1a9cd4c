"""What this process owes to the record of rollbacks: to say which incidents it opened, and to add its evidence to those
of others.

An incident is committed with its latch, both or neither; but whether a commit that was cut off has happened only the
store knows. So it is told of once: after its commit, or when the store is seen to have it after all.
"""

from msgspec.structs import replace

from memos_llm.control.adopt import Note
from memos_llm.core.commands import Incident
from memos_llm.core.events import Bus, IncidentOpened
from memos_llm.core.ports import StateStore
from memos_llm.core.verdicts import Evidence

LOOK_BACK = 200  # incidents, newest first


class Records:
    """On the event loop of its `Live` only."""

    def __init__(self, store: StateStore, bus: Bus) -> None:
        self._store, self._bus = store, bus
        self._unsure: set[str] = set()

    @property
    def unsure(self) -> bool:
        """Whether `look` has something to find out."""
        return bool(self._unsure)

    def doubt(self, incident: str) -> None:
        """The store may have it or not: its commit was cut off."""
        self._unsure.add(incident)

    def opened(self, record: Incident) -> None:
        self._unsure.discard(record.id)
        self._bus.emit(IncidentOpened(incident=record))

    async def look(self) -> None:
        """Tell of those that the store turns out to have; the others have not come to be.

        Raises:
            StoreUnreachable
        """
        asked = frozenset(self._unsure)
        for record in reversed(await self._store.incidents(LOOK_BACK)):
            if record.id in asked & self._unsure:
                self.opened(record)
        self._unsure -= asked

    async def add(self, note: Note, now: float) -> None:
        """Add evidence to its incident, once; nothing where that is no longer kept.

        Raises:
            Refused, StoreUnreachable.
        """
        record = next((one for one in await self._store.incidents(LOOK_BACK) if _is_it(one, note)), None)
        if record is None or any(_same(seen, note.evidence) for seen in record.evidence):
            return
        took_s = max(0.0, now - note.evidence.at)
        await self._store.note(record.id, replace(note.evidence, propagation_s=took_s))


def _is_it(record: Incident, note: Note) -> bool:
    if note.incident:
        return record.id == note.incident
    about = (record.scope, *record.also, *(evidence.scope for evidence in record.evidence))
    return note.scope in about


def _same(one: Evidence, other: Evidence) -> bool:
    return (one.by, one.at, one.scope, one.trigger) == (other.by, other.at, other.scope, other.trigger)
