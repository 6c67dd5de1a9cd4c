"""The verbs that change something: each submits one command and says what came of it and who follows."""

import time
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from secrets import token_hex
from typing import TYPE_CHECKING

from msgspec.structs import replace

from memos_llm.control.confirm import Confirmation
from memos_llm.control.live import Live
from memos_llm.core.commands import Actor, Command, Maintain, Rearm, Rollback, Shift, Verify
from memos_llm.core.errors import BadRequest, ConfigError, Refused, StoreUnreachable
from memos_llm.core.flags import EMBEDDING, GLOBAL, Flags, format_share
from memos_llm.core.policy import Policy
from memos_llm.core.ports import Transport
from memos_llm.operate.documents import Adoption, Change
from memos_llm.operate.guarding import baseline_doubts, watched
from memos_llm.operate.orders import (
    AdoptOrder,
    MaintenanceOrder,
    RearmOrder,
    RollbackOrder,
    ShiftOrder,
    VerifyOrder,
    check_new_index,
    in_a_line,
    percent,
    scope_of,
    waiting,
)
from memos_llm.operate.probing import ills, probe_one, probe_open

if TYPE_CHECKING:
    from memos_llm.config import Settings


async def shift(live: Live, settings: "Settings", order: ShiftOrder, actor: Actor) -> Change:
    """Set the candidate's share.

    Raises:
        BadRequest: another provider than the candidate, no share, no such scope.
        Refused, StoreUnreachable: nothing was changed (unless the message names a revision).
    """
    provider = candidate(settings, order.provider)
    if not settings.providers[provider].enabled:
        raise Refused(f"{provider} is switched off: set providers.{provider}.enabled to true first")
    check_new_index(order)
    scope = scope_of(order.component)
    wanted = Shift(
        provider=provider,
        share_ppm=order.share_ppm,
        scope=scope,
        new_index=order.new_index,
        reason=in_a_line(order.reason),
    )
    warnings = tuple(doubts(scope, settings))
    if not order.share_ppm:
        return await submit(live, wanted, actor, wait_s=order.wait_s, warnings=warnings)
    policy = settings.policy()
    unfit = await baseline_doubts(live.store, policy, live.current(), scope)
    change = await submit(live, wanted, actor, wait_s=order.wait_s, warnings=(*warnings, *unfit))
    return replace(change, notes=(*change.notes, *watched(policy, provider, scope)))


async def rollback(live: Live, settings: "Settings", order: RollbackOrder, actor: Actor) -> Change:
    """Take the share back to 0, at once, latched. Never refused.

    Raises:
        BadRequest, StoreUnreachable.
    """
    wanted = Rollback(
        provider=candidate(settings, order.provider),
        incident=f"inc-{token_hex(6)}",
        scope=scope_of(order.component),
        reason=in_a_line(order.reason),
    )
    return await submit(live, wanted, actor, wait_s=order.wait_s)


async def rearm(
    live: Live, settings: "Settings", order: RearmOrder, actor: Actor, transports: Mapping[str, Transport] | None = None
) -> Change:
    """Lift a latch; the provider is asked first and must be healthy, forced or not: by its transport in force, where
    this process has one.

    Raises:
        BadRequest, Refused, StoreUnreachable.
    """
    provider = candidate(settings, order.provider)
    scope = scope_of(order.component)
    spec = next((spec for spec in settings.provider_specs() if spec.name == provider), None)
    if spec is None:
        raise Refused(f"{provider} is switched off: set providers.{provider}.enabled to true first")
    transport = (transports or {}).get(provider)
    health = await (probe_one(spec) if transport is None else probe_open(spec, transport))
    found = ills(provider, health, settings.policy())
    if found:
        raise Refused(f"{provider} is not healthy: {'; '.join(found)}; mend it first (--force does not help)")
    wanted = Rearm(provider=provider, scope=scope, force=order.force, reason=in_a_line(order.reason))
    doubtful = tuple(f"{one.url} is up, but: {one.detail}" for one in health if one.up and one.detail)
    change = await submit(live, wanted, actor, wait_s=order.wait_s, warnings=doubtful)
    option = "" if scope == GLOBAL else f" --component {scope}"
    again = f"next: `llmctl shift --{provider} 5%{option}`, a small share first, and `llmctl status --watch`"
    return replace(change, notes=(*change.notes, again))


async def maintenance(live: Live, settings: "Settings", order: MaintenanceOrder, actor: Actor) -> Change:
    """Drain a provider for a while, or end that: shares stay, its requests are diverted, and nothing is rolled back.

    Raises:
        BadRequest: no such provider, no such time. Refused: nobody could answer for it; or there is none to end.
        StoreUnreachable.
    """
    provider, for_s = configured(settings, order.provider), order.for_s
    others = tuple(name for name in settings.policy().fallback if name != provider)
    if for_s is not None and not others:
        raise Refused(f"nobody answers for {provider} meanwhile: name another provider under `fallback` first")
    until = None if for_s is None else time.time() + for_s
    why = in_a_line(order.reason)
    said = "ended" if for_s is None else f"for {order.lasts}"
    wanted = Maintain(provider=provider, until=until, reason=f"{said}: {why}" if why else said)
    change = await submit(live, wanted, actor, wait_s=order.wait_s)
    if until is None:
        return change
    notes = (
        f"new requests for {provider} go to {', '.join(others)}; those that run are finished there",
        f"the guard holds nothing against {provider} until then; `llmctl maintenance {provider} --end` ends it sooner",
    )
    return replace(change, until=until, notes=(*change.notes, *notes))


async def verify(live: Live, settings: "Settings", order: VerifyOrder, actor: Actor) -> Change:
    """Record the proof that a model's vectors are the same on both sides, or its removal.

    Raises:
        BadRequest: the model, or its names in the proof, are not the configuration's. Refused, StoreUnreachable.
    """
    provider = candidate(settings, None)
    model, here, there = pair(settings.policy(), order.model)
    if order.proof is not None and (order.proof.baseline, order.proof.candidate) != (here, there):
        raise BadRequest(f"the proof is of other names than {model} has now: {here} and {there}")
    wanted = Verify(provider=provider, model=model, proof=order.proof, reason=in_a_line(order.reason))
    embedding = live.current().effective(EMBEDDING)[1]
    warnings: tuple[str, ...] = ()
    if order.proof is None and embedding.share_ppm and not embedding.new_index:
        warnings = (f"the share of embedding is 100%: calls for {model} go back to {settings.baseline} now",)
    return await submit(live, wanted, actor, wait_s=order.wait_s, warnings=warnings)


def pair(policy: Policy, model: str) -> tuple[str, str, str]:
    """A model's logical name, and its own names on baseline and candidate.

    Raises:
        BadRequest: it is not known on both.
    """
    known = policy.catalogue.resolve(model)
    if known is None or policy.candidate is None:
        raise BadRequest(f"models: there is no {model[:80]!r}; choices: {', '.join(policy.catalogue.models) or 'none'}")
    here, there = known.on.get(policy.baseline), known.on.get(policy.candidate)
    if here is None or there is None:
        lacks = policy.baseline if here is None else policy.candidate
        raise BadRequest(f"{known.name} has no name on {lacks}: map it under `models`")
    return known.name, here.name, there.name


async def adopt(live: Live, order: AdoptOrder, actor: Actor) -> Adoption:
    """Say what adopting the regressed store would do; do it, if the order is sure.

    Raises:
        Refused, StoreUnreachable.
    """
    proposal = await live.propose_adoption(in_a_line(order.reason))
    if proposal is None:
        flags = live.current()
        now = _shares(flags, flags)
        others = [one.id for one in await live.store.instances() if not one.ephemeral and one.revision == 0]
        told = f"these follow other flags than the store's, so ask one of them (--gateway): {', '.join(sorted(others))}"
        return Adoption(
            adopted=False,
            revision=flags.revision,
            fault="",
            before=now,
            after=now,
            raised=(),
            latched=_latched(flags),
            notes=(told,) if others else (),
        )
    before, after, fault = live.current(), proposal.after, proposal.fault
    followers = Confirmation((), ())
    if order.sure:
        after = await live.adopt_store(proposal, actor)
        followers = await _confirm(live, after, waiting(order.wait_s))
    had, gets = _shares(before, before, after), _shares(after, before, after)
    return Adoption(
        adopted=order.sure,
        revision=after.revision,
        fault=fault,
        before=had,
        after=gets,
        raised=tuple(name for name in gets if gets[name] > had[name]),
        latched=_latched(after),
        confirmed=followers.confirmed,
        unconfirmed=followers.unconfirmed,
        notes=tuple(proposal.notes),
    )


async def submit(live: Live, wanted: Command, actor: Actor, *, wait_s: float, warnings: tuple[str, ...] = ()) -> Change:
    """The driver of every verb that is one command.

    Raises:
        Refused: nothing was changed. StoreUnreachable: nor here, unless the message names a revision.
    """
    limit_s = waiting(wait_s)
    before = live.current()
    after = await live.submit(wanted, actor)
    followers = await _confirm(live, after, limit_s)
    latch = after.effective(wanted.scope)[1].latch
    lost = dropped(before, after)
    return Change(
        command=wanted.name,
        revision=after.revision,
        scope=wanted.scope,
        provider=wanted.provider,
        share=format_share(after.share_ppm(wanted.scope)),
        share_before=format_share(before.share_ppm(wanted.scope)),
        confirmed=followers.confirmed,
        unconfirmed=followers.unconfirmed,
        dropped=lost,
        latched=latch.incident if latch else None,
        notes=tuple(_notes(wanted, after, lost)),
        warnings=(*warnings, *_of_followers(followers, limit_s)),
    )


async def _confirm(live: Live, after: Flags, limit_s: float) -> Confirmation:
    try:
        return await live.confirm(after.revision, limit_s)
    except StoreUnreachable as error:
        raise StoreUnreachable(
            f"revision {after.revision} is committed, but who follows it could not be seen: {error.message}"
        ) from error


def configured(settings: "Settings", asked: str) -> str:
    """A provider's name.

    Raises:
        BadRequest: there is none of that name.
    """
    if asked not in settings.providers:
        close = get_close_matches(asked, settings.providers, 1)
        guess = f"; did you mean {close[0]}?" if close else ""
        raise BadRequest(f"there is no provider {asked[:80]!r}{guess} (providers: {', '.join(settings.providers)})")
    return asked


def candidate(settings: "Settings", asked: str | None) -> str:
    """The provider that shares are set for.

    Raises:
        ConfigError: there is none. BadRequest: another one was asked for.
    """
    if settings.candidate is None:
        raise ConfigError(
            "no candidate is configured: name the provider you move to under `candidate`", http_status=409
        )
    if asked is None or asked == settings.candidate:
        return settings.candidate
    if asked == settings.baseline:
        raise BadRequest(
            f"{asked} is the baseline and gets what {settings.candidate} leaves: set the share of {settings.candidate}"
        )
    if asked in settings.providers:
        raise BadRequest(
            f"{asked} is not the candidate: shares are set for {settings.candidate} (`candidate` in the configuration)"
        )
    raise BadRequest(f"there is no provider {asked[:80]!r}: shares are set for {settings.candidate}, the candidate")


def dropped(before: Flags, after: Flags) -> dict[str, float]:
    """The components whose own share was taken away, and what it was."""
    return {
        name: format_share(scope.share_ppm)
        for name, scope in before.scopes.items()
        if scope.share_ppm is not None and after.scope(name).share_ppm is None
    }


def doubts(scope: str, settings: "Settings") -> Iterator[str]:
    """What makes a share of this scope look like a mistake, though it is none for certain."""
    pinned = settings.policy().pins.get(scope)
    if pinned is not None:
        yield (
            f"{scope} is pinned to {pinned} by the configuration: its share has no effect until "
            f"routing.components.{scope} is `share`"
        )
    known = settings.components()
    if scope != GLOBAL and scope not in known:
        close = get_close_matches(scope, known, 1)
        yield f"the configuration names no component {scope}" + (f"; did you mean {close[0]}?" if close else "")


def _notes(wanted: Command, after: Flags, lost: Mapping[str, float]) -> Iterator[str]:
    if lost:
        listed = ", ".join(f"{name} ({percent(round(share * 1_000_000))})" for name, share in lost.items())
        yield f"own shares dropped, these follow everything now: {listed}"
    if wanted.name == "shift" and wanted.scope == GLOBAL:
        for name, scope in after.scopes.items():
            if scope.latch is not None and name != GLOBAL:
                yield f"{name} is latched and stays at 0% until `llmctl rearm --component {name}`"
    if wanted.name in ("shift", "rollback") and wanted.scope == GLOBAL:
        yield from _of_vectors(after)


def _of_vectors(after: Flags) -> Iterator[str]:
    """What moves everything leaves embeddings where they are."""
    here, there = after.share_ppm(GLOBAL), after.share_ppm(EMBEDDING)
    if here and not there:
        yield "embedding stays with the baseline: vectors of two back ends never mix"
    if there and not here:
        yield "embedding stays with the candidate: it moves with `--component embedding` only"


def _of_followers(followers: Confirmation, limit_s: float) -> Iterator[str]:
    if followers.unconfirmed:
        yield f"not seen to follow within {limit_s:g} s: {', '.join(followers.unconfirmed)}"
    elif not followers.confirmed:
        yield "nothing follows this store: start `llmctl serve`, or check --config and --store"


def _shares(of: Flags, *named: Flags) -> dict[str, float]:
    names = dict.fromkeys(name for flags in named for name in flags.scopes)
    return {name: format_share(of.share_ppm(name)) for name in names}


def _latched(flags: Flags) -> tuple[str, ...]:
    return tuple(name for name, scope in flags.scopes.items() if scope.latch is not None)
