"""Every fault is visible on the wire, in the way of the server in question."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from emulator_wire import Answered, ask, until, user

from memos_llm.emulators import FAULTS, Fault, FaultBoard, OllamaEmulator, VllmEmulator
from memos_llm.emulators.faults import KINDS

Emu = OllamaEmulator | VllmEmulator
SURFACES = [("ollama", "/api/chat"), ("ollama", "/v1/chat/completions"), ("vllm", "/v1/chat/completions")]
MODEL = {"ollama": "llama3.2:3b", "vllm": "Qwen/Qwen3-8B"}


@contextlib.asynccontextmanager
async def started(engine: str, **given: Any) -> AsyncIterator[Emu]:
    if engine == "ollama":
        async with OllamaEmulator(**given) as ollama:
            yield ollama
    else:
        async with VllmEmulator(thinking=False, **given) as vllm:
            yield vllm


async def chat(emu: Emu, path: str, *, stream: bool = True, text: str = "hi") -> Answered:
    return await ask(emu.url, "POST", path, model=MODEL[emu.engine], messages=user(text), stream=stream)


def content_events(got: Answered) -> int:
    return sum(b'"content":"' in c and b'"content":""' not in c for c in got.chunks)


# -- the board


def test_parse_reads_and_prints_the_same_fault() -> None:
    fault = Fault.parse("cut_mid_stream:after=3,rate=0.1,for_s=5")
    assert (fault.name, fault.after, fault.rate, fault.for_s) == ("cut_mid_stream", 3, 0.1, 5.0)
    assert Fault.parse(str(fault)) == fault


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("explode", "cut_mid_stream"),
        ("hang:after=1", "rate, count, for_s"),
        ("status:code=x", "bad value"),
        ("hang:rate=2", "not between"),
        ("hang_engine:rate=0.5", "choose from: for_s"),
    ],
)
def test_parse_errors_name_the_choices(spec: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        Fault.parse(spec)


def test_a_fault_of_the_other_engine_is_refused_and_every_fault_has_help() -> None:
    board = FaultBoard("ollama", seed=0, clock=time.monotonic)
    with pytest.raises(ValueError, match="runner_crash"):
        board.set("engine_dead")
    assert set(FAULTS["ollama"]) | set(FAULTS["vllm"]) == set(KINDS)
    assert all(text for engine in FAULTS.values() for text in engine.values())


def test_count_time_and_rate_limit_a_fault() -> None:
    now = 0.0
    board = FaultBoard("vllm", seed=1, clock=lambda: now)
    board.set("hang:count=2")
    assert [board.take("before") is not None for _ in range(3)] == [True, True, False]
    board.set("hang:for_s=5")
    assert board.take("before") is not None
    now = 5.0
    assert board.take("before") is None
    board.set("hang:rate=0.3")
    hits = sum(board.take("before") is not None for _ in range(2000))
    assert 500 < hits < 700
    board.set("hang")
    assert board.take("before", data_route=False) is None
    board.set("hang:all")
    assert board.take("before", data_route=False) is not None


def test_a_seed_repeats_the_same_choices() -> None:
    def choices(seed: int) -> list[bool]:
        board = FaultBoard("vllm", seed=seed, clock=time.monotonic)
        board.set("hang:rate=0.5")
        return [board.take("before") is not None for _ in range(50)]

    assert choices(3) == choices(3) != choices(4)


# -- connection


@pytest.mark.parametrize("engine", ["ollama", "vllm"])
async def test_refuse_closes_the_port_and_it_comes_back(engine: str) -> None:
    path = "/v1/chat/completions"
    async with started(engine) as emu:
        reader, writer = await asyncio.open_connection("127.0.0.1", emu.port)
        await until(lambda: emu.counters.connections_open == 1)
        emu.faults.set("refuse")
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()
        with pytest.raises(ConnectionError):
            await chat(emu, path)
        emu.faults.clear()
        await until(lambda: emu.listening)
        assert (await chat(emu, path)).status == 200
        emu.faults.set("refuse:for_s=0.05")
        with pytest.raises(ConnectionError):
            await chat(emu, path)
        await until(lambda: emu.listening)
        assert (await chat(emu, path)).status == 200


async def test_it_can_start_refused() -> None:
    async with started("vllm", faults=["refuse"]) as emu:
        with pytest.raises(ConnectionRefusedError):
            await chat(emu, "/v1/chat/completions")
        emu.faults.clear()
        emu.faults.set("refuse")  # at once, before the port could open again
        await asyncio.sleep(0.01)
        assert not emu.listening


async def test_refuse_with_a_count_resets_the_next_connections() -> None:
    async with started("vllm") as emu:
        emu.faults.set("refuse:count=1")
        assert (await chat(emu, "/v1/chat/completions")).ended in ("reset", "nothing")
        assert (await chat(emu, "/v1/chat/completions")).status == 200


# -- before the engine


@pytest.mark.parametrize(("engine", "path"), SURFACES)
async def test_hang_answers_nothing_and_the_client_may_leave(engine: str, path: str) -> None:
    async with started(engine, faults=["hang"]) as emu:
        task = asyncio.create_task(chat(emu, path))
        await until(lambda: emu.counters.in_flight == 1)
        assert not task.done()
        task.cancel()
        await until(lambda: emu.counters.aborted == 1)


@pytest.mark.parametrize(("engine", "path"), SURFACES)
async def test_hang_after_headers_sends_headers_only(engine: str, path: str) -> None:
    async with started(engine, faults=["hang_after_headers"]) as emu:
        reader, writer = await asyncio.open_connection("127.0.0.1", emu.port)
        writer.write(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
        assert head.startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()


async def test_slow_first_byte_waits() -> None:
    async with started("vllm", faults=["slow_first_byte:seconds=0.05"]) as emu:
        begun = time.monotonic()
        assert (await chat(emu, "/v1/chat/completions")).status == 200
        assert time.monotonic() - begun >= 0.05


@pytest.mark.parametrize(("engine", "path"), SURFACES)
async def test_garbage_is_not_http(engine: str, path: str) -> None:
    async with started(engine, faults=["garbage"]) as emu:
        got = await chat(emu, path)
    assert got.raw.startswith(b"\x00\xff")
    assert got.status == 0


@pytest.mark.parametrize(
    ("engine", "path", "spec", "status", "body"),
    [
        ("ollama", "/api/chat", "model_missing", 404, {"error": "model 'llama3.2:3b' not found"}),
        (
            "ollama",
            "/api/chat",
            "queue_full",
            503,
            {"error": "server busy, please try again.  maximum pending requests exceeded"},
        ),
        ("ollama", "/v1/chat/completions", "status:code=503", 503, None),
        ("ollama", "/api/chat", "status:code=500", 500, None),
        ("vllm", "/v1/chat/completions", "status:code=401", 401, {"error": "Unauthorized"}),
        (
            "vllm",
            "/v1/chat/completions",
            "model_missing",
            404,
            {
                "error": {
                    "message": "The model `Qwen/Qwen3-8B` does not exist.",
                    "type": "NotFoundError",
                    "param": "model",
                    "code": 404,
                }
            },
        ),
        ("vllm", "/v1/chat/completions", "queue_full", 503, None),
        ("vllm", "/v1/chat/completions", "status:code=429", 429, None),
        ("vllm", "/v1/chat/completions", "status", 500, None),
    ],
)
async def test_status_faults_speak_the_server_s_language(
    engine: str, path: str, spec: str, status: int, body: Any
) -> None:
    async with started(engine, faults=[spec]) as emu:
        got = await chat(emu, path)
        assert got.status == status
        assert "error" in got.json
        assert body is None or got.json == body
        healthy = "/health" if engine == "vllm" else "/api/version"
        assert (await ask(emu.url, "GET", healthy)).status == 200


# -- in the middle of an answer


@pytest.mark.parametrize(("engine", "path"), SURFACES)
@pytest.mark.parametrize("reset", [False, True])
async def test_cut_mid_stream_ends_inside_the_body(engine: str, path: str, reset: bool) -> None:
    async with started(engine, faults=[f"cut_mid_stream:after=3,reset={str(reset).lower()}"]) as emu:
        got = await chat(emu, path)
        assert got.status == 200
        assert got.ended == ("reset" if reset else "cut")
        if not reset:
            assert content_events(got) == 3
        assert emu.counters.aborted == 0


@pytest.mark.parametrize(("engine", "path"), SURFACES)
async def test_cut_before_content(engine: str, path: str) -> None:
    async with started(engine, faults=["cut_before_content"]) as emu:
        got = await chat(emu, path)
        assert (got.status, got.ended, got.body) == (200, "cut", b"")
        emu.faults.set("cut_before_content:where=preamble")
        got = await chat(emu, path)
        assert got.ended == "cut"
        assert len(got.chunks) == (1 if engine == "vllm" else 0)
        whole = await chat(emu, path, stream=False)
        assert whole.ended == "cut"


@pytest.mark.parametrize(("engine", "path"), SURFACES)
async def test_cut_never_misses_a_short_answer(engine: str, path: str) -> None:
    async with started(engine, faults=["cut_mid_stream:after=999"]) as emu:
        got = await chat(emu, path)
        assert got.ended == "cut"
        assert b'finish_reason":"' not in got.body
        assert b'"done":true' not in got.body


@pytest.mark.parametrize(("engine", "path"), SURFACES)
async def test_cut_of_a_whole_answer_leaves_half(engine: str, path: str) -> None:
    async with started(engine, faults=["cut_mid_stream"]) as emu:
        got = await chat(emu, path, stream=False)
    assert (got.status, got.ended) == (200, "cut")


@pytest.mark.parametrize(("engine", "path"), SURFACES)
async def test_eof_without_done_is_well_formed(engine: str, path: str) -> None:
    async with started(engine, faults=["eof_without_done:after=3"]) as emu:
        got = await chat(emu, path)
    assert got.ended == "complete"
    assert content_events(got) == 3
    assert b"[DONE]" not in got.body
    assert b'"done":true' not in got.body


async def test_eof_without_done_of_whole_ollama_answers() -> None:
    async with started("ollama", faults=["eof_without_done"]) as emu:
        native = await chat(emu, "/api/chat", stream=False)
        assert native.json["done"] is False
        assert "eval_count" not in native.json
        v1 = await chat(emu, "/v1/chat/completions", stream=False)
        assert v1.json["choices"][0]["finish_reason"] is None
        assert v1.json["usage"]["total_tokens"] == 0


@pytest.mark.parametrize(("engine", "path"), SURFACES)
@pytest.mark.parametrize("stream", [True, False])
async def test_malformed_is_not_json(engine: str, path: str, stream: bool) -> None:
    async with started(engine, faults=["malformed:after=1"]) as emu:
        got = await chat(emu, path, stream=stream)
    assert got.ended == "complete"
    with pytest.raises(ValueError, match=r"Expecting|Unterminated|codec"):
        (got.records if path == "/api/chat" else got.events) if stream else got.json  # noqa: B018


@pytest.mark.parametrize(("engine", "path"), SURFACES)
async def test_stall_keeps_the_connection_open_and_silent(engine: str, path: str) -> None:
    async with started(engine, faults=["stall_mid_stream:after=1"]) as emu:
        task = asyncio.create_task(chat(emu, path))
        await until(lambda: emu.faults.fired["stall_mid_stream"] == 1 and emu.counters.tokens_generated >= 2)
        assert not task.done()
        assert emu.counters.connections_open == 1
        task.cancel()
        await until(lambda: emu.counters.aborted == 1)


async def test_error_mid_stream_on_native_is_a_line_and_eof() -> None:
    async with started("ollama", faults=["error_mid_stream:after=2"]) as emu:
        got = await chat(emu, "/api/chat")
        assert got.ended == "complete"
        assert list(got.records[-1]) == ["error"]
        assert len(got.records) == 3
        assert (await chat(emu, "/api/chat", stream=False)).status == 500


async def test_error_mid_stream_on_ollama_v1_is_swallowed() -> None:
    async with started("ollama", faults=["error_mid_stream:after=2"]) as emu:
        got = await chat(emu, "/v1/chat/completions")
    assert got.ended == "complete"
    last = got.events[-1]
    assert last["model"] == ""
    assert last["choices"][0]["delta"]["content"] == ""
    assert b"[DONE]" not in got.body
    assert b"error" not in got.body


async def test_error_mid_stream_on_vllm_is_an_event_and_done() -> None:
    async with started("vllm", faults=["error_mid_stream:after=2"]) as emu:
        got = await chat(emu, "/v1/chat/completions")
        assert got.events[-2]["error"]["type"] == "InternalServerError"
        assert got.events[-2]["error"]["code"] == 500
        assert got.events[-1] == "[DONE]"
        assert (await chat(emu, "/v1/chat/completions", stream=False)).status == 500


# -- Ollama's own


async def test_cold_load_withholds_headers_and_is_aborted_by_a_client_that_leaves() -> None:
    async with OllamaEmulator(faults=["cold_load:seconds=60"]) as emu:
        task = asyncio.create_task(chat(emu, "/api/chat"))
        await until(lambda: emu.counters.loads == 1)
        assert not task.done()
        task.cancel()
        await until(lambda: emu.counters.load_aborts == 1)
        emu.faults.set("cold_load:seconds=0.05")
        begun = time.monotonic()
        got = await chat(emu, "/api/chat")
        assert time.monotonic() - begun >= 0.05
        assert got.records[-1]["load_duration"] >= 50_000_000
        assert emu.counters.loads == 2


async def test_ps_waits_for_a_load_since_0_32_4() -> None:
    async with OllamaEmulator(load_s=60.0) as new, OllamaEmulator(load_s=60.0, version="0.17.4") as old:
        tasks = [asyncio.create_task(chat(emu, "/api/chat")) for emu in (new, old)]
        await until(lambda: new.counters.loads == old.counters.loads == 1)
        assert (await ask(old.url, "GET", "/api/ps")).json == {"models": []}
        blocked = asyncio.create_task(ask(new.url, "GET", "/api/ps"))
        await until(lambda: new.counters.in_flight == 2)
        assert not blocked.done()
        tasks[0].cancel()
        assert (await blocked).json == {"models": []}
        tasks[1].cancel()
        await until(lambda: old.counters.load_aborts == 1)


async def test_runner_crash_ends_every_stream_of_the_model_and_the_next_request_reloads() -> None:
    async with OllamaEmulator(num_parallel=2, inter_token_s=0.01) as emu:
        other = asyncio.create_task(chat(emu, "/api/chat", text="words:200"))
        await until(lambda: emu.counters.tokens_generated > 0)
        emu.faults.set("runner_crash:after=1,count=1")
        crashed = await chat(emu, "/api/chat")
        text = "an error was encountered while running the model: "
        assert crashed.records[-1]["error"].startswith(text)
        assert (await other).records[-1]["error"].startswith(text)
        assert (await chat(emu, "/api/chat")).records[-1]["done"]
        assert emu.counters.loads == 2


async def test_runner_crash_before_the_first_record_keeps_its_status() -> None:
    async with OllamaEmulator(faults=["runner_crash:after=0"], version="0.17.4") as emu:
        got = await chat(emu, "/api/chat")
        assert (got.status, got.headers["content-type"]) == (500, "application/json")
        assert got.headers["transfer-encoding"] == "chunked"
        assert got.json == {"error": "an error was encountered while running the model: unexpected EOF"}


@pytest.mark.parametrize("spec", ["status:code=500", "error_mid_stream:after=0"])
async def test_error_before_the_first_native_record_is_chunked_without_charset(spec: str) -> None:
    async with OllamaEmulator(faults=[spec]) as emu:
        got = await chat(emu, "/api/chat")
        assert (got.status, got.headers["content-type"]) == (500, "application/json")
        assert got.headers["transfer-encoding"] == "chunked"
        whole = await chat(emu, "/api/chat", stream=False)
        assert (whole.status, whole.headers["content-type"]) == (500, "application/json; charset=utf-8")


async def test_load_queue_of_one_refuses_the_third_request() -> None:
    async with OllamaEmulator(load_s=60.0, max_queue=1) as emu:
        waiting = []
        for number in (1, 2):
            waiting.append(asyncio.create_task(chat(emu, "/api/chat")))
            await until(lambda n=number: emu.counters.in_flight == n)
        third = await chat(emu, "/api/chat")
        assert third.status == 503
        assert third.json == {"error": "server busy, please try again.  maximum pending requests exceeded"}
        for task in waiting:
            task.cancel()
        await until(lambda: emu.counters.aborted == 2)


# -- vLLM's own


async def test_dead_engine_ends_streams_in_an_error_then_500_and_503() -> None:
    async with VllmEmulator(inter_token_s=60.0) as emu:
        running = asyncio.create_task(chat(emu, "/v1/chat/completions"))
        await until(lambda: emu.counters.tokens_generated == 1)
        emu.faults.set("engine_dead")
        got = await asyncio.wait_for(running, 3)
        assert got.events[-2]["error"]["code"] == 500
        assert got.events[-1] == "[DONE]"
        new = await chat(emu, "/v1/chat/completions")
        assert (new.status, new.json["error"]["type"]) == (500, "InternalServerError")
        assert (await ask(emu.url, "GET", "/health")).status == 503
        emu.faults.clear()
        emu.timing.inter_token_s = 0.0
        assert (await ask(emu.url, "GET", "/health")).status == 200
        assert (await chat(emu, "/v1/chat/completions")).status == 200


async def test_hung_engine_is_healthy_and_makes_no_step() -> None:
    async with VllmEmulator(faults=["hang_engine"]) as emu:
        task = asyncio.create_task(chat(emu, "/v1/chat/completions"))
        await until(lambda: emu.engine_core.running == 1)
        assert (await ask(emu.url, "GET", "/health")).status == 200
        assert emu.engine_core.histograms["iteration_tokens_total"].count == 0
        assert (
            b'num_requests_running{model_name="Qwen/Qwen3-8B",engine="0"} 1.0'
            in (await ask(emu.url, "GET", "/metrics")).body
        )
        assert not task.done()
        emu.faults.clear()
        assert (await asyncio.wait_for(task, 3)).events[-1] == "[DONE]"


async def test_finish_abort_no_usage_and_repeated_metadata() -> None:
    path = "/v1/chat/completions"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}
    async with VllmEmulator(faults=["finish_abort"]) as emu:
        got = await ask(emu.url, "POST", path, messages=user("x"), stream=True)
        assert got.events[-2]["choices"][0]["finish_reason"] == "abort"
        emu.faults.set("no_usage")
        got = await ask(emu.url, "POST", path, messages=user("x"), stream=True, stream_options={"include_usage": True})
        assert b'"usage"' not in got.body
        assert b'"usage"' not in (await ask(emu.url, "POST", path, messages=user("x"))).body
        emu.faults.set("repeat_tool_metadata")
        got = await ask(emu.url, "POST", path, messages=user("tool:f"), stream=True, tools=[tool])
        calls = [d["tool_calls"][0] for e in got.events[:-2] if (d := e["choices"][0]["delta"]).get("tool_calls")]
        assert calls[0]["id"] == calls[-1]["id"]
        assert calls[-1]["function"]["name"] == "f"


# -- control surface and life cycle


async def test_control_surface_sets_shows_and_clears() -> None:
    async with VllmEmulator() as emu:
        got = await ask(emu.url, "POST", "/_emulator/faults", set=["hang:rate=0.5"], add=["status:code=503"])
        assert got.json["faults"] == ["hang:rate=0.5", "status:code=503"]
        assert got.json["choices"] == dict(FAULTS["vllm"])
        bad = await ask(emu.url, "POST", "/_emulator/faults", set=["explode"])
        assert bad.status == 400
        assert "cut_mid_stream" in bad.json["error"]
        assert (await ask(emu.url, "POST", "/_emulator/faults", set=["refuse"])).status == 400
        assert (await ask(emu.url, "DELETE", "/_emulator/faults")).json["faults"] == []
        assert (await ask(emu.url, "POST", "/_emulator/timing", ttft_s=0.001)).json["ttft_s"] == 0.001
        assert (await ask(emu.url, "POST", "/_emulator/timing", tft=1)).status == 400
        await chat(emu, "/v1/chat/completions")
        counters = (await ask(emu.url, "GET", "/_emulator/counters")).json
        assert counters["requests"] == {"/v1/chat/completions": 1}
        assert counters["statuses"] == {"200": 1}
        assert (counters["completed"], counters["in_flight"], counters["aborted"]) == (1, 0, 0)
        assert (await ask(emu.url, "GET", "/_emulator/nope")).status == 404
        [seen] = emu.requests
        assert (seen.path, seen.headers["content-type"]) == ("/v1/chat/completions", "application/json")
        assert b'"messages"' in seen.body


@pytest.mark.parametrize("engine", ["ollama", "vllm"])
async def test_stop_cuts_running_streams_and_leaves_no_task(engine: str) -> None:
    async with started(engine, faults=["stall_mid_stream"]) as emu:
        task = asyncio.create_task(chat(emu, "/v1/chat/completions"))
        await until(lambda: emu.counters.tokens_generated >= 3)
    assert (await task).ended == "cut"
    assert emu.counters.aborted == 0
    left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
    assert left == []


@pytest.mark.parametrize("engine", ["ollama", "vllm"])
def test_process_says_where_it_listens_and_ends_on_sigterm(engine: str) -> None:
    code = f"from memos_llm.emulators import run; run({engine!r}, port=0)"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0
        assert process.stderr.read() == ""
