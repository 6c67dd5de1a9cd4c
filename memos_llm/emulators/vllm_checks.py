"""vLLM's checks of chat, completion and tokenize requests: conversation, tools, formats, templates.

Pure: a decoded body in, converted in place, or a `Rejection` in vLLM's words (0.32.0, measured; 0.33 source).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memos_llm.emulators import documents, vllm_types
from memos_llm.emulators.vllm_requests import Rejection, literal_error, plain_error, schema_error, value_error
from memos_llm.emulators.vllm_sampling import check_sampling, check_stop, check_top
from memos_llm.emulators.vllm_versions import Release

EMPTY_CONVERSATION = "Cannot apply chat template to an empty conversation. Provide at least one message."
_FORMATS = ("text", "json_object", "json_schema", "structural_tag")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server was started with, as far as it decides what is accepted."""

    max_model_len: int
    auto_tools: bool
    vision: bool
    release: Release
    served: str
    trust_template: bool = False


def check_chat(given: dict[str, Any], limits: Limits) -> None:
    """Reject a chat request the server would reject before it looks for the model.

    Raises:
        Rejection: 400, first problem found.
    """
    _check_stream_options(given)
    _check_logprobs(given)
    _check_tool_usage(given, limits.release)
    vllm_types.convert(given, vllm_types.CHAT)
    if "messages" not in given:
        raise schema_error(("messages",), "missing", "Field required", given)
    check_conversation(given)
    _check_formats(given)
    _check_schema(given)
    effort = given.get("reasoning_effort")
    if effort is not None and effort not in limits.release.efforts:
        raise literal_error(("reasoning_effort",), limits.release.efforts, effort)
    check_stop(given, limits.release)
    _check_generation_prompt(given)


def check_chat_of_model(given: dict[str, Any], limits: Limits) -> None:
    """Reject what the served model cannot do, once it is known to be asked for.

    Raises:
        Rejection: 400, or 422 for an image that cannot be fetched.
    """
    if given["messages"] == []:
        raise plain_error(EMPTY_CONVERSATION)
    if given.get("chat_template") and not limits.trust_template:
        text = "Chat template is passed with request, but --trust-request-chat-template is not set."
        raise plain_error(f"{text} Refused request with untrusted chat template.")
    _check_parser(given, limits)
    check_parts(given["messages"], limits)
    check_sampling(given, limits.release, ("max_completion_tokens", "max_tokens"))


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
    """Reject a completion request the server would reject before it looks for the model.

    Raises:
        Rejection: 400, first problem found.
    """
    _check_stream_options(given)
    vllm_types.convert(given, vllm_types.COMPLETION)
    top = given.get("logprobs")
    if top is not None and top < -1:
        raise value_error("`logprobs` must be a positive value or -1.", "logprobs", top)
    check_top(top or 0)
    check_stop(given, limits.release)
    prompt = given.get("prompt")
    if prompt == []:
        raise plain_error("You must pass at least one prompt")
    if prompt is None or prompt == "":
        raise value_error("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if not isinstance(prompt, str) and not is_prompt_list(prompt):
        raise schema_error(("prompt",), "string_type", "Input should be a valid string", prompt)


def check_completion_of_model(given: dict[str, Any], limits: Limits) -> None:
    """Reject what the served model cannot do.

    Raises:
        Rejection: 400.
    """
    if given.get("suffix") is not None:  # an empty one too (measured)
        if limits.release.has("nulls of 0.32"):
            raise plain_error("suffix is only supported for models with FIM completion rendering", "suffix")
        raise plain_error("suffix is not currently supported")
    if isinstance(given["prompt"], list) and any(item in ("", []) for item in given["prompt"]):
        raise plain_error("The decoder prompt cannot be empty")
    only_echo = given.get("echo") and given.get("max_tokens") == 0
    check_sampling(given, limits.release, () if only_echo else ("max_tokens",))


def is_id(value: Any) -> bool:
    """Whether a value is a token id."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_prompt_list(prompt: Any) -> bool:
    """Whether a list is token ids, or a list of prompts."""

    def ids(value: Any) -> bool:
        return isinstance(value, list) and all(is_id(item) for item in value)

    return ids(prompt) or (isinstance(prompt, list) and all(isinstance(item, str) or ids(item) for item in prompt))


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
    check_top(top)


def _check_tool_usage(given: dict[str, Any], release: Release) -> None:
    tools, choice = given.get("tools"), given.get("tool_choice")
    if tools == [] and release.has("empty tools are refused"):
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
    if "role" not in message:
        raise schema_error((*at, "role"), "missing", "Field required", message)
    if not isinstance(message["role"], str):
        raise schema_error((*at, "role"), "string_type", "Input should be a valid string", message["role"])
    _check_content(at, message)
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise schema_error((*at, "tool_calls"), "list_type", "Input should be a valid list", calls)
    for number, call in enumerate(calls):
        _check_call((*at, "tool_calls", number), call)


def _check_content(at: tuple[str | int, ...], message: Mapping[str, Any]) -> None:
    content = message.get("content")
    if "content" not in message or (content is None and message["role"] == "assistant"):
        return
    if not isinstance(content, str | list):
        raise schema_error((*at, "content"), "string_type", "Input should be a valid string", content)


def _check_call(at: tuple[str | int, ...], call: Any) -> None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise schema_error((*at, "function"), "missing", "Field required", call)
    arguments = function.get("arguments", "")
    if not isinstance(arguments, str):
        where = (*at, "function", "arguments")
        raise schema_error(where, "string_type", "Input should be a valid string", arguments)


def _check_tool(index: int, tool: Any) -> None:
    at = ("tools", index)
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        raise schema_error((*at, "function"), "missing", "Field required", tool)
    if not isinstance(function.get("name"), str):
        kind, text = (
            ("string_type", "Input should be a valid string") if "name" in function else ("missing", "Field required")
        )
        raise schema_error((*at, "function", "name"), kind, text, function.get("name", function))
    if not isinstance(function.get("parameters") or {}, dict):
        where = (*at, "function", "parameters")
        raise schema_error(where, "dict_type", "Input should be a valid dictionary", function["parameters"])


def check_parts(messages: Sequence[Mapping[str, Any]], limits: Limits) -> None:
    """Reject content parts the model cannot take.

    Raises:
        Rejection: 400, or 422 for an image that cannot be fetched (nothing can be, here).
    """
    for part in (part for m in messages if isinstance(m.get("content"), list) for part in m["content"]):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            continue
        if kind != "image_url":
            raise plain_error(f"Unknown part type: {kind}")
        if not limits.vision:
            raise plain_error(f"{limits.served} is not a multimodal model")
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str) or not url.startswith("data:"):
            raise Rejection(422, "UnprocessableEntityError", f"Failed to fetch media: {url}", "image_url")


def _check_formats(given: Mapping[str, Any]) -> None:
    wanted = given.get("response_format")
    if wanted is None:
        return
    if "type" not in wanted:
        raise schema_error(("response_format", "type"), "missing", "Field required", wanted)
    if wanted["type"] not in _FORMATS:
        raise literal_error(("response_format", "type"), _FORMATS, wanted["type"])
    if wanted["type"] != "json_schema":
        return
    schema = wanted.get("json_schema")
    if schema is None:
        text = "When response_format type is 'json_schema', the 'json_schema' field must be provided."
        raise value_error(text, "response_format")
    if not isinstance(schema, dict) or "name" not in schema:
        raise schema_error(("response_format", "json_schema", "name"), "missing", "Field required", schema)
    if not isinstance(schema["name"], str):
        at = ("response_format", "json_schema", "name")
        raise schema_error(at, "string_type", "Input should be a valid string", schema["name"])


def _check_schema(given: Mapping[str, Any]) -> None:
    wanted = given.get("response_format") or {}
    odd = documents.unknown_type(wanted["json_schema"].get("schema")) if wanted.get("type") == "json_schema" else None
    if odd is not None:
        text = f'[00:00:00] <path>:0: Unsupported type "{odd}"'
        raise plain_error(f"Failed to transform json schema into a grammar: {text}")


def _check_generation_prompt(given: Mapping[str, Any]) -> None:
    if given.get("add_generation_prompt", True) and given.get("continue_final_message"):
        text = (
            "continue_final_message and add_generation_prompt are not compatible. Use continue_final_message when you "
            "want the model to continue the final message, and add_generation_prompt when you want to add a header "
            "that will prompt it to start a new assistant message instead."
        )
        raise plain_error(text)
