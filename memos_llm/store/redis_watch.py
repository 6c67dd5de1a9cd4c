"""Who is to be told of new flags in Redis, and what they were told last: by the channel at once, by a look every
`poll_s` at the latest. Nothing is looked at while nobody watches.
"""

import asyncio
import weakref
from collections.abc import Awaitable, Callable

from memos_llm.core.errors import StoreUnreachable
from memos_llm.core.flags import Flags
from memos_llm.store import documents
from memos_llm.store.redis_client import Client
from memos_llm.store.subscription import Subscription

Stored = tuple[bytes, int]


class Watchers:
    """On one event loop.

    Args:
        read: the flags as they stand there, undecoded, and their schema; None when there are none.
        channel: on which every commit is told.
    """

    def __init__(
        self, client: Client, read: Callable[[], Awaitable[Stored | None]], channel: str, poll_s: float
    ) -> None:
        self._client, self._read, self._channel, self._poll_s = client, read, channel, poll_s
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._told: Stored | None = None
        self._tellings = 0
        self._looking = asyncio.Lock()
        self._beginning: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None

    def add(self, subscription: Subscription) -> None:
        """What was there before is no news to it: that is found out before anything else is asked of the store."""
        task = asyncio.get_running_loop().create_task(self._begin(subscription))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def begun(self) -> None:
        """Wait until all that were added have begun; never longer than one operation."""
        if self._beginning:
            await asyncio.wait(tuple(self._beginning))

    def tell(self, flags: Flags) -> None:
        self._tellings += 1
        self._told = (documents.encode(flags), flags.schema)
        for subscription in tuple(self._subscriptions):
            subscription.offer(flags)

    async def aclose(self) -> None:
        for subscription in tuple(self._subscriptions):
            subscription.end()
        tasks = [*self._beginning, *((self._following,) if self._following else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self, subscription: Subscription) -> None:
        try:
            await self._look()
        except StoreUnreachable as error:
            subscription.fail(error)
            self._fail(error)
            return
        except asyncio.CancelledError:
            subscription.end()
            raise
        self._subscriptions.add(subscription)
        if self._following is None:
            self._following = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        try:
            async with self._client.listening(self._channel) as heard:
                while self._subscriptions:
                    await self._look()
                    await heard(self._poll_s)
        except StoreUnreachable as error:
            self._fail(error)
        finally:
            self._following = None

    async def _look(self) -> None:
        async with self._looking:
            tellings = -1
            while tellings != self._tellings:  # what was read while we committed may be what we replaced
                tellings = self._tellings
                stored = await self._read()
        if stored == self._told:
            return
        if stored is None:
            self._told = None
            raise StoreUnreachable("the flags have vanished from the store")  # watchers cannot be told None: load again
        self.tell(documents.decode_flags(*stored))
        self._told = stored

    def _fail(self, error: StoreUnreachable) -> None:
        for subscription in tuple(self._subscriptions):
            subscription.fail(error)
        self._subscriptions.clear()
