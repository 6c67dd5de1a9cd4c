"""What requests of one key have in common: their row of this second, their limits, and the runs that they feed.

Derived from policy and flags, and derived anew when these change: `look` is called a few times a second, and before a
key that was not seen before is added.
"""

from collections.abc import Callable, Iterable
from math import inf

from memos_llm.core.flags import EMBEDDING, GLOBAL, Flags
from memos_llm.core.inventory import OTHER
from memos_llm.core.policy import Policy, Signal
from memos_llm.core.ports import Clock
from memos_llm.core.verdicts import Sum
from memos_llm.core.windows import Field, WindowDelta, WindowKey, bucket
from memos_llm.guard.runs import MOST_IDS, Runs
from memos_llm.guard.windows import current

MOST_LANES = 500  # beyond it models are counted as `OTHER`, components as what follows `*`, the provider as ever

FIELDS = [field.value for field in Field]
Place = tuple[str, int, str, str, str]
"""Scope, epoch, provider, model, component."""


class Row:
    """What has changed in one row since it was drained. Lives as long as a request in flight refers to it."""

    __slots__ = ("dirty", "e", "k", "key", "kinds", "less", "n", "r", "s", "seen", "start", "t")

    def __init__(self, key: WindowKey, start: int) -> None:
        self.key, self.start, self.dirty = key, start, False
        self._clear()

    def _clear(self) -> None:
        self.n = self.e = self.k = self.t = self.r = self.s = 0
        self.kinds: dict[str, int] = {}  # failures
        self.seen: list[float] = []  # latencies
        self.less: list[float] = []  # those taken back

    def drained(self) -> WindowDelta:
        """What has changed; then nothing has."""
        counts = dict(zip(FIELDS, (self.n, self.e, self.k, self.t, self.r, self.s), strict=True))
        counts |= self.kinds
        for latencies, sign in ((self.seen, 1), (self.less, -1)):
            for latency in latencies:
                field = bucket(latency)
                counts[field] = counts.get(field, 0) + sign
        self.dirty = False
        self._clear()
        changed = {field: count for field, count in counts.items() if count}
        return WindowDelta(key=self.key, start=self.start, counts=changed)


class Lane:
    """`limits` are those in force; a request keeps the lane that it started in. Of the slow and the fast ones that
    became known since the last second was judged `bad` has some ids. A request in flight is slow from `passes_s` on.
    What starts before `drained_until` (Unix seconds) found its provider under maintenance.
    """

    __slots__ = (
        "abandon_s",
        "bad",
        "current",
        "drained_until",
        "fast",
        "feeds",
        "key",
        "limit_s",
        "limits",
        "passes_s",
        "row",
        "signal",
        "slow",
        "times",
    )

    def __init__(self, key: WindowKey, policy: Policy, feeds: tuple[Runs, ...], is_current: bool) -> None:
        limits = policy.guard.of(key.provider, key.component, key.model)
        self.key, self.feeds, self.current, self.limits = key, feeds, is_current, limits
        self.limit_s, self.signal, self.abandon_s = limits.latency_p95_s, limits.signal, limits.abandon_s
        timed = self.limit_s is not None
        self.times = timed and limits.signal is Signal.E2E, timed  # latency is judged: of a whole answer, of a stream
        self.passes_s = inf if self.limit_s is None or limits.signal is Signal.TPOT else self.limit_s
        self.row = Row(key, 0)
        self.drained_until = 0.0
        self.slow = self.fast = 0
        self.bad: list[str] = []

    def known(self, slow: bool, request_id: str) -> None:
        """The latency of one more request."""
        if not slow:
            self.fast += 1
            return
        self.slow += 1
        if len(self.bad) < MOST_IDS:
            self.bad.append(request_id)


class Lanes:
    """All lanes in use, and the runs of the candidate's sums. `clock`: monotonic seconds."""

    def __init__(self, policy: Callable[[], Policy], flags: Callable[[], Flags], clock: Clock) -> None:
        self._policy_now, self._flags_now, self._clock = policy, flags, clock
        self._policy, self._flags = policy(), flags()
        self._lanes: dict[Place, Lane] = {}
        self._runs: dict[Sum, Runs] = {}
        self.find = self._lanes.get  # None: to be added
        self.least_s = inf  # no lane's latency limit was ever shorter

    @property
    def runs(self) -> Iterable[Runs]:
        return self._runs.values()

    def add(self, place: Place) -> Lane:
        """The lane of a place that was not there."""
        self.look()
        scope, epoch, provider, model, component = place
        crowded = len(self._lanes) >= MOST_LANES
        if crowded or not self._is_known(provider, model):
            model = OTHER
        if crowded and scope in (GLOBAL, EMBEDDING):  # another scope has but one component
            component = GLOBAL
        place = scope, epoch, provider, model, component
        return self._lanes.get(place) or self._lanes.setdefault(place, self._made(place))

    def _is_known(self, provider: str, model: str) -> bool:
        """Callers may ask for models of any name, and then never the candidate."""
        return provider == self._policy.candidate or self._policy.catalogue.resolve(model) is not None

    def look(self) -> None:
        """Take over what changed in policy and flags."""
        policy, flags = self._policy_now(), self._flags_now()
        if policy is not self._policy:
            self._policy = policy
            self._hold_to_limits()
        if flags is not self._flags:
            self._follow(flags)

    def _follow(self, flags: Flags) -> None:
        before, self._flags = self._flags, flags
        if flags.rearmed_at > before.rearmed_at or self._drained(flags) not in (0.0, self._drained(before)):
            for runs in self._runs.values():
                runs.forgive(self._clock())
        for place, lane in list(self._lanes.items()):
            lane.drained_until = flags.maintenance.get(lane.key.provider, 0.0)
            if not current(flags, lane.key):
                self._over(lane)
                del self._lanes[place]
        if len(self._runs) > MOST_LANES:
            fed = {id(runs) for lane in self._lanes.values() for runs in lane.feeds}
            for of in [of for of, runs in self._runs.items() if runs.at_rest and id(runs) not in fed]:
                del self._runs[of]

    def _drained(self, flags: Flags) -> float:
        """Until when the candidate is, Unix seconds; 0 where nothing is said of it."""
        return flags.maintenance.get(self._policy.candidate or "", 0.0)

    def judge_second(self, now: float) -> None:
        """Hand what became known since the last one to the runs."""
        lanes = list(self._lanes.values())
        for runs in self._runs.values():
            fed = [lane for lane in lanes if runs in lane.feeds]
            bad = [(lane.key, request_id) for lane in fed for request_id in lane.bad]
            runs.second(sum(lane.slow for lane in fed), sum(lane.fast for lane in fed), bad, now)
        for lane in lanes:
            lane.slow = lane.fast = 0
            lane.bad.clear()

    def _made(self, place: Place) -> Lane:
        scope, epoch, provider, model, component = place
        key = WindowKey(scope=scope, epoch=epoch, provider=provider, model=model, component=component)
        lane = Lane(key, self._policy, self._feeds(key), current(self._flags, key))
        lane.drained_until = self._flags.maintenance.get(provider, 0.0)
        if lane.limit_s is not None:
            self.least_s = min(self.least_s, lane.limit_s)
        return lane

    def _hold_to_limits(self) -> None:
        """Only what is held to other limits than before begins anew. What is in flight keeps the old ones, and says
        nothing to the new runs.
        """
        for of, runs in list(self._runs.items()):
            if of.provider != self._policy.candidate or self._policy.guard.limits(of) != runs.limits:
                del self._runs[of]
        for place, lane in list(self._lanes.items()):
            made = self._made(place)
            if (made.limits, made.feeds) != (lane.limits, lane.feeds):
                self._lanes[place] = made
                lane.current = False

    def _over(self, lane: Lane) -> None:
        """Its epoch is: what was counted in it says nothing of the next."""
        if lane.current:
            lane.current = False
            for runs in lane.feeds:
                runs.begin_anew()

    def _feeds(self, key: WindowKey) -> tuple[Runs, ...]:
        """The runs of the candidate's sums that a key belongs to."""
        if key.provider != self._policy.candidate:
            return ()
        sums = [Sum(provider=key.provider)]
        if key.component != GLOBAL:
            sums.append(Sum(provider=key.provider, component=key.component))
        if key.model != OTHER:
            sums.append(Sum(provider=key.provider, model=key.model))
        return tuple(self._runs_of(each) for each in sums)

    def _runs_of(self, of: Sum) -> Runs:
        if of not in self._runs:
            self._runs[of] = Runs(of, self._policy.guard.limits(of))
        return self._runs[of]
