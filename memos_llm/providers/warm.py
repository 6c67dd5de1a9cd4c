"""Keeps the configured models of an Ollama loaded while the candidate has a share: a rollback must not find it cold.

A model is loaded when `/api/ps` lacks it, as its last request had it (another `num_ctx` would load it twice), and for
`KEEP_S` without use; shortly before that is over it is asked for again. A model that does not stay (two that have no
room together) is loaded less and less often.
"""

import asyncio
from contextlib import suppress

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import Bus, Event, FlagsChanged, InternalError, place_of
from memos_llm.core.flags import Flags
from memos_llm.core.ports import Clock
from memos_llm.providers.endpoint import EndpointState
from memos_llm.providers.endpoints import Pool
from memos_llm.providers.loads import Loads
from memos_llm.providers.ollama_loads import ANY_MODEL, Needs
from memos_llm.providers.warmth import Warm

KEEP = b'"10m"'
KEEP_S = 600.0
ROUND_S = 15.0
REARM_S = 2.5 * ROUND_S  # what has less left is asked for again
PAUSE_S = 30.0  # between two loads of one model; doubled while it does not stay
MAX_PAUSE_S = 600.0


class Pace:
    """When a model may be loaded again."""

    def __init__(self) -> None:
        self._loaded_at = float("-inf")
        self._pause_s = PAUSE_S

    def may(self, now: float) -> bool:
        return now >= self._loaded_at + self._pause_s

    def loaded(self, now: float) -> None:
        """It was gone: soon after the last time doubles the pause, long after starts again."""
        soon = now - self._loaded_at < 2 * self._pause_s
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S) if soon else PAUSE_S
        self._loaded_at = now


class KeepWarm:
    """The driver: one task while there is a share. Never raises; a bug is told as `InternalError`.

    `flags` are those in force when it is made: a reload changes none, and yet it needs a new one of these.
    """

    def __init__(
        self,
        provider: str,
        models: tuple[str, ...],
        pool: Pool,
        loads: Loads,
        bus: Bus,
        clock: Clock,
        flags: Flags | None = None,
    ) -> None:
        self._provider, self._models, self._pool, self._loads = provider, models, pool, loads
        self._bus, self._clock = bus, clock
        self._paces: dict[tuple[str, str], Pace] = {}
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe = bus.subscribe(f"warm.{provider}", self._on_event, FlagsChanged) if models else None
        if models and flags is not None:
            self._follow(flags)

    def stop(self) -> None:
        """Hear no more, and do nothing more by itself."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._task is not None:
            self._task.cancel()

    async def aclose(self) -> None:
        self.stop()
        task, self._task = self._task, None
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    async def round(self) -> None:
        """Look once at every endpoint, and load what is missing."""
        for state in self._pool:
            if state.up is not False:
                await self._round(state)

    def _on_event(self, event: Event) -> None:
        assert isinstance(event, FlagsChanged)
        self._follow(event.flags)

    def _follow(self, flags: Flags) -> None:
        if not has_share(flags):
            if self._task is not None:
                self._task.cancel()
            self._task = None
        elif self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"warm.{self._provider}")

    async def _run(self) -> None:
        while True:
            try:
                await self.round()
            except Exception as error:  # noqa: BLE001 - it is nobody's request: told, and tried again
                part = f"warm.{self._provider}"
                self._bus.emit(InternalError(part=part, error=type(error).__name__, where=place_of(error)))
            await asyncio.sleep(ROUND_S)

    async def _round(self, state: EndpointState) -> None:
        await self._loads.look(state)
        if state.loading or state.loads:
            return
        for model in self._models:
            if state in self._pool.serving(model):
                await self._keep(state, model)

    async def _keep(self, state: EndpointState, model: str) -> None:
        now = self._clock()
        warm = self._loads.warmth(state).find(model, now)
        need = self._wanted(model, warm, now)
        if need is None:
            return
        pace = self._paces.setdefault((state.url, model), Pace())
        if warm is None:
            if not pace.may(now):
                return
            pace.loaded(now)
        with suppress(AttemptFailed):  # the endpoint was found down: the next round sees to it
            await self._loads.load(state, model, need)

    def _wanted(self, model: str, warm: Warm | None, now: float) -> Needs | None:
        """The load that is due, or None. What somebody else loaded is left alone: our options could load it anew."""
        last = self._loads.last(model) or Needs(path=ANY_MODEL)
        if warm is not None and (warm.until - now > REARM_S or warm.options is None):
            return None
        options = last.options if warm is None or warm.options is None else warm.options
        return Needs(path=last.path, options=options, keep_alive=KEEP, keep_alive_s=KEEP_S)


def has_share(flags: Flags) -> bool:
    """Whether any traffic at all may go to the candidate."""
    return any(flags.share_ppm(name) for name in flags.scopes)
