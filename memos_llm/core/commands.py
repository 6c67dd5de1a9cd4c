"""The only way flags change: a command is a pure function flags → flags, or `Refused`.

CLI, admin API, plan and guard all go through these. `audit` says what a change was, for the history; `incident` makes
the record of a rollback. Times are Unix seconds and are passed in.
"""

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from memos_llm.core.errors import Refused
from memos_llm.core.flags import COSINE_LIMIT, EMBEDDING, GLOBAL, PPM, Flags, Latch, Scope, Verification


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
    """The record of a rollback."""

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


def _next(flags: Flags, scopes: Mapping[str, Scope]) -> Flags:
    return replace(flags, revision=flags.revision + 1, scopes=scopes)


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
        scopes = dict(flags.scopes)
        scopes |= {name: _drop_share(scopes[name]) for name in self.dropped(flags)}
        current = flags.scope(self.scope)
        before = flags.effective(self.scope)[1].share_ppm
        grown = current.epoch + (before != self.share_ppm)
        anew = self.new_index and self.share_ppm > 0
        scopes[self.scope] = replace(current, share_ppm=self.share_ppm, epoch=grown, new_index=anew)
        after = _next(flags, scopes)
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
            if flags.scope(name).latch is not None:
                raise Refused(
                    f"{name} is latched after a rollback: no share above 0 until `llmctl rearm"
                    f"{'' if name == GLOBAL else f' --component {name}'}`"
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
        return replace(flags, revision=flags.revision + 1, verified=verified)


class Rollback(Struct, frozen=True, kw_only=True):
    """Share to 0 in a scope, its epoch grown, latched. Never refused and never harmful when repeated.

    Of `*` it drops every component's own share (embeddings stay where they are: vectors never mix).
    """

    provider: str
    incident: str
    scope: str = GLOBAL
    reason: str = ""
    trigger: str = "manual"
    holddown_s: float = 0.0
    name: str = "rollback"

    def apply(self, flags: Flags, now: float) -> Flags:
        scopes = dict(flags.scopes)
        if self.scope == GLOBAL:
            scopes = {n: s if n in (GLOBAL, EMBEDDING) else _drop_share(s) for n, s in scopes.items()}
        scope = flags.scope(self.scope)
        latch = scope.latch or Latch(
            provider=self.provider, since=now, incident=self.incident, holddown_until=now + self.holddown_s
        )
        scopes[self.scope] = replace(scope, share_ppm=0, epoch=scope.epoch + 1, latch=latch, new_index=False)
        return _next(flags, scopes)


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
            raise Refused(f"the hold-down of {self.scope} has {left_s:.0f} s left; `--force --reason` overrides it")
        lifted = replace(scope, epoch=scope.epoch + 1, latch=None, share_ppm=0, rearmed_at=now)
        return _next(flags, {**flags.scopes, self.scope: lifted})


def _drop_share(scope: Scope) -> Scope:
    return replace(scope, share_ppm=None, epoch=scope.epoch + (scope.share_ppm is not None))


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
        reason=command.reason,
    )


def incident(command: Command, before: Flags, after: Flags, actor: Actor, now: float) -> Incident | None:
    """The record that belongs to a rollback that latched; None for anything else."""
    if not isinstance(command, Rollback) or before.scope(command.scope).latch is not None:
        return None
    return Incident(
        id=command.incident,
        at=now,
        provider=command.provider,
        scope=command.scope,
        trigger=command.trigger,
        reason=command.reason,
        actor=actor.id,
        revision=after.revision,
        epoch=after.scope(command.scope).epoch,
        shares_before=shares(before),
        shares_after=shares(after),
    )


def shares(flags: Flags) -> dict[str, float]:
    """Every scope's own share, 0…1; scopes that follow `*` are left out."""
    return {name: s.share_ppm / PPM for name, s in flags.scopes.items() if s.share_ppm is not None}
