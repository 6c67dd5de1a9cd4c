"""Whether two back ends' embeddings of one model are one space: pure arithmetic over two lists of vectors.

Equal dimension and a least cosine of `COSINE_LIMIT` mean that vectors of both may stand in one index. The rest helps
a person to see why not: norms (a side that does not normalise), the distribution of the cosines, and how many of a
text's nearest neighbours are the same on both sides.
"""

import math
from collections.abc import Iterable, Sequence
from operator import mul

from msgspec import Struct

from memos_llm.core.flags import COSINE_LIMIT, Verification

NEIGHBOURS = 10
NEIGHBOURHOOD = 200  # texts among which neighbours are looked for: the cost grows with the square

Vector = Sequence[float]


class Norms(Struct, frozen=True, kw_only=True):
    """Lengths of one side's vectors."""

    min: float
    mean: float
    max: float


class Cosines(Struct, frozen=True, kw_only=True):
    """Over all texts, each with its counterpart. `p1`: 1 of 100 texts is less alike."""

    min: float
    p1: float
    p50: float
    mean: float


class Comparison(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        dimension_baseline, dimension_candidate: 0 when one side's vectors are not all of one dimension.
        cosine: None when the dimensions differ. overlap_at_10: 0…1; None also for fewer than two texts.
        worst: the places of the least alike texts, from 0.
        equal: both sides are one space. why: in words.
    """

    texts: int
    dimension_baseline: int
    dimension_candidate: int
    norms_baseline: Norms
    norms_candidate: Norms
    cosine: Cosines | None
    overlap_at_10: float | None
    worst: tuple[int, ...]
    equal: bool
    why: str


def compare(here: Sequence[Vector], there: Sequence[Vector]) -> Comparison:
    """The baseline's vectors (`here`) with the candidate's; text i is at place i of both.

    Raises:
        ValueError: no vectors, or not as many on one side as on the other.
    """
    if not here or len(here) != len(there):
        raise ValueError(f"{len(here)} vectors against {len(there)}")
    ours, theirs = _dimension(here), _dimension(there)
    lengths = [math.hypot(*vector) for vector in here], [math.hypot(*vector) for vector in there]
    alike, overlap = None, None
    worst: tuple[int, ...] = ()
    if ours == theirs and ours:
        units = [_units(vectors, norms) for vectors, norms in zip((here, there), lengths, strict=True)]
        cosines = [_dot(a, b) for a, b in zip(*units, strict=True)]
        alike, overlap = _distribution(cosines), _overlap(*units)
        worst = tuple(sorted(range(len(cosines)), key=cosines.__getitem__)[:3])
    why = _why(ours, theirs, alike)
    return Comparison(
        texts=len(here),
        dimension_baseline=ours,
        dimension_candidate=theirs,
        norms_baseline=_norms(lengths[0]),
        norms_candidate=_norms(lengths[1]),
        cosine=alike,
        overlap_at_10=overlap,
        worst=worst,
        equal=not why,
        why=why or f"dimension {ours}, least cosine {alike.min if alike else 0:.6f} over {len(here)} texts",
    )


def proof(found: Comparison, baseline: str, candidate: str, now: float) -> Verification | None:
    """What is recorded of it; None when the sides are not equal. The names are the model's own on each side."""
    if not found.equal or found.cosine is None:
        return None
    return Verification(
        baseline=baseline,
        candidate=candidate,
        dimension=found.dimension_baseline,
        cosine_min=found.cosine.min,
        texts=found.texts,
        at=now,
    )


def _why(ours: int, theirs: int, alike: Cosines | None) -> str:
    """What keeps them from being one space; empty when nothing does."""
    if not ours or not theirs:
        return "the vectors of one side are not all of one dimension"
    if ours != theirs or alike is None:
        return f"the dimensions differ: {ours} and {theirs}"
    if not alike.min >= COSINE_LIMIT:  # a NaN is no proof either
        return f"the least cosine is {alike.min:.6f}, under {COSINE_LIMIT}"
    return ""


def _dimension(vectors: Iterable[Vector]) -> int:
    found = {len(vector) for vector in vectors}
    return found.pop() if len(found) == 1 else 0


def _units(vectors: Sequence[Vector], norms: Sequence[float]) -> list[list[float]]:
    """A vector without length, or with one that is no number, is like none: all zeros."""
    return [
        [x / norm for x in vector] if norm > 0 and math.isfinite(norm) else [0.0] * len(vector)
        for vector, norm in zip(vectors, norms, strict=True)
    ]


def _dot(a: Vector, b: Vector) -> float:
    product: float = sum(map(mul, a, b))
    return max(-1.0, min(1.0, product))


def _norms(lengths: Sequence[float]) -> Norms:
    return Norms(min=min(lengths), mean=sum(lengths) / len(lengths), max=max(lengths))


def _distribution(cosines: Sequence[float]) -> Cosines:
    ordered = sorted(cosines)

    def quantile(part: float) -> float:
        return ordered[math.ceil(part * len(ordered)) - 1]

    return Cosines(min=ordered[0], p1=quantile(0.01), p50=quantile(0.5), mean=sum(ordered) / len(ordered))


def _overlap(here: Sequence[Vector], there: Sequence[Vector]) -> float | None:
    """The mean part of a text's nearest neighbours that both sides agree on, among the first `NEIGHBOURHOOD` texts."""
    here, there = here[:NEIGHBOURHOOD], there[:NEIGHBOURHOOD]
    many = min(NEIGHBOURS, len(here) - 1)
    if many < 1:
        return None
    agreed = sum(len(_nearest(here, i, many) & _nearest(there, i, many)) for i in range(len(here)))
    return agreed / (many * len(here))


def _nearest(vectors: Sequence[Vector], place: int, many: int) -> set[int]:
    alike = [(-_dot(vectors[place], other), i) for i, other in enumerate(vectors) if i != place]
    return {i for _, i in sorted(alike)[:many]}
