"""The configuration file, read again when it changes: judged whole, taken whole, or refused loudly and kept out.

A change is taken once the file has looked the same twice in a row: who writes it in place is not read half-way. Looking
and reading happen in a thread, for a disk may be slow; taking happens on the event loop, between two calls.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from memos_llm.config import Settings, Source
from memos_llm.core.errors import ConfigError
from memos_llm.core.events import Bus, ConfigChanged, ConfigRejected, InternalError, place_of
from memos_llm.core.ports import Clock

LOOK_EVERY_S = 0.5

Accept = Callable[[Settings], Settings]
"""Has the last word on a configuration that was read again: raises `ConfigError`, or returns it as it is to be used."""

RESTART: Mapping[str, Callable[[Settings], Any]] = {
    "store": lambda settings: settings.store_url,
    "gateway.host": lambda settings: settings.gateway.host,
    "gateway.port": lambda settings: settings.gateway.port,
}
"""Settings whose new value waits for a restart; the old one stays in force."""


class ConfigState(Struct, frozen=True, kw_only=True):
    """How the configuration in force relates to its file.

    Attributes:
        path: empty when there is no file, or nobody follows it.
        generation: of the policy in force; 0 is the one of the start.
        loaded_at: Unix seconds; None until a reload was taken.
        errors: why the file as it is now was refused; empty when it was not.
        waiting: keys whose new value needs a restart.
    """

    path: str = ""
    generation: int = 0
    loaded_at: float | None = None
    errors: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()

    @property
    def stale(self) -> bool:
        """Whether the file says something else than what is in force."""
        return bool(self.errors or self.waiting)


class Target(Protocol):
    """Whose configuration is replaced; a `Runtime`."""

    @property
    def settings(self) -> Settings: ...

    async def adopt(self, settings: Settings) -> int:
        """Raises: ConfigError, and nothing was changed."""
        ...


class Reloader:
    """The driver. `state` is what it knows; `clock` tells Unix seconds."""

    def __init__(self, source: Source, target: Target, bus: Bus, accept: Accept, *, clock: Clock = time.time) -> None:
        self._source, self._target, self._bus, self._accept, self._clock = source, target, bus, accept, clock
        self.state = ConfigState(path=str(source.path or ""))
        self._taken = self._seen = source.first
        self._turn = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow the file. Call once; without a file nothing happens."""
        if self._source.path is not None:
            self._watching = asyncio.create_task(self._watch(), name="memos_llm config")

    async def aclose(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def look(self) -> None:
        """One look at the file: reload it if it has changed and keeps still."""
        before, self._seen = self._seen, await asyncio.to_thread(self._source.stamp)
        if self._seen == before and self._seen != self._taken:
            await self.reload()

    async def reload(self) -> ConfigState:
        """Read the file now and take it, or say what is wrong with it."""
        async with self._turn:
            self._taken = await asyncio.to_thread(self._source.stamp)  # first: what changes from here on is seen
            try:
                settings = self._accept(await asyncio.to_thread(self._source.read))
                await self._take(settings)
            except ConfigError as error:
                self._refuse(tuple(error.message.splitlines()))
            except Exception as error:  # noqa: BLE001 - whatever a file can do to us, what is in force stays
                self._refuse((f"{self.state.path}: cannot be used ({type(error).__name__})",))
                self._bus.emit(InternalError(part="config", error=type(error).__name__, where=place_of(error)))
            return self.state

    async def _take(self, read: Settings) -> None:
        settings, waiting = settle(self._target.settings, read)
        changed = settings != self._target.settings
        generation = await self._target.adopt(settings) if changed else self.state.generation
        self.state = replace(self.state, generation=generation, loaded_at=self._clock(), errors=(), waiting=waiting)
        self._bus.emit(told(settings, self.state, changed=changed))

    def _refuse(self, errors: tuple[str, ...]) -> None:
        self.state = replace(self.state, errors=errors)
        self._bus.emit(ConfigRejected(path=self.state.path, errors=errors))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - one failed look must not be the last
                self._bus.emit(InternalError(part="config", error=type(error).__name__, where=place_of(error)))


def settle(old: Settings, new: Settings) -> tuple[Settings, tuple[str, ...]]:
    """The new configuration with the old values of what only a restart can change, and the keys of those."""
    waiting = tuple(key for key, value in RESTART.items() if value(old) != value(new))
    if not waiting:
        return new, ()
    gateway = new.gateway.model_copy(update={"host": old.gateway.host, "port": old.gateway.port})
    return new.model_copy(update={"store": old.store, "gateway": gateway}), waiting


def told(settings: Settings, state: ConfigState, *, changed: bool) -> ConfigChanged:
    """What the process is told of a configuration that is in force now."""
    specs = settings.provider_specs()
    return ConfigChanged(
        path=state.path,
        changed=changed,
        generation=state.generation,
        providers=tuple(spec.name for spec in specs),
        endpoints=tuple((spec.name, endpoint.url) for spec in specs for endpoint in spec.endpoints),
        candidate=settings.policy().candidate,
        components=settings.components(),
        models=tuple(settings.models),
        waiting=state.waiting,
    )
