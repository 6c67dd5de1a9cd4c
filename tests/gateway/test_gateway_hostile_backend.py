"""A back end that means harm, behind a real gateway: raw TCP, a table of attacks (`hostile.py`) × the routes.

As the candidate it is nobody's: the baseline answers, and the books say what it did. Once a stream has begun, the
client is told that it broke. As the only back end it makes a clean error. Nothing of it but the answer's own bytes
reaches a client, and neither connections nor requests are left behind.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from hostile import (
    ATTACKS,
    BEFORE,
    ELSEWHERE,
    EVIL,
    HARMLESS,
    HEADERS,
    MIDWAY,
    Honest,
    HostileServer,
    Script,
    begun,
    chunk,
    hostile,
    nested,
    sized,
)
from stack import ME, document, open_gateway, settings, until

from memos_llm.core.commands import Shift, Verify
from memos_llm.core.events import AttemptEnded, InternalError, RequestEnded
from memos_llm.core.flags import EMBEDDING, GLOBAL, PPM, Verification
from memos_llm.emulators import OllamaEmulator
from memos_llm.testing import Recorder
from memos_llm.wiring import Runtime

MODEL, EMBEDDER, SERVED, VECTORS = "llama3.2:3b", "mxbai-embed-large", "m", "e"
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
PATIENCE = {"ttft_s": 0.5, "idle_s": 0.4, "answer_s": 0.5, "connect_s": 1}
UNHURRIED = dict.fromkeys(PATIENCE, 10)  # with what is wrong at once

Route = tuple[str, dict[str, Any]]
ROUTES: Mapping[str, Route] = {
    "openai, stream": ("/v1/chat/completions", {"model": MODEL, "messages": MESSAGES, "stream": True}),
    "openai, whole": ("/v1/chat/completions", {"model": MODEL, "messages": MESSAGES}),
    "ollama, stream": ("/api/chat", {"model": MODEL, "messages": MESSAGES}),
    "ollama, whole": ("/api/chat", {"model": MODEL, "messages": MESSAGES, "stream": False}),
    "vectors": ("/v1/embeddings", {"model": EMBEDDER, "input": ["a", "b"]}),
    "ollama vectors": ("/api/embed", {"model": EMBEDDER, "input": ["a", "b"]}),
}
CHATS = [name for name in ROUTES if "vectors" not in name]
STREAMS = [name for name in ROUTES if "stream" in name]
ENDS = {"openai, stream": "data: [DONE]", "openai, whole": '"finish_reason":"stop"', "vectors": '"embedding":',
        "ollama, stream": '"done":true', "ollama, whole": '"done":true', "ollama vectors": '"embeddings":'}  # fmt: skip


class Site(NamedTuple):
    server: HostileServer
    runtime: Runtime
    told: Recorder
    client: httpx.AsyncClient

    async def ask(self, name: str) -> httpx.Response:
        path, body = ROUTES[name]
        return await self.client.post(path, json=body)

    async def ask_all(self, names: list[str]) -> dict[str, httpx.Response]:
        return dict(zip(names, await asyncio.gather(*map(self.ask, names)), strict=True))

    async def ended(self, response: httpx.Response) -> list[AttemptEnded]:
        id = response.headers["x-request-id"]
        await until(lambda: id in [event.request_id for event in self.told.of(RequestEnded)])
        return [event for event in self.told.of(AttemptEnded) if event.request_id == id]

    async def settled(self) -> None:
        """No connection to it is in use, no request in flight, and nothing of ours went wrong."""
        await until(lambda: not self.server.open)
        assert self.told.of(InternalError) == []
        lines = (await self.client.get("/metrics")).text.splitlines()
        gauges = [line for line in lines if line.startswith("memos_llm_inflight_requests{")]
        assert [line for line in gauges if not line.endswith(" 0.0")] == []


@asynccontextmanager
async def open_alone(
    folder: Path, on: Mapping[str, Script] | None = None, patience: Mapping[str, float] = PATIENCE
) -> AsyncIterator[Site]:
    """The hostile one is the only back end, an Ollama by its documents."""
    async with hostile(on=on) as server:
        config = document(server.url, server.url, folder, models={MODEL: {}, EMBEDDER: {}})
        config["providers"] = {"ollama": config["providers"]["ollama"]}
        config["providers"]["ollama"] |= {"own_loads": False, "timeouts": dict(patience)}
        del config["candidate"]
        async with (
            open_gateway(settings(folder, config)) as (runtime, told, url),
            httpx.AsyncClient(base_url=url, timeout=20.0) as client,
        ):
            yield Site(server, runtime, told, client)


@asynccontextmanager
async def open_site(folder: Path, patience: Mapping[str, float] = PATIENCE) -> AsyncIterator[Site]:
    """The hostile one is the candidate, at share 1, of a healthy Ollama."""
    async with OllamaEmulator(port=0, models=[MODEL, EMBEDDER]) as ollama, hostile() as server:
        config = document(ollama.url, server.url, folder, models={MODEL: {"vllm": SERVED}, EMBEDDER: {"vllm": VECTORS}})
        config["providers"]["vllm"]["timeouts"] = dict(patience)
        config["rollback"] = {"enabled": False}  # it would take the share back
        async with (
            open_gateway(settings(folder, config)) as (runtime, told, url),
            httpx.AsyncClient(base_url=url, timeout=20.0) as client,
        ):
            proof = Verification(baseline=EMBEDDER, candidate=VECTORS, dimension=1024, cosine_min=1.0, texts=9, at=0.0)
            await runtime.live.submit(Verify(provider="vllm", model=EMBEDDER, proof=proof), ME)
            for scope in (GLOBAL, EMBEDDING):
                await runtime.live.submit(Shift(provider="vllm", share_ppm=PPM, scope=scope), ME)
            yield Site(server, runtime, told, client)


def check_whole(name: str, response: httpx.Response, provider: str) -> None:
    assert response.status_code == 200, (name, response.text)
    assert response.headers["x-memos-provider"] == provider, name
    assert ENDS[name] in response.text.replace('": ', '":'), (name, response.text)
    check_clean(response)


def check_clean(response: httpx.Response) -> None:
    assert EVIL not in str(response.headers)
    assert EVIL not in response.text


@pytest.mark.parametrize("attack", BEFORE)
async def test_of_a_hostile_candidate_nobody_sees_anything(attack: str, tmp_path: Path) -> None:
    way, kind = BEFORE[attack]
    async with open_site(tmp_path, PATIENCE if kind in ("", "timeout") else UNHURRIED) as site:
        site.server.attack = way
        for names in (CHATS, [name for name in ROUTES if name not in CHATS]):
            for name, response in (await site.ask_all(names)).items():
                check_whole(name, response, "ollama")
                first, second = await site.ended(response)
                assert (first.provider, second.provider, second.outcome.kind.value) == ("vllm", "ollama", "ok"), name
                assert first.outcome.rule.counts_against_arm, (name, first.outcome)
                assert first.duration_s < 5.0, name  # it was cut, if need be after half a second
                assert not kind or first.outcome.kind.value in kind, (name, first.outcome)
        assert set(site.server.targets) <= {
            "/v1/chat/completions",
            "/v1/embeddings",
            "/v1/models",
            "/health",
            "/version",
        }
        await site.settled()


@pytest.mark.parametrize("attack", MIDWAY)
async def test_a_stream_that_a_hostile_candidate_breaks_says_so(attack: str, tmp_path: Path) -> None:
    async with open_site(tmp_path, UNHURRIED | {"idle_s": PATIENCE["idle_s"]}) as site:
        site.server.attack, kind = MIDWAY[attack]
        for name, response in (await site.ask_all(STREAMS)).items():
            check_broken(name, response)
            (only,) = await site.ended(response)
            assert (only.provider, only.outcome.kind.value in kind) == ("vllm", True), (name, only.outcome)
        await site.settled()


def check_broken(name: str, response: httpx.Response, provider: str = "vllm") -> None:
    """It began, and its last event is an error of its dialect; nowhere does it say that it came to its end."""
    assert (response.status_code, response.headers["x-memos-provider"]) == (200, provider), name
    lines = [line for line in response.text.splitlines() if line]
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert isinstance(error, dict if name.startswith("openai") else str), name
    assert "hello" in response.text
    assert "[DONE]" not in response.text
    assert '"done":true' not in response.text
    check_clean(response)


SLOW = {"ttft_s": 60, "idle_s": 60, "answer_s": 60, "connect_s": 1}  # of which nobody waits a tenth
GARBAGE = {"no JSON": b"{nope}", "an error": b'{"error":{"message":"no","code":500}}', "nested": nested(10_000)}


def garbled(honest: Honest, said: bytes, garbage: bytes) -> Script:
    """Something and what breaks it in one piece, then nothing more."""
    line = b"data: " + garbage + b"\n\n" if "event" in honest.media else garbage + b"\n"
    return Script(begun(honest, said + line), ends="hangs")


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_who_breaks_a_stream_and_hangs_is_not_waited_for(garbage: str, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    async with open_site(tmp_path, SLOW) as site, open_alone(tmp_path / "alone", patience=SLOW) as alone:
        for one, provider in ((site, "vllm"), (alone, "ollama")):
            one.server.attack = lambda h: garbled(h, h.preamble + h.content, GARBAGE[garbage])
            async with asyncio.timeout(5):
                answers = await one.ask_all(STREAMS)
            for name, response in answers.items():
                check_broken(name, response, provider)
                (only,) = await one.ended(response)
                assert only.outcome.kind.value == ("server" if garbage == "an error" else "malformed"), name
            await one.settled()


@pytest.mark.slow  # the same reading as of a stream
@pytest.mark.parametrize("garbage", GARBAGE)
async def test_who_breaks_an_answer_before_it_begins_and_hangs_is_not_waited_for(garbage: str, tmp_path: Path) -> None:
    async with open_site(tmp_path, SLOW) as site:
        site.server.attack = lambda h: garbled(h, h.preamble, GARBAGE[garbage])
        async with asyncio.timeout(5):
            answers = await site.ask_all(STREAMS)
        for name, response in answers.items():
            check_whole(name, response, "ollama")
        await site.settled()


@pytest.mark.parametrize("attack", HARMLESS)
async def test_a_whole_answer_of_a_hostile_candidate_is_that_answer_alone(attack: str, tmp_path: Path) -> None:
    async with open_site(tmp_path, SLOW) as site:
        site.server.attack = HARMLESS[attack]
        for _ in range(2):  # the second on what the first left
            for name in STREAMS if "no end" in attack else ROUTES:
                check_whole(name, await site.ask(name), "vllm")
        site.server.attack = ATTACKS["none"]
        for name in ROUTES:
            check_whole(name, await site.ask(name), "vllm")
        assert site.told.of(InternalError) == []


async def test_an_answer_that_nobody_asked_for_is_given_to_nobody(tmp_path: Path) -> None:
    """It comes on an idle connection, and the next request is on its way before the event loop has seen it."""
    poison = json.dumps({"id": EVIL, "choices": [{"index": 0, "message": {"content": EVIL}, "finish_reason": "stop"}]})
    later: list[bytes] = [sized(Honest("application/json", b"", b"", poison.encode()))]

    async with open_site(tmp_path, SLOW) as site:
        for _ in range(20):
            site.server.attack = lambda h: Script(sized(h), ends="stays", later=later[0])
            check_whole("openai, whole", await site.ask("openai, whole"), "vllm")
            site.server.attack = ATTACKS["none"]
            site.server.speak()
            check_whole("openai, whole", await site.ask("openai, whole"), "vllm")
        assert site.server.accepted > 20


ERRORS = {"malformed": 502, "truncated": 502, "server": 502, "config": 502, "timeout": 504}


ALONE = ["endless headers", "status 000", "a dripping body", "a gzip bomb", "an endless line", "nothing",
         "an endless error",
         "too long a length", "endless comments", "an endless wait", "redirect 307 to /\\evil.example/x"]  # fmt: skip


@pytest.mark.parametrize("attack", ALONE)
async def test_a_hostile_back_end_alone_makes_a_clean_error(attack: str, tmp_path: Path) -> None:
    async with open_alone(tmp_path) as site:
        site.server.attack = BEFORE[attack][0]
        for name, response in (await site.ask_all(CHATS)).items():
            (*_, last) = await site.ended(response)
            assert response.status_code == ERRORS[last.outcome.kind.value], (name, response.text)
            assert isinstance(response.json()["error"], dict if name.startswith("openai") else str)
            check_clean(response)
            assert "location" not in response.headers
        await site.settled()


# --- what is passed on, and what is asked in between ------------------------------------------------------------------


async def test_of_a_passed_answer_only_what_is_listed_is_passed(tmp_path: Path) -> None:
    async with open_alone(tmp_path) as site:
        for place in (*ELSEWHERE, "/over/there"):
            site.server.attack = lambda h, place=place: Script(  # type: ignore[misc]  # of this turn
                sized(h, f"Location: {place}", *HEADERS, status="307 Away"), ends="stays"
            )
            response = await site.client.post("/v1/responses", json={"model": MODEL, "input": "Why?"})
            assert (response.status_code, response.json()) == (307, {"ok": True})
            assert response.headers.get("location") == (place if place == "/over/there" else None)
            check_clean(response)


NO_ANSWER = ["endless headers", "status 000", "status 999", "another protocol", "nothing", "HTTP/0.9",
             "a NUL in a header", "a length and chunks", "half a head, reset", "a chunk that is none"]  # fmt: skip


@pytest.mark.parametrize("attack", NO_ANSWER)
async def test_what_is_no_answer_is_not_passed_on(attack: str, tmp_path: Path) -> None:
    async with open_alone(tmp_path) as site:
        site.server.attack = BEFORE[attack][0]
        response = await site.client.post("/v1/responses", json={"model": MODEL, "input": "Why?"})
        assert response.status_code == 502, response.text
        assert set(response.json()) == {"error"}
        await site.settled()


@pytest.mark.parametrize("attack", ["too long a length", "half a body", "half a body, reset"])
async def test_half_of_an_answer_is_not_passed_on_as_a_whole(attack: str, tmp_path: Path) -> None:
    async with open_alone(tmp_path) as site:
        site.server.attack = BEFORE[attack][0]
        with pytest.raises(httpx.RemoteProtocolError):
            await site.client.post("/v1/responses", json={"model": MODEL, "input": "Why?"})
        await site.settled()


def says(body: bytes) -> Script:
    return Script(sized(Honest("application/json", b"", b"", body)), ends="stays")


LISTS: Mapping[str, Script] = {
    "without end": Script(begun(Honest("application/json", b"", b"", b"")), chunk(b'{"models":[' + b" " * 60_000)),
    "nested": says(nested(10_000)),
    "no text": says(b'{"models":[{"name":"\xff\xfe"}],"data":[{"id":"\xff"}],"version":"\xff"}'),
    "numbers": says(b'{"models":[{"name":1e400}],"data":[{"id":' + b"9" * 5000 + b'}],"version":1}'),
    "another type": says(b'{"models":{"a":1},"data":7,"version":[]}'),
    "nothing": Script(b""),
    "refused": Script(sized(Honest("text/html", b"", b"", b"<p>no</p>"), status="500 No"), ends="stays"),
    "redirected": Script(sized(Honest("", b"", b"", b""), f"Location: {ELSEWHERE[0]}", status="302 F"), ends="stays"),
}


@pytest.mark.parametrize("what", LISTS)
async def test_hostile_lists_of_models_break_nothing(what: str, tmp_path: Path) -> None:
    paths = ("/api/tags", "/v1/models", "/api/version", "/api/ps", "/api/show")
    async with open_alone(tmp_path, on=dict.fromkeys(paths, LISTS[what])) as site:
        for path in paths[:-1]:
            response = await site.client.get(path)
            assert response.status_code == 200, (path, response.text)
            assert isinstance(response.json(), dict)
        async with site.client.stream("POST", "/api/show", json={"model": MODEL}) as shown:
            assert shown.status_code in (200, 400, 502, 503)  # one without end is passed on as it comes
        for transport in site.runtime.transports.values():
            await transport.probe()
        check_whole("ollama, whole", await site.ask("ollama, whole"), "ollama")
        assert site.told.of(InternalError) == []


async def test_hostile_names_of_models_reach_no_terminal_and_no_page(tmp_path: Path) -> None:
    names = ["\x1b[2J" + EVIL, "<script>" + "x" * 2**20, "a\nb", "fine", *[f"n{i}" for i in range(5)]]
    tags = json.dumps({"models": [{"name": name} for name in names]}).encode()
    many = json.dumps({"models": [{"name": f"n{i}"} for i in range(100_000)]}).encode()
    version = says(json.dumps({"version": "\x1b[2J" * 1000}).encode())
    async with open_alone(tmp_path, on={"/api/tags": says(tags), "/api/version": version}) as site:
        (transport,) = site.runtime.transports.values()
        (found,) = await transport.probe()
        assert (found.up, found.models, found.version) == (True, ("fine", "n0", "n1", "n2", "n3", "n4"), "")
        site.server.on["/api/tags"] = says(many)
        (found,) = await transport.probe()
        assert (found.up, found.models) == (True, None)


# --- what it says of itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", ["-5", "1e308", "99999999999999999999", "1.5"])
async def test_counts_that_cannot_be_are_not_counted(count: str, tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        site.server.attack = lambda h: Script(
            sized(h, body=h.body.replace(b'"prompt_tokens": 3', b'"prompt_tokens": ' + count.encode())), ends="stays"
        )
        response = await site.ask("openai, whole")
        assert response.status_code == 200
        metrics = (await site.client.get("/metrics")).text
        sums = [float(line.rpartition(" ")[2]) for line in metrics.splitlines() if "tokens" in line and line[0] != "#"]
        assert all(0 <= value < 100 for value in sums), sums
        assert site.told.of(InternalError) == []


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", '","choices":[', "\u2028", "x" * 100_000])
async def test_whatever_name_an_answer_gives_the_model_the_caller_reads_his_own(name: str, tmp_path: Path) -> None:
    def rename(h: Honest) -> Script:
        return Script(sized(h, body=h.body.replace(b'"m"', json.dumps(name).encode())), ends="stays")

    async with open_site(tmp_path, SLOW) as site:
        site.server.attack = rename
        for chat in CHATS:
            response = await site.ask(chat)
            check_whole(chat, response, "vllm")
            lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line and "DONE" not in line]
            assert {json.loads(line)["model"] for line in lines} == {MODEL}, chat


async def test_an_error_s_words_reach_the_client_and_no_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = json.dumps({"error": {"message": f"{EVIL} \x1b[2J", "type": "BadRequestError"}}).encode()
    (tmp_path / "alone").mkdir()
    async with open_site(tmp_path, SLOW) as site, open_alone(tmp_path / "alone", patience=SLOW) as alone:
        for one in (site, alone):
            one.server.attack = lambda h: Script(sized(h, status=f"400 {EVIL}", body=words), ends="stays")
        check_whole("openai, whole", await site.ask("openai, whole"), "ollama")
        refused = await alone.ask("openai, whole")
        assert (refused.status_code, EVIL in refused.text) == (400, True)
        assert EVIL not in repr([*site.told.events, *alone.told.events])
        assert EVIL not in (await alone.client.get("/metrics")).text
    said = capfd.readouterr()
    assert EVIL not in said.out + said.err
