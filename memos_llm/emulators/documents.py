"""Values that fit a JSON schema: what an emulated model says when its answer must have a shape.

Invariant: a few bytes of schema can ask for more than there is memory, so a document holds `MAX_SAMPLED` at most;
no context is long enough for an answer to get there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

MAX_SAMPLED = 131_072  # characters and values of one sampled document, about
MAX_DEPTH = 64  # of a sampled document: a schema may refer to itself
_FAR = 2**63  # numbers of a schema are cut to ± this


def salted(salt: str, name: str) -> str:
    """Another salt, stable for each name."""
    return hashlib.sha256(f"{salt}/{name}".encode()).hexdigest()


def compact(value: Any) -> str:
    """JSON without spaces, the same for equal values."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


class Room:
    """How much a sampled document may still hold."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.left = MAX_SAMPLED
        self.depth = 0

    def take(self, size: int) -> None:
        """Use up a part."""
        self.left -= size

    def fixed(self, value: Any) -> Any:
        """A value that the schema itself holds."""
        self.take(len(compact(value)))
        return value


def sample(schema: Any, salt: str) -> Any:
    """A value that fits a simple JSON schema; `salt` varies the free strings and numbers.

    Past `MAX_SAMPLED` or `MAX_DEPTH` there are only nulls: no context is long enough for an answer to get there.
    """
    return _sample(schema, salt, Room(schema))


def _sample(schema: Any, salt: str, room: Room) -> Any:
    if room.left <= 0 or room.depth >= MAX_DEPTH:
        return None
    room.take(1)
    room.depth += 1
    value = _sampled(schema, salt, room)
    room.depth -= 1
    return value


def _sampled(schema: Any, salt: str, room: Room) -> Any:
    if not isinstance(schema, Mapping):
        return {"value": f"word{salt[:4]}"}
    chosen = _branch(schema, room.root)
    if chosen is not None:
        return _sample(chosen, salt, room)
    if "const" in schema:
        return room.fixed(schema["const"])
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        return room.fixed(choices[int(salt[:2], 16) % len(choices)])
    return _SAMPLES.get(_type(schema), _sample_string)(schema, salt, room)


def _type(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    return kind if isinstance(kind, str) else "string"


def _bound(schema: Mapping[str, Any], key: str, default: int) -> int:
    """A numeric keyword of a schema; one of another type counts as absent."""
    value = schema.get(key)
    if isinstance(value, float) and not math.isfinite(value):
        return default
    return max(-_FAR, min(int(value), _FAR)) if isinstance(value, int | float) else default


def _branch(schema: Mapping[str, Any], root: Any) -> Any:
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0]
    ref = schema.get("$ref")
    if not isinstance(ref, str):
        return None
    node: Any = root
    for step in ref.removeprefix("#/").split("/"):
        node = node.get(step, {}) if isinstance(node, Mapping) else {}
    return node


def sample_object(schema: Mapping[str, Any], salt: str, room: Room) -> dict[str, Any]:
    """An object with every property of the schema for which there is room."""
    properties = schema.get("properties")
    made = {}
    for name, sub in properties.items() if isinstance(properties, Mapping) else ():
        if room.left <= 0:
            break
        room.take(len(name))
        made[name] = _sample(sub, salted(salt, name), room)
    return made


def _sample_array(schema: Mapping[str, Any], salt: str, room: Room) -> list[Any]:
    items: list[Any] = []
    size = max(1, _bound(schema, "minItems", 1))
    while len(items) < size and room.left > 0:
        items.append(_sample(schema.get("items", {}), salted(salt, str(len(items))), room))
        room.take(1)
    return items


def _sample_integer(schema: Mapping[str, Any], salt: str, room: Room) -> int:
    low = _bound(schema, "minimum", _bound(schema, "exclusiveMinimum", -1) + 1)
    high = _bound(schema, "maximum", _bound(schema, "exclusiveMaximum", low + 11) - 1)
    return low + int(salt[:4], 16) % (max(high - low, 0) + 1)


def _sample_number(schema: Mapping[str, Any], salt: str, room: Room) -> float:
    whole = _sample_integer(schema, salt, room)
    return float(whole) if "maximum" in schema else whole + 0.5


def _sample_boolean(schema: Mapping[str, Any], salt: str, room: Room) -> bool:
    return int(salt[:2], 16) % 2 == 0


def _sample_string(schema: Mapping[str, Any], salt: str, room: Room) -> str:
    text = f"word{salt[:4]}"
    text = text.ljust(min(_bound(schema, "minLength", 0), room.left), "x")
    text = text[: _bound(schema, "maxLength", len(text))]
    room.take(len(text))
    return text


_SAMPLES: Mapping[str, Any] = {
    "object": sample_object,
    "array": _sample_array,
    "integer": _sample_integer,
    "number": _sample_number,
    "boolean": _sample_boolean,
    "null": lambda schema, salt, room: None,
}


_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def unknown_type(schema: Any) -> str | None:
    """The type that a schema asks for, if JSON has no such type: neither server makes a grammar of that."""
    wanted = schema.get("type") if isinstance(schema, dict) else None
    return wanted if isinstance(wanted, str) and wanted not in _TYPES else None
