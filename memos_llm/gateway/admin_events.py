"""What happens, to whoever listens: facts from the bus as server-sent events.

Each client has a bounded queue; one that is too slow for it is dropped, which is counted as an internal error of the
part `admin.events`. When the keys change every stream ends: who still may listen asks again. No event carries a prompt,
a key or a back end's words.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import msgspec

from memos_llm.core.errors import Overloaded
from memos_llm.core.events import (
    BreakerChanged,
    Bus,
    ConfigChanged,
    ConfigRejected,
    Event,
    FlagsChanged,
    GuardBlind,
    IncidentOpened,
    InternalError,
    ProbeEnded,
    RequestRefused,
    RollbackHeld,
    StoreState,
)
from memos_llm.operate.standing import flags_document

PART = "admin.events"
QUEUE = 256
MOST = 64  # clients at a time
HEARTBEAT_S = 15.0
LOOK_S = 0.5  # how soon a stream notices that it is over

_fields = msgspec.to_builtins

SHOWN: Mapping[type[Event], tuple[str, Callable[[Any], object]]] = {
    FlagsChanged: ("flags", lambda event: flags_document(event.flags)),
    ProbeEnded: ("probe", _fields),
    BreakerChanged: ("breaker", _fields),
    StoreState: ("store", _fields),
    ConfigChanged: ("config", lambda event: {"in_force": True, "generation": event.generation}),
    ConfigRejected: ("config", lambda event: {"in_force": False, "errors": event.errors}),
    RequestRefused: ("refused", _fields),
    IncidentOpened: ("incident", lambda event: _fields(event.incident)),
    RollbackHeld: ("rollback-held", _fields),
    GuardBlind: ("guard", _fields),
}
"""Event → its name on the stream, and what is shown of it."""


class Feed:
    """All clients. Subscribes itself to the bus; costs nothing while nobody listens, but for the last probes."""

    def __init__(
        self,
        bus: Bus,
        draining: Callable[[], bool],
        *,
        keys: Callable[[], object] = lambda: None,
        queue: int = QUEUE,
    ) -> None:
        """`keys`: those in force, whatever they are; another value ends the streams of before."""
        self._bus, self._draining, self._keys, self._queue = bus, draining, keys, queue
        self._clients: set[Client] = set()
        self._probes: dict[tuple[str, str], tuple[object, ...]] = {}
        bus.subscribe(PART, self.on_event, *SHOWN)

    def open(self) -> "Client":
        """A new listener.

        Raises:
            Overloaded: there are enough.
        """
        if len(self._clients) >= MOST:
            raise Overloaded(f"{MOST} listen to the events already")
        keys = self._keys()
        return Client(self._clients, lambda: self._draining() or self._keys() != keys, self._queue)

    def on_event(self, event: Event) -> None:
        if isinstance(event, ProbeEnded) and not self._is_news(event):
            return
        if not self._clients:
            return
        name, show = SHOWN[type(event)]
        line = _line(name, msgspec.json.encode(show(event)))
        minor = isinstance(event, RequestRefused)
        for client in tuple(self._clients):
            if not client.offer(line, minor=minor):
                self._clients.discard(client)
                self._bus.emit(InternalError(part=PART, error="SlowClient"))

    def _is_news(self, event: ProbeEnded) -> bool:
        """Whether a probe found something else than the one before it."""
        place, found = (event.provider, event.endpoint), (event.up, event.detail, event.models, event.version)
        before, self._probes[place] = self._probes.get(place), found
        return found != before


class Client:
    """One listener, from its first line to its last: one who leaves before that is never there."""

    def __init__(self, clients: "set[Client]", over: Callable[[], bool], queue: int) -> None:
        self._clients, self._over = clients, over
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(queue)
        self._dropped = False

    def offer(self, line: bytes, *, minor: bool = False) -> bool:
        """False: it is too slow, and gets nothing more.

        What is minor is left out of a queue that is half full: whoever is refused a thousand times a second must not
        have the listeners dropped by it.
        """
        if minor and 2 * self._queue.qsize() >= self._queue.maxsize:
            return not self._dropped
        try:
            self._queue.put_nowait(line)
        except asyncio.QueueFull:
            self._dropped = True
        return not self._dropped

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """Events and, when there are none, heartbeats; ends when it is over or the client was dropped."""
        quiet_s = 0.0
        self._clients.add(self)
        try:
            yield b": listening\n\n"
            while not self._over() and not self._dropped:
                try:
                    async with asyncio.timeout(LOOK_S):
                        line = await self._queue.get()
                except TimeoutError:
                    quiet_s += LOOK_S
                    if quiet_s < HEARTBEAT_S:
                        continue
                    line = b": heartbeat\n\n"
                quiet_s = 0.0
                yield line
        finally:
            self._clients.discard(self)


def _line(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
