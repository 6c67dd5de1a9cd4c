"""What every kind of back end must do as a `Transport` and as an `LLMProvider`, against its emulator on a socket."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from memos_llm.core.call import Wire, WireRequest
from memos_llm.core.errors import (
    AttemptFailed,
    BadRequest,
    InvalidResponse,
    LLMError,
    ModelNotFound,
    Overloaded,
    StreamBroken,
    Timeout,
    Unavailable,
)
from memos_llm.core.events import Bus
from memos_llm.core.outcome import MODEL_NOT_FOUND, Kind
from memos_llm.core.policy import Endpoint, ProviderSpec, Timeouts
from memos_llm.core.ports import LLMProvider, Reply, Transport
from memos_llm.emulators import Emulator, OllamaEmulator, VllmEmulator
from memos_llm.providers import KINDS, AiohttpClient, open_transport
from memos_llm.providers.typed import OllamaProvider, TypedProvider, VllmProvider

MODEL = "m:1b"
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
EMULATORS: dict[str, Callable[[], Emulator]] = {
    "ollama": lambda: OllamaEmulator(models=[MODEL], num_parallel=8),
    "vllm": lambda: VllmEmulator(models=[MODEL]),
}
PROVIDERS: dict[str, Callable[[str], TypedProvider]] = {
    "ollama": lambda url: OllamaProvider(url, model=MODEL),
    "vllm": lambda url: VllmProvider(url + "/v1/", model=MODEL),
}
BODIES: dict[Wire, dict[str, Any]] = {
    Wire.OPENAI_CHAT: {"messages": MESSAGES, "max_tokens": 50},
    Wire.OPENAI_COMPLETION: {"prompt": "The sky", "max_tokens": 50},
    Wire.OLLAMA_CHAT: {"messages": MESSAGES},
    Wire.OLLAMA_GENERATE: {"prompt": "The sky"},
    Wire.OPENAI_EMBEDDINGS: {"input": ["the sky", "the sea"]},
    Wire.OLLAMA_EMBED: {"input": ["the sky", "the sea"]},
    Wire.OLLAMA_EMBEDDINGS: {"prompt": "the sky"},
}
ENDS = {
    Wire.OPENAI_CHAT: b"data: [DONE]",
    Wire.OPENAI_COMPLETION: b"data: [DONE]",
    Wire.OLLAMA_CHAT: b'"done":true',
    Wire.OLLAMA_GENERATE: b'"done":true',
}
VECTORS = (Wire.OPENAI_EMBEDDINGS, Wire.OLLAMA_EMBED, Wire.OLLAMA_EMBEDDINGS)
WIRES = [(k, wire) for k, profile in KINDS.items() for wire in profile.paths if wire not in VECTORS]


def test_every_kind_is_under_this_contract() -> None:
    assert EMULATORS.keys() == PROVIDERS.keys() == KINDS.keys()


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
async def emulator(kind: str) -> AsyncIterator[Emulator]:
    async with EMULATORS[kind]() as emulator:
        yield emulator


@pytest.fixture
async def client() -> AsyncIterator[AiohttpClient]:
    client = AiohttpClient()
    yield client
    await client.aclose()


@pytest.fixture
async def transport(kind: str, emulator: Emulator, client: AiohttpClient) -> AsyncIterator[Transport]:
    spec = ProviderSpec(name=kind, kind=kind, endpoints=(Endpoint(emulator.url),), timeouts=Timeouts(connect_s=1.0))
    transport = open_transport(spec, client, Bus(), clock=time.monotonic)
    yield transport
    await transport.aclose()


@pytest.fixture
async def provider(kind: str, emulator: Emulator) -> AsyncIterator[TypedProvider]:
    provider = PROVIDERS[kind](emulator.url)
    yield provider
    await provider.aclose()


def request(wire: Wire = Wire.OPENAI_CHAT, *, stream: bool = False, model: str = MODEL, **more: object) -> WireRequest:
    body = msgspec.json.encode({"model": model, "stream": stream, **BODIES[wire], **more})
    return WireRequest("req-1", wire, model, body, stream)


async def read_all(reply: Reply) -> bytes:
    body = b""
    while chunk := await reply.read():
        body += chunk
    await reply.aclose()
    return body


async def failure(transport: Transport, wanted: WireRequest | None = None) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as caught:
        await transport.open(wanted or request())
    return caught.value


async def until(condition: Callable[[], object], limit_s: float = 2.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.001)


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "wire"), WIRES)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_wire_is_answered_whole(transport: Transport, emulator: Emulator, wire: Wire, stream: bool) -> None:
    reply = await transport.open(request(wire, stream=stream))
    assert (reply.status, reply.endpoint) == (200, emulator.url)
    body = await read_all(reply)
    if stream:
        assert ENDS[wire] in body
    else:
        assert isinstance(msgspec.json.decode(body), dict)


async def test_a_request_carries_its_id_and_its_bytes(transport: Transport, emulator: Emulator) -> None:
    wanted = request()
    await read_all(await transport.open(wanted))
    received = emulator.requests[-1]
    assert received.headers["x-request-id"] == "req-1"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["accept-encoding"] == "identity"
    assert received.body == wanted.body


async def test_connections_are_reused(transport: Transport, emulator: Emulator) -> None:
    for stream in (False, True, False):
        await read_all(await transport.open(request(stream=stream)))
    assert emulator.counters.connections_total == 1


async def test_it_offers_the_wires_it_speaks(transport: Transport, kind: str) -> None:
    offer = transport.offer(MODEL)
    assert offer.wires == frozenset((*KINDS[kind].paths, Wire.PASSTHROUGH))
    assert offer.refused is None


# --- errors -----------------------------------------------------------------------------------------------------------

STATUSES = [
    (401, Kind.CONFIG),
    (403, Kind.CONFIG),
    (405, Kind.CONFIG),
    (429, Kind.SATURATED),
    (500, Kind.SERVER),
    (502, Kind.SERVER),
    (503, Kind.SATURATED),
    (504, Kind.SERVER),
    (422, Kind.CLIENT),
    (499, Kind.SERVER),
]


@pytest.mark.parametrize(("status", "expected"), STATUSES)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_status_is_classified(
    transport: Transport, emulator: Emulator, status: int, expected: Kind, stream: bool
) -> None:
    emulator.faults.set(f"status:code={status}")
    failed = await failure(transport, request(stream=stream))
    assert (failed.outcome.kind, failed.outcome.status) == (expected, status)


async def test_a_full_queue_is_saturation_in_the_back_ends_words(transport: Transport, emulator: Emulator) -> None:
    emulator.faults.set("queue_full")
    failed = await failure(transport)
    assert (failed.outcome.kind, failed.outcome.status) == (Kind.SATURATED, 503)
    assert failed.client_text
    assert failed.client_text.encode() in failed.client_body
    assert failed.client_text not in str(failed)


async def test_a_missing_model_is_told_from_a_missing_route(transport: Transport) -> None:
    missing = await failure(transport, request(model="nobody"))
    assert (missing.outcome.kind, missing.outcome.code) == (Kind.CONFIG, MODEL_NOT_FOUND)
    with pytest.raises(AttemptFailed) as caught:
        await transport.fetch("/no/such/route")
    assert (caught.value.outcome.kind, caught.value.outcome.code) == (Kind.CONFIG, "route")


async def test_a_bad_request_is_the_clients_and_keeps_the_back_ends_words(transport: Transport) -> None:
    failed = await failure(transport, request(messages=7))
    assert (failed.outcome.kind, failed.outcome.status) == (Kind.CLIENT, 400)
    assert failed.client_text
    assert msgspec.json.decode(failed.client_body)["error"]


async def test_the_key_is_sent_and_a_wrong_one_is_our_configuration(client: AiohttpClient) -> None:
    async with VllmEmulator(models=[MODEL], api_key="right") as emulator:
        for key, good in (("right", True), ("wrong", False)):
            spec = ProviderSpec(name="vllm", kind="vllm", endpoints=(Endpoint(emulator.url),), api_key=key)
            transport = open_transport(spec, client, Bus(), clock=time.monotonic)
            if good:
                await read_all(await transport.open(request()))
            else:
                failed = await failure(transport)
                assert (failed.outcome.kind, failed.client_text, failed.client_body) == (Kind.CONFIG, "", b"")


async def test_a_refused_connection(transport: Transport, emulator: Emulator) -> None:
    emulator.faults.set("refuse")
    failed = await failure(transport)
    assert failed.outcome.kind in (Kind.CONNECT, Kind.TRUNCATED)


async def test_an_answer_that_is_not_http(transport: Transport, emulator: Emulator) -> None:
    emulator.faults.set("garbage")
    assert (await failure(transport)).outcome.kind is Kind.MALFORMED


@pytest.mark.parametrize("ending", ["", "reset="])
async def test_a_stream_that_is_cut_is_truncated(transport: Transport, emulator: Emulator, ending: str) -> None:
    emulator.faults.set("cut_mid_stream:after=2" + (f",{ending}true" if ending else ""))
    reply = await transport.open(request(stream=True))
    with pytest.raises(AttemptFailed) as caught:
        await read_all(reply)
    await reply.aclose()
    assert caught.value.outcome.kind is Kind.TRUNCATED


# --- leaving ----------------------------------------------------------------------------------------------------------


async def leave_while_waiting(transport: Transport, emulator: Emulator, stream: bool) -> float:
    """Before the first byte: the answer is awaited and the task is cancelled."""
    asking = asyncio.create_task(_open_and_read(transport, stream))
    await until(lambda: emulator.counters.in_flight)
    left = time.monotonic()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    return left


async def leave_while_reading(transport: Transport, emulator: Emulator, stream: bool) -> float:
    """After the first content: the reply is closed."""
    reply = await transport.open(request(stream=True))
    while b"content" not in await reply.read():
        pass
    left = time.monotonic()
    await reply.aclose()
    return left


async def _open_and_read(transport: Transport, stream: bool) -> None:
    reply = await transport.open(request(stream=stream))
    try:
        while await reply.read():
            pass
    finally:
        await reply.aclose()


Leave = Callable[[Transport, Emulator, bool], Awaitable[float]]


@pytest.mark.parametrize(
    ("leave", "stream", "ttft_s"),
    [(leave_while_waiting, False, 30.0), (leave_while_waiting, True, 30.0), (leave_while_reading, True, 0.0)],
    ids=["non-streaming", "before the first content", "after the first content"],
)
async def test_leaving_is_seen_upstream_at_once(
    transport: Transport, emulator: Emulator, leave: Leave, stream: bool, ttft_s: float
) -> None:
    await _open_and_read(transport, stream)  # the model is loaded now: leaving a load would abort nothing
    emulator.timing.ttft_s, emulator.timing.inter_token_s = ttft_s, 30.0
    delays = []
    for aborted in (1, 2, 3):
        left = await leave(transport, emulator, stream)
        await until(lambda aborted=aborted: emulator.counters.aborted == aborted)  # type: ignore[misc]  # a lambda's default has no type
        seen = emulator.counters.last_abort_monotonic
        assert seen is not None
        delays.append(seen - left)
    assert min(delays) < 0.25
    await until(lambda: emulator.counters.in_flight == 0)  # a probe may be under way


# --- probes -----------------------------------------------------------------------------------------------------------


async def test_a_probe_tells_models_and_version(transport: Transport, emulator: Emulator, kind: str) -> None:
    (probed,) = await transport.probe()
    assert (probed.up, probed.provider, probed.endpoint) == (True, kind, emulator.url)
    assert probed.models is not None
    assert MODEL in probed.models
    assert probed.version


async def test_an_endpoint_that_refuses_a_probe_is_refused_until_one_succeeds(
    transport: Transport, emulator: Emulator
) -> None:
    emulator.faults.set("refuse")
    (probed,) = await transport.probe()
    assert not probed.up
    assert transport.offer(MODEL).refused == "down"
    emulator.faults.clear()
    await until(lambda: not emulator.faults.current())
    async with asyncio.timeout(2.0):
        while not (await transport.probe())[0].up:
            await asyncio.sleep(0.001)
    assert transport.offer(MODEL).refused is None


# --- the typed face ---------------------------------------------------------------------------------------------------


async def test_it_is_an_llm_provider(provider: TypedProvider, kind: str) -> None:
    assert isinstance(provider, LLMProvider)
    assert provider.name == kind


async def test_chat_and_generate_answer_in_full(provider: TypedProvider, kind: str) -> None:
    chatted = await provider.chat(MESSAGES)
    generated = await provider.generate(MESSAGES[0]["content"])
    for answer in (chatted, generated):
        assert answer.text
        assert answer.finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.output_tokens > 0
        assert (answer.provider, answer.model) == (kind, MODEL)
        assert answer.request_id
        assert answer.raw["choices"]
    assert chatted.text == generated.text


async def test_a_stream_adds_up_to_the_whole_answer(provider: TypedProvider) -> None:
    chunks = [chunk async for chunk in provider.stream(MESSAGES)]
    assert "".join(chunk.text for chunk in chunks) == (await provider.chat(MESSAGES)).text
    assert [bool(chunk.finish_reason) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage is not None


async def test_a_stream_that_has_begun_is_not_cut_by_a_probe(provider: TypedProvider, emulator: Emulator) -> None:
    emulator.timing.inter_token_s = 0.02
    stream = provider.stream(MESSAGES)
    await anext(stream)
    (state,) = provider._transport._pool  # type: ignore[attr-defined]  # the test looks inside
    state.cut_waiting()
    assert [chunk async for chunk in stream][-1].finish_reason == "stop"


async def test_a_stream_that_has_not_begun_is_cut_by_a_probe(provider: TypedProvider, emulator: Emulator) -> None:
    emulator.timing.ttft_s = 30.0
    reading = asyncio.ensure_future(anext(provider.stream(MESSAGES)))
    (state,) = provider._transport._pool  # type: ignore[attr-defined]  # the test looks inside
    await until(lambda: emulator.counters.in_flight and state.waiting)
    state.cut_waiting()
    with pytest.raises(Timeout):
        await asyncio.wait_for(reading, 10.0)  # of the 30 s that it would take


async def test_leaving_a_stream_early_is_seen_upstream(provider: TypedProvider, emulator: Emulator) -> None:
    emulator.timing.inter_token_s = 30.0
    stream = provider.stream(MESSAGES)
    assert (await anext(stream)).text
    await stream.aclose()  # type: ignore[attr-defined]  # the test looks inside
    await until(lambda: emulator.counters.aborted == 1)


ERRORS: list[tuple[str, type[LLMError], int]] = [
    ("status:code=500", Unavailable, 503),
    ("status:code=401", Unavailable, 503),
    ("status:code=422", BadRequest, 422),
    ("queue_full", Overloaded, 503),
    ("model_missing", ModelNotFound, 404),
    ("garbage", InvalidResponse, 502),
    ("malformed", InvalidResponse, 502),
]


@pytest.mark.parametrize(("fault", "error", "status"), ERRORS)
async def test_a_failure_is_an_error_of_the_tree(
    provider: TypedProvider, emulator: Emulator, kind: str, fault: str, error: type[LLMError], status: int
) -> None:
    emulator.faults.set(fault)
    with pytest.raises(error) as caught:
        await provider.chat(MESSAGES)
    assert type(caught.value) is error
    assert (caught.value.http_status, caught.value.provider) == (status, kind)
    assert caught.value.request_id


async def test_a_stream_that_breaks_after_content_says_so(provider: TypedProvider, emulator: Emulator) -> None:
    emulator.faults.set("cut_mid_stream:after=2")
    got: list[str] = []

    async def take() -> None:
        async for chunk in provider.stream(MESSAGES):
            got.append(chunk.text)

    with pytest.raises(StreamBroken):
        await take()
    assert got


async def test_a_back_end_that_stays_silent_is_a_timeout(kind: str, emulator: Emulator) -> None:
    provider = (OllamaProvider if kind == "ollama" else VllmProvider)(
        emulator.url, model=MODEL, timeouts=Timeouts(total_s=0.05)
    )
    emulator.faults.set("hang")
    with pytest.raises(Timeout):
        await provider.chat(MESSAGES)
    await provider.aclose()


async def test_what_cannot_be_said_is_refused_before_sending(provider: TypedProvider, emulator: Emulator) -> None:
    with pytest.raises(BadRequest, match="texts"):
        await provider.embed("text")
    with pytest.raises(BadRequest):
        await provider.chat([{"role": "user", "content": object()}])
    with pytest.raises(BadRequest, match=r"^temprature: is no option; did you mean 'temperature'\?"):
        await provider.chat(MESSAGES, **{"temprature": 1})  # type: ignore[arg-type]  # what it is about
    nameless = PROVIDERS["vllm"](emulator.url)
    nameless._model = ""
    with pytest.raises(BadRequest):
        await nameless.chat(MESSAGES)
    await nameless.aclose()
    assert (await provider.embed([])).vectors == []
    assert emulator.requests == []
