"""What a response says, read strictly in its client's dialect: whatever that does not allow is a fault found."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chaos.asking import Asked, floats
from chaos.wire import Exchange

Document = dict[str, Any]


@dataclass
class Said:
    """An answer put together.

    Attributes:
        finish: the reason as the dialect names it, None without one. ended: the dialect's final marker was there.
        usage: prompt and completion tokens, where told.
        error: the words of an in-band error, None without one.
        faults: what no client of this dialect should have to read.
    """

    text: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    finish: str | None = None
    ended: bool = False
    usage: tuple[int, int] | None = None
    error: str | None = None
    vectors: list[list[float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read(exchange: Exchange) -> Said:
    """The answer of a 200."""
    asked, said = exchange.asked, Said()
    try:
        if asked.stream:
            _STREAMS[asked.wire](exchange.body, asked, said)
        else:
            _whole(exchange.body, asked, said)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        said.faults.append(f"cannot be read as {asked.wire}: {type(error).__name__}: {error}")
    return said


def error_of(exchange: Exchange) -> tuple[str, str]:
    """The words of an error response, and what is wrong with its shape (empty: nothing)."""
    try:
        document = json.loads(exchange.body)
        error = document["error"]
        if not exchange.asked.openai:
            return (error, "") if isinstance(error, str) and error else (str(error), "the error is no string")
        missing = {"message", "type", "param", "code"} - set(error)
        return str(error["message"]), f"the error lacks {sorted(missing)}" if missing else ""
    except (ValueError, KeyError, TypeError) as reason:
        return "", f"no error in this dialect: {type(reason).__name__}: {exchange.body[:120]!r}"


def _named(document: Mapping[str, Any], asked: Asked, said: Said) -> None:
    if document.get("model") != asked.model:
        said.faults.append(f"model {document.get('model')!r}, asked was {asked.model!r}")


# Whole answers


def _whole(body: bytes, asked: Asked, said: Said) -> None:
    document = json.loads(body)
    if "error" in document:
        said.faults.append("a 200 that is an error")
    _WHOLE[asked.wire](document, asked, said)
    said.ended = asked.embeds or said.finish is not None


def _whole_openai(document: Document, asked: Asked, said: Said) -> None:
    _named(document, asked, said)
    wanted = "chat.completion" if asked.wire == "openai.chat" else "text_completion"
    if document.get("object") != wanted:
        said.faults.append(f"object is {document.get('object')!r}")
    (choice,) = document["choices"]
    message = choice["message"] if asked.wire == "openai.chat" else {"content": choice["text"]}
    said.text, said.finish = message.get("content") or "", choice["finish_reason"]
    for call in message.get("tool_calls") or ():
        function = call["function"]
        said.calls.append((function["name"], json.loads(function["arguments"])))
        if not call.get("id"):
            said.faults.append("a tool call without an id")
    _count(document.get("usage"), said)


def _openai_vectors(document: Document, asked: Asked, said: Said) -> None:
    _named(document, asked, said)
    data = document["data"]
    if [entry["index"] for entry in data] != list(range(len(data))):
        said.faults.append("vectors out of order")
    wanted = str if asked.body and asked.body.get("encoding_format") == "base64" else list
    if not all(isinstance(entry["embedding"], wanted) for entry in data):
        said.faults.append(f"vectors are no {wanted.__name__}")
    said.vectors += [floats(entry["embedding"]) for entry in data]


def _ollama_vectors(document: Document, asked: Asked, said: Said) -> None:
    legacy = asked.wire == "ollama.embeddings"
    said.vectors += [floats(vector) for vector in ([document["embedding"]] if legacy else document["embeddings"])]


# Streams


def _sse(body: bytes, asked: Asked, said: Said) -> None:
    *events, rest = body.replace(b"\r\n", b"\n").split(b"\n\n")
    if rest:
        said.faults.append(f"ends inside an event: {rest[:60]!r}")
    calls: dict[int, list[str]] = {}
    for event in events:
        if not event.startswith(b":"):
            _event(event, asked, said, calls)
    for _, (id, name, arguments) in sorted(calls.items()):
        if said.finish is not None:
            said.calls.append((name, json.loads(arguments)))
        if not id:
            said.faults.append("a tool call without an id")
    if said.ended and said.finish is None:
        said.faults.append("[DONE] without a finish_reason")


def _event(event: bytes, asked: Asked, said: Said, calls: dict[int, list[str]]) -> None:
    if said.ended or said.error is not None:
        said.faults.append(f"goes on after its end: {event[:60]!r}")
    if not event.startswith(b"data: ") or b"\n" in event:
        said.faults.append(f"no event: {event[:60]!r}")
        return
    data = event.removeprefix(b"data: ")
    if data == b"[DONE]":
        said.ended = True
        return
    document = json.loads(data)
    if "error" in document:
        _in_band(document["error"], said)
        return
    _named(document, asked, said)
    _count(document.get("usage"), said)
    for choice in document["choices"]:
        _choice(choice, asked, said, calls)


def _in_band(error: Any, said: Said) -> None:
    shaped = isinstance(error, dict) and not {"message", "type", "param", "code"} - set(error)
    said.error = str(error["message"]) if shaped else str(error)
    if not shaped:
        said.faults.append(f"no OpenAI error: {error!r}")


def _choice(choice: Document, asked: Asked, said: Said, calls: dict[int, list[str]]) -> None:
    delta = choice["delta"] if asked.wire == "openai.chat" else {"content": choice["text"]}
    if said.finish is not None and (delta.get("content") or delta.get("tool_calls")):
        said.faults.append("content after the finish_reason")
    said.text += delta.get("content") or ""
    for piece in delta.get("tool_calls") or ():
        _gather(piece, calls)
    if choice.get("finish_reason") is not None:
        if said.finish is not None:
            said.faults.append("two finish_reasons")
        said.finish = choice["finish_reason"]


def _gather(piece: Document, calls: dict[int, list[str]]) -> None:
    """As the SDKs do: id and name may be repeated, arguments are joined."""
    call = calls.setdefault(piece["index"], ["", "", ""])
    function = piece.get("function") or {}
    call[0] = piece.get("id") or call[0]
    call[1] = function.get("name") or call[1]
    call[2] += function.get("arguments") or ""


def _ndjson(body: bytes, asked: Asked, said: Said) -> None:
    *lines, rest = body.split(b"\n")
    if rest:
        said.faults.append(f"ends inside a line: {rest[:60]!r}")
    for line in lines:
        if said.ended or said.error is not None:
            said.faults.append(f"goes on after its end: {line[:60]!r}")
        document = json.loads(line)
        if "error" in document:
            said.error = document["error"]
            if not isinstance(said.error, str):
                said.faults.append("the error is no string")
                said.error = str(said.error)
            continue
        _record(document, asked, said)
        said.ended = bool(document.get("done"))


def _record(document: Document, asked: Asked, said: Said) -> None:
    _named(document, asked, said)
    if "created_at" not in document:
        said.faults.append("no created_at")
    message = document["message"] if asked.wire == "ollama.chat" else {"content": document["response"]}
    said.text += message.get("content") or ""
    for call in message.get("tool_calls") or ():
        said.calls.append((call["function"]["name"], call["function"]["arguments"]))
    if document.get("done"):
        said.finish = document.get("done_reason")
        if "eval_count" in document:
            said.usage = (document.get("prompt_eval_count", 0), document["eval_count"])


def _count(usage: Any, said: Said) -> None:
    if isinstance(usage, dict):
        said.usage = (usage["prompt_tokens"], usage["completion_tokens"])


_WHOLE: Mapping[str, Callable[[Document, Asked, Said], None]] = {
    "openai.chat": _whole_openai,
    "openai.completion": _whole_openai,
    "openai.embeddings": _openai_vectors,
    "ollama.chat": _record,
    "ollama.generate": _record,
    "ollama.embed": _ollama_vectors,
    "ollama.embeddings": _ollama_vectors,
}
_STREAMS: Mapping[str, Callable[[bytes, Asked, Said], None]] = {
    "openai.chat": _sse,
    "openai.completion": _sse,
    "ollama.chat": _ndjson,
    "ollama.generate": _ndjson,
}
