"""The seams. Each protocol is the whole contract between two packages; what is not said here may not be relied on.

Lifecycles: whatever has `aclose` is closed exactly once by whoever opened it, and closing twice is harmless.
Cancelling the task that awaits one of these cancels the work upstream.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, Unpack, runtime_checkable

from msgspec import Struct

from memos_llm.core.call import Call, Frame, Target, WireRequest
from memos_llm.core.commands import Actor, Audit, Command, Incident, Rollback
from memos_llm.core.decision import Decision, Offer
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import ProbeEnded
from memos_llm.core.flags import Flags
from memos_llm.core.inventory import Recorded, Sighting
from memos_llm.core.policy import Policy
from memos_llm.core.responses import Chat, EmbeddingResponse, LLMResponse, Options, StreamChunk
from memos_llm.core.verdicts import Evidence
from memos_llm.core.windows import Merged, WindowDelta

Clock = Callable[[], float]


class Reply(Protocol):
    """Bytes of one wire from one endpoint; the status was checked, so this is an answer and not an error.

    Only the reply to a passage has any status.
    """

    status: int
    endpoint: str

    @property
    def headers(self) -> Mapping[str, str]:
        """The back end's; case-insensitive."""
        ...

    async def read(self) -> bytes:
        """The next bytes as they came; `b""` at the end.

        Raises:
            AttemptFailed: the connection broke (`truncated`).
        """
        ...

    def committed(self) -> None:
        """The caller has begun to use the answer: a probe that finds the endpoint down no longer cuts it."""
        ...

    async def aclose(self) -> None:
        """Before the end: aborts upstream at once (the connection is closed, not returned to the pool)."""
        ...


class RawReply(Protocol):
    """What came back, its status not looked at yet; `read` and `aclose` as in `Reply`."""

    status: int

    @property
    def headers(self) -> Mapping[str, str]:
        """Case-insensitive."""
        ...

    @property
    def ready(self) -> bool:
        """Whether `read` will not have to wait; False where that is not known."""
        ...

    async def read(self) -> bytes: ...

    async def aclose(self) -> None: ...


class BackendClient(Protocol):
    """HTTP to a back end: no redirects, no proxies from the environment, no decompression, no cookies."""

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, *, connect_s: float
    ) -> RawReply:
        """Send, and return when the response headers are there.

        Raises:
            AttemptFailed: `connect` (refused, unreachable, name, TLS; code `reused` when a pooled connection was
                closed before any byte of an answer), `timeout` with code `connect`.
        """
        ...

    async def aclose(self) -> None: ...


class Transport(Protocol):
    """The engine's view of a provider: bytes in, bytes out, endpoints and their health inside."""

    name: str

    def offer(self, model: str) -> Offer:
        """What it can do with one of its own model names now. No I/O, called for every request."""
        ...

    async def acquaint(self, model: str) -> Offer:
        """Look at its endpoints, if nothing is known of them yet, for a moment; what it offers then."""
        ...

    def serving(self, model: str) -> Sequence[str]:
        """The endpoints that serve one of its own model names, usable or not, as far as is known. No I/O."""
        ...

    def content_at(self, endpoint: str) -> float:
        """When an endpoint last gave anybody any content (the transport's monotonic clock); −inf if never. No I/O."""
        ...

    def pick(self, model: str, key: bytes = b"") -> str:
        """The endpoint that the next request for a model should go to. No I/O; what befalls the request there is
        told by `AttemptEnded.endpoint`, time-outs included. Calls of one split `key` stay on one replica while it is
        not busier than the others (its prefix cache knows the conversation).

        Raises:
            AttemptFailed: `saturated` when every endpoint's breaker is open and takes no trial; `config` when none has
                the model.
        """
        ...

    async def open(self, request: WireRequest) -> Reply:
        """Send to `request.endpoint`, or where `pick` says. Returns once a 2xx status is there, or any status for a
        passage.

        Raises:
            AttemptFailed: anything else, already classified (`core.outcome`).
        """
        ...

    async def fetch(self, path: str, body: bytes | None = None) -> bytes:
        """GET a metadata document (`/api/tags`, `/v1/models`, …) from a live endpoint, or POST for one
        (`/api/show`); bounded in bytes and time.

        Raises:
            AttemptFailed: as `open`.
        """
        ...

    async def probe(self) -> Sequence[ProbeEnded]:
        """Ask every endpoint how it is; never raises. What it learns shows in `offer`."""
        ...

    def retire(self) -> None:
        """No new call will come: those in flight end, and nothing is told of its endpoints any more."""
        ...

    async def aclose(self) -> None: ...


@runtime_checkable
class LLMProvider(Protocol):
    """The public, typed face: what a pipeline calls and a third party writes.

    `messages` are OpenAI-style dictionaries. All calls raise `memos_llm.LLMError` and nothing else of ours.
    """

    name: str

    async def generate(
        self,
        prompt: str,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[Options],
    ) -> LLMResponse: ...

    async def chat(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[Options],
    ) -> LLMResponse: ...

    def stream(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[Options],
    ) -> AsyncIterator[StreamChunk]: ...

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> EmbeddingResponse: ...

    async def aclose(self) -> None: ...


class Decoder(Protocol):
    """Sans-IO, one per attempt: back-end bytes in (cut anywhere), whole frames on the caller's wire out.

    `eof` comes once for every request that the codec made of the call; the last one ends the answer. A non-streaming
    answer is one frame, delivered by `eof` (CONTENT | FINISH | END, USAGE if reported).
    """

    @property
    def failure(self) -> AttemptFailed | None:
        """What came after the last frames and is no answer: the next call raises it, nothing need be read for it."""
        ...

    def feed(self, chunk: bytes) -> Sequence[Frame]:
        """Raises:
        AttemptFailed: `server` (an error event), `malformed`, or a size cap passed.
        """
        ...

    def eof(self) -> Sequence[Frame]:
        """Raises:
        AttemptFailed: `truncated` when no terminal marker came.
        """
        ...


class Codec(Protocol):
    """From one client wire to one back-end wire and back. Stateless; rules are tables."""

    def request(self, call: Call, target: Target, offer: Offer) -> tuple[WireRequest, tuple[str, ...]]:
        """The back end's request, and warnings (what was approximated, dropped or repaired). `offer` is what the
        target offers now: its context length and its release's quirks.

        Raises:
            AttemptFailed: `client`, when the caller's body cannot be understood; `incompatible`, when this target
                cannot do what it asks for.
        """
        ...

    def decoder(self, call: Call, target: Target) -> Decoder: ...


class Codecs(Protocol):
    """The table of codecs."""

    def find(self, call: Call, offer: Offer) -> Codec | None:
        """The codec that carries this call to a target with this offer (identity first), or None: not offered."""
        ...


class Exchange(Protocol):
    """A committed answer. Exactly one `RequestEnded` is emitted, whichever way it ends."""

    decision: Decision
    served: Target
    attempts: int
    stream: bool
    warnings: tuple[str, ...]
    status: int

    @property
    def headers(self) -> Mapping[str, str]:
        """The back end's; of use for a passage only."""
        ...

    async def next(self) -> Frame | None:
        """The next frame, None after the last.

        Raises:
            StreamBroken: the back end failed after the commit point.
        """
        ...

    async def aclose(self) -> None:
        """Before the end: the caller has left; upstream is cancelled at once."""
        ...


class Routes(NamedTuple):
    """What a call needs of the configuration: read once per call, swapped as a whole when the file changes."""

    policy: Policy
    transports: Mapping[str, Transport]


class Engine(Protocol):
    """What the gateway and the library call."""

    def decide(self, call: Call) -> Decision:
        """The decision, nothing sent."""
        ...

    async def open(self, call: Call) -> Exchange:
        """Run the chain to the commit point.

        Raises:
            LLMError: no target answered, or the request itself was refused.
        """
        ...


class Instance(Struct, frozen=True, kw_only=True):
    """A process that follows the flags. `at` is its last heartbeat (Unix seconds); live means younger than 5 s.

    `dead`: the endpoints (URLs) whose probes fail for this process, as the guard counts them; None: it does not probe.
    """

    id: str
    kind: str
    revision: int
    at: float
    ephemeral: bool = False
    dead: tuple[str, ...] | None = None


MOST_EVIDENCE = 32  # of one incident


class Conflict(Exception):
    """`commit` found another revision than the expected one; load again and re-apply."""


class StateStore(Protocol):
    """Flags, history, incidents, windows, instances, the inventory: kept for all processes.

    Every call may raise `StoreUnreachable`.
    """

    async def load(self) -> Flags | None:
        """The current flags; None when the store is new."""
        ...

    def glance(self, within_s: float) -> Flags | None:
        """The current flags, for a caller that cannot await: one whose event loop has stood still. None: there are
        none, or they cannot be had so within that time (of a store across a network: never).
        """
        ...

    def watch(self) -> AsyncIterator[Flags]:
        """Every change made by anyone after the call, newest only; within 1 s of its commit."""
        ...

    async def commit(self, expected: int, flags: Flags, audit: Audit, incident: Incident | None = None) -> None:
        """Flags, audit entry and incident in one transaction. `expected` is the revision replaced, 0 for a new store.
        Of an incident that is there already the first writer's stands.

        Raises:
            Conflict: another revision is there.
        """
        ...

    async def history(self, limit: int) -> Sequence[Audit]:
        """Newest first."""
        ...

    async def incidents(self, limit: int) -> Sequence[Incident]:
        """Newest first."""
        ...

    async def note(self, incident: str, evidence: Evidence) -> None:
        """Add evidence to an incident; beyond `MOST_EVIDENCE` it is dropped, and so is that of an unknown incident.

        Raises:
            Refused: the store is of a newer schema.
        """
        ...

    async def merge(self, deltas: Sequence[WindowDelta], cursor: int = 0) -> Merged:
        """Add to the windows' rows, all or nothing, each delta to its second and to its minute; return what changed
        since `cursor` (0, or one of another life of the store: all that is kept). Rows older than `KEEP_FINE_S`,
        `KEEP_COARSE_S` are dropped. None to add: only look.

        Raises:
            Refused: the store is of a newer schema, and there was something to add.
            StoreUnreachable: whether it was added is not known. The same deltas given again, before any others, are
                added once.
        """
        ...

    async def claim(self, by: str, lease_s: float) -> Incident | None:
        """An incident that nobody was told of yet, oldest first, for `by` to tell within `lease_s`; nobody else gets
        it meanwhile. None: there is none.
        """
        ...

    async def renew(self, incident: str, by: str, lease_s: float) -> bool:
        """Keep what `by` claimed for `lease_s` from now on, its lease over or not. False: it is another's by now, or
        was told.
        """
        ...

    async def told(self, incident: str) -> None:
        """The webhooks have been told of an incident (or given up): it is not claimed again."""
        ...

    async def heartbeat(self, instance: Instance) -> None:
        """Write one's own row; `at` is set by the store's clock."""
        ...

    async def leave(self, instance_id: str) -> None: ...

    async def instances(self) -> Sequence[Instance]:
        """The live ones."""
        ...

    async def record(self, sightings: Sequence[Sighting]) -> None:
        """Add to the inventory's counts, all or nothing: sums stay exact, whoever else writes. None to add still dates
        the beginning of the record, once. At most `MAX_LINES` lines are kept apart, the rest is added to `REST`; days
        older than `KEEP_DAYS` are dropped.

        Raises:
            Refused: the store is of a newer schema, so that we only read.
        """
        ...

    async def recorded(self, since_day: int = 0) -> Recorded:
        """The counts from a day on (whole days since 1970, UTC), the days added up."""
        ...

    async def aclose(self) -> None: ...


class LiveFlags(Protocol):
    """This process's snapshot, kept fresh."""

    def current(self) -> Flags:
        """Waits for nothing, but for a moment for a store on this host once the event loop has stood still."""
        ...

    def cut(self, rollback: Rollback) -> None:
        """Apply a rollback here at once; kept until published or superseded (which also brings its evidence to the
        incident, whoever's that is).
        """
        ...

    async def submit(self, command: Command, actor: Actor) -> Flags:
        """Publish a change and return the new flags; re-read and re-applied on conflict.

        Raises:
            Refused, StoreUnreachable.
        """
        ...
