"""One gateway process: runtime, application and server put together, run, and taken apart in order."""

import gc
import socket
from collections.abc import Callable

from memos_llm.config import Settings
from memos_llm.core.events import ProbeEnded
from memos_llm.gateway import server
from memos_llm.gateway.build import build_app
from memos_llm.gateway.health import HealthBoard
from memos_llm.wiring import open_runtime


async def serve(
    settings: Settings, listener: socket.socket, *, seed: bool = False, ready: Callable[[], None] = lambda: None
) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT, then drain. `seed` fills a new store with the configured share.

    `ready` is called once, when requests are taken.

    Raises:
        ConfigError, StoreUnreachable: before the first request is taken.
    """
    runtime = await open_runtime(settings, kind="gateway", seed=seed, log=True)
    try:
        uvicorn_server: server.Server
        health = HealthBoard(runtime.transports, runtime.clock, draining=lambda: uvicorn_server.draining)
        runtime.bus.subscribe("health", health.on_event, ProbeEnded)
        runtime.start_probing()
        uvicorn_server = server.build(build_app(runtime, health), drain_s=settings.gateway.drain_s)
        uvicorn_server.ready = ready
        _spare_the_collector()
        await uvicorn_server.serve(sockets=[listener])
    finally:
        await runtime.aclose()


def _spare_the_collector() -> None:
    """What is loaded by now stays; walking it every few hundred requests would cost a tenth of each."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
