"""The fleet's counts in memory: what the store told, and what this process has not brought there yet.

Rows are looked at by the second up to 15 minutes back, by the minute further back, and never both for one moment: the
border is a whole minute, and only moves on. A stretch that reaches behind it begins and ends there with a whole minute.
What is asked twice between two changes is added up once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import ceil, floor, inf

from memos_llm.core.flags import EMBEDDING, Flags
from memos_llm.core.outcome import Kind
from memos_llm.core.verdicts import ArmWindow, Sum
from memos_llm.core.windows import (
    BUCKETS,
    COARSE_S,
    FINE_S,
    KEEP_COARSE_S,
    KEEP_FINE_S,
    Counts,
    Field,
    Merged,
    WindowDelta,
    WindowKey,
    WindowRow,
    failed,
    middle_s,
)
from memos_llm.guard.deltas import Deltas, added, minute
from memos_llm.guard.triggers import Counted

Of = Callable[[WindowKey], bool] | frozenset[WindowKey]
"""Which keys' requests are meant: these, or those that it says yes to."""

FIELDS = STARTED, ENDED, FAILED, TIMED, RESOLVED, SLOW = tuple(field.value for field in Field)  # as `Counted` has them
KINDS = {failed(kind): kind.value for kind in Kind}
HISTOGRAM = tuple((f"h.{index}", middle_s(index)) for index in range(BUCKETS))


def current(flags: Flags, key: WindowKey) -> bool:
    """Whether a key's requests were assigned as these flags would assign them: same scope, same epoch."""
    scope, said = flags.effective(EMBEDDING if key.scope == EMBEDDING else key.component)
    return (scope, said.epoch) == (key.scope, key.epoch)


def belongs(sum: Sum, key: WindowKey) -> bool:
    """Whether a key's requests are part of what is judged."""
    return key.provider == sum.provider and sum.component in ("", key.component) and sum.model in ("", key.model)


class _Rows:
    """The rows of one key: start → counts, by the second and by the minute."""

    def __init__(self) -> None:
        self.seconds: dict[int, Counts] = {}
        self.minutes: dict[int, Counts] = {}
        self.whole: dict[int, dict[str, int]] = {}  # what the seconds of a minute come to, as far as it was asked


class Windows:
    """What is known of the fleet's requests. Times are Unix seconds by the store's clock."""

    def __init__(self) -> None:
        self.cursor = 0  # for the next `merge`
        self._rows: dict[WindowKey, _Rows] = {}
        self._owed = Deltas()
        self._own: dict[WindowKey, dict[int, Counts]] | None = None  # the owed, by key and start
        self._fine_from = 0
        self._told_at = -inf
        self._summed: dict[tuple[WindowKey, int, int], Counts] = {}  # by first second, and the one after the last
        self._blocks: dict[tuple[WindowKey, int, int, int], list[tuple[int, int, int]]] = {}

    @property
    def lost(self) -> int:
        """Requests of this process that no store will get: it was away for too long."""
        return self._owed.lost

    def __len__(self) -> int:
        """The rows kept."""
        return len(self._owed) + sum(len(rows.seconds) + len(rows.minutes) for rows in self._rows.values())

    def add(self, delta: WindowDelta) -> None:
        """Count what this process saw; it is owed to the store until `learn` says that the store has got it."""
        self._owed.add(delta)
        self._changed()

    def owed(self) -> list[WindowDelta]:
        """What is to be given to `merge`, and then to `learn`."""
        return list(self._owed)

    def learn(self, merged: Merged, brought: Sequence[WindowDelta] = ()) -> None:
        """What the store told when it was given `brought`."""
        went_back = merged.at < self._told_at - COARSE_S  # the store's clock was wrong, or is: what is old is told anew
        if merged.whole or went_back:
            self._rows.clear()
            self._fine_from = 0  # by another store's clock, maybe
        for row in merged.rows:
            self._learn_row(row)
        self.cursor = 0 if went_back and not merged.whole else merged.cursor
        self._told_at = merged.at
        self._owed.subtract(brought)
        self._changed()
        self._move_border(merged.at)

    def prune(self, now: float, keeps: Callable[[WindowKey], bool]) -> None:
        """Forget what is too old, and the keys that are not kept (those of epochs that are over, with nothing in
        flight). Of a key that comes again all that the store tells is learnt again.
        """
        self._move_border(now)
        self._owed.age(now)
        self._changed()
        for key, rows in list(self._rows.items()):
            if not keeps(key) or not (rows.minutes or rows.seconds):
                del self._rows[key]

    def keys(self) -> frozenset[WindowKey]:
        return frozenset(self._rows) | frozenset(self._overlay())

    def counted(self, of: Of, since: float, until: float) -> Counted:
        """What became of the requests that started in every second that the stretch touches."""
        sums = self._sums(of, since, until)
        return Counted(*(sums.get(field, 0) for field in FIELDS))

    def blocks(self, of: Of, since: float, until: float, block_s: int) -> list[tuple[int, int]]:
        """(timed, slow) of each block of the stretch in which anything was timed, oldest first. A block begins at a
        multiple of `block_s`.
        """
        timed: dict[int, int] = {}
        slow: dict[int, int] = {}
        for key in self._asked(of):
            for block, timed_there, slow_there in self._blocks_of(key, floor(since), ceil(until), block_s):
                timed[block] = timed.get(block, 0) + timed_there
                slow[block] = slow.get(block, 0) + slow_there
        found = ((max(timed[block], slow[block]), max(0, slow[block])) for block in sorted(timed))
        return [(there, bad) for there, bad in found if there > 0]

    def first_bad(self, of: Of, since: float, until: float, *, slow: bool) -> float | None:
        """When the second (further back: the minute) began in which the first one started that failed, or was slow."""
        field, start, end = SLOW if slow else FAILED, floor(since), ceil(until)
        rows = (row for key in self._asked(of) for row in self._of_rows(key, start, end))
        return min((at for at, counts in rows if counts.get(field, 0) > 0), default=None)

    def kinds(self, of: Of, since: float, until: float) -> dict[str, int]:
        """Failures by outcome kind."""
        return _kinds(self._sums(of, since, until))

    def p95_s(self, of: Of, since: float, until: float) -> float | None:
        """95 of 100 took no longer, within 5 % up to ten minutes; None where none was measured."""
        return _quantile(self._sums(of, since, until), 0.95)

    def arm(self, sum: Sum, of: Of, since: float, until: float) -> ArmWindow:
        """One arm over a stretch, as it is kept with an incident."""
        sums = self._sums(of, since, until)
        started, ended, failures, timed, _, slow = (sums.get(field, 0) for field in FIELDS)
        p95_s = _quantile(sums, 0.95)
        return ArmWindow(
            provider=sum.provider,
            component=sum.component,
            model=sum.model,
            since=since,
            until=until,
            n=started,
            ended=ended,
            failures=failures,
            slow=slow,
            timed=timed,
            p95_ms=None if p95_s is None else p95_s * 1000,
            kinds=_kinds(sums),
        )

    def _changed(self) -> None:
        self._own = None
        self._summed.clear()
        self._blocks.clear()

    def _learn_row(self, row: WindowRow) -> None:
        rows = self._rows.setdefault(row.key, _Rows())
        if row.width_s != FINE_S:
            rows.minutes[row.start] = row.counts
        elif row.start >= self._fine_from:
            rows.seconds[row.start] = row.counts
            rows.whole.pop(minute(row.start), None)

    def _move_border(self, now: float) -> None:
        """What a store may have forgotten is looked at no more."""
        border = COARSE_S * ceil((now - KEEP_FINE_S) / COARSE_S)
        if border <= self._fine_from:
            return
        self._fine_from = border
        oldest = now - KEEP_COARSE_S - COARSE_S
        for rows in self._rows.values():
            rows.seconds = {start: counts for start, counts in rows.seconds.items() if start >= border}
            rows.minutes = {start: counts for start, counts in rows.minutes.items() if start >= oldest}
            rows.whole = {start: counts for start, counts in rows.whole.items() if start >= border}

    def _overlay(self) -> Mapping[WindowKey, Mapping[int, Counts]]:
        if self._own is None:
            self._own = {}
            for (key, start), counts in self._owed.rows():
                starts = self._own.setdefault(key, {})
                starts[start] = added(dict(starts[start]), counts) if start in starts else counts
        return self._own

    def _asked(self, of: Of) -> Iterable[WindowKey]:
        if isinstance(of, frozenset):
            return of
        return [key for key in self._rows.keys() | self._overlay().keys() if of(key)]

    def _blocks_of(self, key: WindowKey, start: int, end: int, block_s: int) -> list[tuple[int, int, int]]:
        asked = key, start, end, block_s
        found = self._blocks.get(asked)
        if found is None:
            sums: dict[int, list[int]] = {}
            for at, row in self._of_rows(key, start, end):
                if TIMED in row or SLOW in row:
                    block = sums.setdefault(at // block_s, [0, 0])
                    block[0] += row.get(TIMED, 0)
                    block[1] += row.get(SLOW, 0)
            found = [(at, timed, slow) for at, (timed, slow) in sums.items()]
            self._blocks[asked] = found
        return found

    def _ranges(self, start: int, end: int) -> tuple[range, range]:
        """Of a stretch, what is looked at by the minute, and by the second."""
        border = self._fine_from
        return range(minute(start), minute(end) if end < border else border), range(max(start, border), end)

    def _of_rows(self, key: WindowKey, start: int, end: int) -> Iterator[tuple[int, Counts]]:
        """Start and counts of a key's rows, none twice."""
        rows = self._rows.get(key)
        if rows is not None:
            yield from self._stored(rows, start, end)
        yield from self._unstored(key, start, end)

    def _stored(self, rows: _Rows, start: int, end: int) -> Iterator[tuple[int, Counts]]:
        coarse, fine = self._ranges(start, end)
        yield from _picked(rows.minutes, coarse, COARSE_S)
        yield from _picked(rows.seconds, fine, FINE_S)

    def _unstored(self, key: WindowKey, start: int, end: int) -> Iterator[tuple[int, Counts]]:
        coarse, fine = self._ranges(start, end)
        for second, counts in self._overlay().get(key, {}).items():
            if second in fine or second in coarse:
                yield second, counts

    def _sums(self, of: Of, since: float, until: float) -> dict[str, int]:
        start, end = floor(since), ceil(until)
        return _sound(_all_of(self._of_key(key, start, end) for key in self._asked(of)))

    def _of_key(self, key: WindowKey, start: int, end: int) -> Counts:
        asked = key, start, end
        found = self._summed.get(asked)
        if found is None:
            first = max(self._fine_from, minute(start + COARSE_S - 1))
            found = self._summed[asked] = _all_of(self._parts(key, start, end, range(first, minute(end), COARSE_S)))
        return found

    def _parts(self, key: WindowKey, start: int, end: int, whole: range) -> Iterator[Counts]:
        """The rows of a key, but for those of the minutes that are wholly in the stretch: these are remembered."""
        rows = self._rows.get(key)
        if rows is None or not whole:
            yield from (counts for _, counts in self._of_rows(key, start, end))
            return
        yield from (counts for _, counts in self._stored(rows, start, whole.start))
        for first in whole:
            if first not in rows.whole:
                seconds = _picked(rows.seconds, range(first, first + COARSE_S), FINE_S)
                rows.whole[first] = _all_of(counts for _, counts in seconds)
            yield rows.whole[first]
        yield from (counts for _, counts in self._stored(rows, whole.stop, end))
        yield from (counts for _, counts in self._unstored(key, start, end))


def _all_of(rows: Iterable[Counts]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for counts in rows:
        for field, count in counts.items():
            sums[field] = sums.get(field, 0) + count
    return sums


def _sound(sums: dict[str, int]) -> dict[str, int]:
    """What failed has ended, and what ended has started, though the row that said so be gone: while a clock is hours
    ahead stores forget rows whose requests are in flight, and are told the rest of them later.
    """
    for less, more in ((FAILED, ENDED), (ENDED, STARTED), (SLOW, RESOLVED), (RESOLVED, TIMED)):
        sums[less] = max(0, sums.get(less, 0))
        sums[more] = max(sums[less], sums.get(more, 0))
    return sums


def _kinds(sums: Counts) -> dict[str, int]:
    return {KINDS[field]: count for field, count in sums.items() if field in KINDS and count > 0}


def _picked(rows: Mapping[int, Counts], wanted: range, width_s: int) -> Iterable[tuple[int, Counts]]:
    """Those of a range, whichever of the two is shorter to go through."""
    if len(rows) * width_s > len(wanted):
        starts: Iterable[int] = wanted[::width_s]
        return [(start, rows[start]) for start in starts if start in rows]
    return [(start, counts) for start, counts in rows.items() if start in wanted]


def _quantile(sums: Counts, quantile: float) -> float | None:
    total = sum(sums.get(field, 0) for field, _ in HISTOGRAM)
    if total <= 0:
        return None
    rank, seen, found = quantile * total, 0, 0.0
    for field, middle in HISTOGRAM:
        seen += sums.get(field, 0)
        if seen >= rank:
            found = middle
            break
    return found
