"""The breaker of one endpoint: a state machine without clock or I/O; times are passed in, in seconds.

`TRANSITIONS` is the machine. Closed watches: `consecutive` hard failures in a row, or a failure rate over the last
`window_s` with a minimum sample, trip it. Open refuses for a while, twice as long each time in a row, jittered so that
many processes do not come back at once. Half-open lets trials through, one more for each that succeeded, and closes
after `close_after` of them. An attempt that began before the last opening says nothing any more.

The breaker is the quick, temporary, local reflex; the rollback is the latched, fleet-wide act.
"""

from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum, StrEnum, auto
from random import Random

from msgspec import Struct

from memos_llm.core.outcome import Kind


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Signal(Enum):
    TRIPPED = auto()  # too many failures while closed
    WAITED = auto()  # the open period is over
    RECOVERED = auto()  # enough trials succeeded
    RELAPSED = auto()  # a trial failed
    ANSWERED = auto()  # a best effort succeeded while open


TRANSITIONS: Mapping[tuple[State, Signal], State] = {
    (State.CLOSED, Signal.TRIPPED): State.OPEN,
    (State.OPEN, Signal.WAITED): State.HALF_OPEN,
    (State.OPEN, Signal.ANSWERED): State.HALF_OPEN,
    (State.HALF_OPEN, Signal.RECOVERED): State.CLOSED,
    (State.HALF_OPEN, Signal.RELAPSED): State.OPEN,
}
"""A pair that is missing changes nothing."""

VERDICTS: Mapping[Kind, bool | None] = {
    Kind.OK: True,
    Kind.CONNECT: False,
    Kind.TIMEOUT: False,
    Kind.SERVER: False,
    Kind.TRUNCATED: False,
    Kind.MALFORMED: False,
    Kind.SATURATED: None,
    Kind.CONFIG: None,
    Kind.INCOMPATIBLE: None,
    Kind.CLIENT: None,
    Kind.CANCELLED: None,
}
"""What an outcome says of the endpoint: well, ill (a hard failure), or nothing. A test holds it complete."""


class BreakerLimits(Struct, frozen=True, kw_only=True):
    """When a breaker trips and how it comes back; times in seconds."""

    consecutive: int = 5
    failure_rate: float = 0.5
    min_samples: int = 20
    window_s: int = 30
    open_s: float = 5.0
    open_max_s: float = 60.0
    jitter: float = 0.1  # ± part of the open period
    trials: int = 3  # at most in flight while half-open
    close_after: int = 3


class Window:
    """Successes and failures of the last `span_s` seconds, counted by whole second."""

    def __init__(self, span_s: int) -> None:
        self.good = 0
        self.ill = 0
        self._span_s = span_s
        self._rows: deque[list[int]] = deque()  # [second, good, ill]

    def add(self, good: bool, now: float) -> None:
        second = int(now)
        self.forget(second)
        if not self._rows or self._rows[-1][0] < second:
            self._rows.append([second, 0, 0])
        self._rows[-1][1 if good else 2] += 1
        self.good += good
        self.ill += not good

    def forget(self, second: int) -> None:
        while self._rows and self._rows[0][0] <= second - self._span_s:
            _, good, ill = self._rows.popleft()
            self.good -= good
            self.ill -= ill


class Breaker:
    """One endpoint's breaker.

    Attributes:
        state: as of the last call; `admits` is what moves open to half-open.
        trials: attempts in flight that were let through while half-open; the owner counts them with `begin`/`end`.
    """

    def __init__(self, limits: BreakerLimits, rng: Random) -> None:
        self.state = State.CLOSED
        self.trials = 0
        self._limits, self._rng = limits, rng
        self._opened_at = float("-inf")
        self._reopens_at = 0.0
        self._period_s = limits.open_s
        self._streak = 0
        self._passed = 0
        self._window = Window(limits.window_s)

    def would_admit(self, clock: Callable[[], float]) -> bool:
        """Whether an attempt may start now; asking changes nothing, and costs nothing while all is well."""
        if self.state is State.CLOSED:
            return True
        if self.state is State.OPEN:
            return clock() >= self._reopens_at
        return self.trials < min(1 + self._passed, self._limits.trials)

    def admits(self, now: float) -> bool:
        """Whether an attempt may start now; one is about to."""
        if self.state is State.CLOSED:
            return True
        if self.state is State.OPEN and now >= self._reopens_at:
            self._signal(Signal.WAITED, now)
        return self.state is State.HALF_OPEN and self.trials < min(1 + self._passed, self._limits.trials)

    def wait_s(self, now: float) -> float:
        """How long until an attempt may start, at the earliest."""
        return max(0.0, self._reopens_at - now) if self.state is State.OPEN else 0.0

    def begin(self) -> bool:
        """An attempt starts. True: it is a trial, and `end` is due once it is over, however it went."""
        trial = self.state is State.HALF_OPEN
        self.trials += trial
        return trial

    def end(self) -> None:
        self.trials -= 1

    def record(self, good: bool, now: float, started: float) -> None:
        """An attempt that began at `started` has told something about the endpoint."""
        if started <= self._opened_at:
            return
        if self.state is State.OPEN:
            self._endeavoured(good, now)
        elif self.state is State.HALF_OPEN:
            self._tried(good, now)
        else:
            self._watched(good, now)

    def _watched(self, good: bool, now: float) -> None:
        limits, window = self._limits, self._window
        self._streak = 0 if good else self._streak + 1
        window.add(good, now)
        sample = window.good + window.ill
        too_many = sample >= limits.min_samples and window.ill >= limits.failure_rate * sample
        if not good and (too_many or self._streak >= limits.consecutive):
            self._signal(Signal.TRIPPED, now)

    def _endeavoured(self, good: bool, now: float) -> None:
        """Where nobody else was left, an attempt was made all the same; a failure tells nothing new."""
        if good:
            self._signal(Signal.ANSWERED, now)
            self._passed = 1

    def _tried(self, good: bool, now: float) -> None:
        if not good:
            self._signal(Signal.RELAPSED, now)
            return
        self._passed += 1
        if self._passed >= self._limits.close_after:
            self._signal(Signal.RECOVERED, now)

    def _signal(self, signal: Signal, now: float) -> None:
        state = TRANSITIONS.get((self.state, signal), self.state)
        if state is self.state:
            return
        self.state = state
        self._streak = self._passed = 0
        self._window = Window(self._limits.window_s)
        if state is State.OPEN:
            self._open(now)
        elif state is State.CLOSED:
            self._period_s = self._limits.open_s

    def _open(self, now: float) -> None:
        swing = 1 + self._limits.jitter * (2 * self._rng.random() - 1)
        self._opened_at = now
        self._reopens_at = now + self._period_s * swing
        self._period_s = min(2 * self._period_s, self._limits.open_max_s)
