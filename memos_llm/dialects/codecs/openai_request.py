"""OpenAI's chat requests as Ollama's native ones: for calls that Ollama's own `/v1` would rob of something.

It drops `max_completion_tokens`, `top_k`, `min_p`, `keep_alive` and `num_ctx`, and forces temperature and top_p to 1
where none is given (Ollama 0.33 source). The rules are the table at the end, one row per key; what is not in it means
nothing to either server.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from memos_llm.core.call import Call, Target, Wire, WireRequest
from memos_llm.core.decision import Offer
from memos_llm.dialects.codecs.repairs import DEFAULTS
from memos_llm.dialects.codecs.rules import Draft, Policy, Rule, bad_request, carry_out, not_offered
from memos_llm.dialects.jsons import decode_as, decode_optional

ROLES: Mapping[str, str] = {"developer": "system", "function": "tool"}
"""Roles that Ollama's templates do not know, and the ones they do."""

EFFORTS: Mapping[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "ultra": "max",
    "max": "max",
}
"""`reasoning_effort` → `think`, as Ollama's own `/v1` has it (0.33 source)."""

TEXTS = ("text", "refusal")  # content parts whose text stands under the name of their type

_DATA_URL = "data:"


def translate(call: Call, target: Target, offer: Offer) -> tuple[WireRequest, tuple[str, ...]]:
    """Ollama's request, and warnings.

    Raises:
        AttemptFailed: `client` when the caller's body cannot be understood, `incompatible` when Ollama cannot do it.
    """
    draft = Draft(call, target, offer, {"model": target.model, "stream": call.stream})
    carry_out(CHAT, draft)
    given = draft.body.pop(_OPTIONS, {})
    options = {**target.settings.defaults, **given}
    if len(options) > len(given):
        draft.warnings.append(f"repaired:{DEFAULTS}")
    if options:
        draft.body["options"] = options
    request = WireRequest(call.id, Wire.OLLAMA_CHAT, target.model, msgspec.json.encode(draft.body), call.stream)
    return request, tuple(dict.fromkeys(draft.warnings))


def asks_usage(call: Call) -> bool:
    """Whether the caller of a stream wants the usage chunk."""
    try:
        options = decode_optional(call.head.get("stream_options", Raw(b"null")), dict[str, Any]) or {}
    except ValueError:
        return False  # told where it is carried over
    return options.get("include_usage") is True


# --- messages ---------------------------------------------------------------------------------------------------------


class _Function(Struct):
    name: str = ""
    arguments: str | None = None


class _ToolCall(Struct):
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Message(Struct):
    role: str = "user"
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None


def _messages(draft: Draft) -> None:
    messages = draft.read("messages", list[_Message]) or []
    if not messages:  # to Ollama's native wire that is a call to load the model
        raise bad_request("[] is too short - 'messages'")
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
    draft.body["messages"] = [_message(message, names) for message in messages]


def _message(message: _Message, names: Mapping[str | None, str]) -> dict[str, Any]:
    texts, media = _content(message.content)
    written: dict[str, Any] = {"role": ROLES.get(message.role, message.role), "content": texts}
    if media:
        written["images"] = media
    if thought := message.reasoning or message.reasoning_content:
        written["thinking"] = thought
    if message.tool_calls:
        written["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    if written["role"] == "tool":
        written |= _answered(message, names)
    return written


def _answered(message: _Message, names: Mapping[str | None, str]) -> dict[str, str]:
    name = message.name or names.get(message.tool_call_id)
    found = {"tool_call_id": message.tool_call_id, "tool_name": name}
    return {key: value for key, value in found.items() if value}


def _tool_call(call: _ToolCall) -> dict[str, Any]:
    """Arguments become an object: Ollama takes nothing else."""
    try:
        arguments = decode_as((call.function.arguments or "{}").encode(), dict[str, Raw])
    except ValueError:
        raise bad_request("messages: the arguments of a tool call are not the JSON of an object") from None
    named = {"id": call.id} if call.id else {}
    return {**named, "function": {"name": call.function.name, "arguments": arguments}}


def _content(content: str | list[dict[str, Any]] | None) -> tuple[str, list[str]]:
    """The text, and images and sounds as bare base64."""
    if content is None or isinstance(content, str):
        return content or "", []
    texts = [str(part.get(part["type"]) or "") for part in content if part.get("type") in TEXTS]
    return "\n".join(text for text in texts if text), [found for part in content if (found := _media(part))]


def _media(part: Mapping[str, Any]) -> str:
    kind = part.get("type")
    if kind in TEXTS:
        return ""
    read = _PARTS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise not_offered("a content part of another type than text, image_url or input_audio")
    return read(part.get(str(kind)))


def _image(value: object) -> str:
    url = value.get("url") if isinstance(value, dict) else value
    head, comma, data = str(url).partition(";base64,")
    if not head.startswith(_DATA_URL) or not comma:
        raise not_offered("an image that is not a data: URL with base64")  # Ollama fetches nothing, and nor do we
    return data


def _audio(value: object) -> str:
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, str):
        raise bad_request("messages: input_audio.data is missing")
    return data


_PARTS: Mapping[str, Callable[[object], str]] = {"image_url": _image, "input_audio": _audio}


# --- options ----------------------------------------------------------------------------------------------------------

_OPTIONS = "options"


def _option(name: str, kind: type[Any], *, exact: bool = True) -> Callable[[Draft, str], None]:
    def apply(draft: Draft, key: str) -> None:
        value = draft.read(key, kind)
        draft.body.setdefault(_OPTIONS, {})[name] = value
        if not exact:
            draft.warn(Policy.APPROXIMATED, key)

    return apply


def _row(key: str, name: str, kind: type[Any], policy: Policy = Policy.MAPPED, note: str = "") -> Rule:
    apply = _option(name, kind, exact=policy is Policy.MAPPED)
    return Rule(policy, f"options.{name}", lambda draft: apply(draft, key), note)


def _max_tokens(draft: Draft) -> None:
    """`max_completion_tokens` wins; 0 would never end on Ollama, what is negative means no limit there."""
    wanted = draft.read("max_completion_tokens", int)
    wanted = draft.read("max_tokens", int) if wanted is None else wanted
    if wanted == 0:
        raise bad_request("max_tokens: must be at least 1")
    if wanted is not None:
        draft.body.setdefault(_OPTIONS, {})["num_predict"] = wanted


def _stop(draft: Draft) -> None:
    """What is no text means nothing to Ollama's `/v1` (0.17.4, measured)."""
    given = draft.read("stop", object)
    stops = [text for text in (given if isinstance(given, list) else [given]) if isinstance(text, str)]
    if stops:
        draft.body.setdefault(_OPTIONS, {})["stop"] = stops


def _native_options(draft: Draft) -> None:
    """Ollama's own options, given as such: they win."""
    draft.body.setdefault(_OPTIONS, {}).update(draft.read(_OPTIONS, dict[str, Any]) or {})


def _num_ctx(draft: Draft) -> None:
    draft.body.setdefault(_OPTIONS, {})["num_ctx"] = draft.read("num_ctx", int)


# --- the rest ---------------------------------------------------------------------------------------------------------


def _tools(draft: Draft) -> None:
    tools = draft.read("tools", list[Raw])
    if tools and bytes(draft.call.head.get("tool_choice", b"")) != b'"none"':
        draft.body["tools"] = tools


def _tool_choice(draft: Draft) -> None:
    if bytes(draft.call.head["tool_choice"]) not in (b'"auto"', b'"none"'):
        draft.warn(Policy.DROPPED, "tool_choice")


def _parallel(draft: Draft) -> None:
    if draft.read("parallel_tool_calls", bool) is False:
        draft.warn(Policy.DROPPED, "parallel_tool_calls")


def _many(draft: Draft) -> None:
    if (draft.read("n", int) or 1) > 1:
        raise not_offered("n: several answers to one request")


def _refuse(key: str) -> Rule:
    def apply(draft: Draft) -> None:
        if bytes(draft.call.head[key]) not in (b"{}", b"[]", b'""'):
            raise not_offered(f"{key}: Ollama has nothing like it")

    return Rule(Policy.REFUSED, "", apply)


class _Schema(Struct):
    schema: Raw = Raw(b"null")


class _Format(Struct):
    type: str = ""
    json_schema: _Schema | None = None


def _response_format(draft: Draft) -> None:
    wanted = draft.read("response_format", _Format)
    assert wanted is not None  # it is called for a key that is given
    if wanted.type == "json_object":
        draft.body["format"] = "json"
    elif wanted.type == "json_schema":
        if wanted.json_schema is None or bytes(wanted.json_schema.schema) == b"null":
            raise bad_request("response_format: json_schema.schema is missing")
        draft.body["format"] = wanted.json_schema.schema
    elif wanted.type != "text":
        raise not_offered("response_format: of another type than text, json_object or json_schema")


class _Reasoning(Struct):
    effort: str | None = None


def _reasoning(draft: Draft) -> None:
    """The effort in the words of OpenAI's other API; it wins over `reasoning_effort`, as on Ollama's `/v1`."""
    if (reasoning := draft.read("reasoning", _Reasoning)) is not None:
        _think(draft, reasoning.effort or "")


def _effort(draft: Draft) -> None:
    _think(draft, draft.read("reasoning_effort", str) or "")


def _think(draft: Draft, effort: str) -> None:
    if not effort:
        return
    if effort not in EFFORTS:
        raise bad_request(f"reasoning_effort: must be one of {', '.join(EFFORTS)}")
    draft.body["think"] = EFFORTS[effort]


def _as_is(key: str) -> Callable[[Draft], None]:
    def apply(draft: Draft) -> None:
        draft.body[key] = draft.call.head[key]

    return apply


_MAP, _APPROX, _DROP = Policy.MAPPED, Policy.APPROXIMATED, Policy.DROPPED

CHAT: dict[str, Rule] = {
    "model": Rule(_MAP, "model", note="the back end's own name; answers echo the caller's spelling"),
    "messages": Rule(_MAP, "messages", _messages, "parts become text and images, arguments an object", True),
    "stream": Rule(_MAP, "stream"),
    "stream_options": Rule(_MAP, note="the usage chunk is made here"),
    "max_completion_tokens": Rule(_MAP, "options.num_predict", _max_tokens, "before max_tokens"),
    "max_tokens": Rule(_MAP, "options.num_predict", _max_tokens),
    "temperature": _row("temperature", "temperature", float, note="absent: the Modelfile's"),
    "top_p": _row("top_p", "top_p", float, note="absent: the Modelfile's"),
    "top_k": _row("top_k", "top_k", int),
    "min_p": _row("min_p", "min_p", float),
    "seed": _row("seed", "seed", int),
    "presence_penalty": _row("presence_penalty", "presence_penalty", float, note="over Ollama's window"),
    "frequency_penalty": _row("frequency_penalty", "frequency_penalty", float, note="over Ollama's window"),
    "repetition_penalty": _row(
        "repetition_penalty", "repeat_penalty", float, _APPROX, "over the last repeat_last_n tokens only"
    ),
    "stop": Rule(_MAP, "options.stop", _stop),
    "num_ctx": Rule(_MAP, "options.num_ctx", _num_ctx),
    "options": Rule(_MAP, "options", _native_options, "Ollama's own, as they are"),
    "keep_alive": Rule(_MAP, "keep_alive", _as_is("keep_alive")),
    "think": Rule(_MAP, "think", _as_is("think")),
    "reasoning_effort": Rule(_MAP, "think", _effort),
    "reasoning": Rule(_MAP, "think", _reasoning, "its `effort`, before reasoning_effort"),
    "response_format": Rule(_MAP, "format", _response_format),
    "tools": Rule(_MAP, "tools", _tools, "left out where tool_choice is none"),
    "tool_choice": Rule(_DROP, "", _tool_choice, "auto and none are kept; Ollama cannot be made to call"),
    "parallel_tool_calls": Rule(_DROP, "", _parallel),
    "logprobs": Rule(_MAP, "logprobs", _as_is("logprobs")),
    "top_logprobs": Rule(_MAP, "top_logprobs", _as_is("top_logprobs")),
    "n": Rule(Policy.REFUSED, "", _many, "1 is fine"),
    "logit_bias": _refuse("logit_bias"),
    "structured_outputs": _refuse("structured_outputs"),
}
"""`/v1/chat/completions` to `/api/chat`."""
