"""Ollama's routes beside chat and generate: completions, responses, messages, show, and the management of models."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from emulator_wire import SCHEMA, WEATHER_TOOL, Answered, ask, user

from memos_llm.emulators import OllamaEmulator, OllamaModel, expected

MODEL, THINKER = "llama3.2:3b", "qwen3:8b"
COMPLETIONS, RESPONSES, MESSAGES = "/v1/completions", "/v1/responses", "/v1/messages"
ZERO = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@pytest.fixture
async def emu() -> AsyncIterator[OllamaEmulator]:
    async with OllamaEmulator() as emulator:
        yield emulator


def named(got: Answered) -> list[tuple[str, Any]]:
    """Events with their names."""
    parts = [event.split(b"\n") for event in got.body.split(b"\n\n") if event]
    pieces = [Answered(chunks=[data]) for _, data in parts]
    return [(n.decode().removeprefix("event: "), p.events[0]) for (n, _), p in zip(parts, pieces, strict=True)]


# -- /v1/completions


async def test_completion_goes_through_the_chat_template(emu: OllamaEmulator) -> None:
    answer = expected("ollama", user("hi"))
    got = await ask(emu.url, "POST", COMPLETIONS, model=MODEL, prompt="hi", logprobs=3)
    assert got.headers["content-type"] == "application/json"
    body = got.json
    assert list(body) == ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"]
    assert body["choices"] == [{"text": answer.text, "index": 0, "finish_reason": "stop"}]
    assert body["usage"]["prompt_tokens"] == answer.prompt_tokens
    assert body["usage"]["completion_tokens"] == answer.completion_tokens


async def test_completion_stream_has_zero_usage_on_every_chunk_but_the_last(emu: OllamaEmulator) -> None:
    got = await ask(
        emu.url, "POST", COMPLETIONS, model=THINKER, prompt="hi", stream=True, stream_options={"include_usage": True}
    )
    answer = expected("ollama", user("hi"), thinking=True)
    *chunks, usage, done = got.events
    assert done == "[DONE]"
    assert got.chunks[-1].count(b"data: ") == 3
    assert [c["usage"] for c in chunks] == [ZERO] * len(chunks)
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], answer.completion_tokens)
    texts = [c["choices"][0]["text"] for c in chunks]
    assert texts[: len(answer.thinking)] == [""] * len(answer.thinking)
    assert "".join(texts) == answer.text
    assert [c["choices"][0]["finish_reason"] for c in chunks[-2:]] == [None, "stop"]
    bare = await ask(emu.url, "POST", COMPLETIONS, model=MODEL, prompt="hi", stream=True)
    assert all("usage" not in chunk for chunk in bare.events[:-1])


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (
            {"prompt": ["a", "b"]},
            "json: cannot unmarshal array into Go struct field CompletionRequest.prompt of type string",
        ),
        ({"stop": ["a", 1]}, "invalid type for 'stop' field: float64"),
        ({"suffix": "z"}, f"registry.ollama.ai/library/{MODEL} does not support insert"),
    ],
)
async def test_completion_refusals(emu: OllamaEmulator, more: Any, text: str) -> None:
    got = await ask(emu.url, "POST", COMPLETIONS, {"model": MODEL, "prompt": "x", **more})
    assert (got.status, got.json["error"]["message"]) == (400, text)


async def test_empty_completion_loads(emu: OllamaEmulator) -> None:
    got = await ask(emu.url, "POST", COMPLETIONS, model=MODEL, prompt="", suffix="")
    assert got.json["choices"] == [{"text": "", "index": 0, "finish_reason": "load"}]
    assert emu.counters.loads == 1
    streamed = await ask(emu.url, "POST", COMPLETIONS, model=MODEL, prompt="", stream=True)
    assert [e if e == "[DONE]" else e["choices"][0]["finish_reason"] for e in streamed.events] == ["load", "[DONE]"]


# -- /v1/responses


async def test_openai_sdk_creates_responses_whole_and_streamed(emu: OllamaEmulator) -> None:
    tool: Any = {"type": "function", "strict": False, **WEATHER_TOOL["function"]}
    asked = [{"role": "system", "content": "short"}, *user("hi")]
    answer = expected("ollama", asked, thinking=True)
    async with openai.AsyncOpenAI(base_url=f"{emu.url}/v1", api_key="x") as client:
        whole = await client.responses.create(model=THINKER, instructions="short", input="hi")
        assert (whole.status, whole.output_text) == ("completed", answer.text)
        assert whole.usage is not None
        assert whole.usage.output_tokens == answer.completion_tokens
        streamed = await client.responses.create(model=THINKER, instructions="short", input="hi", stream=True)
        events = [event async for event in streamed]
        called = await client.responses.create(model=MODEL, input="weather?", tools=[tool])
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == answer.text
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == answer.text
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]
    assert called.output[0].type == "function_call"
    assert called.output[0].name == "get_weather"


async def test_responses_carry_tool_calls_and_schema(emu: OllamaEmulator) -> None:
    tool = {"type": "function", **WEATHER_TOOL["function"]}
    got = await ask(emu.url, "POST", RESPONSES, model=MODEL, input="weather?", tools=[tool], stream=True)
    names = [name for name, _ in named(got)]
    assert names[2:-1] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    call = named(got)[-1][1]["response"]["output"][0]
    history: list[Any] = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {**call, "id": None},
        {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"},
    ]
    after = (await ask(emu.url, "POST", RESPONSES, model=MODEL, input=history, tools=[tool])).json
    assert after["output"][0]["type"] == "message"
    wanted = {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}
    made = (await ask(emu.url, "POST", RESPONSES, model=MODEL, input="hi", text=wanted)).json
    assert made["output"][0]["content"][0]["text"] == expected("ollama", user("hi"), schema=SCHEMA).text
    odd = await ask(emu.url, "POST", RESPONSES, model=MODEL, input=[{"type": "item_reference"}])
    assert (odd.status, odd.json["error"]["message"]) == (400, 'input[0]: unknown input item type: "item_reference"')


# -- /v1/messages


async def test_messages_whole_and_streamed(emu: OllamaEmulator) -> None:
    body = {"model": THINKER, "max_tokens": 100, "system": "short", "messages": user("hi")}
    answer = expected("ollama", [{"role": "system", "content": "short"}, *user("hi")], thinking=True)
    whole = (await ask(emu.url, "POST", MESSAGES, body)).json
    assert [block["type"] for block in whole["content"]] == ["thinking", "text"]
    assert whole["content"][1]["text"] == answer.text
    assert whole["stop_reason"] == "end_turn"
    assert whole["usage"] == {"input_tokens": answer.prompt_tokens, "output_tokens": answer.completion_tokens}
    got = await ask(emu.url, "POST", MESSAGES, {**body, "stream": True})
    events = named(got)
    assert all(name == data["type"] for name, data in events)
    deltas = [data["delta"] for name, data in events if name == "content_block_delta"]
    assert "".join(d.get("text", "") for d in deltas) == answer.text
    assert "".join(d.get("thinking", "") for d in deltas) == answer.thinking_text
    assert [n for n, _ in events if n != "content_block_delta"] == [
        "message_start",
        *["content_block_start", "content_block_stop"] * 2,
        "message_delta",
        "message_stop",
    ]
    assert events[-2][1]["usage"]["output_tokens"] == answer.completion_tokens


async def test_messages_use_tools_and_word_errors_as_anthropic_does(emu: OllamaEmulator) -> None:
    function = WEATHER_TOOL["function"]
    tool = {"name": function["name"], "input_schema": function["parameters"]}
    body = {"model": MODEL, "max_tokens": 100, "messages": user("weather?"), "tools": [tool]}
    used = (await ask(emu.url, "POST", MESSAGES, body)).json
    assert (used["stop_reason"], used["content"][0]["type"]) == ("tool_use", "tool_use")
    history = [
        *user("weather?"),
        {"role": "assistant", "content": used["content"]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "sunny"}]},
    ]
    assert (await ask(emu.url, "POST", MESSAGES, {**body, "messages": history})).json["stop_reason"] == "end_turn"
    streamed = named(await ask(emu.url, "POST", MESSAGES, {**body, "stream": True}))
    assert [n for n, _ in streamed] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop",  # noqa: E501
    ]  # fmt: skip
    missing = await ask(emu.url, "POST", MESSAGES, {**body, "model": "nope"})
    assert (missing.status, missing.json["type"], missing.json["error"]["type"]) == (404, "error", "not_found_error")
    limit = await ask(emu.url, "POST", MESSAGES, {**body, "max_tokens": 0})
    assert (limit.status, limit.json["error"]["message"]) == (400, "max_tokens is required and must be positive")


# -- show, status


async def test_show_hides_arrays_unless_verbose(emu: OllamaEmulator) -> None:
    short = (await ask(emu.url, "POST", "/api/show", name="mxbai-embed-large")).json
    assert short["capabilities"] == ["embedding"]
    info = short["model_info"]
    family = info["general.architecture"]
    assert (info[f"{family}.context_length"], info[f"{family}.embedding_length"]) == (512, 1024)
    assert info["tokenizer.ggml.tokens"] is None
    assert "/blobs/sha256-" in short["modelfile"]
    verbose = (await ask(emu.url, "POST", "/api/show", model=MODEL, verbose=True)).json
    assert len(verbose["model_info"]["tokenizer.ggml.tokens"]) > 1
    assert verbose["tensors"]


async def test_status_and_heartbeat(emu: OllamaEmulator) -> None:
    assert (await ask(emu.url, "GET", "/api/status")).json == {"cloud": {"disabled": True, "source": "env"}}
    assert (await ask(emu.url, "HEAD", "/")).headers["content-length"] == "17"
    assert (await ask(emu.url, "GET", "/")).body == b"Ollama is running"


@pytest.mark.parametrize("path", ["/api/show", "/api/ps", "/api/tags", "/v1/models"])
async def test_a_fault_for_all_routes_hits_the_routes_that_tell(path: str) -> None:
    async with OllamaEmulator(faults=["cut_mid_stream:all=true"]) as emu:
        body = {"model": MODEL} if path == "/api/show" else None
        assert (await ask(emu.url, "POST" if body else "GET", path, body)).ended == "cut"
        emu.faults.set("cut_mid_stream")
        assert (await ask(emu.url, "POST" if body else "GET", path, body)).ended == "complete"


BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": MODEL, "prompt": "words:9"},
    RESPONSES: {"model": MODEL, "input": "words:9"},
    MESSAGES: {"model": MODEL, "max_tokens": 99, "messages": user("words:9")},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("spec", "status", "ended"),
    [
        ("status:code=503", 503, "complete"),
        ("cut_before_content", 200, "cut"),
        ("cut_mid_stream:after=2", 200, "cut"),
        ("runner_crash:after=2", 200, "complete"),
        ("eof_without_done", 200, "complete"),
    ],
)
async def test_faults_interrupt_every_layer(path: str, spec: str, status: int, ended: str) -> None:
    last = {COMPLETIONS: b"[DONE]", RESPONSES: b"response.completed", MESSAGES: b"message_stop"}[path]
    async with OllamaEmulator(faults=[spec]) as emu:
        got = await ask(emu.url, "POST", path, {**BODIES[path], "stream": True})
        assert (got.status, got.ended) == (status, ended)
        assert last not in got.body
        emu.faults.clear()
        assert last in (await ask(emu.url, "POST", path, {**BODIES[path], "stream": True})).body
        emu.faults.set("error_mid_stream")
        assert (await ask(emu.url, "POST", path, BODIES[path])).status == 500


async def test_cloud_models_are_refused_by_their_tag(emu: OllamaEmulator) -> None:
    for name in ("gpt-oss:120b-cloud", "qwen3:cloud"):
        got = await ask(emu.url, "POST", "/api/chat", model=name, messages=user("private"))
        assert got.status == 403
        assert got.json["error"].startswith("ollama cloud is disabled")


# -- images


async def test_a_model_without_vision_ignores_images_silently(emu: OllamaEmulator) -> None:
    message = {**user("hi")[0], "images": ["AA=="]}
    plain = (await ask(emu.url, "POST", "/api/chat", model=MODEL, messages=user("hi"), stream=False)).json
    blind = (await ask(emu.url, "POST", "/api/chat", model=MODEL, messages=[message], stream=False)).json
    seen = (await ask(emu.url, "POST", "/api/chat", model="gemma3:4b", messages=[message], stream=False)).json
    assert 0 < blind["prompt_eval_count"] - plain["prompt_eval_count"] < 20
    assert seen["prompt_eval_count"] - plain["prompt_eval_count"] > 100


# -- the management of models


async def names(emu: OllamaEmulator) -> list[str]:
    return [model["name"] for model in (await ask(emu.url, "GET", "/api/tags")).json["models"]]


async def test_pull_installs_what_the_registry_has(emu: OllamaEmulator) -> None:
    got = await ask(emu.url, "POST", "/api/pull", model="all-minilm")
    statuses = [record["status"] for record in got.records]
    assert got.headers["content-type"] == "application/x-ndjson"
    assert statuses[0] == "pulling manifest"
    assert statuses[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    assert got.records[-4]["completed"] == got.records[-4]["total"]
    assert "completed" not in got.records[1]
    assert (await names(emu))[0] == "all-minilm:latest"
    whole = await ask(emu.url, "POST", "/api/pull", name="nomic-embed-text", stream=False)
    assert (whole.status, whole.json) == (200, {"status": "success"})
    assert len((await ask(emu.url, "POST", "/api/embed", model="all-minilm", input="x")).json["embeddings"][0]) == 384


async def test_pull_of_an_unknown_model_is_a_200_with_an_error_line(emu: OllamaEmulator) -> None:
    error = {"error": "pull model manifest: file does not exist"}
    got = await ask(emu.url, "POST", "/api/pull", model="nope")
    assert (got.status, got.records) == (200, [{"status": "pulling manifest"}, error])
    whole = await ask(emu.url, "POST", "/api/pull", model="nope", stream=False)
    assert (whole.status, whole.json) == (500, error)


async def test_copy_create_delete(emu: OllamaEmulator) -> None:
    copied = await ask(emu.url, "POST", "/api/copy", source=MODEL, destination="me/mine:v1")
    assert (copied.status, copied.body) == (200, b"")
    made = await ask(emu.url, "POST", "/api/create", {"model": "made", "from": MODEL, "system": "s"})
    assert made.records[-1] == {"status": "success"}
    assert (await names(emu))[:2] == ["made:latest", "me/mine:v1"]
    assert (await ask(emu.url, "POST", "/api/chat", model="made", messages=user("x"))).status == 200
    pushed = await ask(emu.url, "POST", "/api/push", model="me/mine:v1")
    assert pushed.records[-1] == {"status": "success"}
    assert "error" in (await ask(emu.url, "POST", "/api/push", model="made")).records[-1]
    assert (await ask(emu.url, "DELETE", "/api/delete", model="made")).body == b""
    gone = await ask(emu.url, "DELETE", "/api/delete", model="made")
    assert (gone.status, gone.json) == (404, {"error": "model 'made' not found"})
    missing = await ask(emu.url, "POST", "/api/copy", source="nope", destination="x")
    assert missing.status == 404
    assert "made:latest" not in await names(emu)


async def test_blobs_are_checked_and_remembered(emu: OllamaEmulator) -> None:
    digest = f"sha256:{hashlib.sha256(b'gguf').hexdigest()}"
    assert (await ask(emu.url, "HEAD", f"/api/blobs/{digest}")).status == 404
    assert (await ask(emu.url, "POST", f"/api/blobs/{digest}", b"other")).status == 400
    assert (await ask(emu.url, "POST", f"/api/blobs/{digest}", b"gguf")).status == 201
    assert (await ask(emu.url, "POST", f"/api/blobs/{digest}", b"gguf")).status == 200
    assert (await ask(emu.url, "HEAD", f"/api/blobs/{digest}")).status == 200
    made = await ask(emu.url, "POST", "/api/create", model="own", files={"m.gguf": digest})
    assert made.records[-1] == {"status": "success"}
    unsent = await ask(emu.url, "POST", "/api/create", model="own2", files={"m.gguf": "sha256:0"})
    assert unsent.records[-1] == {"error": "blob sha256:0 does not exist"}


async def test_native_path_carries_calls_at_the_end_of_every_layer() -> None:
    async with OllamaEmulator(models=[OllamaModel(MODEL, jinja=True)]) as emu:
        function = WEATHER_TOOL["function"]
        tool = {"type": "function", **function}
        got = await ask(emu.url, "POST", RESPONSES, model=MODEL, input="weather?", tools=[tool], stream=True)
        assert named(got)[-1][1]["response"]["output"][0]["name"] == "get_weather"
        body = {"model": MODEL, "max_tokens": 99, "messages": user("weather?"), "stream": True}
        tools = [{"name": function["name"], "input_schema": function["parameters"]}]
        used = named(await ask(emu.url, "POST", MESSAGES, {**body, "tools": tools}))
        assert used[-2][1]["delta"] == {"stop_reason": "tool_use"}
