"""The inventory over processes: workers, several gateways, one that is killed; and the templates of paths."""

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gateway_process import Server, Site, ask, gateway, open_site, running

from memos_llm.core.inventory import Recorded
from memos_llm.gateway.templates import BLANK, WORDS, route_of
from memos_llm.store import open_store


async def recorded(site: Site) -> Recorded:
    store = open_store(site.config.store_url)
    try:
        return await store.recorded()
    finally:
        await store.aclose()


async def counted(site: Site) -> int:
    return sum(one.n for one in (await recorded(site)).sightings if one.what == "request")


async def counted_at_last(site: Site, expected: int) -> None:
    """It is all written within a few seconds."""
    async with asyncio.timeout(20):
        while await counted(site) < expected:
            await asyncio.sleep(0.1)
    assert await counted(site) == expected


async def ask_many(server: Server, n: int) -> None:
    for _ in range(n):
        async with httpx.AsyncClient(timeout=20) as client:  # another connection each time: another worker
            await ask(client, server.url)


async def test_workers_and_gateways_count_into_one_store_and_the_end_writes_the_rest(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(tmp_path))
        fleet = await stack.enter_async_context(
            running("--config", str(site.path), "serve", "--port", "0", "--workers", "2")
        )
        alone = await stack.enter_async_context(gateway(site))
        await asyncio.gather(ask_many(fleet, 12), ask_many(alone, 8))
        for server in (fleet, alone):
            os.kill(server.pid, signal.SIGTERM)
            assert await server.ended(20) == 0
        assert await counted(site) == 20


async def test_a_gateway_that_is_killed_loses_the_seconds_since_its_last_flush_and_counts_nothing_twice(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(tmp_path))
        server = await stack.enter_async_context(gateway(site))
        await ask_many(server, 10)
        await counted_at_last(site, 10)
        await ask_many(server, 3)
        os.kill(server.pid, signal.SIGKILL)
        await server.ended(10)
        assert 10 <= await counted(site) <= 13
        before = await counted(site)
        again = await stack.enter_async_context(gateway(site))
        await ask_many(again, 5)
        os.kill(again.pid, signal.SIGTERM)
        assert await again.ended(20) == 0
        assert await counted(site) == before + 5


ROUTES = [
    ("POST", "/v1/responses", "POST /v1/responses"),
    ("GET", "/v1/responses/resp_68a1/input_items?limit=3", "GET /v1/responses/…/input_items"),
    ("HEAD", "/api/blobs/sha256:29fdb92e57cf", "HEAD /api/blobs/…"),
    ("POST", "/v1/audio/transcriptions", "POST /v1/audio/transcriptions"),
    ("POST", "/v1/something_new", "POST /v1/something_new"),
    ("GET", "/v1/sk-live-51H8xYz", "GET /v1/…"),
    ("GET", "/v1/files/secret/content/", "GET /v1/files/…/content"),
    ("BREW", "/api/status", "OTHER /api/status"),
    ("GET", "/v1" + "/x" * 40, "GET /v1/x" + "/…" * 5),
]


@pytest.mark.parametrize(("method", "path", "route"), ROUTES)
def test_a_path_is_told_without_what_identifies_one_thing(method: str, path: str, route: str) -> None:
    assert route_of(method, path) == route


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=9))
def test_of_any_path_only_known_words_are_kept_beyond_the_routes_own_name(segments: list[str]) -> None:
    path = route_of("GET", "/v1/files/" + "/".join(segments)).removeprefix("GET /")
    assert set(path.split("/")) <= WORDS | {BLANK}
    assert len(path.split("/")) <= 7
