"""The decisions of the control driver, without a driver."""

import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from memos_llm.control.adopt import Cut, Fate, Verdict, View, adopt, blank, judge, owed, permit, settled, with_cut
from memos_llm.control.adopt import fate as fate_of
from memos_llm.core.commands import Actor, Command, Rearm, Rollback, Shift
from memos_llm.core.errors import Refused
from memos_llm.core.flags import GLOBAL, Flags, fresh
from memos_llm.core.verdicts import HARD, Evidence, Trigger

GUARD, PLAN, HUMAN = Actor("g", "guard"), Actor("p", "plan"), Actor("h", "human")
OPERATOR = Actor("o", "operator")  # a human whose key may only take shares back
OLD = Shift(provider="vllm", share_ppm=300_000).apply(fresh("i", "s"), 0.0)  # revision 2
NEW = Shift(provider="vllm", share_ppm=400_000).apply(OLD, 0.0)


def cut(scope: str = GLOBAL, at: float = 10.0) -> Cut:
    return Cut(Rollback(provider="vllm", incident=f"i-{scope}", scope=scope, holddown_s=60.0), at, GUARD)


@pytest.mark.parametrize(
    ("known", "read", "verdict", "why"),
    [
        (blank(), None, Verdict.EMPTY, ""),
        (blank(), OLD, Verdict.ADOPT, ""),
        (OLD, OLD, Verdict.SAME, ""),
        (OLD, NEW, Verdict.ADOPT, ""),
        (OLD, None, Verdict.REGRESSED, "empty"),
        (NEW, OLD, Verdict.REGRESSED, "gone back to revision 2"),
        (OLD, replace(NEW, installation="other"), Verdict.REGRESSED, "another installation"),
        (OLD, replace(NEW, salt="other"), Verdict.REGRESSED, "another installation"),
        (NEW, replace(OLD, revision=3), Verdict.REGRESSED, "revision 3 is not the one"),
    ],
)
def test_what_a_reading_means(known: Flags, read: Flags | None, verdict: Verdict, why: str) -> None:
    judgement = judge(known, read)
    assert judgement.verdict is verdict
    assert why in judgement.why
    assert bool(judgement.why) == (verdict is Verdict.REGRESSED)


def test_a_cut_is_in_force_at_once_and_its_revision_is_that_of_its_publication() -> None:
    view = with_cut(View(OLD), cut())
    assert view.in_force().share_ppm("x") == 0
    assert view.in_force().revision == OLD.revision + 1
    assert adopt(view, cut().command.apply(OLD, 10.0)).in_force() == view.in_force()


def test_a_cut_stays_over_a_shift_that_was_published_meanwhile() -> None:
    view = adopt(with_cut(View(OLD), cut()), NEW)
    assert view.published is NEW
    assert view.in_force().share_ppm("x") == 0


def test_a_cut_ends_with_the_latch_of_whoever_was_first() -> None:
    theirs = Rollback(provider="vllm", incident="theirs").apply(NEW, 9.0)
    assert adopt(with_cut(View(OLD), cut()), theirs) == View(theirs)


def test_a_rearm_later_than_the_cut_ends_it_and_an_earlier_one_does_not() -> None:
    latched = Rollback(provider="vllm", incident="theirs").apply(NEW, 5.0)
    for at, left in ((9.0, 1), (11.0, 0)):
        rearmed = Rearm(provider="vllm").apply(latched, at)
        assert len(adopt(with_cut(View(OLD), cut(at=10.0)), rearmed).cuts) == left


def test_a_cut_of_a_component_is_not_settled_by_a_latch_of_everything() -> None:
    latched = Rollback(provider="vllm", incident="all").apply(OLD, 5.0)
    assert not settled(cut("synthesis"), latched)
    assert settled(cut(), latched)


def test_a_second_cut_of_a_scope_only_makes_the_first_later() -> None:
    view = with_cut(with_cut(View(OLD), cut()), cut(at=20.0))
    assert [c.at for c in view.cuts] == [20.0]
    unseen = Rearm(provider="vllm").apply(Rollback(provider="vllm", incident="theirs").apply(NEW, 14.0), 15.0)
    assert adopt(view, unseen).in_force().share_ppm("x") == 0
    assert len(with_cut(view, cut("synthesis")).cuts) == 2


def test_what_is_latched_already_needs_no_cut() -> None:
    view = View(cut().command.apply(OLD, 1.0))
    assert with_cut(view, cut()) is view


def test_a_regressed_store_is_owed_the_latches() -> None:
    latched = cut("synthesis").command.apply(OLD, 77.0)
    view = with_cut(View(latched, fault="it is empty"), cut("analysis"))
    first, second = owed(view)
    assert second.command.scope == "analysis"
    again = first.command.apply(fresh("other", "s"), 99.0).scope("synthesis").latch
    assert again is not None
    assert (again.incident, again.holddown_until) == ("i-synthesis", 99.0 + 60.0)
    assert first.at == 77.0
    assert owed(replace(view, fault="")) == view.cuts


LATCHED = cut().command.apply(OLD, 1.0)


@pytest.mark.parametrize(
    ("before", "command", "allowed"),
    [
        (OLD, Shift(provider="v", share_ppm=500_000), {"human", "plan"}),
        (OLD, Shift(provider="v", share_ppm=100_000), {"human", "plan", "guard", "operator"}),
        (OLD, Shift(provider=OLD.candidate, share_ppm=500_000, scope="synthesis"), {"human", "plan"}),
        (OLD, cut().command, {"human", "plan", "guard", "operator"}),
        (LATCHED, Rearm(provider="v", force=True, reason="x"), {"human"}),
    ],
)
def test_who_may_do_what(before: Flags, command: Command, allowed: set[str]) -> None:
    after = command.apply(before, 1.0)
    for actor in (HUMAN, PLAN, GUARD, OPERATOR):
        if actor.kind in allowed:
            permit(before, after, actor)
        else:
            with pytest.raises(Refused, match="only a human"):
                permit(before, after, actor)


SCOPES = st.sampled_from([GLOBAL, "synthesis", "analysis"])
PUBLISHED = st.one_of(
    st.builds(lambda s, p: Shift(provider="v", scope=s, share_ppm=p), SCOPES, st.sampled_from([0, 250_000, 500_000])),
    st.builds(lambda s: Rollback(provider="v", incident="theirs", scope=s), SCOPES),
    st.builds(lambda s: Rearm(provider="v", scope=s, force=True, reason="r"), SCOPES),
)


class Model:
    """What a cut promises, told in the plainest way: the open cuts and when each was made last."""

    def __init__(self) -> None:
        self.store, self.view = OLD, View(OLD)
        self.open: dict[str, float] = {}

    def cut(self, scope: str, at: float) -> None:
        self.view = with_cut(self.view, cut(scope, at))
        seen = self.view.published.scope(scope)
        if seen.latch is None:
            self.open[scope] = at

    def publish(self, command: Command, at: float) -> None:
        with contextlib.suppress(Refused):
            self.store = command.apply(self.store, at)

    def look(self) -> None:
        if judge(self.view.published, self.store).verdict is Verdict.ADOPT:
            self.view = adopt(self.view, self.store)
        self.open = {scope: at for scope, at in self.open.items() if not self.over(scope, at)}

    def over(self, scope: str, at: float) -> bool:
        seen = self.view.published.scope(scope)
        return seen.latch is not None or seen.rearmed_at > at


@given(steps=st.lists(st.one_of(SCOPES, PUBLISHED, st.just(None)), max_size=15))
def test_a_cut_holds_until_it_is_published_or_superseded(steps: Sequence[str | Command | None]) -> None:
    """A string is a cut of ours, a command one by others; None: we see the newest of what was published."""
    model = Model()
    for at, step in enumerate(steps, start=1):
        if step is None:
            model.look()
        elif isinstance(step, str):
            model.cut(step, float(at))
        else:
            model.publish(step, float(at))
        view = model.view
        assert all(view.in_force().share_ppm(scope) == 0 for scope in model.open)
        assert {c.command.scope: c.at for c in view.cuts} == model.open
        assert view.in_force().revision == view.published.revision + len(model.open)


def judged(name: str, *scopes: str, trigger: Trigger = Trigger.ERROR_RATE, at: float = 10.0, epoch: int = 1) -> Cut:
    """A guard's cut, of an epoch if its trigger is a soft one."""
    scope, *also = scopes or (GLOBAL,)
    seen = Evidence(at=at, by="g", scope=scope, trigger=trigger, rule=name, limit=0.05, n=9, k=9)
    rollback = Rollback(
        provider="vllm",
        incident=name,
        scope=scope,
        also=tuple(also),
        trigger=trigger,
        automatic=True,
        epochs={GLOBAL: epoch},
        evidence=seen,
    )
    return Cut(rollback, at, GUARD)


@pytest.mark.parametrize(
    ("trigger", "began", "epoch", "fate"),
    [
        (Trigger.ERROR_RATE, 12.0, 1, Fate.OPEN),
        (Trigger.ERROR_RATE, 12.1, 1, Fate.OUTDATED),
        (Trigger.ERROR_RUN, 12.1, 1, Fate.OUTDATED),
        (Trigger.ERROR_RATE, 12.1, OLD.scope(GLOBAL).epoch + 1, Fate.OPEN),  # their clock is ahead: the one judged
        *((trigger, 99.0, 1, Fate.OPEN) for trigger in sorted(HARD)),
    ],
)
def test_what_a_later_epoch_means_to_a_cut(trigger: Trigger, began: float, epoch: int, fate: Fate) -> None:
    flags = Shift(provider="vllm", share_ppm=500_000).apply(OLD, began)
    for scope in (GLOBAL, "synthesis"):
        made = judged("i", scope, trigger=trigger, epoch=epoch)
        assert fate_of(made, scope, flags) is fate
        assert settled(made, flags) == (fate is Fate.OUTDATED)


def test_a_latch_of_everything_is_no_later_epoch_of_a_component() -> None:
    latched = Rollback(provider="vllm", incident="all").apply(OLD, 50.0)
    assert fate_of(judged("i", "synthesis"), "synthesis", latched) is Fate.OPEN


def test_of_two_cuts_of_the_same_scopes_the_one_that_holds_longer_goes_on_under_the_first_s_id() -> None:
    soft, hard = judged("first"), judged("second", trigger=Trigger.TIMEOUTS, at=20.0)
    for one, other in ((soft, hard), (hard, soft)):
        (left,) = with_cut(with_cut(View(OLD), one), other).cuts
        assert (left.command.incident, left.command.trigger) == (one.command.incident, Trigger.TIMEOUTS)
        assert left.at == other.at


def test_what_a_human_has_rearmed_is_taken_out_of_a_wider_cut_and_noted() -> None:
    view = with_cut(View(OLD), judged("i", "synthesis", "analysis"))
    latched = Rollback(provider="vllm", incident="theirs", scope="synthesis").apply(OLD, 11.0)
    rearmed = Rearm(provider="vllm", scope="synthesis").apply(latched, 12.0)
    after = adopt(view, rearmed)
    (left,) = after.cuts
    assert left.command.scopes == ("analysis",)
    assert [(note.scope, note.incident) for note in after.notes] == [("synthesis", "")]
    assert adopt(after, left.command.apply(rearmed, 13.0)).notes == after.notes, "the rest is its own incident"


def test_notes_are_bounded() -> None:
    view = View(cut().command.apply(OLD, 1.0))
    for at in range(100):
        view = with_cut(view, judged("i", at=float(at)))
    assert [note.evidence.at for note in view.notes] == [float(at) for at in range(68, 100)]
