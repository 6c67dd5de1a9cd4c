"""Where a call goes and why: a pure function of (call, flags, policy, offers).

Precedence, highest first: authorised override, latch, missing capability, component pin, component share, global
share, baseline. *Assign first, then divert*: a provider that refuses at the moment keeps its arm and is passed over.
"""

from collections.abc import Callable, Iterable, Iterator

from memos_llm.core.call import Call, Target
from memos_llm.core.catalogue import Model
from memos_llm.core.decision import Arm, Decision, Diversion, Offer, Reason
from memos_llm.core.errors import NotOffered
from memos_llm.core.flags import Flags, Scope
from memos_llm.core.policy import Policy
from memos_llm.router.split import in_share

Offers = Callable[[Target], Offer | None]
"""What a target's provider offers now; None for a provider that is switched off."""

Carries = Callable[[Call, Offer], bool]
"""Whether any codec carries the call to such an offer."""


def decide(call: Call, flags: Flags, policy: Policy, offers: Offers, carries: Carries) -> Decision:
    """The decision for one call.

    Raises:
        NotOffered: no target in the chain can do what the call asks for.
    """
    model = policy.catalogue.resolve(call.model)
    name, scope = flags.effective(call.component)

    asked: dict[tuple[str, str], Offer | None] = {}  # each target is asked once

    def offered(target: Target) -> Offer | None:
        """What a target offers if it can carry this call, else None."""
        place = (target.provider, target.model)
        if place not in asked:
            offer = offers(target)
            asked[place] = offer if offer is not None and carries(call, offer) else None
        return asked[place]

    provider, reason = _assign(call, flags, policy, scope, lambda p: _missing(p, model, offered))
    arm = Arm.CANDIDATE if provider == policy.candidate else Arm.BASELINE
    chain = tuple(
        target
        for target in _chain(provider, call, model, policy, candidate_allowed=bool(scope.share_ppm))
        if offered(target) is not None
    )
    if not chain:
        raise NotOffered(f"no configured provider offers what this {call.wire.value} call for {call.model!r} needs")
    targets, diverted = _divert(chain, offered)
    return Decision(
        arm=arm,
        targets=targets,
        reason=Reason.DIVERTED if diverted else reason,
        scope=name,
        epoch=scope.epoch,
        revision=flags.revision,
        diverted=diverted,
    )


def _assign(
    call: Call, flags: Flags, policy: Policy, scope: Scope, missing: Callable[[str], Reason | None]
) -> tuple[str, Reason]:
    """The assigned provider and why, before any of them is asked how it feels."""
    if call.override is not None:
        return call.override, Reason.OVERRIDE
    if scope.latch is not None:
        return policy.baseline, Reason.LATCHED
    wanted = policy.pins.get(call.component) or policy.candidate or policy.baseline
    lacking = missing(policy.candidate if wanted == policy.baseline and policy.candidate else wanted)
    if lacking is not None:
        return policy.baseline, lacking
    if call.component in policy.pins:
        return wanted, Reason.PIN
    if policy.candidate and in_share(flags.salt, call.key, scope.share_ppm or 0):
        return policy.candidate, Reason.SPLIT
    return policy.baseline, Reason.SPLIT


def _missing(provider: str, model: Model | None, offered: Offers) -> Reason | None:
    target = model.target(provider) if model else None
    if target is None:
        return Reason.UNMAPPED_MODEL
    return Reason.NOT_OFFERED if offered(target) is None else None


def _chain(
    assigned: str, call: Call, model: Model | None, policy: Policy, *, candidate_allowed: bool
) -> Iterator[Target]:
    """The targets in order, none twice: the same model on every allowed provider, then the model's fallback models."""
    others = (p for p in policy.fallback if p != assigned and (p != policy.candidate or candidate_allowed))
    providers = (assigned, *others)
    if model is None:
        yield policy.unmapped(assigned, call.model)
        return
    yield from _distinct(candidate.target(provider) for candidate in _models(model, policy) for provider in providers)


def _models(model: Model, policy: Policy) -> Iterator[Model]:
    yield model
    for name in model.fallbacks:
        fallback = policy.catalogue.resolve(name)
        if fallback is not None:
            yield fallback


def _distinct(targets: Iterable[Target | None]) -> Iterator[Target]:
    seen = set()
    for target in targets:
        if target is not None and (target.provider, target.model) not in seen:
            seen.add((target.provider, target.model))
            yield target


def _divert(chain: tuple[Target, ...], offers: Offers) -> tuple[tuple[Target, ...], tuple[Diversion, ...]]:
    """Refusing targets go to the end of the chain: a last, best effort, never the first choice."""
    willing, refusing, diverted = [], [], []
    for target in chain:
        offer = offers(target)
        if offer is None or offer.refused is None:
            willing.append(target)
            continue
        refusing.append(target)
        if not willing:
            diverted.append(Diversion(target.provider, offer.refused))
    if not willing or not diverted:
        return (*willing, *refusing), ()
    return (*willing, *refusing), tuple(diverted)
