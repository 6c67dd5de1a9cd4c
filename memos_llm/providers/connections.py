"""Connections to back ends: how one is made, how many there may be, and which are idle and may be used again."""

import asyncio
import errno
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, Protocol, Self, TypeVar
from urllib.parse import urlsplit

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome

KEEP_ALIVE_S = 4.0  # below vLLM's 5 s
MAX_CONNECTIONS = 1_024  # to all back ends together: a process may open so many files only
NO_CONNECTION = "connections"  # the code of a `saturated` outcome: none came free in time

CAUSES: Mapping[object, str] = {
    errno.ECONNREFUSED: "refused",  # by number too: a library may fold several failures into a plain OSError
    errno.ECONNRESET: "reset",
    ConnectionRefusedError: "refused",
    ConnectionResetError: "reset",
    ConnectionAbortedError: "reset",
    BrokenPipeError: "reset",
    ssl.SSLError: "tls",
    socket.gaierror: "dns",
}
"""The code of a failed connect, by what the operating system said; anything else is `unreachable`."""

_PORTS = {"http": 80, "https": 443}


def cause(error: BaseException) -> str:
    """The code for it."""
    clues = (*type(error).__mro__, getattr(error, "errno", None))
    return next((CAUSES[clue] for clue in clues if clue in CAUSES), "unreachable")


class Origin(NamedTuple):
    """Where a connection leads to."""

    host: str
    port: int
    tls: bool
    host_header: str

    @classmethod
    def of(cls, url: str) -> tuple[Self, str]:
        """The origin of a URL, and its path and query as they are spelt.

        Raises:
            AttemptFailed: `config`, it is no URL of HTTP.
        """
        scheme, _, rest = url.partition("://")
        place, slash, target = rest.partition("/")
        try:
            parts = urlsplit(f"//{place}")
            host, port = parts.hostname or "", parts.port or _PORTS[scheme]
            host.encode("idna")  # what no resolver takes
        except (ValueError, KeyError):
            host = ""
        if not host or "@" in place:
            raise AttemptFailed(Outcome(kind=Kind.CONFIG, code="url"))
        name = f"[{host}]" if ":" in host else host
        header = name if port == _PORTS[scheme] else f"{name}:{port}"
        return cls(host, port, scheme == "https", header), slash + target or "/"


class Pooled(Protocol):
    """What a pool holds. `lost` is done once the connection is gone."""

    origin: Origin
    idle_since: float
    lost: asyncio.Future[None]

    @property
    def usable(self) -> bool: ...

    def abort(self) -> None: ...


C = TypeVar("C", bound=Pooled)


class Pool(Generic[C]):
    """The connections of one client: `max_connections` may be in use at once, others wait in line for one to end."""

    def __init__(self, keep_alive_s: float, max_connections: int) -> None:
        self._keep_alive_s, self._max = keep_alive_s, max_connections
        self._idle: dict[Origin, list[C]] = {}
        self._in_use: set[C] = set()
        self._opening = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def take(self, origin: Origin) -> C | None:
        """An idle connection, the one used last: the others may expire."""
        return None if self._full else self._idle_one(origin)

    def _idle_one(self, origin: Origin) -> C | None:
        idle = self._idle.get(origin)
        if not idle:
            return None
        oldest = asyncio.get_running_loop().time() - self._keep_alive_s
        while idle:
            connection = idle.pop()
            if connection.usable and connection.idle_since >= oldest:
                self._in_use.add(connection)
                return connection
            connection.abort()
        return None

    def give_back(self, connection: C) -> None:
        """It is idle now."""
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._in_use.discard(connection)
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._timer is None:
            self._timer = loop.call_later(self._keep_alive_s, self._expire)
        if self._line:
            self._call_next()

    def forget(self, connection: C) -> None:
        """It is gone."""
        self._in_use.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)
        self._call_next()

    async def reserve(self, origin: Origin) -> C | None:
        """Wait for a turn: a connection that has come back meanwhile, or None to open one, which ends with `opened` or
        `given_up`.
        """
        if not self._full:
            self._opening += 1
            return None
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.given_up()  # it was ours, and we leave
            raise
        connection = self._idle_one(origin)
        if connection is not None:
            self._opening -= 1
        return connection

    def opened(self, connection: C) -> None:
        self._opening -= 1
        self._in_use.add(connection)

    def given_up(self) -> None:
        self._opening -= 1
        self._call_next()

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        connections = [*self._in_use, *(connection for idle in self._idle.values() for connection in idle)]
        for connection in connections:
            connection.abort()
        if connections:
            await asyncio.wait([connection.lost for connection in connections])

    @property
    def _full(self) -> bool:
        return len(self._in_use) + self._opening >= self._max

    def _call_next(self) -> None:
        """Whose turn it is has the place from now on: nobody who comes before it runs may take it."""
        while self._line and not self._full:
            turn = self._line.popleft()
            if not turn.done():
                self._opening += 1
                turn.set_result(None)

    def _expire(self) -> None:
        """The idle ones that nobody used for too long."""
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._keep_alive_s
        for origin, idle in list(self._idle.items()):
            for connection in idle:
                if connection.idle_since < oldest:
                    connection.abort()
            self._idle[origin] = [connection for connection in idle if connection.idle_since >= oldest]
            if not self._idle[origin]:
                del self._idle[origin]
        self._timer = loop.call_later(self._keep_alive_s, self._expire) if self._idle else None


async def connect(
    origin: Origin, tls: ssl.SSLContext | None, pool: Pool[C], make: Callable[[], C], connect_s: float
) -> C:
    """A new connection, in use, or one that came back while we stood in line. `connect_s` covers the wait for a turn,
    the name, the connect and TLS.

    Raises:
        AttemptFailed: `connect`; `timeout` with code `connect`; `saturated` with `NO_CONNECTION` when the time went by
            in the line: none was begun.
    """
    reserved = False
    try:
        async with asyncio.timeout(connect_s) as limit:
            again = await pool.reserve(origin)
            if again is not None:
                return again
            reserved = True
            connection = await _opened(origin, tls, make, asyncio.get_running_loop().time() + connect_s)
    except BaseException as error:  # raised again or told: the turn is the next one's
        if reserved:
            pool.given_up()
        if not isinstance(error, OSError):
            raise
        if not limit.expired():
            raise AttemptFailed(Outcome(kind=Kind.CONNECT, code=cause(error))) from error
        late = Outcome(kind=Kind.TIMEOUT, code="connect")
        raise AttemptFailed(late if reserved else Outcome(kind=Kind.SATURATED, code=NO_CONNECTION)) from None
    pool.opened(connection)
    return connection


async def _opened(origin: Origin, tls: ssl.SSLContext | None, make: Callable[[], C], until: float) -> C:
    """To the first of its addresses that answers. One that does not must leave time for the others: a name often has
    an address of IPv6 on which nothing answers.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    for left in range(len(found), 0, -1):
        family, _, _, _, address = found[-left]
        try:
            async with asyncio.timeout((until - loop.time()) / left if left > 1 else None):
                wire = await _joined(family, address)
            break
        except OSError:
            if left == 1:
                raise
    try:
        name = origin.host if tls else None
        _, connection = await loop.create_connection(make, sock=wire, ssl=tls, server_hostname=name)  # type: ignore[type-var]  # ours are protocols
    except BaseException:  # raised again: nobody else knows of the socket yet
        wire.close()
        raise
    return connection


async def _joined(family: int, address: tuple[object, ...]) -> socket.socket:
    wire = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        wire.setblocking(False)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each event of a stream matters
        await asyncio.get_running_loop().sock_connect(wire, address)
    except BaseException:  # raised again: nobody else closes it
        wire.close()
        raise
    return wire
