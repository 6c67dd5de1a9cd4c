"""Mixed traffic for a fleet: several components and models, both dialects, streams and whole answers, many sessions.

It is open: requests start at a steady rate whatever becomes of the earlier ones, as with many independent users. What
was asked and what came of it is kept with time stamps, to be judged later.
"""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import aiohttp

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
        },
    }
]
PATIENCE_S = 20.0

Document = dict[str, Any]


class Asks(NamedTuple):
    """What one component asks. `spoils`: what is wrong with it: `json`, which nobody takes, or a `message`, which both
    back ends refuse.
    """

    component: str
    model: str
    tools: bool = False
    spoils: str = ""


@dataclass(kw_only=True)
class Answer:
    """What came of one request; times are Unix seconds.

    Attributes:
        status: of HTTP, 0 without one. arm, provider: as the answer's headers tell.
        began: content had come. whole: and its end. left: its client was tired of waiting.
    """

    id: str
    asks: Asks
    gateway: int
    stream: bool
    openai: bool
    asked_at: float
    ended_at: float = 0.0
    status: int = 0
    arm: str = ""
    provider: str = ""
    began: bool = False
    whole: bool = False
    left: bool = False
    error: str = ""

    @property
    def failed_unbegun(self) -> bool:
        """The client was told of an error, and had got nothing before."""
        return not self.left and not self.began and not self.whole

    @property
    def cut(self) -> bool:
        """It had begun, and did not come to its end."""
        return not self.left and self.began and not self.whole


class Traffic:
    """An async context manager; `stop` before its end waits for what is under way.

    Args:
        gateways: their addresses. asks: who asks what, equally often.
        rate: requests a second at each gateway; may be changed.
        patience_s: after which a client leaves. leaves_early: the part of the clients that leave at once.
    """

    def __init__(
        self,
        gateways: Sequence[str],
        asks: Sequence[Asks],
        rate: float,
        *,
        patience_s: float = PATIENCE_S,
        leaves_early: float = 0.0,
        seed: int = 7,
    ) -> None:
        self.answers: list[Answer] = []
        self.rate = rate
        self._patience_s, self._leaves_early = patience_s, leaves_early
        self._gateways, self._asks = gateways, asks
        self._rng = random.Random(seed)
        self._name = f"{time.time_ns():x}"
        self._stopped = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Traffic":
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._sender = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *why: object) -> None:
        await self.stop()
        await self._http.close()

    async def stop(self) -> None:
        """No more requests; returns when those under way have ended."""
        self._stopped.set()
        await self._sender
        await asyncio.gather(*self._running)

    async def _send(self) -> None:
        due = time.monotonic()
        for number in itertools.count():
            pause_s = 1 / (self.rate * len(self._gateways))
            due = max(due + pause_s, time.monotonic() - 0.2)  # what was missed in a long stall stays missed
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.001, due - time.monotonic())):
                    await self._stopped.wait()
            if self._stopped.is_set():
                return
            task = asyncio.create_task(self._ask(number))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _ask(self, number: int) -> None:
        rng = self._rng
        answer = Answer(
            id=f"{self._name}-{number}",
            asks=self._asks[(number // len(self._gateways)) % len(self._asks)],
            gateway=number % len(self._gateways),
            stream=rng.random() < 0.5,
            openai=rng.random() < 0.5,
            asked_at=time.time(),
        )
        patience_s = rng.uniform(0, 0.02) if rng.random() < self._leaves_early else self._patience_s
        try:
            async with asyncio.timeout(patience_s):
                await self._exchange(answer, _body(answer, self._rng))
        except TimeoutError:
            answer.left = True
        except aiohttp.ClientError as error:
            answer.error = type(error).__name__
        answer.ended_at = time.time()
        self.answers.append(answer)

    async def _exchange(self, answer: Answer, body: bytes) -> None:
        path = "/v1/chat/completions" if answer.openai else "/api/chat"
        headers = {"x-request-id": answer.id, "content-type": "application/json"}
        if self._rng.random() < 0.5:
            path = f"/c/{answer.asks.component}/s/{answer.id}{path}"
        else:
            headers |= {"x-memos-component": answer.asks.component, "x-memos-session": answer.id}
        data = b""
        async with self._http.post(self._gateways[answer.gateway] + path, data=body, headers=headers) as response:
            answer.status = response.status
            answer.arm, answer.provider = (response.headers.get(f"x-memos-{name}", "") for name in ("arm", "provider"))
            try:
                async for piece in response.content.iter_any():
                    data += piece
            finally:
                _read(answer, data)


def _body(answer: Answer, rng: random.Random) -> bytes:
    text = "tool:look_up please" if answer.asks.tools and rng.random() < 0.5 else f"What of {rng.random()}?"
    messages: list[Document] = [{"role": "user", "content": f"{text} words:{rng.randrange(4, 9)}"}]
    body: Document = {"model": answer.asks.model, "messages": messages, "stream": answer.stream}
    if answer.asks.tools:
        body["tools"] = TOOLS
    if answer.asks.spoils == "message":
        messages[0]["content"] = {"not": "a message"}
    data = json.dumps(body).encode()
    return data[:-7] if answer.asks.spoils == "json" else data


def _read(answer: Answer, data: bytes) -> None:
    """Set what its bytes say."""
    for line in data.splitlines() if answer.stream else [data]:
        text = line.removeprefix(b"data:").strip()
        if text == b"[DONE]":
            answer.whole = answer.whole or (answer.began and not answer.error)
        elif text:
            try:
                document = json.loads(text)
            except ValueError:
                answer.error = "not JSON"
            else:
                _note(answer, document)


def _note(answer: Answer, document: Document) -> None:
    if "error" in document:
        answer.error = str(document["error"])[:200]
        return
    choice: Mapping[str, Any] = document
    if answer.openai:
        choice = (document.get("choices") or [{}])[0]
    said = choice.get("delta") or choice.get("message") or {}
    answer.began = answer.began or any(said.get(name) for name in ("content", "tool_calls", "reasoning", "thinking"))
    ended = document.get("done") is True if not answer.openai else choice.get("finish_reason") is not None
    if ended and (not answer.stream or not answer.openai):
        answer.whole = True
