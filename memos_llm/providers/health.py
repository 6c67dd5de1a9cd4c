"""Probes: what one finds, when an endpoint counts as down, and the driver that asks again and again.

A refused connection or an answer that says *dead* puts an endpoint down at once. Silence does not: a saturated server
can be slow to answer, so it takes `DOWN_AFTER` silent probes in a row, and those do not count while it sends anything
at all. One good probe brings it back, but for an endpoint that was found hung: nothing of ours may be in flight
there any more, or who came later is answered. An engine that stands still while requests run (`engines`) is a failed
probe, too.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from random import Random

from msgspec import Struct
from msgspec.structs import replace

from memos_llm.core.catalogue import canonical
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import Bus, InternalError, Load, ProbeEnded, place_of
from memos_llm.core.outcome import MODEL_NOT_FOUND, Kind, Outcome
from memos_llm.core.ports import Transport
from memos_llm.providers.endpoint import FOUND_DOWN, EndpointState
from memos_llm.providers.endpoints import Pool
from memos_llm.providers.engines import STILL_LOOKS, Still

PROBE_S = 10.0
OPTIONAL_S = 6.0  # less than `PROBE_S`: what else a server tells keeps nobody from knowing that it is up
QUIET_S = 10.0  # a silent probe counts only if no request there got a byte for this long
INTERVAL_S = 5.0
MAX_MODELS = 10_000
MAX_NAME_CHARS = 512
MAX_CONTEXT = 10**9  # tokens
JITTER = 0.1  # ± part of the interval
MODELS = "what it says of its models makes no sense"  # the detail of one that is up all the same
FROZEN = "frozen"  # the failure, and the code of a time-out: an engine stands still

ALIVE = frozenset({Kind.CONFIG, Kind.CLIENT, Kind.SATURATED})
"""Failures of a probe that an endpoint must be alive for: a proxy that hides `/health` hides no model."""

DOWN_AFTER: Mapping[Kind, int] = {Kind.TIMEOUT: 3, Kind.TRUNCATED: 2, Kind.MALFORMED: 2}
"""How many probes in a row must fail so; a kind that is in neither table puts the endpoint down at once."""

_VERSION = re.compile(r"[A-Za-z0-9.+_-]{1,64}")

Get = Callable[[str], Awaitable[bytes]]
"""GET a path of one endpoint; raises `AttemptFailed`."""


class Finding(Struct, frozen=True, kw_only=True):
    """What a probe found. `failure` is None for an endpoint that is up; `models` None when it could not be asked.

    `contexts` are the context lengths of those models that have one. `load` and `busy` are what `engines` read, of a
    server that tells.
    """

    failure: Kind | None = None
    detail: str = ""
    models: tuple[str, ...] | None = None
    contexts: Mapping[str, int] = {}
    version: str = ""
    load: Load | None = None
    busy: Mapping[str, Still] = {}


async def check(get: Get, ask: Callable[[Get], Awaitable[Finding]], *, limit_s: float = PROBE_S) -> Finding:
    """One probe; a failure is a finding."""
    try:
        async with asyncio.timeout(limit_s):
            return _plausible(await ask(get))
    except TimeoutError:
        return Finding(failure=Kind.TIMEOUT, detail="timeout")
    except AttemptFailed as error:
        kind = error.outcome.kind
        return Finding(failure=None if kind in ALIVE else kind, detail=_detail(error.outcome))


def _plausible(found: Finding) -> Finding:
    """Without what no model and no release is called: it goes to terminals, pages and logs. A list without measure is
    none.
    """
    models = None if found.models is None or len(found.models) > MAX_MODELS else tuple(filter(_is_name, found.models))
    return Finding(
        detail=found.detail,
        models=models,
        contexts={name: n for name, n in found.contexts.items() if models and _is_name(name) and 0 < n <= MAX_CONTEXT},
        version=found.version if _VERSION.fullmatch(found.version) else "",
        load=found.load,
        busy=found.busy,
    )


def _is_name(text: str) -> bool:
    return len(text) <= MAX_NAME_CHARS and text.isprintable()


def note(pool: Pool, state: EndpointState, found: Finding, now: float) -> str:
    """Let a finding take effect. What goes down loses the requests that still wait for their reply there.

    Returns:
        How the probe failed, if that counts: an outcome kind, or `FROZEN`; else nothing.
    """
    pool.elapsed(state)
    if found.failure is not None:
        return _failed(state, found.failure, now)
    state.version = found.version or state.version
    if found.models is not None:
        pool.learn(state, found.models, found.contexts)
    if state.engines.look(
        found.busy, in_flight=state.in_flight > 0, turn=state.turn, content_at=state.answered_at, now=now
    ):
        if state.up is not False and state.engines.looks >= STILL_LOOKS:
            _down(state, FROZEN)
        return FROZEN
    state.stalled = state.stalled and state.in_flight > 0 and not state.moving  # no probe sees what hangs there
    state.up, state.misses = not state.stalled, 0
    return ""


def _failed(state: EndpointState, failure: Kind, now: float) -> str:
    counts = failure is not Kind.TIMEOUT or now - state.answered_at >= QUIET_S
    if failure is not Kind.TIMEOUT or now - state.heard_at >= QUIET_S:
        state.misses += 1
        if state.up is not False and state.misses >= DOWN_AFTER.get(failure, 1):
            _down(state, FOUND_DOWN)
    return failure.value if counts else ""


def _down(state: EndpointState, why: str) -> None:
    state.up = False
    state.cut_waiting(why)


async def optional(get: Get, *paths: str) -> list[bytes]:
    """Documents that a probe can do without: empty where one cannot be had soon. One after the other, so that probing
    keeps one connection open and not as many as there are documents; the time is for all of them.
    """
    found = [b""] * len(paths)
    with suppress(TimeoutError):
        async with asyncio.timeout(OPTIONAL_S):
            for place, path in enumerate(paths):
                with suppress(AttemptFailed):
                    found[place] = await get(path)
    return found


Mapped = Callable[[str], Collection[str]]
"""A provider's own names of the models that the configuration sends there."""


def _unmapped(provider: str) -> Collection[str]:
    return ()


class Prober:
    """The driver: probes every transport at once, then every `interval_s` (jittered), until closed."""

    def __init__(
        self, transports: Iterable[Transport], bus: Bus, *, interval_s: float = INTERVAL_S, rng: Random | None = None
    ) -> None:
        self._transports = tuple(transports)
        self._bus, self._interval_s, self._rng = bus, interval_s, rng or Random()
        self._started = False
        self._mapped: Mapped = _unmapped
        self._tasks: dict[Transport, asyncio.Task[None]] = {}

    def expect(self, mapped: Mapped) -> None:
        """From now on a server that lists none of these fails its probe, well as it may be."""
        self._mapped = mapped

    def start(self) -> None:
        """Call once, on the loop that the transports belong to."""
        self._started = True
        self.follow(self._transports)

    def follow(self, transports: Iterable[Transport]) -> None:
        """Probe these from now on, and no others. A transport that stays keeps its rhythm."""
        self._transports = tuple(transports)
        if not self._started:
            return
        for gone in self._tasks.keys() - set(self._transports):
            self._tasks.pop(gone).cancel()
        for new in [transport for transport in self._transports if transport not in self._tasks]:
            self._tasks[new] = asyncio.create_task(self._watch(new), name=f"probe.{new.name}")

    async def aclose(self) -> None:
        tasks, self._tasks, self._started = list(self._tasks.values()), {}, False
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, transport: Transport) -> None:
        while True:
            await self._once(transport)
            await asyncio.sleep(self._interval_s * (1 + JITTER * (2 * self._rng.random() - 1)))

    async def _once(self, transport: Transport) -> None:
        try:
            for ended in await transport.probe():
                self._bus.emit(_asked_of(ended, self._mapped(transport.name)))
        except Exception as error:  # noqa: BLE001 - a transport that breaks its word must not end the probing
            self._bus.emit(
                InternalError(part=f"probe.{transport.name}", error=type(error).__name__, where=place_of(error))
            )


def _asked_of(ended: ProbeEnded, mapped: Collection[str]) -> ProbeEnded:
    """A server that has none of its models any more refuses every request, so that routing finds it well and the
    guard must not. One that lost some of them is judged by their requests.
    """
    if ended.failure or ended.models is None or not mapped:
        return ended
    served = {canonical(name) for name in ended.models}
    if any(canonical(name) in served for name in mapped):
        return ended
    return replace(ended, failure=Kind.CONFIG.value, detail=f"{Kind.CONFIG.value} {MODEL_NOT_FOUND}")


def _detail(outcome: Outcome) -> str:
    return " ".join(part for part in (outcome.kind.value, str(outcome.status or ""), outcome.code) if part)
