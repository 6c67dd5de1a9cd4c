"""The answers of a call that was taken apart, put together: a completion with a list of prompts on Ollama.

What the caller reads is one answer: choices numbered as the prompts, one id, one usage, one `[DONE]`. The finish is
told with the last prompt's only, so that nobody takes the whole for finished before.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw

from memos_llm.core.call import Frame, Usage
from memos_llm.core.errors import AttemptFailed
from memos_llm.dialects.codecs.decoder import CONTENT, END, FINISH, USAGE, WHOLE, StreamDecoder, WholeDecoder, malformed
from memos_llm.dialects.codecs.passthrough import OpenAIReader
from memos_llm.dialects.framing import Event, SseFramer
from memos_llm.dialects.jsons import decode_as

Document = dict[str, Raw]


class Together:
    """The decoder: one answer after the other, `eof` once for each.

    Args:
        caller: the model's name as the caller spelt it. count: of prompts.
        tells_usage: the caller of a stream asked for the usage event.
    """

    def __init__(self, caller: str, count: int, *, stream: bool, tells_usage: bool) -> None:
        self._sum = _Sum(caller, tells_usage)
        self._count, self._stream = count, stream
        self._at = 0
        self._current = self._next()

    @property
    def failure(self) -> AttemptFailed | None:
        return self._current.failure

    def feed(self, chunk: bytes) -> Sequence[Frame]:
        return self._current.feed(chunk)

    def eof(self) -> Sequence[Frame]:
        frames = self._current.eof()
        self._at += 1
        if self._at < self._count:
            self._current = self._next()
        return [frame for frame in frames if frame.data or frame.parts]

    def _next(self) -> StreamDecoder | WholeDecoder:
        part = _Part(self._sum, self._at, last=self._at == self._count - 1)
        return StreamDecoder(SseFramer(), part) if self._stream else WholeDecoder(part.whole)


class _Sum:
    """What the answers share."""

    def __init__(self, caller: str, tells_usage: bool) -> None:
        self.model = Raw(msgspec.json.encode(caller))
        self.tells_usage = tells_usage
        self.input_tokens = self.output_tokens = 0
        self.template: Document = {}
        self.choices: list[Document] = []
        self._id: Raw | None = None

    @property
    def usage(self) -> Usage | None:
        found = Usage(self.input_tokens, self.output_tokens)
        return found if self.input_tokens or self.output_tokens else None

    def add(self, usage: Usage | None) -> None:
        if usage is not None:
            self.input_tokens += usage.input_tokens
            self.output_tokens += usage.output_tokens

    def named(self, document: Document) -> Document:
        """With the one id, and the caller's name for the model."""
        self._id = self._id or document.get("id")
        own = {"id": self._id or Raw(b'""'), "model": self.model}
        return document | {key: value for key, value in own.items() if key in document}

    def written_usage(self) -> Raw:
        total = self.input_tokens + self.output_tokens
        counts = {"prompt_tokens": self.input_tokens, "completion_tokens": self.output_tokens, "total_tokens": total}
        return Raw(msgspec.json.encode(counts))


class _Part:
    """One of the answers; what it means is `OpenAIReader`'s to say."""

    def __init__(self, sum_: _Sum, index: int, *, last: bool) -> None:
        self._sum, self._index, self._last = sum_, index, last
        self._reader = OpenAIReader("")
        self._told = self._over = False

    def read(self, event: Event) -> Frame | None:
        if self._over:
            return None
        frame = self._reader.read(event)
        if event.data is None or frame is None:
            return frame
        if event.data == b"[DONE]":
            self._over = True
            return self._ending(event.raw, END)
        self._sum.add(frame.usage)
        return self._chunk(event.data, frame.parts)

    def finish(self) -> Frame | None:
        self._reader.finish()
        return self._ending(b"", 0)

    def whole(self, body: bytes) -> Frame:
        try:
            frame = self._reader.whole(body)
        except AttemptFailed as failure:
            if self._index or not self._last:
                failure.client_body = b""  # an answer to one of the prompts is none to the call
            raise
        self._sum.add(frame.usage)
        document = _object(body)
        self._sum.template = self._sum.template or self._sum.named(document)
        self._sum.choices += self._choices(document)
        if not self._last:
            return Frame(b"", 0)
        usage = self._sum.usage
        together = self._sum.template | {"choices": _raw(self._sum.choices), "usage": self._sum.written_usage()}
        return Frame(msgspec.json.encode(together), WHOLE | (USAGE if usage else 0), usage)

    def _chunk(self, data: bytes, parts: int) -> Frame | None:
        document = self._sum.named(_object(data))
        choices = self._choices(document)
        if not choices:
            self._sum.template = document
            return None
        if not self._sum.tells_usage:
            document.pop("usage", None)
        document["choices"] = _raw(choices)
        said = parts & (CONTENT | FINISH if self._last else CONTENT)
        return Frame(_event(document), said)

    def _ending(self, done: bytes, bits: int) -> Frame | None:
        """After the last answer, once: the usage if it was asked for, and the end."""
        if not self._last or self._told:
            return None
        self._told, usage = True, self._sum.usage
        told = b""
        if self._sum.tells_usage and self._sum.template:
            told = _event(self._sum.template | {"usage": self._sum.written_usage()})
        return Frame(told + done, bits | (USAGE if usage else 0), usage)

    def _choices(self, document: Document) -> list[Document]:
        number = Raw(b"%d" % self._index)
        return [choice | {"index": number} for choice in _objects(document.get("choices", Raw(b"[]")))]


def _event(document: Document) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def _raw(value: Any) -> Raw:
    return Raw(msgspec.json.encode(value))


def _object(data: bytes) -> Document:
    try:
        return decode_as(data, Document)
    except ValueError as error:
        raise malformed("not-json") from error


def _objects(raw: Raw) -> list[Document]:
    try:
        return decode_as(raw, list[Document]) if bytes(raw) != b"null" else []
    except ValueError as error:
        raise malformed("not-json") from error
