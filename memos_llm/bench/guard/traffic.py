"""Requests as events, on a clock of their own, to the recorder, the runs, the windows and the judge as they are in
production; only the store is left out, for one process needs none.
"""

from collections.abc import Iterable, Sequence
from itertools import count
from typing import NamedTuple

from memos_llm.core.call import Operation, Target, Wire
from memos_llm.core.catalogue import Catalogue, Model, ProviderModel
from memos_llm.core.decision import Arm, Decision, Reason
from memos_llm.core.events import AttemptEnded, AttemptStarted, RequestEnded
from memos_llm.core.flags import GLOBAL, PPM, Flags, Scope
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.policy import GuardPolicy, Limits, Policy
from memos_llm.core.verdicts import Trigger
from memos_llm.core.windows import Field, WindowDelta, WindowKey, failed
from memos_llm.guard.judge import failing, read, say
from memos_llm.guard.recorder import Recorder
from memos_llm.guard.windows import Windows

CANDIDATE, BASELINE, MODEL, COMPONENT, ENDPOINT = "candidate", "baseline", "model", "component", "http://candidate"
BEGAN = 1_000_000_000.0  # the store's clock when the epoch began; whole minutes
TICK_S, FLUSH_S = 0.25, 1.0


class Request(NamedTuple):
    """`at`: seconds since the epoch began. How it ends, and after how long."""

    at: float
    duration_s: float
    kind: Kind = Kind.OK


class Fired(NamedTuple):
    at: float
    trigger: Trigger


class Guarded:
    """One process whose candidate is held to `limits`. `phase_s`: when its ticks fall within a second."""

    def __init__(self, limits: Limits, phase_s: float = 0.0, tick_s: float = TICK_S, flush_s: float = FLUSH_S) -> None:
        self._policy = _policy(limits)
        self._flags = Flags(
            installation="simulated",
            revision=1,
            salt="00",
            scopes={GLOBAL: Scope(share_ppm=PPM, epoch=1)},
            candidate=CANDIDATE,
        )
        self._now = phase_s
        self._tick_s, self._flush_s = tick_s, flush_s
        self._windows = Windows()
        self._recorder = Recorder(lambda: self._policy, lambda: self._flags, lambda: self._now, lambda: BEGAN)
        self._recorder.at_store(BEGAN)
        self._ids = count()

    def history(self, seconds: int, per_s: Sequence[int], failures: Sequence[int]) -> None:
        """What started in each of the seconds before 0, and how much of it failed; all of it was fast."""
        key = WindowKey(scope=GLOBAL, epoch=1, provider=CANDIDATE, model=MODEL, component=COMPONENT)
        for second, n, k in zip(range(-seconds, 0), per_s, failures, strict=True):
            counts = {
                Field.STARTED: n,
                Field.ENDED: n,
                Field.FAILED: k,
                failed(Kind.SERVER): k,
                Field.TIMED: n - k,
                Field.RESOLVED: n - k,
            }
            named = {str(field): number for field, number in counts.items() if number}
            self._windows.add(WindowDelta(key=key, start=int(BEGAN) + second, counts=named))

    def play(self, requests: Iterable[Request], until: float) -> Fired | None:
        """The first verdict that would roll back."""
        events: list[tuple[float, int, Request]] = []
        for number, request in enumerate(requests):
            events.append((request.at, 2 * number, request))
            events.append((request.at + request.duration_s, 2 * number + 1, request))
        events.sort(reverse=True)
        tick, flush = self._now, self._now
        while tick < until:
            while events and events[-1][0] <= tick:
                self._now, place, request = events.pop()
                self._tell(f"{place // 2}", request, ended=place % 2 == 1)
            self._now = tick
            fired = self._tick(judge=tick >= flush)
            if fired is not None:
                return fired
            if tick >= flush:
                flush += self._flush_s
            tick += self._tick_s
        return None

    def _tell(self, request_id: str, request: Request, *, ended: bool) -> None:
        if not ended:
            self._recorder.on_event(_attempt_started(request_id, request.at))
            return
        outcome, at = Outcome(kind=request.kind), request.at + request.duration_s
        self._recorder.on_event(_attempt_ended(request_id, outcome, request.duration_s, at))
        self._recorder.on_event(_request_ended(request_id, outcome, request.duration_s, at))

    def _tick(self, *, judge: bool) -> Fired | None:
        self._recorder.tick(self._now)
        trips = self._recorder.trips()
        if trips:
            return Fired(self._now, trips[0].trigger)
        if judge:
            for delta in self._recorder.drain():
                self._windows.add(delta)
            over = failing(say(read(self._windows, self._policy, self._flags, BEGAN + self._now)), CANDIDATE)
            if over:
                return Fired(self._now, over[0].trigger)
        return None


def _policy(limits: Limits) -> Policy:
    names = {provider: ProviderModel(MODEL) for provider in (BASELINE, CANDIDATE)}
    return Policy(
        baseline=BASELINE,
        candidate=CANDIDATE,
        fallback=(),
        pins={},
        timeouts={},
        catalogue=Catalogue((Model(MODEL, names),)),
        guard=GuardPolicy(default=limits),
    )


DECISION = Decision(
    arm=Arm.CANDIDATE, targets=(Target(CANDIDATE, MODEL),), reason=Reason.SPLIT, scope=GLOBAL, epoch=1, revision=1
)


def _attempt_started(request_id: str, at: float) -> AttemptStarted:
    return AttemptStarted(
        request_id=request_id,
        provider=CANDIDATE,
        arm=Arm.CANDIDATE,
        endpoint=ENDPOINT,
        decision=DECISION,
        component=COMPONENT,
        model=MODEL,
        operation=Operation.CHAT,
        stream=False,
        at=at,
    )


def _attempt_ended(request_id: str, outcome: Outcome, duration_s: float, at: float) -> AttemptEnded:
    return AttemptEnded(
        request_id=request_id,
        provider=CANDIDATE,
        endpoint=ENDPOINT,
        arm=Arm.CANDIDATE,
        component=COMPONENT,
        model=MODEL,
        outcome=outcome,
        duration_s=duration_s,
        at=at,
    )


def _request_ended(request_id: str, outcome: Outcome, duration_s: float, at: float) -> RequestEnded:
    return RequestEnded(
        request_id=request_id,
        decision=DECISION,
        provider=CANDIDATE,
        component=COMPONENT,
        model=MODEL,
        operation=Operation.CHAT,
        outcome=outcome,
        attempts=1,
        stream=False,
        duration_s=duration_s,
        ttft_s=None,
        tpot_s=None,
        usage=None,
        warnings=(),
        wire=Wire.OPENAI_CHAT,
        at=at,
    )
