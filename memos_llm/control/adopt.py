"""What this process may believe, as pure functions: which flags to adopt, what a cut adds, who may do what.

Invariants, each held by a property test:
- revisions adopted here only grow, within one installation; another installation's flags are adopted only if it took
  this one over (`control.adoption`); anything else that a store says is a regression, and the last good flags stay in
  force;
- a cut is in force, over whatever is published, until a published snapshot has its scopes latched, or shows that a
  human re-armed them later than the cut, or, if it judged one epoch only, that another began after it; one that an
  earlier process left behind and nobody confirmed, no longer than until the store is there;
- a raise is a human's or a plan's, a re-arm a human's alone.
"""

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from memos_llm.control.adoption import took_over
from memos_llm.core.commands import Actor, Rollback
from memos_llm.core.errors import Refused
from memos_llm.core.flags import GLOBAL, Flags, Scope
from memos_llm.core.verdicts import Evidence, Trigger

SIMULTANEOUS_S = 2.0  # an epoch that began no later than this after a cut does not supersede it
MOST_NOTES = 32


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
    """A rollback in force here since `at` (Unix seconds), whether or not the store knows it yet. `stale`: it is left
    from a process that ended long ago, and says nothing of now unless the store has it.
    """

    command: Rollback
    at: float
    actor: Actor
    stale: bool = False


def decided(command: Rollback, known: Flags, actor: Actor, now: float) -> Cut:
    """A cut of this moment: later than every re-arm that is known here, whatever the clock said of that one."""
    return Cut(command, max(now, *(known.scope(name).rearmed_at for name in command.scopes)), actor)


class Fate(Enum):
    """What published flags mean to a cut of one scope."""

    OPEN = "open"  # it is in force here and has to be published
    LATCHED = "latched"
    REARMED = "rearmed"  # by a human, later than the cut
    OUTDATED = "outdated"  # it judged an epoch, and a later one began after it
    STALE = "stale"  # nobody has confirmed it, and its hold-down would be over


class Note(Struct, frozen=True):
    """Evidence of a cut that somebody else's act has settled, to be added to that act's incident; `incident` is empty
    where only its scope is known: then it is the scope's newest.
    """

    scope: str
    incident: str
    evidence: Evidence


class View(Struct, frozen=True):
    """What one process holds: the last good published flags, its own cuts, what is wrong with the store, and what has
    yet to be noted.
    """

    published: Flags
    cuts: tuple[Cut, ...] = ()
    fault: str = ""
    notes: tuple[Note, ...] = ()

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
    left = tuple(rest for cut in view.cuts if (rest := remaining(cut, flags)))
    notes = (*view.notes, *(note for cut in view.cuts for note in _notes(cut, flags)))
    return View(flags, left, notes=notes[-MOST_NOTES:])


def with_cut(view: View, cut: Cut) -> View:
    """Nothing to add but a note when the published flags have it settled. A second cut of the same scopes only makes
    the first later: its evidence is newer than a re-arm in between, which this process may not have seen yet.
    """
    left = remaining(cut, view.published)
    if left is None:
        notes = _notes(cut, view.published)
        return replace(view, notes=(*view.notes, *notes)[-MOST_NOTES:]) if notes else view
    first = next((other for other in view.cuts if set(left.command.scopes) <= set(other.command.scopes)), None)
    if first is None:
        return replace(view, cuts=(*view.cuts, left))
    later = Cut(_stronger(first.command, left.command), left.at, left.actor)
    return replace(view, cuts=tuple(later if other is first else other for other in view.cuts))


def _stronger(first: Rollback, second: Rollback) -> Rollback:
    """Of two for the same scopes the one that holds longer, under the first's id (it may be published already)."""
    if not first.soft:
        return first
    if second.soft:
        return replace(first, epochs=second.epochs)
    return replace(second, incident=first.incident, scope=first.scope, also=first.also)


def fate(cut: Cut, scope: str, flags: Flags) -> Fate:
    """An epoch of another clock is taken for a later one only if it is not the epoch that was judged."""
    found = flags.scope(scope)
    if found.latch is not None:
        return Fate.LATCHED
    if found.rearmed_at > cut.at:
        return Fate.REARMED
    if cut.stale:
        return Fate.STALE
    speaker, now = flags.effective(scope)
    begun = now.latch is None and now.since > cut.at + SIMULTANEOUS_S
    if cut.command.soft and begun and cut.command.epochs.get(speaker) != now.epoch:
        return Fate.OUTDATED
    return Fate.OPEN


def remaining(cut: Cut, flags: Flags) -> Cut | None:
    """What of a cut these flags leave to be done; None when it is settled. What is latched already stays in it: the
    incident of that latch may be the one of the whole (`Rollback.joins`).
    """
    fates = {scope: fate(cut, scope, flags) for scope in cut.command.scopes}
    todo = [scope for scope in fates if fates[scope] is Fate.OPEN]
    if not todo:
        return None
    todo += [scope for scope in fates if fates[scope] is Fate.LATCHED]
    if len(todo) == len(fates):
        return cut
    return replace(cut, command=replace(cut.command, scope=todo[0], also=tuple(todo[1:])))


def published(cut: Cut, now: float) -> Rollback:
    """What is committed of a cut: its evidence says how long that took."""
    evidence = cut.command.evidence
    if evidence is None:
        return cut.command
    return replace(cut.command, evidence=replace(evidence, propagation_s=max(0.0, now - cut.at)))


def settled(cut: Cut, flags: Flags) -> bool:
    """The published flags leave nothing of it to be done."""
    return remaining(cut, flags) is None


def given_up(view: View, flags: Flags) -> tuple[tuple[Cut, str], ...]:
    """The cuts, and the scopes, that these flags withdraw: what they hold now will be judged by itself."""
    late = (Fate.OUTDATED, Fate.STALE)
    return tuple((cut, scope) for cut in view.cuts for scope in cut.command.scopes if fate(cut, scope, flags) in late)


def _notes(cut: Cut, flags: Flags) -> tuple[Note, ...]:
    """Whose incidents its evidence belongs to, once it is settled (of a scope that was re-armed: at once)."""
    evidence = cut.command.evidence
    if evidence is None:
        return ()
    over = settled(cut, flags)
    found: dict[str, Note] = {}
    for scope in cut.command.scopes:
        latch, became = flags.scope(scope).latch, fate(cut, scope, flags)
        if became is Fate.REARMED:
            found[f"of {scope}"] = Note(scope, "", evidence)
        elif over and latch is not None and latch.incident != cut.command.incident:
            found.setdefault(latch.incident, Note(scope, latch.incident, _widened(evidence, scope, flags)))
    return tuple(found.values())


def _widened(evidence: Evidence, scope: str, flags: Flags) -> Evidence:
    """Says so where the latch of a scope carries the incident of an earlier, narrower one."""
    latch = flags.scope(scope).latch
    others = [other.latch for name, other in flags.scopes.items() if name not in (scope, GLOBAL) and other.latch]
    if latch is None or not any(one.incident == latch.incident and one.since < latch.since for one in others):
        return evidence
    return replace(evidence, note=f"widened to {scope}")


def owed(view: View) -> tuple[Cut, ...]:
    """What has to be published. A regressed store is also owed the latches of the last good flags, which come first:
    a later and wider cut joins the incident of an earlier one.
    """
    if not view.fault:
        return view.cuts
    return (*(_latch_as_cut(view.published, name) for name in _latched(view.published)), *view.cuts)


def due(view: View, cut: Cut) -> Cut | None:
    """A cut as it is owed now; None when it no longer is, e.g. because somebody else's latch has settled it."""
    scopes = set(cut.command.scopes)
    same = (one for one in owed(view) if one.command.incident == cut.command.incident)
    return next((one for one in same if scopes & set(one.command.scopes)), None)


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
        trigger=Trigger.STORE_REGRESSED,
        holddown_s=latch.holddown_until - latch.since,
    )
    return Cut(rollback, latch.since, Actor("store-regressed", "guard"))
