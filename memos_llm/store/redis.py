"""The store of fleets: one Redis, any number of hosts.

What is kept, all under one prefix (`redis_url.Place.prefix`):

- `flags` (a hash: schema, installation, revision, document), `history` and `incidents` (lists, newest first, unbounded
  as in SQLite), `incident` (id → document), `evidence:ID`, `untold` and `claims`: none of it expires;
- `windows…`: the rows, each with its own time to live; `heartbeats` and `instances`: an hour;
- `inventory…`: its days are dropped by who records.

Each call is one script, run by Redis as a whole; only what can be long (all the windows, the inventory) is read in
several, of which each is within the limit. The clock is Redis's own. What is lost with a Redis that does not write to
its disk at every command (`appendfsync always`) is told by `control`: a store that has gone back is a regressed one.
"""

import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from memos_llm.core.commands import Audit, Incident
from memos_llm.core.decoding import FAILURES
from memos_llm.core.errors import StoreUnreachable
from memos_llm.core.flags import SCHEMA, Flags
from memos_llm.core.inventory import KEEP_DAYS, MAX_LINES, REST, Ledger, Line, Recorded, Sighting
from memos_llm.core.ports import MOST_EVIDENCE, Clock, Conflict, Instance
from memos_llm.core.verdicts import Evidence
from memos_llm.core.windows import KEEP_COARSE_S, KEEP_FINE_S, Merged, WindowDelta, WindowKey, WindowRow
from memos_llm.store import documents, rows
from memos_llm.store import redis_scripts as scripts
from memos_llm.store.redis_client import LIMIT_S, Client
from memos_llm.store.redis_scripts import Script
from memos_llm.store.redis_url import Place
from memos_llm.store.redis_watch import Stored, Watchers
from memos_llm.store.subscription import Subscription

POLL_S = 0.5
PAGE = 2_000  # rows read at once: a few ms of Redis's time and of ours
REMEMBERED = 20_000  # merges: a cursor of before reads all again
DROPPED = 1_000  # old rows at most, at each merge

_encode = msgspec.json.Encoder().encode


class _Rows(Struct):
    names: dict[str, str]
    rows: list[tuple[int, int, str, dict[str, int]]]


_rows = msgspec.json.Decoder(_Rows)
_key = msgspec.json.Decoder(WindowKey)
_instance = msgspec.json.Decoder(Instance)
_line = msgspec.json.Decoder(Line)
_what = msgspec.json.Decoder(tuple[str, str, str])


class RedisStore:
    """A `StateStore` in Redis 6 or newer, on one event loop.

    Args:
        clock: instead of Redis's own (Unix seconds).
        limit_s: how long any one operation of Redis may take before it is `StoreUnreachable`.
        poll_s: seconds between two looks for changes of which no message came.
    """

    def __init__(
        self, place: Place, *, clock: Clock | None = None, limit_s: float = LIMIT_S, poll_s: float = POLL_S
    ) -> None:
        self._clock = clock
        self._prefix = place.prefix
        self._client = Client(place, limit_s=limit_s)
        self._watchers = Watchers(self._client, self._stored, f"{place.prefix}changed", poll_s)
        self._closed = False
        self._unanswered = (0, b"")  # the last merge's name and what it adds, while it is not known to have happened

    async def load(self) -> Flags | None:
        await self._ready()
        stored = await self._stored()
        return None if stored is None else documents.decode_flags(*stored)

    def glance(self, within_s: float) -> Flags | None:
        return None

    def watch(self) -> AsyncIterator[Flags]:
        subscription = Subscription()
        if self._closed:
            subscription.fail(_closed())
        else:
            self._watchers.add(subscription)
        return subscription

    async def commit(self, expected: int, flags: Flags, audit: Audit, incident: Incident | None = None) -> None:
        documents.check_commit(expected, flags, audit)
        about = ("", b"") if incident is None else (incident.id, documents.encode(incident))
        place = (flags.schema, flags.installation, flags.revision)
        answer = await self._run(
            scripts.COMMIT, expected, *place, documents.encode(flags), documents.encode(audit), *about
        )
        if answer[0] == b"conflict":
            raise Conflict(f"the store holds revision {int(answer[1])}, not {expected}")
        _check(answer)
        self._watchers.tell(flags)

    async def history(self, limit: int) -> Sequence[Audit]:
        await self._ready()
        if limit <= 0:
            return ()
        return documents.decode_history(await self._client.command("LRANGE", f"{self._prefix}history", 0, limit - 1))

    async def incidents(self, limit: int) -> Sequence[Incident]:
        await self._ready()
        if limit <= 0:
            return ()
        found = await self._run(scripts.INCIDENTS, limit - 1)
        return tuple(documents.decode_incident(document, noted) for document, noted in found)

    async def note(self, incident: str, evidence: Evidence) -> None:
        _check(await self._run(scripts.NOTE, incident, documents.encode(evidence), MOST_EVIDENCE))

    async def merge(self, deltas: Sequence[WindowDelta], cursor: int = 0) -> Merged:
        """One script, and one more for each `PAGE` rows beyond the first: those tell them as they are by then. What was
        given and not answered for is known by its name when it is given again.
        """
        adding = _added(deltas)
        name, unanswered = self._unanswered
        if not name or adding != unanswered:
            name = random.getrandbits(62) + 1
        if adding:
            self._unanswered = name, adding
        bounds = (rows.MAX_KEYS, rows.CROWDED, PAGE, REMEMBERED, DROPPED)
        answer = await self._run(scripts.MERGE, KEEP_FINE_S, KEEP_COARSE_S, name, cursor, adding, *bounds)
        _check(answer)
        _, now, latest, extent, first, left = answer
        told = [_window_rows(first)]
        pages = left.split()
        for begin in range(0, len(pages), PAGE):
            page = b" ".join(pages[begin : begin + PAGE])
            told.append(_window_rows(await self._run(scripts.ROWS, KEEP_FINE_S, KEEP_COARSE_S, page)))
        found = tuple(row for page in told for row in page)
        if adding:
            self._unanswered = 0, b""
        return Merged(at=float(now), cursor=int(latest), rows=found, whole=extent == b"whole")

    async def claim(self, by: str, lease_s: float) -> Incident | None:
        """Nothing when the store is of a newer schema."""
        found = await self._run(scripts.CLAIM, by, repr(lease_s))
        return documents.decode_incident(*found) if found else None

    async def renew(self, incident: str, by: str, lease_s: float) -> bool:
        return bool(await self._run(scripts.RENEW, incident, by, repr(lease_s)))

    async def told(self, incident: str) -> None:
        await self._run(scripts.TOLD, incident)

    async def heartbeat(self, instance: Instance) -> None:
        """Nothing when the store is of a newer schema: then we only read."""
        await self._run(scripts.HEARTBEAT, instance.id, _encode(instance), int(documents.FORGET_S))

    async def leave(self, instance_id: str) -> None:
        await self._run(scripts.LEAVE, instance_id)

    async def instances(self) -> Sequence[Instance]:
        found = await self._run(scripts.INSTANCES, repr(documents.LIVE_S))
        try:
            return tuple(replace(_instance.decode(row), at=float(at)) for row, at in found)
        except (*FAILURES, TypeError) as error:
            raise _damaged("instances") from error

    async def record(self, sightings: Sequence[Sighting]) -> None:
        seen = [
            (one.day, _text(one.line), _text((one.what, one.provider, one.detail)), one.n, one.first, one.last)
            for one in sightings
        ]
        _check(await self._run(scripts.RECORD, _encode(seen), KEEP_DAYS, MAX_LINES, _text(REST)))

    async def recorded(self, since_day: int = 0) -> Recorded:
        """A script, and a command for each day: what is recorded meanwhile may be in it or not."""
        since, lines, days = await self._run(scripts.RECORDED, since_day)
        named = dict(zip(lines[::2], lines[1::2], strict=True))
        ledger = Ledger(max_lines=len(named) + 1)
        for day in days:
            counts = await self._client.command("HGETALL", f"{self._prefix}inventory:day:{int(day)}")
            ledger.add(_sightings(int(day), counts, named))
        return Recorded(since=float(since) if since else None, sightings=ledger.sums())

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._watchers.aclose()
        await self._client.aclose()

    async def _ready(self) -> None:
        if self._closed:
            raise _closed()
        await self._watchers.begun()

    async def _run(self, script: Script, *arguments: str | bytes | int) -> Any:
        await self._ready()
        clock = "" if self._clock is None else repr(self._clock())
        return await self._client.script(script, clock, SCHEMA, *arguments)

    async def _stored(self) -> Stored | None:
        document, schema = await self._client.command("HMGET", f"{self._prefix}flags", "document", "schema")
        return None if document is None else (document, int(schema))


def _check(answer: Sequence[Any]) -> None:
    """Raises:
    Refused: the store is of a newer schema.
    """
    if answer[0] == b"newer":
        documents.check_schema(int(answer[1]))


def _text(value: object) -> str:
    return _encode(value).decode()


def _added(deltas: Sequence[WindowDelta]) -> bytes:
    """What goes to which row; which are too old to be kept is for the script to say, by its clock."""
    sums = rows.sums(deltas, 0.0)
    names = {place.key: _text(place.key) for place in sums}
    return _encode([(at.width_s, at.start, names[at.key], counts) for at, counts in sums.items()]) if sums else b""


def _window_rows(page: bytes) -> list[WindowRow]:
    try:
        told = _rows.decode(page)
        keys = {number: _key.decode(name) for number, name in told.names.items()}
    except FAILURES as error:
        raise _damaged("windows") from error
    return [
        WindowRow(key=keys[number], start=start, width_s=width_s, counts=counts)
        for width_s, start, number, counts in told.rows
    ]


def _sightings(day: int, counts: Mapping[bytes, bytes], named: Mapping[bytes, bytes]) -> Iterable[Sighting]:
    for field, value in counts.items():
        number, _, what = field.partition(b" ")
        if number not in named:  # it came after the lines were read
            continue
        try:
            line, (kind, provider, detail) = _line.decode(named[number]), _what.decode(what)
            n, first, last = value.split()
            yield Sighting(
                day=day,
                line=line,
                what=kind,
                provider=provider,
                detail=detail,
                n=int(n),
                first=float(first),
                last=float(last),
            )
        except (*FAILURES, ValueError) as error:
            raise _damaged("inventory") from error


def _damaged(what: str) -> StoreUnreachable:
    return StoreUnreachable(f"the {what} in the store are damaged: restore the store from a backup")


def _closed() -> StoreUnreachable:
    return StoreUnreachable("this store has been closed")
