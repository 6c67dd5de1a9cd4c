"""How vLLM reads a body, and how it words a refusal.

Two spellings of the error type, as on the wire: "Bad Request" for what the schema rejects, "BadRequestError" for
what a later check rejects (vLLM 0.32.0, measured; 0.33 source). Pure: bytes in, an object or a `Rejection` out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NO_OBJECT = "model_attributes_type"
NO_OBJECT_TEXT = "Input should be a valid dictionary or object to extract fields from"
_MOST_SHOWN, _MOST_LINE = 200, 1000


class Rejection(Exception):
    """A request this server rejects.

    Args:
        status, kind, message, param: what the error body says.
    """

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.param = status, kind, message, param

    def body(self, *, nested: bool = True) -> dict[str, Any]:
        """The error object; flat up to 0.8. `code` is a number."""
        said = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return {"error": said} if nested else {"object": "error", **said}


class Unread(Rejection):
    """A body that FastAPI cannot read at all, which it says in its own way."""

    def body(self, *, nested: bool = True) -> dict[str, Any]:
        return {"detail": self.message}


class SchemaFault(NamedTuple):
    """One error of pydantic's: where, its name, its words, the value."""

    loc: Sequence[str | int]
    kind: str
    message: str
    given: Any
    ctx: Mapping[str, Any] | None = None

    @property
    def place(self) -> str:
        return ".".join(str(part) for part in ("body", *self.loc))

    def detail(self) -> dict[str, Any]:
        """As vLLM shows it: a container by its size, any other value as text."""
        given = self.given if isinstance(self.given, str) else _sized(self.given)
        given = given if len(given) <= _MOST_SHOWN else given[:_MOST_SHOWN] + "...[truncated]"
        shown = {"type": self.kind, "loc": self.place, "msg": self.message, "input": given}
        return shown | ({"ctx": dict(self.ctx)} if self.ctx else {})


def _sized(value: Any) -> str:
    return f"<{type(value).__name__} of {len(value)} items>" if isinstance(value, list | dict) else str(value)


def schema_errors(first: SchemaFault, *others: SchemaFault) -> Rejection:
    """What the schema rejects, as vLLM 0.32 words it (measured); `param` is the first place."""
    found = (first, *others)
    lines = [str(fault.detail()) for fault in found]
    shown = [line if len(line) <= _MOST_LINE else line[:_MOST_LINE] + "...[truncated]" for line in lines]
    text = f"{len(found)} validation error{'s' if others else ''}:\n  " + "\n  ".join(shown)
    return Rejection(400, "Bad Request", text, first.place)


def schema_error(
    loc: Sequence[str | int], kind: str, message: str, given: Any, ctx: Mapping[str, Any] | None = None
) -> Rejection:
    """One such error alone."""
    return schema_errors(SchemaFault(loc, kind, message, given, ctx))


def literal_error(loc: Sequence[str | int], choices: Sequence[str], given: Any) -> Rejection:
    """A value that is none of those there are."""
    quoted = [f"'{choice}'" for choice in choices]
    expected = " or ".join((", ".join(quoted[:-1]), quoted[-1]))
    return schema_error(loc, "literal_error", f"Input should be {expected}", given, {"expected": expected})


def value_error(text: str, parameter: str, value: Any = None) -> Rejection:
    """A check of vLLM's own, with the parameter named in the text."""
    named = f"parameter={parameter}" if value is None else f"parameter={parameter}, value={value}"
    return Rejection(400, "BadRequestError", f"{text} ({named})", parameter)


def plain_error(text: str, param: str | None = None) -> Rejection:
    """A check whose error names no parameter (measured for min_p, penalties, top_k, n and an empty stop)."""
    return Rejection(400, "BadRequestError", text, param)


def not_emulated(text: str) -> Rejection:
    """What a real server would do and an emulator does not."""
    return Rejection(501, "NotImplementedError", f"{text} not emulated")


def read_json(body: bytes, content_type: str) -> dict[str, Any]:
    """Decode a body that must be a JSON object sent as `application/json`.

    Raises:
        Rejection: another content type, not JSON, not an object.
    """
    if content_type.split(";")[0].strip().lower() != "application/json":
        text = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise Rejection(400, "Bad Request", text)
    try:
        given = json.loads(body) if body else None
    except json.JSONDecodeError as reason:
        ctx = {"error": reason.msg}
        raise schema_error((reason.pos,), "json_invalid", "JSON decode error", {}, ctx) from reason
    except (ValueError, RecursionError) as reason:  # no UTF-8, a number of thousands of digits, nested too deep
        raise Unread(400, "Bad Request", "There was an error parsing the body") from reason
    if given is None:
        raise schema_error((), "missing", "Field required", None)
    if not isinstance(given, dict):
        raise schema_error((), NO_OBJECT, NO_OBJECT_TEXT, given)
    return given
