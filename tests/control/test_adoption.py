"""A regressed store is accepted by everyone once a human says so, and nothing that matters is lost by it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from stack import until
from test_live import Switch, process

from memos_llm.control.adopt import Verdict, judge, raises
from memos_llm.control.adoption import Adopt, propose, successor
from memos_llm.core.commands import Actor, Command, Maintain, Rearm, Rollback, Shift
from memos_llm.core.errors import LLMError, Refused
from memos_llm.core.flags import EMBEDDING, GLOBAL, PPM, Flags, Scope, Verification, fresh
from memos_llm.store import MemoryStore

HUMAN = Actor("alice")
PROOF = Verification(baseline="a", candidate="b", dimension=8, cosine_min=1.0, texts=100, at=1.0)


def shift(share: float, scope: str = GLOBAL) -> Shift:
    return Shift(provider="vllm", share_ppm=round(share * PPM), scope=scope, new_index=scope == EMBEDDING)


def rollback(scope: str = GLOBAL) -> Rollback:
    return Rollback(provider="vllm", incident=f"inc-{scope}", scope=scope)


def after(flags: Flags, *commands: Command, at: float = 10.0) -> Flags:
    for command in commands:
        flags = command.apply(flags, at)
    return flags


KNOWN = after(fresh("a" * 16, "salt-a"), shift(0.3), shift(0.5, "synthesis"))
OTHER = after(fresh("b" * 16, "salt-b"), shift(0.7))


def adopted(known: Flags, read: Flags | None) -> Flags:
    return propose(known, read, fresh("c" * 16, "salt-c"), "fault", "", 20.0).after


def test_the_shares_are_the_stores_and_the_salt_is_ours() -> None:
    flags = adopted(KNOWN, OTHER)
    assert (flags.share_ppm("x"), flags.share_ppm("synthesis")) == (700_000, 700_000)
    assert flags.salt == KNOWN.salt
    assert flags.revision > max(KNOWN.revision, OTHER.revision)
    emptied = adopted(KNOWN, None)
    assert (emptied.share_ppm("x"), emptied.share_ppm("synthesis")) == (0, 0)


def test_a_latch_of_either_side_stays_until_a_human_lifts_it() -> None:
    ours, theirs = after(KNOWN, rollback("synthesis")), after(OTHER, rollback("analysis"))
    flags = adopted(ours, theirs)
    assert [name for name, scope in flags.scopes.items() if scope.latch] == ["analysis", "synthesis"]
    assert flags.share_ppm("synthesis") == flags.share_ppm("analysis") == 0
    with pytest.raises(Refused, match="latched"):
        shift(0.1, "synthesis").apply(flags, 30.0)


def test_a_latch_that_the_store_has_lifted_later_is_not_carried_over_and_that_is_said() -> None:
    ours = after(KNOWN, rollback(), at=10.0)
    theirs = after(after(OTHER, rollback(), at=10.0), Rearm(provider="vllm"), at=15.0)
    proposal = propose(ours, theirs, OTHER, "fault", "", 20.0)
    assert proposal.after.scope(GLOBAL).latch is None
    assert any("inc-*" in note for note in proposal.notes)


def test_embeddings_stay_where_their_index_is_when_the_store_says_nothing_of_them() -> None:
    ours = replace(after(KNOWN, shift(1.0, EMBEDDING)), verified={"m": PROOF})
    flags = adopted(ours, None)
    assert flags.share_ppm(EMBEDDING) == PPM
    assert flags.verified == {"m": PROOF}
    drained = after(OTHER, Maintain(provider="vllm", until=99.0))
    assert adopted(ours, drained).share_ppm(EMBEDDING) == PPM, "a maintenance gives that scope no share"
    theirs = after(OTHER, shift(1.0, EMBEDDING), shift(0.0, EMBEDDING))
    proposal = propose(ours, theirs, OTHER, "fault", "", 20.0)
    assert proposal.after.share_ppm(EMBEDDING) == 0
    assert any("embedding changes sides" in note for note in proposal.notes)


COMMANDS = st.lists(
    st.one_of(
        st.builds(shift, st.sampled_from([0.0, 0.2, 1.0]), st.sampled_from([GLOBAL, "x", "y"])),
        st.builds(rollback, st.sampled_from([GLOBAL, "x", "y"])),
    ),
    max_size=8,
)


def played(flags: Flags, commands: Sequence[Command]) -> Flags:
    for at, command in enumerate(commands, start=1):
        try:
            flags = command.apply(flags, float(at))
        except LLMError:
            continue
    return flags


@given(ours=COMMANDS, theirs=COMMANDS, further=COMMANDS)
def test_everyone_accepts_it_whatever_they_hold_and_nobody_goes_back(
    ours: Sequence[Command], theirs: Sequence[Command], further: Sequence[Command]
) -> None:
    known, read = played(KNOWN, ours), played(OTHER, theirs)
    flags = adopted(known, read)
    for held in (known, read, played(known, further), played(read, further)):
        assert judge(held, flags).verdict is Verdict.ADOPT
        assert judge(flags, held).verdict is Verdict.REGRESSED
    assert judge(flags, flags).verdict is Verdict.SAME
    later = played(flags, further)
    assert judge(flags, later).verdict in (Verdict.ADOPT, Verdict.SAME)
    assert judge(known, later).verdict is Verdict.ADOPT, "also of who slept through the adoption"
    for name in {*known.scopes, *read.scopes}:
        latched = known.scope(name).latch is not None or read.scope(name).latch is not None
        assert (flags.scope(name).latch is not None) == latched
        assert flags.scope(name).epoch > max(known.scope(name).epoch, read.scope(name).epoch)
        assert flags.share_ppm(name) in (0, read.share_ppm(name))


def test_a_second_adoption_is_accepted_by_who_missed_the_first() -> None:
    first = adopted(KNOWN, OTHER)
    second = adopted(first, fresh("d" * 16, "salt-d"))
    assert judge(KNOWN, second).verdict is judge(OTHER, second).verdict is Verdict.ADOPT
    assert judge(second, first).verdict is Verdict.REGRESSED


def test_a_stranger_is_not_accepted() -> None:
    assert judge(replace(KNOWN, installation="e" * 16), adopted(KNOWN, OTHER)).verdict is Verdict.REGRESSED
    assert judge(KNOWN, replace(OTHER, revision=99)).verdict is Verdict.REGRESSED
    ids = successor("a", "b/c", "a").split("/")
    assert ids[1:] == ["a", "b", "c"]


async def test_all_live_processes_follow_the_adopted_store() -> None:
    store = Switch()
    async with (
        process(store, name="p1", seed_ppm=0) as first,
        process(store, name="p2") as second,
    ):
        await first.live.submit(shift(0.5), HUMAN)
        await first.live.submit(rollback("synthesis"), HUMAN)
        held = first.live.current().revision
        await until(lambda: second.live.current().revision == held)
        assert await second.live.propose_adoption() is None

        store.inner = MemoryStore()  # emptied, then begun anew by somebody with more share
        async with process(store, name="p3", seed_ppm=900_000) as third:
            proposal = None
            while proposal is None:
                proposal = await second.live.propose_adoption("meant")
            assert raises(second.live.current(), proposal.after)
            flags = await second.live.adopt_store(proposal, HUMAN)
            for each in (first, second, third):
                # a watch of the store that is gone hears nothing: the next look at the store tells
                await each.live.propose_adoption()
                await until(lambda each=each: each.live.current().revision == flags.revision)
                assert each.share() == 900_000
                assert each.share("synthesis") == 0
                assert not each.live.store_state.regressed
            newest, *_ = await store.history(1)
            assert (newest.command, newest.actor, newest.reason) == ("adopt", "alice", "meant")
            assert (newest.share_before, newest.share_after) == (0.5, 0.9)
            await third.live.submit(shift(0.2), HUMAN)


async def test_a_store_that_changed_meanwhile_is_looked_at_again() -> None:
    store = Switch()
    async with process(store, seed_ppm=500_000) as p:
        store.inner = MemoryStore()
        proposal = await p.live.propose_adoption()
        assert proposal is not None
        async with process(store, name="other", seed_ppm=100_000):
            with pytest.raises(Refused, match="look again"):
                await p.live.adopt_store(proposal, HUMAN)
        assert p.share() == 500_000


def test_the_adopted_flags_are_as_the_command_says() -> None:
    command = Adopt(known=KNOWN, installation="x/y")
    flags = command.apply(OTHER, 1.0)
    assert flags.installation == "x/y"
    assert flags.scope("nowhere") == Scope()


def guard(scope: str = GLOBAL) -> Rollback:
    return Rollback(provider="vllm", incident="inc-guard", scope=scope, automatic=True)


def test_whose_the_shares_are_is_kept() -> None:
    assert adopted(KNOWN, OTHER).candidate == "vllm"
    assert adopted(KNOWN, None).candidate == "vllm"
    thirds = after(fresh("b" * 16, "salt-b"), Shift(provider="third", share_ppm=1))
    assert adopted(KNOWN, thirds).candidate == "third"


def test_embeddings_never_become_another_provider_s_by_it() -> None:
    ours = after(KNOWN, shift(1.0, EMBEDDING))
    thirds = after(fresh("b" * 16, "salt-b"), Shift(provider="third", share_ppm=500_000))
    proposal = propose(ours, thirds, OTHER, "fault", "", 20.0)
    assert (proposal.after.candidate, proposal.after.share_ppm(EMBEDDING)) == ("third", 0)
    assert any("embedding changes sides" in note for note in proposal.notes)


def test_the_next_holddown_grows_by_the_rollbacks_of_both_sides() -> None:
    ours = after(after(KNOWN, guard(), at=10.0), Rearm(provider="vllm", force=True, reason="r"), at=11.0)
    theirs = after(after(OTHER, guard(), at=12.0), Rearm(provider="vllm", force=True, reason="r"), at=13.0)
    flags = adopted(ours, theirs)
    assert flags.scope(GLOBAL).rolled_back == (10.0, 12.0)
    assert flags.scope(GLOBAL).since == 20.0
    latch = guard().apply(flags, 30.0).scope(GLOBAL).latch
    assert latch is not None
    assert latch.holddown_until == 30.0 + 4 * 1_800


def test_a_maintenance_of_either_side_goes_on() -> None:
    ours = after(KNOWN, Maintain(provider="vllm", until=99.0), Maintain(provider="third", until=15.0))
    theirs = after(OTHER, Maintain(provider="ollama", until=98.0))
    assert adopted(ours, theirs).maintenance == {"vllm": 99.0, "ollama": 98.0}
