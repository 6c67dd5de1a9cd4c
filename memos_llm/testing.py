"""What tests of routing need, for our own and for users' pipelines: a clock, flags and a back end under control.

No network and no waiting. `FakeTransport` is a real `Transport` whose answers are given beforehand.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from msgspec.structs import replace

from memos_llm.core.call import Feature, Wire, WireRequest
from memos_llm.core.commands import Actor, Command
from memos_llm.core.decision import Offer
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import Event, ProbeEnded
from memos_llm.core.flags import GLOBAL, Flags, Scope, fresh
from memos_llm.core.outcome import BREAKER_OPEN, Kind, Outcome

E = TypeVar("E", bound=Event)
Step = bytes | Exception | float
"""One move of a scripted answer: bytes to deliver, an error to raise, or seconds to wait."""


class ManualClock:
    """Time that passes only when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Recorder:
    """Keeps the events it hears: `bus.subscribe("test", recorder)`."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]


class FixedFlags:
    """`LiveFlags` without a store: commands apply at once, here only."""

    def __init__(self, flags: Flags | None = None, clock: ManualClock | None = None) -> None:
        self.flags = flags or fresh("test", "00" * 16)
        self._clock = clock or ManualClock()

    @classmethod
    def at(cls, share_ppm: int, **components: int) -> "FixedFlags":
        """Flags with a global share and own shares of components, in parts per million."""
        scopes = {GLOBAL: Scope(share_ppm=share_ppm), **{n: Scope(share_ppm=s) for n, s in components.items()}}
        return cls(replace(fresh("test", "00" * 16), scopes=scopes))

    def current(self) -> Flags:
        return self.flags

    def cut(self, rollback: Command) -> None:
        self.flags = rollback.apply(self.flags, self._clock())

    async def submit(self, command: Command, actor: Actor) -> Flags:
        self.flags = command.apply(self.flags, self._clock())
        return self.flags


class FakeReply:
    """A scripted answer."""

    status = 200

    def __init__(self, transport: "FakeTransport", steps: Iterable[Step]) -> None:
        self.endpoint = transport.endpoint
        self._transport, self._steps, self._ended = transport, deque(steps), False

    @property
    def headers(self) -> Mapping[str, str]:
        return {}

    async def read(self) -> bytes:
        while self._steps:
            step = self._steps.popleft()
            if isinstance(step, Exception):
                raise step
            if isinstance(step, bytes):
                return step
            await asyncio.sleep(step)
        self._ended = True
        return b""

    def committed(self) -> None:
        return None

    async def aclose(self) -> None:
        if not self._ended:
            self._ended = True
            self._transport.aborted += 1


class FakeTransport:
    """A provider whose answers are scripted: one script a request, the last one repeated.

    Attributes:
        requests: what was sent, in order. aborted: answers closed before their end.
        refused: what its offers say. shut: every breaker is open, nothing is taken.
    """

    def __init__(
        self,
        name: str,
        *scripts: Sequence[Step] | AttemptFailed,
        wires: Iterable[Wire] = (Wire.OPENAI_CHAT,),
        features: Feature = Feature.ALL,
        refused: str | None = None,
    ) -> None:
        self.name, self.endpoint = name, f"http://{name}.test"
        self.requests: list[WireRequest] = []
        self.aborted = 0
        self.refused = refused
        self.shut = False
        self._scripts: deque[Sequence[Step] | AttemptFailed] = deque(scripts)
        self._wires, self._features = frozenset(wires), features

    def offer(self, model: str) -> Offer:
        return Offer(wires=self._wires, features=self._features, refused=self.refused)

    async def acquaint(self, model: str) -> Offer:
        return self.offer(model)

    def serving(self, model: str) -> Sequence[str]:
        return (self.endpoint,)

    def content_at(self, endpoint: str) -> float:
        return float("-inf")

    def pick(self, model: str, key: bytes = b"") -> str:
        if self.shut:
            raise AttemptFailed(Outcome(kind=Kind.SATURATED, code=BREAKER_OPEN))
        return self.endpoint

    async def open(self, request: WireRequest) -> FakeReply:
        self.requests.append(request)
        script = self._scripts.popleft() if len(self._scripts) > 1 else self._scripts[0]
        if isinstance(script, AttemptFailed):
            raise script
        return FakeReply(self, script)

    async def fetch(self, path: str, body: bytes | None = None) -> bytes:
        return b"{}"

    async def probe(self) -> Sequence[ProbeEnded]:
        return (ProbeEnded(provider=self.name, endpoint=self.endpoint, up=self.refused is None),)

    def retire(self) -> None:
        return None

    async def aclose(self) -> None:
        return None
