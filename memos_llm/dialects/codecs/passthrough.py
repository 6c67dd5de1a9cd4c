"""Read answers that the client gets as they are: which part of it an event is, and whether it is whole.

Bytes pass untouched, with two exceptions: the model's name where the caller spelt it otherwise, and the usage event
that only we asked for.
"""

from typing import Any

import msgspec
from msgspec import Raw, Struct, field

from memos_llm.core.call import Frame
from memos_llm.core.decoding import FAILURES
from memos_llm.dialects.codecs.decoder import (
    CONTENT,
    END,
    FINISH,
    USAGE,
    WHOLE,
    counted,
    failed,
    malformed,
    truncated,
)
from memos_llm.dialects.codecs.echo import ModelEcho
from memos_llm.dialects.framing import Event
from memos_llm.dialects.jsons import decode_as

FAILED_FINISHES = frozenset({"abort", "error"})  # vLLM 0.32, measured: what it says when it gave up


class _Delta(Struct):
    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None
    refusal: Any = None


class _Choice(Struct):
    index: int = 0
    delta: _Delta | None = None
    text: Any = None
    finish_reason: str | None = None


class _Usage(Struct):
    prompt_tokens: float | None = None
    completion_tokens: float | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    model: str | None = None


class _Message(Struct):
    content: Any = None
    thinking: Any = None
    tool_calls: Any = None


class _Record(Struct):
    done: bool = False
    message: _Message | None = None
    response: Any = None
    thinking: Any = None
    error: Any = None
    model: str | None = None
    prompt_eval_count: float | None = None
    eval_count: float | None = None
    debug_info: Any = field(default=None, name="_debug_info")


_chunk = msgspec.json.Decoder(_Chunk).decode
_record = msgspec.json.Decoder(_Record).decode


class OpenAIReader:
    """Events of `openai.chat` and `openai.completion`.

    Args:
        caller: the model's name as the caller spelt it.
        choices: how many answers were asked for; each must finish.
        hides_usage: the caller did not ask for the usage event.
    """

    def __init__(self, caller: str, *, choices: int = 1, hides_usage: bool = False) -> None:
        self._caller = caller
        self._echo = ModelEcho(caller)
        self._expected = choices
        self._hides_usage = hides_usage
        self._finished: set[int] = set()

    def read(self, event: Event) -> Frame | None:
        data = event.data
        if data is None:
            return Frame(event.raw, 0)
        if data == b"[DONE]":
            self.finish()
            return Frame(event.raw, END)
        try:
            chunk = _chunk(data)
        except FAILURES as error:
            raise malformed("not-json") from error
        return self._frame(event.raw, chunk)

    def finish(self) -> None:
        if len(self._finished) < self._expected:
            raise truncated()

    def whole(self, body: bytes) -> Frame:
        """A non-streaming answer."""
        try:
            answer = _chunk(body)
        except FAILURES as error:
            raise malformed("not-json") from error
        if answer.error is not None:
            raise failed(answer.error, "error-body")
        if not answer.choices:
            raise malformed("no-choices")
        for choice in answer.choices:
            _check_finish(choice, body)
        usage = answer.usage and counted(answer.usage.prompt_tokens, answer.usage.completion_tokens)
        return Frame(self._named(body, answer.model), WHOLE | (USAGE if usage else 0), usage or None)

    def _frame(self, raw: bytes, chunk: _Chunk) -> Frame:
        if chunk.error is not None or chunk.model == "":  # Ollama's /v1 swallows an error into a nameless chunk
            raise failed(chunk.error)
        bits, usage = 0, None
        for choice in chunk.choices or ():
            bits |= self._bits(choice)
        if chunk.usage is not None:
            usage = counted(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
            bits |= USAGE if usage else 0
            if self._hides_usage and not chunk.choices:
                return Frame(b"", bits, usage)
            if self._hides_usage and usage is None:  # Ollama's /v1/completions has a usage of zeros on every event
                raw = _without_usage(raw)
        return Frame(self._named(raw, chunk.model), bits, usage)

    def _bits(self, choice: _Choice) -> int:
        delta = choice.delta
        thought = (
            choice.text == "" and choice.finish_reason is None
        )  # how Ollama tells a token of it on /v1/completions
        bits = CONTENT if choice.text or thought or (delta is not None and _has_content(delta)) else 0
        if choice.finish_reason is not None:
            if choice.finish_reason in FAILED_FINISHES:
                raise failed(None)
            self._finished.add(choice.index)
            bits |= FINISH
        return bits

    def _named(self, raw: bytes, served: str | None) -> bytes:
        return raw if not served or served == self._caller else self._echo.rewrite(raw, served)


def _has_content(delta: _Delta) -> bool:
    return bool(delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls or delta.refusal)


def _without_usage(raw: bytes) -> bytes:
    """The same event without its `usage`; as it is where it is not written on one line."""
    start, end = raw.find(b"{"), raw.rfind(b"}") + 1
    try:
        document = decode_as(raw[start:end], dict[str, Raw])
    except ValueError:
        return raw
    document.pop("usage", None)
    return raw[:start] + msgspec.json.encode(document) + raw[end:]


def _check_finish(choice: _Choice, body: bytes) -> None:
    if choice.finish_reason is None:
        raise truncated(body)
    if choice.finish_reason in FAILED_FINISHES:
        raise failed(None, "error-body")


class OllamaReader:
    """Records of `ollama.chat` and `ollama.generate`; `caller` as above."""

    def __init__(self, caller: str) -> None:
        self._caller = caller
        self._echo = ModelEcho(caller)
        self._done = False

    def read(self, event: Event) -> Frame | None:
        if event.data is None:
            return Frame(event.raw, 0)
        record = _decoded(event.data)
        if record.error is not None:
            raise failed(record.error)
        self._done = self._done or record.done
        return self._frame(event.raw, record, CONTENT if _says(record) else 0)

    def finish(self) -> None:
        if not self._done:
            raise truncated()

    def whole(self, body: bytes) -> Frame:
        """A non-streaming answer; load, unload and rendered prompts (which Ollama never calls done) included."""
        record = _decoded(body)
        if record.error is not None:
            raise failed(record.error, "error-body")
        if not record.done and record.debug_info is None:
            raise truncated(body)
        return self._frame(body, record, WHOLE)

    def _frame(self, raw: bytes, record: _Record, bits: int) -> Frame:
        if record.model and record.model != self._caller:
            raw = self._echo.rewrite(raw, record.model)
        if not record.done:
            return Frame(raw, bits)
        usage = counted(record.prompt_eval_count, record.eval_count)
        return Frame(raw, bits | FINISH | END | (USAGE if usage else 0), usage)


def _decoded(data: bytes) -> _Record:
    try:
        return _record(data)
    except FAILURES as error:
        raise malformed("not-json") from error


def _says(record: _Record) -> bool:
    said = record.message or record
    return bool(
        record.response or said.thinking or (record.message and (record.message.content or record.message.tool_calls))
    )
