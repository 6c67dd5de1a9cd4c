"""What two answers must have in common, as lines of text: everything but what a model happens to say.

Status, headers, how the body ended, and the body: of an error its words, of a success the keys with their types (in
whatever order), and the values that a client acts upon. Pieces of a stream that look the same are one line, so a stream
is the order of its kinds of events.
"""

import json
import re
from itertools import groupby
from typing import Any

from real_wire import Exchange

IGNORED_HEADERS = frozenset({"date", "content-length"})
SHOWN = frozenset(
    {
        *("object", "type", "role", "model", "finish_reason", "done_reason", "stop_reason", "status", "owned_by"),
        *("system_fingerprint", "id", "item_id", "format", "family", "families", "capabilities", "parent_model"),
        *("max_model_len", "root", "error", "code", "param", "version", "name"),
    }
)
"""Keys whose values are compared, not only their types. Digits and ids in them are masked."""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_ID = re.compile(r"\b(chatcmpl|cmpl|embd|modelperm|resp|msg|rs|req|chatcmpl-tool|call)([-_])[\w-]+")
_HEX = re.compile(r"\b[0-9a-f]{8,}\b")
_WHY = re.compile(r'"(?:finish_reason|done_reason|stop_reason)": ?"(\w+)"')
_UNORDERED = ("models", "data")  # by the second in which they were made or last used
_LOGPROB = ("token", "logprob", "bytes", "rank", "decoded_token", "top_logprobs")
_ENDS = ("stop", "length", "end_turn", "max_tokens")
_NUMBER = re.compile(r"\d+(\.\d+)?")


def lines(got: Exchange, *, ends_alike: bool = False) -> list[str]:
    """The comparable form of an answer. `ends_alike`: why it ended is no chance, and must be the same."""
    named = {(name.lower(), value) for name, value in got.headers if name.lower() not in IGNORED_HEADERS}
    head = [f"status {got.status}", *(f"header {name}: {masked(value)}" for name, value in sorted(named))]
    length = "yes" if got.header("content-length") is not None else "no"
    why = [f"because {found}" for found in _WHY.findall(got.body.decode("utf-8", "replace"))] if ends_alike else []
    return [*head, f"header content-length: {length}", f"ended {got.ended}", *why, *_body(got)]


def masked(text: str) -> str:
    """A text without what differs from one run to the next."""
    text = _TIME.sub("TIME", text)
    text = _ID.sub(r"\1\2ID", text)
    return _NUMBER.sub("N", _HEX.sub("HEX", text))


def _body(got: Exchange) -> list[str]:
    kind = got.header("content-type") or ""
    text = got.body.decode("utf-8", "replace")
    if got.status >= 400 or not text:
        return [f"body {masked(text)!r}"]
    if "event-stream" in kind:
        return _collapsed(_event(event) for event in text.split("\n\n") if event)
    if kind.startswith("text/plain") and "# TYPE" in text:
        return _metrics(text)
    try:
        return _collapsed(f"body {shape(json.loads(line))}" for line in text.splitlines())
    except ValueError:
        return [f"body {masked(text)!r}"]


def _event(text: str) -> str:
    name = "".join(f"{line} " for line in text.split("\n") if line.startswith("event:"))
    data = "\n".join(line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data:"))
    try:
        return f"event {name}{shape(json.loads(data))}"
    except ValueError:
        return f"event {name}{text!r}"


def _collapsed(found: Any) -> list[str]:
    return [line for line, _ in groupby(found)]


def shape(value: Any, key: str = "") -> str:
    """A JSON value as its keys, in order, and its types."""
    if isinstance(value, dict):
        named = {_key(name, key): inner for name, inner in sorted(value.items())}
        return "{" + ", ".join(f"{name}: {shape(inner, name)}" for name, inner in named.items()) + "}"
    if isinstance(value, list):
        inside = [shape(inner, key) for inner in value]
        return "[" + ", ".join(_collapsed(sorted(inside) if key in _UNORDERED else inside)) + "]"
    if isinstance(value, str):
        return _text(value, key)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "number" if isinstance(value, float) or "logprob" in key or "embedding" in key else "int"


def _key(name: str, parent: str) -> str:
    """Completions have log probabilities by token."""
    return "TOKEN" if parent in ("top_logprobs", "prompt_logprobs") and name not in _LOGPROB else name


def _text(value: str, key: str) -> str:
    if not value:
        return '""'
    if key in ("finish_reason", "done_reason", "stop_reason") and value in _ENDS:
        return "stop or length"
    if key in SHOWN:
        return repr(masked(value))
    return "time" if _TIME.fullmatch(value) else "string"


def _metrics(text: str) -> list[str]:
    types = dict(re.findall(r"(?m)^# TYPE (\S+) (\S+)$", text))
    labels = {name: re.findall(r"(\w+)=", inside) for name, inside in re.findall(r"(?m)^([\w:]+)(?:\{(.*)\})? ", text)}
    types_told = [f"metric type {name} {kind}" for name, kind in sorted(types.items())]
    return types_told + [f"metric {name}{{{','.join(sorted(inside))}}}" for name, inside in sorted(labels.items())]
