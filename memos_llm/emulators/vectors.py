"""What an embedding says: a pure function of vector space, model and text.

A text is the sum of stable random directions, one for each of its tokens and pairs of neighbours, so texts that
share words lie closer than texts that share none. Two engines have unrelated spaces by default, as two builds of
a model with other pooling or another normaliser have; two engines that are given the same `space` agree up to a
noise that is theirs alone (cosine above 0.9999), as two builds that do the same sums in another order.

Invariants: unit length; the same call gives the same vector in every process. No I/O, no clock.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

from memos_llm.emulators import answers

DIMENSION = 1024  # of mxbai-embed-large and of the usual middle-sized models
_NOISE = 0.005  # of the length: the cosine of two noisy vectors is then about 1 - 0.005² = 0.999975
_PAIR_WEIGHT = 0.5  # word order matters, but less than the words
_EMPTY = "<empty>"  # an empty text still has the tokenizer's own start and end


def vector(engine: str, model: str, text: str, dimension: int = DIMENSION, *, space: str | None = None) -> list[float]:
    """The unit vector of a text.

    Args:
        engine: who answers. model: its name in this space. dimension: 1 or more.
        space: None for a space of the engine's own; two engines that name the same space agree closely, whatever
            they call their models.
    """
    if space is None:
        return unit(_summed(f"{engine}/{model}", text, dimension))
    noise = _direction(f"noise/{engine}/{text}", dimension)
    return unit(value + _NOISE * bit for value, bit in zip(unit(_summed(space, text, dimension)), noise, strict=True))


def unit(values: Iterable[float]) -> list[float]:
    """The same direction with length 1; all zeros stay."""
    kept = list(values)
    length = math.sqrt(math.fsum(value * value for value in kept))
    return [value / length for value in kept] if length else kept


def cut(values: Sequence[float], dimensions: int | None) -> list[float]:
    """The first `dimensions` values with length 1; what is no real cut (below 1, above the size) leaves all."""
    if dimensions is None or not 0 < dimensions < len(values):
        return list(values)
    return unit(values[:dimensions])


def _summed(space: str, text: str, dimension: int) -> list[float]:
    total = [0.0] * dimension
    words = [piece.strip().lower() for piece in answers.tokens(text)] or [_EMPTY]
    pairs = [f"{left} {right}" for left, right in itertools.pairwise(words)]
    for weight, grams in ((1.0, words), (_PAIR_WEIGHT, pairs)):
        for gram in grams:
            direction = _direction(f"{space}/{gram}", dimension)
            total = [so_far + weight * value for so_far, value in zip(total, direction, strict=True)]
    return total


@lru_cache(maxsize=512)
def _direction(name: str, dimension: int) -> tuple[float, ...]:
    """A stable random direction of about unit length; cached (16 MB when full): texts say the same words often."""
    raw = hashlib.shake_128(name.encode("utf-8", "replace")).digest(2 * dimension)
    scale = math.sqrt(3.0 / dimension) / 32768.0  # a uniform number in [-1, 1] has the variance 1/3
    return tuple(scale * value for value in struct.unpack(f"<{dimension}h", raw))
