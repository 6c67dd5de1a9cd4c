"""Cut a byte stream into events: server-sent events and newline-delimited JSON, whatever the chunk boundaries.

Invariant: the `raw` of all events, in order, joined, are the bytes that were fed. An event that completes leaves with
the `feed` that completed it. A failure is raised once nothing that came before it is left to deliver.
"""

import re
from typing import NamedTuple, Protocol

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome

MAX_EVENT_BYTES = 16 * 1024 * 1024  # Ollama's own client takes lines up to 8 MB

OVERSIZE = Outcome(kind=Kind.MALFORMED, code="oversize")

_RUN_BYTES = 1_024  # from this on, a run of events that say nothing is taken for one: each by itself costs µs

_LINE = re.compile(rb"\r\n|\n|\r")
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")  # atomic: a \r\n is never taken for two ends


class Event(NamedTuple):
    """One event as it came, terminator included, and its payload; None for a comment or a blank line."""

    raw: bytes
    data: bytes | None


class Framer(Protocol):
    """Sans-IO, one per stream. `failure`: what the next call raises."""

    failure: AttemptFailed | None

    def feed(self, chunk: bytes) -> list[Event]:
        """Raises:
        AttemptFailed: `malformed`, code `oversize`.
        """
        ...

    def close(self) -> list[Event]:
        """What is left after the last byte: at most one event that lacks its terminator."""
        ...


class _Buffered:
    """Bytes that are not yet an event, and the size cap.

    Args:
        max_event_bytes: the most one event may hold, terminator included.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._buffer = bytearray()
        self._cap = max_event_bytes
        self._carriage = False  # whether a \r was ever seen: without one, an event's end is found faster
        self.failure: AttemptFailed | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        if self.failure is not None:
            raise self.failure
        seen = len(self._buffer)
        self._buffer += chunk
        self._carriage = self._carriage or b"\r" in chunk
        fits = len(self._buffer) <= self._cap
        events = self._cut(seen)
        return events if fits else self._checked(events)

    def close(self) -> list[Event]:
        if self.failure is not None:
            raise self.failure
        rest, self._buffer = bytes(self._buffer), bytearray()
        return [self._event(rest)] if rest else []

    def _cut(self, seen: int) -> list[Event]:
        """Take every whole event; the first `seen` bytes are known to hold none."""
        start, events = 0, []
        if seen < _RUN_BYTES <= len(self._buffer) and (start := self._run()):
            events.append(Event(bytes(self._buffer[:start]), None))
        while (end := self._end(max(start, seen - 2))) >= 0:
            events.append(self._event(bytes(self._buffer[start:end])))
            start = end
        del self._buffer[:start]
        return events

    def _checked(self, events: list[Event]) -> list[Event]:
        fit = next((i for i, event in enumerate(events) if len(event.raw) > self._cap), len(events))
        if fit < len(events) or len(self._buffer) > self._cap:
            self.failure = AttemptFailed(OVERSIZE)
            self._buffer = bytearray()
            if fit == 0:
                raise self.failure
        return events[:fit]

    def _run(self) -> int:
        """How many bytes at the beginning are whole events that say nothing, as far as that is seen at once."""
        raise NotImplementedError

    def _end(self, start: int) -> int:
        raise NotImplementedError

    def _event(self, raw: bytes) -> Event:
        raise NotImplementedError


class SseFramer(_Buffered):
    """Server-sent events (WHATWG HTML, 9.2): any line end, comments, multi-line data; other fields are ignored."""

    def feed(self, chunk: bytes) -> list[Event]:
        if not self._buffer and _is_one_event(chunk, self._cap) and self.failure is None:
            return [Event(chunk, chunk[6:-2])]
        return super().feed(chunk)

    def _run(self) -> int:
        if self._carriage or b"data" in self._buffer:
            return 0
        at = self._buffer.rfind(b"\n\n")
        return at + 2 if at >= 0 else 0

    def _end(self, start: int) -> int:
        if not self._carriage:
            at = self._buffer.find(b"\n\n", start)
            return at + 2 if at >= 0 else -1
        match = _BLANK_LINE.search(self._buffer, start)
        return match.end() if match else -1

    def _event(self, raw: bytes) -> Event:
        if _is_one_event(raw, len(raw)):
            return Event(raw, raw[6:-2])
        lines = (line.partition(b":") for line in _LINE.split(raw))
        data = [value.removeprefix(b" ") for field, _, value in lines if field == b"data"]
        return Event(raw, b"\n".join(data) if data else None)


def _is_one_event(chunk: bytes, cap: int) -> bool:
    """Whether the chunk is exactly `data: …` and a blank line, as vLLM and Ollama write it."""
    return (
        chunk.find(b"\n") == len(chunk) - 2
        and chunk.startswith(b"data: ")
        and chunk.endswith(b"\n\n")
        and b"\r" not in chunk
        and len(chunk) <= cap
    )


class NdjsonFramer(_Buffered):
    """One JSON document a line."""

    def feed(self, chunk: bytes) -> list[Event]:
        if not self._buffer and self.failure is None and 0 <= chunk.find(b"\n") == len(chunk) - 1 < self._cap:
            return [self._event(chunk)]
        return super().feed(chunk)

    def _run(self) -> int:
        return self._buffer.rfind(b"\n") + 1 if self._buffer.isspace() else 0

    def _end(self, start: int) -> int:
        return self._buffer.find(b"\n", start) + 1 or -1

    def _event(self, raw: bytes) -> Event:
        return Event(raw, raw.strip() or None)
