"""The native records of `/api/chat` and `/api/generate`, as bytes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from memos_llm.emulators import answers, golang
from memos_llm.emulators.ollama_generation import Generation, Record
from memos_llm.emulators.ollama_requests import Asked
from memos_llm.emulators.ollama_server import JSON, NDJSON


class NativeShape:
    """Native records of `/api/chat` and `/api/generate`."""

    stream_headers = NDJSON
    whole_headers = JSON
    broken = b'{"model":"broken","created_at":\n'

    def __init__(self, asked: Asked, report_single_eval: bool) -> None:
        self._asked = asked
        self._report_single_eval = report_single_eval

    def loaded(self, reason: str) -> bytes:
        """The answer to a load or unload."""
        return golang.dumps({**self._start(), **self._said(Record()), "done": True, "done_reason": reason})

    def record(self, record: Record) -> bytes:
        """One line of a stream."""
        body = {**self._start(), **self._said(record), "done": False}
        if record.logprobs:
            body["logprobs"] = list(record.logprobs)
        return golang.dumps(body) + b"\n"

    def ending(self, generation: Generation) -> list[bytes]:
        """The final record."""
        last = Record(tool_calls=generation.calls if generation.calls_at_the_end else ())
        return [golang.dumps({**self._start(), **self._said(last), **self._final(generation)}) + b"\n"]

    def error(self, text: str) -> list[bytes]:
        """The error line."""
        return [golang.dumps({"error": text}) + b"\n"]

    def whole(self, records: list[Record], generation: Generation, *, finished: bool) -> bytes:
        """The one object of a non-streamed answer."""
        joined = merged(records, generation)
        body = {**self._start(), **self._said(joined)}
        body |= self._final(generation) if finished else {"done": False}
        if joined.logprobs:
            body["logprobs"] = list(joined.logprobs)
        return golang.dumps(body)

    def _start(self) -> dict[str, Any]:
        return {"model": self._asked.model_name, "created_at": golang.timestamp(time.time_ns())}

    def _said(self, record: Record) -> dict[str, Any]:
        extra: dict[str, Any] = {"thinking": record.thinking} if record.thinking else {}
        if not self._asked.chat:
            return {"response": record.content, **extra}
        if record.tool_calls:
            extra["tool_calls"] = list(record.tool_calls)
        return {"message": {"role": "assistant", "content": record.content, **extra}}

    def _final(self, generation: Generation) -> dict[str, Any]:
        answer = generation.answer
        final: dict[str, Any] = {"done": True, "done_reason": answer.finish}
        if not self._asked.chat and not self._asked.raw:
            final["context"] = _context(generation)
        return final | generation.clock.durations(
            generation.prompt_tokens, answer.completion_tokens, single_eval=self._report_single_eval
        )


def merged(records: Iterable[Record], generation: Generation) -> Record:
    """All records as one."""
    kept = list(records)
    return Record(
        "".join(r.content for r in kept),
        "".join(r.thinking for r in kept),
        generation.calls,
        tuple(one for r in kept for one in r.logprobs),
    )


def _context(generation: Generation) -> list[int]:
    texts = [message["content"] for message in generation.asked.messages] + [generation.answer.text]
    return [answers.token_id(piece) for text in texts for piece in answers.tokens(text)]
