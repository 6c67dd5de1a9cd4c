"""What a reload must carry over to the transports that it opens anew, and what it must let go."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from ruamel.yaml import YAML
from stack import ME, OLLAMA_MODELS, document, open_stack, until

from memos_llm.config import Settings, load
from memos_llm.core.commands import Shift
from memos_llm.core.events import BreakerChanged
from memos_llm.core.flags import PPM
from memos_llm.emulators import OllamaEmulator
from memos_llm.testing import Recorder
from memos_llm.wiring import Runtime, open_runtime

MODEL = OLLAMA_MODELS[0]


def changed(folder: Path, config: Mapping[str, Any], provider: str) -> Settings:
    """The same configuration but for one limit of a provider."""
    provider_changed = {**config["providers"][provider], "timeouts": {"idle_s": 7}}
    path = folder / "changed.yaml"
    YAML().dump({**config, "providers": {**config["providers"], provider: provider_changed}}, path)
    return load(path, environ={})


@asynccontextmanager
async def opened(folder: Path, config: Mapping[str, Any]) -> AsyncIterator[tuple[Runtime, Recorder]]:
    path = folder / "memos_llm.yaml"
    YAML().dump(dict(config), path)
    runtime = await open_runtime(load(path, environ={}), kind="gateway", seed=True)
    told = Recorder()
    runtime.bus.subscribe("recorder", told)
    try:
        yield runtime, told
    finally:
        await runtime.aclose()


async def test_models_are_kept_warm_after_it(tmp_path: Path) -> None:
    async with OllamaEmulator(port=0, models=OLLAMA_MODELS) as ollama:
        config = document(ollama.url, "http://127.0.0.1:9", tmp_path)
        config["providers"]["ollama"]["keep_warm"] = [MODEL]
        async with opened(tmp_path, config) as (runtime, _):
            await runtime.live.submit(Shift(provider="vllm", share_ppm=PPM // 2), ME)
            await until(lambda: ollama.counters.loads_completed.get(MODEL) == 1)
            async with httpx.AsyncClient() as client:  # somebody unloads it
                await client.post(f"{ollama.url}/api/generate", json={"model": MODEL, "keep_alive": 0})
            await runtime.adopt(changed(tmp_path, config, "ollama"))
            await until(lambda: ollama.counters.loads_completed.get(MODEL) == 2)


async def test_nobody_goes_on_believing_in_a_breaker_that_is_gone(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack:
        config = document(stack.ollama.url, stack.vllm.url, tmp_path)
        await stack.shift(1.0)
        stack.vllm.faults.set("refuse")
        body = {"model": MODEL, "stream": False, "messages": [{"role": "user", "content": "hi"}]}
        opened_breaker = f'breaker_state{{endpoint="{stack.vllm.url}",provider="vllm",state="open"}}'
        async with stack.client() as client:
            while not [e for e in stack.told.of(BreakerChanged) if e.provider == "vllm" and e.state == "open"]:
                answer = await client.post("/api/chat", json=body)
                assert answer.status_code == 200
            assert f"{opened_breaker} 1.0" in await stack.metrics()
            await stack.runtime.adopt(changed(tmp_path, config, "vllm"))
            assert f"{opened_breaker} 0.0" in await stack.metrics()
