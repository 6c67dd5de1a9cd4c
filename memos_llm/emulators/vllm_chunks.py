"""The JSON vLLM writes: chunks, completions, usage, errors, with the explicit nulls of the real one.

Facts: serialised with vLLM 0.33's models; vLLM 0.32.0, measured, where it differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from memos_llm.emulators import answers
from memos_llm.emulators.answers import Answer
from memos_llm.emulators.emulator import json_bytes
from memos_llm.emulators.vllm_versions import Release

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Frame:
    """What every object of one response shares. parser: a reasoning parser is set."""

    id: str
    created: int
    model: str
    release: Release
    parser: bool
    prompt_tokens: int

    @property
    def modern(self) -> bool:
        """Whether it has the nulls that 0.33 added."""
        return self.release.has("nulls of 0.33")

    @property
    def prompt_text(self) -> dict[str, None]:
        """A null that 0.32 added."""
        return {"prompt_text": None} if self.release.has("nulls of 0.32") else {}

    @property
    def transfer_and_metrics(self) -> dict[str, None]:
        """Nulls of whole answers that 0.32 added."""
        return {"ec_transfer_params": None, "metrics": None} if self.release.has("nulls of 0.32") else {}

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`."""
        return f"vllm-{self.release.version}-{answers.token_id(self.model):08x}"


def event(value: Any) -> bytes:
    """One SSE event."""
    return b"data: " + json_bytes(value) + b"\n\n"


def usage(
    frame: Frame, completion: int, reasoning: int, *, whole: bool = False, running: bool = False
) -> dict[str, Any]:
    """Token counts; reasoning tokens only with a reasoning parser, details as nulls on whole responses.

    `running`: of a chunk in the middle, which has the null of 0.32.
    """
    prompt = frame.prompt_tokens
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
    }
    if whole:
        counts["prompt_tokens_details"] = None
    if frame.parser:
        counts["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    elif whole or (running and frame.release.has("nulls of 0.32")):
        counts["completion_tokens_details"] = None
    return counts


def chunk(frame: Frame, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """One chat chunk."""
    return {
        "id": frame.id,
        "object": "chat.completion.chunk",
        "created": frame.created,
        "model": frame.model,
        "choices": choices,
        **more,
    }


def role_chunk(frame: Frame, index: int) -> dict[str, Any]:
    """The first chunk, sent when the first engine output arrives."""
    choice = {
        "index": index,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    nulls = {"prompt_token_ids": None, **frame.prompt_text}
    return chunk(frame, [choice], **nulls)


def delta_chunk(frame: Frame, index: int, delta: Mapping[str, Any], logprobs: Any = None) -> dict[str, Any]:
    """A chunk in the middle."""
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None, "token_ids": None}
    return chunk(frame, [choice], **_transfer(frame))


def finish_chunk(
    frame: Frame,
    index: int,
    delta: Mapping[str, Any],
    reason: str,
    stop_reason: str | None,
    shown: dict[str, Any] | None,
    *,
    fingerprint: bool,
) -> dict[str, Any]:
    """The chunk with finish_reason; the fingerprint is here only without include_usage (measured)."""
    choice: dict[str, Any] = {
        "index": index,
        "delta": delta,
        "logprobs": shown,
        "finish_reason": reason,
        "stop_reason": stop_reason,
        "token_ids": None,
    }
    if frame.modern:
        choice["weight_versions"] = None
    more = {"system_fingerprint": frame.fingerprint} if fingerprint else {}
    return chunk(frame, [choice], **more, **_transfer(frame))


def _transfer(frame: Frame) -> dict[str, None]:
    return {"kv_transfer_params": None} if frame.modern else {}


def usage_chunk(frame: Frame, completion: int, reasoning: int) -> dict[str, Any]:
    """The chunk after all finish chunks, if usage was asked for."""
    counts = usage(frame, completion, reasoning, whole=False)
    return chunk(frame, [], usage=counts, system_fingerprint=frame.fingerprint)


def tool_deltas(answer: Answer, ids: Sequence[str], *, repeat_metadata: bool) -> list[dict[str, Any]]:
    """The deltas of all tool calls: metadata first, then pieces of the arguments.

    Args:
        repeat_metadata: repeat id and name on the last piece, a known bug (vllm#44098).
    """
    deltas = []
    for index, (call, call_id) in enumerate(zip(answer.tool_calls, ids, strict=True)):
        head = {"id": call_id, "type": "function", "index": index}
        deltas.append({**head, "function": {"name": call.name, "arguments": ""}})
        pieces = _pieces(arguments_text(call.arguments))
        for number, piece in enumerate(pieces):
            if repeat_metadata and number == len(pieces) - 1:
                deltas.append({**head, "function": {"name": call.name, "arguments": piece}})
            else:
                deltas.append({"index": index, "function": {"arguments": piece}})
    return [{"content": None, "tool_calls": [delta]} for delta in deltas]


def arguments_text(arguments: Mapping[str, Any]) -> str:
    """Tool arguments as the string on the wire."""
    return json_bytes(arguments).decode().replace('":', '": ')


def _pieces(text: str) -> list[str]:
    size = max(1, math.ceil(len(text) / 4))
    return [text[at : at + size] for at in range(0, len(text), size)]


def reasoning_fields(release: Release, text: str | None) -> dict[str, str | None]:
    """`reasoning` alone since 0.16, both names in 0.12, the old one before."""
    return {name: text for name in ("reasoning", "reasoning_content") if release.has(f"says {name}")}


def message(answer: Answer, content: str, reasoning: Mapping[str, str | None], ids: Sequence[str]) -> dict[str, Any]:
    """The message of a whole chat completion; `tool_calls` is left out when there are none."""
    body: dict[str, Any] = {
        "role": "assistant",
        "content": None if answer.tool_calls and not content else content,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
    }
    if answer.tool_calls:
        body["tool_calls"] = [
            {"id": i, "type": "function", "function": {"name": c.name, "arguments": arguments_text(c.arguments)}}
            for c, i in zip(answer.tool_calls, ids, strict=True)
        ]
    return {**body, **reasoning}


def completion(frame: Frame, choices: list[dict[str, Any]], counts: dict[str, Any] | None) -> dict[str, Any]:
    """A whole chat completion; no counts leaves the usage object out."""
    body: dict[str, Any] = {
        "id": frame.id,
        "object": "chat.completion",
        "created": frame.created,
        "model": frame.model,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": frame.fingerprint,
    }
    if counts is not None:
        body["usage"] = counts
    nulls: dict[str, Any] = {"prompt_logprobs": None, "prompt_token_ids": None}
    return body | nulls | frame.prompt_text | {"kv_transfer_params": None} | frame.transfer_and_metrics


def text_object(
    frame: Frame,
    choices: list[dict[str, Any]],
    counts: dict[str, Any] | None,
    *,
    whole: bool,
    fingerprint: bool = False,
) -> dict[str, Any]:
    """A text completion, whole or one chunk of it; which chunks have the fingerprint is as in `finish_chunk`."""
    body: dict[str, Any] = {
        "id": frame.id,
        "object": "text_completion",
        "created": frame.created,
        "model": frame.model,
        "choices": choices,
    }
    if whole:
        body |= {"service_tier": None, "system_fingerprint": frame.fingerprint}
    if counts is not None:
        body["usage"] = counts
    if not whole:
        return body | ({"system_fingerprint": frame.fingerprint} if fingerprint else {})
    return body | {"kv_transfer_params": None} | frame.transfer_and_metrics


def text_choice(
    frame: Frame,
    index: int,
    text: str,
    reason: str | None,
    stop_reason: str | None,
    shown: dict[str, Any] | None = None,
    *,
    whole: bool,
) -> dict[str, Any]:
    """A choice of a text completion."""
    choice: dict[str, Any] = {
        "index": index,
        "text": text,
        "logprobs": shown,
        "finish_reason": reason,
        "stop_reason": stop_reason,
    }
    if not whole:
        return choice | {"prompt_token_ids": None, "token_ids": None}
    more = {"routed_experts": None} if frame.release.has("nulls of 0.32") else {}
    return choice | {"token_ids": None, "prompt_logprobs": None, "prompt_token_ids": None} | more


def logprobs(pieces: Sequence[str], top: int) -> dict[str, Any]:
    """Chat logprobs of some tokens, with `top` alternatives each."""
    return {"content": [_one_logprob(piece, top) for piece in pieces]}


def _one_logprob(piece: str, top: int) -> dict[str, Any]:
    others = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in _ranked(piece, top)]
    return {"token": piece, "logprob": _own(piece), "bytes": list(piece.encode()), "top_logprobs": others}


def _own(piece: str) -> float:
    return -(answers.token_id(piece) % 2000) / 1000


def _ranked(piece: str, top: int) -> list[tuple[str, float]]:
    tokens = [piece, *(f" other{rank}" for rank in range(1, 21))][: max(0, top)]
    return [(token, _own(piece) - rank) for rank, token in enumerate(tokens)]


def text_logprobs(pieces: Sequence[str], top: int, *, offset: int, prompt: int = 0) -> dict[str, Any]:
    """Logprobs of a text completion: arrays by token.

    Args:
        offset: characters before the first piece. prompt: how many pieces are of an echoed prompt; the first token
            of a prompt follows nothing, so it has no probability.
    """
    first = prompt > 0
    starts = accumulate((len(piece) for piece in pieces[:-1]), initial=offset) if pieces else []
    return {
        "text_offset": list(starts),
        "token_logprobs": [None if first and at == 0 else _own(piece) for at, piece in enumerate(pieces)],
        "tokens": list(pieces),
        "top_logprobs": [
            None if first and at == 0 else dict(_ranked(piece, max(1, top))) for at, piece in enumerate(pieces)
        ],
    }
