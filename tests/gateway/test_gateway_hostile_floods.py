"""Clients that mean harm by quantity: more bytes, connections or requests than anybody needs, or all too slowly.

What it costs is measured at a gateway that is a process of its own: its memory at the peak, and what well-behaved
clients (in a process of their own, too) waited during the attack against what they waited before it, in the same run.
"""

import asyncio
import contextlib
import socket
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from attacking import CHAT, CHUNKED, HOST, Line, head, memory_mb, percentile, port_of, post
from stack import Stack, open_stack, until
from test_gateway_process import Server, Site, gateway, open_site

from memos_llm.core.events import InternalError, RequestRefused

MB = 1 << 20
HEALTH = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
VERSION = b"GET /api/version HTTP/1.1\r\n" + HOST + b"\r\n"


# --- one connection ---------------------------------------------------------------------------------------------------


async def test_pipelined_requests_are_answered_in_order(stack: Stack) -> None:
    line = await Line.to(stack.url)
    await line.send(b"".join(post(headers=b"x-request-id: n-%d\r\n" % at) for at in range(50)))
    for at in range(50):
        answer = await line.answer()
        assert (answer.status, b"x-request-id: n-%d\r\n" % at in answer.head) == (200, True)
    line.close()


async def test_a_fault_behind_good_requests_is_answered_in_its_turn(stack: Stack) -> None:
    for fault, status in (
        (b"GARBAGE\r\n\r\n", 400),
        (head(headers=CHUNKED) + b"zz\r\n", 400),
        (b"GET /" + b"a" * 70_000, 431),
    ):
        line = await Line.to(stack.url)
        await line.send(post() * 3 + fault)
        assert [(await line.answer()).status for _ in range(4)] == [200, 200, 200, status]
        assert await line.rest() == b""
        line.close()
    assert sorted(event.status for event in stack.told.of(RequestRefused)) == [400, 400, 431]
    assert not stack.told.of(InternalError)


@pytest.mark.parametrize("cut", [1, 30, 200, -1])
async def test_a_request_for_another_protocol_is_read_as_one_for_this(cut: int, stack: Stack) -> None:
    """What Java's and curl's clients send by themselves; its body is a body, wherever the packets end."""
    sent = post(headers=b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n")
    line = await Line.to(stack.url)
    for _ in range(2):
        await line.send(sent[:cut])
        await asyncio.sleep(0.01)  # a packet of its own
        await line.send(sent[cut:])
        answer = await line.answer()
        assert (answer.status, b'"done":true' in answer.body) == (200, True)
    line.close()


async def test_an_answer_before_the_end_of_its_request_ends_the_connection(stack: Stack) -> None:
    """Nothing that follows is taken for another request."""
    smuggled = post(headers=b"x-request-id: smuggled\r\n")
    for path, status in ((b"/nothing", 404), (b"/health", 405), (b"/metrics", 405)):
        line = await Line.to(stack.url)
        await line.send(head(path, b"content-length: 1000000\r\n"))
        answer = await line.answer()
        assert (answer.status, b"connection: close" in answer.head) == (status, True)
        await line.send(smuggled)
        assert await line.rest() == b""
        line.close()
    assert not [request for request in stack.ollama.requests if request.method == "POST"]


async def test_connections_have_a_limit(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"max_connections": 3}}) as stack:
        lines = [await Line.to(stack.url) for _ in range(3)]
        for line in lines:
            await line.send(VERSION)
            assert (await line.answer()).status == 200
        more = await Line.to(stack.url)
        await more.send(VERSION)
        answer = await more.answer()
        assert answer.status == 503
        assert b"retry-after: 1" in answer.head
        assert b"limit of connections" in answer.body
        assert await more.rest() == b""
        assert [event.status for event in stack.told.of(RequestRefused)] == [503]
        for line in (more, lines[0]):
            line.close()

        async def served() -> bool:
            line = await Line.to(stack.url)
            await line.send(VERSION)
            status = (await line.answer()).status
            line.close()
            return status == 200

        async with asyncio.timeout(5):
            while not await served():
                await asyncio.sleep(0.02)
        for line in lines:
            line.close()


async def test_bodies_have_a_limit_together(tmp_path: Path) -> None:
    """One that is on its way holds room; who comes when there is none is told to come back, and small ones pass."""
    limits = {"max_bodies_bytes": 600_000, "body_timeout_s": 20}
    async with open_stack(tmp_path, config={"gateway": limits}) as stack:
        large = CHAT[:-1] + b',"x":"' + b"y" * 500_000 + b'"}'
        slow = await Line.to(stack.url)
        await slow.send(post(body=large)[:-1])
        another = await Line.to(stack.url)
        statuses: list[int] = []
        async with asyncio.timeout(10):
            while 503 not in statuses:  # the first is read by then
                await another.send(post(body=large))
                answer = await another.answer()
                statuses.append(answer.status)
                if answer.status == 0 or b"connection: close" in answer.head:
                    another.close()
                    another = await Line.to(stack.url)
        small = await Line.to(stack.url)
        await small.send(post())
        assert (await small.answer()).status == 200
        await slow.send(b"}")
        assert (await slow.answer()).status == 200
        await small.send(post(body=large))
        assert (await small.answer()).status == 200  # what it held was given back
        for line in (slow, another, small):
            line.close()


# --- many, and what others notice of them -----------------------------------------------------------------------------

LIMITS: dict[str, Any] = {"header_timeout_s": 2, "body_timeout_s": 2, "drain_s": 2}


class Target(NamedTuple):
    """A gateway under attack."""

    site: Site
    server: Server

    @property
    def url(self) -> str:
        return self.server.url


@asynccontextmanager
async def target(folder: Path) -> AsyncIterator[Target]:
    async with open_site(folder, gateway=LIMITS) as site, gateway(site) as server:
        yield Target(site, server)


async def loris(it: Target, sent: bytes, more: bytes) -> None:
    """300 connections that send a byte now and then, each until it is closed, which is soon."""

    async def one() -> None:
        line, started = await Line.to(it.url), time.monotonic()
        await line.send(sent)
        rest = asyncio.create_task(line.rest(20))
        while not rest.done():
            await line.send(more)
            await asyncio.wait([rest], timeout=0.2)
        assert rest.result().startswith(b"HTTP/1.1 408")
        assert time.monotonic() - started < LIMITS["body_timeout_s"] + 8
        line.close()

    await asyncio.gather(*[one() for _ in range(300)])


async def slow_heads(it: Target) -> None:
    await loris(it, b"GET /api/version HTTP/1.1\r\n" + HOST, b"x")


async def slow_bodies(it: Target) -> None:
    await loris(it, head(headers=b"content-length: 1000\r\n") + b"{", b" ")


async def push(it: Target, sent: bytes, status: int) -> None:
    """From a thread: writing it must not be what takes the time."""

    def go() -> bytes:
        with socket.create_connection(("127.0.0.1", port_of(it.url)), timeout=30) as line:
            with contextlib.suppress(ConnectionError):
                line.sendall(sent)
            return line.recv(65_536)

    answer = await asyncio.to_thread(go)
    assert answer[9:12] == b"%d" % status, answer[:300]


def with_body(body: bytes) -> bytes:
    return post(headers=b"connection: close\r\n", body=body)


@cache  # to make them keeps this process, and the back ends in it, from anything else
def large(kind: str) -> bytes:
    match kind:
        case "spaces":
            return with_body(b" " * (100 * MB))
        case "chunks":
            return head(headers=CHUNKED) + (b"100000\r\n" + b" " * MB + b"\r\n") * 100
        case "messages":
            return with_body(b'{"model":"qwen3:8b","messages":[' + b",".join([b'{"role":"user"}'] * 1_900_000) + b"]}")
        case "objects":
            return with_body(b'{"model":"qwen3:8b","x_url":[' + b",".join([b"{}"] * 10_000_000) + b"]}")
        case _:
            return with_body(b'{"model":' + b"[" * MB + b"]" * MB + b"}")


async def huge_lengths(it: Target) -> None:
    for _ in range(4):
        await push(it, large("spaces"), 413)


async def huge_chunks(it: Target) -> None:
    for _ in range(4):
        await push(it, large("chunks"), 413)


async def many_values(it: Target) -> None:
    for _ in range(8):
        await push(it, large("messages"), 413)


async def empty_objects(it: Target) -> None:
    for _ in range(8):
        await push(it, large("objects"), 413)


async def deep_nests(it: Target) -> None:
    for _ in range(50):
        await push(it, large("nests"), 400)


async def large_heads(it: Target) -> None:
    await asyncio.gather(*[push(it, b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 200_000, 431) for _ in range(100)])


async def pipelines(it: Target) -> None:
    """10,000 requests that wait for no answer, on each of 4 connections; none is lost."""

    async def one() -> None:
        line = await Line.to(it.url)
        sending = asyncio.create_task(line.send(*[HEALTH * 100] * 100))
        for _ in range(10_000):
            assert (await line.answer(60)).status == 200
        await sending
        line.close()

    async with asyncio.timeout(120):
        await asyncio.gather(*[one() for _ in range(4)])


ATTACKS: list[Callable[[Target], Awaitable[None]]] = [
    slow_heads, slow_bodies, huge_lengths, huge_chunks, many_values, empty_objects, deep_nests, large_heads, pipelines,
]  # fmt: skip

WORSE = 5.0
"""How many times longer the slowest of a hundred well-behaved requests may take while an attack runs, or `SLACK_S`."""
SLACK_S = 0.25
PEAK_MB = 200.0
"""What an attack may add to a gateway's memory at its peak: six of the largest bodies at a time."""


@asynccontextmanager
async def steady(url: str) -> AsyncIterator[list[tuple[float, float, int]]]:
    """Well-behaved traffic; what it has seen so far."""
    script = str(Path(__file__).with_name("steady.py"))
    process = await asyncio.create_subprocess_exec(sys.executable, script, str(port_of(url)), stdout=PIPE)
    seen: list[tuple[float, float, int]] = []

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            if not line.endswith(b"\n"):  # it was killed at that
                break
            started, took, status = line.split()
            seen.append((float(started), float(took), int(status)))

    reading = asyncio.create_task(read())
    try:
        await until(lambda: len(seen) > 20)
        yield seen
    finally:
        process.kill()
        await process.wait()
        await reading


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_others_do_not_notice(attack: Callable[[Target], Awaitable[None]], tmp_path: Path) -> None:
    ratios = []
    async with target(tmp_path) as it, steady(it.url) as seen:
        calm_mb = memory_mb(it.server.pid, "VmRSS")
        for _ in range(3):
            begun = time.monotonic()
            await asyncio.sleep(2)  # what is compared with
            attacked = time.monotonic()
            await attack(it)
            ended = time.monotonic()
            before = percentile([took for at, took, _ in seen if begun <= at < attacked], 0.99)
            during = percentile([took for at, took, _ in seen if attacked - 0.5 <= at < ended], 0.99)
            ratios.append(during / max(before, SLACK_S / WORSE))
            print(f"{attack.__name__}: p99 {before:.3f} s before, {during:.3f} s during {ended - attacked:.1f} s")
            if ratios[-1] <= WORSE:
                break
        peak_mb = memory_mb(it.server.pid) - calm_mb
        print(f"{attack.__name__}: {peak_mb:.0f} MB more at the peak, over {calm_mb:.0f} MB")
        assert min(ratios) <= WORSE
        assert peak_mb < PEAK_MB
        assert {status for _, _, status in seen} == {200}
