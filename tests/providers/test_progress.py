"""The progress watch: an endpoint whose streams all stand still is passed over until it answers again."""

import asyncio
from random import Random

import pytest
from rawserver import Connection, RawServer
from test_loads import opened, until

from memos_llm.core.call import Wire, WireRequest
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import Bus, ProbeEnded
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.policy import Endpoint, Timeouts
from memos_llm.emulators import OllamaEmulator
from memos_llm.providers.endpoint import EndpointState
from memos_llm.providers.endpoints import Pool
from memos_llm.providers.health import Finding, note
from memos_llm.providers.progress import Watch, hung, is_content
from memos_llm.testing import ManualClock

STREAM = WireRequest(
    "r",
    Wire.OLLAMA_CHAT,
    "qwen3:8b",
    b'{"model":"qwen3:8b","messages":[{"role":"user","content":"x"}]}',
    True,
)
STALL_S = 120.0


class Setup:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.pool = Pool("p", [Endpoint("http://a")], Bus(), clock=self.clock, rng=Random(0))
        (self.state,) = self.pool
        self.told: list[EndpointState] = []
        self.watch = Watch(self.pool, STALL_S, self.clock, tell=self.told.append, ask=self._ask)

    async def _ask(self, state: EndpointState) -> None:
        note(self.pool, state, Finding(), self.clock())

    def after(self, seconds: float) -> bool:
        self.clock.advance(seconds)
        return hung(self.state, self.clock(), STALL_S)


def test_streams_without_content_for_the_limit_are_hung() -> None:
    setup = Setup()
    setup.state.begin().flow(setup.clock())
    assert not setup.after(119.0)
    assert setup.after(1.0)


def test_one_stream_that_moves_speaks_for_all() -> None:
    setup = Setup()
    silent, moving = setup.state.begin(), setup.state.begin()
    silent.flow(setup.clock())
    moving.flow(setup.clock())
    setup.clock.advance(100.0)
    moving.heard(setup.clock(), content=True)
    assert not setup.after(119.0)
    assert setup.after(1.0)


def test_new_streams_do_not_hide_that_none_moves() -> None:
    setup = Setup()
    for _ in range(4):
        setup.state.begin().flow(setup.clock())
        setup.clock.advance(30.0)
    assert setup.after(0.0)


def test_the_silence_of_whole_answers_means_nothing() -> None:
    setup = Setup()
    setup.state.begin()
    assert not setup.after(10_000.0)


def test_a_stream_after_a_quiet_time_begins_anew() -> None:
    setup = Setup()
    lease = setup.state.begin()
    lease.flow(setup.clock())
    lease.end()
    setup.clock.advance(1_000.0)
    setup.state.begin().flow(setup.clock())
    assert not setup.after(119.0)


@pytest.mark.parametrize("whose", ["ours", "somebody's"])
def test_nothing_is_hung_while_a_model_loads(whose: str) -> None:
    setup = Setup()
    setup.state.begin().flow(setup.clock())
    setup.state.loads, setup.state.loading = int(whose == "ours"), whose != "ours"
    assert not setup.after(500.0)


def test_comments_that_keep_a_connection_open_are_no_content() -> None:
    assert not is_content(b": keep-alive\n\n")
    assert is_content(b": keep-alive\n\ndata: {}\n\n")
    assert is_content(b"data: {}\n\n")
    assert is_content(b'{"message":{}}\n')


def test_a_hung_endpoint_is_told_once_and_passed_over() -> None:
    setup = Setup()
    setup.state.begin().flow(setup.clock())
    setup.clock.advance(STALL_S)
    setup.watch.look()
    setup.watch.look()
    assert setup.told == [setup.state]
    assert setup.pool.refusal(setup.pool.serving("m")) == "down"


def test_a_probe_brings_it_back_once_its_clients_have_left() -> None:
    """A stopped runner shows on no probe: as long as somebody waits for it, Ollama does not mend it."""
    setup = Setup()
    lease = setup.state.begin()
    lease.flow(setup.clock())
    setup.clock.advance(STALL_S)
    setup.watch.look()
    note(setup.pool, setup.state, Finding(), setup.clock())
    assert setup.state.up is False
    lease.end()
    note(setup.pool, setup.state, Finding(), setup.clock())
    assert setup.state.up is True


@pytest.mark.parametrize(
    ("begun", "generates", "up"), [("before", True, False), ("after", True, True), ("after", False, False)]
)
def test_among_many_it_is_well_once_a_later_one_has_an_answer_of_the_engine(
    begun: str, generates: bool, up: bool
) -> None:
    """What an older stream had left unread says nothing, nor do embeddings and passages: others may answer these."""
    setup = Setup()
    setup.state.begin().flow(setup.clock())
    older = setup.state.begin(generates=generates)
    setup.clock.advance(STALL_S)
    setup.watch.look()
    later = setup.state.begin(generates=generates)
    (older if begun == "before" else later).heard(setup.clock(), content=True)
    note(setup.pool, setup.state, Finding(), setup.clock())
    assert setup.state.up is up


def test_who_comes_later_has_as_long_and_then_is_cut_too() -> None:
    setup = Setup()
    setup.state.begin().flow(setup.clock())
    setup.clock.advance(STALL_S)
    setup.watch.look()
    later = setup.state.begin(generates=True)
    later.flow(setup.clock())
    later.heard(setup.clock(), content=True)
    setup.clock.advance(STALL_S - 1.0)
    setup.watch.look()
    assert setup.state.downs == 1
    setup.clock.advance(1.0)
    setup.watch.look()
    note(setup.pool, setup.state, Finding(), setup.clock())
    assert (setup.state.downs, setup.state.up, setup.told) == (2, False, [setup.state])


async def test_under_steady_traffic_all_that_hang_are_cut_and_the_first_answer_brings_it_back() -> None:
    async with (
        OllamaEmulator() as ollama,
        opened(ollama.url, timeouts=Timeouts(stall_s=0.2)) as ours,
    ):
        await ours.answer(STREAM)
        (state,) = ours.transport._pool
        somebody = state.begin()
        ollama.faults.set("hang_after_headers")
        for _ in range(2):
            reply = await ours.transport.open(STREAM)
            with pytest.raises(AttemptFailed) as caught:
                await asyncio.wait_for(reply.read(), 5.0)
            assert caught.value.outcome == Outcome(kind=Kind.TIMEOUT, code="stalled")
            await reply.aclose()
        assert ours.transport.offer("qwen3:8b").refused == "down"
        ollama.faults.clear()
        await ours.answer(STREAM)
        await until(lambda: ours.transport.offer("qwen3:8b").refused is None)
        somebody.end()
        assert [(e.up, e.detail) for e in ours.told.of(ProbeEnded)] == [(False, "stalled"), (True, "")]


async def test_what_hangs_is_cut_and_the_endpoint_comes_back_without_a_prober() -> None:
    async with (
        OllamaEmulator() as ollama,
        opened(ollama.url, timeouts=Timeouts(stall_s=0.2)) as ours,
    ):
        await ours.answer(STREAM)
        ollama.faults.set("hang_after_headers")
        reply = await ours.transport.open(STREAM)
        with pytest.raises(AttemptFailed) as caught:
            await reply.read()
        assert caught.value.outcome == Outcome(kind=Kind.TIMEOUT, code="stalled")
        assert ours.transport.offer("qwen3:8b").refused == "down"
        ollama.faults.clear()
        await reply.aclose()
        await until(lambda: ours.transport.offer("qwen3:8b").refused is None)
        assert [(e.up, e.detail) for e in ours.told.of(ProbeEnded)] == [(False, "stalled"), (True, "")]


async def test_a_committed_stream_is_left_to_its_own_limits() -> None:
    resumes = asyncio.Event()

    async def play(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n")
        await resumes.wait()
        await connection.send(b"4\r\nrest\r\n")
        await connection.gone()

    async with (
        RawServer(play) as server,
        opened(server.url, timeouts=Timeouts(stall_s=0.05), own_loads=False) as ours,
    ):
        reply = await ours.transport.open(STREAM)
        await reply.read()
        reply.committed()
        reading = asyncio.create_task(reply.read())
        await until(lambda: ours.told.of(ProbeEnded))
        resumes.set()
        assert await reading == b"rest"
        await reply.aclose()
