"""How things stand: one look at store and providers, as a document and as a view."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct
from rich.console import RenderableType

from memos_llm.cli.output import ago, heading, percent, table
from memos_llm.cli.probing import EndpointHealth, Health, probe_all
from memos_llm.config import Settings
from memos_llm.core.flags import EMBEDDING, GLOBAL, Flags, Scope, format_share
from memos_llm.core.ports import Instance, StateStore

_NEW = Flags(installation="", revision=0, salt="", scopes={GLOBAL: Scope(share_ppm=0)})


class Standing(Struct, frozen=True, kw_only=True):
    """What one look found. `flags` of a new store have revision 0."""

    settings: Settings
    flags: Flags
    instances: tuple[Instance, ...]
    health: Health
    at: float


async def look(settings: Settings, store: StateStore) -> Standing:
    """Ask store and providers at once.

    Raises:
        StoreUnreachable
    """
    flags, instances, health = await asyncio.gather(
        store.load(), store.instances(), probe_all(settings.provider_specs())
    )
    return Standing(settings=settings, flags=flags or _NEW, instances=tuple(instances), health=health, at=time.time())


def document(now: Standing) -> dict[str, Any]:
    """The status document. Breakers and windows live in the gateways; there is no plan yet."""
    flags = now.flags
    return {
        "revision": flags.revision,
        "epoch": {name: scope.epoch for name, scope in flags.scopes.items()},
        "shares": shares(now),
        "pins": dict(now.settings.policy().pins),
        "configured_share": now.settings.routing.share,
        "latched": [
            {
                "provider": scope.latch.provider,
                "scope": name,
                "since": scope.latch.since,
                "incident": scope.latch.incident,
                "holddown_until": scope.latch.holddown_until,
            }
            for name, scope in flags.scopes.items()
            if scope.latch is not None
        ],
        "providers": {name: _provider(endpoints) for name, endpoints in now.health.items()},
        "windows": [],
        "instances": [
            {"id": one.id, "kind": one.kind, "revision": one.revision, "age_s": round(max(0.0, now.at - one.at), 3)}
            for one in _lasting(now)
        ],
        "plan": None,
    }


def shares(now: Standing) -> dict[str, dict[str, float]]:
    """Scope → provider → share in force: `*`, and each component that is pinned or that the flags name."""
    candidate = now.settings.candidate
    if candidate is None:
        return {}
    pins = now.settings.policy().pins
    names = dict.fromkeys((GLOBAL, *now.flags.scopes, *now.settings.routing.components))
    return {
        name: {pins[name]: 1.0} if name in pins else {candidate: format_share(now.flags.share_ppm(name))}
        for name in names
    }


def _provider(endpoints: tuple[EndpointHealth, ...]) -> dict[str, Any]:
    return {
        "up": any(endpoint.up for endpoint in endpoints) if endpoints else None,
        "breaker": None,
        "endpoints": [
            {
                "url": endpoint.url,
                "up": endpoint.up,
                "detail": endpoint.detail,
                "models": None if endpoint.models is None else list(endpoint.models),
                "version": endpoint.version,
                "latency_ms": round(endpoint.latency_s * 1000, 1),
            }
            for endpoint in endpoints
        ],
    }


def _lasting(now: Standing) -> list[Instance]:
    return sorted((one for one in now.instances if not one.ephemeral), key=lambda one: one.id)


# The view


def view(now: Standing) -> Iterator[RenderableType]:
    """Sections, each with a heading; nothing that needs more than 80 columns."""
    revision = now.flags.revision
    yield heading(f"flags: revision {revision}" if revision else "flags: none yet (a new store): all to the baseline")
    yield from _split(now)
    yield from _latches(now)
    yield heading("providers")
    yield table(("name", "endpoint", "state", "probe", "models"), _health_rows(now.health), right=("probe",))
    yield from _followers(now)


def _split(now: Standing) -> Iterator[RenderableType]:
    settings, candidate = now.settings, now.settings.candidate
    if candidate is None:
        yield f"  no candidate is configured: everything goes to {settings.baseline}"
        return
    pins = settings.policy().pins
    rows = [_split_row(name, now, pins, candidate) for name in shares(now)]
    yield table(("scope", candidate, settings.baseline, "why"), rows, right=(candidate, settings.baseline))
    stored, filed = now.flags.share_ppm(GLOBAL), settings.share_ppm
    if stored != filed and now.flags.scopes[GLOBAL].latch is None:
        yield (
            f"  the file's routing.share is {percent(format_share(filed))}, the store's {percent(format_share(stored))}"
            f" is in force (the file's seeds a new store only)"
        )


def _split_row(name: str, now: Standing, pins: Mapping[str, str], candidate: str) -> tuple[str, str, str, str]:
    shown = "* (everything)" if name == GLOBAL else name
    if name in pins:
        to = {candidate: ("100%", "0%"), now.settings.baseline: ("0%", "100%")}
        return shown, *to.get(pins[name], ("-", "-")), f"pinned to {pins[name]} (configuration)"
    share = format_share(now.flags.share_ppm(name))
    return shown, percent(share), percent(1 - share), _why(name, now.flags)


def _why(name: str, flags: Flags) -> str:
    speaking, scope = flags.effective(name)
    if scope.latch is not None:
        return "latched" if speaking == name else f"latched with {speaking}"
    if name == GLOBAL:
        return ""
    if name == EMBEDDING:
        return "never follows *"
    return "own share" if speaking == name else f"follows {speaking}"


def _latches(now: Standing) -> Iterator[RenderableType]:
    for name, scope in now.flags.scopes.items():
        if scope.latch is None:
            continue
        left_s = scope.latch.holddown_until - now.at
        held = f"; hold-down for {ago(left_s)} more" if left_s > 0 else ""
        option = "" if name == GLOBAL else f" --component {name}"
        yield (
            f"  {name} latched {ago(now.at - scope.latch.since)} ago (incident {scope.latch.incident}){held}; "
            f"lift it with `llmctl rearm{option}`"
        )


def _health_rows(health: Health) -> Iterator[tuple[str, str, str, str, str]]:
    for name, endpoints in health.items():
        if not endpoints:
            yield name, "-", "not probed", "", ""
        for endpoint in endpoints:
            state = "up" if endpoint.up else f"DOWN: {endpoint.detail}"
            models = "unknown" if endpoint.models is None else ", ".join(endpoint.models) or "none"
            version = f"up ({endpoint.version})" if endpoint.up and endpoint.version else state
            yield name, endpoint.url, version, f"{endpoint.latency_s * 1000:.0f} ms", models if endpoint.up else ""


def _followers(now: Standing) -> Iterator[RenderableType]:
    lasting = _lasting(now)
    if not lasting:
        yield heading("instances: none (nothing follows this store; `llmctl serve` starts a gateway)")
        return
    yield heading("instances")
    rows = [
        (one.id, one.kind, f"{one.revision}{'' if one.revision >= now.flags.revision else ' (behind)'}")
        for one in lasting
    ]
    yield table(("id", "kind", "revision"), rows, right=("revision",))
