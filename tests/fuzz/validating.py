"""Whether an answer is valid on a client's wire: small readers of both dialects that know nothing of ours.

Each tells what is wrong, in words; nothing: the answer is right. `strict` also holds every field to its type (of an
answer that a back end gone wrong wrote on the client's own wire, only the frame is ours).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Document = dict[str, Any]
Types = Mapping[str, type | tuple[type, ...]]

TERMINAL = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call", "load", "unload"})
_NUMBER = (int, float)
COUNTS: Types = {
    name: int
    for name in (
        "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"
    )
}  # fmt: skip


def parsed(text: bytes, *, strict: bool = True) -> Any:
    """JSON without NaN, in UTF-8 (`strict`). Raises ValueError."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text.decode(errors="strict" if strict else "replace"), parse_constant=refuse)


def _typed(document: Any, needed: Types, optional: Types | None = None) -> Iterator[str]:
    if not isinstance(document, dict):
        yield f"no object: {document!r:.80}"
        return
    for name, kind in {**needed, **(optional or {})}.items():
        if name not in document:
            if name in needed:
                yield f"without {name}: {document!r:.120}"
        elif not isinstance(document[name], kind) or (isinstance(document[name], bool) and kind is not bool):
            yield f"{name} is {document[name]!r:.60}"


def ollama_record(wire: str, record: Any, *, strict: bool = True) -> Iterator[str]:
    """One record of `/api/chat` or `/api/generate`."""
    if not isinstance(record, dict) or not strict:
        if not isinstance(record, dict):
            yield f"no object: {record!r:.80}"
        return
    own: Types = {"message": dict} if wire == "ollama.chat" else {"response": str}
    yield from _typed(record, {"model": str, "created_at": str, "done": bool, **own}, {"done_reason": str, **COUNTS})
    if wire == "ollama.chat":
        message = record.get("message")
        yield from _typed(message, {"role": str, "content": str}, {"thinking": str, "tool_calls": list})
        for call in message.get("tool_calls", ()) if isinstance(message, dict) else ():
            function = call.get("function") if isinstance(call, dict) else None
            yield from _typed(function, {"name": str, "arguments": dict})


def ollama_stream(wire: str, data: bytes, *, strict: bool = True) -> Iterator[str]:
    """A whole stream: records, and at the end, once, `done` or an error."""
    lines = data.split(b"\n")
    if strict and lines[-1]:
        yield "the last record has no line feed"
    ended = ""
    for line in filter(bytes.strip, lines):
        try:
            record = parsed(line, strict=strict)
        except ValueError as error:
            yield f"a record is no JSON ({error}): {line[:120]!r}"
            continue
        if ended:
            yield f"a record behind the end ({ended}): {line[:120]!r}"
        if isinstance(record, dict) and isinstance(record.get("error"), str):
            ended = "error"
            continue
        yield from ollama_record(wire, record, strict=strict)
        if isinstance(record, dict) and record.get("done") is True:
            ended = "done"
    if not ended:
        yield "no end: neither done nor an error"


_CHOICE: Types = {"index": int}
_FINISH: Types = {"finish_reason": (str, type(None))}
_USAGE: Types = {"prompt_tokens": int, "total_tokens": int}


def openai_choices(wire: str, document: Any, *, whole: bool) -> Iterator[str]:
    """The choices and the usage of one answer or event."""
    needed: Types = {"choices": list, "model": str, "id": str, "object": str, "created": int}
    yield from _typed(document, needed, {"usage": (dict, type(None))})
    if not isinstance(document, dict):
        return
    said: Types = {"text": str} if wire == "openai.completion" else {"message" if whole else "delta": dict}
    for choice in document["choices"] if isinstance(document.get("choices"), list) else ():
        yield from _typed(choice, {**_CHOICE, **said, **(_FINISH if whole else {})}, _FINISH)
        body = choice.get("message") or choice.get("delta") if isinstance(choice, dict) else None
        for call in (body.get("tool_calls") or ()) if isinstance(body, dict) else ():
            yield from _typed(call, {"function": dict})
    if isinstance(document.get("usage"), dict):
        yield from _typed(document["usage"], _USAGE)


def openai_stream(wire: str, data: bytes, *, strict: bool = True) -> Iterator[str]:
    """A whole stream: events, and at the end, once, `[DONE]` or an error; a finish before that."""
    ended, finished = "", False
    if strict and not data.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")):
        yield f"the last event has no end: {data[-80:]!r}"
    for event in _events(data):
        if ended:
            yield f"an event behind the end ({ended}): {event[:120]!r}"
        if event == b"[DONE]":
            ended = "[DONE]"
            yield from () if finished else ("[DONE] without a finish",)
            continue
        try:
            found = parsed(event, strict=strict)
        except ValueError as error:
            yield f"an event is no JSON ({error}): {event[:120]!r}"
            continue
        ended = "error" if isinstance(found, dict) and found.get("error") else ""
        finished = finished or _finishes(found)
        yield from openai_choices(wire, found, whole=False) if strict and not ended else ()
    if not ended and (strict or not finished):
        yield "no end: neither [DONE] nor an error"


def _finishes(found: Any) -> bool:
    """Whether a choice says why it ended."""
    choices = found.get("choices") if isinstance(found, dict) else None
    return any(isinstance(each, dict) and each.get("finish_reason") is not None for each in choices or ())


def _events(data: bytes) -> Iterator[bytes]:
    """The data of each event."""
    blocks = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")
    for block in blocks:
        lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
        if lines:
            yield b"\n".join(lines)


def document(wire: str, data: bytes, *, strict: bool = True) -> Iterator[str]:
    """A non-streaming answer that is no error."""
    try:
        found = parsed(data, strict=strict)
    except ValueError as error:
        yield f"the answer is no JSON ({error}): {data[:120]!r}"
        return
    if strict:
        yield from _WHOLE.get(wire, lambda found: _typed(found, {}))(found)


def _ollama_whole(wire: str) -> Callable[[Any], Iterable[str]]:
    def check(found: Any) -> Iterator[str]:
        if isinstance(found, dict) and "_debug_info" in found:
            return
        yield from ollama_record(wire, found)
        if isinstance(found, dict) and found.get("done") is not True:
            yield f"not done: {found!r:.120}"

    return check


def _openai_whole(wire: str) -> Callable[[Any], Iterable[str]]:
    return lambda found: openai_choices(wire, found, whole=True)


def _openai_embeddings(found: Any) -> Iterator[str]:
    yield from _typed(found, {"object": str, "data": list, "model": str, "usage": dict})
    for each in found.get("data", ()) if isinstance(found, dict) else ():
        yield from _typed(each, {"index": int, "embedding": (list, str)})


_WHOLE: Mapping[str, Callable[[Any], Iterable[str]]] = {
    "ollama.chat": _ollama_whole("ollama.chat"),
    "ollama.generate": _ollama_whole("ollama.generate"),
    "openai.chat": _openai_whole("openai.chat"),
    "openai.completion": _openai_whole("openai.completion"),
    "ollama.embed": lambda found: _typed(found, {"model": str, "embeddings": list}, COUNTS),
    "ollama.embeddings": lambda found: _typed(found, {"embedding": list}),
    "openai.embeddings": _openai_embeddings,
}


def error_body(path: str, data: bytes) -> Iterator[str]:
    """The body of an error, in the words of its path's API."""
    try:
        found = parsed(data)
    except ValueError as error:
        yield f"an error is no JSON ({error}): {data[:120]!r}"
        return
    told = found.get("error") if isinstance(found, dict) else None
    if path.startswith("/admin/"):
        yield from _typed(told, {"message": str, "code": str, "name": str})
    elif path.startswith("/v1/messages"):
        yield from _typed(told, {"message": str, "type": str})
    elif path.startswith("/v1/"):
        yield from _typed(told, {"message": str, "type": str})
        if isinstance(told, dict) and not {"param", "code"} <= told.keys():
            yield f"an error without param and code: {told!r:.120}"
    elif not isinstance(told, str):
        yield f"an error that is no text: {data[:120]!r}"


def foreign_error(data: bytes) -> Iterator[str]:
    """The body of an error in a back end's own words: an object that says something, in any shape that there is."""
    try:
        found = parsed(data, strict=False)
    except ValueError as error:
        yield f"an error is no JSON ({error}): {data[:120]!r}"
        return
    if not isinstance(found, dict) or not isinstance(found.get("error", ""), str | dict):
        yield f"an error that says nothing: {data[:120]!r}"
    elif not found.keys() & {"error", "message", "detail"}:
        yield f"no error: {data[:120]!r}"
