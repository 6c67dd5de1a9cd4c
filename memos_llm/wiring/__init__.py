"""Builders, in the one wrap order: settings → bus → listeners → transports → engine → live flags.

Both faces (gateway and library) and the command line open a process's parts here and nowhere else.
"""

import asyncio
import hashlib
import os
import random
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

from memos_llm.config import Settings, Source
from memos_llm.control.live import Live
from memos_llm.core.errors import LLMError
from memos_llm.core.events import BreakerChanged, Bus
from memos_llm.core.flags import Flags, fresh
from memos_llm.core.policy import Policy
from memos_llm.core.ports import Clock, Routes, StateStore, Transport
from memos_llm.core.version import VERSION
from memos_llm.dialects.codecs import CODECS
from memos_llm.guard.watch import Guard
from memos_llm.providers import open_transport
from memos_llm.providers.health import Prober
from memos_llm.providers.http1 import Http1Client
from memos_llm.rollout.recorder import Recorder
from memos_llm.router.engine import Engine
from memos_llm.store import open_store
from memos_llm.telemetry.logs import HEARD, RequestLog, configure
from memos_llm.telemetry.metrics import Metrics
from memos_llm.telemetry.shared import Shared
from memos_llm.wiring import candidate
from memos_llm.wiring.hooks import teller
from memos_llm.wiring.reload import Accept, ConfigState, Reloader
from memos_llm.wiring.transports import InForce, Transports

CLOSED = "closed"
FIRST_LOOK_S = 2.0
CLOSE_S = 1.0  # for the store
STATE_DIR = Path("~/.local/state/memos_llm")  # expanded when used: HOME may change


class Runtime:
    """The open parts of one process. Make it with `open_runtime`, close it once.

    Attributes:
        reloader: reads the configuration again; None when there is no file to read.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        bus: Bus,
        metrics: Metrics,
        live: Live,
        transports: Transports,
        prober: Prober,
        clock: Clock,
        parts: AsyncExitStack,
        in_force: InForce,
        adopted: Callable[[Settings], None],
    ) -> None:
        self.bus, self.metrics, self.live = bus, metrics, live
        self.prober, self.clock = prober, clock
        self.reloader: Reloader | None = None
        self._settings, self._in_force = settings, in_force
        self._routes = Routes(settings.policy(), in_force)
        self._transports, self._parts, self._adopted = transports, parts, adopted
        self.engine = Engine(routes=self.routes, live=live, codecs=CODECS, bus=bus, clock=clock)
        prober.expect(self._mapped)

    @property
    def settings(self) -> Settings:
        """The configuration in force: read it when it is needed, for a reload replaces it."""
        return self._settings

    def routes(self) -> Routes:
        """The policy and the transports in force."""
        return self._routes

    def policy(self) -> Policy:
        return self._routes.policy

    @property
    def transports(self) -> Mapping[str, Transport]:
        return self._routes.transports

    def config_state(self) -> ConfigState:
        """How the configuration in force relates to its file."""
        return self.reloader.state if self.reloader is not None else ConfigState()

    def _mapped(self, provider: str) -> frozenset[str]:
        models = self.policy().catalogue.models.values()
        return frozenset(model.on[provider].name for model in models if provider in model.on)

    def start_probing(self) -> None:
        self.prober.start()

    def start_watching(self) -> None:
        """Follow the configuration file, if there is one."""
        if self.reloader is not None:
            self.reloader.start()

    async def reload(self) -> ConfigState:
        """Read the configuration file again now, changed or not."""
        return await self.reloader.reload() if self.reloader is not None else ConfigState()

    async def adopt(self, settings: Settings) -> int:
        """Let another configuration take the place of the one in force, between two calls and as a whole.

        Requests in flight end under the old one. Providers that are the same keep their transport: breakers, what was
        learnt, connections. New ones are probed before anything is sent there.

        Returns:
            The generation of the policy now in force.

        Raises:
            ConfigError: another candidate would get what shares there are, or a provider cannot be opened; and nothing
                was changed.
        """
        policy = settings.policy(self._routes.policy.generation + 1)
        in_force = self._transports.open(settings.provider_specs(), self._in_force)
        known = set(self._in_force.values())
        await _first_look([transport for transport in in_force.values() if transport not in known])
        candidate.check(self.live.current(), settings.candidate)
        self._settings, self._in_force, self._routes = settings, in_force, Routes(policy, in_force)
        self._retire(known - set(in_force.values()), settings)
        self.prober.follow(in_force.values())
        self._adopted(settings)
        return policy.generation

    def _retire(self, left: set[Transport], settings: Settings) -> None:
        """What took the place of a transport begins with closed breakers: nobody may go on believing in the old."""
        names = {transport.name for transport in left}
        for transport in left:
            transport.retire()
        for spec in settings.provider_specs():
            for endpoint in spec.endpoints if spec.name in names else ():
                self.bus.emit(BreakerChanged(provider=spec.name, endpoint=endpoint.url, state=CLOSED))

    async def aclose(self) -> None:
        """Last opened, first closed; every part is closed even when an earlier one fails."""
        await self._parts.aclose()


async def _first_look(transports: Sequence[Transport]) -> None:
    """What a new back end offers is known before it is asked for; one that is slow to say is not waited for."""
    looks = [asyncio.create_task(transport.probe(), name=f"look.{transport.name}") for transport in transports]
    if not looks:
        return
    _, late = await asyncio.wait(looks, timeout=FIRST_LOOK_S)
    for look in late:
        look.cancel()
    await asyncio.gather(*looks, return_exceptions=True)  # what fails here is told by the prober


async def open_runtime(
    settings: Settings,
    *,
    kind: str,
    seed: bool = False,
    ephemeral: bool = False,
    guarded: bool = True,
    log: bool = False,
    store: StateStore | None = None,
    clock: Clock = time.monotonic,
    source: Source | None = None,
    accept: Accept = lambda settings: settings,
    shared: Shared | None = None,
) -> Runtime:
    """Open everything that a process needs to route calls. `kind` is what `status` shows: gateway, library, cli.

    Args:
        guarded: it routes calls, so that its guard watches them; not so a command that only looks.
        source: where `settings` were read, to be read again; None: never.
        accept: has the last word on what is read again: raises `ConfigError`, or returns it as this process needs it.
        shared: where the metrics of several workers meet.

    Raises:
        ConfigError: the configuration is wrong, or another candidate would get what shares there are. Then, as after
            any other failure, nothing stays open.
    """
    bus = Bus()
    worker = shared.place if shared is not None else ""
    metrics = Metrics(
        version=VERSION,
        candidate=settings.candidate,
        components=settings.components(),
        models=tuple(settings.models),
        shared=shared,
    )
    bus.subscribe("metrics", metrics.on_event, *metrics.kinds)
    async with AsyncExitStack() as parts:
        log_from = partial(_log_from, worker=worker) if log else _log_nothing
        log_from(settings)
        if log:
            parts.callback(_open_logs(bus).close)
        store = _opened(settings, store, parts)
        if not ephemeral:
            webhooks = teller(store, bus, lambda: runtime.settings)
            parts.push_async_callback(webhooks.aclose)  # once the store has what was decided while closing
            recorder = Recorder(store, bus, components=settings.components(), models=tuple(settings.models))
            parts.push_async_callback(recorder.aclose)  # once nothing is asked any more
        live = open_live(settings, bus, kind=kind, seed=seed, ephemeral=ephemeral, store=store)
        parts.push_async_callback(live.aclose)
        client = Http1Client()
        parts.push_async_callback(client.aclose)
        transports = Transports(lambda spec: open_transport(spec, client, bus, clock=clock, flags=live.current()), bus)
        parts.push_async_callback(transports.aclose)
        in_force = transports.open(settings.provider_specs())
        prober = Prober(in_force.values(), bus)
        parts.push_async_callback(prober.aclose)
        await live.start()
        candidate.check(live.current(), settings.candidate)
        runtime = Runtime(
            settings,
            bus=bus,
            metrics=metrics,
            live=live,
            transports=transports,
            prober=prober,
            clock=clock,
            parts=parts.pop_all(),
            in_force=in_force,
            adopted=log_from,
        )
        if source is not None:
            runtime.reloader = Reloader(source, runtime, bus, accept)
            runtime._parts.push_async_callback(runtime.reloader.aclose)
        if guarded:
            guard = Guard(live, store, bus, runtime.routes, instance=live.instance_id, clock=clock)
            runtime._parts.push_async_callback(guard.aclose)
            live.dead = guard.dead
            guard.start()
        if not ephemeral:
            recorder.start()
            webhooks.start()
        return runtime


def _opened(settings: Settings, given: StateStore | None, parts: AsyncExitStack) -> StateStore:
    """The store that was given, or the configured one, which is closed after all that uses it."""
    if given is not None:
        return given
    store = open_store(settings.store_url)
    parts.push_async_callback(_close, store)
    return store


async def _close(store: StateStore) -> None:
    """One that hangs keeps no process from ending."""
    with suppress(TimeoutError, LLMError):
        async with asyncio.timeout(CLOSE_S):
            await store.aclose()


def _log_from(settings: Settings, *, worker: str) -> None:
    configure(settings.gateway.log_level, worker=worker)


def _log_nothing(settings: Settings) -> None:
    """Who embeds us decides what is logged."""


def _open_logs(bus: Bus) -> RequestLog:
    logs = RequestLog()
    logs.hear_libraries()
    bus.subscribe("log", logs.on_event, *HEARD)
    return logs


def open_live(
    settings: Settings,
    bus: Bus,
    *,
    kind: str,
    seed: bool = False,
    ephemeral: bool = False,
    store: StateStore | None = None,
) -> Live:
    """This process's flags over the configured store (not started)."""
    return Live(
        open_store(settings.store_url) if store is None else store,
        bus,
        instance_id=f"{kind}-{socket.gethostname()}-{os.getpid()}-{random.randrange(16**4):04x}",
        kind=kind,
        ephemeral=ephemeral,
        last_good=last_good_file(settings),
        seed=new_flags(settings) if seed else None,
        owns_store=store is None,
    )


def new_flags(settings: Settings) -> Callable[[], Flags]:
    """Makes the first document of a new store: random installation and salt, the configured share."""
    return lambda: fresh(os.urandom(8).hex(), os.urandom(16).hex(), settings.share_ppm, settings.candidate or "")


def last_good_file(settings: Settings) -> Path | None:
    """Where the processes of this host keep the last flags they saw of a store; None for one that dies with them.

    Named after the store, so that two installations on one host never take each other's flags for their own; not after
    its login, for a password that is changed leaves the store what it is.
    """
    url = re.sub(r"(?<=://)[^/?#]*@", "", settings.store_url)
    if url.startswith("memory:"):
        return None
    return STATE_DIR.expanduser() / "last_good" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.json"
