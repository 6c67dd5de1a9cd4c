"""What is Redis's own: its URL, its limits, who may do what there, what it tells when it cannot be used."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
from msgspec.structs import replace
from redis_server import RedisServer, redis_server

from memos_llm.core.commands import Actor, Shift, audit
from memos_llm.core.errors import ConfigError, Refused, StoreUnreachable
from memos_llm.core.flags import SCHEMA, Flags, fresh
from memos_llm.core.ports import Instance, StateStore
from memos_llm.core.windows import KEEP_COARSE_S, WindowDelta, WindowKey
from memos_llm.store import open_store, rows
from memos_llm.store import redis as redis_store
from memos_llm.store.redis_url import parse

PREFIXES = count()
TLS = Path(__file__).parents[1] / "providers" / "tls"
KEY = WindowKey(scope="*", epoch=1, provider="vllm", model="m", component="c")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[StateStore]:
    store = open_store(url)
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
def prefix() -> str:
    return f"own-{next(PREFIXES)}"


async def seed(store: StateStore, *, schema: int = SCHEMA) -> None:
    flags = fresh("i" * 16, "5a" * 16)
    flags = replace(flags, schema=schema)
    await store.commit(0, flags, audit(Shift(provider="vllm", share_ppm=0), flags, flags, Actor("t"), 1.0))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h", "redis://h:6379/0"),
        ("redis://me:hush@h:7000/3", "redis://h:7000/3"),
        ("rediss://:hush@[::1]/1?ssl_ca_certs=/ca.pem", "rediss://[::1]:6379/1"),
        ("unix://me:hush@/run/redis.sock?db=2&prefix=fleet:", "unix:///run/redis.sock"),
    ],
)
def test_what_a_url_says_is_shown_without_user_and_password(url: str, shown: str) -> None:
    place = parse(url)
    assert place.shown == shown
    assert place.options.get("password", "hush") == "hush"
    assert place.prefix == ("{fleet}:" if "fleet" in url else "{memos_llm}:")  # one slot of a cluster


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://me:hush@",
        "redis://h/x",
        "redis://me:hush@h:port",
        "redis://me:hush@h?ssl=none",
        "redis://me:hush@h?prefix=",
        "redis://me:hush@h?prefix=a{b}",
        "unix://me:hush@host/run/redis.sock",
        "unix:///",
    ],
)
def test_a_url_that_names_no_redis_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError, match=r"redis://host:6379/0") as caught:
        open_store(url)
    assert "hush" not in caught.value.message


async def test_nobody_there_is_said_with_the_place() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with opened(f"redis://me:hush@127.0.0.1:{port}") as store:
        with pytest.raises(StoreUnreachable, match=rf"redis://127.0.0.1:{port}/0: it cannot be reached") as caught:
            await store.load()
    assert "hush" not in caught.value.message


async def test_a_hung_redis_is_unreachable_and_works_again_when_it_goes_on() -> None:
    with redis_server() as server:
        async with opened(server.url()) as store:
            await seed(store)
            server.hang()
            began = time.monotonic()
            with pytest.raises(StoreUnreachable, match="did not answer within 250 ms"):
                await store.load()
            took = time.monotonic() - began
            server.go_on()
            assert (await loaded(store)).revision == 1
        assert took >= 0.25


async def test_what_a_hung_redis_was_given_and_is_given_again_is_added_once() -> None:
    deltas = [WindowDelta(key=KEY, start=int(time.time()), counts={"n": 3, "k": 1})]
    with redis_server() as server:
        async with opened(server.url()) as store:
            await seed(store)
            await store.merge(())
            server.hang()
            for _ in range(3):
                with pytest.raises(StoreUnreachable, match="did not answer within 250 ms"):
                    await store.merge(deltas)
            server.go_on()
            await loaded(store)
            await store.merge(deltas)
            assert {row.counts["n"] for row in (await store.merge(())).rows} == {3}
            await store.merge(deltas)  # that was another one, which happened to be alike
            assert {row.counts["n"] for row in (await store.merge(())).rows} == {6}


async def loaded(store: StateStore) -> Flags:
    """Recovery may take more than one try on a busy machine."""
    async with asyncio.timeout(10):
        while True:
            try:
                flags = await store.load()
            except StoreUnreachable:
                await asyncio.sleep(0.05)
                continue
            assert flags is not None
            return flags


async def test_a_redis_that_may_throw_keys_away_is_refused_until_it_may_not() -> None:
    with redis_server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        async with opened(server.url()) as store:
            with pytest.raises(StoreUnreachable, match="set `maxmemory-policy noeviction`"):
                await store.load()
            assert server.command("CONFIG", "SET", "maxmemory-policy", "noeviction").startswith("+OK")
            assert await store.load() is None


async def test_a_full_redis_takes_nothing_and_says_what_to_do() -> None:
    with redis_server("--maxmemory", "1", "--maxmemory-policy", "noeviction") as server:
        async with opened(server.url()) as store:
            with pytest.raises(StoreUnreachable, match="maxmemory is used up"):
                await seed(store)
            assert await store.load() is None


async def test_a_user_of_its_own_with_no_more_than_the_rights_that_the_error_names(prefix: str) -> None:
    with redis_server() as server:
        rights = ("+@read", "+@write", "+eval", "+evalsha", "+time", "+publish", "+subscribe", "+info")
        place = (f"~{{{prefix}}}*", f"&{{{prefix}}}*")
        assert server.command("ACL", "SETUSER", "memos", "on", ">hu:sh@", *place, *rights).startswith("+OK")
        url = server.url(prefix).replace("unix://", "unix://memos:hu%3Ash%40@")
        async with opened(url) as store:
            watch = store.watch()
            await seed(store)
            assert (await asyncio.wait_for(anext(watch), 5)).revision == 1
            await store.merge([WindowDelta(key=KEY, start=int(time.time()), counts={"n": 1})])
            await store.heartbeat(Instance(id="a", kind="test", revision=1, at=0.0))
            assert len(await store.instances()) == 1
        async with opened(url.replace(prefix, "another")) as store:
            with pytest.raises(StoreUnreachable, match="ACL SETUSER"):
                await store.load()
        async with opened(url.replace("hu%3Ash%40", "wrong-secret")) as store:
            with pytest.raises(StoreUnreachable, match="user or password") as caught:
                await store.load()
        assert "wrong-secret" not in caught.value.message


async def test_who_may_not_listen_hears_of_changes_all_the_same(prefix: str) -> None:
    with redis_server() as server:
        rights = (f"~{{{prefix}}}*", "+@all", "-subscribe", "-publish")
        assert server.command("ACL", "SETUSER", "memos", "on", ">x", *rights).startswith("+OK")
        url = server.url(prefix).replace("unix://", "unix://memos:x@")
        async with opened(url) as store, opened(url) as other:
            watch = other.watch()
            assert await other.load() is None
            await seed(store)
            assert (await asyncio.wait_for(anext(watch), 5)).revision == 1


async def test_two_prefixes_are_two_stores(redis: RedisServer, prefix: str) -> None:
    async with opened(redis.url(prefix)) as one, opened(redis.url(f"{prefix}-b")) as other:
        await seed(one)
        assert await other.load() is None


async def test_something_else_under_its_keys_is_told_and_left_alone(redis: RedisServer, prefix: str) -> None:
    assert redis.command("SET", f"{{{prefix}}}:flags", "mine").startswith("+OK")
    async with opened(redis.url(prefix)) as store:
        with pytest.raises(StoreUnreachable, match="prefix"):
            await seed(store)
    assert "mine" in redis.command("GET", f"{{{prefix}}}:flags")


async def test_a_store_of_a_newer_schema_is_only_read(redis: RedisServer, prefix: str) -> None:
    async with opened(redis.url(prefix)) as store:
        await seed(store, schema=SCHEMA + 1)
        flags = await store.load()
        assert flags is not None
        assert flags.schema == SCHEMA + 1
        after = fresh(flags.installation, flags.salt)
        after = replace(after, revision=2)
        entry = audit(Shift(provider="v", share_ppm=0), after, after, Actor("t"), 1.0)
        delta = WindowDelta(key=KEY, start=int(time.time()), counts={"n": 1})
        with pytest.raises(Refused, match="newer memos_llm"):
            await store.commit(1, after, entry)
        with pytest.raises(Refused, match="newer memos_llm"):
            await store.merge([delta])
        with pytest.raises(Refused, match="newer memos_llm"):
            await store.record(())
        await store.heartbeat(Instance(id="a", kind="test", revision=1, at=0.0))
        assert list(await store.instances()) == []
        assert (await store.merge(())).rows == ()


async def test_only_what_can_be_done_without_expires(redis: RedisServer, prefix: str) -> None:
    async with opened(redis.url(prefix)) as store:
        await seed(store)
        now = (await store.merge(())).at
        assert abs(now - time.time()) < 60  # Redis's own clock, on this host
        await store.merge([WindowDelta(key=KEY, start=int(now), counts={"n": 1})])
        await store.heartbeat(Instance(id="a", kind="test", revision=1, at=0.0))
    left = {name: ttl(redis, f"{{{prefix}}}:{name}") for name in ("flags", "history", "windows", "instances")}
    assert (left["flags"], left["history"]) == (-1, -1)
    assert KEEP_COARSE_S <= left["windows"] <= KEEP_COARSE_S + 3600
    assert 3500 < left["instances"] <= 3600
    row = ttl(redis, f"{{{prefix}}}:windows:row:1:{int(now)}:1")
    assert 900 <= row <= 1100


def ttl(redis: RedisServer, key: str) -> int:
    return int(redis.command("TTL", key).strip(":\r\n"))


async def test_more_rows_than_fit_into_one_answer_are_all_told(
    redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "PAGE", 7)
    async with opened(redis.url(prefix)) as store, opened(redis.url(prefix)) as other:
        now = int((await store.merge(())).at)
        deltas = [WindowDelta(key=KEY, start=now - n, counts={"n": n + 1}) for n in range(100)]
        await store.merge(deltas)
        found = await other.merge(())
        assert found.whole
        assert {row.start: row.counts for row in found.rows if row.width_s == 1} == {
            delta.start: delta.counts for delta in deltas
        }
        assert (await other.merge((), found.cursor)).rows == ()


async def test_over_tls_the_servers_certificate_is_checked(prefix: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = ("--tls-cert-file", str(TLS / "cert.pem"), "--tls-key-file", str(TLS / "key.pem"))
    trusting = f"?prefix={prefix}&ssl_ca_certs={TLS / 'cert.pem'}"
    with redis_server("--tls-port", str(port), *files, "--tls-auth-clients", "no", "--requirepass", "hush"):
        async with opened(f"rediss://:hush@localhost:{port}/0{trusting}") as store:
            await seed(store)
            assert (await loaded(store)).revision == 1
        for untrusted in (f"localhost:{port}/0?prefix={prefix}", f"127.0.0.1:{port}/0{trusting}"):
            async with opened(f"rediss://:hush@{untrusted}") as store:
                with pytest.raises(StoreUnreachable, match="certificate") as caught:
                    await store.load()
                assert "hush" not in caught.value.message


async def test_keys_beyond_the_bound_go_those_first_that_were_added_to_longest_ago(
    redis: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_KEYS", 5)
    monkeypatch.setattr(rows, "CROWDED", 6)
    async with opened(redis.url(prefix)) as store:
        now = int((await store.merge(())).at)
        keys = [replace(KEY, component=f"c{n}") for n in range(7)]
        for key in keys:
            await store.merge([WindowDelta(key=keys[0], start=now, counts={"n": 1})])
            found = await store.merge([WindowDelta(key=key, start=now, counts={"n": 1})])
        kept = {row.key.component: row.counts for row in found.rows if row.width_s == 1}
        assert kept.keys() == {"c0", "c3", "c4", "c5", "c6"}
        assert kept["c0"] == {"n": 8}  # it was added to all along
        await store.merge([WindowDelta(key=keys[1], start=now, counts={"n": 9})])
        again = {row.key.component: row.counts for row in (await store.merge(())).rows if row.width_s == 1}
        assert again["c1"] == {"n": 9}
