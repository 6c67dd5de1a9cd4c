"""Reads Ollama requests and refuses them in Ollama's words (0.17.4, measured; 0.33 source).

Pure: bytes in, a checked request or a `Refusal` out. Called by the native and the /v1 routes.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memos_llm.emulators import documents, golang
from memos_llm.emulators.ollama_models import Catalogue, OllamaModel, spelled_out, valid_name
from memos_llm.emulators.ollama_versions import Behaviour

_LEVELS = ("low", "medium", "high", "max")
_TOOL_SCHEMA = ("type", "$defs", "items", "required", "properties")
_PROPERTY_SCHEMA = ("anyOf", "type", "items", "description", "enum", "properties", "required")

_COMMON: Mapping[str, golang.Field] = {
    "model": ("string", "string"),
    "stream": ("bool", "bool"),
    "format": ("any", "json.RawMessage"),
    "keep_alive": ("any", "api.Duration"),
    "options": ("map", "map[string]interface {}"),
    "think": ("any", "api.ThinkValue"),
    "truncate": ("bool", "bool"),
    "shift": ("bool", "bool"),
    "logprobs": ("bool", "bool"),
    "top_logprobs": ("int", "int"),
}
_CHAT: Mapping[str, golang.Field] = {
    **_COMMON,
    "messages": ("slice", "[]api.Message"),
    "tools": ("slice", "api.Tools"),
}
_GENERATE: Mapping[str, golang.Field] = {
    **_COMMON,
    "prompt": ("string", "string"),
    "suffix": ("string", "string"),
    "system": ("string", "string"),
    "template": ("string", "string"),
    "context": ("slice", "[]int"),
    "raw": ("bool", "bool"),
    "images": ("slice", "[]api.ImageData"),
}
_MESSAGE: Mapping[str, golang.Field] = {
    "role": ("string", "string"),
    "content": ("string", "string"),
    "thinking": ("string", "string"),
    "images": ("slice", "[]api.ImageData"),
    "tool_calls": ("slice", "[]api.ToolCall"),
    "tool_name": ("string", "string"),
    "tool_call_id": ("string", "string"),
}
_CALL: Mapping[str, golang.Field] = {"id": ("string", "string"), "function": ("map", "api.ToolCallFunction")}
_CALL_FUNCTION: Mapping[str, golang.Field] = {
    "index": ("int", "int"),
    "name": ("string", "string"),
    "arguments": ("map", "api.ToolCallFunctionArguments"),
}
_TOOL: Mapping[str, golang.Field] = {"type": ("string", "string"), "function": ("map", "api.ToolFunction")}
_TOOL_FUNCTION: Mapping[str, golang.Field] = {
    "name": ("string", "string"),
    "description": ("string", "string"),
    "parameters": ("map", "api.ToolFunctionParameters"),
}
_OPTION_TYPES: Mapping[str, str] = {
    **dict.fromkeys(
        ("num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "num_ctx", "num_batch", "num_gpu", "main_gpu"),
        "integer",
    ),
    **dict.fromkeys(("num_thread", "draft_num_predict"), "integer"),
    **dict.fromkeys(
        ("top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"),
        "float32",
    ),
    "stop": "array",
    "use_mmap": "boolean",
}


@dataclass(frozen=True, slots=True)
class Naming:
    """How one route refuses a model's name: status and text; a text may use {name}.

    Args:
        nameless: no name at all. unknown: not installed. malformed: before such a name had an error of its own.
        nameless_before: no name, in those releases; None for as now.
    """

    nameless: tuple[int, str]
    unknown: tuple[int, str]
    malformed: tuple[int, str]
    nameless_before: tuple[int, str] | None = None


_CLOUD = re.compile(r":(?:[^/:]*-)?cloud$", re.IGNORECASE)  # runs on the vendor's servers; this one has that off
BAD_SCHEMA = "invalid JSON schema in format"
_REQUIRED = (400, "model is required")
_UNKNOWN = (404, "model '{name}' not found")
_NOT_PULLED = (404, 'model "{name}" not found, try pulling it first')
_UNQUALIFIED = (500, "unqualified name: {spelled}")
CHAT_NAMING = Naming(_REQUIRED, _UNKNOWN, _REQUIRED)
GENERATE_NAMING = Naming(_UNKNOWN, _UNKNOWN, _UNKNOWN)
SHOW_NAMING = Naming(_REQUIRED, _UNKNOWN, _UNQUALIFIED)
EMBED_NAMING = Naming(_UNKNOWN, _NOT_PULLED, _UNQUALIFIED, nameless_before=_UNQUALIFIED)
EMBEDDINGS_NAMING = Naming(_REQUIRED, _NOT_PULLED, _REQUIRED)
DELETE_NAMING = Naming((400, 'name "" is invalid'), _UNKNOWN, (400, 'name "{name}" is invalid'))


class Refusal(Exception):
    """A request this server refuses.

    Args:
        status, text: what is answered. by_layer: refused by the /v1 layer itself, not by the native handler.
    """

    def __init__(self, status: int, text: str, *, by_layer: bool = False) -> None:
        super().__init__(text)
        self.status, self.text, self.by_layer = status, text, by_layer


@dataclass(slots=True)
class Asked:
    """One checked inference request, in native terms; `messages` is what the model will see."""

    model_name: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    stream: bool = True
    schema: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    keep_alive_s: float | None = None
    think: bool | str | None = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    chat: bool = True
    raw: bool = False
    suffix: str = ""
    empty: bool = False  # nothing to answer: load or unload
    format_error: str | None = None

    @property
    def naming(self) -> Naming:
        """How its route refuses a name."""
        return CHAT_NAMING if self.chat else GENERATE_NAMING

    @property
    def num_predict(self) -> int | None:
        """Most tokens to generate, None for no limit that matters here."""
        limit = int(self.options.get("num_predict", -1))
        return limit if limit > 0 else None

    @property
    def stop(self) -> list[str]:
        """Stop strings; an empty one stops at once (measured)."""
        return list(self.options.get("stop", []))


def peek(body: bytes, key: str, usual: Any) -> Any:
    """One value of a body that may be anything; `usual` where there is none."""
    try:
        given = golang.loads(body)
    except golang.DecodeError:
        return usual
    return given.get(key, usual) if isinstance(given, dict) else usual


def read_chat(body: bytes, behaves: Behaviour) -> Asked:
    """Read a native chat request.

    Raises:
        Refusal: not decodable.
    """
    given = decoded(body, "ChatRequest", _CHAT)
    messages = [_message(message) for message in given.get("messages", [])]
    asked = _common(given, messages, behaves)
    asked.tools = [tool(item) for item in given.get("tools", [])]
    asked.empty = not messages
    return asked


def read_generate(body: bytes, behaves: Behaviour) -> Asked:
    """Read a native generate request.

    Raises:
        Refusal: not decodable, or raw together with template, system or context.
    """
    given = decoded(body, "GenerateRequest", _GENERATE)
    raw = bool(given.get("raw"))
    asked = _common(given, [], behaves)
    asked.chat, asked.raw, asked.suffix = False, raw, given.get("suffix", "")
    asked.empty = not given.get("prompt")
    if raw and (given.get("template") or given.get("system") or given.get("context")):
        raise Refusal(400, "raw mode does not support template, system, or context")
    asked.messages = [{"role": "raw", "content": given.get("prompt", "")}] if raw else _generate_messages(given)
    return asked


def _generate_messages(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if given.get("context"):
        messages.append({"role": "context", "content": " ".join(str(n) for n in given["context"])})
    for key in ("template", "system"):
        if given.get(key):
            messages.append({"role": key, "content": given[key]})
    user: dict[str, Any] = {"role": "user", "content": given.get("prompt", "") + given.get("suffix", "")}
    if given.get("images"):
        user["images"] = [_image(image) for image in given["images"]]
    return [*messages, user]


def decoded(body: bytes, struct: str, spec: Mapping[str, golang.Field]) -> dict[str, Any]:
    """A native body's known fields, in their canonical spelling.

    Raises:
        Refusal: 400, in Go's words.
    """
    try:
        return golang.fields(golang.loads(body), struct, spec)
    except golang.EmptyBody as reason:
        raise Refusal(400, "missing request body") from reason
    except golang.DecodeError as reason:
        raise Refusal(400, str(reason)) from reason


def keep_alive_s(given: Mapping[str, Any]) -> float | None:
    """The seconds to keep the model loaded, None if not said.

    Raises:
        Refusal: 400, not a duration.
    """
    said = given.get("keep_alive")
    try:
        return None if said is None else golang.duration_s(said)
    except golang.DecodeError as reason:
        raise Refusal(400, str(reason)) from reason


def options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are set: null is unset."""
    return {name: value for name, value in given.get("options", {}).items() if value is not None}


def _common(given: Mapping[str, Any], messages: list[dict[str, Any]], behaves: Behaviour) -> Asked:
    top = given.get("top_logprobs", 0) if behaves.logprobs else 0
    if not 0 <= top <= 20:
        raise Refusal(400, "top_logprobs must be between 0 and 20")
    schema, format_error = _format(given.get("format"))
    return Asked(
        given.get("model", ""),
        messages,
        stream=given.get("stream", True),
        schema=schema,
        options=options(given),
        keep_alive_s=keep_alive_s(given),
        think=_think(given.get("think"), behaves),
        truncate=given.get("truncate", True),
        shift=given.get("shift", True),
        logprobs=behaves.logprobs and given.get("logprobs", False),
        top_logprobs=top,
        format_error=format_error,
    )


def _format(given: Any) -> tuple[Any, str | None]:
    if given is None or given == "":
        return None, None
    if documents.unknown_type(given) is not None:
        return None, BAD_SCHEMA
    if given == "json" or isinstance(given, dict):
        return given, None
    quoted = golang.dumps(golang.dumps(given).decode()).decode()
    return None, f'invalid format: {quoted}; expected "json" or a valid JSON Schema object'


def _think(given: Any, behaves: Behaviour) -> bool | str | None:
    if given is None or isinstance(given, bool):
        return given
    levels = _LEVELS if behaves.think_max else _LEVELS[:3]
    choices = ", ".join([*(f'"{level}"' for level in ("high", "medium", "low", "max") if level in levels), "true"])
    if isinstance(given, str):
        if given in levels:
            return given
        raise Refusal(400, f'invalid think value: "{given}" (must be {choices}, or false)')
    raise Refusal(400, f"think must be a boolean or string ({choices}, or false)")


def _message(given: Any) -> dict[str, Any]:
    try:
        message = golang.fields(given, "ChatRequest", _MESSAGE, "messages", "api.Alias")
        calls = [_tool_call(call) for call in message.get("tool_calls", [])]
    except golang.DecodeError as reason:
        raise Refusal(400, str(reason)) from reason
    message["role"] = message.get("role", "").lower()
    message.setdefault("content", "")
    if calls:
        message["tool_calls"] = calls
    if "images" in message:
        message["images"] = [_image(image) for image in message["images"]]
    return message


def _tool_call(given: Any) -> dict[str, Any]:
    call = golang.fields(given, "ChatRequest", _CALL, "messages.tool_calls")
    function = golang.fields(call.get("function"), "ChatRequest", _CALL_FUNCTION, "messages.tool_calls.function")
    return {**call, "function": function}


def _image(given: Any) -> str:
    if not isinstance(given, str):
        where = "Go struct field ChatRequest.messages.images of type api.ImageData"
        raise Refusal(400, f"json: cannot unmarshal {golang.kind(given)} into {where}")
    try:
        base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError) as reason:
        bad = next((i for i, c in enumerate(given) if not (c.isalnum() or c in "+/=")), len(given))
        raise Refusal(400, f"illegal base64 data at input byte {bad}") from reason
    return given


def tool(given: Any) -> dict[str, Any]:
    """A tool as Ollama keeps it: most schema keywords are lost on the way to the template.

    Raises:
        Refusal: wrong types.
    """
    try:
        outer = golang.fields(given, "ChatRequest", _TOOL, "tools", "api.Tool")
        function = golang.fields(outer.get("function"), "ChatRequest", _TOOL_FUNCTION, "tools.function")
    except golang.DecodeError as reason:
        raise Refusal(400, str(reason)) from reason
    parameters = function.get("parameters") or {}
    kept = {key: parameters[key] for key in _TOOL_SCHEMA if key in parameters}
    if isinstance(kept.get("properties"), dict):
        kept["properties"] = {name: _lossy(sub) for name, sub in kept["properties"].items()}
    return {"type": outer.get("type", "function"), "function": {**function, "parameters": kept}}


def _lossy(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    return {key: schema[key] for key in _PROPERTY_SCHEMA if key in schema}


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse a known option of another type: that is a 500, not a 400 (measured).

    Raises:
        Refusal: the first such option.
    """
    for key, value in options.items():
        wanted = _OPTION_TYPES.get(key)
        if wanted is None or value is None or _fits(wanted, value):
            continue
        strings = wanted == "array" and isinstance(value, list)
        raise Refusal(500, f'option "{key}" must be of {"an array of strings" if strings else f"type {wanted}"}')


def _fits(wanted: str, value: Any) -> bool:
    if wanted == "boolean":
        return isinstance(value, bool)
    if wanted == "array":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def find_model(catalogue: Catalogue, name: str, naming: Naming, *, strict_names: bool) -> OllamaModel:
    """The model of that name.

    Args:
        strict_names: a malformed name is a 400 of its own, and a cloud model is known by its tag.

    Raises:
        Refusal: no name, a malformed name, a cloud model, or not installed, in the route's words.
    """
    if not name:
        before = None if strict_names else naming.nameless_before
        raise _refused(before or naming.nameless, name)
    if not valid_name(name):
        raise _refused((400, "invalid model name") if strict_names else naming.malformed, name)
    if strict_names and _CLOUD.search(name):
        raise Refusal(403, "ollama cloud is disabled: remote inference is unavailable")
    model = catalogue.find(name)
    if model is None:
        raise _refused(naming.unknown, name)
    return model


def _refused(words: tuple[int, str], name: str) -> Refusal:
    status, text = words
    return Refusal(status, text.replace("{name}", name).replace("{spelled}", spelled_out(name)))


def check_capabilities(model: OllamaModel, asked: Asked, behaves: Behaviour) -> bool:
    """Refuse what the model cannot do; return whether it will think (the default on a thinking model).

    Raises:
        Refusal: 400 in the words of the missing capability.
    """
    able = set(model.capabilities)
    if "completion" not in able:
        raise Refusal(400, f'"{asked.model_name}" does not support {"chat" if asked.chat else "generate"}')
    for wanted, capability in ((asked.tools, "tools"), (asked.suffix, "insert")):
        if wanted and capability not in able:
            raise Refusal(400, f"{model.qualified} does not support {capability}")
    if asked.think and "thinking" not in able:
        raise Refusal(400, f'"{asked.model_name}" does not support thinking')
    everywhere = behaves.think_levels_everywhere or model.name.startswith("gpt-oss")
    if isinstance(asked.think, str) and not everywhere:
        raise Refusal(400, f'think value "{asked.think}" is not supported for this model')
    return "thinking" in able and (behaves.thinks_unasked if asked.think is None else bool(asked.think))


def blind(message: dict[str, Any]) -> dict[str, Any]:
    """A message as a model without vision gets it: of its images only their placeholders are left (measured)."""
    if not message.get("images"):
        return message
    marks = "".join(f"[img-{index}]" for index in range(len(message["images"])))
    kept = {key: value for key, value in message.items() if key != "images"}
    return {**kept, "content": marks + message.get("content", "")}
