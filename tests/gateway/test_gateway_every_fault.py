"""The promises of the thin path, over a table: every inference route × every fault of the emulators × the share.

Before its answer has begun nobody sees a candidate that fails; afterwards the answer ends with an error, and without
an end that the back end did not write. Whoever leaves is gone upstream. Every request that starts ends exactly once,
and nothing stays in flight, neither here nor on either back end.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from stack import ME, Stack, document, open_gateway, settings, until

from memos_llm.core.commands import Shift, Verify
from memos_llm.core.events import AttemptEnded, RequestEnded, RequestStarted
from memos_llm.core.flags import EMBEDDING, GLOBAL, PPM, Verification
from memos_llm.emulators import OllamaEmulator, VllmEmulator
from memos_llm.emulators.emulator import Emulator
from memos_llm.emulators.faults import FAULTS

MODEL, SERVED = "llama3.2:3b", "meta-llama/Llama-3.2-3B"
EMBEDDER, SERVED_EMBEDDER = "mxbai-embed-large", "mixedbread-ai/mxbai-embed-large-v1"
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
PATIENCE = {"ttft_s": 1, "idle_s": 1, "answer_s": 1, "connect_s": 1}  # with the one that suffers


class Route(NamedTuple):
    """A request.

    Attributes:
        stream: whether its answer is one.
        end: what only a whole answer holds.
        split: whether the share decides who answers it; the others are the baseline's.
    """

    path: str
    body: dict[str, Any]
    stream: bool
    end: str
    split: bool = True

    @property
    def embeds(self) -> bool:
        return bool(self.body["model"] == EMBEDDER)


def asked(path: str, stream: bool, end: str, split: bool = True, **body: Any) -> Route:
    return Route(path, {"model": MODEL, "stream": stream, **body}, stream, end, split)


def embedded(path: str, end: str, **body: Any) -> Route:
    return Route(path, {"model": EMBEDDER, **body}, False, end)


DONE, FINISH = '"done":true', '"finish_reason":"stop"'
ROUTES: Mapping[str, Route] = {
    "openai chat, stream": asked("/v1/chat/completions", True, "data: [DONE]", messages=MESSAGES),
    "openai chat, whole": asked("/v1/chat/completions", False, FINISH, messages=MESSAGES),
    "openai text, stream": asked("/v1/completions", True, "data: [DONE]", prompt="Why?"),
    "openai text, whole": asked("/v1/completions", False, FINISH, prompt="Why?"),
    "openai texts, stream": asked("/v1/completions", True, "data: [DONE]", prompt=["Why?", "How?"]),
    "ollama chat, stream": asked("/api/chat", True, DONE, messages=MESSAGES),
    "ollama chat, whole": asked("/api/chat", False, DONE, messages=MESSAGES),
    "ollama generate, stream": asked("/api/generate", True, DONE, prompt="Why?"),
    "ollama generate, whole": asked("/api/generate", False, DONE, prompt="Why?"),
    "ollama raw, stream": asked("/api/generate", True, DONE, prompt="Why?", raw=True),
    "openai embeddings": embedded("/v1/embeddings", '"embedding":', input=["a", "b"]),
    "ollama embed": embedded("/api/embed", '"embeddings":', input=["a", "b"]),
    "ollama embeddings": embedded("/api/embeddings", '"embedding":', prompt="a"),
    "responses, stream": asked("/v1/responses", True, "response.completed", False, input="Why?"),
    "responses, whole": asked("/v1/responses", False, '"status":"completed"', False, input="Why?"),
    "messages, stream": asked("/v1/messages", True, "message_stop", False, messages=MESSAGES, max_tokens=50),
    "messages, whole": asked(
        "/v1/messages", False, '"stop_reason":"end_turn"', False, messages=MESSAGES, max_tokens=50
    ),
}
TERMINAL = ("[DONE]", DONE, '"done": true', "response.completed", "message_stop")

BEFORE = (
    "refuse",
    "hang",
    "hang_after_headers",
    "slow_first_byte:seconds=30",
    "garbage",
    "status:code=500",
    "status:code=503",
    "status:code=401",
    "status:code=429",
    "model_missing",
    "queue_full",
    "engine_dead",
    "hang_engine",
    "cut_before_content:where=headers",
    "cut_before_content:where=preamble",
    "cut_before_content:reset=true",
    "malformed:after=0",
    "error_mid_stream:after=0",
    "stall_mid_stream:after=0",
)
"""Nothing of the answer has come: another provider gives it."""

MIDWAY = (
    "cut_mid_stream",
    "cut_mid_stream:reset=true",
    "stall_mid_stream",
    "error_mid_stream",
    "malformed",
)
"""As before, but of a stream, which has begun."""

AT_THE_END = ("eof_without_done", "finish_abort")
"""As midway. Without a stream there is no marker to miss, and a vector has no finish."""

HARMLESS = ("slow_first_byte:seconds=0.01", "drift:seconds=0.1", "no_usage", "repeat_tool_metadata", "no_auto_tools")
EVERY = (*BEFORE, *MIDWAY, *AT_THE_END, *HARMLESS)


class Site(NamedTuple):
    """The product between Ollama and vLLM's servers of texts and of vectors."""

    stack: Stack
    vectors: VllmEmulator
    client: httpx.AsyncClient

    async def shift(self, share: float) -> None:
        for scope in (GLOBAL, EMBEDDING):
            await self.stack.runtime.live.submit(Shift(provider="vllm", share_ppm=round(share * PPM), scope=scope), ME)

    def suffer(self, *faults: str) -> None:
        for emulator in (self.stack.vllm, self.vectors):
            emulator.faults.set(*faults)

    async def ask(self, name: str) -> httpx.Response:
        route = ROUTES[name]
        return await self.client.post(route.path, json=route.body)

    async def recover(self) -> None:
        """Enough good answers that no breaker opens: the next fault is to be met."""
        self.suffer()
        await until(lambda: self.stack.vllm.listening and self.vectors.listening)
        for name in ("openai chat, whole", "openai embeddings"):
            for _ in range(6):
                assert (await self.ask(name)).headers["x-memos-provider"] == "vllm"

    async def tried(self, response: httpx.Response) -> list[tuple[str, bool]]:
        """Whom the gateway asked for this answer, and whether that is to blame."""
        told, id = self.stack.told, response.headers["x-request-id"]
        await until(lambda: id in [event.request_id for event in told.of(RequestEnded)])
        ended = [event for event in told.of(AttemptEnded) if event.request_id == id]
        return [(event.provider, event.outcome.rule.counts_against_arm) for event in ended]

    async def settled(self) -> None:
        """Every request that started ended once, and nobody is at work for anyone."""
        told, emulators = self.stack.told, (self.stack.ollama, self.stack.vllm, self.vectors)
        await until(lambda: not any(emulator.counters.in_flight for emulator in emulators))
        await until(lambda: len(told.of(RequestEnded)) >= len(told.of(RequestStarted)))
        started = Counter(event.request_id for event in told.of(RequestStarted))
        assert started == Counter(event.request_id for event in told.of(RequestEnded))
        lines = (await self.client.get("/metrics")).text.splitlines()
        gauges = [line for line in lines if line.startswith("memos_llm_inflight_requests{")]
        assert gauges
        assert [line for line in gauges if not line.endswith(" 0.0")] == []


@asynccontextmanager
async def open_site(folder: Path, sufferers: Sequence[str] = ("vllm",)) -> AsyncIterator[Site]:
    """At share 0, the vectors proven the same. `sufferers`: the providers that are not waited for long."""
    async with (
        OllamaEmulator(port=0, models=[MODEL, EMBEDDER]) as ollama,
        VllmEmulator(port=0, models=[SERVED]) as texts,
        VllmEmulator(port=0, models=[SERVED_EMBEDDER], task="embed") as vectors,
    ):
        config = document(ollama.url, "", folder, models={MODEL: {"vllm": SERVED}, EMBEDDER: {"vllm": SERVED_EMBEDDER}})
        endpoints = [{"url": texts.url, "models": [SERVED]}, {"url": vectors.url, "models": [SERVED_EMBEDDER]}]
        config["providers"]["vllm"] = {"kind": "vllm", "endpoints": endpoints}
        config["rollback"] = {"enabled": False}  # it would take the share back
        for provider in sufferers:
            config["providers"][provider]["timeouts"] = dict(PATIENCE)
        async with (
            open_gateway(settings(folder, config)) as (runtime, told, url),
            httpx.AsyncClient(base_url=url, timeout=20.0) as client,
        ):
            proof = Verification(
                baseline=EMBEDDER, candidate=SERVED_EMBEDDER, dimension=1024, cosine_min=1.0, texts=9, at=0.0
            )
            await runtime.live.submit(Verify(provider="vllm", model=EMBEDDER, proof=proof), ME)
            await runtime.transports["vllm"].probe()  # as `serve` does first: vLLM's context lengths are known then
            yield Site(Stack(ollama, texts, runtime, told, url), vectors, client)


def check_whole(name: str, response: httpx.Response, provider: str) -> None:
    assert response.status_code == 200, (name, response.text)
    assert response.headers["x-memos-provider"] == provider, name
    assert ROUTES[name].end in response.text, (name, response.text)
    assert '"error"' not in response.text.replace('"error":null', ""), (name, response.text)


def check_broken(name: str, response: httpx.Response) -> None:
    """It began, and says in its last line that it broke off, and nowhere that it came to its end."""
    assert response.status_code == 200, (name, response.text)
    *begun, last = [line for line in response.text.splitlines() if line]
    error = json.loads(last.removeprefix("data: "))
    assert set(error) == {"error"}, (name, response.text)
    assert isinstance(error["error"], dict if ROUTES[name].path.startswith("/v1/") else str), name
    assert begun, name
    assert not [mark for mark in TERMINAL if mark in response.text], (name, response.text)
    events = [json.loads(line.removeprefix("data: ")) for line in begun]
    assert not any(choice["finish_reason"] for event in events for choice in event.get("choices", ())), name


def groups(names: list[str], size: int = 4) -> list[list[str]]:
    """At once, but fewer than open a breaker."""
    return [names[at : at + size] for at in range(0, len(names), size)]


def breaks(fault: str, route: Route) -> bool:
    return route.stream and fault in (*MIDWAY, *AT_THE_END)


def is_harmless(fault: str, route: Route) -> bool:
    spared = {"eof_without_done": not route.stream, "finish_abort": route.embeds}
    return fault in HARMLESS or spared.get(fault, False)


def test_the_table_holds_every_fault() -> None:
    assert {fault.partition(":")[0] for fault in EVERY} == set(FAULTS["vllm"])


@pytest.mark.slow
@pytest.mark.parametrize("fault", EVERY)
async def test_a_candidate_s_fault_is_nobody_s_but_in_a_stream_that_has_begun(fault: str, tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        await site.shift(1.0)
        for group in groups([name for name, route in ROUTES.items() if route.split]):
            site.suffer(fault)
            for name, response in zip(group, await asyncio.gather(*map(site.ask, group)), strict=True):
                if breaks(fault, ROUTES[name]):
                    check_broken(name, response)
                    expected = [("vllm", True)]
                elif is_harmless(fault, ROUTES[name]):
                    check_whole(name, response, "vllm")
                    expected = [("vllm", False)]
                else:
                    check_whole(name, response, "ollama")
                    expected = [("vllm", True), ("ollama", False)]
                assert await site.tried(response) == expected, name
            await site.recover()
        await site.settled()


@pytest.mark.slow
async def test_at_share_0_no_fault_of_the_candidate_is_met(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        for fault in EVERY:
            site.suffer(fault)
            for name, response in zip(ROUTES, await asyncio.gather(*map(site.ask, ROUTES)), strict=True):
                check_whole(name, response, "ollama")
        assert not [request for request in site.stack.vllm.requests + site.vectors.requests if request.body]
        await site.settled()


@pytest.mark.slow
async def test_at_share_1_no_fault_of_the_baseline_is_met(tmp_path: Path) -> None:
    names = [name for name, route in ROUTES.items() if route.split]
    async with open_site(tmp_path, sufferers=()) as site:
        await site.shift(1.0)
        for fault in FAULTS["ollama"]:
            site.stack.ollama.faults.set(fault)
            for name, response in zip(names, await asyncio.gather(*map(site.ask, names)), strict=True):
                check_whole(name, response, "vllm")
        assert not [request for request in site.stack.ollama.requests if request.body]
        site.stack.ollama.faults.clear()
        await site.settled()


CUTS = ("cut_mid_stream", "cut_mid_stream:reset=true", "stall_mid_stream")
SUFFERED = ("refuse", "hang_after_headers", "status:code=503", "garbage", "cut_before_content", *CUTS)


@pytest.mark.slow
@pytest.mark.parametrize("fault", SUFFERED)
async def test_what_only_the_baseline_offers_never_ends_as_if_whole(fault: str, tmp_path: Path) -> None:
    async with open_site(tmp_path, ["ollama"]) as site:
        await site.shift(1.0)
        site.stack.ollama.faults.set(fault)
        for name, route in ROUTES.items():
            if route.split:
                continue
            if fault.startswith("cut_mid") and not route.stream:
                with pytest.raises(httpx.RemoteProtocolError):  # there is no way to say it within a document
                    await site.ask(name)
                continue
            response = await site.ask(name)
            broken = fault in CUTS and route.stream
            assert (response.status_code == 200) == broken, (name, response.text)
            last = [line for line in response.text.splitlines() if line][-1]
            error = json.loads(last.removeprefix("data: "))
            assert isinstance(error["error"]["message"], str), name
            assert error.get("type") == (None if name.startswith("responses") else "error"), name
            assert not [mark for mark in TERMINAL if mark in response.text], (name, response.text)
        assert not [request for request in site.stack.vllm.requests if request.body]
        site.stack.ollama.faults.clear()
        await site.settled()


async def leave(site: Site, route: Route, emulator: Emulator, begun: bool) -> None:
    """Send, wait until the back end is at work, and until the answer has begun if `begun`; close."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(site.stack.url.rpartition(":")[2]))
    body, left = json.dumps(route.body).encode(), emulator.counters.aborted
    writer.write(f"POST {route.path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode())
    writer.write(body)
    await until(lambda: emulator.counters.in_flight)
    if begun:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(1)
    writer.transport.abort()
    await until(lambda: emulator.counters.aborted > left)


@pytest.mark.parametrize("fault", ["hang", "stall_mid_stream:after=1"])
@pytest.mark.parametrize("share", [0.0, 1.0])
async def test_whoever_leaves_any_route_is_gone_upstream(share: float, fault: str, tmp_path: Path) -> None:
    begun = fault != "hang"
    async with open_site(tmp_path, []) as site:
        await site.shift(share)
        for name in ROUTES:
            await site.ask(name)  # what is to be loaded is loaded
        routes = [route for route in ROUTES.values() if route.stream or not begun]
        before = len(site.stack.told.of(RequestEnded))
        site.suffer(fault)
        site.stack.ollama.faults.set(fault)
        for route in routes:
            candidate = site.vectors if route.embeds else site.stack.vllm
            await leave(site, route, candidate if share and route.split else site.stack.ollama, begun)
        ends = (await site.stack.ended(before + len(routes)))[before:]
        assert [end.outcome.kind.value for end in ends] == ["cancelled"] * len(routes)
        await site.settled()
