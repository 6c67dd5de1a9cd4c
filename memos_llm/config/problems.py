"""From what is wrong to words: place, key, what is wrong, what would be right. Secrets are never quoted."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from memos_llm.config.document import Document, Key
from memos_llm.config.introspect import describe_settings, section_at
from memos_llm.core.errors import ConfigError

_SECRET = frozenset({"api_key", "api_keys", "secret", "webhooks", "store", "base_url", "endpoints"})
_WORDS = {
    "missing": "is required",
    "model_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
    "string_type": "must be text",
}
_SPEAKS_FOR_ITSELF = frozenset({"missing", "value_error", "extra_forbidden"})


def from_validation(error: ValidationError, document: Document) -> ConfigError:
    """All that the schema refused, one line each."""
    return joined(document.line(_key(detail), _message(detail)) for detail in error.errors(include_url=False))


def joined(lines: Iterable[str]) -> ConfigError:
    return ConfigError("\n".join(dict.fromkeys(lines)))


def nearest(name: str, choices: Iterable[str]) -> str:
    """`did you mean …?` and the choices."""
    known = list(choices)
    close = get_close_matches(name, known, 1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}choices: {', '.join(known) or 'none'}"


def _key(detail: ErrorDetails) -> Key:
    return tuple(str(part) for part in detail["loc"] if part != "[key]")


def _message(detail: ErrorDetails) -> str:
    kind, key = detail["type"], _key(detail)
    if kind == "extra_forbidden":
        return f"unknown key; {_known(key)}"
    said = _WORDS.get(kind) or _said(detail)
    return said if kind in _SPEAKS_FOR_ITSELF else f"{said}{_quoted(key, detail['input'])}"


def _said(detail: ErrorDetails) -> str:
    context: dict[str, Any] = detail.get("ctx", {})
    if detail["type"] in ("literal_error", "enum"):
        return f"must be one of {context['expected']}"
    if detail["type"] == "value_error":
        return str(context["error"])
    return detail["msg"].replace("Input should", "must").replace("String should", "must")


def _quoted(key: Key, value: Any) -> str:
    if not isinstance(value, str | int | float) or _SECRET.intersection(key):
        return ""
    return f", not {value!r}"


def _known(key: Key) -> str:
    """What an unknown key may have meant: a setting of that very name elsewhere, else the nearest one beside it."""
    section = section_at(key[:-1])
    siblings = list(section.model_fields) if section else []
    homes = [setting.key for setting in describe_settings() if setting.key.rpartition(".")[2] == key[-1]]
    if homes:
        return f"did you mean {homes[0]}? choices here: {', '.join(siblings)}"
    return nearest(key[-1], siblings)
