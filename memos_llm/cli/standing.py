"""How things stand, as a picture: one bar for each scope, a line for each endpoint, and what needs a hand.

Drawn from the status document alone, so that a gateway's looks like the store's. 80 columns; nothing is told by colour.
"""

from collections.abc import Iterator

from rich.console import RenderableType

from memos_llm.cli import windows
from memos_llm.cli.output import ago, clock, heading, percent, table
from memos_llm.operate.documents import EndpointState, InstanceState, ProviderState, Status

EVERYTHING = "*"
BAR = 20
FULL, EMPTY = "█", "░"


def view(now: Status) -> Iterator[RenderableType]:
    """Sections, each with a heading."""
    yield heading(
        f"flags: revision {now.revision}" if now.revision else "flags: none yet (a new store): all to the baseline"
    )
    yield from _store(now)
    yield from _split(now)
    yield from _latches(now)
    yield from windows.maintenance(now)
    yield from windows.guard(now)
    yield from _embeddings(now)
    yield heading("providers")
    yield table(("name", "endpoint", "state", "models"), _endpoint_rows(now), whole=("endpoint",))
    yield from _followers(now)


def _store(now: Status) -> Iterator[str]:
    if now.store.detail:
        yield f"  ! {now.store.detail}"
    if now.config is not None:
        yield from (f"  ! the file is wrong, the one before is in force: {error}" for error in now.config.errors)
        if now.config.waiting:
            yield f"  ! changed in the file, and in force after a restart: {', '.join(now.config.waiting)}"


def _split(now: Status) -> Iterator[RenderableType]:
    if now.candidate is None:
        yield f"  no candidate is configured: everything goes to {now.baseline}"
        return
    rows = [_split_row(name, now, now.candidate) for name in now.shares]
    yield table(("scope", f"{now.candidate} {FULL} / {now.baseline} {EMPTY}", "", "why"), rows)
    yield from _unserved(now, now.candidate)
    stored = now.shares.get(EVERYTHING, {}).get(now.candidate)
    latched = any(latch.scope == EVERYTHING for latch in now.latched)
    if stored is not None and stored != now.configured_share and not latched:
        filed = percent(now.configured_share)
        yield f"  the file's routing.share is {filed}, the store's {percent(stored)} is in force"
        yield "  (the file's seeds a new store only)"


def _unserved(now: Status, candidate: str) -> Iterator[str]:
    """The bars show what is wanted; a candidate that cannot be reached gets none of it."""
    shares = [share.get(candidate, 0.0) for share in now.shares.values()]
    provider = now.providers.get(candidate)
    ends = provider.endpoints if provider else ()
    if any(shares) and ends and not any(_takes(one) for one in ends):
        yield f"  ! {candidate} can be sent nothing now, see below: the fallback answers for it"


def _takes(one: EndpointState) -> bool:
    return one.up is not False and one.breaker != "open"


def _split_row(name: str, now: Status, candidate: str) -> tuple[str, str, str, str]:
    shown = "* (everything)" if name == EVERYTHING else name
    why = now.why.get(name, "")
    if name in now.pins:
        why = f"{why} (configuration)"
        if now.pins[name] not in (candidate, now.baseline):
            return shown, "", "-", why
    share = now.shares[name].get(candidate, 0.0)
    return shown, bar(share), percent(share), why


def bar(share: float) -> str:
    """`0.3` → six of twenty; what is above 0 or below 1 never looks like none or all."""
    filled = round(share * BAR)
    if 0 < share < 1:
        filled = min(BAR - 1, max(1, filled))
    return FULL * filled + EMPTY * (BAR - filled)


def _latches(now: Status) -> Iterator[str]:
    for latch in now.latched:
        left_s = latch.holddown_until - now.at
        held = f"; hold-down for {ago(left_s)} more" if left_s > 0 else ""
        option = "" if latch.scope == EVERYTHING else f" --component {latch.scope}"
        yield f"  ! {latch.scope} latched {ago(now.at - latch.since)} ago (incident {latch.incident}){held}"
        when = f", from {clock(latch.holddown_until)} on" if left_s > 0 else ""
        yield f"    lift it with `llmctl rearm{option}`{when}"
        yield f"    why: `llmctl incidents {latch.incident}`"


def _embeddings(now: Status) -> Iterator[RenderableType]:
    if not now.embeddings:
        return
    yield heading("embeddings")
    for one in now.embeddings:
        proof = one.verified
        if proof is None:
            yield f"  {one.model}: not verified, stays on {now.baseline}"
            yield f"    (`llmctl embeddings verify {one.model} --file F`)"
        else:
            yield f"  {one.model}: verified equal (least cosine {proof.cosine_min:.6f}, {proof.texts} texts)"


def _endpoint_rows(now: Status) -> Iterator[tuple[str, str, str, str]]:
    for name, provider in now.providers.items():
        if not provider.endpoints:
            yield name, "-", "not probed", ""
        for number, one in enumerate(provider.endpoints):
            load = _load(provider) if number == 0 else ""
            yield name, one.url, _state(one) + load, _models(one)


def _state(one: EndpointState) -> str:
    if one.up is None:
        said = "not probed yet"
    elif not one.up:
        said = f"DOWN: {one.detail}"
    else:
        said = f"up {one.version}".rstrip() + (f" ({one.detail})" if one.detail else "")
    if one.up and one.latency_ms is not None:
        said += f", {one.latency_ms:.0f} ms"
    return said + (f", breaker {one.breaker.upper()}" if one.breaker not in (None, "closed") else "")


def _load(provider: ProviderState) -> str:
    return f", {provider.in_flight} in flight" if provider.in_flight else ""


def _models(one: EndpointState) -> str:
    if not one.up:
        return ""
    return "unknown" if one.models is None else ", ".join(one.models) or "none"


def _followers(now: Status) -> Iterator[RenderableType]:
    if not now.instances:
        yield heading("instances: none (nothing follows this store; `llmctl serve` starts a gateway)")
        return
    yield heading("instances")
    yield table(("id", "kind", "revision"), [_follower(one, now) for one in now.instances], right=("revision",))


def _follower(one: InstanceState, now: Status) -> tuple[str, str, str]:
    return one.id, one.kind, f"{one.revision}{'' if one.revision >= now.revision else ' (behind)'}"
