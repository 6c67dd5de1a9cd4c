"""What of an embeddings answer is a vector, and whether there is one for each input.

A back end's word is not taken for anything: numbers that are finite and fit 32 bits, vectors of one length, none
missing and none too many. What it sends is looked at before it is decoded, so that it costs little more than its bytes.
"""

import binascii
import math
from collections.abc import Mapping, Sequence

from msgspec import Raw, Struct

from memos_llm.core.call import Call, Feature, Wire
from memos_llm.dialects.codecs import vectors
from memos_llm.dialects.codecs.decoder import malformed
from memos_llm.dialects.jsons import decode_as

MAX_DIMENSIONS = 65_536  # of a vector; today's models have a tenth of it at most
MAX_VECTORS = 65_536  # of an answer, where the request does not say how many
BRACES = 16  # of one vector's object, at most: it has one
LONGEST = 3.4028235e38  # a length beyond it, or the number itself, is none in 32 bits
ABSENT = Raw(b"null")  # msgspec takes `Raw | None` for null alone

_INPUT: Mapping[Wire, str] = {Wire.OLLAMA_EMBEDDINGS: "prompt"}
_BASE64 = 6  # bytes of a 32-bit number, and some
_SPACE = b" \t\r\n"


class Item(Struct):
    """One of OpenAI's."""

    embedding: Raw
    index: int | None = None


def asked(call: Call) -> int | None:
    """How many vectors the answer must have; None where the request does not say, or only its back end can."""
    if call.needs & Feature.LOAD:
        return 0
    raw = bytes(call.head.get(_INPUT.get(call.wire, "input"), b"")).lstrip(_SPACE)
    if raw.startswith(b'"'):
        return 1
    if not raw.startswith(b"["):
        return None
    first = raw[1:].lstrip(_SPACE)[:1]
    if first in (b'"', b"["):
        return len(decode_as(raw, list[Raw]))
    return 1 if first.isdigit() else None  # one text's token ids


def items(data: Raw, count: int | None) -> list[Item]:
    """OpenAI's list of vectors, as it came.

    Raises:
        AttemptFailed: `malformed`: it is none.
    """
    raw = bytes(data)
    if raw == b"null" or raw.count(b"{") > BRACES * (MAX_VECTORS if count is None else count + 1):
        raise malformed("no-vectors")
    try:
        return decode_as(data, list[Item])
    except ValueError as error:
        raise malformed("vectors") from error


def order(found: Sequence[Item], count: int | None) -> list[int]:
    """Where the first input's item stands, where the second's, and so on.

    Raises:
        AttemptFailed: `malformed`: not one for each.
    """
    places = {at if item.index is None else item.index: at for at, item in enumerate(found)}
    if not found or count not in (None, len(found)) or places.keys() != set(range(len(found))):
        raise malformed("no-vectors")
    return [places[at] for at in range(len(found))]


def rows(raw: Raw, count: int | None) -> list[Raw]:
    """Ollama's list of vectors, which are nothing but numbers.

    Raises:
        AttemptFailed: `malformed`: not one for each input.
    """
    data = bytes(raw).strip(_SPACE)
    inner, ends = data[1:-1], data.count(b"]") - 1
    if not data.startswith(b"[") or ends < 1 or ends != (min(ends, MAX_VECTORS) if count is None else count):
        raise malformed("no-vectors")
    *rows, rest = inner.split(b"]")
    if rest.strip(_SPACE):
        raise malformed("vectors")
    return [Raw(row.lstrip(b"," + _SPACE) + b"]") for row in rows]


def numbers(raw: Raw) -> list[float]:
    """A vector in JSON.

    Raises:
        AttemptFailed: `malformed`: it is none.
    """
    data = bytes(raw)
    if data.count(b",") >= MAX_DIMENSIONS:
        raise malformed("vectors")
    try:
        return _sound(decode_as(data, list[float]))
    except ValueError as error:
        raise malformed("vectors") from error


def packed(raw: Raw) -> list[float]:
    """A vector in base64.

    Raises:
        AttemptFailed: `malformed`: it is none.
    """
    try:
        return _sound(vectors.from_base64(_text(raw)))
    except ValueError as error:
        raise malformed("vectors") from error


def packed_otherwise(raw: Raw) -> bytes:
    """A vector in base64, of numbers that are not ours to read.

    Raises:
        AttemptFailed: `malformed`: it is none.
    """
    try:
        found = binascii.a2b_base64(_text(raw), strict_mode=True)
    except ValueError as error:
        raise malformed("vectors") from error
    if not found:
        raise malformed("vectors")
    return found


def of_one_length(lengths: Sequence[int]) -> None:
    """Raises:
    AttemptFailed: `malformed`: they are of several.
    """
    if len(set(lengths)) > 1:
        raise malformed("vectors")


def _text(raw: Raw) -> str:
    if len(bytes(raw)) > _BASE64 * MAX_DIMENSIONS:
        raise ValueError("too long")
    return decode_as(raw, str)


def _sound(vector: list[float]) -> list[float]:
    if not (vector and math.hypot(*vector) <= LONGEST):  # nor is it NaN
        raise ValueError("no vector")
    return vector
