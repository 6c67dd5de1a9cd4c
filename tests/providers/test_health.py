"""Probes: what they find, when an endpoint counts as down, and the driver."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from random import Random

import pytest
from rawserver import Connection, RawServer, closed_port

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import Bus, InternalError, ProbeEnded
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.policy import Endpoint, ProviderSpec
from memos_llm.providers import AiohttpClient, Prober, health, ollama, open_transport, vllm
from memos_llm.providers.endpoints import Pool
from memos_llm.providers.health import MODELS, Finding, Get, check, note
from memos_llm.testing import FakeTransport, ManualClock, Recorder

DEAD = AttemptFailed(Outcome(kind=Kind.SERVER, status=503))
MISSING = AttemptFailed(Outcome(kind=Kind.CONFIG, status=404, code="route"))


def server(**documents: bytes | AttemptFailed) -> Get:
    """GETs by the last part of the path; what is not given is missing."""

    async def get(path: str) -> bytes:
        found = documents.get(path.rpartition("/")[2], MISSING)
        if isinstance(found, AttemptFailed):
            raise found
        return found

    return get


async def test_ollama_tells_version_and_models() -> None:
    get = server(version=b'{"version":"0.33.0"}', tags=b'{"models":[{"name":"a:latest","size":1},{"name":"b:7b"}]}')
    assert await check(get, ollama.ask) == Finding(version="0.33.0", models=("a:latest", "b:7b"))


@pytest.mark.parametrize(("tags", "detail"), [(b"", ""), (b"<html>", MODELS), (b'{"models":7}', MODELS), (DEAD, "")])
async def test_ollama_is_up_even_if_its_models_cannot_be_had(tags: bytes | AttemptFailed, detail: str) -> None:
    found = await check(server(version=b'{"version":"1"}', tags=tags), ollama.ask)
    assert found == Finding(version="1", detail=detail)


async def test_ollama_without_models_serves_none() -> None:
    assert (await check(server(version=b'{"version":"1"}', tags=b'{"models":null}'), ollama.ask)).models == ()


async def test_what_answers_like_something_else_is_not_ollama() -> None:
    found = await check(server(version=b"<html>"), ollama.ask)
    assert (found.failure, found.detail) == (Kind.MALFORMED, "malformed version")


async def test_vllm_tells_version_and_models() -> None:
    get = server(health=b"", models=b'{"object":"list","data":[{"id":"a"},{"id":"lora"}]}', version=b'{"version":"1"}')
    assert await check(get, vllm.ask) == Finding(version="1", models=("a", "lora"))


async def test_vllm_is_up_if_only_its_health_says_so() -> None:
    assert await check(server(health=b""), vllm.ask) == Finding()
    found = await check(server(health=b"", models=b"[]", version=b"[]"), vllm.ask)
    assert found == Finding(detail=MODELS)


async def test_a_dead_engine_is_down() -> None:
    found = await check(server(health=DEAD), vllm.ask)
    assert (found.failure, found.detail) == (Kind.SERVER, "server 503")


async def test_an_endpoint_that_answers_but_hides_its_health_is_up() -> None:
    assert await check(server(), vllm.ask) == Finding(detail="config 404 route")


async def test_silence_is_a_timeout_and_an_optional_document_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "OPTIONAL_S", 0.01)

    async def get(path: str) -> bytes:
        if path == "/api/version":
            return b'{"version":"1"}'
        await asyncio.Event().wait()
        return b""

    assert await check(get, ollama.ask) == Finding(version="1")
    assert (await check(get, vllm.ask, limit_s=0.01)).failure is Kind.TIMEOUT


# --- when an endpoint counts as down ----------------------------------------------------------------------------------


class Setup:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.pool = Pool("p", [Endpoint("http://a")], Bus(), clock=self.clock, rng=Random(0))
        (self.state,) = self.pool

    def note(self, kind: Kind | None, times: int = 1) -> bool | None:
        for _ in range(times):
            note(self.pool, self.state, Finding(failure=kind), self.clock())
        return self.state.up


@pytest.mark.parametrize("kind", [Kind.CONNECT, Kind.SERVER])
def test_a_refused_or_ill_endpoint_is_down_at_once(kind: Kind) -> None:
    assert Setup().note(kind) is False


def test_silence_takes_three_probes() -> None:
    setup = Setup()
    assert setup.note(Kind.TIMEOUT, 2) is None
    assert setup.note(Kind.TIMEOUT) is False


def test_a_good_probe_brings_it_back_and_starts_the_count_again() -> None:
    setup = Setup()
    setup.note(Kind.TIMEOUT, 2)
    assert setup.note(None) is True
    assert setup.note(Kind.TIMEOUT, 2) is True
    assert setup.note(Kind.TIMEOUT) is False
    assert setup.note(None) is True


def test_silence_does_not_count_while_requests_there_get_bytes() -> None:
    setup = Setup()
    setup.state.heard_at = setup.clock()
    setup.clock.advance(9.9)
    assert setup.note(Kind.TIMEOUT, 9) is None
    setup.clock.advance(0.2)
    assert setup.note(Kind.TIMEOUT, 3) is False


@pytest.mark.parametrize("kind", [Kind.CONNECT, Kind.SERVER, Kind.TIMEOUT, Kind.MALFORMED])
def test_each_failed_probe_says_how_it_failed_and_a_good_one_nothing(kind: Kind) -> None:
    setup = Setup()
    told = [note(setup.pool, setup.state, Finding(failure=one), setup.clock()) for one in (kind, kind, None)]
    assert told == [kind.value, kind.value, ""]


def test_silence_is_a_failure_only_where_nobody_got_content_for_a_while() -> None:
    setup = Setup()
    lease = setup.state.begin()
    lease.heard(setup.clock(), content=True)
    setup.clock.advance(9.9)
    assert note(setup.pool, setup.state, Finding(failure=Kind.TIMEOUT), setup.clock()) == ""
    lease.heard(setup.clock(), content=False)  # what keeps a connection open is none
    setup.clock.advance(0.2)
    assert note(setup.pool, setup.state, Finding(failure=Kind.TIMEOUT), setup.clock()) == "timeout"


def test_what_it_served_is_remembered_while_it_is_down() -> None:
    setup = Setup()
    note(setup.pool, setup.state, Finding(models=("m",), version="1"), 0.0)
    setup.note(Kind.CONNECT)
    note(setup.pool, setup.state, Finding(), 0.0)
    assert (setup.state.served, setup.state.version) == (frozenset({"m"}), "1")


# --- the driver -------------------------------------------------------------------------------------------------------


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


@pytest.fixture
def bus(heard: Recorder) -> Bus:
    bus = Bus()
    bus.subscribe("test", heard)
    return bus


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(2.0):
        while not condition():
            await asyncio.sleep(0.001)


class Broken(FakeTransport):
    async def probe(self) -> Sequence[ProbeEnded]:
        raise ValueError("CANARY")


async def test_it_probes_at_once_and_again(bus: Bus, heard: Recorder) -> None:
    prober = Prober([FakeTransport("a"), FakeTransport("b")], bus, interval_s=60.0)
    prober.start()
    await until(lambda: len(heard.of(ProbeEnded)) == 2)
    await prober.aclose()
    prober = Prober([FakeTransport("a")], bus, interval_s=0.001)
    prober.start()
    await until(lambda: len(heard.of(ProbeEnded)) > 4)
    await prober.aclose()
    await prober.aclose()


async def test_a_transport_that_breaks_is_counted_and_probed_again(bus: Bus, heard: Recorder) -> None:
    prober = Prober([Broken("bad"), FakeTransport("good")], bus, interval_s=0.001)
    prober.start()
    await until(lambda: len(heard.of(InternalError)) > 1 and heard.of(ProbeEnded))
    await prober.aclose()
    fault = heard.of(InternalError)[0]
    assert (fault.part, fault.error) == ("probe.bad", "ValueError")
    assert fault.where.startswith("memos_llm.providers.health:")


class Listing(FakeTransport):
    async def probe(self) -> Sequence[ProbeEnded]:
        return (ProbeEnded(provider=self.name, endpoint=self.endpoint, up=True, models=("Some/Model", "b:latest")),)


@pytest.mark.parametrize(
    ("mapped", "failure"), [(("a", "B"), ""), (("a",), "config"), ((), ""), (("some/model",), "")], ids=str
)
async def test_a_server_that_has_none_of_its_models_fails_its_probe(
    mapped: Collection[str], failure: str, bus: Bus, heard: Recorder
) -> None:
    prober = Prober([Listing("a")], bus, interval_s=60.0)
    prober.expect(lambda provider: mapped if provider == "a" else {"other"})
    prober.start()
    await until(lambda: heard.of(ProbeEnded))
    await prober.aclose()
    (ended,) = heard.of(ProbeEnded)
    assert (ended.failure, ended.up) == (failure, True)


@pytest.fixture
async def client() -> AsyncIterator[AiohttpClient]:
    client = AiohttpClient()
    yield client
    await client.aclose()


async def test_each_endpoint_is_probed_for_itself(client: AiohttpClient, bus: Bus, heard: Recorder) -> None:
    async def play(connection: Connection) -> None:
        while True:
            head, _ = await connection.request()
            await connection.answer(
                b'{"data":[{"id":"m"}],"version":"1"}' if "/v1/models" in head else b'{"version":"1"}'
            )

    async with RawServer(play) as server:
        up, dead = server.url, await closed_port()
        spec = ProviderSpec(name="p", kind="vllm", endpoints=(Endpoint(up), Endpoint(dead)))
        transport = open_transport(spec, client, bus, clock=ManualClock())
        prober = Prober([transport], bus)
        prober.start()
        await until(lambda: len(heard.of(ProbeEnded)) == 2)
        await prober.aclose()
        assert transport.pick("m") == up
    assert heard.of(ProbeEnded) == [
        ProbeEnded(provider="p", endpoint=up, up=True, models=("m",), version="1"),
        ProbeEnded(provider="p", endpoint=dead, up=False, failure="connect", detail="connect refused"),
    ]
