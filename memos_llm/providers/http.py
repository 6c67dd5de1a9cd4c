"""A `Transport` over HTTP. What differs between kinds of back end is data: a `Profile`.

A request counts as in flight on its endpoint from `open` until its reply has ended or was closed. When probes find an
endpoint down, the requests there whose answer nobody has begun to use end at once as time-outs.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random

from msgspec import Struct

from memos_llm.core.call import Feature, Passage, Wire, WireRequest
from memos_llm.core.decision import Offer
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import Bus, ProbeEnded
from memos_llm.core.outcome import BREAKER_OPEN, Kind, Outcome
from memos_llm.core.policy import ProviderSpec
from memos_llm.core.ports import BackendClient, Clock, RawReply
from memos_llm.providers.endpoints import DOWN, EndpointState, Lease, Pool, gone
from memos_llm.providers.health import Finding, Get, check, note
from memos_llm.providers.refusals import refusal

MAX_ERROR_BYTES = 262_144
MAX_ERROR_S = 5.0
MAX_DOCUMENT_BYTES = 4_194_304
DOCUMENT_S = 10.0


class Profile(Struct, frozen=True, kw_only=True):
    """What is particular to one kind of back end.

    Attributes:
        paths: where each wire that it speaks is served.
        features: what it can do beyond the common.
        canonical: folds the spellings of a model's name that it takes for one.
        ask: one probe: what it finds out, by GETs.
    """

    paths: Mapping[Wire, str]
    features: Feature
    canonical: Callable[[str], str]
    ask: Callable[[Get], Awaitable[Finding]]


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
            chunk = await (self._raw.read() if self._committed else self._read_while_up())
        except AttemptFailed:
            self._lease.end()
            raise
        if chunk:
            self._lease.state.heard_at = self._clock()
        else:
            self._lease.end()
        return chunk

    async def _read_while_up(self) -> bytes:
        state = self._lease.state
        if state.downs != self._downs:  # found down between two reads
            raise gone()
        with state.patience():
            return await self._raw.read()

    async def aclose(self) -> None:
        self._lease.end()
        await self._raw.aclose()


class HttpTransport:
    """A `Transport` for one provider. The client is shared and stays open when this is closed."""

    def __init__(
        self, spec: ProviderSpec, profile: Profile, client: BackendClient, bus: Bus, *, clock: Clock, rng: Random
    ) -> None:
        self.name = spec.name
        self._profile, self._client, self._clock = profile, client, clock
        self._connect_s = spec.timeouts.connect_s
        self._pool = Pool(spec.name, spec.endpoints, bus, clock=clock, rng=rng, canonical=profile.canonical)
        self._urls = {
            (state.url, wire): state.url + path for state in self._pool for wire, path in profile.paths.items()
        }
        self._headers = {"Accept-Encoding": "identity"}
        if spec.api_key:
            self._headers["Authorization"] = f"Bearer {spec.api_key}"
        self._post = {**self._headers, "Content-Type": "application/json"}
        wires = frozenset((*profile.paths, Wire.PASSTHROUGH))
        self._offers = {why: Offer(wires, profile.features, why) for why in (None, DOWN, BREAKER_OPEN)}
        self._nothing = Offer(frozenset(), Feature.NONE)

    def offer(self, model: str) -> Offer:
        serving = self._pool.serving(model)
        return self._offers[self._pool.refusal(serving)] if serving else self._nothing

    def pick(self, model: str, key: bytes = b"") -> str:
        return self._pool.pick(model).url

    async def open(self, request: WireRequest) -> HttpReply:
        state = self._pool.find(request.endpoint or self.pick(request.model))
        if request.passage is not None:
            return await self._pass(state, request, request.passage)
        url = self._urls.get((state.url, request.wire))
        if url is None:
            raise AttemptFailed(Outcome(kind=Kind.CONFIG, code="wire"))
        lease = state.begin()
        try:
            raw = await self._answer(state, "POST", url, {**self._post, "X-Request-Id": request.id}, request.body)
        except BaseException:  # raised again: a cancelled request is no longer in flight either
            lease.end()
            raise
        return HttpReply(raw, lease, self._clock)

    async def _pass(self, state: EndpointState, request: WireRequest, passage: Passage) -> HttpReply:
        """What is not read has any status: the answer is the caller's as it is."""
        headers = {**self._headers, "X-Request-Id": request.id}
        if passage.content_type:
            headers["Content-Type"] = passage.content_type
        lease = state.begin()
        try:
            raw = await self._send(state, passage.method, state.url + passage.target, headers, request.body)
        except BaseException:  # raised again: as in `open`
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

    async def aclose(self) -> None:
        """Nothing of its own to close."""

    async def _probe(self, state: EndpointState) -> ProbeEnded:
        found = await check(lambda path: self._get(state, path), self._profile.ask)
        note(self._pool, state, found, self._clock())
        return ProbeEnded(
            provider=self.name,
            endpoint=state.url,
            up=state.up is not False,  # as routing sees it: one silent probe is no verdict
            detail=found.detail,
            models=found.models,
            version=found.version,
        )

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
        raw = await self._send(state, method, url, headers, body)
        if 200 <= raw.status < 300:
            return raw
        try:
            words, whole = await _read_words(raw)
        finally:
            await raw.aclose()
        raise refusal(raw.status, raw.headers, words, whole=whole)

    async def _send(
        self, state: EndpointState, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> RawReply:
        with state.patience():
            return await self._client.send(method, url, headers, body, connect_s=self._connect_s)


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
