"""Several endpoints, and a request before any probe: it goes to the one that has the model."""

import time
from collections.abc import AsyncIterator

import pytest

from memos_llm.core.call import Wire, WireRequest
from memos_llm.core.events import Bus
from memos_llm.core.policy import Endpoint, ProviderSpec
from memos_llm.core.ports import Transport
from memos_llm.emulators import VllmEmulator
from memos_llm.providers import AiohttpClient, open_transport

CHAT, VECTORS = "some/chat", "some/embedder"


@pytest.fixture
async def servers() -> AsyncIterator[tuple[VllmEmulator, VllmEmulator]]:
    async with VllmEmulator(port=0, models=[CHAT]) as chat, VllmEmulator(port=0, models=[VECTORS], task="embed") as own:
        yield chat, own


@pytest.fixture
async def transport(servers: tuple[VllmEmulator, VllmEmulator]) -> AsyncIterator[Transport]:
    endpoints = tuple(Endpoint(server.url) for server in servers)
    client = AiohttpClient()
    opened = open_transport(
        ProviderSpec(name="vllm", kind="vllm", endpoints=endpoints), client, Bus(), clock=time.monotonic
    )
    yield opened
    await opened.aclose()
    await client.aclose()


async def served_by(transport: Transport) -> str:
    body = b'{"model":"%s","input":"x"}' % VECTORS.encode()
    await transport.acquaint(VECTORS)
    request = WireRequest("r", Wire.OPENAI_EMBEDDINGS, VECTORS, body, False)
    reply = await transport.open(request)
    try:
        return reply.endpoint
    finally:
        await reply.aclose()


async def test_the_first_request_finds_the_model(
    transport: Transport, servers: tuple[VllmEmulator, VllmEmulator]
) -> None:
    assert [await served_by(transport) for _ in range(3)] == [servers[1].url] * 3


async def test_one_that_does_not_answer_the_look_is_no_reason_to_wait(
    servers: tuple[VllmEmulator, VllmEmulator], transport: Transport
) -> None:
    await servers[0].stop()
    assert await served_by(transport) == servers[1].url
