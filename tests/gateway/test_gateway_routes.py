"""The thin path's promises on the later routes: text completions and embeddings × faults, cancellation, bytes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack import ME, Stack, open_stack, until

from memos_llm.core.commands import Verify
from memos_llm.core.flags import EMBEDDING, Verification

OFF = {"enabled": False}  # the guard: it would take the share back
MODEL, OWN = "mxbai-embed-large", "mixedbread-ai/mxbai-embed-large-v1"
VECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai embeddings": ("/v1/embeddings", {"model": MODEL, "input": ["a", "b"]}),
    "ollama embed": ("/api/embed", {"model": MODEL, "input": ["a", "b"]}),
    "ollama embeddings": ("/api/embeddings", {"model": MODEL, "prompt": "a"}),
}
TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "text whole": ("/v1/completions", {"model": "qwen3:8b", "prompt": "Why?", "max_tokens": 30}),
    "text stream": ("/v1/completions", {"model": "qwen3:8b", "prompt": "Why?", "max_tokens": 30, "stream": True}),
}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "list stream": ("/v1/completions", TEXT["text stream"][1] | {"prompt": ["Why?", "How?"]}),
    "raw stream": ("/api/generate", {"model": "qwen3:8b", "prompt": "Why?", "raw": True}),
}
ENDS = {
    "text stream": "data: [DONE]",
    "list stream": "data: [DONE]",
    "raw stream": '"done":true',
    "text whole": "usage",
}
BEFORE = [
    "refuse",
    "hang",
    "garbage",
    "status:code=500",
    "status:code=503",
    "status:code=401",
    "status:code=429",
    "model_missing",
    "engine_dead",
    "cut_before_content:where=headers",
    "cut_before_content:where=headers,reset=true",
]
LIMITS = {"ttft_s": 0.4, "idle_s": 0.4, "answer_s": 0.4, "connect_s": 1}


@asynccontextmanager
async def embedding_stack(folder: Path, *, verified: bool, **more: Any) -> AsyncIterator[Stack]:
    """Every embedding goes to vLLM; `verified`: its vectors are known to be Ollama's."""
    config = {"models": {MODEL: {"vllm": OWN}}, "patience": LIMITS, **more}
    vllm = {"models": [OWN], "task": "embed"}
    async with open_stack(folder, config=config, ollama={"models": [MODEL]}, vllm=vllm) as stack:
        proof = Verification(baseline=MODEL, candidate=OWN, dimension=1024, cosine_min=1.0, texts=9, at=0.0)
        await stack.runtime.live.submit(Verify(provider="vllm", model=MODEL, proof=proof), ME)
        await stack.shift(1.0, EMBEDDING)
        if not verified:
            await stack.runtime.live.submit(Verify(provider="vllm", model=MODEL, proof=None), ME)
        yield stack


async def post(stack: Stack, path: str, body: Any, **headers: str) -> httpx.Response:
    async with stack.client() as client:
        return await client.post(path, json=body, headers=headers)


@pytest.mark.parametrize("fault", BEFORE)
async def test_no_client_sees_a_candidate_that_fails_at_proven_vectors(fault: str, tmp_path: Path) -> None:
    async with embedding_stack(tmp_path, verified=True) as stack:
        for case, (path, body) in VECTORS.items():
            stack.vllm.faults.set(fault)
            response = await post(stack, path, body)
            assert response.status_code == 200, (case, response.text)
            assert response.headers["x-memos-provider"] == "ollama"
            assert response.headers["x-memos-arm"] == "candidate"
            assert response.headers["x-memos-reason"] in ("split", "diverted")
        assert {end.outcome.kind.value for end in await stack.ended(len(VECTORS))} == {"ok"}


@pytest.mark.parametrize("case", VECTORS)
async def test_vectors_of_another_space_are_never_given_instead(case: str, tmp_path: Path) -> None:
    async with embedding_stack(tmp_path, verified=False) as stack:
        path, body = VECTORS[case]
        response = await post(stack, path, body)
        assert (response.headers["x-memos-provider"], response.headers["x-memos-reason"]) == (
            "ollama",
            "embeddings-unverified",
        )
        stack.ollama.faults.set("refuse")
        response = await post(stack, path, body)
        assert (response.status_code, response.headers["x-memos-error-code"]) == (503, "ERR_5004")
        assert isinstance(response.json()["error"], dict if path.startswith("/v1") else str)
        told = {name: response.headers[f"x-memos-{name}"] for name in ("arm", "reason", "model", "provider")}
        assert told == {"arm": "baseline", "reason": "embeddings-unverified", "model": MODEL, "provider": "ollama"}
        assert int(response.headers["x-memos-attempts"]) >= 1
        assert not [request for request in stack.vllm.requests if request.method == "POST"]


@pytest.mark.parametrize("fault", [*BEFORE, "hang_after_headers", "error_mid_stream:after=0"])
async def test_no_client_sees_a_candidate_that_fails_before_its_text(fault: str, tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"patience": LIMITS, "rollback": OFF}) as stack:
        await stack.shift(1.0)
        for case, (path, body) in (TEXT | MORE).items():
            stack.vllm.faults.set(fault)
            response = await post(stack, path, body)
            assert response.status_code == 200, (case, response.text)
            told = {name: response.headers[f"x-memos-{name}"] for name in ("provider", "reason", "attempts")}
            assert told == {"provider": "ollama", "reason": "split", "attempts": "2"}, case
            assert ENDS[case] in response.text, case
        assert [end.outcome.kind.value for end in await stack.ended(len(ENDS))] == ["ok"] * len(ENDS)


@pytest.mark.parametrize("fault", ["cut_mid_stream", "stall_mid_stream", "error_mid_stream", "eof_without_done"])
async def test_a_text_that_breaks_off_ends_with_an_error_in_band(fault: str, tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"patience": {"idle_s": 0.3}, "rollback": OFF}) as stack:
        await stack.shift(1.0)
        stack.vllm.faults.set(fault)
        path, body = TEXT["text stream"]
        response = await post(stack, path, body)
        lines = [line for line in response.text.splitlines() if line]
        assert (response.status_code, "[DONE]" in response.text) == (200, False)
        assert set(json.loads(lines[-1].removeprefix("data: "))) == {"error"}
        (end,) = await stack.ended()
        assert (end.provider, end.outcome.rule.counts_against_arm) == ("vllm", True)


async def leave(stack: Stack, path: str, body: Any, emulator: Any) -> float:
    """Send, wait until the back end is at work, close; seconds until the back end noticed."""
    _, writer = await asyncio.open_connection("127.0.0.1", int(stack.url.rpartition(":")[2]))
    data = json.dumps(body).encode()
    writer.write(f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
    before = emulator.counters.aborted
    await until(lambda: emulator.counters.in_flight > 0)
    writer.transport.abort()
    left_at = time.monotonic()
    await until(lambda: emulator.counters.aborted > before)
    return float(emulator.counters.last_abort_monotonic - left_at)


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["ollama", "vllm"])
async def test_whoever_leaves_a_text_is_gone_upstream_at_once(share: float, tmp_path: Path) -> None:
    timing = {"ttft_s": 30.0}
    async with open_stack(tmp_path, ollama=timing, vllm=timing) as stack:
        await stack.shift(share)
        emulator = stack.vllm if share else stack.ollama
        for path, body in TEXT.values():
            assert min([await leave(stack, path, body, emulator) for _ in range(3)]) <= 0.25
        assert {end.outcome.kind.value for end in await stack.ended(6)} == {"cancelled"}


@pytest.mark.parametrize("streams", [False, True])
async def test_a_thousand_prompts_in_one_call_are_one_answer(streams: bool, tmp_path: Path) -> None:
    """Of two tokens each, which a model that thinks spends on its thoughts: Ollama tells these by empty texts."""
    async with open_stack(tmp_path) as stack:
        prompts = [f"prompt {i}" for i in range(1000)]
        asked = {"model": "qwen3:8b", "prompt": prompts, "max_tokens": 2, "stream": streams}
        response = await post(stack, "/v1/completions", asked)
        assert response.status_code == 200, response.text
        texts = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
        assert not streams or texts.pop() == "[DONE]"
        choices = [choice for text in texts for choice in json.loads(text)["choices"]]
        assert [choice["index"] for choice in choices if choice["finish_reason"]] == list(range(1000))
        (end,) = await stack.ended()
        assert (end.outcome.kind.value, end.attempts) == ("ok", 1)


async def test_a_list_of_prompts_that_fails_in_its_middle_ends_with_an_error(tmp_path: Path) -> None:
    asked = {"model": "llama3.2:3b", "prompt": ["a"] * 50, "stream": True}
    async with open_stack(tmp_path) as stack, stack.client() as client:
        said = b""
        async with client.stream("POST", "/v1/completions", json=asked) as response:
            async for chunk in response.aiter_bytes():
                if not said:
                    stack.ollama.faults.set("status:code=500")
                said += chunk
        last = json.loads(said.split(b"\n\n")[-2].removeprefix(b"data: "))
        assert (set(last), b"[DONE]" in said) == ({"error"}, False)
        stack.ollama.faults.clear()
        sent = stack.ollama.counters.requests["/v1/completions"]
        async with client.stream("POST", "/v1/completions", json=asked | {"prompt": ["a"] * 500}) as response:
            await anext(response.aiter_bytes())
        ends = await stack.ended(2)  # and whoever leaves takes the rest of the list with him
        assert [end.outcome.kind.value for end in ends] == ["server", "cancelled"]
        assert stack.ollama.counters.requests["/v1/completions"] < sent + 250


@pytest.mark.parametrize("case", VECTORS)
async def test_whoever_leaves_an_embedding_is_gone_upstream_at_once(case: str, tmp_path: Path) -> None:
    async with embedding_stack(tmp_path, verified=True, timeouts={}) as stack:
        path, body = VECTORS[case]
        stack.vllm.faults.set("hang")
        assert min([await leave(stack, path, body, stack.vllm) for _ in range(3)]) <= 0.25
        assert {end.outcome.kind.value for end in await stack.ended(3)} == {"cancelled"}


@pytest.mark.parametrize("case", [*VECTORS, *TEXT])
async def test_at_share_0_the_answer_is_ollamas_byte_for_byte(case: str, tmp_path: Path) -> None:
    path, body = {**VECTORS, **TEXT}[case]
    answers = []
    for through in ("gateway", "directly"):
        folder = tmp_path / through
        folder.mkdir()
        async with open_stack(folder, ollama={"models": [MODEL, "qwen3:8b"], "seed": 7}) as stack:
            url = stack.url if through == "gateway" else stack.ollama.url
            async with httpx.AsyncClient(base_url=url, timeout=10) as client:
                response = await client.post(path, json=body)
                answers.append((response.status_code, response.headers["content-type"], _timeless(response.text)))
    gateway, directly = answers
    assert (gateway[0], gateway[2]) == (directly[0], directly[2])
    assert gateway[1].split(";")[0] == directly[1].split(";")[0]


def _timeless(text: str) -> list[Any]:
    """Without what differs from one call to the next: ids and times."""
    documents = [line.removeprefix("data: ") for line in text.splitlines() if line and "[DONE]" not in line]
    moving = {"id", "created", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}
    return [{key: value for key, value in json.loads(each).items() if key not in moving} for each in documents]
