"""The open transports: those in force, and those whose last requests still run.

Every configuration has its own mapping of transports. A request holds the mapping that it began with until it ends, so
a mapping that nobody holds any more is one that no request needs: what only such mappings have is closed.
"""

import asyncio
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from typing import Any

from memos_llm.core.events import Bus, InternalError, place_of
from memos_llm.core.policy import ProviderSpec
from memos_llm.core.ports import Transport


class InForce(dict[str, Transport]):
    """One configuration's transports by provider. A plain dictionary cannot be watched for being let go."""

    __slots__ = ("__weakref__", "specs")

    def __init__(self, transports: Iterable[Transport], specs: Iterable[ProviderSpec]) -> None:
        super().__init__({transport.name: transport for transport in transports})
        self.specs = {spec.name: spec for spec in specs}


class Transports:
    """Opens transports, shares them between configurations, closes each once. `open_one` may raise `ConfigError`.

    All methods belong to one event loop.
    """

    def __init__(self, open_one: Callable[[ProviderSpec], Transport], bus: Bus) -> None:
        self._open_one, self._bus = open_one, bus
        self._holders: Counter[Transport] = Counter()  # by how many mappings each is held
        self._finalizers: list[weakref.finalize[Any, InForce]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def open(self, specs: Iterable[ProviderSpec], like: InForce | None = None) -> InForce:
        """Transports for these providers; those of `like` whose specification is the same are kept.

        Raises:
            ConfigError: one cannot be opened; what was opened for it goes with the mapping.
        """
        known = like.specs if like is not None else {}
        specs = tuple(specs)
        found: list[Transport] = []
        try:
            for spec in specs:
                kept = like is not None and known.get(spec.name) == spec
                found.append(like[spec.name] if like is not None and kept else self._open_one(spec))
        except BaseException:  # raised again: nothing may stay open
            self._watch(InForce(found, specs))
            raise
        return self._watch(InForce(found, specs))

    async def aclose(self) -> None:
        """Close all, requests or not; every one even when an earlier one fails."""
        if self._closed:
            return
        self._closed = True
        for finalizer in self._finalizers:
            finalizer.detach()
        async with AsyncExitStack() as parts:
            for task in self._closing:
                parts.push_async_callback(asyncio.wait, (task,))
            for transport in self._holders:
                parts.push_async_callback(transport.aclose)

    def _watch(self, mapping: InForce) -> InForce:
        transports = tuple(mapping.values())
        self._holders.update(transports)
        finalizer = weakref.finalize(mapping, _from_any_thread, asyncio.get_running_loop(), self._let_go, transports)
        finalizer.atexit = False
        self._finalizers = [one for one in self._finalizers if one.alive] + [finalizer]
        return mapping

    def _let_go(self, transports: tuple[Transport, ...]) -> None:
        if self._closed:
            return
        self._holders.subtract(transports)
        for transport in transports:
            if self._holders[transport] <= 0:
                del self._holders[transport]
                task = asyncio.create_task(self._close(transport), name=f"close.{transport.name}")
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def _close(self, transport: Transport) -> None:
        try:
            await transport.aclose()
        except Exception as error:  # noqa: BLE001 - nobody awaits this, and it is no longer in force
            self._bus.emit(
                InternalError(part=f"close.{transport.name}", error=type(error).__name__, where=place_of(error))
            )


def _from_any_thread(
    loop: asyncio.AbstractEventLoop, call: Callable[[tuple[Transport, ...]], None], transports: tuple[Transport, ...]
) -> None:
    """The collector may run in any thread."""
    with suppress(RuntimeError):  # the loop is closed: so is everything
        loop.call_soon_threadsafe(call, transports)
