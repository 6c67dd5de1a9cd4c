"""A gateway process that is killed with -9 while it rolls back, at many instants around the act: latch and incident are
there both or neither, and the other process completes it.
"""

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from redis_server import RedisServer, redis_server
from stack import until

from fleet.pair import FAILS, SHARE, Gateway, Pair, Users, open_pair
from memos_llm.control import last_good
from memos_llm.core.commands import Rearm, Shift
from memos_llm.core.flags import GLOBAL, PPM

PATIENCE_S = 30.0
LATEST_S = 1.5  # of a kill, after the fault began; the act is at some 0.5 s
GOLDEN = 0.618034  # whose multiples lie evenly in 0…1
SOON_S = 0.03  # of a kill, after the share was taken back: between that, the commit and what follows it


async def killed_when(doomed: Gateway, number: int, began: float, rng: random.Random) -> None:
    """Every other time somewhere in the whole stretch, else right at the act."""
    if number % 2:
        await asyncio.sleep(LATEST_S * (number * GOLDEN / 2 % 1))
    else:
        await doomed.until_latched(began)
        await asyncio.sleep(rng.choice((0.0, rng.uniform(0, SOON_S))))
    await doomed.kill()


async def one_round(pair: Pair, users: Users, number: int, rng: random.Random) -> str:
    """What the killed one left behind, in words."""
    doomed, other = pair.gateways if number % 4 < 2 else reversed(pair.gateways)
    known = len((await pair.stored())[1])
    users.at = [doomed]
    began = time.time()
    pair.vllm.faults.set(FAILS)
    await killed_when(doomed, number, began, rng)
    users.at = []
    cut = doomed.latched_at(began) is not None

    flags, incidents = await pair.stored()
    assert flags is not None
    latch = flags.scope(GLOBAL).latch
    left = [record.id for record in incidents[known:]]
    assert left == ([latch.incident] if latch else []), "both or neither"

    users.at = [other]
    since = await other.until_latched(began)
    async with asyncio.timeout(PATIENCE_S):
        while not await pair.latched():
            await asyncio.sleep(0.05)
    pair.vllm.faults.clear()
    sides, _ = await asyncio.gather(users.sides(other), doomed.start())
    assert set(sides.values()) == {"baseline"}
    users.at = [doomed]
    assert set((await users.sides(doomed)).values()) == {"baseline"}
    flags, incidents = await pair.stored()
    assert flags is not None
    latch = flags.scope(GLOBAL).latch
    assert latch is not None
    assert [record.id for record in incidents[known:]] == [latch.incident]
    assert not left or left == [latch.incident]
    assert other.shares_shown(since) == {0.0}
    assert {one.arm for one in users.of(since) if one.gateway is other} == {"baseline"}
    return "was there" if left else "cut, and not published" if cut else "nothing"


async def killed_at_random(pair: Pair, rounds: int) -> None:
    rng = random.Random()
    left: Counter[str] = Counter()
    again = Rearm(provider="vllm", force=True, reason="the next round's turn")
    async with Users([]) as users:
        for number in range(rounds):
            left[await one_round(pair, users, number, rng)] += 1
            users.at = []
            flags = await pair.submit(again, Shift(provider="vllm", share_ppm=round(SHARE * PPM)))
            for gateway in pair.gateways:
                await gateway.until_revision(flags.revision)
    print(f"left behind by {rounds}: {dict(left)}")
    assert rounds < 20 or len(left) > 1, "always at the same instant"


@pytest.mark.parametrize("rounds", [3, pytest.param(60, marks=pytest.mark.slow)])
async def test_on_sqlite(tmp_path: Path, rounds: int) -> None:
    """Both on one host, with one file of last good flags."""
    async with open_pair(tmp_path, f"sqlite:////{tmp_path}/store/x.db") as pair:
        await killed_at_random(pair, rounds)


@pytest.mark.parametrize("rounds", [3, pytest.param(60, marks=pytest.mark.slow)])
async def test_on_redis(redis: RedisServer, tmp_path: Path, rounds: int) -> None:
    """Each on a host of its own."""
    async with open_pair(tmp_path, redis.url(f"kill-{tmp_path.name}"), homes=("one", "two")) as pair:
        await killed_at_random(pair, rounds)


@pytest.mark.slow
async def test_while_the_store_is_away_its_successor_knows_and_completes_it(tmp_path: Path) -> None:
    with redis_server() as server:
        async with open_pair(tmp_path, server.url(), homes=("one", "two")) as pair, Users(pair.gateways) as users:
            before = await users.sides(*pair.gateways)
            server.kill()
            users.at = [pair.a]
            began = time.time()
            pair.vllm.faults.set(FAILS)
            await pair.a.until_latched(began)
            (kept,) = (pair.a.home / ".local/state/memos_llm/last_good").glob("*.json")
            await until(lambda: last_good.read(kept).cuts, PATIENCE_S)
            users.at = []
            await pair.a.kill()
            pair.vllm.faults.clear()
            server.start()
            assert (await pair.stored())[1] == ()
            users.at = [pair.b]
            assert await users.sides(pair.b) == before
            killed_at = time.time()
            await pair.a.start()
            users.at = pair.gateways
            await pair.b.until_latched(began)
            assert set((await users.sides(*pair.gateways)).values()) == {"baseline"}
            flags, (record,) = await pair.stored()
            assert flags is not None
            latch = flags.scope(GLOBAL).latch
            assert latch is not None
            assert record.id == latch.incident
            assert {one.arm for one in users.of(killed_at) if one.gateway is pair.a} == {"baseline"}, "from the start"
            assert {one.status for one in users.answers} == {200}
