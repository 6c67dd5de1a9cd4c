"""Who calls what, why it is still on the baseline, and whether the baseline may be switched off. Pure.

`inventory` folds a store's counts into rows, judges each by the configuration and the flags of now, and says of the
whole whether anything still hangs on the baseline. No data is never a yes.
"""

from collections.abc import Sequence

from msgspec import Struct

from memos_llm.core.call import OPERATIONS, Wire
from memos_llm.core.flags import Flags
from memos_llm.core.inventory import DAY_S, LOAD, REST, Line, Recorded, Sighting, What
from memos_llm.core.policy import Policy
from memos_llm.rollout.advice import HANGS, MOVES, READY, Advice, advise, todo_for_all

ORDER = (HANGS, MOVES, READY)
REFUSED = "refused"  # why a row is ready whose requests were all the caller's mistake
UNANSWERED = "unanswered"  # why a row hangs that the providers fail too often for anything to be said
MAX_UNANSWERED = 0.05  # part of a row's requests; as the default limit of the error rate

FREE, HELD, EARLY, SILENT = "free", "hangs", "too-early", "no-data"
"""The verdict: nothing hung on the baseline; something did; not recorded for long enough; nothing was called."""


class Answered(Struct, frozen=True, kw_only=True):
    """Requests of a row that one provider answered for one cause. `n` ≥ 1; times are Unix seconds.

    Attributes:
        cause: a decision's reason, `fell-back` (the assigned provider failed it), or `load` (Ollama's load and unload
            calls, which the gateway answers alone where there is no Ollama).
    """

    provider: str
    cause: str
    n: int
    first: float
    last: float


class Refusal(Struct, frozen=True, kw_only=True):
    """Tries that `provider` refused and another took. `code` is machine-readable; the back end's words are not kept."""

    provider: str
    code: str
    n: int
    last: float


class Counted(Struct, frozen=True, kw_only=True):
    """A name and how often: of a warning, a failure, something that was asked for."""

    name: str
    provider: str
    n: int


class Row(Struct, frozen=True, kw_only=True):
    """One caller's calls of one kind.

    Attributes:
        operation: chat, text_completion, embeddings, passthrough; `other` for what is counted together.
        wire, route: the API that is spoken; `route` only for what is passed on unread (`POST /api/blobs/…`).
        caller: a key's id, `anonymous`, `admin-token`, `library`.
        requests: all that were answered; on_baseline, on_candidate: by whom (what is left, another provider did).
        refused: further ones that were the caller's own mistake (4xx): they hang on nobody.
        unanswered: further ones that everybody failed who was asked.
        reasons: of all requests, by cause. answered: in full.
        needs: what calls asked for that the candidate cannot do. incompatible: what it refused and another took.
        failures: other tries that failed. warnings: tokens of `x-memos-warnings`.
        state: `ready`, `moves` (it follows the share), `hangs`; why: the cause that decides that; todo: a sentence.
    """

    component: str
    model: str
    operation: str
    wire: str
    route: str
    caller: str
    requests: int
    refused: int
    unanswered: int
    on_baseline: int
    on_candidate: int
    first_seen: float
    last_seen: float
    reasons: dict[str, int]
    answered: tuple[Answered, ...]
    needs: tuple[Counted, ...]
    incompatible: tuple[Refusal, ...]
    failures: tuple[Counted, ...]
    warnings: tuple[Counted, ...]
    state: str
    why: str
    todo: str


class Inventory(Struct, frozen=True, kw_only=True):
    """The whole.

    Attributes:
        since, at: the window, Unix seconds. Counts are kept by day (UTC), so that its first day counts whole; who was
            not seen within the window is not in it.
        recording_since: when counting began; None: nothing was ever counted.
        requests: of all rows. other: of these, the ones beyond the bound on rows, counted together.
        verdict: `free`: nothing hung on the baseline; `hangs`; `too-early`: nothing did, but it was not recorded for
            the whole window; `no-data`. text: that as a sentence. todo: what is left to do, the most requests first.
    """

    at: float
    since: float
    recording_since: float | None
    baseline: str
    candidate: str | None
    requests: int
    other: int
    verdict: str
    text: str
    todo: tuple[str, ...]
    rows: tuple[Row, ...]


def inventory(recorded: Recorded, policy: Policy, flags: Flags, *, since: float, now: float) -> Inventory:
    """What was called from `since` to `now` (Unix seconds), judged by the policy and the flags in force."""
    by_line: dict[Line, list[Sighting]] = {}
    for one in recorded.sightings:
        if one.last >= since:
            by_line.setdefault(one.line, []).append(one)
    rows = sorted((_row(line, seen, policy, flags) for line, seen in by_line.items()), key=_order)
    verdict, text = _verdict(rows, recorded.since, policy, since=since, now=now)
    return Inventory(
        at=now,
        since=since,
        recording_since=recorded.since,
        baseline=policy.baseline,
        candidate=policy.candidate,
        requests=sum(row.requests for row in rows),
        other=sum(row.requests for row in rows if row.wire == REST.wire),
        verdict=verdict,
        text=text,
        todo=tuple(todo_for_all((row.todo, _hanging(row) + row.unanswered) for row in rows if row.state != READY)),
        rows=tuple(rows),
    )


def _order(row: Row) -> tuple[object, ...]:
    return ORDER.index(row.state), -row.requests, row.component, row.model, row.wire, row.route, row.caller


def _row(line: Line, seen: Sequence[Sighting], policy: Policy, flags: Flags) -> Row:
    answered = sorted(
        (
            Answered(provider=one.provider, cause=one.detail, n=one.n, first=one.first, last=one.last)
            for one in seen
            if one.what == What.REQUEST
        ),
        key=lambda one: (-one.n, one.provider, one.cause),
    )
    judged = _judged(line, answered, seen, policy, flags)
    reasons: dict[str, int] = {}
    for one in answered:
        reasons[one.cause] = reasons.get(one.cause, 0) + one.n
    return Row(
        component=line.component,
        model=line.model,
        operation=OPERATIONS[Wire(line.wire)].value if line.wire in _WIRES else line.wire,
        wire=line.wire,
        route=line.route,
        caller=line.caller,
        requests=sum(one.n for one in answered),
        refused=sum(one.n for one in seen if one.what == What.REFUSED),
        unanswered=_unanswered(seen),
        on_baseline=sum(one.n for one in answered if one.provider == policy.baseline),
        on_candidate=sum(one.n for one in answered if one.provider == policy.candidate),
        first_seen=min(one.first for one in seen),
        last_seen=max(one.last for one in seen),
        reasons=reasons,
        answered=tuple(answered),
        needs=_counted(seen, What.NEEDS),
        incompatible=tuple(
            Refusal(provider=one.provider, code=one.detail, n=one.n, last=one.last)
            for one in _most(seen, What.INCOMPATIBLE)
        ),
        failures=_counted(seen, What.FAILED),
        warnings=_counted(seen, What.WARNING),
        state=judged.state,
        why=judged.why,
        todo=judged.todo,
    )


_WIRES = frozenset(wire.value for wire in Wire)


def _judged(line: Line, answered: Sequence[Answered], seen: Sequence[Sighting], policy: Policy, flags: Flags) -> Advice:
    """The worst that a cause of being on the baseline says; of equals, the one with the most requests."""
    needs, codes = tuple(one.detail for one in _most(seen, What.NEEDS)), _codes(seen, policy)
    found = [
        advise(one.cause, line, policy, flags, needs=needs, codes=codes)
        for one in answered
        if one.provider == policy.baseline
    ]
    failed, n = _unanswered(seen), sum(one.n for one in answered)
    if failed > MAX_UNANSWERED * (n + failed):
        how = f" ({', '.join(codes[:3])})" if codes else ""
        found.append(Advice(HANGS, UNANSWERED, f"nobody answered {failed:,} of {n + failed:,}{how}: mend that first"))
    nobody = Advice(READY, "" if answered else REFUSED, "")
    return min(found, key=lambda advice: ORDER.index(advice.state), default=nobody)


def _unanswered(seen: Sequence[Sighting]) -> int:
    return sum(one.n for one in seen if one.what == What.UNANSWERED)


def _codes(seen: Sequence[Sighting], policy: Policy) -> tuple[str, ...]:
    """How the tries of the other providers ended."""
    refused = (f"incompatible {one.detail} ×{one.n}" for one in _most(seen, What.INCOMPATIBLE))
    failed = (f"{one.detail} ×{one.n}" for one in _most(seen, What.FAILED) if one.provider != policy.baseline)
    return (*refused, *failed)


def _most(seen: Sequence[Sighting], what: What) -> list[Sighting]:
    return sorted((one for one in seen if one.what == what), key=lambda one: (-one.n, one.provider, one.detail))


def _counted(seen: Sequence[Sighting], what: What) -> tuple[Counted, ...]:
    return tuple(Counted(name=one.detail, provider=one.provider, n=one.n) for one in _most(seen, what))


def _verdict(
    rows: Sequence[Row], recording_since: float | None, policy: Policy, *, since: float, now: float
) -> tuple[str, str]:
    baseline, asked = policy.baseline, _span(now - since, exact=True)
    if recording_since is None:
        return (
            SILENT,
            "nothing has been recorded yet: start `llmctl serve`, or a program with the library, on this store",
        )
    requests, on_it = sum(row.requests for row in rows), [row for row in rows if row.state != READY]
    began = f"it has been recording for {_span(max(0.0, now - recording_since))}"
    failed = sum(row.unanswered for row in rows)
    if not requests + failed:
        return SILENT, f"nothing was called in the last {asked} ({began}), so that nothing can be said"
    if on_it:
        share = f"{sum(map(_hanging, on_it)):,} of {requests:,} requests in the last {asked}"
        unanswered = f", and nobody answered {failed:,} more" if failed else ""
        return HELD, f"{baseline} may NOT be switched off: it answered {share}{unanswered}"
    if recording_since > since:
        return EARLY, f"nothing hung on {baseline} so far ({requests:,} requests), but {began}, not {asked} yet"
    return FREE, f"{baseline} may be switched off: nothing hung on it in the last {asked} (seen {requests:,} requests)"


def _hanging(row: Row) -> int:
    """What follows the share hangs there as well, as long as it was seen there; a load call never does."""
    return row.on_baseline - row.reasons.get(LOAD, 0)


def _span(seconds: float, *, exact: bool = False) -> str:
    """`604800` → `7 days`; the largest unit that fits, or, if it must be `exact`, that it is whole in."""
    whole = round(seconds)
    for size, unit in ((DAY_S, "day"), (3600, "hour"), (60, "minute")):
        if whole >= size and not (exact and whole % size):
            n = whole // size
            return f"{n} {unit}{'s' if n > 1 else ''}"
    return f"{whole} seconds"
