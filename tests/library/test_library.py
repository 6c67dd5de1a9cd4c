"""The engine in process: Router, SyncRouter, bound providers."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from stack import ME, VLLM_MODEL, document, settings, until

import memos_llm
from memos_llm import LLMProvider, Router, SyncRouter
from memos_llm.config import Settings
from memos_llm.core.commands import Shift
from memos_llm.core.decision import Arm, Reason
from memos_llm.core.flags import PPM
from memos_llm.emulators import OllamaEmulator, VllmEmulator

QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Pair:
    def __init__(self, ollama: OllamaEmulator, vllm: VllmEmulator, config: Settings) -> None:
        self.ollama, self.vllm, self.config = ollama, vllm, config


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with (
        OllamaEmulator(port=0, models=["qwen3:8b"]) as ollama,
        VllmEmulator(port=0, models=[VLLM_MODEL]) as vllm,
    ):
        only = {"qwen3:8b": {"vllm": {"name": VLLM_MODEL, "thinking": "enable_thinking", "split_think_tags": True}}}
        yield Pair(ollama, vllm, settings(tmp_path, document(ollama.url, vllm.url, tmp_path, models=only)))


async def shift(router: Router, share: float) -> None:
    await router._runtime.live.submit(Shift(provider="vllm", share_ppm=round(share * PPM)), ME)


async def test_generate_and_chat_answer_from_the_assigned_arm(pair: Pair) -> None:
    async with Router.open(pair.config) as router:
        old = await router.generate("Why is the sky blue?", component="synthesis", model="qwen3:8b")
        await shift(router, 1.0)
        new = await router.chat(QUESTION, component="synthesis", session="conv-42")
    assert old.text.startswith("Ollama answers")
    assert (old.provider, old.model, old.arm, old.attempts) == ("ollama", "qwen3:8b", "baseline", 1)
    assert new.text.startswith("vLLM replies")
    assert (new.provider, new.model, new.arm) == ("vllm", VLLM_MODEL, "candidate")
    for answer in (old, new):
        assert answer.finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.input_tokens > 0
        assert answer.request_id
        assert answer.duration_s > 0
        assert answer.raw["object"] == "chat.completion"


@pytest.mark.parametrize("share", [0.0, 1.0])
async def test_stream_pieces_add_up_to_the_answer(pair: Pair, share: float) -> None:
    async with Router.open(pair.config) as router:
        await shift(router, share)
        whole = await router.chat(QUESTION)
        chunks = [chunk async for chunk in router.stream(QUESTION)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert len(chunks) > 2
    assert all(not chunk.finish_reason and chunk.usage is None for chunk in chunks[:-1])
    assert (chunks[-1].finish_reason, chunks[-1].usage) == ("stop", whole.usage)


@pytest.mark.parametrize("share", [0.0, 1.0])
async def test_tool_calls_arrive_whole(pair: Pair, share: float) -> None:
    ask = [{"role": "user", "content": "What is the weather? tool:get_weather"}]
    async with Router.open(pair.config) as router:
        await shift(router, share)
        whole = await router.chat(ask, tools=[TOOL])
        streamed = [call async for chunk in router.stream(ask, tools=[TOOL]) for call in chunk.tool_calls]
    (call,) = whole.tool_calls
    assert call.name == "get_weather"
    assert [(c.name, c.arguments) for c in streamed] == [(call.name, call.arguments)]
    assert whole.finish_reason == "tool_calls"


async def test_a_dead_candidate_is_not_seen(pair: Pair) -> None:
    async with Router.open(pair.config) as router:
        await shift(router, 1.0)
        pair.vllm.faults.set("refuse")
        answer = await router.chat(QUESTION)
        chunks = [chunk async for chunk in router.stream(QUESTION)]
    assert (answer.provider, answer.arm, answer.attempts) == ("ollama", "candidate", 2)
    assert "".join(chunk.text for chunk in chunks) == answer.text


async def test_leaving_a_stream_early_cancels_it_upstream(pair: Pair) -> None:
    pair.ollama.timing.inter_token_s = 0.2
    async with Router.open(pair.config) as router:
        stream = router.stream(QUESTION)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]  # a generator, typed as its iterator
        await until(lambda: pair.ollama.counters.aborted == 1)


async def test_explain_sends_nothing_and_agrees_with_what_happens(pair: Pair) -> None:
    async with Router.open(pair.config, probe=False) as router:
        await shift(router, 0.5)
        plans = {f"s{i}": router.explain(component="synthesis", session=f"s{i}", model="qwen3:8b") for i in range(20)}
        assert pair.ollama.counters.requests.total() + pair.vllm.counters.requests.total() == 0
        for session, plan in plans.items():
            answer = await router.chat(QUESTION, component="synthesis", session=session)
            assert answer.arm == plan.arm.value
    assert {plan.arm for plan in plans.values()} == {Arm.BASELINE, Arm.CANDIDATE}
    assert {plan.reason for plan in plans.values()} == {Reason.SPLIT}


async def test_a_bound_router_is_a_provider_like_any_other(pair: Pair) -> None:
    async def pipeline(llm: LLMProvider) -> str:
        answer = await llm.generate("Why?")
        return answer.text + "".join([chunk.text async for chunk in llm.stream(QUESTION)])

    async with Router.open(pair.config) as router:
        bound = router.provider("synthesis")
        assert isinstance(bound, LLMProvider)
        assert isinstance(router, LLMProvider)
        assert (await pipeline(bound)).startswith("Ollama answers")


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        ("refuse", memos_llm.Unavailable, "ERR_5001"),
        ("hang", memos_llm.Timeout, "ERR_5002"),
        ("malformed:after=0", memos_llm.InvalidResponse, "ERR_5003"),
        ("queue_full", memos_llm.Overloaded, "ERR_5104"),
        ("model_missing", memos_llm.ModelNotFound, "ERR_5102"),
    ],
)
async def test_errors_are_typed_and_carry_their_codes(
    pair: Pair, fault: str, error: type[memos_llm.LLMError], code: str
) -> None:
    pair.ollama.faults.set(fault)
    async with Router.open(pair.config, probe=False) as router:  # a probe could cut the call before it fails by itself
        with pytest.raises(error) as caught:
            await router.chat(QUESTION, request_id="req-7", timeout_s=0.5 if error is memos_llm.Timeout else 20.0)
    assert (caught.value.code, caught.value.request_id, caught.value.provider) == (code, "req-7", "ollama")
    assert "sky" not in str(caught.value)


async def test_a_broken_stream_says_so(pair: Pair) -> None:
    pair.ollama.faults.set("cut_mid_stream:after=2")
    async with Router.open(pair.config) as router:
        with pytest.raises(memos_llm.StreamBroken):
            async for _ in router.stream(QUESTION):
                pass


async def test_sync_router_works_inside_a_running_loop(pair: Pair) -> None:
    def work() -> tuple[str, str, str]:
        with SyncRouter.open(pair.config) as router:
            text = router.generate("Why?").text
            pieces = "".join(chunk.text for chunk in router.stream([{"role": "user", "content": "Why?"}]))
            return text, pieces, router.explain(session="s").reason.value

    text, pieces, reason = await asyncio.to_thread(work)
    assert text == pieces
    assert reason == "split"


def test_sync_router_reports_a_wrong_configuration_and_leaves_no_thread(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("baseline: nobody\n")
    with pytest.raises(memos_llm.ConfigError, match="nobody"):
        SyncRouter.open(bad)


async def test_without_a_model_the_only_one_is_meant(pair: Pair, tmp_path: Path) -> None:
    two = settings(tmp_path, document(pair.ollama.url, pair.vllm.url, tmp_path))
    async with Router.open(two) as router:
        with pytest.raises(memos_llm.ConfigError, match="model="):
            await router.generate("Why?")


def test_import_is_light() -> None:
    code = "import sys, memos_llm; memos_llm.LLMError; print(*[m for m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert not {"aiohttp", "starlette", "litellm", "uvicorn", "typer", "pydantic", "httpx", "rich"} & set(loaded)
    assert {m for m in loaded if m.startswith("memos_llm.")} <= {
        "memos_llm.core",
        "memos_llm.core.errors",
        "memos_llm.core.outcome",
        "memos_llm.core.version",
    }


def test_every_public_name_exists_and_the_list_is_pinned() -> None:
    assert [name for name in memos_llm.__all__ if not hasattr(memos_llm, name)] == []
    assert memos_llm.__all__ == sorted(memos_llm.__all__)
    with pytest.raises(AttributeError, match="Ruoter"):
        _ = memos_llm.Ruoter  # type: ignore[attr-defined]  # a type checker sees it, too
