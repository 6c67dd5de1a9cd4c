"""JSON decoding whose every failure is one exception, and JSON written as Go writes it."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def decode_as(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Decode, or say in words what is wrong.

    Raises:
        ValueError: its message names types and places, and repeats no value of the document.
    """
    value: T = _decoded(data, _decoder(kind))  # type: ignore[arg-type]  # every type is hashable
    return value


def decode_optional(data: bytes | msgspec.Raw, kind: type[T]) -> T | None:
    """The same where `null` is allowed."""
    value: T | None = _decoded(data, _optional(kind))  # type: ignore[arg-type]  # every type is hashable
    return value


@lru_cache(maxsize=256)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


@lru_cache(maxsize=256)
def _optional(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind | None)


def _decoded(data: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except UnicodeDecodeError:
        raise ValueError("not valid UTF-8") from None
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None


def go_json(value: Any) -> bytes:
    """Encode as Go's encoding/json does: `<`, `>`, `&`, U+2028 and U+2029 are escaped, other text is UTF-8."""
    data = msgspec.json.encode(value)
    for plain, escaped in _GO_ESCAPES:
        if plain in data:
            data = data.replace(plain, escaped)
    return data


_GO_ESCAPES = (
    (b"<", rb"\u003c"),
    (b">", rb"\u003e"),
    (b"&", rb"\u0026"),
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
)


def rfc3339(unix_ns: int) -> str:
    """A time as Ollama writes it: UTC, 0 to 9 fractional digits, trailing zeros cut (Ollama 0.17.4, measured)."""
    seconds, fraction = divmod(unix_ns, 1_000_000_000)
    digits = f"{fraction:09d}".rstrip("0")
    return f"{_second(seconds)}.{digits}Z" if digits else f"{_second(seconds)}Z"


@lru_cache(maxsize=2)
def _second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")
