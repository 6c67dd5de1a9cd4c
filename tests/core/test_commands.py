"""Commands on flags: each rule by itself, then their invariants over any sequence of commands."""

import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_llm.core.commands import Actor, Command, Rearm, Rollback, Shift, audit, incident
from memos_llm.core.errors import Refused
from memos_llm.core.flags import EMBEDDING, GLOBAL, PPM, Flags, Scope, fresh

HUMAN = Actor("h")
SCOPES = (GLOBAL, "synthesis", "analysis", EMBEDDING)


def run(flags: Flags, *commands: Command, now: float = 100.0) -> Flags:
    for command in commands:
        flags = command.apply(flags, now)
    return flags


def shift(share_ppm: int, scope: str = GLOBAL) -> Shift:
    return Shift(provider="vllm", share_ppm=share_ppm, scope=scope)


def rollback(scope: str = GLOBAL, holddown_s: float = 0.0) -> Rollback:
    return Rollback(provider="vllm", incident="i1", scope=scope, holddown_s=holddown_s)


def rearm(scope: str = GLOBAL, force: bool = False, reason: str = "") -> Rearm:
    return Rearm(provider="vllm", scope=scope, force=force, reason=reason)


def test_a_shift_of_everything_drops_the_components_own_shares_and_names_them() -> None:
    flags = run(fresh("i", "s"), shift(100_000), shift(900_000, "synthesis"))
    assert flags.share_ppm("synthesis") == 900_000
    assert shift(200_000).dropped(flags) == ("synthesis",)
    after = run(flags, shift(200_000))
    assert after.share_ppm("synthesis") == 200_000
    assert after.scope("synthesis").epoch > flags.scope("synthesis").epoch


def test_a_component_shift_leaves_the_others() -> None:
    flags = run(fresh("i", "s"), shift(100_000), shift(900_000, "synthesis"))
    assert flags.share_ppm("analysis") == 100_000


def test_a_rollback_of_everything_drops_all_and_a_rearm_restores_nothing() -> None:
    flags = run(fresh("i", "s"), shift(100_000), shift(900_000, "synthesis"), rollback(), rearm())
    assert flags.share_ppm("synthesis") == flags.share_ppm("analysis") == 0


def test_a_latched_component_stays_at_zero_under_a_shift_of_everything() -> None:
    flags = run(fresh("i", "s"), shift(100_000), rollback("synthesis"), shift(500_000))
    assert (flags.share_ppm("synthesis"), flags.share_ppm("analysis")) == (0, 500_000)
    assert run(flags, rearm("synthesis")).share_ppm("synthesis") == 0


@pytest.mark.parametrize("scope", ["synthesis", GLOBAL])
def test_a_raise_while_latched_is_refused_and_says_what_lifts_it(scope: str) -> None:
    flags = run(fresh("i", "s"), rollback(scope))
    with pytest.raises(Refused, match="llmctl rearm"):
        run(flags, shift(1, "synthesis"))
    run(flags, shift(0, "synthesis"))


def test_the_holddown_can_be_overridden_with_a_reason_only() -> None:
    flags = run(fresh("i", "s"), rollback(holddown_s=1800.0))
    with pytest.raises(Refused, match="has 30 min left"):
        run(flags, rearm())
    with pytest.raises(Refused, match="--reason"):
        run(flags, rearm(force=True))
    assert run(flags, rearm(force=True, reason="checked")).scope(GLOBAL).latch is None
    assert run(flags, rearm(), now=1900.0).scope(GLOBAL).latch is None


def test_a_rearm_of_what_is_not_latched_names_what_is() -> None:
    with pytest.raises(Refused, match="latched: synthesis"):
        run(fresh("i", "s"), rollback("synthesis"), rearm())


def test_a_rearm_leaves_its_time_so_that_older_evidence_is_known_as_older() -> None:
    flags = run(fresh("i", "s"), rollback(), rearm(), now=123.0)
    assert flags.scope(GLOBAL).rearmed_at == 123.0
    assert run(flags, shift(1), rollback(), now=200.0).scope(GLOBAL).rearmed_at == 123.0


def test_the_first_rollbacks_latch_and_incident_stand() -> None:
    first = run(fresh("i", "s"), rollback(holddown_s=60.0))
    again = Rollback(provider="vllm", incident="i2", holddown_s=0.0)
    second = again.apply(first, 500.0)
    assert second.scope(GLOBAL).latch == first.scope(GLOBAL).latch
    assert incident(again, first, second, HUMAN, 500.0) is None


def test_an_incident_tells_the_shares_before_and_after() -> None:
    before = run(fresh("i", "s"), shift(100_000), shift(900_000, "synthesis"))
    after = run(before, rollback())
    record = incident(rollback(), before, after, HUMAN, 100.0)
    assert record is not None
    assert record.shares_before == {GLOBAL: 0.1, "synthesis": 0.9}
    assert record.shares_after == {GLOBAL: 0.0}
    assert (record.revision, record.epoch) == (after.revision, after.scope(GLOBAL).epoch)


def test_embeddings_open_by_no_shift() -> None:
    with pytest.raises(Refused, match="never mix"):
        run(fresh("i", "s"), shift(PPM, EMBEDDING))


@pytest.mark.parametrize("share_ppm", [-1, PPM + 1])
def test_a_share_outside_zero_to_one_is_refused(share_ppm: int) -> None:
    with pytest.raises(Refused, match="outside 0 to 1"):
        run(fresh("i", "s"), shift(share_ppm))


COMMANDS = st.one_of(
    st.builds(shift, st.sampled_from([0, 1, 250_000, PPM, PPM + 1]), st.sampled_from(SCOPES)),
    st.builds(rollback, st.sampled_from(SCOPES), st.sampled_from([0.0, 5.0])),
    st.builds(rearm, st.sampled_from(SCOPES), st.booleans(), st.sampled_from(["", "because"])),
)
# Embeddings at share 1 stand for a model pair that was verified: no command of today opens them.
STARTS = st.sampled_from([0, PPM]).map(
    lambda share: Flags(
        installation="i", revision=1, salt="s", scopes={GLOBAL: Scope(share_ppm=0), EMBEDDING: Scope(share_ppm=share)}
    )
)


@given(start=STARTS, commands=st.lists(COMMANDS, max_size=12))
def test_invariants_over_any_sequence(start: Flags, commands: Sequence[Command]) -> None:
    flags = start
    for at, command in enumerate(commands):
        before = flags
        try:
            flags = command.apply(before, float(at))
        except Refused:
            assert not isinstance(command, Rollback)
            continue
        revision_is_linear(before, flags)
        nothing_flows_while_latched(flags)
        epochs_follow_the_weights(before, flags)
        audit_agrees(command, before, flags)
        embeddings_move_alone(command, before, flags)
        if isinstance(command, Rollback):
            rollback_wins(command, before, flags)
        if isinstance(command, Shift) and command.scope == GLOBAL:
            shift_of_everything_reaches_all(command, flags)


def revision_is_linear(before: Flags, after: Flags) -> None:
    assert after.revision == before.revision + 1
    assert (after.installation, after.salt) == (before.installation, before.salt)
    assert GLOBAL in after.scopes


def nothing_flows_while_latched(flags: Flags) -> None:
    for name in (*SCOPES, "another"):
        everything = name != EMBEDDING and flags.scope(GLOBAL).latch is not None
        if everything or flags.scope(name).latch is not None:
            assert flags.share_ppm(name) == 0
        assert 0 <= flags.share_ppm(name) <= PPM


def epochs_follow_the_weights(before: Flags, after: Flags) -> None:
    for name in SCOPES:
        own, was = after.scope(name), before.scope(name)
        assert own.epoch >= was.epoch
        speaks_as_before = before.effective(name)[0] == after.effective(name)[0] == name
        if speaks_as_before and before.share_ppm(name) != after.share_ppm(name):
            assert own.epoch > was.epoch
        if (own.latch is None) != (was.latch is None):
            assert own.epoch > was.epoch


def audit_agrees(command: Command, before: Flags, after: Flags) -> None:
    line = audit(command, before, after, HUMAN, 1.0)
    assert line.revision == after.revision
    assert line.share_before == before.share_ppm(command.scope) / PPM
    assert line.share_after == after.share_ppm(command.scope) / PPM


def embeddings_move_alone(command: Command, before: Flags, after: Flags) -> None:
    if command.scope != EMBEDDING:
        assert after.scope(EMBEDDING) == before.scope(EMBEDDING)


def rollback_wins(command: Rollback, before: Flags, after: Flags) -> None:
    assert after.scope(command.scope).latch is not None
    assert after.share_ppm(command.scope) == 0
    for name in SCOPES:
        assert after.share_ppm(name) <= before.share_ppm(name)
        if before.scope(name).latch is not None:
            assert after.scope(name).latch == before.scope(name).latch


def shift_of_everything_reaches_all(command: Shift, after: Flags) -> None:
    for name in ("synthesis", "analysis", "another"):
        latched = after.scope(name).latch is not None or after.scope(GLOBAL).latch is not None
        assert after.share_ppm(name) == (0 if latched else command.share_ppm)


@pytest.mark.parametrize("edit", [shift(0), shift(900_000, "synthesis"), rearm("synthesis", True, "x")])
def test_no_edit_that_overtakes_a_rollback_beats_it(edit: Command) -> None:
    """The loser of a compare-and-set re-applies its rollback to whatever won."""
    flags = run(fresh("i", "s"), shift(500_000), rollback("synthesis"))
    flags = run(flags, rearm("synthesis"))
    with contextlib.suppress(Refused):
        flags = run(flags, edit)
    assert run(flags, rollback()).share_ppm("synthesis") == 0


def other(share_ppm: int, scope: str = GLOBAL) -> Shift:
    return Shift(provider="third", share_ppm=share_ppm, scope=scope)


def test_the_shares_are_one_provider_s() -> None:
    flags = run(fresh("i", "s"), shift(300_000))
    assert flags.candidate == "vllm"
    with pytest.raises(Refused, match=r"the share of \* is vllm's"):
        run(flags, other(100_000, "synthesis"))
    assert run(flags, other(100_000)).candidate == "third"  # everything, and so nothing of vllm's is left
    assert run(flags, other(0), other(100_000, "synthesis")).candidate == "third"


def test_a_share_of_embeddings_that_is_another_s_stands_in_the_way() -> None:
    anew = Shift(provider="vllm", share_ppm=PPM, scope=EMBEDDING, new_index=True)
    with pytest.raises(Refused, match="the share of embedding is vllm's"):
        run(fresh("i", "s"), anew, other(100_000))
