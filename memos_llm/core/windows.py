"""What the guard counts: integers by start second, which add up, whoever counted them and in whatever order.

A row belongs to one key and the second in which its requests *started*; what becomes of them later is added to that
row (a failure may come 30 s after its start, and counting it where it ended would judge the quick ones first). So
merging is adding, and the rows of many processes are those of one that saw everything.
"""

from bisect import bisect_left
from collections.abc import Mapping
from enum import StrEnum
from math import ceil, log

from msgspec import Struct

from memos_llm.core.outcome import Kind

FINE_S, COARSE_S = 1, 60  # widths of rows: seconds, for the windows; minutes, for looking further back
KEEP_FINE_S, KEEP_COARSE_S = 900, 86_400  # how long a store keeps them


class WindowKey(Struct, frozen=True, kw_only=True):
    """Whose requests. `provider` is the one that they were *assigned* to; `scope` and `epoch` are the assignment's."""

    scope: str
    epoch: int
    provider: str
    model: str
    component: str


class Field(StrEnum):
    """The counts of a row, but for failures by kind (`failed`) and the histogram (`bucket`).

    Every request is one of `STARTED`, and once it is over one of `ENDED`; one that failed is one of `FAILED` too.
    Those whose latency is judged (streams only, where the signal is one of streams) are in `TIMED`; in `RESOLVED` once
    it is known to be within the limit or beyond it, and in `SLOW` if beyond: also while still in flight.
    """

    STARTED = "n"
    ENDED = "e"
    FAILED = "k"
    TIMED = "t"
    RESOLVED = "r"
    SLOW = "s"


Counts = Mapping[str, int]
"""Field → count; what is missing is 0. A delta's may be negative."""


def failed(kind: Kind) -> str:
    """The field of failures of one kind."""
    return f"k.{kind.value}"


LEAST_S, MOST_S, RATIO = 0.001, 600.0, 1.1
BUCKETS = ceil(log(MOST_S / LEAST_S) / log(RATIO)) + 2  # the first is up to LEAST_S, the last beyond MOST_S
EDGES = tuple(LEAST_S * RATIO ** (index + 1e-9) for index in range(BUCKETS - 1))  # what they reach up to
NAMES = tuple(f"h.{index}" for index in range(BUCKETS))


def bucket(seconds: float) -> str:
    """The histogram's field for a latency: fixed edges, each a tenth above the one before, so that the middle of a
    bucket is at most 5 % off.
    """
    return NAMES[bisect_left(EDGES, seconds)]


def middle_s(index: int) -> float:
    """The latency that a bucket stands for, within 5 % up to `MOST_S`."""
    return LEAST_S if index <= 0 else LEAST_S * RATIO**index / (1 + (RATIO - 1) / 2) if index < BUCKETS - 1 else MOST_S


class WindowDelta(Struct, frozen=True, kw_only=True):
    """To be added to a row. `start`: whole Unix seconds by the store's clock."""

    key: WindowKey
    start: int
    counts: Counts


class WindowRow(Struct, frozen=True, kw_only=True):
    """A row as the store has it: all that every process has added so far. `start` is a multiple of `width_s`."""

    key: WindowKey
    start: int
    width_s: int
    counts: Counts


class Merged(Struct, frozen=True, kw_only=True):
    """What a store answers to `merge`.

    Attributes:
        at: the store's clock, Unix seconds.
        cursor: for the next call.
        rows: those that changed since the cursor given, as they are now.
        whole: they are all that there are: forget what was known.
    """

    at: float
    cursor: int
    rows: tuple[WindowRow, ...]
    whole: bool = False
