"""The limit of requests in flight on one endpoint: first come, first served, and nobody waits for ever."""

import asyncio

import pytest

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.providers.places import Places


async def waiting(places: Places) -> "asyncio.Task[None]":
    task = asyncio.create_task(places.take())
    await asyncio.sleep(0)
    return task


async def test_places_are_given_in_the_order_of_asking() -> None:
    places = Places(1, 5.0)
    await places.take()
    first, second = await waiting(places), await waiting(places)
    places.free()
    await first
    assert not second.done()
    places.free()
    await second
    places.free()
    assert places.taken == 0


async def test_who_waits_too_long_is_told_when_to_come_again() -> None:
    places = Places(1, 0.01)
    await places.take()
    with pytest.raises(AttemptFailed) as caught:
        await places.take()
    assert caught.value.outcome == Outcome(kind=Kind.SATURATED, code="inflight", retry_after_s=1.0)
    places.free()
    await places.take()
    assert places.taken == 1


async def test_who_leaves_the_line_holds_nobody_up() -> None:
    places = Places(1, 5.0)
    await places.take()
    leaver, stayer = await waiting(places), await waiting(places)
    leaver.cancel()
    await asyncio.wait([leaver])
    places.free()
    await stayer
    places.free()
    assert places.taken == 0


async def test_a_place_that_comes_as_its_taker_leaves_goes_to_the_next() -> None:
    places = Places(1, 5.0)
    await places.take()
    leaver, stayer = await waiting(places), await waiting(places)
    places.free()
    leaver.cancel()
    await asyncio.wait([leaver])
    await stayer
    places.free()
    assert places.taken == 0
