"""The two applications: one on the real `ollama` SDK, one on the real `openai` SDK, pointed at the gateway.

Nothing hides an error: no retries (`max_retries=0`), no handling. They know nothing of the migration; the response
headers are read for the demo's bookkeeping only.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

import httpx
import ollama
import openai

from memos_llm.cli.demo.conversations import MODEL, Asked, Heard, Message, Naming, Session, Style

PATIENCE_S = 30.0
RESULT = "18 degrees, light rain"

_headers: ContextVar[dict[str, str]] = ContextVar("headers of the last response of this task")


def place(session: Session) -> str:
    """The path prefix that names component and session."""
    return f"/c/{session.component}/s/{session.id}"


class OllamaApplication:
    """Speaks Ollama's own protocol: /api/chat and /api/generate, streamed and whole."""

    name = "ollama"

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._transport = httpx.AsyncHTTPTransport()  # one pool under the clients of all sessions
        self._clients: dict[str, ollama.AsyncClient] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.aclose()

    async def ask(self, asked: Asked) -> Heard:
        client = self._client(asked.session)
        if asked.session.style is Style.PROMPT:
            return await _generate(client, str(asked.messages[-1]["content"]))
        parts = client_chat(client, asked)
        return _heard_ollama([part async for part in parts])

    def _client(self, session: Session) -> ollama.AsyncClient:
        """The SDK has no headers per call: component and session are in the address, as with OLLAMA_HOST."""
        if session.id not in self._clients:
            self._clients[session.id] = ollama.AsyncClient(
                host=self._gateway + place(session),
                timeout=PATIENCE_S,
                transport=self._transport,
                event_hooks={"response": [_keep_headers]},
            )
        return self._clients[session.id]


async def _keep_headers(response: httpx.Response) -> None:
    _headers.set(dict(response.headers))


async def client_chat(client: ollama.AsyncClient, asked: Asked) -> AsyncIterator[ollama.ChatResponse]:
    """The parts of a chat answer: many when streamed, else one."""
    messages, tools = list(asked.messages), list(asked.tools) or None
    if asked.stream:
        async for part in await client.chat(MODEL, messages, tools=tools, stream=True):
            yield part
    else:
        yield await client.chat(MODEL, messages, tools=tools)


async def _generate(client: ollama.AsyncClient, prompt: str) -> Heard:
    parts = [part async for part in await client.generate(MODEL, prompt, stream=True)]
    text = "".join(part.response or "" for part in parts)
    finished = bool(parts) and bool(parts[-1].done) and parts[-1].done_reason == "stop"
    return Heard(_headers.get(), text, (), finished, {"role": "assistant", "content": text}, ())


def _heard_ollama(parts: list[ollama.ChatResponse]) -> Heard:
    text = "".join(part.message.content or "" for part in parts)
    calls = tuple(
        (call.function.name, dict(call.function.arguments)) for part in parts for call in part.message.tool_calls or ()
    )
    assistant: Message = {"role": "assistant", "content": text}
    if calls:
        assistant["tool_calls"] = [{"function": {"name": name, "arguments": given}} for name, given in calls]
    results = tuple({"role": "tool", "content": RESULT, "tool_name": name} for name, _ in calls)
    finished = bool(parts) and bool(parts[-1].done) and parts[-1].done_reason == "stop"
    return Heard(_headers.get(), text, calls, finished, assistant, results)


class OpenAIApplication:
    """Speaks OpenAI's protocol: /v1/chat/completions, streamed and whole."""

    name = "openai"

    def __init__(self, gateway: str) -> None:
        self._client = openai.AsyncOpenAI(
            base_url=f"{gateway}/v1", api_key="not-needed", max_retries=0, timeout=PATIENCE_S
        )
        self._gateway = gateway

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, asked: Asked) -> Heard:
        session = asked.session
        client, request = self._client, _request(asked)
        if session.naming is Naming.PATH:
            client = client.with_options(base_url=f"{self._gateway}{place(session)}/v1")
        raw = await client.chat.completions.with_raw_response.create(**request)
        headers = dict(raw.headers)
        answer: Any = raw.parse()
        if asked.stream:
            return _heard_openai(headers, _joined([chunk async for chunk in answer]))
        return _heard_openai(headers, _whole(answer))


def _request(asked: Asked) -> dict[str, Any]:
    session = asked.session
    request: dict[str, Any] = {"model": MODEL, "messages": list(asked.messages), "stream": asked.stream}
    if asked.tools:
        request["tools"] = list(asked.tools)
    if session.naming is Naming.HEADER:
        request["extra_headers"] = {"x-memos-session": session.id, "x-memos-component": session.component}
    elif session.naming is Naming.USER:
        request |= {"user": session.id, "extra_headers": {"x-memos-component": session.component}}
    return request


class _Said:
    """An OpenAI answer put together: text, tool calls (id, name, arguments as text), finish reason."""

    def __init__(self, text: str, calls: list[tuple[str, str, str]], finish: str | None) -> None:
        self.text, self.calls, self.finish = text, calls, finish


def _whole(answer: Any) -> _Said:
    choice = answer.choices[0]
    calls = [(c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls or ()]
    return _Said(choice.message.content or "", calls, choice.finish_reason)


def _joined(chunks: list[Any]) -> _Said:
    said = _Said("", [], None)
    calls: dict[int, list[str]] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        said.text += choice.delta.content or ""
        said.finish = choice.finish_reason or said.finish
        for delta in choice.delta.tool_calls or ():
            call = calls.setdefault(delta.index, ["", "", ""])
            call[0] = delta.id or call[0]
            call[1] = delta.function.name or call[1]
            call[2] += delta.function.arguments or ""
    said.calls = [(id, name, arguments) for id, name, arguments in calls.values()]
    return said


def _heard_openai(headers: Mapping[str, str], said: _Said) -> Heard:
    assistant: Message = {"role": "assistant", "content": said.text}
    if said.calls:
        assistant["tool_calls"] = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id, name, arguments in said.calls
        ]
    results = tuple({"role": "tool", "content": RESULT, "tool_call_id": id} for id, _, _ in said.calls)
    calls = tuple((name, json.loads(arguments)) for _, name, arguments in said.calls)
    wanted = "tool_calls" if calls else "stop"
    return Heard(headers, said.text, calls, said.finish == wanted, assistant, results)
