"""A release of vLLM behaves as that release, on the wire."""

from __future__ import annotations

from typing import Any

import pytest
from emulator_wire import WEATHER_TOOL, Answered, ask, user

from memos_llm.emulators import VllmEmulator
from memos_llm.emulators.vllm_versions import SWITCHES, Release

CHAT = "/v1/chat/completions"
HI: dict[str, Any] = {"messages": user("hi")}


async def post(version: str, body: dict[str, Any], path: str = CHAT, **options: Any) -> Answered:
    async with VllmEmulator(version=version, models=["Qwen/Qwen3-8B"], **options) as emu:
        return await ask(emu.url, "POST", path, body)


def test_releases_compare_by_number_and_every_switch_is_named() -> None:
    assert [Release(v).has("nested errors") for v in ("0.8.5.post1", "0.9", "0.10.2", "0.33.0+cu128")] == [
        False,
        False,
        True,
        True,
    ]
    for name in SWITCHES:
        assert Release("0.33.0").has(name) in (True, False)


async def test_errors_are_flat_up_to_0_8() -> None:
    old = await post("0.8.5", {**HI, "top_p": 0})
    assert (old.json["object"], old.json["type"], old.json["code"]) == ("error", "BadRequestError", 400)
    assert "error" not in old.json
    assert (await post("0.10.2", {**HI, "top_p": 0})).json["error"]["code"] == 400


@pytest.mark.parametrize(
    ("body", "last_accepted", "first_refused"),
    [
        ({**HI, "tools": []}, "0.16.0", "0.20.2"),
        ({**HI, "temperature": 2.5}, "0.20.2", "0.26.0"),
        ({**HI, "stop": list("vwxyz")}, "0.26.0", "0.28.0"),
    ],
)
async def test_what_newer_releases_refuse(body: dict[str, Any], last_accepted: str, first_refused: str) -> None:
    assert (await post(last_accepted, body)).status == 200
    assert (await post(first_refused, body)).status == 400


@pytest.mark.parametrize(
    ("effort", "accepted"),
    [("low", ("0.16.0", "0.20.2", "0.26.0")), ("none", ("0.20.2", "0.26.0")), ("xhigh", ("0.26.0",))],
)
async def test_efforts_by_release(effort: str, accepted: tuple[str, ...]) -> None:
    for version in ("0.16.0", "0.20.2", "0.26.0"):
        got = await post(version, {**HI, "reasoning_effort": effort})
        assert got.status == (200 if version in accepted else 400)


async def test_effort_none_stops_the_thinking_since_0_26() -> None:
    shown = [
        (await post(version, {**HI, "reasoning_effort": "none"})).json["choices"][0]["message"]["reasoning"]
        for version in ("0.20.2", "0.26.0")
    ]
    assert shown[0]
    assert shown[1] is None


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("0.11.0", {"reasoning_content"}),
        ("0.12.0", {"reasoning", "reasoning_content"}),
        ("0.16.0", {"reasoning"}),
        ("0.33.0", {"reasoning"}),
    ],
)
async def test_reasoning_is_said_under_the_release_s_names(version: str, names: set[str]) -> None:
    both = {"reasoning", "reasoning_content"}
    whole = await post(version, HI)
    assert both & whole.json["choices"][0]["message"].keys() == names
    stream = await post(version, {**HI, "stream": True})
    assert both & stream.events[1]["choices"][0]["delta"].keys() == names


@pytest.mark.parametrize(
    ("version", "read"),
    [("0.11.0", "reasoning_content"), ("0.12.0", "both"), ("0.16.0", "reasoning"), ("0.26.0", "both")],
)
async def test_reasoning_of_history_is_read_under_the_release_s_names(version: str, read: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    counts = {}
    for name in ("nothing", "reasoning", "reasoning_content"):
        turn = {"role": "assistant", "content": None, "tool_calls": [call], name: "one two three"}
        body = {"messages": [*user("x"), turn, {"role": "tool", "content": "y", "tool_call_id": "c"}]}
        counts[name] = (await post(version, body)).json["usage"]["prompt_tokens"]
    for name in ("reasoning", "reasoning_content"):
        assert counts[name] - counts["nothing"] == (3 if read in (name, "both") else 0)


async def test_guided_json_counts_up_to_0_11_and_is_ignored_since() -> None:
    body = {**HI, "guided_json": {"type": "object", "properties": {"a": {"const": 1}}}}
    old, new = [
        (await post(v, body, thinking=False)).json["choices"][0]["message"]["content"] for v in ("0.11.0", "0.12.0")
    ]
    assert old == '{"a":1}'
    assert new.startswith("vLLM replies")


async def test_long_answers_are_refused_up_to_0_30_and_clamped_from_0_32() -> None:
    body = {**HI, "max_tokens": 100, "ignore_eos": True}
    refused = await post("0.30.0", body, max_model_len=100, thinking=False)
    assert (refused.status, refused.json["error"]["param"]) == (400, "max_tokens")
    clamped = await post("0.32.0", body, max_model_len=100, thinking=False)
    assert clamped.json["usage"]["total_tokens"] == 100


async def test_a_dead_engine_has_an_empty_body_up_to_0_16() -> None:
    for version, health, body in (("0.10.2", 500, b""), ("0.16.0", 503, b""), ("0.33.0", 503, b"EngineCore")):
        async with VllmEmulator(version=version, faults=["engine_dead"]) as emu:
            got = await ask(emu.url, "POST", CHAT, HI)
            assert got.status == 500
            assert body in got.body
            assert bool(got.body) == bool(body)
            assert (await ask(emu.url, "GET", "/health")).status == health


async def test_routes_come_with_their_release() -> None:
    ask_message = {"model": "Qwen/Qwen3-8B", "max_tokens": 5, "messages": user("x")}
    paths = ("/v1/responses", "/v1/messages", "/v1/messages/count_tokens")
    statuses = {v: [(await post(v, {**ask_message, "input": "x"}, path)).status for path in paths] for v in VERSIONS}
    assert statuses == {
        "0.8.5": [404, 404, 404],
        "0.11.0": [200, 404, 404],
        "0.16.0": [200, 200, 404],
        "0.20.2": [200] * 3,
    }


VERSIONS = ("0.8.5", "0.11.0", "0.16.0", "0.20.2")


async def test_the_key_guards_more_paths_in_newer_releases() -> None:
    guarded = {}
    for version in ("0.20.2", "0.26.0", "0.28.0"):
        async with VllmEmulator(version=version, api_key="k") as emu:
            paths = ("/v1/models", "/v2/embed", "/inference/v1/generate", "/cohere/v2/chat", "/tokenize")
            guarded[version] = [(await ask(emu.url, "GET", path)).status == 401 for path in paths]
    assert guarded == {
        "0.20.2": [True, False, False, False, False],
        "0.26.0": [True, True, True, False, False],
        "0.28.0": [True, True, True, True, False],
    }


def test_an_option_that_a_release_does_not_know_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"0\.30"):
        VllmEmulator(version="0.28.0", max_num_queued_reqs=1)


METRICS = {
    "0.10.2": ("gpu_cache_usage_perc", "kv_cache_usage_perc", "gpu_prefix_cache_hits_total", "time_per_output_token"),
    "0.12.0": ("kv_cache_usage_perc", "prefix_cache_hits_total", "inter_token_latency_seconds"),
    "0.33.0": ("kv_cache_usage_perc", "num_requests_waiting_by_reason", "admission_rejections_total"),
}
ABSENT = {
    "0.10.2": ("num_requests_waiting_by_reason", "admission_rejections_total", 'finished_reason="error"'),
    "0.12.0": ("gpu_cache_usage_perc", "gpu_prefix_cache_hits_total", "time_per_output_token_seconds_count"),
    "0.33.0": ("gpu_cache_usage_perc", "prompt_tokens_recomputed_total"),
}


@pytest.mark.parametrize("version", METRICS)
async def test_metrics_have_the_release_s_names(version: str) -> None:
    async with VllmEmulator(version=version) as emu:
        page = (await ask(emu.url, "GET", "/metrics")).body.decode()
    for name in METRICS[version]:
        assert f"vllm:{name}" in page
    for name in ABSENT[version]:
        assert f"vllm:{name}" not in page.replace("request_time_per", "")
        assert not name.startswith("finished") or name not in page


async def test_unknown_models_name_the_aliases_since_0_32() -> None:
    for version, told in (("0.30.0", False), ("0.32.0", True)):
        got = await post(version, {**HI, "model": "ghost"})
        assert ("Qwen/Qwen3-8B" in got.json["error"]["message"]) == told


async def test_one_tool_call_alone_when_parallel_ones_are_not_wanted() -> None:
    body = {"messages": user("tool:get_weather tool:get_weather"), "tools": [WEATHER_TOOL]}
    both = await post("0.33.0", body)
    one = await post("0.33.0", {**body, "parallel_tool_calls": False})
    assert [len(got.json["choices"][0]["message"]["tool_calls"]) for got in (both, one)] == [2, 1]
