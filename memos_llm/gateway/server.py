"""uvicorn with a graceful end.

SIGTERM or SIGINT: `/ready` says 503, a short predrain lets load balancers notice, the listener closes, running
streams finish within the drain time, the runtime flushes and deregisters, exit 0. A second signal cuts short.
"""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from memos_llm.gateway.connection import ClientConnection

PREDRAIN_S = 0.5
FAREWELL_S = 1.0
KEEP_ALIVE_S = 75  # between an answer and the next request


class Server(uvicorn.Server):
    """A uvicorn server that drains. `draining` turns true at the first signal; `ready` is called once it serves."""

    draining = False
    ready: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.ready is not None and self.started:
            self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.draining:
            self.force_exit = True
            self.should_exit = True
            return
        self.draining = True
        asyncio.get_event_loop().call_later(PREDRAIN_S, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What is cut, by the drain time or a second signal, still tells its client so, if that client reads."""
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would leave them running
            for task in self.server_state.tasks:
                task.cancel()
        await self._wait_for_tasks()
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        await self._wait_for_tasks()

    async def _wait_for_tasks(self) -> None:
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=FAREWELL_S)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn raises the signal again after a graceful end; ours ends with exit code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def build(app: object, *, drain_s: float) -> Server:
    """The server for an ASGI application: uvloop and httptools; no access log, the runtime writes a line a request."""
    return Server(
        uvicorn.Config(
            app,  # type: ignore[arg-type]  # our ASGI types are narrower than uvicorn's
            http=ClientConnection,
            ws="none",  # nothing here is a web socket
            loop="uvloop",
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(drain_s)),
        )
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only with it
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    listener.listen(2048)
    listener.setblocking(False)
    return listener
