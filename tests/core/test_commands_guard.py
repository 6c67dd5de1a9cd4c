"""The guard's rollback: several scopes, hold-down, the incident that it opens or joins; and maintenance."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from memos_llm.core.commands import (
    DAY_S,
    JOINED_S,
    TOGETHER_S,
    Actor,
    Command,
    Maintain,
    Rearm,
    Rollback,
    Shift,
    audit,
    incident,
)
from memos_llm.core.errors import Refused
from memos_llm.core.flags import EMBEDDING, GLOBAL, PPM, Flags, Latch, Scope, fresh
from memos_llm.core.verdicts import Evidence, Trigger

GUARD = Actor("g1", "guard")
START = Shift(provider="vllm", share_ppm=300_000).apply(fresh("i", "s"), 1.0)
EVIDENCE = Evidence(
    at=5.0,
    by="g1",
    scope="synthesis",
    trigger=Trigger.ERROR_RATE,
    rule="error rate above 5 % over 300 s",
    limit=0.05,
    n=60,
    k=30,
    estimate=0.5,
    low=0.31,
    high=0.69,
)


def cut(
    scope: str = GLOBAL, *also: str, name: str = "i1", provider: str = "vllm", evidence: Evidence | None = None
) -> Rollback:
    return Rollback(
        provider=provider,
        incident=name,
        scope=scope,
        also=also,
        trigger=Trigger.ERROR_RATE,
        automatic=True,
        evidence=evidence,
    )


def human(scope: str = GLOBAL, name: str = "h1") -> Rollback:
    return Rollback(provider="vllm", incident=name, scope=scope)


def rearm(flags: Flags, scope: str, now: float) -> Flags:
    return Rearm(provider="vllm", scope=scope, force=True, reason="r").apply(flags, now)


def latch(flags: Flags, scope: str = GLOBAL) -> Latch:
    found = flags.scope(scope).latch
    assert found is not None
    return found


def held_s(flags: Flags, scope: str = GLOBAL) -> float:
    return latch(flags, scope).holddown_until - latch(flags, scope).since


def test_all_its_scopes_are_latched_in_one_change_and_one_incident() -> None:
    command = cut("synthesis", "analysis", evidence=EVIDENCE)
    after = command.apply(START, 10.0)
    record = incident(command, START, after, GUARD, 10.0)
    assert after.revision == START.revision + 1
    assert after.share_ppm("synthesis") == after.share_ppm("analysis") == 0
    assert after.share_ppm("review") == 300_000
    assert latch(after, "synthesis") == latch(after, "analysis")
    assert record is not None
    assert (record.id, record.scope, record.also) == ("i1", "synthesis", ("analysis",))
    assert (record.rule, record.reason) == (EVIDENCE.rule, EVIDENCE.rule)
    assert (record.limit, record.n, record.k, record.estimate) == (0.05, 60, 30, 0.5)
    assert (record.low, record.high, record.evidence) == (0.31, 0.69, (EVIDENCE,))
    assert record.holddown_until == 10.0 + 1_800.0
    assert audit(command, START, after, GUARD, 10.0).reason == EVIDENCE.rule


def test_a_repetition_changes_nothing_but_the_revision() -> None:
    command = cut("synthesis", "analysis")
    once = command.apply(START, 10.0)
    twice = command.apply(once, 500.0)
    assert twice.scopes == once.scopes
    assert incident(command, once, twice, GUARD, 500.0) is None


def test_only_what_was_not_latched_is_the_new_incident_s() -> None:
    before = human("synthesis").apply(START, 10.0)
    command = cut("synthesis", "analysis")
    after = command.apply(before, 20.0)
    record = incident(command, before, after, GUARD, 20.0)
    assert record is not None
    assert (record.scope, record.also) == ("analysis", ())
    assert latch(after, "synthesis").incident == "h1"


@pytest.mark.parametrize(
    ("earlier", "hours"), [(0, 0.5), (1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 24), (7, 24), (12, 24)]
)
def test_the_holddown_doubles_with_each_automatic_rollback_of_a_week(earlier: int, hours: float) -> None:
    flags = START
    for n in range(earlier):
        flags = rearm(cut().apply(flags, n * 1_000.0), GLOBAL, n * 1_000.0 + 500)
    assert held_s(cut().apply(flags, 50_000.0)) == hours * 3_600
    assert held_s(cut().apply(flags, 50_000.0 + 7 * DAY_S)) == 1_800, "what is older than a week no longer counts"
    assert held_s(cut("synthesis").apply(flags, 50_000.0), "synthesis") == 1_800, "of that scope"
    assert len(flags.scope(GLOBAL).rolled_back) <= 8


def test_a_manual_rollback_has_no_holddown_and_lengthens_none() -> None:
    flags = human().apply(START, 10.0)
    assert held_s(flags) == 0
    assert held_s(cut().apply(rearm(flags, GLOBAL, 20.0), 30.0)) == 1_800
    automatic = cut().apply(START, 10.0)
    assert human().apply(automatic, 20.0).scopes == automatic.scopes


def test_a_wider_one_soon_after_belongs_to_the_same_incident() -> None:
    narrow = cut("synthesis").apply(START, 10.0)
    wide = cut(name="i2")
    after = wide.apply(narrow, 10.0 + JOINED_S - 1)
    assert (latch(after).incident, latch(after, "synthesis").incident) == ("i1", "i1")
    assert after.share_ppm("analysis") == 0
    assert incident(wide, narrow, after, GUARD, 10.0 + JOINED_S - 1) is None
    also = cut("analysis", "synthesis", name="i3").apply(narrow, 20.0)
    assert latch(also, "analysis").incident == "i1"


def test_a_narrower_one_just_behind_the_widest_belongs_to_its_incident() -> None:
    after = cut("synthesis", name="i2").apply(cut().apply(START, 10.0), 11.0)
    assert latch(after, "synthesis").incident == "i1"


def test_one_found_at_the_same_time_in_another_scope_belongs_to_the_same_incident() -> None:
    first = cut("synthesis").apply(START, 10.0)
    second = cut("analysis", name="i2")
    after = second.apply(first, 10.0 + TOGETHER_S - 1)
    assert latch(after, "analysis").incident == "i1"
    assert incident(second, first, after, GUARD, 10.0 + TOGETHER_S - 1) is None
    later = second.apply(first, 10.0 + TOGETHER_S)
    assert latch(later, "analysis").incident == "i2"


@pytest.mark.parametrize(
    ("first", "second", "at"),
    [
        (cut("synthesis"), cut(name="i2"), 10.0 + JOINED_S),
        (cut("synthesis", provider="third"), cut(name="i2"), 20.0),
        (human("synthesis", "i1"), cut(name="i2"), 20.0),
        (cut("synthesis"), human(name="i2"), 20.0),
        (cut("synthesis"), cut("analysis", name="i2"), 10.0 + TOGETHER_S),
        (cut(EMBEDDING), cut(name="i2"), 10.0 + TOGETHER_S),
        (cut(), cut(EMBEDDING, name="i2"), 10.0 + TOGETHER_S),
    ],
)
def test_anything_else_is_an_incident_of_its_own(first: Rollback, second: Rollback, at: float) -> None:
    before = first.apply(START, 10.0)
    after = second.apply(before, at)
    record = incident(second, before, after, GUARD, at)
    assert record is not None
    assert latch(after, second.scope).incident == record.id == "i2"


def test_a_latch_that_is_published_again_keeps_its_incident_and_its_holddown() -> None:
    latches = [
        Rollback(provider="vllm", incident="i1", scope=scope, trigger=Trigger.STORE_REGRESSED, holddown_s=77.0)
        for scope in ("synthesis", GLOBAL)
    ]
    first = latches[0].apply(START, 10.0)
    assert incident(latches[0], START, first, GUARD, 10.0) is not None
    second = latches[1].apply(first, 11.0)
    assert incident(latches[1], first, second, GUARD, 11.0) is None
    assert (latch(second).incident, held_s(second), latch(second).automatic) == ("i1", 77.0, True)


def test_a_maintenance_is_for_a_time_and_is_audited() -> None:
    command = Maintain(provider="vllm", until=700.0, reason="new driver")
    after = command.apply(START, 100.0)
    assert [after.maintained(at) for at in (699.0, 700.0)] == [frozenset({"vllm"}), frozenset()]
    assert {name: scope.share_ppm for name, scope in after.scopes.items()} == {GLOBAL: 300_000, EMBEDDING: None}
    line = audit(command, START, after, Actor("alice"), 100.0)
    assert (line.command, line.provider, line.reason, line.revision) == ("maintain", "vllm", "new driver", 3)
    ended = Maintain(provider="vllm", until=None).apply(after, 200.0)
    assert ended.maintenance == {}


def test_a_maintenance_begins_new_epochs_of_what_the_candidate_is_judged_by_and_leaves_all_else() -> None:
    """Embeddings have none before they are named: a pin may have sent them there all the same."""
    before = human("synthesis").apply(START, 10.0)
    begun = Maintain(provider="vllm", until=700.0).apply(before, 100.0)
    ended = Maintain(provider="vllm", until=None).apply(begun, 200.0)
    for since, epochs, flags in ((100.0, 1, begun), (200.0, 2, ended)):
        assert flags.scopes == {
            name: replace(before.scope(name), epoch=before.scope(name).epoch + epochs, since=since)
            for name in (GLOBAL, "synthesis", EMBEDDING)
        }


def test_what_is_said_of_the_candidate_outlives_a_maintenance_of_another() -> None:
    after = Maintain(provider="ollama", until=700.0).apply(START, 100.0)
    assert after.scopes == START.scopes


@pytest.mark.parametrize(
    ("until", "why"), [(None, "not under maintenance"), (100.0, "over before"), (100.0 + DAY_S + 60, "24 hours")]
)
def test_a_maintenance_that_makes_no_sense_is_refused(until: float | None, why: str) -> None:
    with pytest.raises(Refused, match=why):
        Maintain(provider="vllm", until=until).apply(START, 100.0)


@pytest.mark.parametrize(
    "command", [Shift(provider="vllm", share_ppm=1), cut(), Maintain(provider="ollama", until=900.0)]
)
def test_what_is_over_is_forgotten_with_any_change(command: Command) -> None:
    drained = Maintain(provider="vllm", until=700.0).apply(START, 100.0)
    assert "vllm" in command.apply(drained, 699.0).maintenance
    assert "vllm" not in command.apply(drained, 700.0).maintenance


def test_a_component_s_own_share_is_a_new_epoch_even_if_it_is_everybody_s() -> None:
    after = Shift(provider="vllm", share_ppm=300_000, scope="synthesis").apply(START, 50.0)
    assert (after.scope("synthesis").epoch, after.scope("synthesis").since) == (1, 50.0)
    again = Shift(provider="vllm", share_ppm=300_000, scope="synthesis").apply(after, 60.0)
    assert again.scope("synthesis") == after.scope("synthesis")


def test_a_component_that_follows_everything_again_does_so_in_a_new_epoch() -> None:
    """The share of everything stays as it was, and what failed in that epoch before the latch is not judged again."""
    latched = cut("synthesis").apply(START, 20.0)
    rearmed = rearm(latched, "synthesis", 30.0)
    everything = rearmed.scope(GLOBAL)
    assert everything.epoch == START.scope(GLOBAL).epoch
    follows = Shift(provider="vllm", share_ppm=everything.share_ppm or 0).apply(rearmed, 40.0)
    assert follows.effective("synthesis") == (GLOBAL, replace(everything, epoch=everything.epoch + 1, since=40.0))
    again = Shift(provider="vllm", share_ppm=everything.share_ppm or 0).apply(follows, 50.0)
    assert again.scope(GLOBAL) == follows.scope(GLOBAL), "with nobody to take in it changes nothing"


SCOPES = (GLOBAL, "synthesis", "analysis", EMBEDDING)
SETS = st.lists(st.sampled_from(SCOPES), min_size=1, max_size=3, unique=True)
COMMANDS = st.one_of(
    st.builds(lambda scopes, name: cut(*scopes, name=name), SETS, st.sampled_from(["a", "b", "c"])),
    st.builds(human, st.sampled_from(SCOPES), st.sampled_from(["d", "e"])),
    st.builds(
        lambda share, scope: Shift(provider="vllm", share_ppm=share, scope=scope, new_index=scope == EMBEDDING),
        st.sampled_from([0, 250_000, PPM]),
        st.sampled_from(SCOPES),
    ),
    st.builds(lambda scope: Rearm(provider="vllm", scope=scope, force=True, reason="r"), st.sampled_from(SCOPES)),
    st.builds(lambda until: Maintain(provider="vllm", until=until), st.sampled_from([None, 20.0, 4_000.0])),
)
PACE = st.sampled_from([1.0, 400.0, 90_000.0])


@given(steps=st.lists(st.tuples(COMMANDS, PACE), max_size=12))
def test_invariants_over_any_sequence(steps: Sequence[tuple[Command, float]]) -> None:
    flags, now, known = START, 10.0, set[str]()
    for number, (wanted, pause) in enumerate(steps):
        now += pause
        command = renamed(wanted, number)
        before = flags
        try:
            flags = command.apply(before, now)
        except Refused:
            assert not isinstance(command, Rollback)
            continue
        assert flags.revision == before.revision + 1
        record = incident(command, before, flags, GUARD, now)
        known |= {record.id} if record else set()
        for name, scope in flags.scopes.items():
            was = before.scopes.get(name) or Scope(share_ppm=0 if name == EMBEDDING else None)
            assert scope.latch is None or (scope.latch.incident in known and flags.share_ppm(name) == 0)
            assert (scope.epoch, scope.since) in ((was.epoch, was.since), (was.epoch + 1, now))
            other_share = scope.latch is None and was.share_ppm != scope.share_ppm  # a latched one carries nothing
            if was.latch != scope.latch or other_share:
                assert scope.epoch > was.epoch
        assert all(until > now for until in flags.maintenance.values())
        if isinstance(command, Rollback):
            assert all(flags.scope(name).latch for name in command.scopes)
            assert all(flags.share_ppm(name) <= before.share_ppm(name) for name in (*SCOPES, "another"))


def renamed(command: Command, number: int) -> Command:
    """Each rollback has an id of its own."""
    if not isinstance(command, Rollback):
        return command
    return replace(command, incident=f"{command.incident}{number}")
