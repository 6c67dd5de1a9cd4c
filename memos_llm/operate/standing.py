"""How things stand, as a document: from the flags, the live instances, and what is known of the providers."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from memos_llm.core.catalogue import is_embedding
from memos_llm.core.events import StoreState
from memos_llm.core.flags import EMBEDDING, GLOBAL, Flags, Scope, format_share
from memos_llm.core.policy import Policy
from memos_llm.core.ports import Instance
from memos_llm.core.version import VERSION
from memos_llm.operate.documents import (
    ConfigSeen,
    EmbeddingModel,
    EndpointState,
    FlagsDocument,
    InstanceState,
    LatchState,
    ProviderState,
    ScopeState,
    Status,
    StoreSeen,
)
from memos_llm.operate.guarding import Guarded, guard_state, rows
from memos_llm.operate.probing import EndpointHealth

if TYPE_CHECKING:
    from memos_llm.config import Settings

NO_FLAGS = Flags(installation="", revision=0, salt="", scopes={GLOBAL: Scope(share_ppm=0)})


def status(
    settings: "Settings",
    policy: Policy,
    flags: Flags,
    *,
    instances: Iterable[Instance],
    providers: Mapping[str, ProviderState],
    store: StoreState,
    now: float,
    seen_by: str,
    config: ConfigSeen | None = None,
    guarded: Guarded | None = None,
) -> Status:
    """The status document. `now` is Unix time; `flags` of a new store have revision 0; `guarded`: what is known of the
    guard.
    """
    guarded = guarded or Guarded()
    return Status(
        revision=flags.revision,
        epoch={name: scope.epoch for name, scope in flags.scopes.items()},
        shares=shares(policy, flags, settings.routing.components),
        why={
            name: why(name, policy, flags, flags.maintained(now))
            for name in _scopes(flags, settings.routing.components)
        },
        pins=dict(policy.pins),
        baseline=policy.baseline,
        candidate=policy.candidate,
        configured_share=settings.routing.share,
        latched=tuple(latches(flags)),
        providers=providers,
        embeddings=tuple(embeddings(policy, flags)),
        windows=rows(policy, guarded.windows, guarded.evaluations),
        guard=guard_state(policy, guarded),
        maintenance=maintained(flags, now),
        instances=tuple(_instances(instances, now)),
        store=StoreSeen(reachable=store.reachable, regressed=store.regressed, detail=store.detail),
        config=config,
        at=now,
        version=VERSION,
        seen_by=seen_by,
    )


def flags_document(flags: Flags) -> FlagsDocument:
    """The flags without their salt."""
    latched = {latch.scope: latch for latch in latches(flags)}
    return FlagsDocument(
        schema=flags.schema,
        installation=flags.installation,
        revision=flags.revision,
        maintenance=dict(flags.maintenance),
        scopes={
            name: ScopeState(
                share=None if scope.share_ppm is None else format_share(scope.share_ppm),
                epoch=scope.epoch,
                latched=latched.get(name),
                rearmed_at=scope.rearmed_at,
                new_index=scope.new_index,
            )
            for name, scope in flags.scopes.items()
        },
        verified=flags.verified,
    )


def shares(policy: Policy, flags: Flags, components: Iterable[str]) -> dict[str, dict[str, float]]:
    """Scope → provider → share in force: `*`, and each component that is pinned or that the flags name."""
    if policy.candidate is None:
        return {}
    candidate = policy.candidate
    return {
        name: {policy.pins[name]: 1.0} if name in policy.pins else {candidate: format_share(flags.share_ppm(name))}
        for name in _scopes(flags, components)
    }


def why(name: str, policy: Policy, flags: Flags, drained: Collection[str] = ()) -> str:
    """Why a scope's share is what it is; empty for everything's own. `drained`: who is under maintenance."""
    said = _why(name, policy, flags)
    wanted = policy.pins.get(name) or policy.candidate
    if wanted in drained and (name in policy.pins or flags.share_ppm(name)):
        return "; ".join(filter(None, (said, f"{wanted} is under maintenance")))
    return said


def _why(name: str, policy: Policy, flags: Flags) -> str:
    if name in policy.pins:
        return f"pinned to {policy.pins[name]}"
    speaking, scope = flags.effective(name)
    if scope.latch is not None:
        return "latched" if speaking == name else f"latched with {speaking}"
    if name == GLOBAL:
        return ""
    if name == EMBEDDING:
        return "new index" if scope.new_index else "never follows *"
    return "own share" if speaking == name else f"follows {speaking}"


def latches(flags: Flags) -> Iterator[LatchState]:
    for name, scope in flags.scopes.items():
        if scope.latch is not None:
            yield LatchState(
                provider=scope.latch.provider,
                scope=name,
                since=scope.latch.since,
                incident=scope.latch.incident,
                holddown_until=scope.latch.holddown_until,
            )


def maintained(flags: Flags, now: float) -> dict[str, float]:
    """Provider → until when it is drained; those whose time is over are left out."""
    return {name: flags.maintenance[name] for name in sorted(flags.maintained(now))}


def embeddings(policy: Policy, flags: Flags) -> Iterator[EmbeddingModel]:
    """The models whose vectors could move: named like one for embeddings, or verified, and known on both sides."""
    if policy.candidate is None:
        return
    for model in policy.catalogue.models.values():
        here, there = model.on.get(policy.baseline), model.on.get(policy.candidate)
        likely = model.name in flags.verified or is_embedding(model.name)
        if here is None or there is None or not (likely or is_embedding(there.name)):
            continue
        proof = flags.proof(model.name, here.name, there.name)
        yield EmbeddingModel(model=model.name, baseline=here.name, candidate=there.name, verified=proof)


def probed(health: Iterable[EndpointHealth]) -> ProviderState:
    """A provider whose endpoints were asked just now."""
    endpoints = tuple(
        EndpointState(
            url=one.url,
            up=one.up,
            detail=one.detail,
            models=one.models,
            version=one.version,
            latency_ms=round(one.latency_s * 1000, 1),
        )
        for one in health
    )
    return ProviderState(up=any(one.up for one in endpoints) if endpoints else None, endpoints=endpoints)


def _scopes(flags: Flags, components: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((GLOBAL, *flags.scopes, *components)))


def _instances(instances: Iterable[Instance], now: float) -> Iterator[InstanceState]:
    for one in sorted((one for one in instances if not one.ephemeral), key=lambda one: one.id):
        yield InstanceState(id=one.id, kind=one.kind, revision=one.revision, age_s=round(max(0.0, now - one.at), 3))
