"""Reads vLLM requests and rejects them in vLLM's words.

Two spellings of the error type, as on the wire: "Bad Request" for what the schema rejects, "BadRequestError" for
what a later check rejects (vLLM 0.32.0, measured; 0.33 source). Pure: bytes in, a checked request or a `Rejection`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
MAX_STOPS = 4
MAX_LOGPROBS = 20
MAX_N = 16384  # VLLM_MAX_N_SEQUENCES
MAX_HELD = 1_048_576
"""Tokens of all choices, prompts included, that one request may make an emulator hold; a real server queues more."""
_MAX = sys.float_info.max


class Rejection(Exception):
    """A request this server rejects.

    Args:
        status, kind, message, param: what the error body says.
    """

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.param = status, kind, message, param


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server was started with, as far as it decides what is accepted."""

    served: tuple[str, ...]
    max_model_len: int
    auto_tools: bool
    vision: bool
    clamps: bool  # prompt + max_tokens too long is cut (>= 0.32) instead of a 400
    four_stops: bool  # since 0.28
    upper_temperature: bool  # since 0.26
    empty_tools: bool  # `tools: []` is a 400 since 0.20
    trust_template: bool = False


def schema_error(loc: Sequence[str | int], kind: str, message: str, given: Any) -> Rejection:
    """A pydantic error as FastAPI words it."""
    detail = {"type": kind, "loc": ("body", *loc), "msg": message, "input": given}
    param = ".".join(str(part) for part in ("body", *loc))
    return Rejection(400, "Bad Request", f"1 validation error:\n  {detail}\n", param)


def value_error(text: str, parameter: str, value: Any = None) -> Rejection:
    """A check of vLLM's own, with the parameter named in the text."""
    named = f"parameter={parameter}" if value is None else f"parameter={parameter}, value={value}"
    return Rejection(400, "BadRequestError", f"{text} ({named})", parameter)


def plain_error(text: str, param: str | None = None) -> Rejection:
    """A check whose error names no parameter (measured for min_p, penalties, top_k, n and an empty stop)."""
    return Rejection(400, "BadRequestError", text, param)


def read_json(body: bytes, content_type: str) -> dict[str, Any]:
    """Decode a body that must be a JSON object sent as `application/json`.

    Raises:
        Rejection: another content type, not JSON, not an object.
    """
    if content_type.split(";")[0].strip().lower() != "application/json":
        text = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed\n"
        raise Rejection(400, "Bad Request", text)
    try:
        given = json.loads(body) if body else None
    except json.JSONDecodeError as reason:
        detail = {
            "type": "json_invalid",
            "loc": ("body", reason.pos),
            "msg": "JSON decode error",
            "input": {},
            "ctx": {"error": reason.msg},
        }
        text = f"1 validation error:\n  {detail}\n"
        raise Rejection(400, "Bad Request", text, f"body.{reason.pos}") from reason
    except (ValueError, RecursionError) as reason:  # no UTF-8, a number of thousands of digits, nested too deep
        raise Rejection(400, "Bad Request", "There was an error parsing the body") from reason
    if given is None:
        raise schema_error((), "missing", "Field required", None)
    if not isinstance(given, dict):
        raise schema_error((), "model_attributes_type", "Input should be a valid dictionary or object", given)
    return given


# -- types, in pydantic's lax mode


def _is_float(value: Any) -> bool:
    if isinstance(value, str):
        return _reads(float, value)
    return isinstance(value, int | float)


def _reads(kind: Callable[[str], object], text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _is_int(value: Any) -> bool:
    if isinstance(value, str):
        return _reads(int, value)
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or value in (0, 1) or str(value).lower() in ("true", "false", "yes", "no")


_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str, str]] = {
    "float": (_is_float, "float_type", "Input should be a valid number"),
    "int": (_is_int, "int_type", "Input should be a valid integer"),
    "bool": (_is_bool, "bool_type", "Input should be a valid boolean"),
    "str": (lambda v: isinstance(v, str), "string_type", "Input should be a valid string"),
    "list": (lambda v: isinstance(v, list), "list_type", "Input should be a valid list"),
    "dict": (lambda v: isinstance(v, dict), "dict_type", "Input should be a valid dictionary"),
}
_SAMPLING = {
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"), "float"
    ),
    **dict.fromkeys(("top_k", "n", "seed", "max_tokens", "min_tokens", "priority"), "int"),
    **dict.fromkeys(("stream", "ignore_eos", "echo", "skip_special_tokens"), "bool"),
    **dict.fromkeys(("model", "user"), "str"),
    **dict.fromkeys(("stream_options", "logit_bias", "response_format", "structured_outputs"), "dict"),
}
_CHAT_TYPES: Mapping[str, str] = {
    **_SAMPLING,
    **dict.fromkeys(("max_completion_tokens", "top_logprobs"), "int"),
    **dict.fromkeys(("logprobs", "include_reasoning", "add_generation_prompt", "continue_final_message"), "bool"),
    **dict.fromkeys(("messages", "tools"), "list"),
    "chat_template_kwargs": "dict",
    "chat_template": "str",
}
_COMPLETION_TYPES: Mapping[str, str] = {**_SAMPLING, "logprobs": "int", "suffix": "str"}


def _check_types(given: Mapping[str, Any], types: Mapping[str, str]) -> None:
    for name, wanted in types.items():
        value = given.get(name)
        fits, kind, text = _CHECKS[wanted]
        if value is not None and not fits(value):
            raise schema_error((name,), kind, text, value)


def check_chat(given: dict[str, Any], limits: Limits) -> None:
    """Reject a chat request the server would reject before it renders the prompt.

    Raises:
        Rejection: 400 or 404, first problem found.
    """
    _check_stream_options(given)
    _check_logprobs(given)
    _check_tool_usage(given, limits)
    _check_types(given, _CHAT_TYPES)
    if given.get("messages") is None:
        raise schema_error(("messages",), "missing", "Field required", given)
    if given["messages"] == []:
        raise plain_error("Cannot apply chat template to an empty conversation")  # 0.32, measured
    check_conversation(given)
    _check_formats(given)
    _check_stop(given, limits)
    check_model(given.get("model"), limits)
    _check_template(given, limits)
    _check_parser(given, limits)
    check_parts(given["messages"], limits)
    _check_sampling(given, limits, ("max_completion_tokens", "max_tokens"))


def check_conversation(given: Mapping[str, Any]) -> None:
    """Reject messages and tools of another shape.

    Raises:
        Rejection: 400.
    """
    for name in ("messages", "tools"):
        if not isinstance(given.get(name) or [], list):
            raise schema_error((name,), "list_type", "Input should be a valid list", given[name])
    for index, message in enumerate(given.get("messages") or ()):
        _check_message(index, message)
    for index, tool in enumerate(given.get("tools") or ()):
        _check_tool(index, tool)


def check_completion(given: dict[str, Any], limits: Limits) -> None:
    """Reject a completion request.

    Raises:
        Rejection: 400 or 404, first problem found.
    """
    _check_stream_options(given)
    _check_types(given, _COMPLETION_TYPES)
    _check_top(int(given.get("logprobs") or 0))
    _check_stop(given, limits)
    prompt = given.get("prompt")
    if prompt is None or prompt in ("", []):
        raise value_error("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if not isinstance(prompt, str) and not _is_prompt_list(prompt):
        raise schema_error(("prompt",), "string_type", "Input should be a valid string", prompt)
    check_model(given.get("model"), limits)
    if given.get("suffix"):
        raise plain_error("suffix is not currently supported")
    _check_sampling(given, limits, ("max_tokens",))


def _is_prompt_list(prompt: Any) -> bool:
    def ids(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(item, int) for item in value)

    return ids(prompt) or (isinstance(prompt, list) and all(isinstance(item, str) or ids(item) for item in prompt))


def check_model(name: Any, limits: Limits) -> None:
    """Reject a model that is not served; none at all means the served one.

    Raises:
        Rejection: 404.
    """
    if name and name not in limits.served:
        known = ", ".join(f"`{served}`" for served in limits.served)
        text = f"The model `{name}` does not exist. Available models: {known}."
        raise Rejection(404, "NotFoundError", text, "model")


def _check_stream_options(given: Mapping[str, Any]) -> None:
    if given.get("stream_options") and not given.get("stream"):
        raise value_error("Stream options can only be defined when `stream=True`.", "stream_options")


def _check_logprobs(given: Mapping[str, Any]) -> None:
    top = given.get("top_logprobs")
    if top is None:
        return
    if not isinstance(top, int):
        raise value_error("`top_logprobs` must be an integer.", "top_logprobs", top)
    if top < 0 and top != -1:
        raise value_error("`top_logprobs` must be a positive value or -1.", "top_logprobs", top)
    if top and not given.get("logprobs"):
        raise value_error("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    _check_top(top)


def _check_top(top: int) -> None:
    if top > MAX_LOGPROBS:
        text = f"Requested sample logprobs of {top}, which is greater than max allowed: {MAX_LOGPROBS}"
        raise value_error(text, "logprobs", top)


def _check_tool_usage(given: dict[str, Any], limits: Limits) -> None:
    tools, choice = given.get("tools"), given.get("tool_choice")
    if tools == [] and limits.empty_tools:
        text = "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely."
        raise value_error(text, "tools")
    if choice is None or choice == "none":
        return
    if not tools:
        raise value_error("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if isinstance(choice, dict):
        _check_named(choice, tools)
    elif choice not in ("auto", "required"):
        text = (
            f'Invalid value for `tool_choice`: {choice}! Only named tools, "none", "auto" or "required" are supported.'
        )
        raise value_error(text, "tool_choice")


def _check_named(choice: Mapping[str, Any], tools: Any) -> None:
    function = choice.get("function")
    if not isinstance(function, dict) or "name" not in function:
        usage = 'Correct usage: `{"type": "function", "function": {"name": "my_function"}}`'
        raise value_error(
            f"Invalid value for `function`: `{function}` in `tool_choice`! {usage}", "tool_choice.function"
        )
    functions = [t.get("function") for t in tools if isinstance(t, dict)] if isinstance(tools, list) else []
    names = [f.get("name") for f in functions if isinstance(f, dict)]
    if function["name"] not in names:
        raise value_error(
            "The tool specified in `tool_choice` does not match any of the specified `tools`", "tool_choice"
        )


def _check_parser(given: Mapping[str, Any], limits: Limits) -> None:
    if not given.get("tools") or limits.auto_tools or given.get("tool_choice") == "none":
        return
    choice = given.get("tool_choice") or "auto"
    if choice == "auto":
        raise plain_error('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
    raise plain_error(f'tool_choice="{choice}" requires --tool-call-parser to be set')


def _check_message(index: int, message: Any) -> None:
    """Explicit null content is a 400 except for assistants; so are a missing role and object arguments (measured)."""
    at = ("messages", index)
    if not isinstance(message, dict):
        raise schema_error(at, "dict_type", "Input should be a valid dictionary", message)
    role = message.get("role")
    if not isinstance(role, str):
        raise schema_error((*at, "role"), "missing", "Field required", message)
    content = message.get("content")
    if "content" in message and content is None and role != "assistant":
        raise schema_error((*at, "content"), "string_type", "Input should be a valid string", None)
    if content is not None and not isinstance(content, str | list):
        raise schema_error((*at, "content"), "string_type", "Input should be a valid string", content)
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise schema_error((*at, "tool_calls"), "list_type", "Input should be a valid list", calls)
    for number, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("arguments", ""), str):
            where = (*at, "tool_calls", number, "function", "arguments")
            raise schema_error(where, "string_type", "Input should be a valid string", call)


def _check_tool(index: int, tool: Any) -> None:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise schema_error(("tools", index, "function", "name"), "missing", "Field required", tool)
    if not isinstance(function.get("parameters") or {}, dict):
        at = ("tools", index, "function", "parameters")
        raise schema_error(at, "dict_type", "Input should be a valid dictionary", function["parameters"])


def check_parts(messages: Sequence[Mapping[str, Any]], limits: Limits) -> None:
    """Reject content parts the model cannot take.

    Raises:
        Rejection: 400, or 422 for an image that cannot be fetched (nothing can be, here).
    """
    parts = [part for m in messages if isinstance(m.get("content"), list) for part in m["content"]]
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            continue
        if kind != "image_url":
            raise plain_error(f"Unknown part type: {kind}")
        if not limits.vision:
            raise plain_error("At most 0 image(s) may be provided in one prompt.", "image")
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str) or not url.startswith("data:"):
            raise Rejection(422, "UnprocessableEntityError", f"Failed to fetch media: {url}", "image_url")


def _check_formats(given: Mapping[str, Any]) -> None:
    wanted = given.get("response_format") or {}
    kinds = ("text", "json_object", "json_schema", "structural_tag")
    if wanted and wanted.get("type") not in kinds:
        raise schema_error(
            ("response_format", "type"), "literal_error", f"Input should be one of {kinds}", wanted.get("type")
        )
    if wanted.get("type") == "json_schema":
        schema = wanted.get("json_schema")
        if schema is None:
            text = "When response_format type is 'json_schema', the 'json_schema' field must be provided."
            raise value_error(text, "response_format")
        if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
            raise schema_error(("response_format", "json_schema", "name"), "missing", "Field required", schema)
    effort = given.get("reasoning_effort")
    if effort is not None and effort not in EFFORTS:
        raise schema_error(("reasoning_effort",), "literal_error", f"Input should be one of {EFFORTS}", effort)


def _check_stop(given: Mapping[str, Any], limits: Limits) -> None:
    stop = given.get("stop")
    words = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise schema_error(("stop",), "string_type", "Input should be a valid string", stop)
    if limits.four_stops and len(words) > MAX_STOPS:
        text = f"List should have at most {MAX_STOPS} items after validation, not {len(words)}"
        raise schema_error(("stop",), "too_long", text, stop)
    if any(word == "" for word in words):
        raise plain_error("stop cannot contain an empty string.")


def _check_template(given: Mapping[str, Any], limits: Limits) -> None:
    if given.get("chat_template") and not limits.trust_template:
        text = "Chat template is passed with request, but --trust-request-chat-template is not set. Refused request."
        raise plain_error(text)
    if given.get("add_generation_prompt", True) and given.get("continue_final_message"):
        raise plain_error("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")


def _number(given: Mapping[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    try:
        return max(-_MAX, min(float(value), _MAX))
    except OverflowError:  # an integer beyond every float
        return _MAX if value > 0 else -_MAX


def _check_sampling(given: Mapping[str, Any], limits: Limits, limit_names: Sequence[str]) -> None:
    _check_temperature(_number(given, "temperature"), limits)
    top_p = _number(given, "top_p")
    if top_p is not None and not 0 < top_p <= 1:
        raise value_error(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    for name, low, high in (("min_p", 0, 1), ("presence_penalty", -2, 2), ("frequency_penalty", -2, 2)):
        value = _number(given, name)
        if value is not None and not low <= value <= high:
            raise plain_error(f"{name} must be in [{low}, {high}], got {value}.")
    _check_counts(given)
    for name in limit_names:
        limit = _number(given, name)
        if limit is not None:
            if limit < 1:  # the text names max_tokens for max_completion_tokens too (measured)
                raise value_error(f"max_tokens must be at least 1, got {int(limit)}.", "max_tokens", int(limit))
            return


def _check_temperature(temperature: float | None, limits: Limits) -> None:
    if temperature is None:
        return
    if temperature < 0:
        raise value_error(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if limits.upper_temperature and temperature > 2:
        raise value_error(f"temperature must be in [0, 2], got {temperature}.", "temperature", temperature)


def _check_counts(given: Mapping[str, Any]) -> None:
    repetition, top_k = _number(given, "repetition_penalty"), _number(given, "top_k")
    if repetition is not None and repetition <= 0:
        raise plain_error(f"repetition_penalty must be greater than zero, got {repetition}.")
    if top_k is not None and top_k < -1:
        raise plain_error(f"top_k must be 0 (disable), or at least 1, got {int(top_k)}.")
    n = _number(given, "n")
    if n is not None and n < 1:
        raise plain_error(f"n must be at least 1, got {int(n)}.")
    if n is not None and n > MAX_N:
        hint = "To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable."
        raise plain_error(f"n must be at most {MAX_N}, got {int(given['n'])}. {hint}")
    if n is not None and n > 1 and _number(given, "temperature") == 0:
        raise plain_error(f"n must be 1 when using greedy sampling, got {int(n)}.")


class Held:
    """What one request makes the emulator hold, counted before it does.

    Args:
        given: the request; alternatives of a token count as tokens.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._weight = 1 + (max(0, int(given.get("top_logprobs") or 0)) if given.get("logprobs") else 0)
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
            raise Rejection(501, "NotImplementedError", f"more than {MAX_HELD} tokens at once are not emulated")


def output_limit(wanted: int | None, prompt_tokens: int, limits: Limits) -> int:
    """Most tokens to generate; rejects what does not fit the context.

    Raises:
        Rejection: the prompt alone is too long, or (up to 0.30) with the tokens asked for.
    """
    room = limits.max_model_len - prompt_tokens
    if room < 1:
        text = (
            f"This model's maximum context length is {limits.max_model_len} tokens. However, your request has "
            f"{prompt_tokens} input tokens. Please reduce the length of the input messages."
        )
        raise value_error(text, "input_tokens", prompt_tokens)
    if wanted is None:
        return room
    if wanted > limits.max_model_len or (wanted > room and not limits.clamps):
        text = (
            f"'max_tokens' or 'max_completion_tokens' is too large: {wanted}. This model's maximum context length is "
            f"{limits.max_model_len} tokens and your request has {prompt_tokens} input tokens."
        )
        raise value_error(text, "max_tokens", wanted)
    return min(wanted, room)
