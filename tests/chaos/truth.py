"""What was broken and which shares were in force, when: nothing else makes an answer right, or excuses an error.

Written by `breaking` and `steering` around what they do, so that every doubt is inside the span: a fault begins before
it is set and ends after it was cleared; a change of the flags is possible from the moment it is asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Flag

from chaos.asking import Asked
from memos_llm.core.flags import EMBEDDING, PPM, Flags, Scope
from memos_llm.router.split import GROUP, slot

AFTER_S = 0.5  # what was under way when a fault ended
NOTICES_S = 0.2  # a client, that its idle connection has ended
FOLLOWS_S = 1.5  # after which every worker has a change; the product promises 1 s
LOST_LOAD_S = 20.0  # in which a model's load that Ollama swallowed is asked for again: three looks, 5 s apart
SWALLOWS = ("hang", "stall_mid_stream", "slow_first_byte", "frozen for long")
MOST_LATE_S = 60.0  # however long a gateway was held up
RELOADS_S = 2.0  # after which every worker has a new configuration file: two looks, 0.5 s apart, and reading it
DIVERTS_S = 150.0  # the longest that a breaker stays open, with its jitter, and some trials
ENDPOINTS: Mapping[tuple[str, bool], tuple[str, ...]] = {
    ("ollama", False): ("ollama",),
    ("ollama", True): ("ollama",),
    ("vllm", False): ("vllm-1", "vllm-2"),
    ("vllm", True): ("vllm-embed",),
}
"""Who answers for a provider; True: embeddings."""
GATEWAY, MACHINE = "gateway", "machine"


class Effect(Flag):
    """What a fault may do to an answer."""

    NOTHING = 0
    BEFORE = 1  # fail it before its first content
    MIDWAY = 2  # break a stream off
    NO_USAGE = 4  # leave the counts out


ANY = Effect.BEFORE | Effect.MIDWAY


@dataclass(frozen=True)
class Span:
    """One thing that was wrong. `end` is None while it is."""

    where: str
    what: str
    effect: Effect
    start: float
    end: float | None = None

    def overlaps(self, start: float, end: float) -> bool:
        return self.start <= end and (self.end is None or self.end + AFTER_S >= start)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class InForce:
    """Flags, or pins of the configuration, asked for at `since` and surely everywhere at `settled`."""

    since: float
    settled: float
    flags: Flags | None = None
    pinned: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Kill:
    """A gateway worker that was killed, and the clients' ports on it. `gone`: when it had surely ended."""

    at: float
    ports: frozenset[int]
    gone: float = float("inf")


@dataclass
class Truth:
    """Everything that is known."""

    spans: list[Span] = field(default_factory=list)
    flags: list[InForce] = field(default_factory=list)
    configs: list[InForce] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    _holds: list[int] = field(default_factory=list)  # the spans that hold up a gateway

    # Written

    def begin(self, where: str, what: str, effect: Effect, now: float) -> int:
        """Something breaks; the number is what `end` takes."""
        self.spans.append(Span(where, what, effect, now))
        if where in (GATEWAY, MACHINE):
            self._holds.append(len(self.spans) - 1)
        return len(self.spans) - 1

    def end(self, number: int, now: float) -> None:
        self.spans[number] = replace(self.spans[number], end=now)

    # Read

    def broken(self, provider: str, embeds: bool, effect: Effect, start: float, end: float) -> list[Span]:
        """What was wrong with a provider during that time."""
        places = (*ENDPOINTS[provider, embeds], MACHINE)
        return [s for s in self.spans if s.where in places and s.effect & effect and s.overlaps(start, end)]

    def swallowed(self, start: float, end: float) -> list[Span]:
        """What may have swallowed a load of Ollama's that requests still wait for, though it is well again."""
        found = [s for s in self.spans if s.where == "ollama" and s.what.startswith(SWALLOWS)]
        return [s for s in found if s.overlaps(start - LOST_LOAD_S, end)]

    def active(self, start: float, end: float) -> list[str]:
        """Everything that was not as it should be, in words."""
        return [str(span) for span in self.spans if span.overlaps(start, end)]

    def cut(self, port: int, opened: float, start: float, end: float) -> bool:
        """Whether the worker on the other side of that connection was killed while it was needed."""
        return any(
            port in kill.ports and opened <= kill.at <= end and start <= kill.gone + NOTICES_S for kill in self.kills
        )

    def routes(self, asked: Asked, start: float, end: float) -> set[tuple[str, tuple[str, ...]]]:
        """Arm and chain of providers, as they may have been decided during that time."""
        pins = {config.pinned for config in self._possible(self.configs, start, end)}
        states = [state.flags for state in self._possible(self.flags, start, end) if state.flags is not None]
        return {_route(asked, flags, pinned) for flags in states for pinned in pins}

    def _possible(self, states: list[InForce], start: float, end: float) -> Iterator[InForce]:
        for number, state in enumerate(states):
            following = states[number + 1] if number + 1 < len(states) else None
            if state.since > end or (following is not None and following.settled + MOST_LATE_S < start):
                continue
            if following is None or self._late(following.settled) >= start:
                yield state

    def _late(self, settled: float) -> float:
        """A gateway that is held up follows later."""
        held = [self.spans[number] for number in self._holds]
        while True:
            ends = [
                float("inf") if s.end is None else s.end + FOLLOWS_S
                for s in held
                if s.start <= settled and (s.end is None or s.end >= settled - FOLLOWS_S)
            ]
            latest = max([settled, *ends])
            if latest <= settled:
                return settled
            settled = latest


def _route(asked: Asked, flags: Flags, pinned: frozenset[str]) -> tuple[str, tuple[str, ...]]:
    """The rules of the split, written a second time."""
    _, scope = flags.effective(EMBEDDING if asked.embeds else asked.component)
    share = scope.share_ppm or 0
    if asked.embeds:
        moved = share == PPM and scope.latch is None and scope.new_index
        return ("candidate", ("vllm",)) if moved else ("baseline", ("ollama",))
    others = ("vllm",) if share else ()
    if asked.component in pinned or not _split(asked.key, flags, scope):
        return "baseline", ("ollama", *others)
    return "candidate", ("vllm", "ollama")


def _split(key: str, flags: Flags, scope: Scope) -> bool:
    return scope.latch is None and slot(flags.salt, GROUP, key.encode()) < (scope.share_ppm or 0)
