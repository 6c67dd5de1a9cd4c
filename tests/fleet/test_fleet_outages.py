"""Two gateway processes under traffic whose store goes away, comes back, or comes back as another one.

Whatever becomes of the store: every request is answered, by the side that it was on before, and none waits for it;
the gateway that sees the candidate fail takes its share back at once; nothing is promoted; and afterwards there is one
latch, one incident, and no share that was taken back.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import outages
import pytest
from redis_server import RedisServer, redis_server

from fleet.pair import FAILS, SHARE, Gateway, Pair, Users, open_pair, slowest, split
from memos_llm.core.commands import Shift
from memos_llm.core.flags import GLOBAL, PPM

PATIENCE_S = 40.0
REDIS_S, BUSY_S = 0.25, 5.0  # what a request would take at least that waited for a Redis that hangs, a locked file
UNREACHABLE, REFUSED, DONE = 4, 3, 0

Outage = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """One of the test's own: it is not well treated."""
    with redis_server() as server:
        yield server


def place_of(folder: Path) -> outages.Place:
    (folder / "store").mkdir()
    return outages.Place(folder / "store")


def url_of(place: outages.Place) -> str:
    return f"sqlite:////{place.path}"


# What must hold


async def nothing_is_promoted(pair: Pair, status: int, code: int) -> None:
    """Neither by the admin API nor on the command line; and it is said so."""
    ran, here, there = await asyncio.gather(
        pair.llmctl("shift", "--vllm", "0.9"),
        pair.order(pair.a, "shift", provider="vllm", share=0.9),
        pair.order(pair.b, "shift", provider="vllm", share=0.9),
    )
    assert (ran.code, ran.out) == (code, ""), ran
    assert {here, there} == {status}


async def is_cut(seeing: Sequence[Gateway], since: float) -> dict[Gateway, float]:
    """When each of them took the share back."""
    for gateway in seeing:
        await gateway.until_latched(since)
    return {gateway: gateway.latched_at(since) or 0.0 for gateway in seeing}


async def away(pair: Pair, users: Users, lasts_s: float, seeing: Sequence[Gateway]) -> dict[Gateway, float]:
    """While the store is away: when each of `seeing` has taken the share back."""
    began = time.time()
    before = await users.sides(*pair.gateways)
    assert split(before)
    for gateway in pair.gateways:
        await gateway.until_store(reachable=False)
    await nothing_is_promoted(pair, 503, UNREACHABLE)
    assert await users.sides(*pair.gateways) == before

    users.at = list(seeing)
    fails_at = time.time()
    pair.vllm.faults.set(FAILS)
    cut_at = await is_cut(seeing, fails_at)
    assert set((await users.sides(*seeing)).values()) == {"baseline"}
    pair.vllm.faults.clear()
    users.at = list(pair.gateways)
    unknowing = [gateway for gateway in pair.gateways if gateway not in seeing]
    while time.time() < began + lasts_s:
        assert set((await users.sides(*seeing)).values()) == {"baseline"}
        if unknowing:
            assert await users.sides(*unknowing) == before
    return cut_at


async def is_published(pair: Pair, users: Users, cut_at: dict[Gateway, float]) -> None:
    """One latch, one incident with what each of them saw, everybody follows, and no share came back."""
    began = min(cut_at.values())
    await is_cut(pair.gateways, began)
    assert set((await users.sides(*pair.gateways)).values()) == {"baseline"}
    async with asyncio.timeout(PATIENCE_S):
        while not await pair.latched() or len((await pair.stored())[1][0].evidence) < len(cut_at):
            await asyncio.sleep(0.1)
    flags, incidents = await pair.stored()
    assert flags is not None
    latch = flags.scope(GLOBAL).latch
    assert latch is not None
    assert [record.id for record in incidents] == [latch.incident]
    for gateway in cut_at:
        (evidence,) = [one for one in incidents[0].evidence if f"-{gateway.pid}-" in one.by]
        assert cut_at[gateway] - evidence.at <= 1.0, "from the verdict to no share"
    for gateway in pair.gateways:
        since = gateway.latched_at(began) or 0.0
        assert gateway.shares_shown(since) == {0.0}
        assert {one.arm for one in users.of(since) if one.gateway is gateway} == {"baseline"}
    assert (await pair.llmctl("shift", "--vllm", "0.9")).code == REFUSED
    assert await pair.order(pair.b, "shift", provider="vllm", share=0.9) == 409


def none_waited(users: Users, since: float, until: float) -> None:
    """All were answered, well; and however busy the machine is, in less time than waiting for the store takes."""
    asked = users.of(since, until)
    print(f"while the store was away: {slowest(asked)}")
    assert {one.status for one in users.answers} == {200}
    took = sorted(one.took_s for one in asked)
    assert took[len(took) // 10] < REDIS_S
    assert took[-1] < BUSY_S


async def goes_away(pair: Pair, outage: Outage, lasts_s: float, *, both: bool = False) -> None:
    async with Users(pair.gateways) as users:
        assert split(await users.sides(*pair.gateways))
        async with outage():
            since = time.time()
            seeing = pair.gateways if both else pair.gateways[:1]
            cut_at = await away(pair, users, lasts_s, seeing)
            ended = time.time()
        await is_published(pair, users, cut_at)
        none_waited(users, since, ended)


# Redis


@asynccontextmanager
async def killed(server: RedisServer) -> AsyncIterator[None]:
    server.kill()
    yield
    server.start()


@asynccontextmanager
async def hung(server: RedisServer) -> AsyncIterator[None]:
    server.hang()
    yield
    server.go_on()


@pytest.mark.parametrize("lasts_s", [4.0, pytest.param(60.0, marks=pytest.mark.slow)])
async def test_redis_is_killed_and_restarted_intact(redis: RedisServer, tmp_path: Path, lasts_s: float) -> None:
    async with open_pair(tmp_path, redis.url(), homes=("one", "two")) as pair:
        await goes_away(pair, lambda: killed(redis), lasts_s)


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True], ids=["one-sees-it", "both-see-it"])
async def test_redis_hangs(redis: RedisServer, tmp_path: Path, *, both: bool) -> None:
    async with open_pair(tmp_path, redis.url(), homes=("one", "two")) as pair:
        await goes_away(pair, lambda: hung(redis), 10.0, both=both)


# SQLite


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True], ids=["one-sees-it", "both-see-it"])
async def test_the_file_is_locked(tmp_path: Path, *, both: bool) -> None:
    place = place_of(tmp_path)
    async with open_pair(tmp_path, url_of(place)) as pair:
        await goes_away(pair, lambda: outages.locked(place), 8.0, both=both)


@pytest.mark.slow
async def test_the_disk_is_full(tmp_path: Path) -> None:
    place = place_of(tmp_path)
    with outages.disk(place):
        if not place.path.parent.is_mount():
            pytest.skip("no file system of its own can be mounted here")
        async with open_pair(tmp_path, url_of(place)) as pair:
            await goes_away(pair, lambda: outages.full(place), 8.0)


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True], ids=["one-sees-it", "both-see-it"])
async def test_the_file_is_damaged_and_put_right(tmp_path: Path, *, both: bool) -> None:
    place = place_of(tmp_path)
    async with open_pair(tmp_path, url_of(place)) as pair:
        await goes_away(pair, lambda: outages.damaged(place), 4.0, both=both)


@pytest.mark.slow
async def test_they_start_on_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    """With what they knew last; and once it can be written to, they go on as ever."""
    place = place_of(tmp_path)
    with outages.disk(place):
        async with open_pair(tmp_path, url_of(place)) as pair:
            async with Users(pair.gateways) as users:
                before = await users.sides(*pair.gateways)
            await asyncio.gather(*(gateway.stop() for gateway in pair.gateways))

            @asynccontextmanager
            async def read_only() -> AsyncIterator[None]:
                async with outages.read_only(place):
                    await pair.start()
                    yield

            async with Users([]) as users, read_only():
                since = time.time()
                users.at = list(pair.gateways)
                assert await users.sides(*pair.gateways) == before
                cut_at = await away(pair, users, 4.0, pair.gateways[:1])
                ended = time.time()
            async with users:
                await is_published(pair, users, cut_at)
                none_waited(users, since, ended)


# It comes back as another


async def regressed(pair: Pair, users: Users, before: dict[int, str]) -> None:
    """Both have seen it; they keep what they had, and take no raise."""
    for gateway in pair.gateways:
        await gateway.until_store(regressed=True)
    await nothing_is_promoted(pair, 409, REFUSED)
    assert await users.sides(*pair.gateways) == before


async def adopted(pair: Pair) -> None:
    shown = await pair.llmctl("store", "adopt")
    assert (shown.code, "regressed" in shown.out) == (REFUSED, True), shown
    ran = await pair.llmctl("store", "adopt", "--yes", "--reason", "tested")
    assert ran.code == DONE, ran
    for gateway in pair.gateways:
        await gateway.until_store()


async def roll_back(pair: Pair, users: Users) -> dict[int, str]:
    """By the guard, while the store is well."""
    since = time.time()
    pair.vllm.faults.set(FAILS)
    await is_cut(pair.gateways, since)
    pair.vllm.faults.clear()
    return await users.sides(*pair.gateways)


async def shifted(pair: Pair, share: float) -> None:
    """By an operator elsewhere, and in force at both gateways."""
    flags = await pair.submit(Shift(provider="vllm", share_ppm=round(share * PPM)))
    for gateway in pair.gateways:
        await gateway.until_revision(flags.revision)


async def comes_back_as_another(pair: Pair, replace: Callable[[], None]) -> None:
    """While latched: nobody of either side ever leaves the baseline, and the latch stands once it is adopted."""
    async with Users(pair.gateways) as users:
        assert split(await users.sides(*pair.gateways))
        before = await roll_back(pair, users)
        assert set(before.values()) == {"baseline"}
        since = time.time()
        replace()
        await regressed(pair, users, before)
        await adopted(pair)
        assert await users.sides(*pair.gateways) == before
        assert await pair.latched()
        assert (await pair.llmctl("shift", "--vllm", "0.9")).code == REFUSED
        for gateway in pair.gateways:
            assert gateway.shares_shown(since) <= {0.0}
        assert {one.arm for one in users.of(since)} == {"baseline"}
        none_waited(users, since, time.time())


@pytest.mark.slow
async def test_redis_is_flushed_while_latched(redis: RedisServer, tmp_path: Path) -> None:
    async with open_pair(tmp_path, redis.url(), homes=("one", "two")) as pair:
        await comes_back_as_another(pair, redis.flush)


@pytest.mark.slow
async def test_redis_is_replaced_by_an_older_copy_with_a_share(redis: RedisServer, tmp_path: Path) -> None:
    def replace() -> None:
        redis.kill()
        redis.go_back("older")
        redis.start()

    async with open_pair(tmp_path, redis.url(), homes=("one", "two")) as pair:
        await shifted(pair, 1.0)
        redis.stop()
        redis.keep("older")
        redis.start()
        await shifted(pair, SHARE)
        await comes_back_as_another(pair, replace)


@pytest.mark.slow
async def test_a_file_is_replaced_by_an_older_copy_with_a_share(tmp_path: Path) -> None:
    place = place_of(tmp_path)
    async with open_pair(tmp_path, url_of(place)) as pair:
        await shifted(pair, 1.0)
        place.save("older")
        await shifted(pair, SHARE)
        await comes_back_as_another(pair, lambda: place.put("older"))


async def comes_back_empty(pair: Pair, replace: Callable[[], None]) -> None:
    """While half of the users are on the candidate: they stay there; what is rolled back then is kept by adopting."""
    async with Users(pair.gateways) as users:
        before = await users.sides(*pair.gateways)
        assert split(before)
        since = time.time()
        replace()
        await regressed(pair, users, before)
        assert set((await roll_back(pair, users)).values()) == {"baseline"}
        ended = time.time()
        await nothing_is_promoted(pair, 409, REFUSED)
        await adopted(pair)
        async with asyncio.timeout(PATIENCE_S):
            while not await pair.latched():
                await asyncio.sleep(0.1)
        assert set((await users.sides(*pair.gateways)).values()) == {"baseline"}
        flags, incidents = await pair.stored()
        assert flags is not None
        latch = flags.scope(GLOBAL).latch
        assert latch is not None
        assert [record.id for record in incidents] == [latch.incident]
        for gateway in pair.gateways:
            cut_at = gateway.latched_at(since) or 0.0
            assert gateway.shares_shown(cut_at) == {0.0}
            assert {one.arm for one in users.of(cut_at) if one.gateway is gateway} == {"baseline"}
        none_waited(users, since, ended)


@pytest.mark.slow
async def test_redis_is_killed_and_restarted_empty(redis: RedisServer, tmp_path: Path) -> None:
    def replace() -> None:
        redis.kill()
        redis.empty()
        redis.start()

    async with open_pair(tmp_path, redis.url(), homes=("one", "two")) as pair:
        await comes_back_empty(pair, replace)


@pytest.mark.slow
async def test_the_file_is_deleted(tmp_path: Path) -> None:
    place = place_of(tmp_path)
    async with open_pair(tmp_path, url_of(place)) as pair:
        await comes_back_empty(pair, place.take_away)
