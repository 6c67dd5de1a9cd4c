"""A provider as a third party writes it: its own client, errors of the public tree, nothing of ours inside.

It happens to speak to an OpenAI-compatible server, over httpx.
"""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import httpx

import memos_llm
from memos_llm import EmbeddingResponse, LLMResponse, Options, ProviderSpec, StreamChunk, ToolCall, Usage

KEY_FIELD = "api_key"
STATUSES: Mapping[int, type[memos_llm.LLMError]] = {
    401: memos_llm.Forbidden,
    403: memos_llm.Forbidden,
    404: memos_llm.ModelNotFound,
    429: memos_llm.Overloaded,
    503: memos_llm.Overloaded,
}


class Acme:
    """`health` is optional; it makes the gateway avoid a dead server before a call meets it."""

    name = "acme"

    def __init__(self, url: str, key: str = "", model: str = "", timeout_s: float = 600.0) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout_s, trust_env=False)
        self._model = model

    async def generate(
        self,
        prompt: str,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[Options],
    ) -> LLMResponse:
        messages = [{"role": "user", "content": prompt}]
        return await self.chat(messages, max_tokens=max_tokens, temperature=temperature, **options)

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[Options],
    ) -> LLMResponse:
        body = self._body(messages, max_tokens, temperature, options)
        with self._told():
            answer = _checked(await self._http.post("/v1/chat/completions", json=body)).json()
            choice = answer["choices"][0]
            return LLMResponse(
                text=choice["message"].get("content") or "",
                reasoning=choice["message"].get("reasoning") or "",
                tool_calls=tuple(_calls(choice["message"])),
                finish_reason=choice["finish_reason"],
                usage=_usage(answer["usage"]),
                provider=self.name,
                model=body["model"],
                request_id=answer["id"],
                raw=answer,
            )

    async def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[Options],
    ) -> AsyncIterator[StreamChunk]:
        body = self._body(messages, max_tokens, temperature, options)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        finish, usage, begun = "", None, False
        with self._told(lambda: begun):
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    await response.aread()
                async for line in _checked(response).aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    usage = _usage(event["usage"]) if event.get("usage") else usage
                    for choice in event["choices"]:
                        finish = choice["finish_reason"] or finish
                        text, reasoning = (choice["delta"].get(key) or "" for key in ("content", "reasoning"))
                        if text or reasoning:
                            begun = True
                            yield StreamChunk(text=text, reasoning=reasoning)
        yield StreamChunk(finish_reason=finish, usage=usage)

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> EmbeddingResponse:
        named = model or self._model
        with self._told():
            answer = _checked(await self._http.post("/v1/embeddings", json={"model": named, "input": texts})).json()
            vectors = [each["embedding"] for each in answer["data"]]
            return EmbeddingResponse(vectors=vectors, provider=self.name, model=named, request_id=answer["id"])

    async def health(self) -> None:
        with self._told():
            _checked(await self._http.get("/health"))

    async def aclose(self) -> None:
        await self._http.aclose()

    def _body(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int | None,
        temperature: float | None,
        options: Options,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._model, "max_tokens": max_tokens, "temperature": temperature, **options}
        body |= body.pop("extra", {})
        return {"messages": messages, **{key: value for key, value in body.items() if value is not None}}

    @contextmanager
    def _told(self, begun: Any = lambda: False) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException:
            raise memos_llm.Timeout("acme did not answer in time", provider=self.name) from None
        except httpx.TransportError:
            broken = memos_llm.StreamBroken if begun() else memos_llm.Unavailable
            raise broken("acme broke off", provider=self.name) from None
        except (ValueError, KeyError):
            raise memos_llm.InvalidResponse("acme's answer cannot be read", provider=self.name) from None


def _checked(response: httpx.Response) -> httpx.Response:
    status = response.status_code
    if status < 400:
        return response
    kind = STATUSES.get(status, memos_llm.BadRequest if status < 500 else memos_llm.Unavailable)
    raise kind(f"acme answered {status}", provider="acme", request_id="r", client_text=response.text)


def _calls(message: Mapping[str, Any]) -> Iterator[ToolCall]:
    for call in message.get("tool_calls") or ():
        yield ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])


def _usage(usage: Mapping[str, int]) -> Usage:
    return Usage(usage["prompt_tokens"], usage["completion_tokens"])


def make(spec: ProviderSpec) -> Acme:
    """The factory that the entry point names."""
    return Acme(spec.endpoints[0].url, spec.api_key)


def refuse(spec: ProviderSpec) -> Acme:
    raise ValueError(f"no account has the key {spec.api_key}")


def half(spec: ProviderSpec) -> object:
    return httpx.Limits()
