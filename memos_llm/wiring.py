"""Builders, in the one wrap order: settings → bus → listeners → transports → engine → live flags.

Both faces (gateway and library) and the command line open a process's parts here and nowhere else.
"""

import hashlib
import os
import random
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from memos_llm.config import Settings
from memos_llm.control.live import Live
from memos_llm.core.events import Bus
from memos_llm.core.flags import Flags, fresh
from memos_llm.core.policy import Policy
from memos_llm.core.ports import Clock, Routes, StateStore, Transport
from memos_llm.core.version import VERSION
from memos_llm.dialects.codecs import CODECS
from memos_llm.providers import open_transport
from memos_llm.providers.client import AiohttpClient
from memos_llm.providers.health import Prober
from memos_llm.router.engine import Engine
from memos_llm.store import open_store
from memos_llm.telemetry.logs import LINES, RequestLog, configure
from memos_llm.telemetry.metrics import Metrics

STATE_DIR = Path("~/.local/state/memos_llm")  # expanded when used: HOME may change


class Runtime:
    """The open parts of one process. Make it with `open_runtime`, close it once."""

    def __init__(
        self,
        settings: Settings,
        *,
        bus: Bus,
        metrics: Metrics,
        live: Live,
        transports: Mapping[str, Transport],
        prober: Prober,
        clock: Clock,
        parts: AsyncExitStack,
    ) -> None:
        self.settings, self.bus, self.metrics, self.live = settings, bus, metrics, live
        self.prober, self.clock = prober, clock
        self._routes = Routes(settings.policy(), transports)
        self._parts = parts
        self.engine = Engine(routes=self.routes, live=live, codecs=CODECS, bus=bus, clock=clock)

    def routes(self) -> Routes:
        """The policy and the transports in force."""
        return self._routes

    def policy(self) -> Policy:
        return self._routes.policy

    @property
    def transports(self) -> Mapping[str, Transport]:
        return self._routes.transports

    def start_probing(self) -> None:
        self.prober.start()

    async def aclose(self) -> None:
        """Last opened, first closed; every part is closed even when an earlier one fails."""
        await self._parts.aclose()


async def open_runtime(
    settings: Settings,
    *,
    kind: str,
    seed: bool = False,
    ephemeral: bool = False,
    log: bool = False,
    store: StateStore | None = None,
    clock: Clock = time.monotonic,
) -> Runtime:
    """Open everything that a process needs to route calls. `kind` is what `status` shows: gateway, library, cli.

    Raises:
        ConfigError: the configuration is wrong. Then, as after any other failure, nothing stays open.
    """
    bus = Bus()
    metrics = Metrics(
        version=VERSION,
        candidate=settings.candidate,
        components=settings.components(),
        models=tuple(settings.models),
    )
    bus.subscribe("metrics", metrics.on_event, *metrics.kinds)
    async with AsyncExitStack() as parts:
        if log:
            parts.callback(_open_logs(settings, bus).close)
        live = open_live(settings, bus, kind=kind, seed=seed, ephemeral=ephemeral, store=store)
        parts.push_async_callback(live.aclose)
        client = AiohttpClient()
        parts.push_async_callback(client.aclose)
        transports: dict[str, Transport] = {}
        for spec in settings.provider_specs():
            transports[spec.name] = open_transport(spec, client, bus, clock=clock)
            parts.push_async_callback(transports[spec.name].aclose)
        prober = Prober(list(transports.values()), bus)
        parts.push_async_callback(prober.aclose)
        await live.start()
        return Runtime(
            settings,
            bus=bus,
            metrics=metrics,
            live=live,
            transports=transports,
            prober=prober,
            clock=clock,
            parts=parts.pop_all(),
        )


def _open_logs(settings: Settings, bus: Bus) -> RequestLog:
    configure(settings.gateway.log_level)
    logs = RequestLog()
    logs.hear_libraries()
    bus.subscribe("log", logs.on_event, *LINES)
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
    return lambda: fresh(os.urandom(8).hex(), os.urandom(16).hex(), settings.share_ppm)


def last_good_file(settings: Settings) -> Path | None:
    """Where the processes of this host keep the last flags they saw of a store; None for one that dies with them.

    Named after the store, so that two installations on one host never take each other's flags for their own.
    """
    url = settings.store_url
    if url.startswith("memory:"):
        return None
    return STATE_DIR.expanduser() / "last_good" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.json"
