"""JSON as Go's encoding/json reads and writes it, for the Ollama emulator.

Facts (Ollama 0.17.4, measured; Go source): keys match without regard to case and the last wins, anything after
the first value is ignored, `null` is the zero value of any type, `<` `>` `&` are written as escapes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:h|ms|m|s|us|µs|μs|ns))+")
_LONGEST_S = 9.2e9  # what 64 bits of nanoseconds hold
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(h|ms|m|s|us|µs|μs|ns)")


class DecodeError(ValueError):
    """A body Go would not decode; the text is Go's."""


class EmptyBody(DecodeError):
    """No body at all: io.EOF, which each route words in its own way."""


def dumps(value: Any) -> bytes:
    """Write compact JSON with Go's HTML escapes; the order of keys is the caller's."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char, escape in _ESCAPES.items():
        text = text.replace(char, escape)
    return text.encode("utf-8", "replace")


def loads(body: bytes) -> Any:
    """Read the first JSON value of a body.

    Raises:
        EmptyBody: nothing but white space. DecodeError: not JSON, in Go's words.
    """
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    if not text:
        raise EmptyBody("EOF")
    try:
        value, _ = _DECODER.raw_decode(text)
        if _ESCAPED_HALF.search(text):
            value = _without_halves(value)
    except json.JSONDecodeError as reason:
        raise DecodeError(_go_words(text, reason)) from reason
    except RecursionError as reason:
        raise DecodeError("exceeded max depth") from reason
    return value


def _without_halves(value: Any) -> Any:
    """A surrogate that is alone is replaced, as in any string of Go's."""
    if isinstance(value, str):
        return _HALF.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_halves(one) for one in value]
    if isinstance(value, dict):
        return {_without_halves(key): _without_halves(one) for key, one in value.items()}
    return value


def _no_constant(name: str) -> NoReturn:
    raise DecodeError(f"invalid character '{name[0]}' looking for beginning of value")


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise DecodeError(f"json: cannot unmarshal number {text[:32]} into Go value of type float64")
    return value


def _whole_number(text: str) -> int:
    _number(text)  # where nothing else is said, Go reads any number as a float64
    return int(text)


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_number, parse_int=_whole_number)


def _go_words(text: str, reason: json.JSONDecodeError) -> str:
    at = reason.pos
    if at >= len(text) or reason.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    where = {
        "Expecting value": "looking for beginning of value",
        "Expecting ',' delimiter": "after object key:value pair",
        "Expecting ':' delimiter": "after object key",
    }.get(reason.msg, "looking for beginning of object key string")
    return f"invalid character '{text[at]}' {where}"


def kind(value: Any) -> str:
    """Go's word for the JSON type of a value."""
    if isinstance(value, bool):
        return "bool"
    names: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (str, "string"),
        ((int, float), "number"),
        (list, "array"),
    )
    return next((name for types, name in names if isinstance(value, types)), "object")


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "string": lambda v: isinstance(v, str),
    "bool": lambda v: isinstance(v, bool),
    "int": _integer,
    "float64": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "map": lambda v: isinstance(v, dict),
    "slice": lambda v: isinstance(v, list),
}
Field = tuple[str, str]  # what fits (a key of the table above, or "any"), and Go's name of the type


def fields(
    value: Any, struct: str, spec: Mapping[str, Field], path: str = "", go_type: str | None = None
) -> dict[str, Any]:
    """Decode an object into a struct: known keys only, in their canonical spelling, nulls left out.

    `go_type`: Go's name of the type, if it is not the struct of Ollama's API.

    Raises:
        DecodeError: a value of another type, as `json: cannot unmarshal …`.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        where = f"Go struct field {struct}.{path} of type" if path else "Go value of type"
        raise DecodeError(f"json: cannot unmarshal {kind(value)} into {where} {go_type or f'api.{struct}'}")
    canonical = {name.lower(): name for name in spec}
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = canonical.get(key.lower().replace("ſ", "s"))
        if name is None:
            continue
        found.pop(name, None)
        if item is not None:
            _check(item, struct, f"{path}.{name}" if path else name, spec[name])
            found[name] = item
    return found


def _check(item: Any, struct: str, path: str, field: Field) -> None:
    fits, go_type = field
    if fits != "any" and not _FITS[fits](item):
        got = f"number {item}" if fits == "int" and kind(item) == "number" else kind(item)
        raise DecodeError(f"json: cannot unmarshal {got} into Go struct field {struct}.{path} of type {go_type}")


def number(value: float) -> int | float:
    """A float64 as Go writes it: 1 for 1.0."""
    return int(value) if float(value).is_integer() else value


def duration_s(value: Any) -> float:
    """Read Ollama's keep_alive: seconds as a number, or a Go duration string; negative means forever.

    Raises:
        DecodeError: Go's words for a string without unit, or another type.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float("inf") if value < 0 or value > _LONGEST_S else float(value)
    if not isinstance(value, str):
        kinds = {"array": "[]interface {}", "object": "map[string]interface {}"}
        raise DecodeError(f"Unsupported type: '{kinds.get(kind(value), kind(value))}'")
    if value in ("0", "+0", "-0"):
        return 0.0
    if not _DURATION.fullmatch(value):
        bare = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", value)
        raise DecodeError(f'time: {"missing unit in" if bare else "invalid"} duration "{value}"')
    total = sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(value))
    return float("inf") if (value.startswith("-") and total) or total > _LONGEST_S else total


def timestamp(epoch_ns: int) -> str:
    """RFC 3339 in UTC with up to nine fractional digits, trailing zeros cut (measured)."""
    seconds, fraction = divmod(epoch_ns, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f"{fraction:09d}".rstrip("0")
    return f"{text}.{digits}Z" if digits else f"{text}Z"
