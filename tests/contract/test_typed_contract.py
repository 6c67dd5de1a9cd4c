"""The same of embeddings, and of providers that are typed by themselves: directly, and through a transport of ours."""

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
import pytest
from stack import LEAVES_SOCKETS
from test_provider_contract import (
    EMULATORS,
    MESSAGES,
    MODEL,
    PROVIDERS,
    VECTORS,
    Leave,
    failure,
    leave_while_reading,
    leave_while_waiting,
    read_all,
    request,
    until,
)

from memos_llm.core.call import Wire
from memos_llm.core.errors import EmbeddingServiceError, Unavailable
from memos_llm.core.events import Bus
from memos_llm.core.outcome import Kind
from memos_llm.core.policy import Endpoint, ProviderSpec
from memos_llm.core.ports import LLMProvider
from memos_llm.emulators import Emulator, OllamaEmulator, VllmEmulator
from memos_llm.providers import KINDS, AiohttpClient, open_transport
from memos_llm.providers.joined import JoinedTransport
from memos_llm.providers.litellm import LiteLLMProvider
from memos_llm.providers.typed import TypedProvider, VllmProvider

pytestmark = LEAVES_SOCKETS  # LiteLLM's, which are the process's and not a provider's

PLUGIN = Path(__file__).parents[1] / "library" / "plugin"

EMBEDDERS: dict[str, Callable[[], Emulator]] = {
    "ollama": lambda: OllamaEmulator(models=[MODEL]),
    "vllm": lambda: VllmEmulator(models=[MODEL], task="embed"),
}


def acme(url: str) -> LLMProvider:
    """A third party's, as its distribution brings it."""
    from acme_llm import Acme

    return Acme(url, model=MODEL)


def over_litellm(url: str) -> LLMProvider:
    return LiteLLMProvider(model=MODEL, model_prefix="openai/", base_url=url + "/v1", api_key="k")


THEIRS: dict[str, Callable[[str], LLMProvider]] = {"litellm": over_litellm, "acme": acme}
"""Providers that are typed by themselves, over a vLLM."""


def joined(provider: LLMProvider, name: str) -> JoinedTransport:
    spec = ProviderSpec(name=name, kind=name, endpoints=())
    return JoinedTransport(provider, spec, Bus(), clock=time.monotonic, rng=Random())


# --- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "wire"), [(k, w) for k, profile in KINDS.items() for w in profile.paths if w in VECTORS]
)
async def test_every_embeddings_wire_is_answered_whole(kind: str, wire: Wire) -> None:
    client = AiohttpClient()
    async with EMBEDDERS[kind]() as emulator:
        spec = ProviderSpec(name=kind, kind=kind, endpoints=(Endpoint(emulator.url),))
        answer = msgspec.json.decode(
            await read_all(await open_transport(spec, client, Bus(), clock=time.monotonic).open(request(wire)))
        )
    await client.aclose()
    assert answer.keys() & {"data", "embeddings", "embedding"}


@pytest.mark.parametrize("kind", ["ollama", "vllm", "litellm", "acme"])
@pytest.mark.parametrize("twice", [False, True], ids=["directly", "through a transport"])
async def test_texts_become_vectors_in_their_order(kind: str, twice: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLUGIN))
    async with EMBEDDERS["ollama" if kind == "ollama" else "vllm"]() as emulator:
        provider: LLMProvider = (PROVIDERS | THEIRS)[kind](emulator.url)
        if twice:
            provider = TypedProvider(joined(provider, kind), model=MODEL)
        sky, sea = (await provider.embed(["the sky", "the sea"])).vectors
        again = await provider.embed(["the sea"])
        emulator.faults.set("status:code=500")
        with pytest.raises(EmbeddingServiceError if kind != "acme" or twice else Unavailable):
            await provider.embed(["the sky"])
        await provider.aclose()
    assert again.vectors[0] == pytest.approx(sea, abs=1e-5)
    assert sky != sea
    assert (again.provider, again.model) == (kind, MODEL)


# --- providers that are typed by themselves, directly and through a transport -----------------------------------------


@pytest.fixture(params=list(THEIRS))
def theirs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(PLUGIN))
    assert isinstance(request.param, str)
    return request.param


@pytest.mark.parametrize("twice", [False, True], ids=["directly", "through a transport"])
async def test_a_typed_provider_answers_whole_and_streamed(theirs: str, twice: bool) -> None:
    async with EMULATORS["vllm"]() as emulator:
        own = THEIRS[theirs](emulator.url)
        assert isinstance(own, LLMProvider)
        provider = TypedProvider(joined(own, theirs), model=MODEL) if twice else own
        answer, generated = await provider.chat(MESSAGES), await provider.generate(MESSAGES[0]["content"])
        chunks = [chunk async for chunk in provider.stream(MESSAGES)]
        await provider.aclose()
    assert answer.text == generated.text == "".join(chunk.text for chunk in chunks)
    assert (answer.provider, answer.model, answer.finish_reason) == (theirs, MODEL, "stop")
    assert [bool(chunk.finish_reason) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert answer.usage == chunks[-1].usage is not None


THEIR_FAILURES = [
    ("status:code=500", Kind.SERVER),
    ("status:code=401", Kind.CONFIG),
    ("status:code=422", Kind.CLIENT),
    ("status:code=429", Kind.SATURATED),
    ("queue_full", Kind.SATURATED),
    ("malformed", Kind.MALFORMED),
]


@pytest.mark.parametrize(("fault", "kind"), THEIR_FAILURES)
async def test_a_typed_providers_failure_is_classified_as_a_back_ends(theirs: str, fault: str, kind: Kind) -> None:
    async with EMULATORS["vllm"]() as emulator:
        emulator.faults.set(fault)
        over = joined(THEIRS[theirs](emulator.url), theirs)
        assert (await failure(over)).outcome.kind is kind
        await over.aclose()


@pytest.mark.parametrize(
    ("leave", "stream", "ttft_s"),
    [(leave_while_waiting, False, 30.0), (leave_while_waiting, True, 30.0), (leave_while_reading, True, 0.0)],
    ids=["non-streaming", "before the first content", "after the first content"],
)
async def test_leaving_a_typed_provider_is_seen_upstream(
    theirs: str, leave: Leave, stream: bool, ttft_s: float
) -> None:
    async with EMULATORS["vllm"]() as emulator:
        over = joined(THEIRS[theirs](emulator.url), theirs)
        emulator.timing.ttft_s, emulator.timing.inter_token_s = ttft_s, 30.0
        await leave(over, emulator, stream)
        await until(lambda: emulator.counters.aborted == 1)
        await over.aclose()


async def test_a_text_that_is_too_long_is_cut_as_on_the_routed_path() -> None:
    async with VllmEmulator(port=0, models=[MODEL], task="embed", max_model_len=64) as vllm:
        provider = VllmProvider(vllm.url, model=MODEL)
        try:
            answer = await provider.embed(["word " * 500])
        finally:
            await provider.aclose()
    assert len(answer.vectors) == 1
