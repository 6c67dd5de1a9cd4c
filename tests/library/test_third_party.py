"""A distribution that we know nothing of brings a kind of provider: gateway and library serve from it as from any."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from stack import ME, VLLM_MODEL, document, open_gateway, settings, until

import memos_llm
from memos_llm import ConfigError, ProviderSpec, Router, providers
from memos_llm.config import Settings, checks
from memos_llm.core.commands import Rearm, Rollback, Shift
from memos_llm.core.events import Bus
from memos_llm.core.flags import EMBEDDING, PPM
from memos_llm.core.policy import Endpoint
from memos_llm.emulators import OllamaEmulator, VllmEmulator
from memos_llm.providers import plugins
from memos_llm.wiring import Runtime

PLUGIN = Path(__file__).parent / "plugin"
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
KEY = "acme-key-123"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLUGIN))


class Pair:
    def __init__(self, ollama: OllamaEmulator, acme: VllmEmulator, config: Settings) -> None:
        self.ollama, self.acme, self.config = ollama, acme, config


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with (
        OllamaEmulator(port=0, models=["qwen3:8b"]) as ollama,
        VllmEmulator(port=0, models=[VLLM_MODEL], api_key=KEY) as acme,
    ):
        changes: dict[str, Any] = {
            "providers": {
                "ollama": {"kind": "ollama", "base_url": ollama.url},
                "theirs": {"kind": "acme", "base_url": acme.url, "api_key": KEY},
            },
            "candidate": "theirs",
            "models": {"qwen3:8b": {"theirs": VLLM_MODEL}},
            "store": "memory://",
        }
        yield Pair(ollama, acme, settings(tmp_path, document("", "", tmp_path, **changes)))


async def shift(runtime: Runtime, share: float) -> None:
    await runtime.live.submit(Shift(provider="theirs", share_ppm=round(share * PPM)), ME)


async def test_the_gateway_serves_every_dialect_from_it_and_takes_everything_back(pair: Pair) -> None:
    async with open_gateway(pair.config) as (runtime, _, url), httpx.AsyncClient(base_url=url, timeout=20) as client:

        async def ask(path: str, **fields: Any) -> tuple[str, str, str]:
            answer = await client.post(path, json={"model": "qwen3:8b", **fields})
            assert answer.status_code == 200, answer.text
            return answer.headers["x-memos-provider"], answer.headers["x-memos-attempts"], answer.text

        openai = ("/v1/chat/completions", {"messages": QUESTION})
        native = ("/api/chat", {"messages": QUESTION, "stream": False})
        for share, expected in ((0.0, "ollama"), (1.0, "theirs")):
            await shift(runtime, share)
            for path, fields in (
                openai,
                native,
                (native[0], {"messages": QUESTION}),
                (openai[0], {**openai[1], "stream": True}),
            ):
                provider, _, text = await ask(path, **fields)
                assert provider == expected
                assert VLLM_MODEL not in text
        for _ in range(2):
            pair.acme.faults.set("status:code=500")
            assert (await ask(openai[0], **openai[1]))[:2] == ("ollama", "2")
            pair.acme.faults.clear()
        await runtime.live.submit(Rollback(provider="theirs", incident="inc-test"), ME)
        assert (await ask(openai[0], **openai[1]))[:2] == ("ollama", "1")
        await runtime.live.submit(Rearm(provider="theirs"), ME)
        await shift(runtime, 1.0)
        assert (await ask(openai[0], **openai[1]))[0] == "theirs"


async def test_a_share_splits_between_it_and_the_baseline(pair: Pair) -> None:
    async with Router.open(pair.config, probe=False) as router:
        await shift(router._runtime, 0.5)
        served = {}
        for n in range(20):
            session = f"s{n}"
            answer = await router.chat(QUESTION, session=session)
            served[session] = answer.provider
            assert answer.arm == router.explain(session=session).arm.value
        assert set(served.values()) == {"ollama", "theirs"}


async def test_the_library_serves_from_it_whole_and_streamed(pair: Pair) -> None:
    async with Router.open(pair.config) as router:
        await shift(router._runtime, 1.0)
        answer = await router.chat(QUESTION)
        chunks = [chunk async for chunk in router.stream(QUESTION)]
    assert (answer.provider, answer.model, answer.arm) == ("theirs", VLLM_MODEL, "candidate")
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert chunks[-1].usage == answer.usage
    assert pair.acme.requests[-1].headers["authorization"] == f"Bearer {KEY}"


async def test_what_it_refuses_the_baseline_answers(pair: Pair) -> None:
    async with Router.open(pair.config, probe=False) as router:
        await shift(router._runtime, 1.0)
        answer = await router.chat(QUESTION, extra={"n": 1, "logprobs": True})
    assert (answer.provider, answer.arm, answer.attempts) == ("ollama", "candidate", 2)


async def test_a_stream_of_it_that_breaks_says_so(pair: Pair) -> None:
    pair.acme.timing.inter_token_s = 0.01  # httpx delivers what arrives together only if all of it arrives
    pair.acme.faults.set("cut_mid_stream:after=4")
    async with Router.open(pair.config, probe=False) as router:
        await shift(router._runtime, 1.0)
        with pytest.raises(memos_llm.StreamBroken) as caught:
            [chunk async for chunk in router.stream(QUESTION)]
    assert caught.value.attempts == 1
    assert caught.value.decision is not None


async def test_leaving_a_stream_early_is_seen_by_its_back_end(pair: Pair) -> None:
    pair.acme.timing.inter_token_s = 30.0
    async with Router.open(pair.config, probe=False) as router:
        await shift(router._runtime, 1.0)
        stream = router.stream(QUESTION)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]  # a generator, typed as its iterator
        await until(lambda: pair.acme.counters.aborted == 1)


async def test_it_is_avoided_once_its_health_says_that_it_is_down(pair: Pair) -> None:
    async with Router.open(pair.config, probe=False) as router:
        await shift(router._runtime, 1.0)
        pair.acme.faults.set("refuse")
        await router._runtime.transports["theirs"].probe()
        answer = await router.chat(QUESTION)
    assert (answer.provider, answer.attempts) == ("ollama", 1)


# --- how it is found --------------------------------------------------------------------------------------------------


def spec(kind: str) -> ProviderSpec:
    return ProviderSpec(name="theirs", kind=kind, endpoints=(Endpoint("http://a.test"),), api_key=KEY)


def test_the_configuration_and_the_loader_look_in_one_place() -> None:
    assert plugins.GROUP == checks.ENTRY_POINTS
    assert {*providers.KINDS, *plugins.BUILT_IN} == set(checks.KINDS)


WRONG = [
    ("nobody", "choices: ollama, vllm, litellm, acme"),
    ("acme-broken", "acme_llm:no_such_factory of acme-llm 1.0) could not be loaded: AttributeError"),
    ("acme-cross", "could not be made: ValueError: no account has the key ***"),
    ("acme-half", "made a Limits, which lacks name, generate, chat, stream, embed, aclose"),
    ("acme-data", "is not callable"),
]


@pytest.mark.parametrize(("kind", "words"), WRONG)
def test_a_plug_in_that_does_not_work_is_named_with_the_cause(kind: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plugins.make(spec(kind), tuple(providers.KINDS))
    assert words in str(caught.value)
    assert "providers.theirs.kind" in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_kind_that_two_distributions_claim_is_neithers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other_llm-2.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other-llm\nVersion: 2.0\n")
    (other / "entry_points.txt").write_text("[memos_llm.providers]\nacme = other_llm:make\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"acme-llm 1\.0, other_llm:make of other-llm 2\.0; uninstall one"):
        plugins.make(spec("acme"))


def test_nothing_is_loaded_that_is_not_configured() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(PLUGIN)!r})\n"
        "import memos_llm.wiring, memos_llm.library, memos_llm.providers.plugins\n"
        "print('acme_llm' in sys.modules, 'litellm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_plug_in_is_a_transport_of_its_configured_name() -> None:
    import acme_llm

    made = plugins.make(spec("acme"))
    assert isinstance(made, acme_llm.Acme)
    opened = providers.open_transport(spec("acme"), None, Bus(), clock=lambda: 0.0, rng=Random())  # type: ignore[arg-type]  # it uses no client
    assert (opened.name, opened.pick("m")) == ("theirs", "http://a.test")


async def test_embeddings_stay_with_the_baseline_until_they_are_moved(pair: Pair) -> None:
    async with Router.open(pair.config, probe=False) as router:
        await shift(router._runtime, 1.0)
        old = await router.embed(["one", "two"])
        await router._runtime.live.submit(Shift(provider="theirs", share_ppm=PPM, scope=EMBEDDING, new_index=True), ME)
        with pytest.raises(memos_llm.BadRequest):  # it is asked now, and its server is none for embeddings
            await router.embed(["one", "two"])
    assert (old.provider, len(old.vectors)) == ("ollama", 2)
    assert pair.acme.requests[-1].path == "/v1/embeddings"
