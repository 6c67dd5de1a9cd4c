"""vLLM's checks of sampling numbers, stops and lengths, and how much one request may make an emulator hold.

Pure: converted values in, nothing or a `Rejection` out (vLLM 0.32.0, measured; 0.33 source).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memos_llm.emulators.vllm_requests import (
    Rejection,
    SchemaFault,
    not_emulated,
    plain_error,
    schema_errors,
    value_error,
)
from memos_llm.emulators.vllm_versions import Release

MAX_STOPS = 4
MAX_LOGPROBS = 20
MAX_N = 16384  # VLLM_MAX_N_SEQUENCES
MAX_HELD = 1_048_576
"""Tokens of all choices, prompts included, that one request may make an emulator hold; a real server queues more."""


def check_sampling(given: Mapping[str, Any], release: Release, limit_names: Sequence[str]) -> None:
    """Reject numbers out of range.

    Raises:
        Rejection: 400, first problem found.
    """
    _check_temperature(given.get("temperature"), release)
    top_p = given.get("top_p")
    if top_p is not None and not 0 < top_p <= 1:
        raise value_error(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    for name, low, high in (("min_p", 0, 1), ("presence_penalty", -2, 2), ("frequency_penalty", -2, 2)):
        value = given.get(name)
        if value is not None and not low <= value <= high:
            raise plain_error(f"{name} must be in [{low}, {high}], got {value}.")
    _check_counts(given)
    _check_bias(given)
    limit = next((given[name] for name in limit_names if given.get(name) is not None), None)
    if limit is not None and limit < 1:  # the text names max_tokens for max_completion_tokens too (measured)
        raise value_error(f"max_tokens must be at least 1, got {limit}.", "max_tokens", limit)
    least = given.get("min_tokens", 0)
    if least < 0:
        raise plain_error(f"min_tokens must be greater than or equal to 0, got {least}.")
    if limit is not None and least > limit:
        raise plain_error(f"min_tokens must be less than or equal to max_tokens={limit}, got {least}.")


def _check_temperature(temperature: float | None, release: Release) -> None:
    if temperature is None:
        return
    if not temperature >= 0:
        raise value_error(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if temperature > 2 and release.has("temperature at most 2"):
        raise value_error(f"temperature must be in [0, 2], got {temperature}.", "temperature", temperature)


def _check_bias(given: Mapping[str, Any]) -> None:
    """The keys are token ids, as text."""
    wrong = [key for key in given.get("logit_bias") or {} if not key.lstrip("-").isdecimal()]
    if wrong:
        text = f"logit_bias contains key(s) that cannot be converted to integer token IDs: {wrong}"
        raise value_error(text, "logit_bias", wrong)


def _check_counts(given: Mapping[str, Any]) -> None:
    repetition, top_k, n = given.get("repetition_penalty"), given.get("top_k"), given.get("n")
    if repetition is not None and not repetition > 0:
        raise plain_error(f"repetition_penalty must be greater than zero, got {repetition}.")
    if top_k is not None and top_k < -1:
        raise plain_error(f"top_k must be 0 (disable), or at least 1, got {top_k}.")
    if n is None:
        return
    if n < 1:
        raise plain_error(f"n must be at least 1, got {n}.")
    if n > MAX_N:
        hint = "To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable."
        raise plain_error(f"n must be at most {MAX_N}, got {n}. {hint}")
    if n > 1 and given.get("temperature") == 0:
        raise plain_error(f"n must be 1 when using greedy sampling, got {n}.")


def check_stop(given: Mapping[str, Any], release: Release) -> None:
    """Reject stop strings of another shape, too many, or empty.

    Raises:
        Rejection: 400.
    """
    stop = given.get("stop")
    words = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise schema_errors(_no_string(stop), *_no_strings(stop))
    if len(words) > MAX_STOPS and release.has("four stops"):
        text = f"List should have at most {MAX_STOPS} items after validation, not {len(words)}"
        ctx = {"field_type": "List", "max_length": MAX_STOPS, "actual_length": len(words)}
        raise schema_errors(_no_string(stop), SchemaFault(("stop",), "too_long", text, stop, ctx))
    if any(word == "" for word in words):
        raise plain_error("stop cannot contain an empty string.")


def _no_string(value: Any, at: Sequence[str | int] = ("stop",)) -> SchemaFault:
    return SchemaFault(at, "string_type", "Input should be a valid string", value)


def _no_strings(value: Any) -> list[SchemaFault]:
    """It may be a list of strings as well."""
    if not isinstance(value, list):
        return [SchemaFault(("stop",), "list_type", "Input should be a valid list", value)]
    wrong = (number for number, word in enumerate(value) if not isinstance(word, str))
    return [_no_string(value[number], ("stop", number)) for number in wrong]


def check_top(top: int) -> None:
    """Reject more alternatives than the server shows.

    Raises:
        Rejection: 400.
    """
    if top > MAX_LOGPROBS:
        text = f"Requested sample logprobs of {top}, which is greater than max allowed: {MAX_LOGPROBS}"
        raise value_error(text, "logprobs", top)


def stops(given: Mapping[str, Any]) -> list[str]:
    """The stop strings of a checked request."""
    stop = given.get("stop") or []
    return [stop] if isinstance(stop, str) else list(stop)


class Held:
    """What one request makes the emulator hold, counted before it does.

    Args:
        given: the request; alternatives of a token count as tokens.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        shown = given.get("top_logprobs") if given.get("logprobs") is True else given.get("logprobs")
        self._weight = 1 + max(0, int(shown or 0))
        self._tokens = 0

    def prompt(self, chars: int) -> None:
        """One more choice, of a prompt of so many characters.

        Raises:
            Rejection: 501, it is too much.
        """
        self._add(8 + chars // 4)

    def answer(self, tokens: int) -> None:
        """The tokens of one choice.

        Raises:
            Rejection: 501, it is too much.
        """
        self._add(tokens * self._weight)

    def _add(self, tokens: int) -> None:
        self._tokens += tokens
        if self._tokens > MAX_HELD:
            raise not_emulated(f"more than {MAX_HELD} tokens at once are")


def too_long(prompt_tokens: int, max_model_len: int) -> Rejection:
    """What is said of a prompt that does not fit (0.32, measured; wording changes between releases)."""
    text = (
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains at least "
        f"{prompt_tokens} input tokens, which exceeds this limit even without any output tokens. Please reduce the "
        "length of the input prompt."
    )
    return value_error(text, "input_tokens", prompt_tokens)


def output_limit(wanted: int | None, prompt_tokens: int, max_model_len: int, release: Release) -> int:
    """Most tokens to generate; rejects what does not fit the context.

    Raises:
        Rejection: the prompt alone is too long, or (up to 0.30) with the tokens asked for.
    """
    room = max_model_len - prompt_tokens
    if room < 1:
        raise too_long(prompt_tokens, max_model_len)
    if wanted is None:
        return room
    if wanted > max_model_len and release.has("long answers are clamped"):
        text = f"max_tokens={wanted} cannot be greater than max_model_len={max_model_len}. Please request fewer output"
        raise value_error(f"{text} tokens.", "max_tokens", wanted)
    if wanted > max_model_len or (wanted > room and not release.has("long answers are clamped")):
        text = (
            f"'max_tokens' or 'max_completion_tokens' is too large: {wanted}. This model's maximum context length is "
            f"{max_model_len} tokens and your request has {prompt_tokens} input tokens."
        )
        raise value_error(text, "max_tokens", wanted)
    return min(wanted, room)
