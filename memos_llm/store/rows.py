"""The windows' rows: which of them a delta is added to and how long they are kept, whatever the store; and the rows of
a store that keeps them in this process.
"""

import random
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import NamedTuple

from memos_llm.core.windows import (
    COARSE_S,
    FINE_S,
    KEEP_COARSE_S,
    KEEP_FINE_S,
    Counts,
    Merged,
    WindowDelta,
    WindowKey,
    WindowRow,
)

KEEP_S: Mapping[int, int] = {FINE_S: KEEP_FINE_S, COARSE_S: KEEP_COARSE_S}
PRUNE_S = 10  # at most this often, so that a merge costs what it adds
MAX_KEYS = 2_000  # beyond it the keys that were added to longest ago go, with their rows: not those counted now
CROWDED = MAX_KEYS + MAX_KEYS // 10  # when they go, so that not every new key sends one away


class Place(NamedTuple):
    """Where a row is."""

    width_s: int
    start: int
    key: WindowKey


def oldest(width_s: int, now: float) -> int:
    """The first start that is still kept."""
    return int(now) - KEEP_S[width_s]


def sums(deltas: Iterable[WindowDelta], now: float) -> dict[Place, dict[str, int]]:
    """What is to be added to which rows: each delta to its second and its minute, but for rows that are kept no longer
    (what would be added to nothing were less than the row had).
    """
    found: dict[Place, dict[str, int]] = {}
    first = {width_s: oldest(width_s, now) for width_s in KEEP_S}
    for delta in deltas:
        for width_s in KEEP_S:
            start = delta.start // width_s * width_s
            if start >= first[width_s]:
                place = Place(width_s, start, delta.key)
                found[place] = added(found.get(place, {}), delta.counts)
    return {place: counts for place, counts in found.items() if counts}


def added(counts: Counts, more: Counts) -> dict[str, int]:
    """The sum; what comes to 0 is left out."""
    total = dict(counts)
    for field, n in more.items():
        total[field] = total.get(field, 0) + n
    return {field: n for field, n in total.items() if n}


class _Kept(NamedTuple):
    change: int
    counts: dict[str, int]


class Rows:
    """In the order of their last change, and so are the keys. Not for several threads at once."""

    def __init__(self) -> None:
        self._rows: dict[Place, _Kept] = {}
        self._keys: dict[WindowKey, None] = {}
        self._first = self._change = random.getrandbits(40) << 20  # a cursor of another store is none of this one's
        self._pruned = 0.0

    def merge(self, deltas: Iterable[WindowDelta], cursor: int, now: float) -> Merged:
        more = sums(deltas, now)
        if more:
            self._add(more)
        self._prune(now)
        whole = not self._first < cursor <= self._change
        since = self._first if whole else cursor
        changed = takewhile(lambda item: item[1].change > since, reversed(self._rows.items()))
        rows = tuple(
            WindowRow(key=place.key, start=place.start, width_s=place.width_s, counts=kept.counts)
            for place, kept in changed
            if place.start >= oldest(place.width_s, now)
        )
        return Merged(at=now, cursor=self._change, rows=rows, whole=whole)

    def _add(self, more: Mapping[Place, Counts]) -> None:
        self._change += 1
        for place, counts in more.items():
            before = self._rows.pop(place, None)
            self._rows[place] = _Kept(self._change, added(before.counts if before else {}, counts))
            self._keys.pop(place.key, None)
            self._keys[place.key] = None

    def _prune(self, now: float) -> None:
        crowded = len(self._keys) > CROWDED
        if not crowded and abs(now - self._pruned) < PRUNE_S:
            return
        self._pruned = now
        if crowded:
            self._keys = dict.fromkeys(list(self._keys)[-MAX_KEYS:])
        self._rows = {
            place: kept
            for place, kept in self._rows.items()
            if place.start >= oldest(place.width_s, now) and place.key in self._keys
        }
        left = {place.key for place in self._rows}
        self._keys = dict.fromkeys(key for key in self._keys if key in left)
