"""The two drivers behind every `Decoder`: for a stream, and for a whole answer.

A `Reader` knows one wire; the drivers know when its findings may leave. What came before a failure is delivered first:
the failure waits for the next call, and is known before it.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from memos_llm.core.call import Frame, Part, Usage
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import NO_FINISH, Kind, Outcome
from memos_llm.dialects.framing import OVERSIZE, Event, Framer

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_PREAMBLE_BYTES = 262_144  # of whole events: a back end that sends this much and no content is not answering
MAX_PREAMBLE_EVENTS = 4_096  # and this many, however small
MAX_TOKENS = 10**9  # a count beyond it, or below zero, counted nothing

CONTENT, FINISH, USAGE, END = map(int, (Part.CONTENT, Part.FINISH, Part.USAGE, Part.END))

WHOLE = CONTENT | FINISH | END


class Reader(Protocol):
    """What one wire's events mean, for one answer."""

    def read(self, event: Event) -> Frame | None:
        """Raises:
        AttemptFailed: the event is an error, or none of this wire.
        """
        ...

    def finish(self) -> Frame | None:
        """At the end of the bytes.

        Raises:
            AttemptFailed: `truncated`.
        """
        ...


class StreamDecoder:
    """Frames of a stream, as soon as their bytes are there; the frames of one `feed` are joined.

    Nothing follows the end: what a back end says behind it is left out.
    """

    def __init__(self, framer: Framer, reader: Reader) -> None:
        self._framer = framer
        self._reader = reader
        self._failure: AttemptFailed | None = None  # of the reader's
        self._preamble: int | None = 0  # bytes of it, whether they make a frame or not; None once it is over
        self._ended = False

    @property
    def failure(self) -> AttemptFailed | None:
        return self._failure or self._framer.failure

    def feed(self, chunk: bytes) -> Sequence[Frame]:
        if self._failure is not None:
            raise self._failure
        frames: list[Frame] = []
        try:
            for event in self._framer.feed(chunk):
                if self._ended and event.raw.strip():  # else it may be the end's own line end, cut in two
                    continue
                frame = self._reader.read(event)
                if self._preamble is not None:
                    self._preamble = _still_preamble(self._preamble, event, frame)
                if frame is not None:
                    frames.append(frame)
                    self._ended = self._ended or bool(frame.parts & END)
        except AttemptFailed as failure:
            self._failure = failure
            if not frames:
                raise
        return frames if len(frames) < 2 else [Frame.joined(frames)]

    def eof(self) -> Sequence[Frame]:
        if self._failure is not None:
            raise self._failure
        rest = [event for event in self._framer.close() if not (self._ended and event.raw.strip())]
        frames = [self._rest(event) for event in rest]
        frames.append(self._reader.finish())
        return [frame for frame in frames if frame is not None]

    def _rest(self, event: Event) -> Frame | None:
        """An event without its terminator counts if it is whole, otherwise the stream was cut."""
        try:
            return self._reader.read(event)
        except AttemptFailed as failure:
            if failure.outcome.kind is Kind.MALFORMED:
                raise truncated() from failure
            raise


def _still_preamble(so_far: int, event: Event, frame: Frame | None) -> int | None:
    if frame is not None and frame.parts & (CONTENT | FINISH):
        return None
    size = so_far + max(len(event.raw), MAX_PREAMBLE_BYTES // MAX_PREAMBLE_EVENTS)
    if size > MAX_PREAMBLE_BYTES:
        raise malformed("endless-preamble")
    return size


class WholeDecoder:
    """A non-streaming answer: gathered, then read at once."""

    failure: AttemptFailed | None = None

    def __init__(self, read: Callable[[bytes], Frame], max_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._read = read
        self._buffer = bytearray()
        self._cap = max_bytes

    def feed(self, chunk: bytes) -> Sequence[Frame]:
        if len(self._buffer) + len(chunk) > self._cap:
            raise AttemptFailed(OVERSIZE)
        self._buffer += chunk
        return ()

    def eof(self) -> Sequence[Frame]:
        return (self._read(bytes(self._buffer)),)


# --- how an answer can fail -------------------------------------------------------------------------------------------


def malformed(code: str) -> AttemptFailed:
    return AttemptFailed(Outcome(kind=Kind.MALFORMED, code=code))


def truncated(body: bytes = b"") -> AttemptFailed:
    """No terminal marker; `body` is the back end's answer, if the caller may have it as it is."""
    return AttemptFailed(Outcome(kind=Kind.TRUNCATED, code=NO_FINISH), client_body=body)


def failed(error: object, code: str = "stream-error") -> AttemptFailed:
    """The back end itself said that it failed, under status 200."""
    return AttemptFailed(Outcome(kind=Kind.SERVER, status=200, code=code), client_text=error_text(error))


def error_text(error: object) -> str:
    """The words of an error in any of its spellings: a string, or an object with a message."""
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def counted(input_tokens: float | None, output_tokens: float | None) -> Usage | None:
    """None when the back end reported nothing (a count of zero is left out by Ollama), or nothing that can be."""
    given, made = input_tokens or 0, output_tokens or 0
    if not (0 <= given <= MAX_TOKENS and 0 <= made <= MAX_TOKENS and (given or made)):
        return None
    return Usage(int(given), int(made))
