"""vLLM's answers as Ollama's records: `/v1/chat/completions` and `/v1/completions` to `/api/chat` and `/api/generate`.

Invariants: no final record (`done: true`) without a finish that was one; tool calls leave whole, their arguments
parsed; no blank line. While a call is being gathered, frames without bytes tell that content is coming.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from memos_llm.core.call import Call, Frame, Target, Usage, Wire
from memos_llm.core.decoding import FAILURES
from memos_llm.core.ports import Clock
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
from memos_llm.dialects.codecs.ollama_records import (
    Alternative,
    Ending,
    Function,
    Logprob,
    Said,
    ToolCall,
    record,
)
from memos_llm.dialects.codecs.passthrough import FAILED_FINISHES
from memos_llm.dialects.codecs.think import ThinkSplitter
from memos_llm.dialects.framing import Event
from memos_llm.dialects.jsons import decode_as, rfc3339
from memos_llm.dialects.toolcalls import Assembled, Assembler, Fragment

DONE_REASONS: Mapping[str, str] = {"length": "length"}
"""Finish reason → `done_reason`; any other that is no failure is `stop`, tool calls too."""

PREFILL_SPEEDUP = 20
"""How many prompt tokens take as long as one generated token, where nobody measured: it only splits a duration."""

MAX_TOLD_MS = 1e9
"""A back end's own time beyond it (11 days), or below zero, is none."""

_NS = 1_000_000_000


# --- what is read -----------------------------------------------------------------------------------------------------


class _Top(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Token(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[_Top] | None = None


class _Logprobs(Struct):
    """Chat's list, or the parallel arrays of completions."""

    content: list[_Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _WholeFunction(Struct):
    name: str = ""
    arguments: str | None = None


class _WholeCall(Struct):
    id: str = ""
    function: _WholeFunction = msgspec.field(default_factory=_WholeFunction)


class _Message(Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_WholeCall] | None = None


class _Delta(Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Fragment] | None = None


class _Choice(Struct):
    delta: _Delta | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    logprobs: _Logprobs | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Times(Struct):
    """vLLM's `metrics`, only with its flag for them."""

    time_to_first_token_ms: float | None = None
    generation_time_ms: float | None = None


class _Document(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    metrics: _Times | None = None
    error: Any = None


_document = msgspec.json.Decoder(_Document).decode


def _read(data: bytes) -> _Document:
    try:
        return _document(data)
    except FAILURES as error:
        raise malformed("not-json") from error


# --- time -------------------------------------------------------------------------------------------------------------


class _Watch:
    """The moments of one answer, in seconds of the monotonic clock."""

    def __init__(self, accepted_at: float, clock: Clock) -> None:
        self._clock = clock
        self._accepted_at = accepted_at
        self._sent_at = clock()
        self._first_at: float | None = None
        self._last_at = self._sent_at

    def content(self) -> None:
        self._last_at = self._clock()
        if self._first_at is None:
            self._first_at = self._last_at

    def ending(self, reason: str, usage: Usage | None, times: _Times | None) -> Ending:
        """Measured where a stream showed it, as vLLM reports it where it does, estimated otherwise."""
        now = self._clock()
        usage = usage or Usage()
        prompt_s, eval_s = self._split(now, usage)
        if times is not None:
            prompt_s = _told_s(times.time_to_first_token_ms, prompt_s)
            eval_s = _told_s(times.generation_time_ms, eval_s)
        return Ending(
            done_reason=DONE_REASONS.get(reason, "stop"),
            total_duration=_ns(now - self._accepted_at),
            load_duration=1,  # vLLM loads nothing; Ollama's clients expect the key
            prompt_eval_count=usage.input_tokens,
            prompt_eval_duration=_ns(prompt_s),
            eval_count=usage.output_tokens,
            eval_duration=_ns(eval_s),
        )

    def _split(self, now: float, usage: Usage) -> tuple[float, float]:
        if self._first_at is not None:
            return self._first_at - self._sent_at, self._last_at - self._first_at
        weight = usage.input_tokens / PREFILL_SPEEDUP
        prompt_s = (now - self._sent_at) * (weight / (weight + usage.output_tokens) if weight else 0.0)
        return prompt_s, now - self._sent_at - prompt_s


def _told_s(told_ms: float | None, measured_s: float) -> float:
    """What the back end says, if that is a time at all."""
    return measured_s if told_ms is None or not 0 <= told_ms <= MAX_TOLD_MS else told_ms / 1000


def _ns(seconds: float) -> int:
    """At least 1: clients divide by it, and Ollama leaves a 0 out."""
    return max(1, round(seconds * _NS))


# --- the reader -------------------------------------------------------------------------------------------------------


class NativeReader:
    """One answer.

    Args:
        clock: monotonic seconds, as in `Call.accepted_at`. now_ns: Unix nanoseconds, for `created_at`.
    """

    def __init__(self, call: Call, target: Target, clock: Clock, now_ns: Callable[[], int]) -> None:
        self._wire: Wire = call.wire
        self._model = call.model
        self._now_ns = now_ns
        self._watch = _Watch(call.accepted_at, clock)
        self._splitter = ThinkSplitter() if target.settings.split_think_tags else None
        self._tools = Assembler()
        self._finish: str | None = None
        self._usage: Usage | None = None
        self._times: _Times | None = None
        self._ended = False

    def read(self, event: Event) -> Frame | None:
        if event.data is None or self._ended:
            return None
        if event.data == b"[DONE]":
            return self.finish()
        document = _read(event.data)
        if document.error is not None:
            raise failed(document.error)
        self._note(document)
        return self._choice(document.choices[0]) if document.choices else None

    def finish(self) -> Frame | None:
        """The final record, once."""
        if self._ended:
            return None
        if self._finish is None:
            raise truncated()
        self._ended = True
        ending = self._watch.ending(self._finish, self._usage, self._times)
        bits = FINISH | END | (USAGE if self._usage else 0)
        return Frame(self._record(Said(), ending) + b"\n", bits, self._usage)

    def whole(self, body: bytes) -> Frame:
        """A non-streaming answer as one object."""
        document = _read(body)
        if document.error is not None:
            raise failed(document.error, "error-body")
        if not document.choices:
            raise malformed("no-choices")
        choice = document.choices[0]
        reason = _checked(choice.finish_reason, "error-body")
        if reason is None:
            raise truncated()
        self._note(document)
        data = self._record(self._whole(choice), self._watch.ending(reason, self._usage, self._times))
        return Frame(data, WHOLE | (USAGE if self._usage else 0), self._usage)

    def _note(self, document: _Document) -> None:
        self._times = document.metrics or self._times
        if document.usage is not None:
            self._usage = counted(document.usage.prompt_tokens, document.usage.completion_tokens)

    def _choice(self, choice: _Choice) -> Frame | None:
        delta = choice.delta or _Delta()
        said = self._texts(choice.text or delta.content or "", delta)
        coming = bool(said or choice.text or delta.content or delta.tool_calls)
        self._tools.add(delta.tool_calls or ())
        if logprobs := _shown(choice, empty=not coming):
            said = said or [Said()]
            said[-1].logprobs = logprobs
        if (reason := _checked(choice.finish_reason)) is not None:
            self._finish = reason
            said += self._left() + [Said(tool_calls=[call]) for call in _tool_calls(self._tools.calls())]
        if coming:
            self._watch.content()
        return self._frame(said, coming) if said or coming else None

    def _frame(self, said: list[Said], coming: bool) -> Frame:
        data = b"".join(self._record(one) + b"\n" for one in said)
        return Frame(data, CONTENT if coming or said else 0)

    def _texts(self, content: str, delta: _Delta) -> list[Said]:
        thinking = delta.reasoning or delta.reasoning_content
        said = [Said(thinking=thinking)] if thinking else []
        if content and self._splitter is not None:
            return said + [_piece(text, thought) for text, thought in self._splitter.feed(content)]
        return [*said, Said(content)] if content else said

    def _left(self) -> list[Said]:
        return [] if self._splitter is None else [_piece(text, thought) for text, thought in self._splitter.close()]

    def _whole(self, choice: _Choice) -> Said:
        message = choice.message or _Message(content=choice.text)
        delta = _Delta(reasoning=message.reasoning or message.reasoning_content)
        pieces = self._texts(message.content or "", delta) + self._left()
        calls = [Assembled(c.id, c.function.name, c.function.arguments or "") for c in message.tool_calls or ()]
        return Said(
            content="".join(piece.content for piece in pieces),
            thinking="".join(piece.thinking for piece in pieces),
            tool_calls=_tool_calls(calls),
            logprobs=_shown(choice),
        )

    def _record(self, said: Said, ending: Ending | None = None) -> bytes:
        return record(self._wire, self._model, rfc3339(self._now_ns()), said, ending)


def _checked(reason: str | None, code: str = "stream-error") -> str | None:
    if reason in FAILED_FINISHES:
        raise failed(None, code)
    return reason


def _piece(text: str, thought: bool) -> Said:
    return Said(thinking=text) if thought else Said(text)


def _tool_calls(calls: list[Assembled]) -> list[ToolCall]:
    return [
        ToolCall(id=call.id, function=Function(index, call.name, _arguments(call.arguments)))
        for index, call in enumerate(calls)
    ]


def _arguments(text: str) -> dict[str, Any]:
    try:
        return decode_as(text.encode() or b"{}", dict[str, Any])
    except ValueError as error:
        raise malformed("tool-arguments") from error


# --- logprobs ---------------------------------------------------------------------------------------------------------


def _shown(choice: _Choice, *, empty: bool = False) -> list[Logprob]:
    """Without what ended the text: vLLM counts the end token among them (and names a stop string), Ollama does not.

    `empty`: an event without text, whose tokens are all part of the end if it is one.
    """
    found = _logprobs(choice.logprobs) if choice.logprobs else []
    if choice.finish_reason != "stop":
        return found
    if empty:
        return []
    return found if isinstance(choice.stop_reason, str) else found[:-1]


def _logprobs(given: _Logprobs) -> list[Logprob]:
    if given.content is not None:
        return [
            Logprob(
                t.token,
                t.logprob,
                _bytes(t),
                [Alternative(a.token, a.logprob, _bytes(a)) for a in t.top_logprobs or ()],
            )
            for t in given.content
        ]
    tokens = given.tokens or []
    values = given.token_logprobs or [None] * len(tokens)
    tops = given.top_logprobs or [None] * len(tokens)
    return [
        Logprob(token, value or 0.0, list(token.encode()), _alternatives(top))
        for token, value, top in zip(tokens, values, tops, strict=False)
    ]


def _alternatives(top: dict[str, float] | None) -> list[Alternative]:
    return [Alternative(token, value, list(token.encode())) for token, value in (top or {}).items()]


def _bytes(token: _Token | _Top) -> list[int]:
    return list(token.token.encode()) if token.bytes is None else token.bytes
