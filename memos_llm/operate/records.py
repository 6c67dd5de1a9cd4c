"""What has been: the changes of the flags, and the incidents."""

import time

from memos_llm.core.commands import Incident
from memos_llm.core.errors import BadRequest
from memos_llm.core.ports import StateStore
from memos_llm.operate.documents import History, Incidents
from memos_llm.operate.standing import NO_FLAGS, latches

LIMIT = 100
MOST = 10_000


async def history(store: StateStore, limit: int = LIMIT) -> History:
    """The newest changes.

    Raises:
        BadRequest, StoreUnreachable.
    """
    return History(entries=tuple(await store.history(_checked(limit))))


async def incidents(store: StateStore, limit: int = LIMIT) -> Incidents:
    """The newest incidents.

    Raises:
        BadRequest, StoreUnreachable.
    """
    return await _with_latches(store, tuple(await store.incidents(_checked(limit))))


async def incident(store: StateStore, id: str) -> Incidents:
    """One incident.

    Raises:
        BadRequest (404): it is not known. StoreUnreachable.
    """
    found = await store.incidents(MOST)
    mine = tuple(one for one in found if one.id == id)
    if not mine:
        newest = ", ".join(one.id for one in found[:3])
        more = f"; the newest: {newest}" if newest else "; there are none"
        raise BadRequest(f"there is no incident {id[:80]!r}{more}", http_status=404)
    return await _with_latches(store, mine)


async def _with_latches(store: StateStore, found: tuple[Incident, ...]) -> Incidents:
    """An incident tells what was; whether its latch still holds is in the flags."""
    flags = await store.load() or NO_FLAGS
    return Incidents(incidents=found, latched=tuple(latches(flags)), at=time.time())


def _checked(limit: int) -> int:
    if not 1 <= limit <= MOST:
        raise BadRequest(f"limit: {limit} is outside 1 to {MOST}")
    return limit
