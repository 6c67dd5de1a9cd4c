"""What both emulators share: life cycle, counters, timing, the fault stage before the engine, the control surface.

The control surface `/_emulator/*` lives on the same port and is no part of the emulated server: it is never
counted, recorded or hit by a fault (but a refused port refuses it too).

| route | does |
|---|---|
| `GET /_emulator/faults` | faults set now, and the choices |
| `POST /_emulator/faults` | `{"set": [...]}` replaces, `{"add": [...]}` adds; `refuse` needs an end here |
| `DELETE /_emulator/faults` | clears |
| `GET /_emulator/counters` | counters as JSON |
| `GET, POST /_emulator/timing` | `{"ttft_s": 0.1, "inter_token_s": 0.02}` |
"""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from memos_llm.emulators.faults import FAULTS, Fault, FaultBoard
from memos_llm.emulators.wire import Exchange, Listener, Received, forever

CONTROL = "/_emulator/"
_KEPT_REQUESTS = 2000


@dataclass(slots=True)
class Timing:
    """How slow the emulated engine is, in seconds; may be changed at any time."""

    ttft_s: float = 0.0
    inter_token_s: float = 0.0


@dataclass(slots=True)
class Counters:
    """What happened so far. `aborted` counts clients that left an inference before its answer was complete.

    `last_abort_monotonic` is a `time.monotonic()` stamp; `loads` and `load_aborts` are Ollama's, and so are
    those by model: started, completed, aborted.
    """

    requests: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    completed: int = 0
    aborted: int = 0
    last_abort_monotonic: float | None = None
    in_flight: int = 0
    tokens_generated: int = 0
    loads: int = 0
    load_aborts: int = 0
    loads_started: Counter[str] = field(default_factory=Counter)
    loads_completed: Counter[str] = field(default_factory=Counter)
    loads_aborted: Counter[str] = field(default_factory=Counter)
    faults_fired: Counter[str] = field(default_factory=Counter)
    count_open: Callable[[], int] = lambda: 0
    count_accepted: Callable[[], int] = lambda: 0

    @property
    def connections_open(self) -> int:
        """Connections open now."""
        return self.count_open()

    @property
    def connections_total(self) -> int:
        """Connections accepted so far."""
        return self.count_accepted()

    def snapshot(self) -> dict[str, Any]:
        """All counters as plain JSON values."""
        return {
            "requests": dict(self.requests),
            "statuses": {str(k): v for k, v in self.statuses.items()},
            "completed": self.completed,
            "aborted": self.aborted,
            "last_abort_monotonic": self.last_abort_monotonic,
            "in_flight": self.in_flight,
            "connections_open": self.connections_open,
            "connections_total": self.connections_total,
            "tokens_generated": self.tokens_generated,
            "loads": self.loads,
            "load_aborts": self.load_aborts,
            "loads_started": dict(self.loads_started),
            "loads_completed": dict(self.loads_completed),
            "loads_aborted": dict(self.loads_aborted),
            "faults_fired": dict(self.faults_fired),
        }


class Emulator(ABC):
    """One emulated server. Use as an async context manager; runs in the caller's event loop.

    Args:
        engine: "ollama" or "vllm". host, port: where to listen; port 0 picks a free one.
        ttft_s, inter_token_s: seconds before the first token and between tokens.
        faults: faults set from the start. seed: varies answers and the random choice of faults.
        server_header: value of the Server header. idle_close_s: idle connections are closed after this.
    """

    def __init__(
        self,
        engine: str,
        *,
        host: str,
        port: int,
        ttft_s: float,
        inter_token_s: float,
        faults: Iterable[str | Fault],
        seed: int,
        server_header: str | None,
        idle_close_s: float,
    ) -> None:
        self.engine = engine
        self.seed = seed
        self.timing = Timing(ttft_s, inter_token_s)
        self.requests: list[Received] = []
        self.faults = FaultBoard(engine, seed=seed, clock=time.monotonic)
        self._host, self._port = host, port
        self._listener = Listener(
            self._serve,
            server_header=server_header,
            idle_close_s=idle_close_s,
            resets_new_connection=self._resets_new_connection,
            on_gone=self._client_gone,
        )
        self.counters = Counters(
            count_open=lambda: self._listener.open_connections,
            count_accepted=lambda: self._listener.accepted,
            faults_fired=self.faults.fired,
        )
        self.faults.add(*faults)
        self._fault_timer: asyncio.TimerHandle | None = None
        self._reopening: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        host = f"[{self._listener.host}]" if ":" in self._listener.host else self._listener.host
        return f"http://{host}:{self._listener.port}"

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._listener.port

    @property
    def bound_to_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self._listener.host.startswith("127.") or self._listener.host == "::1"

    @property
    def listening(self) -> bool:
        """Whether it accepts connections now (not while `refuse` closes the port)."""
        return self._listener.listening

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen."""
        await self._listener.start(self._host, self._port)
        self.faults.changed = self._faults_changed
        self._faults_changed()

    async def stop(self) -> None:
        """Stop as the server does on SIGTERM: running answers are cut inside their body."""
        self.faults.changed = lambda: None
        if self._fault_timer is not None:
            self._fault_timer.cancel()
        if self._reopening is not None:
            await self._reopening
        await self._listener.stop()

    @abstractmethod
    def is_data_route(self, path: str) -> bool:
        """Whether a path does inference; faults without `all` hit only these."""

    @abstractmethod
    async def dispatch(self, exchange: Exchange) -> None:
        """Answer a request."""

    @abstractmethod
    async def before(self, exchange: Exchange, fault: Fault) -> None:
        """Show a fault of stage "before" that has a wording of this server's own: status, model_missing, queue_full."""

    @abstractmethod
    def stream_headers(self, path: str) -> tuple[tuple[str, str], ...]:
        """Headers of a streamed 200 on this path."""

    @abstractmethod
    def faults_changed(self) -> None:
        """Faults that act on the whole engine may have been set or cleared."""

    # -- requests

    async def _serve(self, exchange: Exchange) -> None:
        request = exchange.request
        if request.path.startswith(CONTROL):
            await _control(self, exchange)
            return
        self._record(request)
        self.counters.in_flight += 1
        try:
            await self._faulty(exchange)
            self.counters.completed += 1
        finally:
            self.counters.in_flight -= 1
            if exchange.status is not None:
                self.counters.statuses[exchange.status] += 1

    async def _faulty(self, exchange: Exchange) -> None:
        data_route = self.is_data_route(exchange.request.path)
        fault = self.faults.take("before", data_route=data_route)
        if fault is None:
            await self.dispatch(exchange)
        elif fault.name in ("slow_first_byte", "drift"):
            await asyncio.sleep(fault.seconds)
            await self.dispatch(exchange)
        elif fault.name == "garbage":
            await exchange.garbage()
        elif fault.name in ("hang", "hang_after_headers"):
            if fault.name == "hang_after_headers":
                await exchange.start(200, self.stream_headers(exchange.request.path))
            await forever()
        else:
            await self.before(exchange, fault)

    def _record(self, request: Received) -> None:
        self.counters.requests[request.path] += 1
        self.requests.append(request)
        del self.requests[:-_KEPT_REQUESTS]

    def _client_gone(self, request: Received) -> None:
        if self.is_data_route(request.path):  # a probe that gives up is nobody's request
            self.counters.aborted += 1
            self.counters.last_abort_monotonic = time.monotonic()

    # -- faults that act on the listener

    def _resets_new_connection(self) -> bool:
        return self.faults.take("connection") is not None

    async def _reopen(self) -> None:
        if not self.faults.refusing():
            await self._listener.listen()
        if self.faults.refusing():  # set again while the socket was being opened
            self._listener.refuse()

    def _faults_changed(self) -> None:
        if self.faults.refusing():
            self._listener.refuse()
        elif self._reopening is None or self._reopening.done():
            self._reopening = asyncio.ensure_future(self._reopen())
        self.faults_changed()
        if self._fault_timer is not None:
            self._fault_timer.cancel()
        delay = self.faults.next_change_s()
        if delay is not None:
            self._fault_timer = asyncio.get_running_loop().call_later(delay + 1e-3, self._faults_changed)


def json_bytes(value: Any) -> bytes:
    """Compact UTF-8 JSON, as Starlette's JSONResponse writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


# -- control surface


async def _control(emulator: Emulator, exchange: Exchange) -> None:
    request = exchange.request
    action = _ACTIONS.get((request.method, request.path.removeprefix(CONTROL)))
    if action is None:
        await _answer(exchange, 404, {"error": f"control routes: {', '.join(f'{m} {p}' for m, p in _ACTIONS)}"})
        return
    try:
        given = json.loads(request.body) if request.body.strip() else {}
        await _answer(exchange, 200, action(emulator, given))
    except (ValueError, TypeError, AttributeError) as reason:
        await _answer(exchange, 400, {"error": str(reason)})


async def _answer(exchange: Exchange, status: int, value: Any) -> None:
    await exchange.reply(status, json_bytes(value), [("content-type", "application/json")])


def _show_faults(emulator: Emulator, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"faults": [str(fault) for fault in emulator.faults.current()], "choices": dict(FAULTS[emulator.engine])}


def _post_faults(emulator: Emulator, given: Mapping[str, Any]) -> dict[str, Any]:
    faults = [Fault.parse(spec) for key in ("set", "add") for spec in given.get(key, [])]
    if any(fault.name == "refuse" and fault.for_s is None and fault.every_s is None for fault in faults):
        raise ValueError("refuse closes this port too: give it a for_s or an every_s")
    if "set" in given:
        emulator.faults.set(*given["set"])
    emulator.faults.add(*given.get("add", []))
    return _show_faults(emulator, given)


def _clear_faults(emulator: Emulator, given: Mapping[str, Any]) -> dict[str, Any]:
    emulator.faults.clear()
    return _show_faults(emulator, given)


def _show_counters(emulator: Emulator, given: Mapping[str, Any]) -> dict[str, Any]:
    return emulator.counters.snapshot()


def _show_timing(emulator: Emulator, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"ttft_s": emulator.timing.ttft_s, "inter_token_s": emulator.timing.inter_token_s}


def _post_timing(emulator: Emulator, given: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(given) - {"ttft_s", "inter_token_s"}
    if unknown:
        raise ValueError(f"unknown timing {sorted(unknown)}; choose from: ttft_s, inter_token_s")
    emulator.timing.ttft_s = float(given.get("ttft_s", emulator.timing.ttft_s))
    emulator.timing.inter_token_s = float(given.get("inter_token_s", emulator.timing.inter_token_s))
    return _show_timing(emulator, given)


_ACTIONS: Mapping[tuple[str, str], Callable[[Emulator, Mapping[str, Any]], dict[str, Any]]] = {
    ("GET", "faults"): _show_faults,
    ("POST", "faults"): _post_faults,
    ("DELETE", "faults"): _clear_faults,
    ("GET", "counters"): _show_counters,
    ("GET", "timing"): _show_timing,
    ("POST", "timing"): _post_timing,
}
