"""Applications on the real `openai` and `ollama` SDKs, streaming and not, and what each of their requests came to."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx
import ollama
import openai
from real_servers import CHAT_MODEL

TOKENS = 40
PATIENCE_S = 90.0
THINK_S = 0.02
WORDS = ("import", "os", "path", "def", "class", "return", "self", "value", "list", "dict", "string", "number", "file")

_headers: ContextVar[dict[str, str]] = ContextVar("headers of the last response of this task")


@dataclass(frozen=True, slots=True)
class Heard:
    """One request.

    `settled`: it says something of its stage's share. `problem` is empty when all was well; `committed`: some of the
    answer had come before it.
    """

    stage: int
    settled: bool
    kind: str
    arm: str
    provider: str
    problem: str
    committed: bool


class Traffic:
    """Two tasks for each SDK and way of asking. Every request is a conversation of its own, so shares are binomial."""

    def __init__(self, gateway: str) -> None:
        self.heard: list[Heard] = []
        self.stage = 0
        self.settled = False
        """Which stage requests belong to that begin now, and whether they say something of its share."""
        self._gateway = gateway
        self._numbers = itertools.count()
        self._ending = False
        self._hooks: Any = {"response": [_keep_headers]}
        self._transport = httpx.AsyncHTTPTransport()
        self._openai = openai.AsyncOpenAI(base_url=f"{gateway}/v1", api_key="x", max_retries=0, timeout=PATIENCE_S)

    async def run(self) -> None:
        """Ask until `end`; each task finishes what it has begun."""
        asking = {
            "openai": lambda text, name: self._compatible(text, name, stream=False),
            "openai stream": lambda text, name: self._compatible(text, name, stream=True),
            "ollama": lambda text, name: self._native(text, name, stream=False),
            "ollama stream": lambda text, name: self._native(text, name, stream=True),
        }
        try:
            await asyncio.gather(*(self._ask(kind, pieces) for kind, pieces in asking.items() for _ in range(2)))
        finally:
            await self._openai.close()
            await self._transport.aclose()

    def end(self) -> None:
        self._ending = True

    async def _ask(self, kind: str, pieces: Callable[[str, str], AsyncIterator[tuple[str, str | None]]]) -> None:
        while not self._ending:
            number, stage, settled = next(self._numbers), self.stage, self.settled
            rng = random.Random(number)
            text = " ".join(rng.choice(WORDS) for _ in range(8))
            _headers.set({})
            committed, problem, finished = False, "", None
            try:
                async for piece, reason in pieces(text, f"story-{number}"):
                    committed = committed or bool(piece)
                    finished = reason or finished
                problem = "" if finished else "it did not finish"
            except (openai.OpenAIError, ollama.ResponseError, httpx.HTTPError, ConnectionError) as error:
                problem = f"{type(error).__name__}: {error}"[:200]
            told = _headers.get()
            arm, provider = told.get("x-memos-arm", ""), told.get("x-memos-provider", "")
            self.heard.append(Heard(stage, settled, kind, arm, provider, problem, committed))
            await asyncio.sleep(THINK_S)

    async def _compatible(self, text: str, name: str, *, stream: bool) -> AsyncIterator[tuple[str, str | None]]:
        raw: Any = await self._openai.chat.completions.with_raw_response.create(
            model=CHAT_MODEL,
            messages=[{"role": "user", "content": text}],
            max_tokens=TOKENS,
            stream=stream,
            extra_headers={"x-memos-session": name},
        )
        _headers.set(dict(raw.headers))
        answer = raw.parse()
        if not stream:
            yield answer.choices[0].message.content, answer.choices[0].finish_reason
            return
        async for chunk in answer:
            if chunk.choices:
                yield chunk.choices[0].delta.content or "", chunk.choices[0].finish_reason

    async def _native(self, text: str, name: str, *, stream: bool) -> AsyncIterator[tuple[str, str | None]]:
        client = ollama.AsyncClient(
            host=f"{self._gateway}/c/story/s/{name}",
            timeout=PATIENCE_S,
            transport=self._transport,
            event_hooks=self._hooks,
        )
        given: Any = {"messages": [{"role": "user", "content": text}], "options": {"num_predict": TOKENS}}
        if not stream:
            answer = await client.chat(CHAT_MODEL, **given)
            yield answer.message.content or "", answer.done_reason
            return
        async for part in await client.chat(CHAT_MODEL, stream=True, **given):
            yield part.message.content or "", part.done_reason


async def _keep_headers(response: httpx.Response) -> None:
    _headers.set(dict(response.headers))
