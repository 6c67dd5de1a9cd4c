"""Where a call goes and why: a pure function of (call, flags, policy, offers).

Precedence, highest first: authorised override, latch, missing capability, component pin, component share, global
share, baseline. What is passed through unread goes to the baseline. *Assign first, then divert*: a provider that
refuses at the moment, or is under maintenance, keeps its arm and is passed over.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import takewhile

from msgspec.structs import replace

from memos_llm.core.call import Call, Feature, Operation, Target
from memos_llm.core.catalogue import Model
from memos_llm.core.decision import Arm, Decision, Diversion, Offer, Reason
from memos_llm.core.errors import NotOffered
from memos_llm.core.flags import EMBEDDING, PPM, Flags, Scope
from memos_llm.core.policy import Policy
from memos_llm.router.split import in_share

Offers = Callable[[Target], Offer | None]
"""What a target's provider offers now; None for a provider that is switched off."""

MAINTENANCE = "maintenance"
NOBODY: frozenset[str] = frozenset()

Carries = Callable[[Call, Offer], bool]
"""Whether any codec carries the call to such an offer."""


Chains = dict[tuple[str, str, bool], tuple[Target, ...]]
"""The chains of one policy, by (assigned provider, model, candidate allowed), as far as they were worked out."""


def decide(
    call: Call,
    flags: Flags,
    policy: Policy,
    offers: Offers,
    carries: Carries,
    chains: Chains | None = None,
    *,
    drained: frozenset[str] = NOBODY,
) -> Decision:
    """The decision for one call. `chains` is remembered between calls under one policy; it changes no decision.
    `drained`: the providers under maintenance now (`Flags.maintained`); an override asks one all the same.

    Raises:
        NotOffered: no target in the chain can do what the call asks for.
    """
    model = policy.catalogue.resolve(call.model)
    operation = call.operation
    name, scope = flags.effective(EMBEDDING if operation is Operation.EMBEDDINGS else call.component)
    if flags.candidate != policy.candidate and flags.candidate:  # another's shares are none of ours
        scope = replace(scope, share_ppm=0, new_index=False)

    asked: dict[tuple[str, str], Offer | None] = {}  # each target is asked once

    def offered(target: Target) -> Offer | None:
        """What a target offers if it can carry this call, else None."""
        place = (target.provider, target.model)
        if place not in asked:
            offer = offers(target)
            asked[place] = offer if offer is not None and carries(call, offer) else None
        return asked[place]

    if operation is Operation.PASSTHROUGH:
        provider, reason = policy.baseline, Reason.PASSTHROUGH
        chain: Iterable[Target] = _passage(call, model, policy)
    elif operation is Operation.EMBEDDINGS:
        provider, reason = _assign_vectors(call, flags, policy, scope, model, lambda p: _missing(p, model, offered))
        chain = _vector_chain(provider, call, flags, policy, model)
    else:
        provider, reason = _assign(call, flags, policy, scope, lambda p: _missing(p, model, offered))
        chain = _chain(provider, call, model, policy, bool(scope.share_ppm), {} if chains is None else chains)
    able = [(target, offer) for target in chain if (offer := offered(target)) is not None]
    targets, diverted = _divert(_spared(able, drained - {call.override}) if drained else able)
    if not targets:
        raise NotOffered(f"no configured provider offers what this {call.wire.value} call for {call.model!r} needs")
    return Decision(
        arm=Arm.CANDIDATE if provider == policy.candidate else Arm.BASELINE,
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


# Embeddings: vectors of two back ends never mix, so that a model moves as a whole, and only once it is proven equal.


def _assign_vectors(
    call: Call,
    flags: Flags,
    policy: Policy,
    scope: Scope,
    model: Model | None,
    missing: Callable[[str], Reason | None],
) -> tuple[str, Reason]:
    proven = _proven(model, flags, policy)
    pinned = _vector_pin(call, policy, proven)
    moving = scope.share_ppm == PPM and pinned is None and scope.latch is None and call.override is None
    if not moving:
        pins = {call.component: pinned} if pinned else {}
        return _assign(call, flags, replace(policy, pins=pins), replace(scope, share_ppm=0), missing)
    assigned, reason = _assign(call, flags, replace(policy, pins={}), scope, missing)
    if proven:
        return assigned, reason
    if assigned == policy.candidate and not scope.new_index:
        return policy.baseline, Reason.EMBEDDINGS_UNVERIFIED
    loads = bool(call.needs & Feature.LOAD)  # an answer without a vector
    if policy.candidate and reason is Reason.NOT_OFFERED and scope.new_index and not loads:
        return policy.candidate, reason  # the index is the candidate's: nobody else's vector may stand in it
    return assigned, reason


def _vector_pin(call: Call, policy: Policy, proven: bool) -> str | None:
    """Where a pin puts the vectors. That of a stage which chats too would tear a model's vectors apart: between
    baseline and candidate it holds only where they are equal.
    """
    own = policy.pins.get(call.component)
    if own in (policy.baseline, policy.candidate) and not proven:
        own = None
    return own or policy.pins.get(EMBEDDING)


def _proven(model: Model | None, flags: Flags, policy: Policy) -> bool:
    """Whether the model's vectors are known to be the same on baseline and candidate."""
    if model is None or policy.candidate is None:
        return False
    here, there = model.on.get(policy.baseline), model.on.get(policy.candidate)
    return here is not None and there is not None and flags.proof(model.name, here.name, there.name) is not None


def _vector_chain(assigned: str, call: Call, flags: Flags, policy: Policy, model: Model | None) -> Iterable[Target]:
    """One target; where the vectors are proven equal the other side may answer for it, if it is a fallback."""
    if model is None:
        return (policy.unmapped(assigned, call.model),)
    pair = (policy.baseline, policy.candidate)
    equal = assigned in pair and _proven(model, flags, policy)
    others = (p for p in policy.fallback if equal and p in pair and (p == policy.baseline or p == assigned))
    return tuple(_distinct(model.target(provider) for provider in (assigned, *others)))


def _passage(call: Call, model: Model | None, policy: Policy) -> Iterable[Target]:
    """What is not read goes to the baseline only."""
    known = model.target(policy.baseline) if model else None
    return (known or policy.unmapped(policy.baseline, call.model),)


def _chain(
    assigned: str, call: Call, model: Model | None, policy: Policy, candidate_allowed: bool, chains: Chains
) -> Iterable[Target]:
    """The targets in order, none twice: the same model on every allowed provider, then the model's fallback models."""
    if model is None:
        return (policy.unmapped(assigned, call.model),)
    place = (assigned, model.name, candidate_allowed)
    known = chains.get(place)
    if known is None:
        others = (p for p in policy.fallback if p != assigned and (p != policy.candidate or candidate_allowed))
        providers = (assigned, *others)
        wanted = (each.target(provider) for each in _models(model, policy) for provider in providers)
        known = chains[place] = tuple(_distinct(wanted))
    return known


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


def _spared(chain: Sequence[tuple[Target, Offer]], drained: Collection[str]) -> Sequence[tuple[Target, Offer]]:
    """Who is under maintenance refuses, however well it is."""
    return [
        (target, replace(offer, refused=MAINTENANCE) if target.provider in drained else offer)
        for target, offer in chain
    ]


def _divert(chain: Sequence[tuple[Target, Offer]]) -> tuple[tuple[Target, ...], tuple[Diversion, ...]]:
    """Refusing targets go to the end of the chain: a last, best effort, never the first choice."""
    willing = tuple([target for target, offer in chain if offer.refused is None])
    if len(willing) == len(chain):
        return willing, ()
    refusing = [target for target, offer in chain if offer.refused is not None]
    passed_over = takewhile(lambda pair: pair[1].refused is not None, chain) if willing else ()
    diversions = tuple(Diversion(target.provider, offer.refused or "") for target, offer in passed_over)
    return (*willing, *refusing), diversions
