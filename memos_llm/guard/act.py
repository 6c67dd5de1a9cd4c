"""What follows from verdicts that fire: a rollback, with its evidence, or the reason why there is none.

A verdict is held when the baseline is as bad, or could not take over; then nothing is gained by going back to it.
"""

from collections.abc import Callable, Mapping, Sequence
from secrets import token_hex
from typing import NamedTuple

from msgspec.structs import replace

from memos_llm.core.commands import Rollback
from memos_llm.core.events import RollbackHeld
from memos_llm.core.flags import EMBEDDING, GLOBAL, Flags
from memos_llm.core.policy import Limits
from memos_llm.core.verdicts import HARD, Evaluation, Evidence, ProbeSeen, Sum, Trigger, Verdict
from memos_llm.guard.binomial import difference_lower
from memos_llm.guard.judge import Reading
from memos_llm.guard.runs import Trip
from memos_llm.guard.scope import Obstacle, Use, has_share, models_in, narrower, obstacle, scope_of, to_latch, together
from memos_llm.guard.triggers import SLOW_PART, as_bad, tripped
from memos_llm.guard.windows import Of, belongs

ILL = 0.05  # a baseline of which more fails is as bad, where no limit on failures says so
APART = 0.99  # how sure that a component fares better than what fails
LATELY_S = 3600.0  # for what the components ask
BEFORE_S = 60.0  # a failure that is known now began up to so long ago
SLOWNESS = frozenset({Trigger.LATENCY, Trigger.LATENCY_RUN})
OF_ENDPOINTS = frozenset({Trigger.HEALTH, Trigger.BREAKER_OPEN})
RANK = (
    Trigger.TIMEOUTS,
    Trigger.HEALTH,
    Trigger.BREAKER_OPEN,
    Trigger.ERROR_RUN,
    Trigger.ERROR_RATE,
    Trigger.LATENCY_RUN,
    Trigger.LATENCY,
)
"""Of several that fire at once the first is the incident's."""


class Fired(NamedTuple):
    """A verdict that fires, when the first bad one of it was and since when it is known (Unix seconds), and the epochs
    judged, by scope.
    """

    evaluation: Evaluation
    began: float
    at: float
    epochs: Mapping[str, int]


def from_run(trip: Trip) -> Fired:
    """What a run that tripped says."""
    return Fired(tripped(trip), trip.since, trip.at, trip.epochs if trip.trigger not in HARD else {})


def from_said(said: Evaluation, reading: Reading, flags: Flags) -> Fired:
    """What windows, probes and breakers say. A window may begin long before its epoch, or the first bad request."""
    if said.trigger in HARD:
        return Fired(said, said.since, reading.at, {})
    of = reading.current.of(said.sum)
    epochs = {key.scope: key.epoch for key in filter(of, reading.windows.keys())}
    since = max(said.since, min((flags.scope(scope).since for scope in epochs), default=said.since))
    bad = reading.windows.first_bad(of, since, reading.at + 1, slow=said.trigger in SLOWNESS)
    return Fired(said, since if bad is None else max(since, bad), reading.at, epochs)


class Knowledge(NamedTuple):
    """What else there is to know.

    Attributes:
        judged: what the windows said of all sums, a second ago or less.
        served: the candidate's models that any endpoint is known for.
        down: why the baseline takes nothing for one of its own model names; empty when it does.
        probes: the last of every endpoint. by: this instance.
    """

    judged: Sequence[Evaluation]
    served: Sequence[str]
    down: Callable[[str], str]
    probes: Sequence[ProbeSeen]
    by: str


class Act(NamedTuple):
    rollback: Rollback | None
    held: tuple[RollbackHeld, ...] = ()


def act(fired: Sequence[Fired], candidate: str, reading: Reading, flags: Flags, known: Knowledge) -> Act:
    """What to do about the candidate's verdicts."""
    held: list[RollbackHeld] = []
    left: list[Fired] = []
    scopes: tuple[str, ...] = ()
    for one in sorted(fired, key=_rank):
        said = one.evaluation
        wanted = _scopes(said, fired, reading, flags, known)
        given = tuple(scope for scope in wanted if has_share(scope, flags, reading.policy))
        why = _in_the_way(said, wanted, given, candidate, reading, flags)
        if why is not None:
            held.append(_held(said, (given or wanted)[0], why))
        elif given:
            left.append(one)
            scopes = together((scopes, given))
    if not left:
        return Act(None, tuple(held))
    uses = _uses(reading, reading.at - LATELY_S, hard=any(one.evaluation.trigger in HARD for one in left))
    failing = [one.evaluation.sum for one in left]
    models = models_in(scopes, uses, failing)
    why = obstacle(models, reading.policy, known.down)
    if why is not None:
        held.append(_held(left[0].evaluation, scopes[0], why))
        scopes = _narrowed(left[0].evaluation, scopes, reading, flags, known)
        if not scopes:
            return Act(None, tuple(held))
        models = models_in(scopes, uses, failing)
    return Act(_rollback(left, scopes, models, candidate, reading, known), tuple(held))


def _narrowed(
    said: Evaluation, scopes: Sequence[str], reading: Reading, flags: Flags, known: Knowledge
) -> tuple[str, ...]:
    """Of what the baseline cannot take over as a whole, the components that it can, and in which this happens."""
    began = min(said.since, reading.at - BEFORE_S)
    uses = _uses(reading, began, slow=said.trigger in SLOWNESS, hard=said.trigger in HARD)
    blamed = [use.scope for use in uses if use.failures or said.trigger in OF_ENDPOINTS]
    found = narrower(scopes, uses, reading.policy, known.down)
    return tuple(scope for scope in found if scope in blamed and has_share(scope, flags, reading.policy))


def _held(said: Evaluation, scope: str, why: Obstacle) -> RollbackHeld:
    return RollbackHeld(provider=said.sum.provider, scope=scope, trigger=said.trigger, why=why.why, detail=why.detail)


def _in_the_way(
    said: Evaluation, wanted: Sequence[str], given: Sequence[str], candidate: str, reading: Reading, flags: Flags
) -> Obstacle | None:
    """Why one verdict changes nothing, as far as that is worth telling."""
    if not given:
        return Obstacle("no-share", said.text) if wanted and said.trigger is Trigger.HEALTH else None
    if candidate in flags.maintained(reading.at):
        return Obstacle("maintenance", f"{candidate} is drained until the maintenance is over")
    unfit = _unfit(said, reading)
    return Obstacle("limit-unfit", unfit) if unfit else None


def _rank(one: Fired) -> tuple[int, bool, bool]:
    """The narrower of equal ones first: it says more."""
    said = one.evaluation
    return RANK.index(said.trigger), not said.sum.component, not said.sum.model


def _scopes(
    said: Evaluation, fired: Sequence[Fired], reading: Reading, flags: Flags, known: Knowledge
) -> tuple[str, ...]:
    if said.trigger in OF_ENDPOINTS:
        down = {one.evaluation.sum.model for one in fired if one.evaluation.trigger in OF_ENDPOINTS}
        if down.issuperset(known.served):
            vectors = (EMBEDDING,) if has_share(EMBEDDING, flags, reading.policy) else ()
            return (GLOBAL, *vectors)
    began = min(said.since, reading.at - BEFORE_S)
    uses = _uses(reading, began, slow=said.trigger in SLOWNESS, hard=said.trigger in HARD)
    if _is_of_models(said, fired, uses):
        return ()
    return to_latch(said.sum, uses, () if said.trigger in OF_ENDPOINTS else _well(said, reading, known))


def _is_of_models(said: Evaluation, fired: Sequence[Fired], uses: Sequence[Use]) -> bool:
    """Whether all that is bad in the provider's sum is of models that fire as well: their verdicts say more."""
    if said.sum.component or said.sum.model or said.trigger in OF_ENDPOINTS:
        return False
    firing = {one.evaluation.sum.model for one in fired if one.evaluation.trigger is said.trigger}
    bad = {use.model for use in uses if use.failures}
    return bool(bad) and bad <= firing


def _uses(reading: Reading, since: float, *, slow: bool = False, hard: bool = False) -> list[Use]:
    """What the candidate was asked lately. `since`: when its failures are counted from; `slow`: slow ones are counted
    instead; `hard`: also in epochs that are over, for what is wrong outlived them.
    """
    found = []
    windows, until = reading.windows, reading.at + 1
    for key in sorted(windows.keys(), key=lambda key: (key.component, key.model, key.scope, key.epoch)):
        if key.provider != reading.policy.candidate or not (hard or reading.current(key)):
            continue
        n = windows.counted(frozenset((key,)), min(since, reading.at - LATELY_S), until).n
        bad = windows.counted(frozenset((key,)), since, until)
        if n:
            scope = scope_of(key.component, key.scope)
            found.append(Use(scope, key.component, key.model, n, bad.slow if slow else bad.failures))
    return found


def _well(said: Evaluation, reading: Reading, known: Knowledge) -> frozenset[str]:
    """The scopes of components that had their minimum of requests, and in which this does not happen."""
    candidate = said.sum.provider
    enough, ill = set(), set()
    for one in known.judged:
        if one.sum.provider != candidate or not one.sum.component:
            continue
        if one.verdict is Verdict.FAIL:
            ill.add(one.sum.component)
        elif one.n >= reading.policy.guard.limits(one.sum).min_requests:
            enough.add(one.sum.component)
    return frozenset(name for name in enough - ill if _apart(said, name, reading))


def _apart(said: Evaluation, component: str, reading: Reading) -> bool:
    """Whether a component is surely better off than what fails, over the same seconds: its window alone is slow to see
    that something begins. Of one that nobody asked meanwhile only its window speaks.
    """
    here = _since(said, Sum(provider=said.sum.provider, component=component), reading)
    there = (said.k, said.n) if said.trigger is Trigger.TIMEOUTS else _since(said, said.sum, reading)
    if here is None or there is None:
        return True
    return here[1] > 0 and there[1] > 0 and difference_lower(there, here, APART) > 0


def _since(said: Evaluation, sum: Sum, reading: Reading) -> tuple[int, int] | None:
    """The bad ones of a sum and all that are known, since that began; None where there was no request."""
    counted = reading.windows.counted(reading.current.of(sum), said.since, reading.at + 1)
    if not counted.n:
        return None
    return (counted.slow, counted.resolved) if said.trigger in SLOWNESS else (counted.failures, counted.ended)


def _unfit(said: Evaluation, reading: Reading) -> str:
    """Why the limit does not fit, for the baseline is as bad over the same time; empty when it is not."""
    limits = reading.policy.guard.limits(said.sum)
    slow = said.trigger in SLOWNESS
    if said.trigger is Trigger.HEALTH:
        return ""
    limit = SLOW_PART if slow else ILL if limits.error_rate is None else limits.error_rate
    began = max(said.since, reading.at - limits.window_s)  # of what goes on for longer only that says how it is now
    if said.trigger is Trigger.BREAKER_OPEN and not _bad(said, began - BEFORE_S, reading, slow=False)[1]:
        said = replace(said, sum=Sum(provider=said.sum.provider))  # it opened for those who asked for other models
    for since in (began, began - BEFORE_S):
        bad = _bad(said, since, reading, slow=slow)
        here = _bad(said, since, reading, slow=slow, provider=reading.policy.baseline)
        if since == said.since and said.n and said.trigger is not Trigger.BREAKER_OPEN:
            bad = said.k, said.n
        if here[1] > 0 and bad[1] > 0 and as_bad(limit, bad, here):
            what = "slow" if slow else "failed"
            return f"{reading.policy.baseline} is as bad: {here[0]} of {here[1]} {what}, {bad[0]} of {bad[1]} here"
    return ""


def _bad(said: Evaluation, since: float, reading: Reading, *, slow: bool, provider: str = "") -> tuple[int, int]:
    """How many were bad, of how many. What is in flight may yet time out, so it says nothing of time-outs."""
    sum = Sum(provider=provider or said.sum.provider, component=said.sum.component, model=said.sum.model)
    counted = reading.windows.counted(_of(sum), since, reading.at + 1)
    if slow:
        return counted.slow, counted.timed
    return counted.failures, counted.ended if said.trigger is Trigger.TIMEOUTS else counted.n


def _of(sum: Sum) -> Of:
    return lambda key: belongs(sum, key)


def _rollback(
    fired: Sequence[Fired],
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    candidate: str,
    reading: Reading,
    known: Knowledge,
) -> Rollback:
    first = fired[0]
    return Rollback(
        provider=candidate,
        incident=f"inc-{token_hex(6)}",
        scope=scopes[0],
        also=scopes[1:],
        trigger=first.evaluation.trigger,
        automatic=True,
        epochs={scope: epoch for one in fired for scope, epoch in one.epochs.items()},
        evidence=_evidence(fired, scopes[0], models, reading, known),
    )


def _evidence(
    fired: Sequence[Fired], scope: str, models: tuple[str, ...], reading: Reading, known: Knowledge
) -> Evidence:
    first, at = fired[0], reading.at
    said, policy = first.evaluation, reading.policy
    limits: Limits = policy.guard.limits(said.sum)
    hard = said.trigger in HARD  # which goes on over epochs: what it counted may be of the one before
    since = min(said.since, at - (BEFORE_S if hard else limits.window_s))
    arms = [Sum(provider=name, component=said.sum.component, model=said.sum.model) for name in _arms(reading)]
    also = dict.fromkeys(one.evaluation.trigger.value for one in fired if one.evaluation.trigger is not said.trigger)
    return Evidence(
        at=at,
        by=known.by,
        scope=scope,
        trigger=said.trigger,
        rule=said.text,
        limit=said.limit,
        n=said.n,
        k=said.k,
        estimate=said.estimate,
        low=said.low,
        high=said.high,
        windows=tuple(
            reading.windows.arm(arm, _of(arm) if hard else reading.current.of(arm), since, at + 1) for arm in arms
        ),
        probes=tuple(probe for probe in known.probes if probe.provider in _arms(reading)),
        models=models,
        versions={f"{seen.provider} {seen.endpoint}": seen.version for seen in known.probes if seen.version},
        requests=said.requests[:10],
        detection_s=max(0.0, first.at - first.began),
        decision_s=max(0.0, at - first.at),
        note=f"also fired: {', '.join(also)}" if also else "",
    )


def _arms(reading: Reading) -> tuple[str, ...]:
    policy = reading.policy
    return tuple(name for name in (policy.candidate, policy.baseline) if name)
