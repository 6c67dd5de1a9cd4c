"""The only way flags change: a command is a pure function flags → flags, or `Refused`.

CLI, admin API, plan and guard all go through these. `audit` says what a change was, for the history; `incident` makes
the record of a rollback. Times are Unix seconds and are passed in.
"""

from collections.abc import Mapping
from math import ceil
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from memos_llm.core.errors import Refused
from memos_llm.core.flags import COSINE_LIMIT, EMBEDDING, GLOBAL, PPM, Flags, Latch, Scope, Verification
from memos_llm.core.verdicts import HARD, Evidence, Trigger

DAY_S = 86_400.0
HOLDDOWN_S, LONGEST_HOLDDOWN_S = 1_800.0, DAY_S  # after an automatic rollback; doubled by each of the last week
REMEMBERED_S, REMEMBERED = 7 * DAY_S, 8  # of a scope's automatic rollbacks: more would not lengthen its hold-down
JOINED_S = 600.0  # an automatic rollback this soon after a narrower one, or the widest, belongs to its incident
TOGETHER_S = 60.0  # and after any other: one fault is found in one scope after the other
LONGEST_MAINTENANCE_S = DAY_S


class Actor(Struct, frozen=True):
    """Who asks: `id` is a key id, a user name or a process; `kind` is human, plan or guard."""

    id: str
    kind: str = "human"


class Audit(Struct, frozen=True, kw_only=True):
    """One line of the history: who changed what, when, why."""

    revision: int
    at: float
    actor: str
    command: str
    scope: str
    provider: str
    share_before: float
    share_after: float
    reason: str = ""


class Incident(Struct, frozen=True, kw_only=True):
    """The record of a rollback.

    Attributes:
        scope: latched by it; `also`: further ones. epoch: of `scope`, after.
        rule, limit, n, k, estimate, low, high: of the trigger, as `Evaluation` has them.
        evidence: of the process that was first, then of others. plan, step: that was under way.
    """

    id: str
    at: float
    provider: str
    scope: str
    trigger: str
    reason: str
    actor: str
    revision: int
    epoch: int
    shares_before: Mapping[str, float]
    shares_after: Mapping[str, float]
    also: tuple[str, ...] = ()
    rule: str = ""
    limit: float | None = None
    n: int | None = None
    k: int | None = None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    holddown_until: float = 0.0
    plan: str = ""
    step: int | None = None
    evidence: tuple[Evidence, ...] = ()


class Command(Protocol):
    """A change of the flags. Pure: the same flags and time give the same result."""

    @property
    def name(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def reason(self) -> str: ...

    def apply(self, flags: Flags, now: float) -> Flags:
        """The next flags, `revision` one higher.

        Raises:
            Refused: naming what stands in the way and what would lift it.
        """
        ...


def _next(flags: Flags, now: float, scopes: Mapping[str, Scope] | None = None) -> Flags:
    """The next document; what is over (a maintenance) is forgotten with any change."""
    maintenance = {name: until for name, until in flags.maintenance.items() if until > now}
    return replace(flags, revision=flags.revision + 1, scopes=scopes or flags.scopes, maintenance=maintenance)


class Shift(Struct, frozen=True, kw_only=True):
    """Set the candidate's share of a scope.

    Of `*`: every component that follows the split gets it, their own shares are dropped (latched scopes and embeddings
    excepted). Of a component: its own share until the next shift of `*`. Of embeddings: 0 or 1, and 1 only once a
    model's vectors were verified equal, or into a `new_index`.
    """

    provider: str
    share_ppm: int
    scope: str = GLOBAL
    new_index: bool = False
    reason: str = ""
    name: str = "shift"

    def apply(self, flags: Flags, now: float) -> Flags:
        self._check(flags)
        scopes, dropped = dict(flags.scopes), self.dropped(flags)
        scopes |= {name: _drop_share(scopes[name], now) for name in dropped}
        current = flags.scope(self.scope)
        speaker, before = flags.effective(self.scope)
        if dropped or speaker != self.scope or before.share_ppm != self.share_ppm:
            current = _anew(current, now)  # what follows `*` again may have failed in the old epoch, before its latch
        anew = self.new_index and self.share_ppm > 0
        scopes[self.scope] = replace(current, share_ppm=self.share_ppm, new_index=anew)
        after = _next(flags, now, scopes)
        return self._take(after) if self.share_ppm else after

    def _take(self, after: Flags) -> Flags:
        """From now on the shares are this provider's, all of them.

        Raises:
            Refused: one that stays as it was is another's.
        """
        others = [name for name in after.given() if name != self.scope]
        if others and after.candidate not in ("", self.provider):
            raise Refused(
                f"the share of {', '.join(others)} is {after.candidate}'s: "
                f"take it back before {self.provider} is given any"
            )
        return replace(after, candidate=self.provider)

    def dropped(self, flags: Flags) -> tuple[str, ...]:
        """The components whose own share this shift of `*` takes away."""
        if self.scope != GLOBAL:
            return ()
        return tuple(
            name
            for name, scope in flags.scopes.items()
            if name not in (GLOBAL, EMBEDDING) and scope.latch is None and scope.share_ppm is not None
        )

    def _check(self, flags: Flags) -> None:
        if not 0 <= self.share_ppm <= PPM:
            raise Refused(f"a share of {self.share_ppm / PPM:g} is outside 0 to 1")
        if self.share_ppm == 0:
            return
        if self.scope == EMBEDDING:
            self._check_embedding(flags)
        for name in dict.fromkeys((self.scope, GLOBAL)):
            latch = flags.scope(name).latch
            if latch is not None:
                raise Refused(
                    f"{name} is latched after a rollback (`llmctl incidents {latch.incident}` says why): no share "
                    f"above 0 until `llmctl rearm{'' if name == GLOBAL else f' --component {name}'}`"
                )

    def _check_embedding(self, flags: Flags) -> None:
        if self.share_ppm != PPM:
            raise Refused("the share of embedding is 0 or 1: vectors of two back ends never mix in one index")
        if not flags.verified and not self.new_index:
            raise Refused(
                "embedding vectors of two back ends never mix: no model is verified yet; run `llmctl embeddings verify "
                "MODEL --file TEXTS`, or give --new-index if the index is built anew"
            )


class Verify(Struct, frozen=True, kw_only=True):
    """Record that a model's vectors are the same on both sides, or, without a proof, that they are not (any more)."""

    provider: str
    model: str
    proof: Verification | None
    scope: str = EMBEDDING
    reason: str = ""
    name: str = "verify"

    def apply(self, flags: Flags, now: float) -> Flags:
        if self.proof is not None and self.proof.cosine_min < COSINE_LIMIT:
            raise Refused(f"{self.model}: a least cosine of {self.proof.cosine_min:g} is under {COSINE_LIMIT}")
        verified = {name: proof for name, proof in flags.verified.items() if name != self.model}
        if self.proof is not None:
            verified[self.model] = self.proof
        return replace(_next(flags, now), verified=verified)


class Rollback(Struct, frozen=True, kw_only=True):
    """Share to 0 in `scope` and `also`, their epochs grown, latched. Never refused and never harmful when repeated.

    Of `*` it drops every component's own share (embeddings stay where they are: vectors never mix). What is latched
    already keeps its latch, its incident and its hold-down.

    Attributes:
        incident: the id of the record, if this is what makes one.
        automatic: has a hold-down: 30 minutes, doubled by each automatic rollback of that scope within 7 days.
        epochs: of a soft trigger: the scope that spoke for what was judged → its epoch then.
        holddown_s: instead of the one that follows from `automatic`; of a latch that is published again.
    """

    provider: str
    incident: str
    scope: str = GLOBAL
    also: tuple[str, ...] = ()
    reason: str = ""
    trigger: str = Trigger.MANUAL
    automatic: bool = False
    epochs: Mapping[str, int] = {}
    evidence: Evidence | None = None
    holddown_s: float | None = None
    name: str = "rollback"

    @property
    def scopes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.scope, *self.also)))

    @property
    def soft(self) -> bool:
        """Whether it judged one epoch, and says nothing of a later one."""
        return self.automatic and self.trigger not in HARD

    def apply(self, flags: Flags, now: float) -> Flags:
        scopes = dict(flags.scopes)
        if GLOBAL in self.scopes:
            scopes = {n: s if n in (GLOBAL, EMBEDDING) else _drop_share(s, now) for n, s in scopes.items()}
        told_in = self.joins(flags, now) or self.incident
        for name in self.scopes:
            if flags.scope(name).latch is None:
                scopes[name] = self._latched(flags.scope(name), told_in, now)
        return _next(flags, now, scopes)

    def joins(self, flags: Flags, now: float) -> str:
        """The incident of an automatic rollback just before (of a narrower one, or the widest: also a while before),
        which this one belongs to; empty for none.
        """
        if not self.automatic:
            return ""
        young = (
            latch
            for name, scope in flags.scopes.items()
            if (latch := scope.latch) and latch.automatic and latch.provider == self.provider
            if now - latch.since < (JOINED_S if self._covers(name) else TOGETHER_S)
        )
        newest = max(young, key=lambda latch: (latch.since, latch.incident), default=None)
        return newest.incident if newest else ""

    def opens(self, flags: Flags, now: float) -> tuple[str, ...]:
        """The scopes that a record made by it is about; empty when it makes none, because all is latched already or
        the record is there.
        """
        latches = [scope.latch.incident for scope in flags.scopes.values() if scope.latch]
        if self.incident in latches or self.joins(flags, now):
            return ()
        return tuple(name for name in self.scopes if flags.scope(name).latch is None)

    def _covers(self, name: str) -> bool:
        """Whether a latch of that scope is about a part of this, or about all and so about this too."""
        wide = name == GLOBAL and self.scopes != (EMBEDDING,)
        return name in self.scopes or wide or (GLOBAL in self.scopes and name != EMBEDDING)

    def _latched(self, scope: Scope, told_in: str, now: float) -> Scope:
        before = tuple(at for at in scope.rolled_back if now - at < REMEMBERED_S)
        holddown_s = min(LONGEST_HOLDDOWN_S, HOLDDOWN_S * 2 ** len(before)) if self.automatic else 0.0
        if self.holddown_s is not None:
            holddown_s = self.holddown_s
        return replace(
            _anew(scope, now),
            share_ppm=0,
            latch=Latch(provider=self.provider, since=now, incident=told_in, holddown_until=now + holddown_s),
            new_index=False,
            rolled_back=(*before, now)[-REMEMBERED:] if self.automatic else before,
        )


class Rearm(Struct, frozen=True, kw_only=True):
    """Lift a latch. The share stays 0: a re-arm restores nothing. The provider's health is the caller's to check."""

    provider: str
    scope: str = GLOBAL
    force: bool = False
    reason: str = ""
    name: str = "rearm"

    def apply(self, flags: Flags, now: float) -> Flags:
        scope = flags.scope(self.scope)
        if scope.latch is None:
            latched = [name for name, s in flags.scopes.items() if s.latch is not None]
            raise Refused(f"{self.scope} is not latched; latched: {', '.join(latched) or 'nothing'}")
        if self.force and not self.reason:
            raise Refused("--force needs --reason: the history must say why the hold-down was cut short")
        left_s = scope.latch.holddown_until - now
        if left_s > 0 and not self.force:
            raise Refused(f"the hold-down of {self.scope} has {_lasting(left_s)} left; `--force --reason` overrides it")
        lifted = replace(_anew(scope, now), latch=None, share_ppm=0, rearmed_at=now)
        return _next(flags, now, {**flags.scopes, self.scope: lifted})


class Maintain(Struct, frozen=True, kw_only=True):
    """Drain a provider until a time (Unix seconds), shares and latches untouched; None ends that now.

    Each begins new epochs of what the candidate is judged by: what was in flight when it was restarted says nothing of
    it afterwards.
    """

    provider: str
    until: float | None
    scope: str = GLOBAL
    reason: str = ""
    name: str = "maintain"

    def apply(self, flags: Flags, now: float) -> Flags:
        self._check(flags, now)
        judged = dict.fromkeys((*flags.scopes, EMBEDDING)) if flags.candidate in ("", self.provider) else ()
        after = _next(flags, now, {**flags.scopes, **{name: _anew(flags.scope(name), now) for name in judged}})
        others = {name: until for name, until in after.maintenance.items() if name != self.provider}
        given = {} if self.until is None else {self.provider: self.until}
        return replace(after, maintenance={**others, **given})

    def _check(self, flags: Flags, now: float) -> None:
        if self.until is None:
            if self.provider not in flags.maintained(now):
                raise Refused(f"{self.provider} is not under maintenance: there is none to end")
        elif self.until <= now:
            raise Refused("the maintenance would be over before it begins: give a time to come")
        elif self.until - now > LONGEST_MAINTENANCE_S + 1:  # of clocks that differ
            raise Refused("a maintenance lasts 24 hours at most: to take a provider out for longer, shift it to 0")


def _anew(scope: Scope, now: float) -> Scope:
    """In a new epoch: what was counted before says nothing of it."""
    return replace(scope, epoch=scope.epoch + 1, since=now)


def _drop_share(scope: Scope, now: float) -> Scope:
    return scope if scope.share_ppm is None else replace(_anew(scope, now), share_ppm=None)


def audit(command: Command, before: Flags, after: Flags, actor: Actor, now: float) -> Audit:
    """The line of the history that belongs to a change."""
    return Audit(
        revision=after.revision,
        at=now,
        actor=actor.id,
        command=command.name,
        scope=command.scope,
        provider=command.provider,
        share_before=before.share_ppm(command.scope) / PPM,
        share_after=after.share_ppm(command.scope) / PPM,
        reason=_why(command),
    )


def _why(command: Command) -> str:
    if isinstance(command, Rollback) and not command.reason and command.evidence is not None:
        return command.evidence.rule
    return command.reason


def incident(command: Command, before: Flags, after: Flags, actor: Actor, now: float) -> Incident | None:
    """The record that belongs to a rollback that latched; None for anything else, and for a rollback whose latches
    belong to an incident that is there (`Rollback.joins`).
    """
    opened = command.opens(before, now) if isinstance(command, Rollback) else ()
    if not isinstance(command, Rollback) or not opened:
        return None
    latch, evidence = after.scope(opened[0]).latch, command.evidence
    return Incident(
        id=command.incident,
        at=now,
        provider=command.provider,
        scope=opened[0],
        also=opened[1:],
        trigger=command.trigger,
        reason=_why(command),
        actor=actor.id,
        revision=after.revision,
        epoch=after.scope(opened[0]).epoch,
        shares_before=shares(before),
        shares_after=shares(after),
        holddown_until=latch.holddown_until if latch else 0.0,
        rule=evidence.rule if evidence else "",
        limit=evidence.limit if evidence else None,
        n=evidence.n if evidence else None,
        k=evidence.k if evidence else None,
        estimate=evidence.estimate if evidence else None,
        low=evidence.low if evidence else None,
        high=evidence.high if evidence else None,
        evidence=(evidence,) if evidence else (),
    )


def shares(flags: Flags) -> dict[str, float]:
    """Every scope's own share, 0…1; scopes that follow `*` are left out."""
    return {name: s.share_ppm / PPM for name, s in flags.scopes.items() if s.share_ppm is not None}


def _lasting(seconds: float) -> str:
    """`1686` → `29 min`: rounded up, for it is not over before."""
    minutes = max(1, ceil(seconds / 60))
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
