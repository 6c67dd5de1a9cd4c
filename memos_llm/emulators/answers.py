"""What an emulator says: a pure function of the engine and of the messages the model would see.

Decides the text, the thinking, the tool calls and every token count of an answer, so that a checker can
recompute word for word what any emulator must have said. No I/O, no clock, no randomness; called by both
emulators and by whoever checks them.

Invariants: the same call gives the same answer in every process; the two engines never say the same text;
`"".join(tokens)` is the text; tool calls are the same on both engines (as two copies of one model would make).

Words in the last user message steer the answer: `tool:NAME` calls that tool (once for each mention),
"weather" calls the first tool, `words:N` sets the length.

A number in a request never decides how much memory is taken: what lies beyond every limit is not made at all.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from memos_llm.emulators.documents import Room, compact, salted, sample, sample_object

Engine = Literal["ollama", "vllm"]
Message = Mapping[str, Any]

_TOKEN = re.compile(r"\s*[\w<>&/]+|\s*[^\w\s<>&/]+|\s+")
_TOOL = re.compile(r"tool:([A-Za-z0-9_.-]+)")
_WORDS = re.compile(r"words:(\d+)")
_OPENING: Mapping[str, str] = {"ollama": "Ollama answers", "vllm": "vLLM replies"}
_VOCABULARY: Mapping[str, tuple[str, ...]] = {
    "ollama": (
        "alpaca",
        "meadow",
        "wool",
        "hill",
        "café",
        "<b>herd</b>",
        "R&D",
        "ラマ",
        "🦙",
        "slope\nvalley",
        "llama",
    ),
    "vllm": ("paged", "block", "kernel", "batch", "cache", "naïve", "a<b", "Q&A", "高速", "⚡", "prefix\ndecode"),
}
_MESSAGE_OVERHEAD = 4  # role and turn markers of a ChatML-like template
_PROMPT_OVERHEAD = 3  # the opened assistant turn
_IMAGE_TOKENS = 256

MAX_WORDS = 1_048_576  # no context is longer


@dataclass(frozen=True, slots=True)
class ToolUse:
    """One tool call: `arguments` is the object, before any dialect turns it into a string."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer. Counts include the ending token of an answer that stopped by itself."""

    thinking: tuple[str, ...]
    content: tuple[str, ...]
    tool_calls: tuple[ToolUse, ...]
    finish: Literal["stop", "length"]
    matched_stop: str | None
    prompt_tokens: int
    completion_tokens: int

    @property
    def text(self) -> str:
        """The visible text."""
        return "".join(self.content)

    @property
    def thinking_text(self) -> str:
        """The reasoning text, empty when the model did not think."""
        return "".join(self.thinking)


def tokens(text: str) -> tuple[str, ...]:
    """Split a text into the emulated tokenizer's pieces; joined they give the text again."""
    return tuple(_TOKEN.findall(text))


def token_id(piece: str) -> int:
    """The stable id of a piece, 0 to 151642 (the size of a usual vocabulary)."""
    return zlib.crc32(piece.encode()) % 151643


def logical(engine: Engine, messages: Iterable[Message]) -> list[dict[str, Any]]:
    """What the model sees of messages in either dialect: role, text, image digests, tool calls without ids.

    Ollama splits the parts of an OpenAI content and joins neighbours of one role (measured on 0.17.4);
    vLLM joins the text parts of one message by line breaks and keeps neighbours apart.
    """
    seen = [_one_message(message, "\n\n" if engine == "ollama" else "\n") for message in messages]
    return _joined(seen) if engine == "ollama" else seen


def expected(
    engine: Engine,
    messages: Sequence[Message],
    *,
    seed: int = 0,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: Any = None,
    schema: Mapping[str, Any] | Literal["json"] | None = None,
    thinking: bool = False,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    words: int | None = None,
    choice: int = 0,
) -> Answer:
    """The answer an emulator must give.

    Args:
        engine: who answers.
        messages: OpenAI or Ollama chat messages; a plain prompt is `[{"role": "user", "content": prompt}]`
            (through a template) or `[{"role": "raw", "content": prompt}]` (without one).
        seed: the emulator's seed, not the request's.
        tools: the tools given, in the OpenAI shape. tool_choice: OpenAI's; Ollama ignores it, so pass None there.
        schema: a JSON schema the answer must fit, or "json" for any object.
        thinking: whether the model thinks first.
        max_tokens: most tokens to generate, None for no limit. stop: strings that end the visible text.
        words: length of the text in words; None takes it from the messages (5 to 12).
        choice: index of the choice when n > 1.
    """
    seen = logical(engine, messages)
    digest = _digest(engine, seed, choice, seen)
    thoughts = tokens(_thoughts(engine, digest)) if thinking else ()
    calls = _calls(seen, tools or (), tool_choice)
    if calls:
        content: tuple[str, ...] = ()
    elif schema is not None:
        content = tokens(_document(engine, schema, digest))
    else:
        most = min(MAX_WORDS, MAX_WORDS if max_tokens is None else max_tokens) + max(map(len, stop), default=0)
        content = tokens(_prose(engine, digest, min(most, _length(seen, words, digest))))
    content, matched, used = _stopped(content, stop)
    return _limited(thoughts, content, calls, matched, used, prompt_tokens(seen, tools or ()), max_tokens)


def prompt_tokens(seen: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> int:
    """Count the prompt's tokens; `seen` is what `logical` returned."""
    total = 0
    for message in seen:
        raw = message["role"] == "raw"
        total += len(tokens(message["content"])) + (0 if raw else _MESSAGE_OVERHEAD)
        total += _IMAGE_TOKENS * len(message.get("images", ()))
        total += sum(len(tokens(compact(call))) for call in message.get("calls", ()))
    if any(message["role"] != "raw" for message in seen):
        total += _PROMPT_OVERHEAD
    return total + sum(len(tokens(compact(tool))) for tool in tools)


def _one_message(message: Message, glue: str) -> dict[str, Any]:
    texts, images = _content(message.get("content"))
    images += [_image_digest(image) for image in message.get("images") or ()]
    seen: dict[str, Any] = {"role": str(message.get("role", "user")).lower(), "content": glue.join(texts)}
    if images:
        seen["images"] = images
    calls = [_call(call) for call in message.get("tool_calls") or ()]
    if calls:
        seen["calls"] = calls
    return seen


def _content(content: Any) -> tuple[list[str], list[str]]:
    if not isinstance(content, list):
        return [content or ""], []
    texts = [str(part.get("text") or "") for part in content if part.get("type") == "text"]
    images = [_image_digest(_url(part.get("image_url"))) for part in content if part.get("type") == "image_url"]
    return texts, images


def _url(image: Any) -> str:
    return str(image.get("url", "")) if isinstance(image, Mapping) else str(image)


def _image_digest(image: str) -> str:
    data = image.split(";base64,", 1)[-1]
    try:
        return hashlib.sha256(base64.b64decode(data)).hexdigest()[:16]
    except (binascii.Error, ValueError):
        return hashlib.sha256(data.encode()).hexdigest()[:16]


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            arguments = {}  # vLLM renders unreadable arguments of old calls as {}
    return {"name": function.get("name", ""), "arguments": arguments}


def _joined(seen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    merged: list[dict[str, Any]] = []
    for message in seen:
        last = merged[-1] if merged else None
        if last is None or last["role"] != message["role"] or message["role"] in ("tool", "raw") or "calls" in last:
            merged.append(dict(message))
            continue
        last["content"] = "\n\n".join(text for text in (last["content"], message["content"]) if text)
        for key in ("images", "calls"):
            if key in message:
                last[key] = [*last.get(key, []), *message[key]]
    return merged


def _digest(engine: str, seed: int, choice: int, seen: Sequence[Message]) -> str:
    return hashlib.sha256(compact([engine, seed, choice, seen]).encode()).hexdigest()


def _last_user_text(seen: Sequence[Message]) -> str:
    return next((str(m["content"]) for m in reversed(seen) if m["role"] in ("user", "raw")), "")


def _length(seen: Sequence[Message], words: int | None, digest: str) -> int:
    asked = _WORDS.search(_last_user_text(seen))
    if asked:
        return int(asked.group(1)[:12])
    return words if words is not None else 5 + int(digest[:2], 16) % 8


def _prose(engine: str, digest: str, length: int) -> str:
    vocabulary = _VOCABULARY[engine]
    rolling = int(digest, 16)
    picked = []
    for _ in range(length):
        rolling = (rolling * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        picked.append(vocabulary[(rolling >> 33) % len(vocabulary)])
    return f"{_OPENING[engine]} {digest[:6]}: {' '.join(picked)}."


def _thoughts(engine: str, digest: str) -> str:
    return f"Let me think about {digest[6:12]}, said {'the llama' if engine == 'ollama' else 'the engine'}."


def _document(engine: str, schema: Mapping[str, Any] | Literal["json"], digest: str) -> str:
    value = {"engine": engine, "answer": f"word{digest[:4]}"} if schema == "json" else sample(schema, digest)
    separators = (", ", ": ") if engine == "ollama" else (",", ":")
    return json.dumps(value, ensure_ascii=False, separators=separators)


def _calls(seen: Sequence[Message], tools: Sequence[Mapping[str, Any]], tool_choice: Any) -> tuple[ToolUse, ...]:
    functions = {f.get("name", ""): f for f in (tool.get("function") or {} for tool in tools)}
    if not functions or tool_choice == "none":
        return ()
    text = _last_user_text(seen)
    room = Room(None)
    return tuple(
        ToolUse(name, _arguments(functions[name].get("parameters") or {}, salted(text, f"{name}{i}"), room))
        for i, name in enumerate(_wanted(seen, text, list(functions), tool_choice))
    )


def _arguments(parameters: Mapping[str, Any], salt: str, room: Room) -> dict[str, Any]:
    """Arguments are an object whatever the schema says; all calls of one answer share the room."""
    room.root = parameters
    return sample_object(parameters, salt, room)


def _wanted(seen: Sequence[Message], text: str, names: list[str], tool_choice: Any) -> list[str]:
    if isinstance(tool_choice, Mapping):
        return [str(tool_choice["function"]["name"])]
    if seen and seen[-1]["role"] in ("user", "raw"):
        named = [name for name in _TOOL.findall(text) if name in names]
        if named:
            return named
        if "weather" in text.lower():
            return names[:1]
    return names[:1] if tool_choice == "required" else []


def _stopped(content: tuple[str, ...], stop: Sequence[str]) -> tuple[tuple[str, ...], str | None, int]:
    """Cut at the first stop string; the count keeps the tokens it took to produce it."""
    text = "".join(content)
    hits = [(text.find(word), word) for word in stop if word in text]
    if not hits:
        return content, None, len(content)
    at, word = min(hits)
    used, length = 0, 0
    while length < at + len(word):
        length += len(content[used])
        used += 1
    return tokens(text[:at]), word, max(used, 1)  # one token was made before an empty stop was found


def _limited(
    thoughts: tuple[str, ...],
    content: tuple[str, ...],
    calls: tuple[ToolUse, ...],
    matched: str | None,
    used: int,
    prompt: int,
    max_tokens: int | None,
) -> Answer:
    call_tokens = sum(len(tokens(compact({"name": c.name, "arguments": c.arguments}))) for c in calls)
    ending = 0 if matched else 1
    total = len(thoughts) + used + call_tokens + ending
    if max_tokens is None or total <= max_tokens:
        return Answer(thoughts, content, calls, "stop", matched, prompt, total)
    kept = max(0, max_tokens - len(thoughts))
    return Answer(thoughts[:max_tokens], content[:kept], (), "length", None, prompt, max_tokens)
