"""A transport over a typed provider: what goes in comes out, and whatever a provider does ends as an outcome."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Any, Unpack

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_llm.core.call import Usage, Wire, WireRequest
from memos_llm.core.errors import (
    AttemptFailed,
    BadRequest,
    ControlError,
    EmbeddingServiceError,
    Forbidden,
    InvalidResponse,
    LLMError,
    ModelNotFound,
    NotOffered,
    Overloaded,
    StreamBroken,
    Timeout,
    Unauthorized,
    Unavailable,
)
from memos_llm.core.events import Bus, InternalError
from memos_llm.core.outcome import Kind
from memos_llm.core.policy import ProviderSpec
from memos_llm.core.ports import LLMProvider
from memos_llm.core.responses import Chat, EmbeddingResponse, LLMResponse, Options, StreamChunk, ToolCall
from memos_llm.providers import joined as joins
from memos_llm.providers.joined import JoinedTransport
from memos_llm.providers.typed import TypedProvider
from memos_llm.testing import Recorder

SPEC = ProviderSpec(name="theirs", kind="theirs", endpoints=())
MESSAGES = [{"role": "user", "content": "Why?"}]
SECRET = "the prompt and the key"


class Theirs:
    """A provider that answers as it is told, or raises."""

    name = "theirs"

    def __init__(self, answer: LLMResponse | None = None, chunks: Sequence[StreamChunk] = ()) -> None:
        self.answer, self.chunks = answer or LLMResponse(text="Rayleigh.", finish_reason="stop"), list(chunks)
        self.error: BaseException | None = None
        self.waits = asyncio.Event()
        self.waits.set()
        self.asked: list[tuple[Any, int | None, float | None, Options]] = []
        self.cancelled = 0
        self.closed = 0

    async def generate(self, prompt: str, **options: Any) -> LLMResponse:
        raise AssertionError("a routed call has messages")

    async def chat(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[Options],
    ) -> LLMResponse:
        self.asked.append((messages, max_tokens, temperature, options))
        await self._wait()
        return self.answer

    async def stream(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[Options],
    ) -> AsyncIterator[StreamChunk]:
        self.asked.append((messages, max_tokens, temperature, options))
        try:
            for chunk in self.chunks:
                yield chunk
            await self._wait()
        except GeneratorExit:
            self.cancelled += 1
            raise

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> EmbeddingResponse:
        await self._wait()
        return EmbeddingResponse(vectors=[[float(len(text)), 0.5] for text in texts], usage=Usage(len(texts)))

    async def aclose(self) -> None:
        self.closed += 1

    async def _wait(self) -> None:
        try:
            await self.waits.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error


def transport(provider: LLMProvider, bus: Bus | None = None) -> JoinedTransport:
    return JoinedTransport(provider, SPEC, bus or Bus(), clock=time.monotonic, rng=Random(0), now=lambda: 1.0)


def joined(provider: LLMProvider) -> TypedProvider:
    return TypedProvider(transport(provider), model="m")


def request(wire: Wire = Wire.OPENAI_CHAT, *, stream: bool = False, **fields: Any) -> WireRequest:
    body = {"model": "m", "stream": stream, "messages": MESSAGES, **fields}
    return WireRequest("req-1", wire, "m", msgspec.json.encode(body), stream)


async def read(provider: Theirs, wanted: WireRequest, bus: Bus | None = None) -> bytes:
    reply = await transport(provider, bus).open(wanted)
    body = b""
    while chunk := await reply.read():
        body += chunk
    await reply.aclose()
    return body


# --- what goes in comes out -------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
calls = st.lists(st.builds(ToolCall, id=words.filter(bool), name=words.filter(bool), arguments=words), max_size=3)
counts = st.builds(Usage, st.integers(1, 10**6), st.integers(1, 10**6))
finishes = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])


def unlike_ids(found: list[ToolCall]) -> bool:
    return len({call.id for call in found}) == len(found)


@given(words, words, calls, finishes, counts | st.none())
async def test_an_answer_comes_through_as_it_was_given(
    text: str, reasoning: str, tools: list[ToolCall], finish: str, usage: Usage | None
) -> None:
    given = LLMResponse(text=text, reasoning=reasoning, tool_calls=tuple(tools), finish_reason=finish, usage=usage)
    got = await joined(Theirs(given)).chat(MESSAGES)
    assert (got.text, got.reasoning, got.tool_calls, got.finish_reason, got.usage) == (
        *(given.text, given.reasoning, given.tool_calls),
        *(given.finish_reason, given.usage),
    )


@given(st.lists(st.tuples(words, words), max_size=5), calls.filter(unlike_ids), finishes, counts | st.none())
async def test_a_stream_comes_through_as_it_was_given(
    said: list[tuple[str, str]], tools: list[ToolCall], finish: str, usage: Usage | None
) -> None:
    pieces = [StreamChunk(text=text, reasoning=reasoning) for text, reasoning in said]
    last = StreamChunk(tool_calls=tuple(tools), finish_reason=finish, usage=usage)
    got = [chunk async for chunk in joined(Theirs(chunks=[*pieces, last])).stream(MESSAGES)]
    assert [(c.text, c.reasoning) for c in got[:-1]] == [(t, r) for t, r in said if t or r]
    assert got[-1] == last


@given(st.lists(words, min_size=1, max_size=4))
async def test_vectors_come_through_in_order(texts: list[str]) -> None:
    got = await joined(Theirs()).embed(texts)
    assert got.vectors == [[float(len(text)), 0.5] for text in texts]
    assert got.usage == Usage(len(texts))


async def test_every_argument_reaches_the_provider() -> None:
    provider = Theirs()
    options: Options = {
        "top_p": 0.5,
        "top_k": 4,
        "stop": ["a", "b"],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "reasoning_effort": "low",
        "extra": {"min_tokens": 3, "user": "u"},
    }
    await joined(provider).chat(MESSAGES, max_tokens=9, temperature=None, **options)
    assert provider.asked == [(MESSAGES, 9, None, {**options, "model": "m"})]


async def test_what_typed_arguments_spell_otherwise_is_taken_for_what_it_means() -> None:
    provider = Theirs()
    await read(provider, request(max_completion_tokens=7, max_tokens=None, n=1, temperature=0))
    assert provider.asked == [(MESSAGES, 7, 0, {"model": "m"})]


@pytest.mark.parametrize(
    "field", [{"n": 2}, {"logprobs": True}, {"modalities": ["audio"]}, {"max_tokens": "9"}, {"messages": 7}]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_it_cannot_answer_is_refused_and_names_the_field(field: dict[str, Any], stream: bool) -> None:
    provider = Theirs()
    with pytest.raises(AttemptFailed) as caught:
        await read(provider, request(stream=stream, **field))
    assert caught.value.outcome.kind is Kind.CLIENT
    assert next(iter(field)) in caught.value.client_text
    assert provider.asked == []


@pytest.mark.parametrize("field", [{"input": [1, 2]}, {"input": "a", "dimensions": 4}])
async def test_embeddings_of_anything_but_texts_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(AttemptFailed) as caught:
        await read(Theirs(), request(Wire.OPENAI_EMBEDDINGS, **field))
    assert caught.value.outcome.kind is Kind.CLIENT


async def test_base64_vectors_are_written_as_openai_writes_them() -> None:
    asked = request(Wire.OPENAI_EMBEDDINGS, input=["abc"], encoding_format="base64")
    document = msgspec.json.decode(await read(Theirs(), asked))
    assert document["data"] == [{"object": "embedding", "index": 0, "embedding": "AABAQAAAAD8="}]  # 3.0, 0.5


async def test_a_wire_it_does_not_offer_is_not_tried() -> None:
    assert transport(Theirs()).offer("m").wires == {Wire.OPENAI_CHAT, Wire.OPENAI_EMBEDDINGS}
    with pytest.raises(AttemptFailed) as caught:
        await read(Theirs(), request(Wire.OLLAMA_CHAT))
    assert (caught.value.outcome.kind, caught.value.outcome.code) == (Kind.CONFIG, "wire")


async def test_the_usage_event_comes_only_when_asked_for() -> None:
    provider = Theirs(chunks=[StreamChunk(text="a"), StreamChunk(finish_reason="stop", usage=Usage(1, 2))])
    assert b'"usage"' not in await read(provider, request(stream=True))
    asked = request(stream=True, stream_options={"include_usage": True})
    assert (await read(provider, asked)).endswith(
        b'"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\ndata: [DONE]\n\n'
    )


async def test_a_finish_that_was_not_told_is_not_invented() -> None:
    provider = Theirs(LLMResponse(text="Ray"), chunks=[StreamChunk(text="Ray")])
    with pytest.raises(InvalidResponse):
        await joined(provider).chat(MESSAGES)
    with pytest.raises(StreamBroken):
        [chunk async for chunk in joined(provider).stream(MESSAGES)]


# --- whatever it does ends as an outcome ------------------------------------------------------------------------------

RAISED: list[tuple[BaseException, Kind]] = [
    (Unavailable(SECRET), Kind.SERVER),
    (LLMError(SECRET), Kind.SERVER),
    (ControlError(SECRET), Kind.SERVER),
    (EmbeddingServiceError(SECRET), Kind.SERVER),
    (Overloaded(SECRET, retry_after_s=7.0), Kind.SATURATED),
    (Timeout(SECRET), Kind.TIMEOUT),
    (InvalidResponse(SECRET), Kind.MALFORMED),
    (StreamBroken(SECRET), Kind.TRUNCATED),
    (BadRequest(SECRET), Kind.CLIENT),
    (NotOffered(SECRET), Kind.CLIENT),
    (ModelNotFound(SECRET), Kind.CONFIG),
    (Forbidden(SECRET), Kind.CONFIG),
    (Unauthorized(SECRET), Kind.CONFIG),
    (TimeoutError(SECRET), Kind.TIMEOUT),
    (RuntimeError(SECRET), Kind.SERVER),
    (asyncio.CancelledError(SECRET), Kind.SERVER),  # of something of its own: nobody cancelled the call
]
THEIRS = (RuntimeError, asyncio.CancelledError)


@pytest.mark.parametrize(("error", "kind"), RAISED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("how", ["whole", "stream", "mid-stream", "embed"])
async def test_what_it_raises_ends_as_an_outcome_without_its_words(error: BaseException, kind: Kind, how: str) -> None:
    bus, told = Bus(), Recorder()
    bus.subscribe("told", told)
    provider = Theirs(chunks=[StreamChunk(text="Ray")] if how == "mid-stream" else [])
    provider.error = error
    wire = Wire.OPENAI_EMBEDDINGS if how == "embed" else Wire.OPENAI_CHAT
    asked = request(wire, stream="stream" in how, **({"input": "a"} if how == "embed" else {}))
    with pytest.raises(AttemptFailed) as caught:
        await read(provider, asked, bus)
    failed = caught.value
    assert failed.outcome.kind is kind
    assert failed.outcome.retry_after_s == getattr(error, "retry_after_s", None)
    assert SECRET not in f"{failed} {failed.__cause__ if not isinstance(failed.__cause__, LLMError) else ''}"
    assert failed.client_body == b""
    assert [event.error for event in told.of(InternalError)] == (
        [type(error).__name__] if isinstance(error, THEIRS) else []
    )
    theirs_to_read = isinstance(error, LLMError) and not isinstance(error, Forbidden | Unauthorized)
    assert failed.client_text == (SECRET if theirs_to_read else "")


async def test_an_error_that_was_made_of_an_outcome_is_that_outcome_again() -> None:
    inner = Theirs()
    inner.error = Forbidden(SECRET)
    with pytest.raises(AttemptFailed) as caught:
        await transport(joined(inner)).open(request())
    assert (caught.value.outcome.kind, caught.value.outcome.code) == (Kind.CONFIG, "auth")
    assert caught.value.client_text == ""


async def test_a_number_of_vectors_other_than_of_texts_is_malformed() -> None:
    class Short(Theirs):
        async def embed(self, texts: Sequence[str], *, model: str | None = None) -> EmbeddingResponse:
            return EmbeddingResponse(vectors=[[1.0]])

    with pytest.raises(AttemptFailed) as caught:
        await read(Short(), request(Wire.OPENAI_EMBEDDINGS, input=["a", "b"]))
    assert caught.value.outcome.kind is Kind.MALFORMED


# --- leaving, closing, health -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wrong", [{"text": 5}, {"reasoning": ["x"]}])
async def test_text_that_is_none_fails_the_attempt_and_never_reaches_the_caller(
    wrong: dict[str, Any], stream: bool
) -> None:
    given: dict[str, Any] = {"text": "", "finish_reason": "stop", **wrong}
    theirs = Theirs(LLMResponse(**given), [StreamChunk(**given)])
    with pytest.raises(AttemptFailed) as caught:
        await read(theirs, request(stream=stream))
    assert caught.value.outcome.kind is Kind.MALFORMED


async def test_vectors_that_json_cannot_say_fail_the_attempt() -> None:
    class Broken(Theirs):
        async def embed(self, texts: Sequence[str], *, model: str | None = None) -> EmbeddingResponse:
            return EmbeddingResponse(vectors=[[0.5, float("nan")]])

    with pytest.raises(AttemptFailed) as caught:
        await read(Broken(), request(Wire.OPENAI_EMBEDDINGS, input=["a"]))
    assert caught.value.outcome.kind is Kind.MALFORMED


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_provider_that_cannot_be_closed_is_told_of_and_left(
    monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    class Broken(Theirs):
        async def aclose(self) -> None:
            if hangs:
                await asyncio.Event().wait()
            raise RuntimeError(SECRET)

    monkeypatch.setattr(joins, "CLOSING_S", 0.01)
    bus, told = Bus(), Recorder()
    bus.subscribe("told", told)
    await transport(Broken(), bus).aclose()
    assert [event.error for event in told.of(InternalError)] == ([] if hangs else ["RuntimeError"])


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_the_call_cancels_the_provider(stream: bool) -> None:
    provider = Theirs()
    provider.waits.clear()
    opening = asyncio.create_task(transport(provider).open(request(stream=stream)))
    while not provider.asked:
        await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert provider.cancelled == 1


async def test_closing_a_stream_early_closes_the_providers() -> None:
    provider = Theirs(chunks=[StreamChunk(text="Ray"), StreamChunk(text="leigh")])
    reply = await transport(provider).open(request(stream=True))
    assert b"Ray" in await reply.read()
    await reply.aclose()
    await reply.aclose()
    assert provider.cancelled == 1


async def test_closing_the_transport_closes_the_provider() -> None:
    provider = Theirs()
    await transport(provider).aclose()
    assert provider.closed == 1


class Telling(Theirs):
    """With a health of its own."""

    async def health(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("error", "refused"),
    [(None, None), (Unavailable("dead"), "down"), (OSError("dead"), "down"), (Overloaded(""), None)],
)
async def test_a_provider_that_tells_its_health_is_avoided_while_it_is_down(
    error: Exception | None, refused: str | None
) -> None:
    provider = Telling()
    provider.error = error
    over = transport(provider)
    (probed,) = await over.probe()
    assert (probed.up, over.offer("m").refused) == (refused is None, refused)
    provider.error = None
    (probed,) = await over.probe()
    assert (probed.up, over.offer("m").refused) == (True, None)


async def test_without_one_it_is_up_whatever_its_calls_do() -> None:
    provider = Theirs()
    provider.error = Unavailable("dead")
    (probed,) = await transport(provider).probe()
    assert probed.up


async def test_a_provider_found_down_loses_the_calls_that_wait() -> None:
    provider = Telling()
    provider.waits.clear()
    over = transport(provider)
    opening = asyncio.create_task(over.open(request()))
    while not provider.asked:
        await asyncio.sleep(0)
    provider.error = Unavailable("dead")
    await over.probe()
    with pytest.raises(AttemptFailed) as caught:
        await opening
    assert (caught.value.outcome.kind, provider.cancelled) == (Kind.TIMEOUT, 1)
