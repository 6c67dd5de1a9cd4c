"""Embedding vectors: cut, normalised, and read from either of their encodings."""

import binascii
import math
import sys
from array import array
from collections.abc import Sequence

EVEN = 1e-6  # how far from 1 a length may be and still count as 1: what rounding to float32 does


def normalised(vector: Sequence[float]) -> list[float]:
    """The vector with length 1, as Ollama's /api/embed returns it; one of zeros stays as it is."""
    length = math.hypot(*vector)
    if not length or abs(length - 1.0) <= EVEN or not math.isfinite(length):
        return list(vector)
    return [value / length for value in vector]


def cut(vector: Sequence[float], dimensions: int) -> list[float]:
    """The first `dimensions` values, with length 1; as it is when it has no more (Ollama 0.17.4, measured)."""
    return normalised(vector[:dimensions]) if 0 < dimensions < len(vector) else list(vector)


def from_base64(text: str) -> list[float]:
    """Little-endian float32, as OpenAI's API has it.

    Raises:
        ValueError: it is none.
    """
    try:
        values = array("f", binascii.a2b_base64(text, strict_mode=True))
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    return _little_endian(values).tolist()


def to_base64(vector: Sequence[float]) -> str:
    return binascii.b2a_base64(_little_endian(array("f", vector)).tobytes(), newline=False).decode()


def _little_endian(values: "array[float]") -> "array[float]":
    if sys.byteorder == "big":
        values.byteswap()
    return values
