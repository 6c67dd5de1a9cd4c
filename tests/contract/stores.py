"""The stores over which the conformance suite runs, and its fixtures. To add one: a line in `STORES`."""

from collections.abc import AsyncIterator, Callable, Mapping
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
from redis_server import RedisServer

from memos_llm.core.ports import Clock, StateStore
from memos_llm.store import MemoryStore, SqliteStore
from memos_llm.store.redis import RedisStore
from memos_llm.store.redis_url import parse


class ManualClock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Homes(NamedTuple):
    """Where a store may be: a folder of the test's own, a prefix of its own on a server that tests share."""

    directory: Path
    prefix: str
    redis: Callable[[], RedisServer]


def _redis(homes: Homes, clock: Clock) -> StateStore:
    """The limit is not the product's: a busy machine may be slow, and that is not what these tests are about."""
    return RedisStore(parse(homes.redis().url(homes.prefix)), clock=clock, limit_s=10.0)


STORES: Mapping[str, Callable[[Homes, Clock], StateStore]] = {
    "memory": lambda _, clock: MemoryStore(clock=clock),
    "sqlite": lambda homes, clock: SqliteStore(homes.directory / "contract.db", clock=clock),
    "redis": _redis,
}

_PREFIXES = count()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[StateStore]:
    """Each of the stores in turn, new, with a clock that the test sets."""
    homes = Homes(tmp_path, f"test-{next(_PREFIXES)}", lambda: request.getfixturevalue("redis"))
    made = STORES[request.param](homes, clock)
    yield made
    await made.aclose()
