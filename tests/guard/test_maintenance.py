"""What a restart under maintenance breaks is never held against the candidate, neither then nor afterwards."""

import pytest
from test_watch import ILL, START, TIMED_OUT, VLLM, Away, Site, some

from memos_llm.core.commands import Maintain
from memos_llm.core.events import BreakerChanged, GuardBlind
from memos_llm.core.flags import GLOBAL
from memos_llm.core.outcome import Outcome
from memos_llm.testing import ManualClock

LASTS_S = 400.0


@pytest.fixture
def site() -> Site:
    clock = ManualClock()
    return Site(Away(clock=lambda: clock() - 1000.0 + START), clock)


def drain(site: Site, lasts_s: float | None = LASTS_S) -> None:
    now = site.at_store()
    site.flags.flags = Maintain(provider="vllm", until=lasts_s and now + lasts_s).apply(site.flags.flags, now)


async def restart(site: Site, cut: Outcome, in_flight: int, *, ends: str) -> None:
    """Under a maintenance, which all that is in flight does not survive."""
    requests = [site.begin() for _ in range(in_flight)]
    await site.turn()
    drain(site)
    await site.turn()
    for end in requests:
        end(cut)
        site.clock.advance(0.1)
    await site.turn()
    if ends == "longer":
        drain(site, 2 * LASTS_S)
        await over(site, 2 * LASTS_S)
    elif ends == "sooner":
        drain(site, None)
        await site.turn()
    else:
        await over(site, LASTS_S)


async def over(site: Site, lasts_s: float) -> None:
    await site.turn(lasts_s - 20.0)
    for _ in range(25):
        await site.turn()
    assert not site.flags.current().maintained(site.at_store())


@pytest.mark.parametrize("ends", ["by itself", "sooner", "longer"])
@pytest.mark.parametrize("cut", [ILL, TIMED_OUT], ids=["cut", "hanging"])
async def test_what_a_restart_cuts_says_nothing_afterwards(site: Site, cut: Outcome, ends: str) -> None:
    some(site, 200)
    await restart(site, cut, 60, ends=ends)
    assert site.latched == {}
    for _ in range(2):  # too few to be anything by themselves
        site.ask(cut)
        await site.turn()
    assert site.latched == {}
    some(site, 8, failing_each=1)
    await site.turn()
    assert site.latched == {GLOBAL: "vllm"}, "what comes after it counts as ever"


async def test_what_failed_shortly_before_it_adds_up_with_nothing_afterwards(site: Site) -> None:
    for outcome in (TIMED_OUT, ILL):
        some(site, 100)
        for _ in range(2):
            site.ask(outcome)
            site.clock.advance(0.1)
        await restart(site, outcome, 0, ends="by itself")
        site.ask(outcome)
        await site.turn()
        assert site.latched == {}


async def test_a_last_resort_that_fails_under_maintenance_says_nothing(site: Site) -> None:
    """Where nobody else can answer the drained one is asked all the same, in the new epoch."""
    for outcome in (ILL, TIMED_OUT):
        drain(site)
        await site.turn()
        for _ in range(60):
            site.ask(outcome)
        await over(site, LASTS_S)
        site.ask(outcome)
        await site.turn()
        assert site.latched == {}


@pytest.mark.parametrize("ends", ["by itself", "sooner"])
async def test_probes_and_breakers_begin_anew_after_it(site: Site, ends: str) -> None:
    """Who ends it as soon as the server is up does so before the next probe has seen that."""
    some(site, 60)
    drain(site)
    site.bus.emit(BreakerChanged(provider="vllm", endpoint=VLLM, state="open"))
    for _ in range(40):
        site.probe()
        await site.turn()
    assert {(trigger, why) for _, trigger, why in site.held()} == {
        ("health", "maintenance"),
        ("breaker_open", "maintenance"),
    }
    if ends == "sooner":
        drain(site, None)
        await site.turn()
    else:
        await over(site, LASTS_S)
    assert site.latched == {}
    for _ in range(2):
        site.probe()
        await site.turn()
    assert site.latched == {}
    site.probe()
    await site.turn()
    assert site.latched == {GLOBAL: "vllm"}, "it is not up"


async def test_a_breaker_that_stays_open_after_it_counts_from_then_on(site: Site) -> None:
    some(site, 60)
    drain(site)
    site.bus.emit(BreakerChanged(provider="vllm", endpoint=VLLM, state="open"))
    await site.turn(60.0)
    drain(site, None)
    for _ in range(29):
        await site.turn()
    assert site.latched == {}
    await site.turn(5.0)
    assert site.latched == {GLOBAL: "vllm"}


async def test_that_nobody_asked_meanwhile_is_no_blindness(site: Site) -> None:
    some(site, 60)
    await restart(site, ILL, 0, ends="by itself")
    assert [one for one in site.told.of(GuardBlind) if one.what] == []
