"""One structured line per finished request and per notable event, written by a thread of its own.

`RequestLog.on_event` appends to a bounded queue and returns; a full queue drops and counts. Lines hold ids, names and
numbers: what a back end or a caller wrote in free text never gets here. Programs call `configure`; importing this
configures nothing, so in process a host application's structlog decides where lines go.
"""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

from memos_llm.core.events import Event, GuardSaid, ProbeEnded
from memos_llm.core.ports import Clock
from memos_llm.core.verdicts import Sum, Trigger
from memos_llm.telemetry.lines import HEARD, LINES, Level, LibraryWarned, VerdictChanged, standing

__all__ = ["HEARD", "LINES", "LibraryWarned", "RequestLog", "configure", "say"]

LEVELS: Mapping[Level, int] = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

CAPACITY = 10_000
LINGER_S = 0.05  # lines are written in batches: waking a thread per request would cost more than the line
MOST_VERDICTS = 50  # lines for what the guard said at one moment
WHOLE_BYTES = 4096  # PIPE_BUF on Linux: no other writer comes between the bytes of such a write (pipe(7))


def configure(level: str = "INFO", stream: TextIO | None = None, *, worker: str = "") -> None:
    """Set structlog up for one of our programs: JSON lines on stderr, from `level` (DEBUG … ERROR) upwards.

    May be called again, with another level. `worker` tells the lines of several processes apart.
    """

    def place(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
        return {**line, "worker": worker}

    structlog.configure(
        processors=[_timestamp, structlog.processors.add_log_level, *([place] if worker else []), _json],
        wrapper_class=structlog.make_filtering_bound_logger(level.lower()),
        logger_factory=_Batch(stream or sys.stderr, level, worker),
        cache_logger_on_first_use=False,
    )


def say(level: Level, event: str, fields: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """Write one line now, in this thread: for a program that has no bus and may have no thread."""
    line = _timestamp(None, level, {"level": level, "event": event, **fields})
    out = _Batch(stream or sys.stderr)
    getattr(out, level)(_json(None, level, line))
    out.deliver()


class _Batch:
    """Where lines go: gathered, and written with one call a batch. It is its own logger factory."""

    def __init__(self, stream: TextIO, level: str = "INFO", worker: str = "") -> None:
        self._stream, self._worker = stream, {"worker": worker} if worker else {}
        self._takes = {one for one, number in LEVELS.items() if number >= logging.getLevelName(level.upper())}
        self._lines: list[str] = []

    def __call__(self, *names: str) -> "_Batch":
        return self

    def add(self, level: Level, name: str, at: float, fields: Mapping[str, Any]) -> None:
        """What the processors of `configure` make of a line, for half of what structlog itself costs a request."""
        if level in self._takes:
            told = {"time": _time(at), **fields, "event": name, "level": level, **self._worker}
            self._lines.append(msgspec.json.encode(told).decode())

    def _gather(self, line: str) -> None:
        self._lines.append(line)

    debug = info = warning = error = critical = _gather

    def deliver(self) -> int:
        """Write what was gathered; how many lines were lost because it could not be written."""
        lines, self._lines = self._lines, []
        lost = 0
        for piece in _pieces(lines):
            try:
                self._stream.write("".join(piece))
                self._stream.flush()
            except (OSError, ValueError):  # a closed stderr must not end the thread
                lost += len(piece)
        return lost


def _pieces(lines: list[str]) -> Iterator[list[str]]:
    """As many lines at a time as a pipe takes whole: other workers write to the same one."""
    piece: list[str] = []
    size = 0
    for line in lines:
        length = len(line.encode()) + 1
        if piece and size + length > WHOLE_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(f"{line}\n")
        size += length
    if piece:
        yield piece


def _timestamp(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    """When it happened (`at`, Unix seconds), not when it is written."""
    return {"time": _time(line.pop("at", None) or time.time()), **line}


def _time(unix_s: float) -> str:
    milliseconds = int(unix_s * 1000)
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(maxsize=2)
def _second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _json(logger: WrappedLogger, method: str, line: EventDict) -> str:
    """msgspec in place of structlog's JSONRenderer: a fifth of its time, for every request."""
    return msgspec.json.encode(line).decode()


class _Libraries(logging.Handler):
    """Passes libraries' warnings on without their arguments and tracebacks, which may quote a prompt.

    uvicorn's own words are constants; other libraries format before they log, so theirs stay out.
    """

    def __init__(self, tell: Callable[[Event], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0] if record.exc_info else None
        self._tell(
            LibraryWarned(
                logger=record.name,
                where=f"{record.module}:{record.lineno}",
                error=error.__name__ if error else "",
                text=str(record.msg).strip() if record.name.startswith("uvicorn") else "",
            )
        )


class RequestLog:
    """The listener, its queue and its thread. The thread starts with the first event and is a daemon.

    Args:
        capacity: events that may wait; the next ones are dropped.

    Attributes:
        dropped: events lost because the queue was full, or because writing them failed.
    """

    def __init__(self, *, capacity: int = CAPACITY, clock: Clock = time.time) -> None:
        self.dropped = 0
        self._capacity, self._clock = capacity, clock
        self._queue: deque[tuple[float, Event | threading.Event]] = deque()  # the latter: a `flush` that waits
        self._up: dict[tuple[str, str], bool] = {}
        self._standing: dict[tuple[Trigger, Sum], str] = {}  # what is told of, and how it stands
        self._reported = 0
        self._wake, self._hurry = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._libraries = _Libraries(self.on_event)

    def hear_libraries(self) -> None:
        """Until `close`, what libraries log in this process becomes lines of ours; Python would print it as it is."""
        logging.getLogger().addHandler(self._libraries)

    def on_event(self, event: Event) -> None:
        """The listener: never waits, never writes."""
        if isinstance(event, GuardSaid):
            for changed in self._changed(event):
                self.on_event(changed)
            return
        if type(event) not in LINES or (isinstance(event, ProbeEnded) and not self._is_change(event)):
            return
        if len(self._queue) >= self._capacity or self._closed:
            self.dropped += 1
            return
        self._queue.append((self._clock(), event))
        if not self._wake.is_set():
            self._wake_writer()

    def flush(self, timeout_s: float = 1.0) -> bool:
        """Wait until what is queued now has been written. False when the output was blocked for `timeout_s`."""
        if self._thread is None or self._closed:
            return True
        written = threading.Event()
        self._queue.append((0.0, written))
        self._hurry.set()
        self._wake_writer()
        return written.wait(timeout_s)

    def close(self, timeout_s: float = 1.0) -> None:
        """Take nothing more, write what is queued, end the thread. Harmless when repeated."""
        logging.getLogger().removeHandler(self._libraries)
        self._closed = True
        self._hurry.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _is_change(self, event: ProbeEnded) -> bool:
        endpoint = (event.provider, event.endpoint)
        if self._up.get(endpoint) is event.up:
            return False
        self._up[endpoint] = event.up
        return True

    def _changed(self, event: GuardSaid) -> list[VerdictChanged]:
        """What stands otherwise than before."""
        before = self._standing
        now = {(said.trigger, said.sum): said for said in event.evaluations}
        stands = {rule: standing(said, before.get(rule, "")) for rule, said in now.items()}
        self._standing = {rule: how for rule, how in stands.items() if how}
        changed = [now[rule] for rule, how in stands.items() if how != before.get(rule, "")]
        return [VerdictChanged(evaluation=said) for said in changed[:MOST_VERDICTS]]

    def _wake_writer(self) -> None:
        if self._thread is None or not self._thread.is_alive():  # also in a forked child, whose thread is gone
            self._thread = threading.Thread(target=self._run, name="memos-llm-logs", daemon=True)
            self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._hurry.wait(LINGER_S)
            self._hurry.clear()
            self._wake.clear()  # before draining: what is queued from here on wakes this thread again
            self._drain()
        self._drain()

    def _drain(self) -> None:
        log = structlog.get_logger("memos_llm").bind()  # once per batch: the lazy proxy binds anew at each call
        for _ in range(len(self._queue)):
            at, queued = self._queue.popleft()
            if isinstance(queued, threading.Event):
                self._deliver(log)
                queued.set()
                continue
            level, name, fields = LINES[type(queued)](queued)
            self._write(log, level, name, at, _told(fields))
        if self.dropped > self._reported:
            self._reported = self.dropped
            self._write(log, "warning", "log-lines-dropped", self._clock(), {"total": self.dropped})
        self._deliver(log)

    def _deliver(self, log: Any) -> None:
        if isinstance(log._logger, _Batch):  # a host's own configuration writes each line itself
            self.dropped += log._logger.deliver()

    def _write(self, log: Any, level: Level, name: str, at: float, fields: dict[str, Any]) -> None:
        try:
            if isinstance(log._logger, _Batch):
                log._logger.add(level, name, at, fields)
            else:
                getattr(log, level)(name, at=at, **fields)
        except Exception:  # noqa: BLE001 - a closed stderr must not end the thread
            self.dropped += 1


def _told(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
