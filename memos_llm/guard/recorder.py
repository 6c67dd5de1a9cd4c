"""Counts this process's requests for the windows and for the runs.

On the request's way what is told is only kept; it is worked off in order, O(1) each, before the recorder is told or
asked anything else: a few times a second, with `tick`. What happened when is the event's to say.

A request is counted for the provider that it was assigned to, in the second in which its first attempt there started,
and once. What becomes of it is told in parts and in any order; each part sets what is known of it, and the difference
goes to its row, so that the row says the same whichever part came first, and however late:

* it failed if any attempt there did, and is charged its own time there, not a fallback's;
* its latency is known by its signal, or once it has waited beyond the limit for it (in flight too, until the end says
  otherwise); an end without either says nothing of latency;
* cancelled without its latency being known it is none at all, unless it had waited `abandon_s` on a silent endpoint;
* of the failures of one split key among the requests of one second that which started first is one, the others are no
  requests at all.

The limits of a request are those in force when it started, but where the first of its lane is worked off after they
changed. What comes beyond the bounds below is said there.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable

from memos_llm.core.events import AttemptEnded, AttemptStarted, ContentBegan, RequestEnded
from memos_llm.core.flags import Flags
from memos_llm.core.outcome import OUTCOMES, Kind
from memos_llm.core.policy import Policy, Signal
from memos_llm.core.ports import Clock
from memos_llm.core.windows import WindowDelta, failed
from memos_llm.guard.deltas import Deltas
from memos_llm.guard.heard import Heard, raised
from memos_llm.guard.inflight import Named, Open, Second, uncounted
from memos_llm.guard.lanes import Lane, Lanes, Row
from memos_llm.guard.runs import Runs, Trip
from memos_llm.guard.sequences import WAITS_S

MOST_OPEN = 20_000  # requests remembered; beyond it the oldest is given up, and counts for no more than is known of it
MOST_ROWS = 2_000  # changed rows as they are; beyond it they are added up, as `deltas` says
LATE_S = 10.0  # that the end of an attempt may be told after its request's

VERDICTS = {Kind.INCOMPATIBLE, Kind.CLIENT}  # on a refusal, once it is known what others say: told late
COUNTING = {kind for kind, rule in OUTCOMES.items() if rule.counts_against_arm}
E2E, TTFT, TPOT, OK = Signal.E2E, Signal.TTFT, Signal.TPOT, Kind.OK


class Recorder:
    """Belongs to one event loop, as the requests that it hears of.

    Args:
        policy, flags: those in force.
        clock: monotonic seconds, that of the events. wall: Unix seconds, until the store's clock is known.
        fault: told what an event raises, which is then dropped; the others count.

    Attributes:
        on_event: hears `kinds` of events, on the request's way.
    """

    def __init__(
        self,
        policy: Callable[[], Policy],
        flags: Callable[[], Flags],
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
        fault: Callable[[Exception], None] = raised,
    ) -> None:
        self._clock, self._wall = clock, wall
        self._heard = Heard(
            {
                AttemptStarted: self._started,
                ContentBegan: self._content,
                AttemptEnded: self._attempt_ended,
                RequestEnded: self._request_ended,
            },
            fault,
        )
        self.on_event, self.kinds = self._heard.on_event, self._heard.kinds
        self._lanes = Lanes(policy, flags, clock)
        self._open: dict[Named, Open] = {}
        self._over: deque[tuple[float, Named]] = deque()  # requests that are, while an attempt's end is not told
        self._dirty: list[Row] = []
        self._kept = Deltas()
        self._lagging = False
        self._uneasy = False  # some run is not at rest
        self._judged_second = 0
        self._offset = 0.0
        self.at_store(None)
        self._second = Second(int(clock() + self._offset))

    @property
    def in_flight(self) -> int:
        """Counted requests that are."""
        self._heard.catch_up()
        return len(self._open)

    @property
    def offset(self) -> float:
        """Unix seconds by the store's clock, less monotonic ones."""
        return self._offset

    def at_store(self, offset: float | None) -> None:
        """The store's Unix time less the monotonic clock; None: not known, this machine's will do."""
        self._heard.catch_up()
        self._offset = self._wall() - self._clock() if offset is None else offset

    def lag(self, late: bool) -> None:
        """Whether the event loop is late just now: no latency that becomes known meanwhile is counted."""
        self._heard.catch_up()
        self._lagging = late

    def tick(self, now: float) -> None:
        """To be called a few times a second; `now` is monotonic. Finds what has waited for too long."""
        self._heard.catch_up(now)
        self._lanes.look()
        self._look_at_open(now)
        second = int(now + self._offset)
        if second != self._judged_second:
            self._judged_second = second
            self._lanes.judge_second(now)
        while self._over and self._over[0][0] < now - LATE_S:
            self._give_up(self._over.popleft()[1])
        if len(self._dirty) > MOST_ROWS:
            self._compact(now)
        self._uneasy = any(not runs.at_rest for runs in self._lanes.runs)

    def drain(self) -> list[WindowDelta]:
        """What changed since this was called last; rows in which nothing did after all are left out."""
        self._heard.catch_up()
        self._compact(self._clock())
        return self._kept.take()

    def trips(self) -> list[Trip]:
        """What tripped since this was called last; a run that keeps tripping is told of again."""
        self._heard.catch_up()
        self._lanes.look()
        return [trip for runs in self._lanes.runs for trip in runs.trips(self._offset)]

    @property
    def runs(self) -> Iterable[Runs]:
        """Those of the candidate's sums, tripped or not."""
        self._heard.catch_up()
        return self._lanes.runs

    def epochs(self) -> frozenset[tuple[str, int]]:
        """Scope and epoch of what is in flight."""
        self._heard.catch_up()
        return frozenset((one.lane.key.scope, one.lane.key.epoch) for one in self._open.values())

    # What was heard.

    def _started(self, event: AttemptStarted) -> None:
        decision, named = event.decision, event.serial or event.request_id
        if named in self._open or event.provider != decision.targets[0].provider:
            self._went_on(event)
            return
        if uncounted(event):
            return
        place = decision.scope, decision.epoch, event.provider, event.model, event.component
        lane = self._lanes.find(place) or self._lanes.add(place)
        now = self._heard.now
        if lane.drained_until > now + self._offset:
            return
        second = self._second
        if second.start != (start := int(now + self._offset)):
            second = self._next_second(start)
        row = lane.row
        if row.start != second.start:
            row = lane.row = Row(lane.key, second.start)
        times = lane.times[event.stream]
        row.n += 1
        row.t += times
        self._touch(row)
        one = Open(named, event.request_id, lane, row, second, now, now, event.key, event.retry, times, times)
        self._open[named] = one
        if self._uneasy:
            self._charge(one)
        if len(self._open) > MOST_OPEN:
            self._give_up(next(iter(self._open)))

    def _next_second(self, start: int) -> Second:
        """The store's clock is measured, so that it may seem to go back a little: then it is this second still."""
        if not -2 < start - self._second.start < 0:
            self._second = Second(start)
        return self._second

    def _charge(self, one: Open) -> None:
        if one.lane.current:
            for runs in one.lane.feeds:
                one.charges += runs.started()

    def _went_on(self, event: AttemptStarted) -> None:
        """Another attempt of a request that is known, or one that is none of its assigned provider's."""
        one = self._open.get(event.serial or event.request_id)
        if one is None:
            return
        if event.provider == one.lane.key.provider:
            self._again(one)
        else:
            one.running = False  # its own attempt is over; how may be told later

    def _again(self, one: Open) -> None:
        """Another attempt on the assigned provider."""
        one.began_at, one.told, one.running = self._heard.now, False, True
        one.untold += 1
        if not one.timed and one.slow is None and one.times and not (one.muted or one.void):
            one.timed = True
            one.row.t += 1
            self._touch(one.row)

    def _content(self, event: ContentBegan) -> None:
        one = self._open.get(event.serial or event.request_id)
        if one is None or event.provider != one.lane.key.provider:
            return
        one.content = True
        self._tell_content(one)
        if one.lane.signal is TTFT:
            self._measured(one, one.began_at - one.started_at + event.ttft_s)

    def _attempt_ended(self, event: AttemptEnded) -> None:
        one = self._open.get(event.serial or event.request_id)
        if one is None or event.provider != one.lane.key.provider:
            return
        kind, waited_s = event.outcome.kind, one.began_at - one.started_at + event.duration_s
        if kind is OK and self._is_plain(one):
            self._answered(one, waited_s)
            return
        earlier = kind in VERDICTS and (one.untold > 1 or one.told)  # than the last attempt
        one.untold -= 1
        if not earlier:
            one.told, one.running = True, False
            self._tell_latency(one, event, waited_s)
        if kind is OK:
            self._tell_content(one)
            self._end(one)
            self._close(one)
        else:
            self._went_wrong(one, event, waited_s)
            if one.over and one.told:
                self._close(one)

    def _is_plain(self, one: Open) -> bool:
        """Whether nothing out of the ordinary is known of it, and its time is its latency."""
        known = one.value is not None or one.slow is not None or one.failure is not None or one.ended
        return one.lane.signal is E2E and not (known or one.void or one.muted or self._lagging)

    def _answered(self, one: Open, waited_s: float) -> None:
        """How nearly all end, in one go: as `_tell_latency`, `_end` and `_close` would have it."""
        lane, row = one.lane, one.row
        if one.timed and lane.limit_s is not None:
            slow = waited_s > lane.limit_s
            row.r += 1
            row.s += slow
            if lane.current:
                lane.known(slow, one.id)
        row.seen.append(waited_s)
        row.e += 1
        if not row.dirty:
            self._touch(row)
        if self._uneasy:
            self._tell_content(one)
        one.second = None
        del self._open[one.named]

    def _tell_content(self, one: Open) -> None:
        if self._uneasy:  # a streak can only be ended
            for runs in one.lane.feeds:
                runs.content()

    def _request_ended(self, event: RequestEnded) -> None:
        one = self._open.get(event.serial or event.request_id)
        if one is None:
            return
        if one.told:
            self._close(one)
        else:
            one.running, one.over = False, True
            self._over.append((self._heard.now, one.named))

    # What is known of one request.

    def _measured(self, one: Open, value: float) -> None:
        limit_s = one.lane.limit_s
        self._know(one, None if limit_s is None else value > limit_s, value)

    def _tell_latency(self, one: Open, event: AttemptEnded, waited_s: float) -> None:
        """By its signal; without, it is slow if it had waited for too long, and else no sample."""
        signal, ttft_s, kind = one.lane.signal, event.ttft_s, event.outcome.kind
        if signal is E2E:
            value = waited_s if kind is OK else None
        elif signal is TTFT:
            value = None if ttft_s is None else one.began_at - one.started_at + ttft_s
        else:
            value = event.tpot_s
        left_midway = kind is Kind.CANCELLED and ttft_s is not None  # which says nothing of the whole
        if value is not None:
            self._measured(one, value)
        elif one.times and waited_s > one.lane.passes_s and not left_midway:
            self._know(one, True, waited_s)
        else:
            self._know(one, None, None)

    def _know(self, one: Open, slow: bool | None, value: float | None) -> None:
        """Make the row say so of its latency. `slow` None: it is no sample; `value` None: it is not known yet."""
        if one.void:
            return
        if self._lagging and (slow is not None or value is not None):
            if one.slow is not None or one.value is not None:
                return  # it was known before, near enough
            one.muted = True
        if one.muted:
            slow = value = None
        if slow is not None and one.slow is None and one.lane.current:
            one.lane.known(slow, one.id)
        self._write(one, slow is not None, slow, value)

    def _write(self, one: Open, timed: bool, slow: bool | None, value: float | None) -> None:
        row = one.row
        row.t += timed - one.timed
        row.r += (slow is not None) - (one.slow is not None)
        row.s += bool(slow) - bool(one.slow)
        if value != one.value:
            if one.value is not None:
                row.less.append(one.value)
            if value is not None:
                row.seen.append(value)
        one.timed, one.slow, one.value = timed, slow, value
        self._touch(row)

    def _went_wrong(self, one: Open, event: AttemptEnded, waited_s: float) -> None:
        kind = event.outcome.kind
        if kind in COUNTING:
            self._fail(one, kind)
        elif kind is not Kind.CANCELLED:
            self._end(one)  # the caller's own fault
        else:
            if event.silent and waited_s >= one.lane.abandon_s:
                self._fail(one, Kind.TIMEOUT)
            elif one.slow is None and one.failure is None:
                self._void(one)
            self._end(one)
            self._close(one)

    def _end(self, one: Open) -> None:
        if not one.ended and not one.void:
            one.ended = True
            one.row.e += 1
            self._touch(one.row)

    def _fail(self, one: Open, kind: Kind) -> None:
        """One failure a request, and one of a key in a second of starts: that of the request that started first,
        whichever is known first.
        """
        if one.failure is not None or one.void or one.second is None:
            return
        self._uneasy = True
        place = one.lane.key.provider, one.key
        other = one.second.failures.get(place) if one.key else None
        if other is not None and (other.started_at, other.id) <= (one.started_at, one.id):
            self._void(one)
            return
        if one.key:
            one.second.failures[place] = one
        self._end(one)
        one.failure = kind
        self._count_failure(one, kind, 1)
        if other is not None:
            self._void(other)
            self._withdraw(one)  # the runs know of this key's failure already
        else:
            self._tell_runs(one, kind)

    def _count_failure(self, one: Open, kind: Kind, count: int) -> None:
        row, field = one.row, failed(kind)
        row.k += count
        row.kinds[field] = row.kinds.get(field, 0) + count
        self._touch(row)

    def _tell_runs(self, one: Open, kind: Kind) -> None:
        lane, now = one.lane, self._heard.now
        for runs in lane.feeds:
            if lane.current:
                runs.failed(lane.key, one.id, one.charges, one.started_at, now)
            if kind is Kind.TIMEOUT:
                runs.timed_out(lane.key, one.id, one.retry, one.started_at, now)
        one.charges = ()

    def _void(self, one: Open) -> None:
        """It is no request: take back all that was counted."""
        if one.void:
            return
        self._write(one, False, None, None)
        one.void = True
        one.row.n -= 1
        one.row.e -= one.ended
        if one.failure is not None:
            self._count_failure(one, one.failure, -1)
        self._withdraw(one)

    def _withdraw(self, one: Open) -> None:
        if one.charges:
            for runs in one.lane.feeds:
                runs.withdrawn(one.charges)
            one.charges = ()

    def _close(self, one: Open) -> None:
        if one.timed and one.slow is None:
            self._write(one, False, None, None)
        one.second = None  # what stands for a key's failures there does not keep it alive
        self._open.pop(one.named, None)

    def _give_up(self, named: Named) -> None:
        """Nothing more will be heard of it: unless something is known, it is no request."""
        one = self._open.get(named)
        if one is None:
            return
        if one.slow is None and not one.ended:
            self._void(one)
        self._close(one)

    # Beside the requests.

    def _look_at_open(self, now: float) -> None:
        """Oldest first, as far as any limit may have passed."""
        least_s = min(WAITS_S, self._lanes.least_s)
        newest: dict[Lane, float] = {}  # of those that wait for content
        for one in self._open.values():
            age_s = now - one.started_at
            if age_s < least_s:
                break
            if not one.running or one.void:
                continue
            if one.timed and one.slow is None and age_s > one.lane.passes_s:
                self._know(one, True, None)
            if age_s >= WAITS_S and not one.content and one.failure is None:
                newest[one.lane] = one.started_at
        for lane, started_at in newest.items():
            for runs in lane.feeds:
                runs.waits(started_at, lane.current, now)

    def _touch(self, row: Row) -> None:
        if not row.dirty:
            row.dirty = True
            self._dirty.append(row)

    def _compact(self, now: float) -> None:
        rows, self._dirty = self._dirty, []
        for row in rows:
            self._kept.add(row.drained())
        self._kept.age(now + self._offset)
