"""Gateways as processes, the way they run in production: killed, drained, robbed of their store, followed by the SDKs.

Whatever happens to it, a gateway writes JSON lines only to stderr: one for each request, never a traceback, and never
a word of a prompt. Every process that a test here starts is held to that when it ends.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import ollama
import openai
import pytest
from stack import OLLAMA_MODELS, VLLM_MODEL, document, settings, until

from memos_llm.config import Settings
from memos_llm.control.live import Live
from memos_llm.core.commands import Actor, Shift
from memos_llm.core.events import Bus
from memos_llm.core.flags import PPM, format_share
from memos_llm.core.outcome import OUTCOMES, Kind
from memos_llm.emulators import OllamaEmulator, VllmEmulator
from memos_llm.store import open_store
from memos_llm.wiring import open_live

ME = Actor("tester")
CANARY = "canary-5e1f"
LISTENING = re.compile(r"listening on (http://\S+)\Z")
CONVENTIONAL = ("OLLAMA_HOST", "OLLAMA_BASE_URL", "VLLM_BASE_URL", "VLLM_API_KEY", "LLMCTL_TRACEBACK")

Line = Mapping[str, Any]


# Processes


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("MEMOS_LLM_") and k not in CONVENTIONAL}


async def spawn(*arguments: str, stdout: int = DEVNULL) -> Process:
    command = (sys.executable, "-m", "memos_llm", *arguments)
    return await asyncio.create_subprocess_exec(*command, stdout=stdout, stderr=PIPE, env=environment())


class Server:
    """A process that serves, and what it has said on stderr so far."""

    def __init__(self, process: Process) -> None:
        self.process, self.url = process, ""
        self._said: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for raw in self.process.stderr:
            line = raw.decode().rstrip("\n")
            self._said.append(line)
            if found := LISTENING.match(line):
                self.url = found[1]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        return "\n".join(self._said)

    def lines(self, event: str) -> list[Line]:
        told = [json.loads(line) for line in self._said if not LISTENING.match(line)]
        return [line for line in told if line["event"] == event]

    async def ready(self) -> None:
        await until(lambda: self.url or self._reading.done(), 20)
        assert self.url, self.said

    async def ended(self, timeout_s: float) -> int:
        """The exit code; everything it said has been read."""
        async with asyncio.timeout(timeout_s):
            code = await self.process.wait()
            await self._reading
        return code

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.ended(10)


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[Server]:
    server = Server(await spawn(*arguments))
    try:
        await server.ready()
        yield server
    finally:
        await server.kill()


@asynccontextmanager
async def gateway(site: "Site", port: int = 0) -> AsyncIterator[Server]:
    """One that serves by the site's configuration; clean on stderr, whatever became of it."""
    async with running("--config", str(site.path), "serve", "--port", str(port)) as server:
        yield server
    check_said(server)


def check_said(server: Server) -> None:
    assert "Traceback" not in server.said
    assert CANARY not in server.said
    plain = [line for line in server.said.splitlines() if not line.startswith("{")]
    assert plain == [f"listening on {server.url}"]
    assert server.lines("internal-error") == []
    ids = Counter(line["request_id"] for line in server.lines("request"))
    assert set(ids.values()) <= {1}  # one line a request


class Ran(NamedTuple):
    code: int
    out: str
    err: str
    took_s: float


async def llmctl(site: "Site", *arguments: str) -> Ran:
    """A command as its user runs it."""
    started = time.monotonic()
    process = await spawn("--config", str(site.path), *arguments, stdout=PIPE)
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in err
    return Ran(process.returncode, out.decode(), err.decode(), time.monotonic() - started)


class Site(NamedTuple):
    """Where gateways run: a configuration, a store, two back ends (of which vLLM may be elsewhere)."""

    folder: Path
    config: Settings
    ollama: OllamaEmulator
    vllm: VllmEmulator

    @property
    def path(self) -> Path:
        return self.folder / "memos_llm.yaml"

    @property
    def database(self) -> Path:
        return self.folder / "flags.db"

    async def shift(self, share: float) -> int:
        """Before any gateway runs, or when it matters to nobody how fast."""
        async with controller(self.config) as live:
            return (await live.submit(to(share), ME)).revision


@asynccontextmanager
async def open_site(folder: Path, *, inter_token_s: float = 0.0, **changes: Any) -> AsyncIterator[Site]:
    """`changes` replace top-level keys of the configuration."""
    async with (
        OllamaEmulator(models=OLLAMA_MODELS, inter_token_s=inter_token_s) as old,
        VllmEmulator(models=[VLLM_MODEL], inter_token_s=inter_token_s) as new,
    ):
        yield Site(folder, settings(folder, document(old.url, new.url, folder, **changes)), old, new)


@asynccontextmanager
async def controller(config: Settings) -> AsyncIterator[Live]:
    live = open_live(config, Bus(), kind="test", ephemeral=True)
    await live.start()
    try:
        yield live
    finally:
        await live.aclose()


def to(share: float) -> Shift:
    return Shift(provider="vllm", share_ppm=round(share * PPM))


async def instances(site: Site) -> list[str]:
    store = open_store(site.config.store_url)
    try:
        return [one.id for one in await store.instances() if not one.ephemeral]
    finally:
        await store.aclose()


def is_of(server: Server, instance: str) -> bool:
    return f"-{server.pid}-" in instance


# Requests


async def ask(client: httpx.AsyncClient, url: str, **headers: str) -> httpx.Response:
    """One whole answer; it must be a good one."""
    body = {"model": "qwen3:8b", "messages": messages(3)}
    response = await client.post(f"{url}/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response


def messages(words: int) -> list[Any]:
    return [{"role": "user", "content": f"Why is the sky blue? {CANARY} words:{words}"}]


class Sdks(NamedTuple):
    native: ollama.AsyncClient
    compatible: openai.AsyncOpenAI


@asynccontextmanager
async def sdks(url: str) -> AsyncIterator[Sdks]:
    native = ollama.AsyncClient(host=url)
    async with (
        native._client,  # the SDK has no public way to close it
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as compatible,
    ):
        yield Sdks(native, compatible)


Piece = tuple[str, str | None]
"""Text, and why it ended, if it did."""


async def native_stream(sdk: Sdks, words: int) -> AsyncIterator[Piece]:
    async for chunk in await sdk.native.chat("qwen3:8b", messages(words), think=False, stream=True):
        yield chunk.message.content or "", chunk.done_reason


async def native_whole(sdk: Sdks, words: int) -> AsyncIterator[Piece]:
    answer = await sdk.native.chat("qwen3:8b", messages(words), think=False)
    yield answer.message.content or "", answer.done_reason


async def generate_stream(sdk: Sdks, words: int) -> AsyncIterator[Piece]:
    prompt = messages(words)[0]["content"]
    async for chunk in await sdk.native.generate("qwen3:8b", prompt, think=False, stream=True):
        yield chunk.response or "", chunk.done_reason


async def openai_stream(sdk: Sdks, words: int) -> AsyncIterator[Piece]:
    create = sdk.compatible.chat.completions.create
    async for chunk in await create(model="qwen3:8b", messages=messages(words), stream=True):
        for choice in chunk.choices:
            yield choice.delta.content or "", choice.finish_reason


async def openai_whole(sdk: Sdks, words: int) -> AsyncIterator[Piece]:
    answer = await sdk.compatible.chat.completions.create(model="qwen3:8b", messages=messages(words))
    yield answer.choices[0].message.content or "", answer.choices[0].finish_reason


Speak = Callable[[Sdks, int], AsyncIterator[Piece]]
STREAMS: Sequence[Speak] = (native_stream, generate_stream, openai_stream)
WHOLE: Sequence[Speak] = (native_whole, openai_whole)


@dataclass
class Talk:
    """One request through an SDK, as its application sees it."""

    speak: Speak
    pieces: int = 0
    text: str = ""
    finish: str | None = None
    error: Exception | None = None
    started: float = field(default_factory=time.monotonic)

    async def run(self, sdk: Sdks, words: int) -> None:
        try:
            async for text, finish in self.speak(sdk, words):
                self.pieces += 1
                self.text += text
                self.finish = finish or self.finish
        except (ollama.ResponseError, openai.OpenAIError, httpx.HTTPError, ConnectionError) as error:
            self.error = error

    @property
    def good(self) -> bool:
        return self.error is None and self.finish == "stop"

    @property
    def broke_in_band(self) -> bool:
        """It had begun, and the SDK raised what it makes of an error event; nothing pretended an end."""
        told = isinstance(self.error, ollama.ResponseError) or type(self.error) is openai.APIError
        return told and self.pieces > 0 and self.finish is None

    def by(self, opening: str) -> bool:
        return self.good and self.text.startswith(opening)


class Traffic:
    """An application for each way to speak, each asking again as soon as it was answered, until `stop`."""

    def __init__(self, sdk: Sdks, words: int) -> None:
        self.over: list[Talk] = []
        self.now: dict[Speak, Talk] = {}
        self._sdk, self._words, self._stopping = sdk, words, False
        self._apps = [asyncio.create_task(self._app(speak)) for speak in (*STREAMS, *WHOLE)]

    async def _app(self, speak: Speak) -> None:
        while not self._stopping:
            talk = self.now[speak] = Talk(speak)
            await talk.run(self._sdk, self._words)
            self.over.append(talk)

    def answered(self, opening: str, since: float) -> int:
        """By the way to speak that has the fewest: answers of this back end to requests made since then."""
        found = Counter(talk.speak for talk in self.over if talk.started > since and talk.by(opening))
        return min(found[speak] for speak in (*STREAMS, *WHOLE))

    async def stop(self) -> None:
        self._stopping = True
        async with asyncio.timeout(20):
            await asyncio.gather(*self._apps)


def stamp(line: Line) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


# A shift arrives


async def test_a_shift_is_live_in_four_gateways_within_a_second(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(tmp_path))
        four = await asyncio.gather(*(stack.enter_async_context(gateway(site)) for _ in range(4)))
        client = await stack.enter_async_context(httpx.AsyncClient())
        took = []
        for share, arm in ((1.0, "candidate"), (0.0, "baseline"), (1.0, "candidate")):  # best of three
            watching = [asyncio.create_task(first_served(client, server, arm)) for server in four]
            ran = await llmctl(site, "shift", "--vllm", str(share), "--json")
            assert ran.code == 0, ran
            told = json.loads(ran.out)
            assert told["unconfirmed"] == []
            assert len(told["confirmed"]) == 4
            assert all(any(is_of(server, one) for one in told["confirmed"]) for server in four)
            committed = await committed_at(site, told["revision"])
            served = await asyncio.gather(*watching)
            logged = [await adopted_at(server, told["revision"]) for server in four]
            took.append((max(served) - committed, max(logged) - committed))
            if max(took[-1]) < 1.0:
                break
        print(f"shift live in four gateways (first request, own log line), s: {took}")
        assert max(took[-1]) < 1.0, took


async def first_served(client: httpx.AsyncClient, server: Server, arm: str) -> float:
    """When this gateway first answered a request of a known session in that arm."""
    async with asyncio.timeout(20):
        while True:
            response = await ask(client, server.url, **{"x-memos-session": "conv-1"})
            if response.headers["x-memos-arm"] == arm:
                return time.time()
            await asyncio.sleep(0.01)


async def committed_at(site: Site, revision: int) -> float:
    store = open_store(site.config.store_url)
    try:
        return next(entry.at for entry in await store.history(10) if entry.revision == revision)
    finally:
        await store.aclose()


async def adopted_at(server: Server, revision: int) -> float:
    def found() -> list[Line]:
        return [line for line in server.lines("flags") if line["revision"] == revision]

    await until(found)
    return stamp(found()[0])


# A back end dies


async def test_vllm_killed_under_traffic_of_both_sdks_and_back_again(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(tmp_path))
        site.ollama.timing.inter_token_s = 0.002
        first = await stack.enter_async_context(emulated_vllm(0))
        moved = site._replace(config=settings(tmp_path, document(site.ollama.url, first.url, tmp_path)))
        await moved.shift(1.0)
        server = await stack.enter_async_context(gateway(moved))
        traffic = Traffic(await stack.enter_async_context(sdks(server.url)), words=40)
        await until(lambda: traffic.answered("vLLM replies", 0) and all_begun(traffic), 20)
        cut = [traffic.now[speak] for speak in STREAMS]
        first.process.kill()
        killed = time.monotonic()
        await until(lambda: traffic.answered("Ollama answers", killed) >= 3, 20)
        await stack.enter_async_context(emulated_vllm(first.port))
        back = time.monotonic()
        await until(lambda: traffic.answered("vLLM replies", back) >= 2, 15)
        returned_s = time.monotonic() - back
        await traffic.stop()
        broken = [talk for talk in traffic.over if not talk.good]
        print(f"{len(traffic.over)} requests, {len(broken)} committed streams cut, back after {returned_s:.1f} s")
        assert all(talk.broke_in_band for talk in broken), broken
        assert {id(talk) for talk in broken} == {id(talk) for talk in cut}
        await until(lambda: len(server.lines("request")) == len(traffic.over))
        counted = [line["outcome"] for line in server.lines("request") if line["outcome"] != "ok"]
        assert counted == ["truncated"] * len(cut)


@asynccontextmanager
async def emulated_vllm(port: int) -> AsyncIterator[Server]:
    options = ("--model", VLLM_MODEL, "--inter-token", "0.02")
    async with running("emulate", "vllm", "--port", str(port), *options) as server:
        yield server


def all_begun(traffic: Traffic) -> bool:
    """Each stream at its beginning: far from its end."""
    return all(1 <= traffic.now[speak].pieces <= 15 for speak in STREAMS)


# The gateway ends


async def test_sigterm_drains_everything_that_runs(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(tmp_path, inter_token_s=0.04, gateway={"drain_s": 10}))
        await site.shift(1.0)
        server = await stack.enter_async_context(gateway(site))
        sdk = await stack.enter_async_context(sdks(server.url))
        idle = await stack.enter_async_context(httpx.AsyncClient(base_url=server.url))
        assert (await idle.get("/ready")).status_code == 200  # and keeps its connection
        talks = [Talk(speak) for speak in (*STREAMS, *WHOLE)]
        running_talks = [asyncio.create_task(talk.run(sdk, words=45)) for talk in talks]
        await until(lambda: all(talk.pieces for talk in talks[: len(STREAMS)]))
        server.process.terminate()
        ended = time.monotonic()
        assert await ready_status(server) == 503
        noticed_s = time.monotonic() - ended
        await until(lambda: refuses(server.port))
        refused_s = time.monotonic() - ended
        assert not any(task.done() for task in running_talks)
        await asyncio.gather(*running_talks)
        finished_s = time.monotonic() - ended
        assert await server.ended(5) == 0
        exit_s = time.monotonic() - ended
        print(
            f"503 {noticed_s:.3f} s, refused {refused_s:.2f} s, answers whole {finished_s:.2f} s, exit {exit_s:.2f} s"
        )
        assert all(talk.by("vLLM replies") for talk in talks), talks
        assert exit_s < 10
        assert [line["outcome"] for line in server.lines("request")] == ["ok"] * len(talks)
        status = await llmctl(site, "status", "--json")
        assert json.loads(status.out)["instances"] == []


async def ready_status(server: Server) -> int:
    """What `/ready` says to a new connection once it says anything but 200."""
    async with asyncio.timeout(5):
        while True:
            _, _, answer = (await once(server.port, b"GET /ready HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")).partition(b" ")
            if not answer.startswith(b"200 "):
                return int(answer[:3])


async def once(port: int, request: bytes) -> bytes:
    """The beginning of the answer on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read(1000)
    writer.close()
    await writer.wait_closed()
    return answer


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_a_stream_longer_than_the_drain_is_cut_and_nobody_is_blamed(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(tmp_path, inter_token_s=0.2, gateway={"drain_s": 1}))
        await site.shift(1.0)
        server = await stack.enter_async_context(gateway(site))
        sdk = await stack.enter_async_context(sdks(server.url))
        talks = [Talk(speak) for speak in (*STREAMS, *WHOLE)]
        running_talks = [asyncio.create_task(talk.run(sdk, words=200)) for talk in talks]
        await until(lambda: all(talk.pieces for talk in talks[: len(STREAMS)]))
        server.process.send_signal(signal.SIGTERM)
        ended = time.monotonic()
        async with asyncio.timeout(5):
            await asyncio.gather(*running_talks)
        assert await server.ended(5) == 0
        print(f"drain of 1 s: exit after {time.monotonic() - ended:.2f} s")
        assert all(talk.broke_in_band for talk in talks[: len(STREAMS)]), talks
        assert [getattr(talk.error, "status_code", None) for talk in talks[len(STREAMS) :]] == [503] * len(WHOLE), talks
        lines = server.lines("request")
        assert len(lines) == len(talks)
        assert not any(OUTCOMES[Kind(line["outcome"])].counts_against_arm for line in lines), lines
        assert server.lines("breaker") == server.lines("fallback") == []
        await until(lambda: site.vllm.counters.in_flight == 0)  # nothing goes on upstream for nobody
        assert await instances(site) == []


async def test_a_second_signal_cuts_at_once_and_says_so(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(tmp_path, inter_token_s=0.2))
        await site.shift(1.0)
        server = await stack.enter_async_context(gateway(site))
        sdk = await stack.enter_async_context(sdks(server.url))
        talk = Talk(native_stream)
        talking = asyncio.create_task(talk.run(sdk, words=200))
        await until(lambda: talk.pieces)
        server.process.terminate()
        assert await ready_status(server) == 503  # so the first signal has been taken
        server.process.terminate()
        assert await server.ended(2) == 0
        await talking
        assert talk.broke_in_band, talk
        assert [line["outcome"] for line in server.lines("request")] == ["cancelled"]


@pytest.mark.slow
async def test_clients_that_do_not_move_cannot_hold_the_end_up(tmp_path: Path) -> None:
    """One reads nothing of a long answer, one never sends the rest of its body."""
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(tmp_path, gateway={"drain_s": 1}))
        await site.shift(1.0)
        server = await stack.enter_async_context(gateway(site))
        deaf, mute = stack.enter_context(connected(server.port)), stack.enter_context(connected(server.port))
        body = {"model": "qwen3:8b", "messages": messages(38_000), "stream": True, "max_tokens": 39_000}
        post(deaf, json.dumps(body).encode())
        post(mute, b"{", length=100)
        await until(lambda: site.vllm.counters.tokens_generated > 20_000, 20)
        assert site.vllm.counters.in_flight == 1
        server.process.terminate()
        assert await server.ended(6) == 0
        assert mute.recv(100).startswith(b"HTTP/1.1 503 ")
        assert [line["outcome"] for line in server.lines("request")] == ["cancelled"]


def connected(port: int) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    return client


def post(client: socket.socket, body: bytes, length: int | None = None) -> None:
    """`length` is what the header promises, if it is not true."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {length or len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)


async def test_kill_9_of_gateways_during_shifts(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(tmp_path))
        client = await stack.enter_async_context(httpx.AsyncClient())
        live = await stack.enter_async_context(controller(site.config))
        survivor = await stack.enter_async_context(gateway(site))
        shifting = asyncio.create_task(shift_on_and_on(live))
        port = 0
        for _ in range(3):
            async with gateway(site, port) as victim:  # from the second on: at once on the port of the one killed
                port = victim.port
                await ask(client, victim.url)
                await follows(victim)
                victim.process.kill()
                assert await victim.ended(5) == -signal.SIGKILL
                killed = time.monotonic()
            await ask(client, survivor.url)
            await follows(survivor)
        shifting.cancel()
        while any(not is_of(survivor, one) for one in await instances(site)):
            assert time.monotonic() - killed < 8
            await asyncio.sleep(0.05)
        forgotten_s = time.monotonic() - killed
        again = await stack.enter_async_context(gateway(site, port))
        flags = await live.submit(to(1.0), ME)
        confirmed, unconfirmed = await live.confirm(flags.revision)
        assert unconfirmed == ()
        assert sorted(is_of(survivor, one) + 2 * is_of(again, one) for one in confirmed) == [1, 2]
        for server in (survivor, again):
            assert (await ask(client, server.url)).headers["x-memos-arm"] == "candidate"
        print(f"{flags.revision} revisions; a killed gateway is forgotten after {forgotten_s:.1f} s")
        await check_store(site, flags.revision, 1.0)


async def shift_on_and_on(live: Live) -> None:
    """Some forty shifts a second."""
    share = 0.0
    while True:
        share = 0.0 if share else 1.0
        await live.submit(to(share), ME)
        await asyncio.sleep(0.02)


async def follows(server: Server) -> None:
    """It goes on adopting what is published."""
    seen = len(server.lines("flags"))
    await until(lambda: len(server.lines("flags")) >= seen + 2)


async def check_store(site: Site, revision: int, share: float) -> None:
    """Flags and history agree, no revision is missing, and SQLite finds the file whole."""
    store = open_store(site.config.store_url)
    try:
        flags, history = await store.load(), await store.history(100_000)
    finally:
        await store.aclose()
    assert flags is not None
    assert (flags.revision, format_share(flags.share_ppm("x"))) == (revision, share)
    assert [entry.revision for entry in history] == list(range(revision, 0, -1))
    assert history[0].share_after == share
    with contextlib.closing(sqlite3.connect(site.database)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# The store is not to be had


async def test_a_gateway_that_never_had_a_store_serves_the_baseline_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = f"sqlite:////{tmp_path}/file/flags.db"  # below a file, where not even root can write
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(tmp_path, store=store, routing={"share": 0.5}))
        client = await stack.enter_async_context(httpx.AsyncClient())
        server = await stack.enter_async_context(gateway(site))
        assert (await ask(client, server.url)).headers["x-memos-arm"] == "baseline"
        await until(lambda: server.lines("store"))
        (line,) = server.lines("store")
        assert (line["level"], line["reachable"]) == ("error", False)
        assert "Not a directory" in line["detail"]
        ran = await llmctl(site, "shift", "--vllm", "1.0")
        assert (ran.code, "Not a directory" in ran.err) == (4, True), ran


async def test_a_store_that_cannot_be_is_a_line_and_exit_2(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        wrong = site.path.read_text().replace("sqlite:", "sqlight:")
        site.path.write_text(wrong)
        ran = await llmctl(site, "serve", "--port", "0")
        assert ran.code == 2
        assert "store: must begin with sqlite://" in ran.err


@pytest.mark.slow
async def test_requests_go_on_while_the_store_is_locked(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(tmp_path))
        await site.shift(1.0)
        client = await stack.enter_async_context(httpx.AsyncClient())
        server = await stack.enter_async_context(gateway(site))
        with contextlib.closing(sqlite3.connect(site.database, isolation_level=None)) as rude:
            rude.execute("BEGIN EXCLUSIVE")
            slowest, count = 0.0, 0
            while said_of_store(server)[-1:] != [(False, False)]:  # after the 5 s that SQLite waits for a lock
                asked = time.monotonic()
                assert (await ask(client, server.url)).headers["x-memos-arm"] == "candidate"
                slowest, count = max(slowest, time.monotonic() - asked), count + 1
                assert count < 2000, server.said
                await asyncio.sleep(0.02)
            rude.execute("ROLLBACK")
        print(f"{count} requests while the store was locked, the slowest {slowest:.3f} s")
        assert "another process holds its lock" in server.lines("store")[-1]["detail"]
        assert slowest < 1.0
        async with asyncio.timeout(10):  # locked out, it could not say that it lives: nobody would wait for it
            while not any(is_of(server, instance) for instance in await instances(site)):
                await asyncio.sleep(0.05)
        ran = await llmctl(site, "shift", "--vllm", "0.0", "--require-all")
        assert ran.code == 0, ran
        assert (await ask(client, server.url)).headers["x-memos-arm"] == "baseline"
        await until(lambda: said_of_store(server)[-1] == (True, False))


async def test_requests_go_on_when_the_store_is_deleted(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(tmp_path))
        await site.shift(1.0)
        client = await stack.enter_async_context(httpx.AsyncClient())
        server = await stack.enter_async_context(gateway(site))
        for suffix in ("", "-wal", "-shm"):
            site.database.with_name(f"flags.db{suffix}").unlink()
        await until(lambda: (True, True) in said_of_store(server))
        assert (await ask(client, server.url)).headers["x-memos-arm"] == "candidate"
        assert server.process.returncode is None
        ran = await llmctl(site, "shift", "--vllm", "0.5")
        assert (ran.code, "regressed" in ran.err) == (3, True), ran
        assert (await ask(client, server.url)).headers["x-memos-arm"] == "candidate"
        server.process.terminate()
        assert await server.ended(10) == 0


def said_of_store(server: Server) -> list[tuple[bool, bool]]:
    """Reachable, regressed: each time that it changed."""
    return [(line["reachable"], line["regressed"]) for line in server.lines("store")]


# What it writes


async def test_stderr_holds_json_lines_only_one_a_request_and_no_prompt(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(tmp_path))
        await site.shift(0.5)
        client = await stack.enter_async_context(httpx.AsyncClient())
        server = await stack.enter_async_context(gateway(site))
        ids = [f"request-{n}" for n in range(40)]
        for n, name in enumerate(ids):
            headers = {"x-request-id": name, "x-memos-session": f"{CANARY}-{n}", "authorization": f"Bearer {CANARY}"}
            await ask(client, server.url, **headers)
        site.ollama.faults.set("error_mid_stream", "status:code=500")
        site.vllm.faults.set("garbage")
        failed = await client.post(f"{server.url}/api/generate", json={"model": "qwen3:8b", "prompt": CANARY})
        assert failed.status_code in (502, 503)
        assert (await client.post(f"{server.url}/api/chat", content=f'{{"{CANARY}')).status_code == 400
        assert (await client.get(f"{server.url}/v1/nothing?{CANARY}")).status_code == 404
        assert b" 400 " in await once(server.port, f"{CANARY} {CANARY}\r\n\r\n".encode())
        await until(lambda: len(server.lines("refused")) == 2)  # the body, and what was no HTTP
        server.process.terminate()
        assert await server.ended(10) == 0
        told = [line["request_id"] for line in server.lines("request")]
        assert told[:-2] == ids  # and the one that failed, and the passage
        assert not server.lines("library")
    # `gateway` has checked every line
