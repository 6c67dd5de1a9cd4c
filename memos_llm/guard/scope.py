"""Which scopes a failure of the candidate latches, and whether the baseline can take over. Pure.

As little as explains the failure is latched: components, if another component is known to be well; else everything.
Embeddings stand apart: their scope follows nobody, so that it is latched for its own failures only.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from memos_llm.core.flags import EMBEDDING, GLOBAL, Flags
from memos_llm.core.policy import Policy
from memos_llm.core.verdicts import Sum


class Use(NamedTuple):
    """What one component asked of one model on the candidate lately; `scope`: what would be latched for it."""

    scope: str
    component: str
    model: str
    n: int
    failures: int


def scope_of(component: str, spoke: str) -> str:
    """What is latched for a component's requests; `spoke`: the scope of their decisions."""
    return EMBEDDING if spoke == EMBEDDING else component


def has_share(scope: str, flags: Flags, policy: Policy) -> bool:
    """Whether the candidate gets any of a scope's requests: by its share, or by a pin, where no latch is."""
    if flags.candidate not in ("", policy.candidate):
        return False
    if scope == GLOBAL:
        others = {GLOBAL, *flags.scopes, *policy.pins} - {EMBEDDING}
        return any(flags.share_ppm(name) > 0 or _pinned(name, flags, policy) for name in others)
    return flags.share_ppm(scope) > 0 or _pinned(scope, flags, policy)


def _pinned(scope: str, flags: Flags, policy: Policy) -> bool:
    return policy.pins.get(scope) == policy.candidate is not None and flags.effective(scope)[1].latch is None


def to_latch(failing: Sum, uses: Sequence[Use], well: Collection[str]) -> tuple[str, ...]:
    """The scopes that a failing sum latches.

    Args:
        uses: what the candidate was asked lately, by all components; a model that nobody asked for latches nothing.
        well: the scopes that had their minimum of requests, and in which nothing fails.
    """
    guilty = _guilty(failing, uses, well)
    chat = [scope for scope in guilty if scope != EMBEDDING]
    vectors = (EMBEDDING,) if EMBEDDING in guilty else ()
    if not chat:
        return vectors
    others = {use.scope for use in uses} - {EMBEDDING, *chat}
    known = others if failing.model else others & set(well)
    return (*(chat if known else (GLOBAL,)), *vectors)


def _guilty(failing: Sum, uses: Sequence[Use], well: Collection[str]) -> list[str]:
    """Of a failing model: who used nothing else, failed or not, for what is diverted from it never fails."""
    mine = [use for use in uses if _is_of(use, failing)]
    mixed = {use.scope for use in uses if not _is_of(use, failing)}
    only = [use for use in mine if use.scope not in mixed] if failing.model and not failing.component else []
    mine = only or mine
    if not failing.component:
        mine = [use for use in mine if use.scope not in well] or mine  # it is explained without those that are well
    if not only:
        mine = [use for use in mine if use.failures] or mine
    return list(dict.fromkeys(use.scope for use in sorted(mine)))


def _is_of(use: Use, sum: Sum) -> bool:
    return sum.component in ("", use.component) and sum.model in ("", use.model)


def together(found: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Several sums' scopes as one rollback's: everything takes in every component, but not the embeddings."""
    scopes = dict.fromkeys(scope for scopes in found for scope in scopes)
    if GLOBAL in scopes:
        return (GLOBAL, *(scope for scope in scopes if scope == EMBEDDING))
    return tuple(scopes)


def models_in(scopes: Collection[str], uses: Iterable[Use], failing: Iterable[Sum]) -> tuple[str, ...]:
    """The models that the baseline would have to answer for."""
    used = [use.model for use in uses if use.scope in scopes or (GLOBAL in scopes and use.scope != EMBEDDING)]
    return tuple(dict.fromkeys(used or [sum.model for sum in failing if sum.model]))


def narrower(
    scopes: Collection[str], uses: Collection[Use], policy: Policy, down: Callable[[str], str]
) -> tuple[str, ...]:
    """The components among them that the baseline can take over, where it cannot take over all."""
    asked = dict.fromkeys(use.scope for use in sorted(uses))
    parts = [scope for scope in asked if scope in scopes or (GLOBAL in scopes and scope != EMBEDDING)]
    return tuple(scope for scope in parts if obstacle(models_in((scope,), uses, ()), policy, down) is None)


class Obstacle(NamedTuple):
    """Why nothing is rolled back: as in `RollbackHeld`."""

    why: str
    detail: str


def obstacle(models: Sequence[str], policy: Policy, down: Callable[[str], str]) -> Obstacle | None:
    """Why the baseline cannot take over, or None.

    Args:
        down: why none of the baseline's endpoints takes one of its own model names; empty when one does.
    """
    for name in models or policy.catalogue.models:
        model = policy.catalogue.models.get(name)
        target = model.target(policy.baseline) if model else None
        if model is None or (target is None and not models):
            continue
        if target is None:
            return Obstacle("baseline-unmapped", f"{policy.baseline} has no model for {name}")
        why = down(target.model)
        if why:
            return Obstacle("baseline-down", f"{policy.baseline} takes nothing for {name}: {why}")
    return None
