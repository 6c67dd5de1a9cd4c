"""A `Transport` over HTTP. What differs between kinds of back end is data: a `Profile`.

A request counts as in flight on its endpoint from `open` until its reply has ended or was closed. Before it is sent,
its model is loaded (Ollama) and it waits for a place, if these are limited. When an endpoint is found down or hung, the
requests there whose answer nobody has begun to use end at once as time-outs.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random

from msgspec import Struct

from memos_llm.core.call import OPERATIONS, Feature, Operation, Passage, Quirk, Wire, WireRequest
from memos_llm.core.decision import Offer
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import Bus, InternalError, ProbeEnded, place_of
from memos_llm.core.flags import Flags
from memos_llm.core.outcome import BREAKER_OPEN, Kind, Outcome
from memos_llm.core.policy import ProviderSpec
from memos_llm.core.ports import BackendClient, Clock, RawReply
from memos_llm.providers.endpoint import STALLED, EndpointState, Lease, gone
from memos_llm.providers.endpoints import DOWN, Pool
from memos_llm.providers.health import Finding, Get, check, note
from memos_llm.providers.loads import Loads
from memos_llm.providers.progress import Watch, is_content
from memos_llm.providers.quirks import quirks
from memos_llm.providers.refusals import refusal
from memos_llm.providers.warm import KeepWarm

HOP = "X-Memos-Hop"  # on every request of ours: a gateway that sees it is its own back end

MAX_ERROR_BYTES = 262_144
MAX_ERROR_S = 5.0
MAX_DOCUMENT_BYTES = 4_194_304
DOCUMENT_S = 10.0
FIRST_LOOK_S = 2.0  # what is unknown then is tried

PASSABLE = re.compile(r"/[!-\"$-~]*")  # nothing that ends a request line or a path, and no other host
STATUSES = range(200, 600)  # RFC 9110, 15
DOTS = re.compile(r"/(?:\.|%2e){1,2}(?:[/?]|$)", re.IGNORECASE)  # who rules on paths rules on what they say

_MAX_REMEMBERED = 1_000  # models are named by callers

Offers = Mapping[str | None, Offer]
"""By why it is refused."""


class Profile(Struct, frozen=True, kw_only=True):
    """What is particular to one kind of back end.

    Attributes:
        paths: where each wire that it speaks is served.
        features: what it can do beyond the common.
        canonical: folds the spellings of a model's name that it takes for one.
        ask: one probe: what it finds out, by GETs.
        look: the part of it that a first request waits for; None: all.
        cold: models are loaded when they are first asked for, and unloaded again (Ollama).
    """

    paths: Mapping[Wire, str]
    features: Feature
    canonical: Callable[[str], str]
    ask: Callable[[Get], Awaitable[Finding]]
    look: Callable[[Get], Awaitable[Finding]] | None = None
    cold: bool = False


class HttpReply:
    """A `Reply` whose end is also the end of its lease. Until it is committed, its endpoint can take it down."""

    __slots__ = ("_clock", "_committed", "_downs", "_lease", "_raw", "endpoint", "status")

    def __init__(self, raw: RawReply, lease: Lease, clock: Clock) -> None:
        self._raw, self._lease, self._clock = raw, lease, clock
        self.status = raw.status
        self.endpoint = lease.state.url
        self._committed, self._downs = False, lease.state.downs

    @property
    def headers(self) -> Mapping[str, str]:
        return self._raw.headers

    def committed(self) -> None:
        self._committed = True

    async def read(self) -> bytes:
        try:
            chunk = await (self._raw.read() if self._committed or self._at_once() else self._read_while_up())
        except AttemptFailed:
            self._lease.end()
            raise
        if chunk:
            self._lease.heard(self._clock(), is_content(chunk))
        else:
            self._lease.end()
        return chunk

    def _at_once(self) -> bool:
        """Whether nothing has to be waited for, so that nothing can happen meanwhile."""
        if self._lease.state.downs != self._downs:  # found down between two reads
            raise gone(self._lease.state.why)
        return self._raw.ready

    async def _read_while_up(self) -> bytes:
        with self._lease.state.patience():
            return await self._raw.read()

    async def aclose(self) -> None:
        self._lease.end()
        await self._raw.aclose()


GENERATION = frozenset({Operation.CHAT, Operation.TEXT_COMPLETION})
"""What another engine of the same server, for embeddings, does not do."""

NATIVE = frozenset({Wire.OPENAI_CHAT})
"""The wires that `ProviderSpec.native_chat` gives up."""


class HttpTransport:
    """A `Transport` for one provider. The client is shared and stays open when this is closed."""

    def __init__(
        self,
        spec: ProviderSpec,
        profile: Profile,
        client: BackendClient,
        bus: Bus,
        *,
        clock: Clock,
        rng: Random,
        flags: Flags | None = None,
    ) -> None:
        self.name = spec.name
        self._kind, self._profile, self._client, self._bus, self._clock = spec.kind, profile, client, bus, clock
        self._connect_s = spec.timeouts.connect_s
        self._pool = Pool(
            spec.name,
            spec.endpoints,
            bus,
            clock=clock,
            rng=rng,
            canonical=profile.canonical,
            max_inflight=spec.max_inflight,
            queue_s=spec.queue_s,
        )
        self._first_look: asyncio.Task[None] | None = None
        self._urls = {
            (state.url, wire): state.url + path for state in self._pool for wire, path in profile.paths.items()
        }
        self._headers = {"Accept-Encoding": "identity", HOP: "1"}
        if spec.api_key:
            self._headers["Authorization"] = f"Bearer {spec.api_key}"
        self._post = {**self._headers, "Content-Type": "application/json"}
        self._wires = frozenset((*profile.paths, Wire.PASSTHROUGH)) - (NATIVE if spec.native_chat else set())
        self._offers: dict[str, Offers] = {}
        self._nothing = Offer(frozenset(), Feature.NONE)
        self._watch = Watch(self._pool, spec.timeouts.stall_s, clock, tell=self._tell_hung, ask=self._probe_alone)
        self._loads = Loads(spec.name, self._get, profile.canonical, bus, clock)
        self._own_loads = profile.cold and spec.own_loads
        self._looks = profile.cold and (spec.own_loads or bool(spec.keep_warm))
        self._keep_warm = KeepWarm(
            spec.name, spec.keep_warm if profile.cold else (), self._pool, self._loads, bus, clock, flags
        )

    def offer(self, model: str) -> Offer:
        serving = self._pool.serving(model)
        if not serving:
            return self._nothing
        offers = self._offers.get(model) or self._remember(model, serving)
        return offers[self._pool.refusal(serving)]

    async def acquaint(self, model: str) -> Offer:
        """One look for all that ask meanwhile. One that is slow to say is taken for what it was."""
        if self._first_look is None or self._first_look.done():
            self._first_look = asyncio.create_task(self._look(), name=f"look.{self.name}")
        await asyncio.wait({self._first_look}, timeout=FIRST_LOOK_S)
        return self.offer(model)

    def serving(self, model: str) -> Sequence[str]:
        return [state.url for state in self._pool.serving(model)]

    def content_at(self, endpoint: str) -> float:
        return self._pool.find(endpoint).answered_at

    def pick(self, model: str, key: bytes = b"") -> str:
        return self._pool.pick(model, key).url

    async def open(self, request: WireRequest) -> HttpReply:
        state = self._pool.find(request.endpoint or self.pick(request.model))
        if request.passage is not None:
            return await self._pass(state, request, request.passage)
        url = self._urls.get((state.url, request.wire))
        if url is None:
            raise AttemptFailed(Outcome(kind=Kind.CONFIG, code="wire"))
        lease = state.begin(generates=OPERATIONS[request.wire] in GENERATION)
        try:
            raw = await self._open(lease, request, url)
        except BaseException:  # raised again: a cancelled request is no longer in flight either
            lease.end()
            raise
        return HttpReply(raw, lease, self._clock)

    async def _open(self, lease: Lease, request: WireRequest, url: str) -> RawReply:
        state = lease.state
        need = self._loads.at_hand(state, request) if self._looks else None
        if need is None and self._looks:
            need = await self._loads.ready(state, request, load=self._own_loads)
        if request.stream or state.places is not None:
            await self._take_place(lease, request.stream)
        headers = {**self._post, "X-Request-Id": request.id}
        if need is None:
            return await self._answer(state, "POST", url, headers, request.body)
        try:
            raw = await self._answer(state, "POST", url, headers, request.body)
        except AttemptFailed as error:
            self._loads.failed(state, request, error.outcome)
            raise
        self._loads.served(state, request, need)
        return raw

    async def _take_place(self, lease: Lease, stream: bool) -> None:
        if lease.state.places is not None:
            await lease.place()
        if stream:
            lease.flow(self._clock())
            self._watch.wake()

    async def _pass(self, state: EndpointState, request: WireRequest, passage: Passage) -> HttpReply:
        """What is not read has any status: the answer is the caller's as it is.

        Raises:
            AttemptFailed: `client`, the path is none; else as `open`.
        """
        if PASSABLE.fullmatch(passage.target) is None or DOTS.search(passage.target.partition("?")[0]):
            raise AttemptFailed(Outcome(kind=Kind.CLIENT, status=400, code="path"), "no path of this server")
        headers = {**self._headers, "X-Request-Id": request.id}
        if passage.content_type:
            headers["Content-Type"] = passage.content_type
        lease = state.begin()
        try:
            await self._take_place(lease, stream=False)
            with state.patience():
                url = state.url + passage.target
                raw = await self._client.send(passage.method, url, headers, request.body, connect_s=self._connect_s)
            if raw.status not in STATUSES:
                await raw.aclose()
                raise AttemptFailed(Outcome(kind=Kind.MALFORMED, status=raw.status, code="status"))
        except BaseException:  # raised again: a cancelled request is no longer in flight either
            lease.end()
            raise
        return HttpReply(raw, lease, self._clock)

    async def fetch(self, path: str, body: bytes | None = None) -> bytes:
        live = [state for state in self._pool if state.up is not False]
        state = min(live or self._pool, key=lambda state: state.in_flight)
        try:
            async with asyncio.timeout(DOCUMENT_S):
                return await self._get(state, path, body)
        except TimeoutError:
            raise AttemptFailed(Outcome(kind=Kind.TIMEOUT, code="document")) from None

    async def probe(self) -> Sequence[ProbeEnded]:
        return await asyncio.gather(*(self._probe(state) for state in self._pool))

    def retire(self) -> None:
        self._pool.close()
        self._keep_warm.stop()

    async def aclose(self) -> None:
        """Ends what it does by itself: loads, keeping warm, watching, hearing events."""
        self._pool.close()
        if self._first_look is not None:
            self._first_look.cancel()
            await asyncio.gather(self._first_look, return_exceptions=True)
        await self._keep_warm.aclose()
        await self._watch.aclose()
        await self._loads.aclose()

    def _remember(self, model: str, serving: Sequence[EndpointState]) -> Offers:
        """What all that serve a model can do; forgotten with each probe."""
        needed = Quirk.NONE
        for state in serving:
            needed |= quirks(self._kind, state.version)
        context_tokens, listed = self._pool.context_tokens(model), self._pool.lists(model)
        known = any(state.version or state.served is not None for state in serving)
        if len(self._offers) >= _MAX_REMEMBERED:
            self._offers.clear()
        offers = self._offers[model] = {
            why: Offer(self._wires, self._profile.features, why, context_tokens, needed, listed, known)
            for why in (None, DOWN, BREAKER_OPEN)
        }
        return offers

    async def _probe(self, state: EndpointState) -> ProbeEnded:
        found = await check(lambda path: self._get(state, path), self._profile.ask)
        if self._looks and found.failure is None:
            await self._loads.look(state)
        failure = note(self._pool, state, found, self._clock())
        self._offers.clear()
        if found.failure is Kind.CONNECT:
            self._loads.warmth(state).clear()
        return ProbeEnded(
            provider=self.name,
            endpoint=state.url,
            up=state.up is not False,  # as routing sees it: one silent probe is no verdict
            failure=failure,
            detail=STALLED if state.stalled else found.detail or failure,
            models=found.models,
            version=found.version,
            load=found.load,
        )

    async def _look(self) -> None:
        await asyncio.gather(*(self._learn(state) for state in self._pool))

    async def _learn(self, state: EndpointState) -> None:
        """A look for what an endpoint tells. One that tells nothing is not held for down: who looks only once, for a
        request that waits, would never see it come back.
        """
        found = await check(lambda path: self._get(state, path), self._profile.look or self._profile.ask)
        if found.failure is None:
            note(self._pool, state, found, self._clock())
            self._offers.clear()

    async def _probe_alone(self, state: EndpointState) -> None:
        try:
            self._bus.emit(await self._probe(state))
        except Exception as error:  # noqa: BLE001 - in a task that nobody awaits: told, and tried again
            part = f"watch.{self.name}"
            self._bus.emit(InternalError(part=part, error=type(error).__name__, where=place_of(error)))

    def _tell_hung(self, state: EndpointState) -> None:
        self._bus.emit(ProbeEnded(provider=self.name, endpoint=state.url, up=False, detail=STALLED))

    async def _get(self, state: EndpointState, path: str, body: bytes | None = None) -> bytes:
        """A document; POSTed for, if there is a body."""
        method, headers = ("GET", self._headers) if body is None else ("POST", self._post)
        raw = await self._answer(state, method, state.url + path, headers, body or b"")
        try:
            return await _read_all(raw, MAX_DOCUMENT_BYTES)
        finally:
            await raw.aclose()

    async def _answer(
        self, state: EndpointState, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> RawReply:
        """Send, and look at the status: anything but 2xx is a refusal."""
        with state.patience():
            raw = await self._client.send(method, url, headers, body, connect_s=self._connect_s)
        if 200 <= raw.status < 300:
            return raw
        try:
            words, whole = await _read_words(raw)
        finally:
            await raw.aclose()
        raise refusal(raw.status, raw.headers, words, whole=whole)


async def _read_all(raw: RawReply, limit: int) -> bytes:
    body = bytearray()
    while chunk := await raw.read():
        body += chunk
        if len(body) > limit:
            raise AttemptFailed(Outcome(kind=Kind.MALFORMED, status=raw.status, code="too_large"))
    return bytes(body)


async def _read_words(raw: RawReply) -> tuple[bytes, bool]:
    """An error body as far as it comes, and whether that is all: cut at a size and a time, and where it breaks off."""
    body = bytearray()
    try:
        async with asyncio.timeout(MAX_ERROR_S):
            while chunk := await raw.read():
                body += chunk
                if len(body) > MAX_ERROR_BYTES:
                    return bytes(body[:MAX_ERROR_BYTES]), False
    except (TimeoutError, AttemptFailed):
        return bytes(body), False
    return bytes(body), True
