"""What is particular to LiteLLM: that it keeps quiet, that a caller cannot reach its arguments, and its exceptions."""

import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from stack import LEAVES_SOCKETS, document, settings

import memos_llm
from memos_llm import ConfigError, LiteLLMProvider, Router
from memos_llm.core.commands import Actor, Shift
from memos_llm.core.flags import PPM
from memos_llm.core.outcome import Kind
from memos_llm.core.policy import Endpoint, ProviderSpec
from memos_llm.emulators import OllamaEmulator, VllmEmulator
from memos_llm.providers import litellm as home

pytestmark = LEAVES_SOCKETS  # LiteLLM's, which are the process's and not a provider's

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
KEY = "sk-litellm-key-1"


@pytest.fixture
async def emulator() -> AsyncIterator[VllmEmulator]:
    async with VllmEmulator(port=0, models=["m"], api_key=KEY) as emulator:
        yield emulator


@pytest.fixture
async def provider(emulator: VllmEmulator) -> AsyncIterator[LiteLLMProvider]:
    provider = LiteLLMProvider(model="m", model_prefix="openai/", base_url=emulator.url + "/v1", api_key=KEY)
    yield provider
    await provider.aclose()


QUIET = """
import logging, os, socket, sys
logging.basicConfig(level=logging.DEBUG)
def refuse(self, address): raise AssertionError(f"connects to {address}")
socket.socket.connect = refuse
os.environ.clear()
open(".env", "w").write("FROM_DOT_ENV=1")
from memos_llm.providers.litellm import quiet_litellm
quiet_litellm()
print("FROM_DOT_ENV" in os.environ)
"""


def test_its_import_connects_to_nothing_reads_no_dot_env_and_says_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", QUIET], cwd=tmp_path, capture_output=True, check=True, text=True)
    assert done.stdout == "False\n"
    assert "LiteLLM" not in done.stderr


async def test_no_prompt_or_key_is_printed_logged_or_given_to_a_callback(
    provider: LiteLLMProvider,
    emulator: VllmEmulator,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import litellm

    seen: list[object] = []
    monkeypatch.setattr(litellm, "success_callback", [lambda *args: seen.append(args)])
    monkeypatch.setattr(litellm, "failure_callback", [lambda *args: seen.append(args)])
    caplog.set_level(logging.DEBUG)
    await provider.chat(MESSAGES)
    [chunk async for chunk in provider.stream(MESSAGES)]
    emulator.faults.set("status:code=400")
    with pytest.raises(memos_llm.BadRequest) as caught:
        await provider.chat(MESSAGES)
    printed = capfd.readouterr()
    for text in (caplog.text, printed.out, printed.err, str(caught.value)):
        assert "sky" not in text
        assert KEY not in text
    assert seen == []


async def test_what_a_caller_adds_reaches_the_body_and_never_its_own_arguments(
    provider: LiteLLMProvider, emulator: VllmEmulator
) -> None:
    extra = {"api_base": "http://127.0.0.1:9", "api_key": "x", "mock_response": "hi", "num_retries": 3, "user": "u"}
    answer = await provider.chat(MESSAGES, top_k=3, min_p=0.1, seed=1, reasoning_effort="low", extra=extra)
    assert answer.text.startswith("vLLM")
    body = json.loads(emulator.requests[-1].body)
    assert body.items() >= {**extra, "top_k": 3, "min_p": 0.1, "seed": 1, "reasoning_effort": "low"}.items()
    assert emulator.requests[-1].headers["authorization"] == f"Bearer {KEY}"


async def test_it_does_not_retry(provider: LiteLLMProvider, emulator: VllmEmulator) -> None:
    emulator.faults.set("status:code=500")
    with pytest.raises(memos_llm.Unavailable):
        await provider.chat(MESSAGES)
    assert len(emulator.requests) == 1


async def test_reasoning_comes_apart_from_the_text() -> None:
    async with VllmEmulator(port=0, models=["qwen3"], reasoning_parser="qwen3", thinking=True) as emulator:
        provider = LiteLLMProvider(model="qwen3", model_prefix="openai/", base_url=emulator.url + "/v1", api_key="k")
        answer = await provider.chat(MESSAGES)
        chunks = [chunk async for chunk in provider.stream(MESSAGES)]
    assert answer.reasoning
    assert "".join(chunk.reasoning for chunk in chunks) == answer.reasoning
    assert "".join(chunk.text for chunk in chunks) == answer.text


@pytest.mark.parametrize(
    ("prefix", "address"),
    [("openai/", "http://a.test/v1"), ("", "http://a.test/v1"), ("ollama/", "http://a.test")],
)
def test_a_configured_address_is_what_litellm_wants(prefix: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr(home, "LiteLLMProvider", lambda **given: made.update(given))
    endpoints = (Endpoint("http://a.test"),)
    home.from_spec(ProviderSpec(name="cloud", kind="litellm", endpoints=endpoints, model_prefix=prefix))
    assert (made["base_url"], made["model_prefix"], made["name"]) == (address, prefix, "cloud")


def test_without_it_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litellm", None)
    with pytest.raises(ConfigError, match=r"pip install 'memos_llm\[litellm\]'"):
        LiteLLMProvider()


def raised(name: str, status: int | None = None, message: str = "") -> Exception:
    error: Any = type(name, (Exception,), {})()
    error.status_code, error.message = status, message
    assert isinstance(error, Exception)
    return error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (raised("Timeout", 408), Kind.TIMEOUT, ""),
        (raised("APIConnectionError", 500), Kind.CONNECT, ""),
        (raised("AuthenticationError", 401, "litellm.AuthenticationError: key sk-1"), Kind.CONFIG, ""),
        (raised("PermissionDeniedError", 403), Kind.CONFIG, ""),
        (raised("LiteLLMUnknownProvider", 400, "LLM Provider NOT provided"), Kind.CONFIG, ""),
        (raised("NotFoundError", 404, "litellm.NotFoundError: no model x"), Kind.CONFIG, "no model x"),
        (raised("RateLimitError", 429, "litellm.X: RateLimitError: OpenAIException - wait"), Kind.SATURATED, "wait"),
        (raised("ContextWindowExceededError", 400, "litellm.BadRequestError: too long"), Kind.CLIENT, "too long"),
        (raised("UnsupportedParamsError", 400, "no tools"), Kind.CLIENT, "no tools"),
        (raised("InternalServerError", 500), Kind.SERVER, ""),
        (raised("MidStreamFallbackError", 503), Kind.TRUNCATED, ""),
        (raised("JSONSchemaValidationError", None), Kind.SERVER, ""),
        (ValueError("the prompt"), Kind.SERVER, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)  # fmt: skip
def test_its_exceptions_become_outcomes(error: Exception, kind: Kind, words: str) -> None:
    failed = home.failure_of(error)
    assert (failed.outcome.kind, failed.client_text) == (kind, words)
    assert "prompt" not in str(failed)


@pytest.mark.parametrize("prefix", ["openai/", "hosted_vllm/", "ollama/"])
async def test_a_dead_server_counts_as_one_whatever_the_prefix(prefix: str) -> None:
    provider = LiteLLMProvider(model="m", model_prefix=prefix, base_url="http://127.0.0.1:1/v1", api_key=KEY)
    with pytest.raises(memos_llm.Unavailable) as caught:
        await provider.generate("Why?")
    assert "connect (refused)" in str(caught.value)


async def test_the_configured_kind_serves_as_a_candidate(emulator: VllmEmulator, tmp_path: Path) -> None:
    async with OllamaEmulator(port=0, models=["qwen3:8b"]) as ollama:
        changes: dict[str, Any] = {
            "providers": {
                "ollama": {"kind": "ollama", "base_url": ollama.url},
                "cloud": {"kind": "litellm", "base_url": emulator.url, "api_key": KEY},
            },
            "candidate": "cloud",
            "models": {"qwen3:8b": {"cloud": "openai/m"}},
            "store": "memory://",
        }
        async with Router.open(settings(tmp_path, document("", "", tmp_path, **changes)), probe=False) as router:
            await router._runtime.live.submit(Shift(provider="cloud", share_ppm=PPM), Actor("test"))
            answer = await router.chat(MESSAGES, reasoning_effort="low")
            chunks = [chunk async for chunk in router.stream(MESSAGES)]
            emulator.faults.set("status:code=503")
            fallen = await router.chat(MESSAGES)
    assert (answer.provider, answer.model, answer.arm) == ("cloud", "openai/m", "candidate")
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert (fallen.provider, fallen.arm, fallen.attempts) == ("ollama", "candidate", 2)
