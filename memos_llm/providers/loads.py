"""Model loads that belong to us: one for all who wait, and none is aborted because a client left.

Ollama withholds its answer until the model is loaded, and takes a client that leaves meanwhile for a reason to stop.
So a request for a cold model first has it loaded by a call of our own, in a task of its own. Who waits for it waits
within his own limits; the load goes on without him.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Protocol

from memos_llm.core.call import WireRequest
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import Bus, InternalError, place_of
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.ports import Clock
from memos_llm.providers.endpoint import EndpointState
from memos_llm.providers.ollama_loads import PATHS, PS, Fixed, Needs, load_body, needs, read_ps
from memos_llm.providers.warmth import Warmth

LOAD_S = 1_800.0  # Ollama gives up earlier: after five minutes without progress
PS_S = 1.0  # since 0.32.4 the list waits for a load to end, so silence means that there is one
UNSEEN_LOOKS = 3  # in a row that tell nothing of a load: Ollama lists a model as soon as it begins, or is silent
LONG_BYTES = 32_768  # longer bodies are read only if their model is not loaded

REFUSED = frozenset({Kind.CLIENT, Kind.CONFIG, Kind.SATURATED})
"""Of a load: nothing is being loaded. The request itself is sent, and refused in the words of its own route."""

ELSEWHERE = (":cloud", "-cloud")  # models that Ollama passes on to its makers: nothing is loaded

Load = tuple[str, str, Fixed]


class _Call:
    """One call that loads. `unseen`: looks in a row at `/api/ps` that did not show its model."""

    __slots__ = ("lost", "overtaken", "since", "task", "unseen")

    def __init__(self, task: asyncio.Future[bytes], since: float) -> None:
        self.task, self.since = task, since
        self.unseen = 0
        self.lost = self.overtaken = False

    def give_up(self, *, overtaken: bool = False) -> None:
        self.lost, self.overtaken = not overtaken, overtaken
        self.task.cancel()


class Ask(Protocol):
    """A document of one endpoint: GET, or POST when there is a body. Raises `AttemptFailed`."""

    def __call__(self, state: EndpointState, path: str, body: bytes | None = None) -> Awaitable[bytes]: ...


def _wall() -> datetime:
    return datetime.now(UTC)


class Loads:
    """The loads of one provider's endpoints."""

    def __init__(
        self,
        provider: str,
        ask: Ask,
        canonical: Callable[[str], str],
        bus: Bus,
        clock: Clock,
        *,
        wall: Callable[[], datetime] = _wall,
    ) -> None:
        self._provider, self._bus = provider, bus
        self._ask, self._canonical, self._clock, self._wall = ask, canonical, clock, wall
        self._warmth: dict[str, Warmth] = {}
        self._last: dict[str, Needs] = {}
        self._running: dict[Load, asyncio.Task[AttemptFailed | None]] = {}
        self._calls: dict[Load, _Call] = {}
        self._closed = False

    def warmth(self, state: EndpointState) -> Warmth:
        found = self._warmth.get(state.url)
        if found is None:
            found = self._warmth[state.url] = Warmth(self._canonical)
        return found

    def at_hand(self, state: EndpointState, request: WireRequest) -> Needs | None:
        """As `ready`, where the model is known to be loaded for this request: the common case, without waiting."""
        if request.wire not in PATHS or request.model.endswith(ELSEWHERE):
            return None
        need = self._known(state, request) or needs(request)
        return need if self.warmth(state).fits(request.model, need.options, self._clock()) else None

    async def ready(self, state: EndpointState, request: WireRequest, *, load: bool = True) -> Needs | None:
        """Return once the model is loaded for this request (without `load`: at once). Tell `served` or `failed` how the
        request went then. None: it is nothing to us.

        Raises:
            AttemptFailed: the load failed, or the endpoint was found down meanwhile.
        """
        if request.wire not in PATHS or request.model.endswith(ELSEWHERE):
            return None
        need = self._known(state, request) or needs(request)
        if not load or need.unloads or self.warmth(state).fits(request.model, need.options, self._clock()):
            return need
        failed = await self.load(state, request.model, need)
        if failed is not None and failed.outcome.kind not in REFUSED:
            raise AttemptFailed(failed.outcome, failed.client_text)
        return need

    def _known(self, state: EndpointState, request: WireRequest) -> Needs | None:
        """A long request for a loaded model is taken to want what is loaded."""
        if len(request.body) < LONG_BYTES:
            return None
        warm = self.warmth(state).find(request.model, self._clock())
        return None if warm is None else Needs(path=PATHS[request.wire], options=warm.options or ())

    def served(self, state: EndpointState, request: WireRequest, need: Needs) -> None:
        """The request was answered; a call that still wants to load for it has been forgotten over there."""
        self.warmth(state).proved(request.model, need.options, need.keep_alive_s, self._clock())
        if not need.unloads:
            self._last[self._canonical(request.model)] = need
        if self._calls:
            call = self._calls.get((state.url, self._canonical(request.model), need.options))
            if call is not None:
                call.give_up(overtaken=True)

    def failed(self, state: EndpointState, request: WireRequest, why: Outcome) -> None:
        """The request was not: a runner that died is loaded anew, and so is everything after a restart."""
        if why.kind is Kind.CONNECT:
            self.warmth(state).clear()
        elif why.kind is Kind.SERVER:
            self.warmth(state).forget(request.model)

    def last(self, model: str) -> Needs | None:
        """What the last request for a model wanted of its runner."""
        return self._last.get(self._canonical(model))

    async def load(self, state: EndpointState, model: str, need: Needs) -> AttemptFailed | None:
        """Have a model loaded, or wait with the others; why it could not be, if so.

        Raises:
            AttemptFailed: the endpoint was found down meanwhile.
        """
        key = (state.url, self._canonical(model), need.options)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._load(state, model, need), name="load")
            task.add_done_callback(lambda _: self._running.pop(key, None))
        with state.patience():
            return await asyncio.shield(task)

    async def look(self, state: EndpointState) -> None:
        """Ask what is loaded. Never raises; silence is taken for a load under way."""
        warmth, asked_at = self.warmth(state), self._clock()
        try:
            async with asyncio.timeout(PS_S):
                rows = read_ps(await self._ask(state, PS), self._wall())
        except TimeoutError:
            state.loading = True
            for call in self._calls_at(state):
                call.unseen = 0
        except AttemptFailed as error:
            state.loading = False
            if error.outcome.kind is Kind.CONNECT:
                warmth.clear()
        else:
            state.loading = False
            warmth.listed(rows, asked_at)
            self._seek(state, {self._canonical(row.model) for row in rows}, asked_at)
        warmth.asked = True

    def _calls_at(self, state: EndpointState) -> list[_Call]:
        return [call for (url, _, _), call in self._calls.items() if url == state.url]

    def _seek(self, state: EndpointState, listed: set[str], asked_at: float) -> None:
        """A call whose model is not listed again and again was lost (or waits in a queue): it is made anew."""
        for (url, model, _), call in self._calls.items():
            if url != state.url or call.since > asked_at:
                continue
            call.unseen = 0 if model in listed else call.unseen + 1
            if call.unseen >= UNSEEN_LOOKS:
                call.give_up()

    async def aclose(self) -> None:
        """End the loads under way: nobody is left to serve."""
        self._closed = True
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _load(self, state: EndpointState, model: str, need: Needs) -> AttemptFailed | None:
        """A failure is returned: who it concerns may have left, and several may wait."""
        state.loads += 1
        try:
            await self._load_cold(state, model, need)
        except AttemptFailed as error:
            return error
        except TimeoutError:
            return AttemptFailed(Outcome(kind=Kind.TIMEOUT, code="load"))
        except asyncio.CancelledError:
            if not self._closed:
                raise
            return AttemptFailed(Outcome(kind=Kind.CONNECT, code="closed"))
        except Exception as error:  # noqa: BLE001 - a bug of ours, in a task that perhaps nobody awaits any more
            part = f"loads.{self._provider}"
            self._bus.emit(InternalError(part=part, error=type(error).__name__, where=place_of(error)))
            return AttemptFailed(Outcome(kind=Kind.MALFORMED, code="internal"))
        else:
            return None
        finally:
            state.loads -= 1
            state.content_at = self._clock()

    async def _load_cold(self, state: EndpointState, model: str, need: Needs) -> None:
        warmth = self.warmth(state)
        if not warmth.asked:
            await self.look(state)
            if warmth.fits(model, need.options, self._clock()):
                return
        async with asyncio.timeout(LOAD_S):
            while not await self._called(state, model, need):
                pass
        warmth.proved(model, need.options, need.keep_alive_s or None, self._clock())

    async def _called(self, state: EndpointState, model: str, need: Needs) -> bool:
        """Ask for the load. False: the call was lost; nothing is being loaded, so that giving it up aborts nothing."""
        key = (state.url, self._canonical(model), need.options)
        task = asyncio.ensure_future(self._ask(state, need.path, load_body(model, need)))
        call = self._calls[key] = _Call(task, self._clock())
        try:
            await task
        except asyncio.CancelledError:
            ours = asyncio.current_task()
            if not (call.lost or call.overtaken) or (ours is not None and ours.cancelling()):
                raise
            return call.overtaken
        finally:
            del self._calls[key]
        return True
