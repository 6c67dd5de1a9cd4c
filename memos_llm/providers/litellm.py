"""LiteLLM as an `LLMProvider`: any of its providers, by `model_prefix`. Imported only when configured.

It is told to keep quiet: no document fetched at import, no `.env` file read, no log lines, no callbacks, no retries
(they are ours). Those switches are LiteLLM's globals: an application that uses it besides finds them set.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, Unpack, cast

import msgspec
from msgspec.structs import replace

from memos_llm.core.errors import AttemptFailed, BadRequest, ConfigError
from memos_llm.core.outcome import NO_FINISH, Kind, Outcome
from memos_llm.core.policy import ProviderSpec, Timeouts
from memos_llm.core.ports import Clock
from memos_llm.core.responses import Chat, EmbeddingResponse, LLMResponse, Options, StreamChunk
from memos_llm.dialects.typed import (
    SHAPING,
    ChunkReader,
    check_messages,
    check_names,
    checked_texts,
    parse_answer,
    parse_vectors,
)
from memos_llm.dialects.typed import response_format as as_format
from memos_llm.providers.failures import error_of
from memos_llm.providers.refusals import refusal

T = TypeVar("T")

ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # its price list is fetched at import otherwise
    "LITELLM_MODE": "PRODUCTION",  # the other one reads a .env file into the environment
}
SETTINGS: Mapping[str, object] = {
    "telemetry": False,
    "suppress_debug_info": True,  # it prints advice about every error otherwise
    "set_verbose": False,
    "turn_off_message_logging": True,
    "redact_messages_in_exceptions": True,
    "redact_user_api_key_info": True,
    "num_retries": 0,
    "drop_params": False,
    "disable_aiohttp_transport": True,  # it passes a cut connection off as the end of the answer
}
LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "litellm")
BENEATH = ("openai", "httpx", "httpcore")  # their debug lines hold whole requests

PER_CALL: Mapping[str, object] = {"num_retries": 0, "max_retries": 0, "no-log": True}

OPENAI_LIKE = ("openai/", "hosted_vllm/", "text-completion-openai/", "custom_openai/", "openai_like/", "litellm_proxy/")
"""The prefixes whose address ends in `/v1`; ours never does."""

OPENAI_FIELDS = frozenset({"logit_bias", "parallel_tool_calls"}) | SHAPING
"""What LiteLLM translates for its providers (`user` it drops). Everything else of `extra` goes into the body and never
into LiteLLM's own arguments: a caller of the gateway must not set its address, its key or its callbacks."""

NOT_OPENAIS = frozenset({"top_k", "min_p"})  # it puts these into the body by itself

CLASSES: Mapping[str, tuple[Kind, str]] = {
    "Timeout": (Kind.TIMEOUT, "answer"),
    "APIConnectionError": (Kind.CONNECT, "refused"),
    "ConnectError": (Kind.CONNECT, "refused"),  # httpx's, which lies alone beneath for some of the prefixes
    "APIResponseValidationError": (Kind.MALFORMED, "answer"),
    "JSONDecodeError": (Kind.MALFORMED, "not-json"),
    "MidStreamFallbackError": (Kind.TRUNCATED, "cut"),
    "RemoteProtocolError": (Kind.TRUNCATED, "cut"),
    "ReadError": (Kind.TRUNCATED, "cut"),
    "LiteLLMUnknownProvider": (Kind.CONFIG, "model_prefix"),
}
"""Exceptions of LiteLLM, or what lies beneath them, whose class says more than their status."""

_PREFACE = re.compile(r"^(?:litellm\.\w+: )?(?:\w+(?:Error|Exception): )*(?:\w+Exception - )?")


class _Streamed(Protocol):
    """LiteLLM's stream: what of it we use."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    async def aclose(self) -> None: ...


def quiet_litellm() -> Any:
    """The module, silenced.

    Raises:
        ConfigError: it is not installed.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _silence_logs()
    try:
        import litellm
    except ImportError as error:
        raise ConfigError(
            f"the kind litellm needs a package that is not installed ({error}): pip install 'memos_llm[litellm]'"
        ) from error
    for name, setting in SETTINGS.items():
        setattr(litellm, name, setting)
    _silence_logs()  # again: its import gives them handlers
    return litellm


def _silence_logs() -> None:
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate, logger.disabled = False, True
    for name in BENEATH:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)


class LiteLLMProvider:
    """One of LiteLLM's providers.

    Args:
        model: the name of calls that name none, without the prefix.
        model_prefix: put before every model's name, such as `openai/` or `anthropic/`.
        base_url: where it is, as LiteLLM wants it (with `/v1` where the API is OpenAI's); None: the provider's own.
        api_key: given to every call; empty: LiteLLM looks into the environment.
        timeouts: `total_s` bounds a whole answer and the wait for a stream, `idle_s` each of its chunks.
        name: how it calls itself in answers and errors.

    Raises:
        ConfigError: LiteLLM is not installed.
    """

    def __init__(
        self,
        *,
        model: str = "",
        model_prefix: str = "",
        base_url: str | None = None,
        api_key: str = "",
        timeouts: Timeouts | None = None,
        name: str = "litellm",
        clock: Clock = time.monotonic,
    ) -> None:
        self.name = name
        self._litellm = quiet_litellm()
        self._model, self._prefix = model, model_prefix
        self._limits, self._clock = timeouts or Timeouts(), clock
        self._base_url, self._api_key = base_url, api_key

    async def generate(
        self,
        prompt: str,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[Options],
    ) -> LLMResponse:
        """One prompt, one answer."""
        messages = [{"role": "user", "content": prompt}]
        return await self.chat(messages, max_tokens=max_tokens, temperature=temperature, **options)

    async def chat(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[Options],
    ) -> LLMResponse:
        """One conversation, the next message."""
        started, id = self._clock(), os.urandom(12).hex()
        asked = self._asked(messages, max_tokens, temperature, options)
        try:
            answer = parse_answer(_body(await self._within(self._limits.total_s, self._litellm.acompletion(**asked))))
            if not answer.finish_reason:
                raise AttemptFailed(Outcome(kind=Kind.TRUNCATED, code=NO_FINISH))
        except AttemptFailed as failed:
            raise error_of(failed, self.name, id) from failed
        model, duration_s = options.get("model") or self._model, self._clock() - started
        return replace(answer, provider=self.name, model=model, request_id=id, duration_s=duration_s)

    async def stream(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[Options],
    ) -> AsyncIterator[StreamChunk]:
        """The next message, piece by piece. Closing the iterator cancels the call upstream."""
        id, begun, reader = os.urandom(12).hex(), False, ChunkReader()
        asked = self._asked(messages, max_tokens, temperature, options)
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            stream: _Streamed = await self._within(self._limits.total_s, self._litellm.acompletion(**asked))
            try:
                chunks = stream.__aiter__()
                while (chunk := await self._within(self._limits.idle_s, anext(chunks, None))) is not None:
                    for piece in reader.feed(b"data: " + _body(chunk) + b"\n\n"):
                        begun = True
                        yield piece
                _check_finish(stream)
            finally:
                await stream.aclose()
        except AttemptFailed as failed:
            raise error_of(failed, self.name, id, begun=begun) from failed
        for piece in reader.eof():
            yield piece

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> EmbeddingResponse:
        """One vector for each text."""
        id, named = os.urandom(12).hex(), model or self._model
        try:
            given = checked_texts(texts)
        except TypeError as error:
            raise BadRequest(str(error), provider=self.name) from error
        if not given:
            return EmbeddingResponse(vectors=[], provider=self.name, model=named, request_id=id)
        asked = {**self._target(named), "input": given, "encoding_format": "float"}
        try:
            answer = await self._within(self._limits.total_s, self._litellm.aembedding(**asked))
            found = parse_vectors(_body(answer), len(given))
        except AttemptFailed as failed:
            raise error_of(failed, self.name, id, embeds=True) from failed
        return replace(found, provider=self.name, model=named, request_id=id)

    async def aclose(self) -> None:
        """LiteLLM keeps the connections itself, for all of the process."""

    def _target(self, model: str) -> dict[str, Any]:
        if not model:
            raise BadRequest("no model was given: pass model=…, or name one when making the provider")
        target = {**PER_CALL, "model": self._prefix + model, "timeout": self._limits.total_s}
        given = {"api_base": self._base_url, "api_key": self._api_key}
        return target | {name: value for name, value in given.items() if value}

    def _asked(
        self, messages: Chat, max_tokens: int | None, temperature: float | None, options: Options
    ) -> dict[str, Any]:
        """LiteLLM's arguments.

        Raises:
            BadRequest: an option is unknown, messages are none, or no model was given.
        """
        try:
            check_names(options, Options.__annotations__)
            check_messages(messages)
        except TypeError as error:
            raise BadRequest(str(error), provider=self.name) from error
        extra = dict(options.get("extra") or {})
        shaping: dict[str, Any] = {name: value for name, value in options.items() if name in SHAPING}
        shaping["response_format"] = as_format(options.get("response_format"))
        shaping |= {name: extra.pop(name) for name in list(extra) if name in OPENAI_FIELDS}
        own = {"max_tokens": max_tokens, "temperature": temperature, "extra_body": extra or None}
        said = {name: value for name, value in (own | shaping).items() if value is not None}
        target = self._target(options.get("model") or self._model)
        if target["model"].startswith(OPENAI_LIKE):  # it refuses what it does not know OpenAI's own models to take
            target["allowed_openai_params"] = [name for name in said if name in OPENAI_FIELDS - NOT_OPENAIS]
        return {**target, **said, "messages": [dict(message) for message in messages]}

    async def _within(self, limit_s: float, work: Awaitable[T]) -> T:
        """Raises:
        AttemptFailed: LiteLLM's exceptions hold prompts and keys, so that none of them goes on, not even as a cause.
        """
        try:
            async with asyncio.timeout(limit_s):
                return await work
        except TimeoutError:
            raise AttemptFailed(Outcome(kind=Kind.TIMEOUT, code="total")) from None
        except AttemptFailed:
            raise
        except Exception as error:  # noqa: BLE001 - LiteLLM raises its own, openai's and httpx's
            failed = failure_of(error)
        raise failed


def from_spec(spec: ProviderSpec) -> LiteLLMProvider:
    """The configured one. Its first endpoint is the address, in the form that LiteLLM wants."""
    prefix = spec.model_prefix
    base_url = spec.endpoints[0].url if spec.endpoints else None
    if base_url and (not prefix or prefix in OPENAI_LIKE):
        base_url += "/v1"
    return LiteLLMProvider(
        model_prefix=prefix, base_url=base_url, api_key=spec.api_key, timeouts=spec.timeouts, name=spec.name
    )


def failure_of(error: BaseException) -> AttemptFailed:
    """How an attempt ended that LiteLLM ended with an exception: by its class, or what lies beneath, or its status."""
    status = getattr(error, "status_code", None)
    for layer in _layers(error):
        names = (cls.__name__ for cls in type(layer).__mro__)
        known = next((CLASSES[name] for name in names if name in CLASSES), None)
        if known is not None:
            return AttemptFailed(Outcome(kind=known[0], code=known[1]))
    if not isinstance(status, int):
        return AttemptFailed(Outcome(kind=Kind.SERVER, code="exception"))
    words = _PREFACE.sub("", str(getattr(error, "message", "")))
    told = refusal(status, _headers(error), msgspec.json.encode({"error": {"message": words}}))
    return AttemptFailed(told.outcome, told.client_text)


def _layers(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _headers(error: BaseException) -> Mapping[str, str]:
    """Of the answer that it stands for, where LiteLLM kept it."""
    response = getattr(error, "response", None)
    return cast(Mapping[str, str], getattr(response, "headers", {}))


def _check_finish(stream: _Streamed) -> None:
    """LiteLLM ends every stream with a finish, if need be one of its own."""
    told = [getattr(stream, name, "") for name in ("received_finish_reason", "intermittent_finish_reason")]
    if told == [None, None]:
        raise AttemptFailed(Outcome(kind=Kind.TRUNCATED, code=NO_FINISH))


def _body(answer: Any) -> bytes:
    """Its document as OpenAI's API writes it, in the bytes that our own reader takes."""
    document = answer.model_dump(exclude_none=True)
    for choice in document.get("choices", ()):
        said = choice.get("message") or choice.get("delta") or {}
        reasoning = (said.get("provider_specific_fields") or {}).get("reasoning")
        if reasoning and not said.get("reasoning_content"):
            said["reasoning_content"] = reasoning
    return msgspec.json.encode(document)
