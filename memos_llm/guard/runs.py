"""The sequential runs and time-out streaks of one sum of the candidate's requests, in this process.

They trip long before the windows have enough. Those of errors and of slowness begin anew with the scope's epoch and
with other limits; a streak of time-outs outlives epochs, and ends when a human says so. What tripped is kept until it
is asked for, once a trigger.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from math import inf

from msgspec import Struct

from memos_llm.core.policy import Limits
from memos_llm.core.verdicts import HARD, Sum, Trigger
from memos_llm.core.windows import WindowKey
from memos_llm.guard.sequences import ErrorRun, LatencyRun, TimeoutRun, parameters

MOST_IDS = 10

Charges = tuple[tuple[ErrorRun, int], ...]
"""What the runs were charged when a request started; a run that has begun anew since is another one."""


class Trip(Struct, frozen=True, kw_only=True):
    """A run that tripped.

    Attributes:
        limits: that it was held to.
        n, k: of n requests that started (or were timed) since the run began k failed (or were slow); of time-outs both
            are the streak.
        since, at: when the run began and when it tripped last, Unix seconds by the store's clock.
        requests: ids of the last bad ones.
        epochs: scope → epoch of the bad ones: what was judged.
    """

    sum: Sum
    trigger: Trigger
    limits: Limits
    n: int
    k: int
    since: float
    at: float
    requests: tuple[str, ...]
    epochs: Mapping[str, int]

    @property
    def provider(self) -> str:
        return self.sum.provider


class Bad:
    """The bad requests of a run, while it is under way. Times are monotonic."""

    def __init__(self) -> None:
        self.n = self.k = 0
        self.since = 0.0
        self.last = deque[tuple[float, str]](maxlen=MOST_IDS)  # when each was known, and its id; of runs before too
        self.epochs: dict[str, int] = {}

    def begin(self, now: float) -> None:
        self.n = self.k = 0
        self.since = now
        self.epochs.clear()

    def note(self, key: WindowKey, request_id: str, now: float) -> None:
        self.last.append((now, request_id))
        self.epochs[key.scope] = key.epoch

    def ids(self, since: float) -> tuple[str, ...]:
        """Of the last ones, as far as they became known since then."""
        return tuple(request_id for at, request_id in self.last if at >= since)


class Runs:
    """Those of one sum under one set of limits."""

    def __init__(self, of: Sum, limits: Limits) -> None:
        self.sum, self.limits = of, limits
        self.timeouts = None if limits.consecutive_timeouts is None else TimeoutRun(limits.consecutive_timeouts)
        self._timed_out = Bad()
        self._tripped: dict[Trigger, float] = {}
        self._forgiven_at = -inf
        self.begin_anew()

    def begin_anew(self) -> None:
        """Another epoch: what went before says nothing of it."""
        rate = self.limits.error_rate
        self.errors = None if rate is None else ErrorRun(parameters(rate))
        self.slowness = None if self.limits.latency_p95_s is None else LatencyRun()
        self._failed, self._slow = Bad(), Bad()
        self._tripped = {trigger: at for trigger, at in self._tripped.items() if trigger in HARD}

    def forgive(self, now: float) -> None:
        """A human says that it is well again, or will be after a maintenance: nothing that started until now is held
        against it.
        """
        self._forgiven_at = now
        self.content()
        self._tripped.clear()

    @property
    def at_rest(self) -> bool:
        """Whether starts need not be told of, and nothing in flight can confirm anything."""
        return not ((self.errors and self.errors.s) or (self.timeouts and self.timeouts.streak))

    def started(self) -> Charges:
        """A request began: what is to be told to `failed` or `withdrawn`, nothing at rest."""
        if self.errors is None or not self.errors.s:
            return ()
        self._failed.n += 1
        return ((self.errors, self.errors.start()),)

    def withdrawn(self, charges: Charges) -> None:
        """It was no observation after all."""
        charge = self._charge(charges)
        if charge and self.errors is not None:
            self._failed.n = max(self._failed.k, self._failed.n - 1)
            self.errors.withdraw(charge)

    def failed(self, key: WindowKey, request_id: str, charges: Charges, started_at: float, now: float) -> None:
        if self.errors is None:
            return
        charge = self._charge(charges)
        if not self.errors.s:
            self._failed.begin(now)
        if not charge:
            self._failed.n += 1
        self._failed.k += 1
        self._failed.note(key, request_id, now)
        if self.errors.fail(charge, started_at, now):
            self._tripped[Trigger.ERROR_RUN] = now

    def timed_out(self, key: WindowKey, request_id: str, retry: int, started_at: float, now: float) -> None:
        if self.timeouts is None or started_at <= self._forgiven_at:
            return
        if not self.timeouts.streak:
            self._timed_out.begin(now)
        tripped = self.timeouts.timeout(started_at, now, retry)
        self._timed_out.n = self._timed_out.k = self.timeouts.streak
        self._timed_out.note(key, request_id, now)
        if tripped:
            self._tripped[Trigger.TIMEOUTS] = now

    def content(self) -> None:
        if self.timeouts is not None and self.timeouts.streak:
            self.timeouts.content()

    def waits(self, started_at: float, current: bool, now: float) -> None:
        """The latest of those that wait for content long since started then; `current`: in the epoch in force."""
        if current and self.errors is not None and self.errors.s and self.errors.waits(started_at):
            self._tripped[Trigger.ERROR_RUN] = now
        if self.timeouts is not None and self.timeouts.streak and self.timeouts.waits(started_at):
            self._tripped[Trigger.TIMEOUTS] = now

    def second(self, slow: int, fast: int, bad: Sequence[tuple[WindowKey, str]], now: float) -> None:
        """What became known in one second. `bad`: some of the slow ones."""
        if self.slowness is None:
            return
        if slow and not self.slowness.s:
            self._slow.begin(now)
        self._slow.n += slow + fast
        self._slow.k += slow
        for key, request_id in bad:
            self._slow.note(key, request_id, now)
        if self.slowness.second(slow, fast):
            self._tripped[Trigger.LATENCY_RUN] = now

    def bad(self, trigger: Trigger, since: float) -> tuple[str, ...]:
        """Ids of the last ones that failed, or were slow if `trigger` judges that: what the windows cannot tell.
        `since`: monotonic.
        """
        return (self._slow if trigger is Trigger.LATENCY else self._failed).ids(since)

    def _charge(self, charges: Charges) -> int:
        return sum(charge for run, charge in charges if run is self.errors)

    def trips(self, offset: float) -> list[Trip]:
        """What tripped since this was called last. `offset`: from monotonic to Unix seconds."""
        if not self._tripped:
            return []
        of = {Trigger.ERROR_RUN: self._failed, Trigger.LATENCY_RUN: self._slow, Trigger.TIMEOUTS: self._timed_out}
        tripped, self._tripped = self._tripped, {}
        return [
            Trip(
                sum=self.sum,
                trigger=trigger,
                limits=self.limits,
                n=of[trigger].n,
                k=of[trigger].k,
                since=of[trigger].since + offset,
                at=now + offset,
                requests=of[trigger].ids(of[trigger].since),
                epochs=dict(of[trigger].epochs),
            )
            for trigger, now in tripped.items()
        ]
