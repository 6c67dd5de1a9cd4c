"""What this process may believe, as pure functions: which flags to adopt, what a cut adds, who may do what.

Invariants, each held by a property test:
- revisions adopted here only grow, within one installation; another installation's flags are adopted only if it took
  this one over (`control.adoption`); anything else that a store says is a regression, and the last good flags stay in
  force;
- a cut is in force, over whatever is published, until a published snapshot has its scope latched or shows that a human
  re-armed it later than the cut;
- a raise is a human's or a plan's, a re-arm a human's alone.
"""

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from memos_llm.control.adoption import took_over
from memos_llm.core.commands import Actor, Command, Rollback
from memos_llm.core.errors import Refused
from memos_llm.core.flags import GLOBAL, Flags, Scope


class Verdict(Enum):
    """What a reading of the store means to a process that already holds flags."""

    EMPTY = "empty"  # nothing there, and we knew of nothing: a new store
    ADOPT = "adopt"
    SAME = "same"
    REGRESSED = "regressed"


class Judgement(Struct, frozen=True):
    """`why` says in words what is wrong with a regressed store; else it is empty."""

    verdict: Verdict
    why: str = ""


class Cut(Struct, frozen=True):
    """A rollback in force here since `at` (Unix seconds), whether or not the store knows it yet."""

    command: Command
    at: float
    actor: Actor


class View(Struct, frozen=True):
    """What one process holds: the last good published flags, its own cuts, and what is wrong with the store."""

    published: Flags
    cuts: tuple[Cut, ...] = ()
    fault: str = ""

    def in_force(self) -> Flags:
        """What requests see. Each cut adds one to the revision, as its publication will."""
        flags = self.published
        for cut in self.cuts:
            flags = cut.command.apply(flags, cut.at)
        return flags


def blank() -> Flags:
    """Flags of a process that has none from anywhere: everything stays with the baseline."""
    return Flags(installation="", revision=0, salt="", scopes={GLOBAL: Scope(share_ppm=0)})


def judge(known: Flags, read: Flags | None) -> Judgement:
    """What `read` means, given that `known` was in force before the reading began (None: the store is empty)."""
    if known.revision == 0:
        return Judgement(Verdict.EMPTY if read is None else Verdict.ADOPT)
    if read is None:
        return Judgement(Verdict.REGRESSED, f"it is empty, and revision {known.revision} is in force here")
    why = _regression(known, read)
    if why:
        return Judgement(Verdict.REGRESSED, why)
    return Judgement(Verdict.SAME if read == known else Verdict.ADOPT)


def _regression(known: Flags, read: Flags) -> str:
    if took_over(read, known):
        return ""
    if read.installation != known.installation or read.salt != known.salt:
        return "it is another installation's, or was created anew"
    if read.revision < known.revision:
        return f"it has gone back to revision {read.revision}, and revision {known.revision} is in force here"
    if read.revision == known.revision and read != known:
        return f"its revision {read.revision} is not the one in force here"
    return ""


def adopt(view: View, flags: Flags) -> View:
    """Take published flags over; the cuts that they settle are dropped, and the store is well again."""
    return View(flags, tuple(cut for cut in view.cuts if not settled(cut, flags)))


def with_cut(view: View, cut: Cut) -> View:
    """Nothing to add when the published flags are latched there. A second cut of a scope only makes the first later:
    its evidence is newer than a re-arm in between, which this process may not have seen yet.
    """
    if settled(cut, view.published):
        return view
    scope = cut.command.scope
    if any(other.command.scope == scope for other in view.cuts):
        later = tuple(replace(other, at=cut.at) if other.command.scope == scope else other for other in view.cuts)
        return replace(view, cuts=later)
    return replace(view, cuts=(*view.cuts, cut))


def settled(cut: Cut, flags: Flags) -> bool:
    """The published flags have the scope latched, or a human re-armed it later than the cut."""
    scope = flags.scope(cut.command.scope)
    return scope.latch is not None or scope.rearmed_at > cut.at


def owed(view: View) -> tuple[Cut, ...]:
    """What has to be published. A regressed store is also owed the latches of the last good flags."""
    if not view.fault:
        return view.cuts
    return (*view.cuts, *(_latch_as_cut(view.published, name) for name in _latched(view.published)))


def permit(before: Flags, after: Flags, actor: Actor) -> None:
    """Raises:
    Refused: a re-arm not by a human, or a raise by the guard or by an operator (a human whose key may only take
        shares back). There is no automatic re-promotion.
    """
    if actor.kind != "human" and set(_latched(before)) - set(_latched(after)):
        raise Refused(f"only a human re-arms a scope, and {actor.id} is a {actor.kind}")
    if actor.kind in ("guard", "operator") and raises(before, after):
        raise Refused(f"only a human or a plan raises a share, and {actor.id} is no more than a {actor.kind}")


def raises(before: Flags, after: Flags) -> bool:
    """Whether any component's share grew."""
    return any(after.share_ppm(name) > before.share_ppm(name) for name in {*before.scopes, *after.scopes})


def _latched(flags: Flags) -> Mapping[str, Scope]:
    return {name: scope for name, scope in flags.scopes.items() if scope.latch is not None}


def _latch_as_cut(flags: Flags, name: str) -> Cut:
    latch = flags.scopes[name].latch
    assert latch is not None
    rollback = Rollback(
        provider=latch.provider,
        incident=latch.incident,
        scope=name,
        reason="published again: the store had lost this latch",
        trigger="store-regressed",
        holddown_s=latch.holddown_until - latch.since,
    )
    return Cut(rollback, latch.since, Actor("store-regressed", "guard"))
