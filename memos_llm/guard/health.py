"""What probes and breakers say of endpoints, as the guard counts it. No I/O; times are passed in, in seconds of one
monotonic clock.

A probe that failed and counts makes an endpoint's streak longer, one that found it up ends it. An endpoint is dead with
`health_failures` in a row; a model is, when every endpoint that serves it is. Breakers are read as time: an open one
starves the windows, for nothing is sent there, so that it says by itself that something is wrong.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from memos_llm.core.catalogue import canonical
from memos_llm.core.events import BreakerChanged, ProbeEnded
from memos_llm.core.ports import Instance
from memos_llm.core.verdicts import Evaluation, ProbeSeen, Sum, Trigger, Verdict

LOOK_BACK_S = 120.0  # over which breakers are judged
OPEN_S, OPENINGS = 30.0, 3  # within it: either is too much
OPEN, CLOSED = "open", "closed"
MOST_CHANGES = 256  # of one breaker that are remembered

Place = tuple[str, str]
"""Provider and endpoint (URL)."""

Serving = Mapping[str, Sequence[str]]
"""Logical model → the endpoints that serve it on one provider."""


class Shut(NamedTuple):
    """How long all endpoints of a model were shut at once, how often that began, and since when there is to tell."""

    seconds: float
    times: int
    since: float


class Health:
    """What this process knows of all endpoints. Bounded by the configuration: `keep` drops what is not in it."""

    def __init__(self) -> None:
        self._streaks: dict[Place, int] = {}
        self._ill_since: dict[Place, float] = {}
        self._seen: dict[Place, ProbeSeen] = {}
        self._changes: dict[Place, deque[tuple[float, bool]]] = {}
        self._heard: dict[Place, int] = {}
        self._broken: dict[Place, str] = {}  # the breakers that are not closed
        self._models: dict[Place, frozenset[str]] = {}  # that it served when it was asked last

    @property
    def probes(self) -> int:
        """How often the endpoint that was probed most was."""
        return max(self._heard.values(), default=0)

    @property
    def probing(self) -> bool:
        """Whether this process has heard of any probe."""
        return bool(self._seen)

    def probed(self, event: ProbeEnded, now: float, at: float) -> None:
        """`at`: the same moment in Unix seconds."""
        place = event.provider, event.endpoint
        self._heard[place] = self._heard.get(place, 0) + 1
        version = event.version or (self._seen[place].version if place in self._seen else "")
        self._seen[place] = ProbeSeen(
            provider=event.provider,
            endpoint=event.endpoint,
            up=event.up,
            detail=event.failure or event.detail,
            version=version,
            at=at,
        )
        if event.models is not None:
            self._models[place] = frozenset(map(canonical, event.models))
        if event.failure:
            self._streaks[place] = self._streaks.get(place, 0) + 1
            self._ill_since.setdefault(place, now)
        elif event.up:
            self._streaks.pop(place, None)
            self._ill_since.pop(place, None)

    def broke(self, event: BreakerChanged, now: float) -> None:
        """A breaker changed its state."""
        if event.state == CLOSED:
            self._broken.pop((event.provider, event.endpoint), None)
        else:
            self._broken[event.provider, event.endpoint] = event.state
        changes = self._changes.setdefault((event.provider, event.endpoint), deque(maxlen=MOST_CHANGES))
        changes.append((now, event.state == OPEN))
        while len(changes) > 1 and changes[1][0] < now - LOOK_BACK_S:  # one from before says how it began
            changes.popleft()

    def keep(self, places: Collection[Place]) -> None:
        """Forget every endpoint but these."""
        known: dict[Place, Any]
        for known in (
            self._streaks,
            self._ill_since,
            self._seen,
            self._changes,
            self._heard,
            self._broken,
            self._models,
        ):
            for gone in [place for place in known if place not in places]:
                known.pop(gone)

    def forgive(self, provider: str, now: float) -> None:
        """Its maintenance is over: streaks begin anew, and what is open has only just opened."""
        for known in (self._streaks, self._ill_since):
            for place in [place for place in known if place[0] == provider]:
                del known[place]
        for place, changes in self._changes.items():
            if place[0] == provider:
                _, is_open = changes[-1]
                changes.clear()
                changes.append((now, is_open))

    def seen(self, *providers: str) -> tuple[ProbeSeen, ...]:
        """The last probe of each of their endpoints."""
        return tuple(probe for (provider, _), probe in sorted(self._seen.items()) if provider in providers)

    def dead(self, failures: Callable[[str], int | None]) -> frozenset[str]:
        """The endpoints that are dead for this process. `failures`: how many in a row make one so, by provider."""
        found = set()
        for (provider, endpoint), streak in self._streaks.items():
            limit = failures(provider)
            if limit is not None and streak >= limit:
                found.add(endpoint)
        return frozenset(found)

    def streak(self, provider: str, endpoints: Iterable[str]) -> int:
        """The shortest of their streaks: how far they all are."""
        return min((self._streaks.get((provider, endpoint), 0) for endpoint in endpoints), default=0)

    def doubt(self, provider: str, endpoints: Iterable[str], model: str) -> str:
        """Why none of these endpoints may be trusted with one of its own model names. Empty where one may, and without
        endpoints.
        """
        found = [self._doubt((provider, each), canonical(model)) for each in endpoints]
        return found[0] if found and all(found) else ""

    def _doubt(self, place: Place, model: str) -> str:
        """One failed probe is enough, and a breaker that is half open has yet to be tried."""
        if place in self._streaks:
            return "its last probe failed"
        if place in self._broken:
            return "its breaker has opened"
        return "" if model in self._models.get(place, (model,)) else "it has not got the model"

    def ill_since(self, provider: str, endpoints: Iterable[str], now: float) -> float:
        """When the last of them began to fail."""
        return max((self._ill_since.get((provider, endpoint), now) for endpoint in endpoints), default=now)

    def shut(self, provider: str, endpoints: Sequence[str], since: float, now: float) -> Shut:
        """What the breakers of these endpoints did together from `since` until now."""
        changes = [
            (moment, endpoint, opened)
            for endpoint in endpoints
            for moment, opened in self._changes.get((provider, endpoint), ())
        ]
        opened: set[str] = set()
        seconds, times, began = 0.0, 0, None
        for moment, endpoint, is_open in sorted(changes):
            was_shut = began is not None
            (opened.add if is_open else opened.discard)(endpoint)
            is_shut = bool(endpoints) and len(opened) == len(set(endpoints))
            if is_shut and not was_shut:
                began = moment
                times += moment >= since
            elif was_shut and not is_shut and began is not None:
                seconds += max(0.0, moment - max(began, since))
                began = None
        if began is not None:
            seconds += now - max(began, since)
        return Shut(seconds, times, min((moment for moment, *_ in changes if moment >= since), default=since))


def agreed(endpoints: Sequence[str], own: Collection[str], others: Iterable[Instance]) -> bool:
    """Whether a majority finds all these endpoints dead: this process, and the live, long-lived others that probe."""
    views = [own, *(one.dead for one in others if one.dead is not None and not one.ephemeral)]
    votes = sum(all(endpoint in view for endpoint in endpoints) for view in views)
    return bool(endpoints) and 2 * votes > len(views)


def judge_probes(
    health: Health,
    provider: str,
    serving: Serving,
    failures: int,
    others: Sequence[Instance] | None,
    now: float,
    at: float,
) -> list[Evaluation]:
    """Each model of one provider, by its endpoints' probes.

    Args:
        others: None while it is not known what they say; then nobody is a majority. at: `now` in Unix seconds.
    """
    own = health.dead(lambda name: failures if name == provider else None)
    return [
        _probes(health, Sum(provider=provider, model=model), endpoints, failures, own, others, now, at)
        for model, endpoints in serving.items()
        if endpoints
    ]


def _probes(
    health: Health,
    sum: Sum,
    endpoints: Sequence[str],
    failures: int,
    own: Collection[str],
    others: Sequence[Instance] | None,
    now: float,
    at: float,
) -> Evaluation:
    streak = health.streak(sum.provider, endpoints)
    here = all(endpoint in own for endpoint in endpoints)
    verdict, reason = Verdict.PASS, "within"
    if not health.probing:
        verdict, reason = Verdict.INCONCLUSIVE, "no-data"
    elif here and others is not None and agreed(endpoints, own, others):
        verdict, reason = Verdict.FAIL, "over-limit"
    elif here:
        verdict, reason = Verdict.INCONCLUSIVE, "no-majority"
    return Evaluation(
        trigger=Trigger.HEALTH,
        sum=sum,
        verdict=verdict,
        reason=reason,
        text=f"{streak} failed probes in a row of every endpoint of {sum.model}, {failures} are too many",
        n=streak,
        k=streak,
        limit=failures,
        since=at - (now - health.ill_since(sum.provider, endpoints, now)),
    )


def judge_breakers(
    health: Health, provider: str, serving: Serving, since: float, now: float, at: float
) -> list[Evaluation]:
    """Each model of one provider, by its endpoints' breakers. What was before `since` is not held against it."""
    since = max(since, now - LOOK_BACK_S)
    found = []
    for model, endpoints in serving.items():
        shut = health.shut(provider, endpoints, since, now)
        over = shut.seconds >= OPEN_S or shut.times >= OPENINGS
        found.append(
            Evaluation(
                trigger=Trigger.BREAKER_OPEN,
                sum=Sum(provider=provider, model=model),
                verdict=Verdict.FAIL if over else Verdict.PASS,
                reason="over-limit" if over else "within",
                text=f"every breaker of {model} was open for {shut.seconds:.0f} s in all, {shut.times} times, within "
                f"{LOOK_BACK_S:.0f} s; {OPEN_S:.0f} s or {OPENINGS} times are too much",
                n=shut.times,
                k=shut.times,
                limit=OPENINGS,
                since=at - (now - shut.since),
            )
        )
    return found
