"""One gateway process: runtime, application and server put together, run, and taken apart in order."""

import asyncio
import gc
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from memos_llm.config import Settings, Source
from memos_llm.core.events import ConfigChanged, Event, ProbeEnded
from memos_llm.gateway import server
from memos_llm.gateway.build import build_app
from memos_llm.gateway.health import HealthBoard
from memos_llm.gateway.workers import Terminal, Worker, divide
from memos_llm.wiring import Runtime, open_runtime
from memos_llm.wiring.reload import Accept

MAX_FILES = 65_536


async def serve(
    settings: Settings,
    listener: socket.socket,
    *,
    seed: bool = False,
    ready: Callable[[], None] = lambda: None,
    source: Source | None = None,
    accept: Accept = lambda settings: settings,
    worker: Worker | None = None,
) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT, then drain. `seed` fills a new store with the configured share.

    Args:
        ready: called once, when requests are taken.
        source: the file that is followed, at once on SIGHUP; None: none.
        accept: has the last word on what is read from it again.
        worker: set in one of several processes on the same listener.

    Raises:
        ConfigError, StoreUnreachable: before the first request is taken.
    """
    _have_files()
    workers = worker.shared.workers if worker is not None else 1
    runtime = await open_runtime(
        divide(settings, workers),
        kind="gateway",
        seed=seed,
        log=True,
        source=source,
        accept=lambda read: divide(accept(read), workers),
        shared=worker.shared if worker is not None else None,
    )
    try:
        if source is not None and await asyncio.to_thread(source.stamp) != source.first:
            await runtime.reload()  # a worker's successor: what it was told at the start may be out of force since long
        uvicorn_server: server.Server
        health = HealthBoard(runtime.transports, runtime.clock, draining=lambda: uvicorn_server.draining)
        runtime.bus.subscribe("health", health.on_event, ProbeEnded)
        runtime.start_probing()
        uvicorn_server = server.build(build_app(runtime, health), drain_s=settings.gateway.drain_s)
        uvicorn_server.ready = worker.ready if worker is not None else ready

        def drain_as_configured(event: Event) -> None:
            uvicorn_server.config.timeout_graceful_shutdown = max(1, round(runtime.settings.gateway.drain_s))

        runtime.bus.subscribe("drain", drain_as_configured, ConfigChanged)
        runtime.start_watching()
        _spare_the_collector()
        with _reload_on_hangup(runtime, uvicorn_server), _ended_with_parent(worker, uvicorn_server):
            await uvicorn_server.serve(sockets=[listener])
    finally:
        await runtime.aclose()


@contextmanager
def _reload_on_hangup(runtime: Runtime, uvicorn_server: server.Server) -> Iterator[None]:
    """SIGHUP reads the configuration; but it also comes when the terminal is closed, and then it is the end."""
    loop, running = asyncio.get_running_loop(), set[asyncio.Task[object]]()
    terminal = Terminal()

    def reload() -> None:
        if terminal.closed():
            uvicorn_server.handle_exit(signal.SIGTERM, None)
            return
        task = loop.create_task(runtime.reload(), name="memos_llm reload")
        running.add(task)
        task.add_done_callback(running.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        for task in running:
            task.cancel()


@contextmanager
def _ended_with_parent(worker: Worker | None, uvicorn_server: server.Server) -> Iterator[None]:
    """A worker whose parent is gone drains: nobody would stop or replace it."""
    if worker is None:
        yield
        return
    loop, lifeline = asyncio.get_running_loop(), worker.lifeline

    def drain() -> None:
        loop.remove_reader(lifeline)
        uvicorn_server.handle_exit(signal.SIGTERM, None)

    loop.add_reader(lifeline, drain)
    try:
        yield
    finally:
        loop.remove_reader(lifeline)


def _have_files() -> None:
    """As many open files as the system grants: every client's connection takes one, and every request one more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # where more is not granted, fewer connections are taken
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _spare_the_collector() -> None:
    """What is loaded by now stays; walking it every few hundred requests would cost a tenth of each."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
