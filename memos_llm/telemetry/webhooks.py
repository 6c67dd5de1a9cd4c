"""Tells the configured webhooks of every incident: signed, retried, bounded, and beside everything else.

The store's outbox says who tells: whoever claims an incident has it for `LEASE_S`, renewed for as long as he lives and
tries; if he dies another claims it then. So each incident is told at least once, and once as a rule; its `id` tells a
receiver of the rare second time. Every webhook is tried with growing pauses, until `MOST_TRIES` or `GIVE_UP_S` have
been spent. What fails is told as `WebhookTried`, and never raised.
"""

import asyncio
import contextlib
import hashlib
import hmac
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from memos_llm.core.commands import Incident
from memos_llm.core.errors import LLMError
from memos_llm.core.events import Bus, Event, IncidentOpened, InternalError, place_of
from memos_llm.core.ports import Clock, StateStore
from memos_llm.core.version import VERSION

if TYPE_CHECKING:
    import httpx

PART = "webhooks"
LIMIT_S = 5.0  # for one try, from the name's look-up to the answer's status
LEASE_S = 60.0
RENEWED = 4  # times within it
LOOK_S = 5.0  # how often the outbox is looked at, when nothing wakes us
PAUSES_S = (1.0, 4.0, 15.0, 30.0, 60.0, 120.0, 240.0)  # after each try; jittered by half
MOST_TRIES = len(PAUSES_S) + 1
GIVE_UP_S = 600.0
OLD_S = 86_400.0  # an incident that nobody could be told of for a day is no news
AT_ONCE = 64  # incidents told at a time: one webhook that is dead must not keep another from what is new
CLOSING_S = 3.0  # for what is being told when this process ends


class Hook(Struct, frozen=True):
    """Where to, and what signs it (empty: nothing does). `repr` hides both: an address is often a password."""

    url: str
    secret: str = ""

    @property
    def host(self) -> str:
        """All of the address that may be shown."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}{f':{parts.port}' if parts.port else ''}"

    def __repr__(self) -> str:
        return f"Hook({self.host!r})"


class WebhookTried(Event, frozen=True, kw_only=True):
    """One try to tell a webhook of an incident, or the end of trying.

    Attributes:
        result: `delivered`, `failed` (it is tried again), `given-up`, or `too-old` (not tried at all).
        tries: made so far, by this process. status: HTTP's; 0 when there was no answer, then `error` is its type.
    """

    host: str
    incident: str
    result: str
    tries: int
    status: int = 0
    error: str = ""
    took_s: float = 0.0


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What `x-memos-signature` holds: HMAC-SHA256 over timestamp, a dot, and the body as it was sent."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class _Debt(Struct):
    """What one webhook is still owed of one incident."""

    tries: int = 0
    since: float = 0.0  # of the first try; monotonic
    due: float = 0.0
    paid: bool = False


class _Held(Struct):
    """An incident that we have claimed and are telling."""

    task: asyncio.Task[None]
    renew_at: float  # monotonic


class Webhooks:
    """The driver: one task that looks at the outbox, and one for each incident that is being told.

    Args:
        hooks: those configured now; none: the outbox is left alone.
        by: this process, to the outbox.
        wall, clock: Unix seconds, and monotonic ones.
        limit_s, lease_s, look_s, pauses_s: see the module's constants; a lease is looked after often enough, too.
    """

    def __init__(
        self,
        store: StateStore,
        bus: Bus,
        hooks: Callable[[], Sequence[Hook]],
        *,
        by: str,
        wall: Clock = time.time,
        clock: Clock = time.monotonic,
        limit_s: float = LIMIT_S,
        lease_s: float = LEASE_S,
        look_s: float = LOOK_S,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self._store, self._bus, self._hooks, self._by = store, bus, hooks, by
        self._wall, self._clock = wall, clock
        self._limit_s, self._lease_s, self._pauses_s = limit_s, lease_s, pauses_s
        self._look_s = min(look_s, lease_s / RENEWED)
        self._wake, self._ending = asyncio.Event(), asyncio.Event()
        self._held: dict[str, _Held] = {}  # by incident
        self._looking: asyncio.Task[None] | None = None
        self._client: httpx.AsyncClient | None = None
        self._opening = asyncio.Lock()
        self._unsubscribe = bus.subscribe(PART, self._on_event, IncidentOpened)

    def start(self) -> None:
        """Look at the outbox from now on. Call once."""
        self._looking = asyncio.create_task(self._run(), name=f"memos_llm {PART}")

    async def settle(self, limit_s: float) -> None:
        """Tell what there is to tell, once and now; for a process that is about to end. Never raises."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._look()
                await self._ended()

    async def aclose(self) -> None:
        """A last look, for what was decided as this process ended. What is being told gets a moment; what is left then,
        another process tells once the lease is over.
        """
        self._unsubscribe()
        self._ending.set()
        self._wake.set()
        looking = () if self._looking is None else (self._looking,)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_S):
                await asyncio.gather(*looking, return_exceptions=True)
                await self._ended()
        for held in self._held.values():
            held.task.cancel()
        await self._ended()
        if self._client is not None:
            await self._client.aclose()

    async def _ended(self) -> None:
        """Until nothing is being told any more; cancelled, it ends that."""
        await asyncio.gather(*(held.task for held in self._held.values()), return_exceptions=True)

    def _on_event(self, event: Event) -> None:
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            ending = self._ending.is_set()
            await self._look()
            if ending:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_s * random.uniform(0.5, 1.0)):  # not all processes at once
                    await self._wake.wait()

    async def _look(self) -> None:
        """Keep what is being told, claim what else there is to tell, and begin to."""
        try:
            await self._keep()
            while self._hooks() and len(self._held) < AT_ONCE:
                incident = await self._store.claim(self._by, self._lease_s)
                if incident is None or incident.id in self._held:
                    break
                self._begin(incident)
        except LLMError:  # the store does not answer, which others say; what is owed stays owed
            pass
        except Exception as error:  # noqa: BLE001 - told, and looked again: telling must never end
            self._fault(error)

    async def _keep(self) -> None:
        """As long as we try nobody else does; what another has claimed since (we were held up too long) is his."""
        for name, held in tuple(self._held.items()):
            if self._clock() >= held.renew_at:
                held.renew_at = self._clock() + self._lease_s / RENEWED
                if not await self._store.renew(name, self._by, self._lease_s):
                    held.task.cancel()

    def _begin(self, incident: Incident) -> None:
        task = asyncio.create_task(self._tell(incident), name=f"memos_llm {PART} {incident.id}")
        self._held[incident.id] = _Held(task, self._clock() + self._lease_s / RENEWED)
        task.add_done_callback(lambda _: self._held.pop(incident.id, None))

    async def _tell(self, incident: Incident) -> None:
        """All webhooks, until each is told or given up."""
        try:
            if self._wall() - incident.at > OLD_S:
                self._say(Hook("", ""), incident, "too-old", 0)
            else:
                await self._pay(incident)
            await self._store.told(incident.id)
        except LLMError:  # not noted that it was told: it may be told again
            pass
        except Exception as error:  # noqa: BLE001 - told; a fault of ours must not end the telling of others
            self._fault(error)

    async def _pay(self, incident: Incident) -> None:
        """Try the webhooks that are due, again and again: those that are configured at the moment."""
        body, debts = msgspec.json.encode(incident), defaultdict[str, _Debt](_Debt)
        while owing := [(hook, debts[hook.url]) for hook in self._hooks() if not debts[hook.url].paid]:
            now = self._clock()
            due = [(hook, debt) for hook, debt in owing if debt.due <= now]
            await asyncio.gather(*(self._try(hook, incident, body, debt) for hook, debt in due))
            if not due:
                await asyncio.sleep(min(self._look_s, min(debt.due for _, debt in owing) - now))

    async def _try(self, hook: Hook, incident: Incident, body: bytes, debt: _Debt) -> None:
        began = self._clock()
        debt.since = debt.since or began
        status, error = await self._post(hook, body)
        now, debt.tries = self._clock(), debt.tries + 1
        told = 200 <= status < 300
        over = debt.tries > len(self._pauses_s) or now - debt.since > GIVE_UP_S
        debt.paid = told or over
        result = "delivered" if told else "given-up" if over else "failed"
        self._say(hook, incident, result, debt.tries, status=status, error=error, took_s=now - began)
        if not debt.paid:
            debt.due = now + self._pauses_s[debt.tries - 1] * random.uniform(0.5, 1.5)

    async def _post(self, hook: Hook, body: bytes) -> tuple[int, str]:
        """The answer's status, or 0 and what went wrong. Of the answer nothing else is read."""
        timestamp = str(int(self._wall()))
        headers = {
            "content-type": "application/json",
            "user-agent": f"memos_llm/{VERSION}",
            "x-memos-timestamp": timestamp,
        }
        if hook.secret:
            headers["x-memos-signature"] = signature(hook.secret, timestamp, body)
        try:
            client = await self._opened()
            async with (
                asyncio.timeout(self._limit_s),
                client.stream("POST", hook.url, content=body, headers=headers) as answer,
            ):
                return answer.status_code, ""
        except Exception as error:  # noqa: BLE001 - any failure of a try is its outcome: told with it, and tried again
            return 0, type(error).__name__

    async def _opened(self) -> "httpx.AsyncClient":
        """Made in a thread when it is first needed: reading the certificates would hold the event loop up."""
        async with self._opening:
            if self._client is None:
                self._client = await asyncio.to_thread(_client)
        return self._client

    def _fault(self, error: Exception) -> None:
        self._bus.emit(InternalError(part=PART, error=type(error).__name__, where=place_of(error)))

    def _say(
        self,
        hook: Hook,
        incident: Incident,
        result: str,
        tries: int,
        *,
        status: int = 0,
        error: str = "",
        took_s: float = 0.0,
    ) -> None:
        host = hook.host if hook.url else ""
        self._bus.emit(
            WebhookTried(
                host=host, incident=incident.id, result=result, tries=tries, status=status, error=error, took_s=took_s
            )
        )


def _client() -> "httpx.AsyncClient":
    """No redirects, and nothing from the environment; the system's certificates besides httpx's own."""
    import httpx

    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return httpx.AsyncClient(verify=context, trust_env=False, follow_redirects=False, timeout=LIMIT_S)


async def reach(hooks: Sequence[Hook]) -> dict[str, str]:
    """Host → why it cannot be reached, empty when it can: whatever it answers to HEAD. Nothing is told to it."""
    client = await asyncio.to_thread(_client)
    async with client:
        found = await asyncio.gather(*(_reach(client, hook) for hook in hooks))
    return {hook.host: fault for hook, fault in zip(hooks, found, strict=True)}


async def _reach(client: "httpx.AsyncClient", hook: Hook) -> str:
    try:
        async with asyncio.timeout(LIMIT_S), client.stream("HEAD", hook.url):
            return ""
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the answer, its type only: its words hold the URL
        return type(error).__name__
