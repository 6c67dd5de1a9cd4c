"""The way to a Redis: one limit on every operation, and every `redis` error turned into ours.

The home of `redis` (redis-py, its asyncio client). Connections are made by the first call that needs one and again
after any error. A script is never tried twice: it may have run. A command, which only reads here, is tried once more
where its connection turns out to have been closed, within the same limit. Whenever the way there was lost, the server
is looked at again before it is believed: its version, and that it throws nothing away.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from redis import exceptions as failures
from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from memos_llm.core.errors import StoreUnreachable
from memos_llm.store.redis_scripts import Script
from memos_llm.store.redis_url import Place

T = TypeVar("T")

LIMIT_S = 0.25
MOST_CONNECTIONS = 8
OLDEST = (6, 0)

_CONNECTIONS: Mapping[str, type[Any]] = {
    "redis": Connection,
    "rediss": SSLConnection,
    "unix": UnixDomainSocketConnection,
}
_FIXES: tuple[tuple[type[Exception], str], ...] = (
    (failures.AuthenticationError, "it refuses the user or password: mend those in the store's URL"),
    (failures.AuthorizationError, "it refuses the user or password: mend those in the store's URL"),
    (
        failures.NoPermissionError,
        "the user may not do what is needed: ACL SETUSER … ~{{prefix}}* &{{prefix}}* "
        "+@read +@write +eval +evalsha +time +publish +subscribe +info",
    ),
    (failures.BusyLoadingError, "it is still loading its data: wait until it has"),
    (failures.ReadOnlyError, "it is a read-only replica: name the primary in the store's URL"),
    (failures.OutOfMemoryError, "its maxmemory is used up: give it more, or move what else is kept there away"),
    (failures.AskError, "it is a node of a cluster that has not the slot: name the node that has (CLUSTER KEYSLOT)"),
    (failures.ClusterError, "its cluster is not whole: look at CLUSTER INFO"),
)


class Client:
    """One Redis, for one event loop.

    Args:
        limit_s: how long any one operation may take, connecting included.
    """

    def __init__(self, place: Place, *, limit_s: float) -> None:
        self._place = place
        self._limit_s = limit_s
        self._made: Redis | None = None
        self._trusted = False

    async def script(self, script: Script, *arguments: str | bytes | int) -> Any:
        """What a script returns. `arguments` follow the prefix, so ARGV[2] is the first.

        Raises:
            StoreUnreachable
        """
        return await self._do(lambda redis: self._evaluate(redis, script, arguments))

    async def command(self, *words: str | bytes | int) -> Any:
        """What a command returns that only reads.

        Raises:
            StoreUnreachable
        """
        return await self._do(lambda redis: self._read(redis, words))

    @asynccontextmanager
    async def listening(self, channel: str) -> AsyncIterator[Callable[[float], Awaitable[None]]]:
        """A function that waits for the next message, at most so many seconds; only that long where messages are not
        permitted.

        Raises:
            StoreUnreachable: also by that function.
        """
        listener = self._redis().pubsub(ignore_subscribe_messages=True)
        deaf = False

        async def heard(timeout_s: float) -> None:
            nonlocal deaf
            try:
                if not deaf:
                    await listener.get_message(timeout=timeout_s)
                    return
            except failures.NoPermissionError:
                deaf = True
            except (failures.RedisError, OSError) as error:
                raise self._lost(error) from error
            await asyncio.sleep(timeout_s)

        try:
            await self._do(lambda _: listener.subscribe(channel))
            yield heard
        finally:
            await listener.aclose()  # type: ignore[no-untyped-call]  # redis-py has left it out

    async def aclose(self) -> None:
        if self._made is not None:
            made, self._made = self._made, None
            await made.aclose(close_connection_pool=True)

    def _redis(self) -> Redis:
        if self._made is None:
            options: dict[str, Any] = dict(self._place.options)
            pool = BlockingConnectionPool(
                connection_class=_CONNECTIONS[self._place.scheme],
                max_connections=MOST_CONNECTIONS,
                timeout=self._limit_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                socket_timeout=None,  # the limit is on the whole operation; a listener waits longer
                socket_connect_timeout=self._limit_s,
                **options,
            )
            self._made = Redis(connection_pool=pool)
        return self._made

    async def _do(self, act: Callable[[Redis], Awaitable[T]]) -> T:
        redis = self._redis()
        try:
            async with asyncio.timeout(self._limit_s):
                await self._trust(redis)
                return await act(redis)
        except (failures.RedisError, OSError) as error:  # OSError: TimeoutError too
            raise self._lost(error) from error

    async def _read(self, redis: Redis, words: tuple[str | bytes | int, ...]) -> Any:
        try:
            return await _execute(redis, *words)
        except failures.ConnectionError:  # a restart closes all that lie idle
            self._trusted = False
            await redis.connection_pool.disconnect(inuse_connections=False)
            await self._trust(redis)
            return await _execute(redis, *words)

    async def _trust(self, redis: Redis) -> None:
        if not self._trusted:
            self._judge(await redis.info())
            self._trusted = True

    async def _evaluate(self, redis: Redis, script: Script, arguments: tuple[str | bytes | int, ...]) -> Any:
        prefix = self._place.prefix
        rest = (1, f"{prefix}flags", prefix, *arguments)
        try:
            return await _execute(redis, "EVALSHA", script.sha, *rest)
        except failures.NoScriptError:
            return await _execute(redis, "EVAL", script.source, *rest)

    def _judge(self, info: Mapping[str, Any]) -> None:
        """Raises:
        StoreUnreachable: it is too old, or may throw keys away.
        """
        version = str(info.get("redis_version", "0"))
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if numbers < OLDEST:
            raise self._unfit(f"it is Redis {version}: use 6 or newer")
        policy = info.get("maxmemory_policy", "noeviction")
        if info.get("maxmemory", 0) and policy != "noeviction":
            raise self._unfit(
                f"it has a maxmemory and the policy {policy}, so it may throw flags and latches away: "
                "set `maxmemory-policy noeviction` there (CONFIG SET, and redis.conf)"
            )

    def _lost(self, error: Exception) -> StoreUnreachable:
        self._trusted = False
        if isinstance(error, TimeoutError | failures.TimeoutError):
            return self._unfit(f"it did not answer within {self._limit_s * 1000:g} ms")
        prefix = self._place.prefix.removesuffix(":").strip("{}")
        causes = (error, error.__cause__, error.__context__)  # what befell the way there is wrapped
        fix = next((fix.format(prefix=prefix) for kind, fix in _FIXES if any(isinstance(e, kind) for e in causes)), "")
        if fix:
            return self._unfit(fix)
        if isinstance(error, failures.ResponseError):
            return self._unfit(_answered(str(error)))
        return self._unfit(f"it cannot be reached ({str(error).rstrip('.') or type(error).__name__})")

    def _unfit(self, why: str) -> StoreUnreachable:
        return StoreUnreachable(f"{self._place.shown}: {why}")


async def _execute(redis: Redis, *words: str | bytes | int) -> Any:
    return await redis.execute_command(*words)  # type: ignore[no-untyped-call]  # redis-py has left it out


def _answered(text: str) -> str:
    """An error of Redis, told by its code alone: the rest may quote what was sent."""
    code = text.split(" ", 1)[0]
    if "WRONGTYPE" in text:
        return "something else is kept under its keys: use another ?prefix="
    if code in ("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "NOAUTH"):
        return f"it takes no writes now ({code}): look at its log"
    return f"it refused a command ({code if code.isupper() else 'ERR'}): look at its log, or use another ?prefix="
