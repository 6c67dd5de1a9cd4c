"""Counts that the store has not got yet. Exact for as long as a store would keep them; bounded while it is away.

Of each key there is a row a second; seconds too old for a store's 1 s rows, and the oldest when there are too many,
are added up by the minute (at its first second: a store adds them to the same minute). Only minutes older than a store
keeps, and the oldest when even the minutes are too many, are lost: `lost` says how many requests' starts were in them.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

from memos_llm.core.windows import COARSE_S, KEEP_COARSE_S, KEEP_FINE_S, Counts, Field, WindowDelta, WindowKey

MOST_SECONDS = 10_000  # rows of single seconds, of all keys
MOST_MINUTES = 10_000

STARTED = Field.STARTED.value
Place = tuple[WindowKey, int]
Sums = dict[str, int]


def minute(second: int) -> int:
    """The first second of its minute."""
    return second - second % COARSE_S


def added(sums: Sums, counts: Counts, sign: int = 1) -> Sums:
    """`sums`, with `counts` added; what comes to 0 is left out."""
    for field, count in counts.items():
        total = sums.get(field, 0) + sign * count
        if total:
            sums[field] = total
        else:
            sums.pop(field, None)
    return sums


class Deltas:
    """Adds up deltas until they are taken away again."""

    def __init__(self, seconds: int = MOST_SECONDS, minutes: int = MOST_MINUTES) -> None:
        self._most_seconds, self._most_minutes = seconds, minutes
        self._seconds: dict[Place, Sums] = {}
        self._minutes: dict[Place, Sums] = {}
        self.lost = 0

    def __len__(self) -> int:
        return len(self._seconds) + len(self._minutes)

    def __iter__(self) -> Iterator[WindowDelta]:
        for (key, start), sums in self.rows():
            yield WindowDelta(key=key, start=start, counts=dict(sums))

    def rows(self) -> Iterator[tuple[Place, Counts]]:
        """As they are now, not copied. A minute and its first second may be at the same place."""
        return chain(self._minutes.items(), self._seconds.items())

    def add(self, delta: WindowDelta) -> None:
        """A delta of a minute that has been added up already is added there."""
        folded = delta.key, minute(delta.start)
        if folded in self._minutes:
            self._put(self._minutes, folded, delta.counts)
        else:
            self._put(self._seconds, (delta.key, delta.start), delta.counts)
        if len(self._seconds) > self._most_seconds:
            self._fold_half()

    def take(self) -> list[WindowDelta]:
        """All of them; none is left."""
        taken = list(self)
        self._seconds, self._minutes = {}, {}
        return taken

    def subtract(self, deltas: Iterable[WindowDelta]) -> None:
        """The store has got these. What was added to the same rows since they were read stays."""
        for delta in deltas:
            place, folded = (delta.key, delta.start), (delta.key, minute(delta.start))
            rows, place = (self._seconds, place) if folded not in self._minutes else (self._minutes, folded)
            self._put(rows, place, delta.counts, -1)

    def age(self, now: float) -> None:
        """Fold what is old, lose what is too much; not while a store is being given any of it. `now`: Unix seconds by
        the store's clock.
        """
        self._fold([place for place in self._seconds if minute(place[1]) < now - KEEP_FINE_S - COARSE_S])
        oldest_first = sorted(self._minutes, key=lambda place: place[1])
        excess = len(oldest_first) - self._most_minutes
        for index, place in enumerate(oldest_first):
            if index < excess or place[1] < now - KEEP_COARSE_S - COARSE_S:
                self.lost += max(0, self._minutes.pop(place).get(STARTED, 0))

    def _put(self, rows: dict[Place, Sums], place: Place, counts: Counts, sign: int = 1) -> None:
        if not added(rows.setdefault(place, {}), counts, sign):
            del rows[place]

    def _fold_half(self) -> None:
        """The oldest half of the seconds; whole minutes, of all keys."""
        starts = sorted(start for _, start in self._seconds)
        until = minute(starts[len(starts) // 2]) + COARSE_S
        self._fold([place for place in self._seconds if place[1] < until])

    def _fold(self, places: Iterable[Place]) -> None:
        for key, start in places:
            self._put(self._minutes, (key, minute(start)), self._seconds.pop((key, start)))
