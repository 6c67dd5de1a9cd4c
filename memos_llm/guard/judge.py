"""All rules of the windows over all sums of both arms: what the guard says each second, and what `status` works out by
itself from the store's rows.

A stretch is the last `window_s`, of the epoch in force; where it holds fewer requests than a verdict needs it reaches
further back, never into another epoch. Only the candidate's verdicts are acted upon; the others are shown.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from memos_llm.core.events import GuardSaid
from memos_llm.core.flags import GLOBAL, Flags
from memos_llm.core.policy import Limits, Policy
from memos_llm.core.verdicts import ArmWindow, Evaluation, Sum, Trigger, Verdict
from memos_llm.core.windows import KEEP_COARSE_S, WindowKey
from memos_llm.guard.runs import Runs
from memos_llm.guard.sequences import LATENCY_LOOKS, LATENCY_TRIP
from memos_llm.guard.triggers import error_rate, latency
from memos_llm.guard.windows import Of, Windows, belongs, current

BLOCKS = 30  # of a window, for slow requests come in bursts
MOST_SUMS = 500


class Current:
    """Which keys' requests are of the epochs in force; remembered, for every sum asks it of every key."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        self._known: dict[WindowKey, bool] = {}

    def __call__(self, key: WindowKey) -> bool:
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = current(self._flags, key)
        return known

    def of(self, sum: Sum) -> Callable[[WindowKey], bool]:
        return lambda key: belongs(sum, key) and self(key)


class Reading(NamedTuple):
    """The windows as one process reads them at one moment (`at`: Unix seconds by the store's clock)."""

    windows: Windows
    policy: Policy
    current: Current
    at: float

    def since(self, of: Of, limits: Limits) -> float:
        """When the stretch begins that a sum is judged over. `of`: whose requests it is, of the epochs in force."""
        reach_s = float(limits.window_s)
        while reach_s < KEEP_COARSE_S:
            if self.windows.counted(of, self.at - reach_s, self.at + 1).n >= limits.min_requests:
                break
            reach_s = min(2 * reach_s, KEEP_COARSE_S)
        else:
            return self._first(of, limits)
        return self.at - reach_s

    def _first(self, of: Of, limits: Limits) -> float:
        """All that there is is too little: since it began, a window at least."""
        reach_s = float(limits.window_s)
        whole = self.windows.counted(of, self.at - KEEP_COARSE_S, self.at + 1).n
        while reach_s < KEEP_COARSE_S and self.windows.counted(of, self.at - reach_s, self.at + 1).n < whole:
            reach_s = min(2 * reach_s, KEEP_COARSE_S)
        return self.at - reach_s

    def sums(self) -> dict[Sum, frozenset[WindowKey]]:
        """Everything that is judged, the wider first, and whose requests they are; of the candidate and the baseline
        also what had no request.
        """
        arms = (self.policy.candidate, self.policy.baseline)
        found: dict[Sum, set[WindowKey]] = {Sum(provider=provider): set() for provider in arms if provider}
        keys = sorted(filter(self.current, self.windows.keys()), key=lambda key: (key.component, key.model))
        for key in keys:
            found.setdefault(Sum(provider=key.provider), set()).add(key)
        for key in keys:
            if key.component != GLOBAL:  # which stands for too many to tell apart
                found.setdefault(Sum(provider=key.provider, component=key.component), set()).add(key)
            found.setdefault(Sum(provider=key.provider, model=key.model), set()).add(key)
        return {sum: frozenset(found[sum]) for sum in list(found)[:MOST_SUMS]}


def read(windows: Windows, policy: Policy, flags: Flags, at: float) -> Reading:
    return Reading(windows, policy, Current(flags), at)


class Saying:
    """Every sum of the epochs in force, each by every rule that is not switched off: one sum at each step.

    Attributes:
        said: once all steps are done.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._judged: dict[Sum, tuple[list[Evaluation], ArmWindow]] = {}
        self._sums = reading.sums()

    def __iter__(self) -> Iterator[None]:
        for sum in reversed(self._sums):  # the wider ones add up what the narrower ones have found
            self._judged[sum] = _judged(self._reading, sum, self._sums[sum])
            yield

    @property
    def said(self) -> GuardSaid:
        judged = [self._judged[sum] for sum in self._sums]
        evaluations = tuple(one for some, _ in judged for one in some)
        return GuardSaid(at=self._reading.at, evaluations=evaluations, windows=tuple(window for _, window in judged))


def say(reading: Reading) -> GuardSaid:
    """All of it at once."""
    saying = Saying(reading)
    for _ in saying:
        pass
    return saying.said


def _judged(reading: Reading, sum: Sum, of: Of) -> tuple[list[Evaluation], ArmWindow]:
    windows, until, found = reading.windows, reading.at + 1, []
    limits = reading.policy.guard.limits(sum)
    since = reading.since(of, limits)
    counted = windows.counted(of, since, until)
    if limits.error_rate is not None:
        found.append(error_rate(sum, limits, counted, since))
    if limits.latency_p95_s is not None:
        blocks = windows.blocks(of, since, until, max(1, limits.window_s // BLOCKS))
        found.append(latency(sum, limits, counted, blocks, since))
    return found, windows.arm(sum, of, since, until)


def of_runs(runs: Iterable[Runs], at: float) -> list[Evaluation]:
    """How far the runs are that have not tripped; those that have are told as they trip."""
    found = []
    for each in runs:
        of = each.sum
        if each.errors is not None:
            u, h = each.errors.parameters
            text = f"{each.errors.s} of {h}: each failure adds {u}, any other request takes 1 off"
            found.append(_run(Trigger.ERROR_RUN, of, text, each.errors.s, h, at))
        if each.slowness is not None:
            s = each.slowness.s
            text = f"{s:g} of {LATENCY_TRIP}: slow answers add, fast ones take off, at most {LATENCY_LOOKS} a second"
            found.append(_run(Trigger.LATENCY_RUN, of, text, round(s), LATENCY_TRIP, at))
        if each.timeouts is not None:
            streak, most = each.timeouts.streak, each.timeouts.k
            text = f"{streak} time-outs in a row; {most} are too many"
            found.append(_run(Trigger.TIMEOUTS, of, text, streak, most, at))
    return found


def _run(trigger: Trigger, of: Sum, text: str, far: int, limit: float, at: float) -> Evaluation:
    return Evaluation(
        trigger=trigger, sum=of, verdict=Verdict.PASS, reason="within", text=text, n=far, k=far, limit=limit, since=at
    )


def failing(said: GuardSaid, provider: str) -> list[Evaluation]:
    """What fires, of one provider."""
    return [one for one in said.evaluations if one.sum.provider == provider and one.verdict is Verdict.FAIL]
