"""Ollama's native requests as vLLM's: `/api/chat` and `/api/generate` to chat, raw and fill-in-middle to completions.

The rules are the tables at the end, one row per key; options have a table of their own (`ollama_options`). Null means
absent everywhere, as it does to Ollama, and vLLM is never sent a null where it refuses one.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from memos_llm.core.call import Call, Feature, Quirk, Target, Thinking, Wire, WireRequest
from memos_llm.core.decision import Offer
from memos_llm.dialects import media
from memos_llm.dialects.codecs.ollama_options import apply_options
from memos_llm.dialects.codecs.repairs import DEFAULTS
from memos_llm.dialects.codecs.rules import Draft, Policy, Rule, bad_request, carry_out, not_offered, unlimited
from memos_llm.dialects.ollama import Call as ToolCall
from memos_llm.dialects.ollama import Ids, Message, identify

FEATURES = Feature.SUFFIX | Feature.AUDIO

FORMAT_NAME = "ollama_format"  # vLLM wants a name for every schema

ESTIMATED = "estimated:eval_duration"  # without a stream nobody sees where the prompt ended


def upstream(call: Call) -> Wire:
    """Chat, unless the caller wrote the prompt out himself."""
    return Wire.OPENAI_COMPLETION if _is_verbatim(call) else Wire.OPENAI_CHAT


def translate(call: Call, target: Target, offer: Offer) -> tuple[WireRequest, tuple[str, ...]]:
    """The back end's request, and warnings.

    Raises:
        AttemptFailed: `client` when the caller's body cannot be understood, `incompatible` when vLLM cannot do it.
    """
    if call.needs & ~FEATURES:
        raise not_offered(f"no equivalent: {(call.needs & ~FEATURES).name}")
    draft = Draft(call, target, offer, {"model": target.model})
    carry_out(_rules(call), draft)
    for name, value in target.settings.defaults.items():
        if draft.body.get(name) is None:
            draft.body[name] = value
            draft.warnings.append(f"repaired:{DEFAULTS}")
    if not call.stream:
        draft.warnings.append(ESTIMATED)
    request = WireRequest(call.id, upstream(call), target.model, msgspec.json.encode(draft.body), call.stream)
    return request, tuple(dict.fromkeys(draft.warnings))


def _rules(call: Call) -> dict[str, Rule]:
    if call.wire is Wire.OLLAMA_CHAT:
        return CHAT
    return VERBATIM if _is_verbatim(call) else GENERATE


def _is_verbatim(call: Call) -> bool:
    if call.wire is not Wire.OLLAMA_GENERATE:
        return False
    return bool(call.needs & Feature.SUFFIX) or bytes(call.head.get("raw", b"")) == b"true"


# --- messages ---------------------------------------------------------------------------------------------------------


def _messages(draft: Draft) -> None:
    messages = draft.read("messages", list[Message]) or []
    thoughts = THOUGHTS[bool(draft.offer.quirks & Quirk.OLD_REASONING)]
    draft.body["messages"] = [_message(m, ids, thoughts) for m, ids in zip(messages, identify(messages), strict=True)]


THOUGHTS = {False: "reasoning", True: "reasoning_content"}
"""Whether the release is old → what it calls the reasoning of a history."""


def _message(message: Message, ids: Ids, thoughts: str) -> dict[str, Any]:
    role = message.role.lower()
    written: dict[str, Any] = {"role": role, "content": _content(message.content or "", message.images or [])}
    if role == "assistant" and message.thinking:
        written[thoughts] = message.thinking
    if message.tool_calls:
        written["tool_calls"] = [_tool_call(call, id_) for call, id_ in zip(message.tool_calls, ids.calls, strict=True)]
    if role == "tool":
        written |= _answered(message, ids)
    return written


def _answered(message: Message, ids: Ids) -> dict[str, Any]:
    if ids.answers is None:
        raise not_offered("a tool result that answers no call of the history")
    named = {"name": message.tool_name} if message.tool_name else {}
    return {"tool_call_id": ids.answers, **named}


def _tool_call(call: ToolCall, id_: str) -> dict[str, Any]:
    """Arguments become text, as the caller wrote them."""
    try:
        arguments = bytes(call.function.arguments).decode()
    except UnicodeDecodeError:
        raise bad_request("messages: the arguments of a tool call are not valid UTF-8") from None
    if arguments == "null":
        arguments = "{}"
    if not arguments.startswith("{"):
        raise bad_request("messages: the arguments of a tool call must be an object")
    return {"id": id_, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _content(text: str, images: list[str]) -> str | list[dict[str, Any]]:
    """Plain text, or parts with the text first."""
    if not images:
        return text
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    return parts + [_part(image) for image in images]


def _part(image: str) -> dict[str, Any]:
    if not media.is_base64(image):
        raise bad_request("images: illegal base64 data (a data: prefix is none)")
    data, kind = media.clean(image), media.sniff(image)
    if kind.audio:
        return {"type": "input_audio", "input_audio": {"data": data, "format": kind.audio}}
    return {"type": "image_url", "image_url": {"url": f"data:{kind.mime};base64,{data}"}}


def _prompt_as_chat(draft: Draft) -> None:
    system = draft.read("system", str)
    content = _content(draft.read("prompt", str) or "", draft.read("images", list[str]) or [])
    opening = [{"role": "system", "content": system}] if system else []
    draft.body["messages"] = [*opening, {"role": "user", "content": content}]


# --- a prompt taken as it is ------------------------------------------------------------------------------------------

BOS_TEXTS = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>")
"""Ollama adds a BOS only where the prompt has none, vLLM adds one to any: it must be told not to."""


def _verbatim_prompt(draft: Draft) -> None:
    prompt = draft.read("prompt", str) or ""
    draft.body["prompt"] = prompt
    draft.body["max_tokens"] = unlimited(draft.offer)  # absent would mean 16
    if prompt.startswith(BOS_TEXTS):
        draft.body["add_special_tokens"] = False


def _suffix(draft: Draft) -> None:
    if suffix := draft.read("suffix", str):
        draft.body["suffix"] = suffix


def _raw(draft: Draft) -> None:
    if draft.read("raw", bool) and draft.read("system", str):
        raise bad_request("raw mode does not support template, system, or context")


def _no_raw(draft: Draft) -> None:
    draft.read("raw", bool)  # only the type is left to look at


def _verbatim_logprobs(draft: Draft) -> None:
    if draft.read("logprobs", bool):
        draft.body["logprobs"] = _top_logprobs(draft)


# --- shape of the answer ----------------------------------------------------------------------------------------------


def _stream(draft: Draft) -> None:
    draft.body["stream"] = draft.call.stream
    if draft.call.stream:
        draft.body["stream_options"] = {"include_usage": True}


def _tools(draft: Draft) -> None:
    if draft.read("tools", list[Raw]):
        draft.body["tools"] = draft.call.head["tools"]


def _format(draft: Draft) -> None:
    value = draft.call.head["format"]
    kind = bytes(value)
    if kind.startswith(b"{"):
        schema = {"name": FORMAT_NAME, "schema": value}
        draft.body["response_format"] = {"type": "json_schema", "json_schema": schema}
        draft.warn(Policy.APPROXIMATED, "format")
    elif kind == b'"json"':
        draft.body["response_format"] = {"type": "json_object"}
    elif kind != b'""':
        raise bad_request('format: must be "json" or a JSON schema')


def _logprobs(draft: Draft) -> None:
    if draft.read("logprobs", bool):
        draft.body["logprobs"] = True
        if count := _top_logprobs(draft):
            draft.body["top_logprobs"] = count


def _without_logprobs(draft: Draft) -> None:
    """vLLM refuses `top_logprobs` alone."""
    if _top_logprobs(draft) and not draft.read("logprobs", bool):
        draft.warn(Policy.DROPPED, "top_logprobs")


def _top_logprobs(draft: Draft) -> int:
    count = draft.read("top_logprobs", int) or 0
    if not 0 <= count <= 20:
        raise bad_request("top_logprobs must be between 0 and 20")
    return count


# --- thinking ---------------------------------------------------------------------------------------------------------

EFFORTS: Mapping[str, str] = {"low": "low", "medium": "medium", "high": "high", "max": "high"}
"""`max` is known to few models and to new releases only."""


def _think(draft: Draft) -> None:
    """Absent means true on a model that can think (Ollama since 0.12.4)."""
    think, switch = _asked_thinking(draft), draft.target.settings.thinking
    if switch is None:
        if think:
            draft.warn(Policy.DROPPED, "think")
    elif switch is Thinking.REASONING_EFFORT:
        _set_effort(draft, think)
    else:
        draft.body["chat_template_kwargs"] = {switch.value: think is None or bool(think)}
        if isinstance(think, str):
            draft.body["reasoning_effort"] = EFFORTS[think]
            draft.warn(Policy.APPROXIMATED, "think")


def _set_effort(draft: Draft, think: bool | str | None) -> None:
    if think is False:
        draft.body["reasoning_effort"] = "low"  # it cannot be switched off
        draft.warn(Policy.APPROXIMATED, "think")
    elif isinstance(think, str):
        draft.body["reasoning_effort"] = EFFORTS[think]


def _asked_thinking(draft: Draft) -> bool | str | None:
    value = draft.read("think", object)
    if value is None or isinstance(value, bool) or (isinstance(value, str) and value in EFFORTS):
        return value
    raise bad_request(f"think: must be true, false, or one of {', '.join(EFFORTS)}")


def _no_think(draft: Draft) -> None:
    if _asked_thinking(draft):
        draft.warn(Policy.DROPPED, "think")


# --- the tables -------------------------------------------------------------------------------------------------------

_MAP, _APPROX, _DROP, _IGNORE, _REFUSE = (
    Policy.MAPPED,
    Policy.APPROXIMATED,
    Policy.DROPPED,
    Policy.IGNORED,
    Policy.REFUSED,
)

_COMMON: dict[str, Rule] = {
    "model": Rule(_MAP, "model", note="the back end's own name; answers echo the caller's spelling"),
    "stream": Rule(_MAP, "stream, stream_options", _stream, "absent means true; the counts are always asked for", True),
    "options": Rule(_MAP, "", apply_options, "option by option, see the options"),
    "format": Rule(_APPROX, "response_format", _format, "a schema is read by another grammar engine"),
    "keep_alive": Rule(_IGNORE, note="vLLM keeps its model"),
    "truncate": Rule(_DROP, note="vLLM refuses a prompt that is too long; the next target may take it"),
    "shift": Rule(_DROP, note="vLLM stops at the end of its context"),
}

CHAT: dict[str, Rule] = {
    "messages": Rule(_MAP, "messages", _messages, "images become parts, arguments text; ids are made up where missing"),
    **_COMMON,
    "tools": Rule(_MAP, "tools", _tools, "the whole schema; an empty list is left out"),
    "think": Rule(
        _APPROX,
        "chat_template_kwargs, reasoning_effort",
        _think,
        "as the model's `thinking` says; a model without one is not asked to",
        True,
        (_DROP,),
    ),
    "logprobs": Rule(_MAP, "logprobs, top_logprobs", _logprobs),
    "top_logprobs": Rule(_MAP, "", _without_logprobs, "with `logprobs` only", says=(_DROP,)),
    "_debug_render_only": Rule(_REFUSE),
}
"""`/api/chat` to `/v1/chat/completions`."""

GENERATE: dict[str, Rule] = {
    "prompt": Rule(_MAP, "messages", _prompt_as_chat, "one user message"),
    "system": Rule(_MAP, "messages", note="a system message before it"),
    "images": Rule(_MAP, "messages", note="parts of the user message"),
    **_COMMON,
    "raw": Rule(_MAP, "", _no_raw, "true goes to /v1/completions"),
    "think": CHAT["think"],
    "logprobs": CHAT["logprobs"],
    "top_logprobs": CHAT["top_logprobs"],
    "template": Rule(_REFUSE, note="a Go template"),
    "context": Rule(_REFUSE, note="token ids of another tokenizer; none is ever returned"),
    "_debug_render_only": CHAT["_debug_render_only"],
}
"""`/api/generate` to `/v1/chat/completions`."""

VERBATIM: dict[str, Rule] = {
    "prompt": Rule(_MAP, "prompt, max_tokens, add_special_tokens", _verbatim_prompt, "as it is; no second BOS"),
    "suffix": Rule(_MAP, "suffix", _suffix, "vLLM refuses it for models that cannot fill in"),
    "raw": Rule(_MAP, "", _raw),
    **_COMMON,
    "system": Rule(_DROP, note="with `suffix` only; with `raw` it is an error"),
    "images": Rule(_DROP),
    "think": Rule(_DROP, "", _no_think, "no template that could switch it"),
    "logprobs": Rule(_MAP, "logprobs", _verbatim_logprobs, "the number of alternatives"),
    "top_logprobs": CHAT["top_logprobs"],
    "template": GENERATE["template"],
    "context": GENERATE["context"],
    "_debug_render_only": CHAT["_debug_render_only"],
}
"""`/api/generate` with `raw` or `suffix` to `/v1/completions`."""
