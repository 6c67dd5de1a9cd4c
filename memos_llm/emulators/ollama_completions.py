"""`/v1/completions` of Ollama: a prompt that goes through the chat template, as a generate request.

Facts: Ollama 0.17.4, measured; 0.33 source. Log probabilities are asked for and never returned; with
include_usage every chunk carries a usage of zeros and the last one the real one; thinking becomes empty chunks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from memos_llm.emulators import golang
from memos_llm.emulators.ollama_answering import infer
from memos_llm.emulators.ollama_generation import Generation, Record
from memos_llm.emulators.ollama_requests import Asked, Refusal
from memos_llm.emulators.ollama_server import JSON_BARE, SSE, Ollama
from memos_llm.emulators.ollama_v1 import event, usage
from memos_llm.emulators.wire import Exchange, Headers

_NUMBER: golang.Field = ("float64", "float32")
_FIELDS: Mapping[str, golang.Field] = {
    "model": ("string", "string"),
    "prompt": ("string", "string"),
    "suffix": ("string", "string"),
    "stream": ("bool", "bool"),
    "stream_options": ("map", "openai.StreamOptions"),
    "max_tokens": ("int", "int"),
    "seed": ("int", "int"),
    "logprobs": ("int", "int"),
    "stop": ("any", "interface {}"),
    **dict.fromkeys(("temperature", "top_p", "frequency_penalty", "presence_penalty"), _NUMBER),
}
_NOTHING = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


async def completions(server: Ollama, exchange: Exchange) -> None:
    """`POST /v1/completions`."""
    asked, include_usage = read(exchange.request.body)
    number = server.ids.randrange(999)
    await infer(server, exchange, asked, CompletionShape(asked, number, include_usage=include_usage))


def read(body: bytes) -> tuple[Asked, bool]:
    """Read a completion request into native terms, and whether usage was asked for.

    Raises:
        Refusal: by the layer, 400: anything but one string as prompt among others.
    """
    try:
        given = golang.fields(golang.loads(body), "CompletionRequest", _FIELDS)
        options = _options(given)
    except golang.DecodeError as reason:
        raise Refusal(400, str(reason), by_layer=True) from reason
    if not 0 <= given.get("logprobs", 0) <= 20:
        raise Refusal(400, "top_logprobs must be between 0 and 20")
    prompt, suffix = given.get("prompt", ""), given.get("suffix", "")
    asked = Asked(
        given.get("model", ""),
        [{"role": "user", "content": prompt + suffix}],
        stream=given.get("stream", False),
        options=options,
        chat=False,
        suffix=suffix,
        empty=not prompt,
    )
    return asked, bool((given.get("stream_options") or {}).get("include_usage"))


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Native options; absent temperature and top_p are forced to 1, a top_p of 0 counts as absent."""
    options: dict[str, Any] = {
        "temperature": given.get("temperature", 1.0),
        "top_p": given.get("top_p") or 1.0,
        "frequency_penalty": given.get("frequency_penalty", 0.0),
        "presence_penalty": given.get("presence_penalty", 0.0),
    }
    if "seed" in given:
        options["seed"] = given["seed"]
    if "max_tokens" in given:
        options["num_predict"] = given["max_tokens"]
    stop = given.get("stop", [])
    words = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    odd = next((word for word in words if not isinstance(word, str)), None)
    if odd is not None or None in words:
        raise golang.DecodeError(f"invalid type for 'stop' field: {_go_type(odd)}")
    return {**options, "stop": words}


def _go_type(value: Any) -> str:
    if value is None:
        return "<nil>"
    return {"bool": "bool", "number": "float64", "array": "[]interface {}"}.get(
        golang.kind(value), "map[string]interface {}"
    )


class CompletionShape:
    """Text completions made of native records. number: of the id, 0 to 998."""

    stream_headers: Headers = SSE
    broken = b'data: {"id":"cmpl-\n\n'

    def __init__(self, asked: Asked, number: int, *, include_usage: bool) -> None:
        self._asked, self._id = asked, f"cmpl-{number}"
        self._include_usage = include_usage
        self._created = int(time.time())

    @property
    def whole_headers(self) -> Headers:
        """A load is answered as a stream where a stream was asked for."""
        return SSE if self._asked.stream else JSON_BARE

    def loaded(self, reason: str) -> bytes:
        """The answer to an empty prompt."""
        if not self._asked.stream:
            return self._whole("", reason, _NOTHING)
        return event(self._chunk("", reason)) + self._closing(_NOTHING)

    def record(self, record: Record) -> bytes:
        """One event; without text for a thinking token."""
        return event(self._chunk(record.content, None))

    def ending(self, generation: Generation) -> list[bytes]:
        """Finish, usage and [DONE], which leave in one chunk."""
        return [event(self._chunk("", generation.answer.finish)) + self._closing(usage(generation))]

    def error(self, text: str) -> list[bytes]:
        """A mid-stream error is swallowed: one event without model and text."""
        return [event({**self._chunk("", None), "model": ""})]

    def whole(self, records: list[Record], generation: Generation, *, finished: bool) -> bytes:
        """A whole completion; unfinished means finish_reason null and zero usage."""
        if not finished:
            return self._whole(generation.answer.text, None, _NOTHING)
        return self._whole(generation.answer.text, generation.answer.finish, usage(generation))

    def _closing(self, used: Mapping[str, int]) -> bytes:
        counted = event({**self._body([]), "usage": used}) if self._include_usage else b""
        return counted + b"data: [DONE]\n\n"

    def _chunk(self, text: str, finish: str | None) -> dict[str, Any]:
        body = self._body([{"text": text, "index": 0, "finish_reason": finish}])
        return {**body, "usage": _NOTHING} if self._include_usage else body

    def _whole(self, text: str, finish: str | None, used: Mapping[str, int]) -> bytes:
        body = self._body([{"text": text, "index": 0, "finish_reason": finish}])
        choices = body.pop("choices")  # a chunk has them before the model, a whole answer after it
        return golang.dumps({**body, "choices": choices, "usage": used}) + b"\n"

    def _body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "choices": choices,
            "model": self._asked.model_name,
            "system_fingerprint": "fp_ollama",
        }
