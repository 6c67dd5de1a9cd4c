"""What was called and who answered, as counts by day: the facts from which `llmctl inventory` judges a migration.

Counts add up, whoever counted them and in whatever order they arrive: `Ledger` is the whole arithmetic, and every store
keeps to it. Nothing here is of a caller's content: names, numbers, times.
"""

from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

DAY_S = 86_400
KEEP_DAYS = 90  # older days are forgotten
MAX_LINES = 2_000  # what comes later is counted together as `REST`
OTHER = "other"


class Line(Struct, frozen=True):
    """Who calls what.

    Attributes:
        component, model: bounded names; a model that the catalogue does not know stands as its caller spelt it.
        wire: of the call (`core.call.Wire`). route: method and template of a path that is passed on unread, else empty.
        caller: a key's id, `anonymous`, `admin-token`, or `library`.
    """

    component: str
    model: str
    wire: str
    route: str
    caller: str


REST = Line(OTHER, OTHER, OTHER, "", OTHER)
"""All lines beyond `MAX_LINES`."""


class What(StrEnum):
    """What a sighting counts; `provider` and `detail` say more."""

    REQUEST = "request"  # by who answered (or was answering when its caller left); detail: its cause
    REFUSED = "refused"  # the same, for requests that were the caller's own mistake
    UNANSWERED = "unanswered"  # the same, for requests that everybody failed; by who was asked last
    NEEDS = "needs"  # detail: what the call asked for that made it `not-offered`
    INCOMPATIBLE = "incompatible"  # refused by `provider`, taken by another; detail: status and code
    FAILED = "failed"  # a try at `provider` that failed; detail: kind and code
    WARNING = "warning"  # detail: a token of `x-memos-warnings`


FELL_BACK, LOAD = "fell-back", "load"
"""Causes besides a decision's reasons: the assigned provider failed; an Ollama client's load or unload call."""


class Sighting(Struct, frozen=True, kw_only=True):
    """So many of one thing. `day`: whole days since 1970 (UTC), the newest where several were added up.

    `first` and `last`: Unix seconds.
    """

    day: int
    line: Line
    what: str
    provider: str = ""
    detail: str = ""
    n: int
    first: float
    last: float


class Recorded(Struct, frozen=True, kw_only=True):
    """What a store holds. `since`: when somebody first recorded into it (Unix seconds); None: nobody has."""

    since: float | None
    sightings: tuple[Sighting, ...]


class Ledger:
    """Sightings added up. `max_lines`: how many lines may stand for themselves."""

    def __init__(self, max_lines: int = MAX_LINES) -> None:
        self._max_lines = max_lines
        self._lines: set[Line] = set()
        self._sums: dict[tuple[int, Line, str, str, str], Sighting] = {}

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, sightings: Iterable[Sighting]) -> None:
        for one in sightings:
            line = self._place(one.line)
            key = (one.day, line, one.what, one.provider, one.detail)
            self._sums[key] = added(self._sums.get(key), one, line)

    def forget(self, before_day: int) -> None:
        """Drop the days before; lines that were only seen then are free again."""
        if any(key[0] < before_day for key in self._sums):
            self._sums = {key: one for key, one in self._sums.items() if key[0] >= before_day}
            self._lines = {key[1] for key in self._sums} - {REST}

    def sums(self, since_day: int = 0) -> tuple[Sighting, ...]:
        """Everything from a day on, the days added up."""
        over_days: dict[tuple[Line, str, str, str], Sighting] = {}
        for (day, *_), one in self._sums.items():
            if day >= since_day:
                key = (one.line, one.what, one.provider, one.detail)
                over_days[key] = added(over_days.get(key), one, one.line)
        return tuple(over_days.values())

    def take(self) -> tuple[Sighting, ...]:
        """Everything, day by day; nothing is left."""
        taken = tuple(self._sums.values())
        self._sums, self._lines = {}, set()
        return taken

    def _place(self, line: Line) -> Line:
        if line in self._lines or line == REST:
            return line
        if len(self._lines) >= self._max_lines:
            return REST
        self._lines.add(line)
        return line


def added(to: Sighting | None, one: Sighting, line: Line) -> Sighting:
    """Two sightings of one thing as one; it is booked on `line`."""
    return Sighting(
        day=one.day if to is None else max(to.day, one.day),
        line=line,
        what=one.what,
        provider=one.provider,
        detail=one.detail,
        n=one.n if to is None else to.n + one.n,
        first=one.first if to is None else min(to.first, one.first),
        last=one.last if to is None else max(to.last, one.last),
    )


def day_of(at: float) -> int:
    return int(at // DAY_S)
