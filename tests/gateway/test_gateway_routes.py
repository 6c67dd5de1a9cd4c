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
    config = {"models": {MODEL: {"vllm": OWN}}, "timeouts": LIMITS, **more}
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
    async with open_stack(tmp_path, config={"timeouts": LIMITS}) as stack:
        await stack.shift(1.0)
        for case, (path, body) in TEXT.items():
            stack.vllm.faults.set(fault)
            response = await post(stack, path, body)
            assert response.status_code == 200, (case, response.text)
            assert response.headers["x-memos-provider"] == "ollama"
            assert ("data: [DONE]" in response.text) == (case == "text stream")
        assert {end.outcome.kind.value for end in await stack.ended(len(TEXT))} == {"ok"}


@pytest.mark.parametrize("fault", ["cut_mid_stream", "stall_mid_stream", "error_mid_stream", "eof_without_done"])
async def test_a_text_that_breaks_off_ends_with_an_error_in_band(fault: str, tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"timeouts": {"idle_s": 0.3}}) as stack:
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
