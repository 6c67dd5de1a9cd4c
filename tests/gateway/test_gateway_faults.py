"""Whatever the candidate does before its answer has begun, no client sees it; afterwards the stream says that it broke.

Each fault × dialect × streaming, with the real SDKs' wire formats read by plain HTTP.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from stack import Stack, open_stack

from memos_llm.core.outcome import OUTCOMES, Kind

OFF = {"enabled": False}  # the guard: it would take the share back
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]

CASES: dict[str, tuple[str, dict[str, Any]]] = {  # dialect, streaming → path, body
    "openai stream": ("/v1/chat/completions", {"model": "qwen3:8b", "messages": MESSAGES, "stream": True}),
    "openai whole": ("/v1/chat/completions", {"model": "qwen3:8b", "messages": MESSAGES}),
    "chat stream": ("/api/chat", {"model": "qwen3:8b", "messages": MESSAGES}),
    "chat whole": ("/api/chat", {"model": "qwen3:8b", "messages": MESSAGES, "stream": False}),
    "generate stream": ("/api/generate", {"model": "qwen3:8b", "prompt": "Why?"}),
    "generate whole": ("/api/generate", {"model": "qwen3:8b", "prompt": "Why?", "stream": False}),
}
BEFORE = [
    "refuse",
    "hang",
    "hang_after_headers",
    "slow_first_byte:seconds=30",
    "garbage",
    "status:code=500",
    "status:code=503",
    "status:code=401",
    "status:code=429",
    "queue_full",
    "model_missing",
    "engine_dead",
    "hang_engine",
    "cut_before_content:where=headers",
    "cut_before_content:where=preamble",
    "cut_before_content:where=headers,reset=true",
    "malformed:after=0",
    "error_mid_stream:after=0",
    "stall_mid_stream:after=0",
]
BEFORE_STREAMS = ["eof_without_done:after=0"]  # a whole answer has no such end
AFTER = ["cut_mid_stream", "cut_mid_stream:reset=true", "stall_mid_stream", "error_mid_stream", "eof_without_done",
         "malformed", "finish_abort"]  # fmt: skip


def text_of(case: str, body: str) -> str:
    """The answer's text; fails unless the answer is whole by the rules of its wire."""
    documents = [json.loads(line.removeprefix("data: ")) for line in body.splitlines() if line and "[DONE]" not in line]
    if case.startswith("openai"):
        last = [d for d in documents if d["choices"]][-1]
        assert last["choices"][0]["finish_reason"] == "stop"
        assert body.rstrip().endswith("data: [DONE]") == (case == "openai stream")
        choices = [d["choices"][0] for d in documents if d["choices"]]
        parts = [choice.get("delta", choice.get("message")) for choice in choices]
        return "".join(part.get("content") or "" for part in parts)
    assert [d["done"] for d in documents] == [False] * (len(documents) - 1) + [True]
    assert documents[-1]["done_reason"] == "stop"
    return "".join(d["message"]["content"] if "message" in d else d["response"] for d in documents)


async def post(stack: Stack, case: str, **more: Any) -> Any:
    path, body = CASES[case]
    async with stack.client() as client:
        return await client.post(path, json={**body, **more})


@pytest.mark.parametrize("fault", BEFORE + BEFORE_STREAMS)
async def test_no_client_sees_a_candidate_that_fails_before_its_answer(fault: str, tmp_path: Path) -> None:
    limits = {"ttft_s": 0.4, "idle_s": 0.4, "answer_s": 0.4, "connect_s": 1}
    async with open_stack(tmp_path, config={"patience": limits, "rollback": OFF}) as stack:
        await stack.shift(1.0)
        cases = [case for case in CASES if "stream" in case or fault not in BEFORE_STREAMS]
        for case in cases:
            stack.vllm.faults.set(fault)
            response = await post(stack, case)
            assert response.status_code == 200, (case, response.text)
            assert text_of(case, response.text).startswith("Ollama answers"), case
            assert response.headers["x-memos-provider"] == "ollama"
            assert response.headers["x-memos-arm"] == "candidate"
            assert response.headers["x-memos-reason"] in ("split", "diverted")
        ended = await stack.ended(len(cases))
        assert all(end.outcome.kind is Kind.OK for end in ended)
        blamed = [kind for provider, kind in stack.attempts() if provider == "vllm"]
        assert blamed
        assert all(OUTCOMES[Kind(kind)].counts_against_arm for kind in blamed)


@pytest.mark.parametrize("case", [case for case in CASES if "stream" in case])
@pytest.mark.parametrize("fault", AFTER)
async def test_a_committed_stream_ends_with_an_in_band_error_and_no_invented_finish(
    fault: str, case: str, tmp_path: Path
) -> None:
    thinking = {"think": False} if case.startswith(("chat", "generate")) else {}
    async with open_stack(tmp_path, config={"patience": {"idle_s": 0.3}, "rollback": OFF}) as stack:
        await stack.shift(1.0)
        stack.vllm.faults.set(fault)
        response = await post(stack, case, **thinking)
        assert response.status_code == 200
        lines = [line for line in response.text.splitlines() if line]
        assert "[DONE]" not in response.text
        last = json.loads(lines[-1].removeprefix("data: "))
        assert set(last) == {"error"}
        assert isinstance(last["error"], dict if case == "openai stream" else str)
        before = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert before
        assert not any(d.get("done") for d in before)
        assert not any(choice.get("finish_reason") for d in before for choice in d.get("choices", []))
        (end,) = await stack.ended()
        assert end.outcome.rule.counts_against_arm
        assert end.provider == "vllm"
        assert stack.ollama.counters.requests.total() == 0


async def test_both_back_ends_down_is_a_clear_error_in_each_dialect(stack: Stack) -> None:
    stack.ollama.faults.set("refuse")
    stack.vllm.faults.set("refuse")
    await stack.shift(1.0)
    for case in CASES:
        response = await post(stack, case)
        assert response.status_code == 503, response.text
        assert response.headers["x-should-retry"] == "false"
        assert response.headers["x-memos-error-code"] == "ERR_5001"
        error = response.json()["error"]
        assert isinstance(error, dict if case.startswith("openai") else str)
        assert "connect (refused)" in (error["message"] if isinstance(error, dict) else error)


async def test_a_baseline_whose_breaker_is_open_answers_all_the_same_when_it_can(stack: Stack) -> None:
    """At share 0 there is nobody else: ill requests of one client must not shut it for the others."""
    stack.ollama.faults.set("status:code=500,count=8")
    for _ in range(8):
        assert (await post(stack, "chat whole")).status_code == 502
    assert 'provider="ollama",state="open"} 1.0' in await stack.metrics()
    assert [(await post(stack, "chat whole")).status_code for _ in range(5)] == [200] * 5
    assert 'provider="ollama",state="closed"} 1.0' in await stack.metrics()


async def test_our_wrong_key_is_never_the_clients_401(stack: Stack) -> None:
    stack.ollama.faults.set("status:code=401")
    stack.vllm.faults.set("status:code=401")
    for case in CASES:
        assert (await post(stack, case)).status_code == 502


async def test_a_400_of_the_candidate_that_the_baseline_answers_is_incompatible(tmp_path: Path) -> None:
    """The likeliest migration failure: tools against a vLLM without --enable-auto-tool-choice."""
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
    async with open_stack(tmp_path, config={"rollback": OFF}, vllm={"enable_auto_tool_choice": False}) as stack:
        await stack.shift(1.0)
        for case in ("openai whole", "chat stream"):
            response = await post(stack, case, tools=tools)
            assert response.status_code == 200
            assert response.headers["x-memos-provider"] == "ollama"
        assert stack.attempts() == [("vllm", "incompatible"), ("ollama", "ok")] * 2


async def test_a_request_that_both_refuse_is_the_clients_own_400(stack: Stack) -> None:
    await stack.shift(1.0)
    response = await post(stack, "openai whole", temperature="hot")
    assert response.status_code == 400
    await stack.ended()
    assert {kind for _, kind in stack.attempts()} == {"client"}


@pytest.mark.parametrize("case", CASES)
async def test_a_model_nobody_has_is_a_404(case: str, stack: Stack) -> None:
    response = await post(stack, case, model="nobody:1b")
    assert response.status_code == 404
    assert "nobody:1b" in response.text


async def test_an_open_breaker_diverts_and_closes_again_by_itself(stack: Stack) -> None:
    await stack.shift(1.0)
    stack.vllm.faults.set("status:code=500")
    reasons = [(await post(stack, "openai whole")).headers["x-memos-reason"] for _ in range(8)]
    assert reasons[0] == "split"
    assert reasons[-1] == "diverted"
    metrics = await stack.metrics()
    assert 'memos_llm_diverted_total{provider="vllm",reason="breaker-open"}' in metrics
    assert 'state="open"} 1.0' in metrics
