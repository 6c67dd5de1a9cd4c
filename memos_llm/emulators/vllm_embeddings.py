"""What vLLM's `/v1/embeddings` takes and answers: inputs of all kinds, checks in the server's words, two encodings.

Pure: a request in, inputs or a `Rejection` out. Never kinder than the real one: nothing is cut unless
`truncate_prompt_tokens` says so, and `dimensions` is for Matryoshka models only (vLLM 0.33 source).
"""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memos_llm.emulators import answers, vllm_types
from memos_llm.emulators.vectors import cut, vector
from memos_llm.emulators.vllm_checks import EMPTY_CONVERSATION, Limits, check_conversation, check_parts, is_id
from memos_llm.emulators.vllm_chunks import Frame
from memos_llm.emulators.vllm_requests import literal_error, not_emulated, plain_error, schema_error, value_error
from memos_llm.emulators.vllm_sampling import too_long
from memos_llm.emulators.vllm_tokens import END, Vocabulary, prompt_ids

MAX_FLOATS = 4_194_304
"""Numbers that one answer may hold; a real server has no such limit."""
MAX_WORK = 67_108_864
"""Tokens times numbers of a vector that one request may cost; some ten seconds."""
_QUICK_WORK = 262_144
_FORMATS = ("float", "base64", "bytes", "bytes_only")


@dataclass(frozen=True, slots=True)
class Space:
    """The vectors of the emulated model.

    Args:
        dimension: how many numbers a vector has. matryoshka: lengths it may be cut to, True for all, empty for none.
        model: the first served name. shared: name of a space that another emulator has too, None for one of its own.
    """

    dimension: int
    matryoshka: bool | Sequence[int]
    model: str
    shared: str | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """One thing to embed, and the ids it stands for (with the token the tokenizer adds)."""

    text: str
    ids: Sequence[int]


def inputs_of(given: Mapping[str, Any], max_model_len: int, vocabulary: Vocabulary) -> list[Input]:
    """The inputs of a checked request, in order, cut where the request asks for it.

    Raises:
        Rejection: 400, nothing to embed, or an input is longer than the model.
    """
    if given.get("messages") is not None:
        seen = answers.logical("vllm", given["messages"])
        found = [Input("\n".join(m["content"] for m in seen), prompt_ids(vocabulary, seen))]
    else:
        special = [] if given.get("add_special_tokens") is False else [END]
        found = [_input(item, special, vocabulary) for item in _items(given["input"])]
    return [_fitted(item, given.get("truncate_prompt_tokens"), max_model_len) for item in found]


def _items(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) or not value or isinstance(value[0], int) else list(value)


def _input(item: Any, special: Sequence[int], vocabulary: Vocabulary) -> Input:
    if isinstance(item, str):
        return Input(item, [*vocabulary.ids(item), *special])
    if not item:
        raise plain_error("The decoder prompt cannot be empty")
    return Input(vocabulary.text([token for token in item if token != END]), item)


def _fitted(item: Input, cut_to: int | None, max_model_len: int) -> Input:
    limit = max_model_len if cut_to is None or cut_to == -1 else cut_to
    size = len(item.ids)
    if cut_to is not None and size > limit:
        return Input("".join(answers.tokens(item.text)[:limit]), item.ids[:limit])
    if size > max_model_len:
        raise too_long(size, max_model_len)
    return item


def check(given: dict[str, Any], limits: Limits) -> None:
    """Reject what is no embedding request; numbers and flags are converted as pydantic does.

    Raises:
        Rejection: 400, first problem found.
    """
    if "normalize" in given:
        raise value_error("Parameter `normalize` was removed; use `use_activation` instead.", "normalize")
    vllm_types.convert(given, vllm_types.EMBEDDING)
    wanted = given.get("encoding_format", "float")
    if wanted not in _FORMATS:
        raise literal_error(("encoding_format",), _FORMATS, wanted)
    if wanted in ("bytes", "bytes_only"):
        raise not_emulated("embeddings as bytes are")
    _check_input(given, limits)
    _check_cut(given.get("truncate_prompt_tokens"), limits.max_model_len)


def _check_input(given: dict[str, Any], limits: Limits) -> None:
    if given.get("messages") is not None:
        check_conversation(given)
        check_parts(given["messages"], limits)
        if not given["messages"]:
            raise plain_error(EMPTY_CONVERSATION)
    elif given.get("input") is None and "input" not in given:
        raise schema_error(("input",), "missing", "Field required", given)
    elif given["input"] == []:
        raise plain_error("You must pass at least one prompt")
    elif not _is_input(given["input"]):
        raise schema_error(("input",), "string_type", "Input should be a valid string", given["input"])


def _check_cut(cut_to: int | None, max_model_len: int) -> None:
    if cut_to is None:
        return
    if cut_to < -1:
        text = "Input should be greater than or equal to -1"
        raise schema_error(("truncate_prompt_tokens",), "greater_than_equal", text, cut_to, {"ge": -1})
    if cut_to > max_model_len:
        text = (
            f"truncate_prompt_tokens value ({cut_to}) is greater than max_model_len ({max_model_len}). "
            "Please request a smaller truncation size."
        )
        raise value_error(text, "truncate_prompt_tokens", cut_to)


def _is_input(value: Any) -> bool:
    if isinstance(value, str):
        return True
    if not isinstance(value, list):
        return False
    if all(is_id(item) for item in value) or all(isinstance(item, str) for item in value):
        return True
    return all(isinstance(item, list) and all(is_id(i) for i in item) for item in value)


def check_work(wanted: int | None, space: Space, inputs: Sequence[Input]) -> None:
    """Reject lengths that the model does not have, and more than an emulator should hold.

    Raises:
        Rejection: 400, this model's vectors are of one length, or not of this one; 501, more than is emulated.
    """
    if wanted is not None:
        _check_dimensions(wanted, space)
    if space.dimension * len(inputs) > MAX_FLOATS or space.dimension * _tokens(inputs) > MAX_WORK:
        raise not_emulated(f"more than {MAX_FLOATS} numbers at once, or their like in work, are")


async def vectors_of(inputs: Sequence[Input], space: Space, wanted: int | None) -> list[list[float]]:
    """The vectors in the order of the inputs; long work is done beside the event loop."""

    def work() -> list[list[float]]:
        whole = (vector("vllm", space.model, item.text, space.dimension, space=space.shared) for item in inputs)
        return [cut(numbers, wanted) for numbers in whole]

    return await asyncio.to_thread(work) if space.dimension * _tokens(inputs) > _QUICK_WORK else work()


def _tokens(inputs: Sequence[Input]) -> int:
    return sum(len(item.ids) for item in inputs)


def _check_dimensions(wanted: int, space: Space) -> None:
    model = space.model
    if not space.matryoshka:
        text = (
            f"Model {model!r} does not support Matryoshka embeddings; dimensions must be unset "
            f"(received dimensions={wanted})."
        )
        raise plain_error(text)
    if wanted < 1:
        raise value_error("Dimensions must be greater than 0", "dimensions", wanted)
    if space.matryoshka is not True and wanted not in space.matryoshka:
        text = (
            f"Model {model!r} only supports {list(space.matryoshka)} matryoshka dimensions, "
            "use other output dimensions will lead to poor results."
        )
        raise value_error(text, "dimensions", wanted)
    if wanted > space.dimension:
        raise value_error(f"Dimensions must be at most {space.dimension}", "dimensions", wanted)


def answer(frame: Frame, vectors: Sequence[Sequence[float]], encoding_format: str) -> dict[str, Any]:
    """The whole answer: numbers, or the base64 of little-endian float32."""
    shown = [list(v) if encoding_format == "float" else base64.b64encode(packed(v)).decode() for v in vectors]
    tokens = frame.prompt_tokens
    return {
        "id": frame.id,
        "object": "list",
        "created": frame.created,
        "model": frame.model,
        "data": [{"index": index, "object": "embedding", "embedding": item} for index, item in enumerate(shown)],
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
            **({"completion_tokens_details": None} if frame.release.has("nulls of 0.32") else {}),
        },
    }


def packed(vector: Sequence[float]) -> bytes:
    """A vector as little-endian float32."""
    return struct.pack(f"<{len(vector)}f", *vector)
