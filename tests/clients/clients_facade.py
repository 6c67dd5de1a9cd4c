"""A whole migration as the applications meet it: chat and embeddings on both sides, one gateway, one share.

With MEMOS_LLM_REAL_SERVERS (URLs of an Ollama, a vLLM and a vLLM for embeddings, separated by spaces) the gateway
stands in front of those, which serve tiny random weights: `scripts/real_backends test`.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from stack import ME, document, open_gateway, settings, until

from memos_llm.core.commands import Shift, Verify
from memos_llm.core.events import RequestEnded
from memos_llm.core.flags import EMBEDDING, PPM, Verification
from memos_llm.emulators import OllamaEmulator, OllamaModel, VllmEmulator
from memos_llm.testing import Recorder

REAL = tuple(os.environ.get("MEMOS_LLM_REAL_SERVERS", "").split())
CHAT, EMBED = ("tiny", "tiny-embed") if REAL else ("qwen3:8b", "mxbai-embed-large")
SERVED_CHAT, SERVED_EMBED = (CHAT, EMBED) if REAL else ("Qwen/Qwen3-8B", "mixedbread-ai/mxbai-embed-large-v1")
SIDES = {"share 0": 0.0, "share 1": 1.0}
VOICE = {0.0: "Ollama answers", 1.0: "vLLM replies"}
DIMENSION = 256 if REAL else 64
BEGINNING = 12 if REAL else None
CALLS_TOOLS = pytest.mark.skipif(bool(REAL), reason="random weights call no tool")
THINKS = pytest.mark.skipif(bool(REAL), reason="random weights do not think")
UNDERSTANDS = pytest.mark.skipif(bool(REAL), reason="random weights do not know what a text means")
OLD_EMBED = OllamaModel(EMBED, ("embedding",), context_length=512, family="bert", dimension=DIMENSION)
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA: dict[str, Any] = {
    "title": "weather",
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
}
ASKS_FOR_TOOL = "What is the weather in Oslo? tool:get_weather"


def alike(one: str, other: str) -> bool:
    """Whether two answers to a question are the same.

    A real vLLM's numbers depend on what else is in its batch, so that after some words two greedy answers may part.
    """
    return one[:BEGINNING] == other[:BEGINNING]


class Facade(NamedTuple):
    """The gateway's address, who answers behind it at this share, and what it told."""

    url: str
    share: float
    told: Recorder

    @property
    def voice(self) -> str:
        return "" if REAL else VOICE[self.share]

    @property
    def provider(self) -> str:
        return "vllm" if self.share else "ollama"

    def served_by(self) -> set[str]:
        """Who served what was asked so far."""
        return {event.provider for event in self.told.of(RequestEnded)}


@asynccontextmanager
async def back_ends() -> AsyncIterator[tuple[str, ...]]:
    """Addresses of an Ollama, of a vLLM, and of a vLLM for embeddings."""
    if REAL:
        yield REAL
        return
    async with (
        OllamaEmulator(port=0, models=[CHAT, OLD_EMBED], space="mxbai") as ollama,
        VllmEmulator(port=0, models=[SERVED_CHAT]) as chat,
        VllmEmulator(
            port=0, models=[SERVED_EMBED], task="embed", space="mxbai", dimension=DIMENSION, max_model_len=512
        ) as embed,
    ):
        yield ollama.url, chat.url, embed.url


def _chat_model() -> dict[str, Any]:
    if REAL:  # at another temperature random weights never say the same twice
        return {"vllm": SERVED_CHAT, "defaults": {"temperature": 0}}
    vllm = {"name": SERVED_CHAT, "thinking": "enable_thinking", "split_think_tags": True}
    return {"aliases": ["qwen3"], "vllm": vllm}


@asynccontextmanager
async def open_facade(folder: Path, share: float) -> AsyncIterator[Facade]:
    """Three back ends, the gateway, both shares at `share`; the embedding model is verified to be the same."""
    async with back_ends() as (ollama, chat, embed):
        config = document(ollama, chat, folder, models={CHAT: _chat_model(), EMBED: {"vllm": SERVED_EMBED}})
        endpoints = [{"url": chat}, {"url": embed, "models": [SERVED_EMBED]}]
        config["providers"]["vllm"] = {"kind": "vllm", "endpoints": endpoints}
        async with open_gateway(settings(folder, config), probe=bool(REAL)) as (runtime, told, url):
            if REAL:  # how long its context is, it must be asked; an emulator's answers end before that matters
                await until(lambda: runtime.transports["vllm"].offer(SERVED_CHAT).context_tokens)
            proof = Verification(
                baseline=EMBED, candidate=SERVED_EMBED, dimension=DIMENSION, cosine_min=1.0, texts=1, at=0.0
            )
            await runtime.live.submit(Verify(provider="vllm", model=EMBED, proof=proof), ME)
            share_ppm = round(share * PPM)
            await runtime.live.submit(Shift(provider="vllm", share_ppm=share_ppm), ME)
            await runtime.live.submit(Shift(provider="vllm", share_ppm=share_ppm, scope=EMBEDDING), ME)
            yield Facade(url, share, told)
