"""The engine over scripted back ends: commit point, fallback, blame, and exactly one end."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from memos_llm.core.call import Call, Wire, WireRequest
from memos_llm.core.catalogue import Catalogue, Model, ProviderModel
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
from memos_llm.core.events import (
    AttemptEnded,
    AttemptStarted,
    Bus,
    ContentBegan,
    FellBack,
    InternalError,
    RequestEnded,
    RequestStarted,
)
from memos_llm.core.flags import PPM
from memos_llm.core.outcome import MODEL_NOT_FOUND, Kind, Outcome
from memos_llm.core.policy import GuardPolicy, Limits, Policy, Timeouts
from memos_llm.core.ports import Routes
from memos_llm.dialects.codecs import CODECS
from memos_llm.dialects.edge import DIALECTS
from memos_llm.router.engine import Engine
from memos_llm.testing import FakeTransport, FixedFlags, ManualClock, Recorder, Step


def sse(*documents: str) -> bytes:
    return b"".join(b"data: " + d.encode() + b"\n\n" for d in documents)


ROLE = sse('{"model":"q","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}')
HELLO = sse('{"model":"q","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}')
FINISH = sse('{"model":"q","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
USAGE = sse('{"model":"q","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}')
DONE = sse("[DONE]")
ERROR = sse('{"error":{"message":"engine died","type":"InternalServerError","param":null,"code":500}}')
STREAM = (ROLE, HELLO, FINISH, USAGE, DONE)
WHOLE = (
    b'{"model":"q","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}]}',
)


def failed(kind: Kind, **more: Any) -> AttemptFailed:
    text, body = more.pop("client_text", ""), more.pop("client_body", b"")
    return AttemptFailed(Outcome(kind=kind, **more), text, body)


class Bench:
    """An engine over two fakes, and everything it told."""

    def __init__(self, vllm: FakeTransport, ollama: FakeTransport, *, share_ppm: int = PPM, **policy: Any) -> None:
        self.vllm, self.ollama, self.told = vllm, ollama, Recorder()
        bus = Bus()
        bus.subscribe("test", self.told)
        model = Model("q", {"ollama": ProviderModel("q"), "vllm": ProviderModel("q")})
        limits = Timeouts(ttft_s=0.2, idle_s=0.2)
        self.policy = replace(
            Policy(
                baseline="ollama",
                candidate="vllm",
                fallback=("ollama",),
                pins={},
                timeouts={"vllm": limits, "ollama": limits},
                catalogue=Catalogue([model]),
            ),
            **policy,
        )
        self.engine = Engine(
            routes=lambda: Routes(self.policy, {"vllm": vllm, "ollama": ollama}),
            live=FixedFlags.at(share_ppm),
            codecs=CODECS,
            bus=bus,
            clock=lambda: asyncio.get_running_loop().time(),
        )

    def call(self, *, stream: bool = True, wait_s: float = 5.0, model: str = "q", **more: Any) -> Call:
        flag = b"true" if stream else b"false"
        body = b'{"model":"%s","stream":%s,"stream_options":{"include_usage":true},"messages":[]}' % (
            model.encode(),
            flag,
        )
        now = asyncio.get_running_loop().time()
        return Call(
            id="r", wire=Wire.OPENAI_CHAT, head=DIALECTS[Wire.OPENAI_CHAT].parse(body).head, body=body, model=model,
            stream=stream, component="c", key=b"k", accepted_at=now, deadline=now + wait_s, **more,
        )  # fmt: skip

    def with_fallback_model(self) -> None:
        """`q` falls back to `f`, which both have."""
        models = [
            Model(name, {"ollama": ProviderModel(name), "vllm": ProviderModel(name)}, fallbacks=fallbacks)
            for name, fallbacks in (("q", ("f",)), ("f", ()))
        ]
        self.policy = replace(self.policy, catalogue=Catalogue(models))

    async def run(self, **call: Any) -> bytes:
        exchange = await self.engine.open(self.call(**call))
        frames = []
        try:
            while (frame := await exchange.next()) is not None:
                frames.append(frame.data)
        finally:
            await exchange.aclose()
        return b"".join(frames)

    def outcomes(self) -> list[tuple[str, Kind]]:
        return [(e.provider, e.outcome.kind) for e in self.told.of(AttemptEnded)]

    def end(self) -> RequestEnded:
        """The one end; also checks that everything that started ended once."""
        (started,) = self.told.of(RequestStarted)
        (ended,) = self.told.of(RequestEnded)
        assert started.decision is ended.decision
        assert len(self.told.of(AttemptStarted)) == len(self.told.of(AttemptEnded)) == ended.attempts
        return ended


def good(name: str, script: Sequence[Step] = STREAM) -> FakeTransport:
    return FakeTransport(name, script)


BEFORE_COMMIT: dict[str, Sequence[Step] | AttemptFailed] = {
    "refused": failed(Kind.CONNECT, code="refused"),
    "500": failed(Kind.SERVER, status=500),
    "503": failed(Kind.SATURATED, status=503),
    "401": failed(Kind.CONFIG, status=401),
    "model missing": failed(Kind.CONFIG, status=404, code=MODEL_NOT_FOUND),
    "cut at once": (),
    "cut after the role": (ROLE,),
    "reset after the role": (ROLE, failed(Kind.TRUNCATED)),
    "error event": (ROLE, ERROR, DONE),
    "done without anything": (ROLE, DONE),
    "not JSON": (b"data: {oops\n\n",),
    "hung": (60.0,),
    "role and then silence": (ROLE, 60.0),
    "endless preamble": (b": keep-alive\n\n" * 1000,) * 100,
    "400 of the candidate only": failed(Kind.CLIENT, status=400),
}


@pytest.mark.parametrize("fault", BEFORE_COMMIT)
async def test_before_the_commit_point_the_caller_notices_nothing(fault: str) -> None:
    bench = Bench(FakeTransport("vllm", BEFORE_COMMIT[fault]), good("ollama"))
    assert await bench.run() == b"".join(STREAM)
    end = bench.end()
    assert (end.provider, end.outcome.kind, end.attempts, end.decision.arm) == ("ollama", Kind.OK, 2, "candidate")
    first = bench.told.of(AttemptEnded)[0]
    assert first.provider == "vllm"
    assert first.outcome.rule.counts_against_arm
    (fell,) = bench.told.of(FellBack)
    assert (fell.from_provider, fell.to_provider) == ("vllm", "ollama")


@pytest.mark.parametrize("script", [(b'{"choices":[]}',), (b"",), (b'{"model":"q"',), (60.0,)], ids=str)
async def test_a_whole_answer_commits_only_when_it_is_whole(script: Sequence[Step]) -> None:
    bench = Bench(FakeTransport("vllm", script), good("ollama", WHOLE))
    assert await bench.run(stream=False, wait_s=2.0) == WHOLE[0]
    assert bench.end().provider == "ollama"


async def test_preamble_is_held_back_until_content() -> None:
    bench = Bench(good("vllm", (ROLE, 0.05, HELLO, FINISH, DONE)), good("ollama"))
    exchange = await bench.engine.open(bench.call())
    first = await exchange.next()
    assert first is not None
    assert first.data == ROLE + HELLO
    await exchange.aclose()


@pytest.mark.parametrize(
    "rest", [(), (failed(Kind.TRUNCATED),), (ERROR, DONE), (b"data: {oops\n\n",), (60.0,)], ids=str
)  # fmt: skip
async def test_after_the_commit_point_the_failure_is_the_callers_to_see(rest: Sequence[Step]) -> None:
    bench = Bench(FakeTransport("vllm", (ROLE, HELLO, *rest)), good("ollama"))
    exchange = await bench.engine.open(bench.call())
    first = await exchange.next()
    assert first is not None
    with pytest.raises(StreamBroken) as caught:
        await exchange.next()
    await exchange.aclose()
    assert bench.ollama.requests == []
    assert bench.end().outcome.rule.counts_against_arm
    assert caught.value.client_text == ("engine died" if rest and rest[0] == ERROR else "")
    assert "engine died" not in str(caught.value)


@pytest.mark.parametrize("read_first", [True, False])
async def test_leaving_early_aborts_upstream_and_blames_nobody(read_first: bool) -> None:
    bench = Bench(good("vllm", (ROLE, HELLO, 60.0)), good("ollama"))
    exchange = await bench.engine.open(bench.call())
    if read_first:
        await exchange.next()
    await exchange.aclose()
    await exchange.aclose()
    assert bench.vllm.aborted == 1
    assert bench.end().outcome.kind is Kind.CANCELLED
    assert bench.outcomes() == [("vllm", Kind.CANCELLED)]


async def test_cancelling_before_the_commit_point_aborts_upstream() -> None:
    bench = Bench(good("vllm", (ROLE, 60.0)), good("ollama"))
    bench.policy = replace(bench.policy, timeouts={"vllm": Timeouts(), "ollama": Timeouts()})
    task = asyncio.create_task(bench.engine.open(bench.call()))
    while not bench.vllm.requests:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.vllm.aborted == 1
    assert bench.end().outcome.kind is Kind.CANCELLED


async def test_leaving_after_the_terminal_marker_is_a_success() -> None:
    bench = Bench(good("vllm", (b"".join(STREAM), 60.0)), good("ollama"))
    exchange = await bench.engine.open(bench.call())
    await exchange.next()
    await exchange.aclose()
    assert bench.end().outcome.kind is Kind.OK


async def test_a_back_end_that_keeps_the_connection_after_done_does_not_hold_the_caller() -> None:
    bench = Bench(good("vllm", (*STREAM, 3600.0)), good("ollama"))
    assert await bench.run() == b"".join(STREAM)
    assert bench.end().outcome.kind is Kind.OK


async def test_a_4xx_that_the_baseline_answers_is_incompatible() -> None:
    refusal = failed(Kind.CLIENT, status=400, client_text="no tools here")
    bench = Bench(FakeTransport("vllm", refusal), good("ollama"))
    await bench.run()
    bench.end()
    assert bench.outcomes() == [("vllm", Kind.INCOMPATIBLE), ("ollama", Kind.OK)]


async def test_a_4xx_of_both_is_the_clients_own_in_the_baselines_words() -> None:
    vllm = FakeTransport("vllm", failed(Kind.CLIENT, status=422, client_text="vllm says"))
    ollama = FakeTransport("ollama", failed(Kind.CLIENT, status=400, client_text="ollama says", client_body=b'{"e":1}'))
    bench = Bench(vllm, ollama)
    with pytest.raises(BadRequest) as caught:
        await bench.run()
    assert (caught.value.http_status, caught.value.text, caught.value.client_body) == (400, "ollama says", b'{"e":1}')
    assert "ollama says" not in str(caught.value)
    bench.end()
    assert {kind for _, kind in bench.outcomes()} == {Kind.CLIENT}


async def test_a_4xx_nobody_could_contradict_is_the_clients_own() -> None:
    vllm = FakeTransport("vllm", failed(Kind.CLIENT, status=400, client_text="bad top_p"))
    bench = Bench(vllm, FakeTransport("ollama", failed(Kind.CONNECT)))
    with pytest.raises(BadRequest) as caught:
        await bench.run()
    assert caught.value.text == "bad top_p"
    bench.end()
    assert sorted(bench.outcomes()) == [("ollama", Kind.CONNECT), ("ollama", Kind.CONNECT), ("vllm", Kind.CLIENT)]


async def test_a_wrong_model_name_is_the_clients_fault_and_a_404() -> None:
    missing = failed(Kind.CONFIG, status=404, code=MODEL_NOT_FOUND, client_text="model 'x' not found")
    bench = Bench(good("vllm"), FakeTransport("ollama", missing))
    with pytest.raises(ModelNotFound) as caught:
        await bench.run(model="x")
    assert (caught.value.http_status, caught.value.text) == (404, "model 'x' not found")
    bench.end()
    assert bench.outcomes() == [("ollama", Kind.CLIENT)]


@pytest.mark.parametrize(
    ("kind", "error", "status"),
    [
        (Kind.CONNECT, Unavailable, 503),
        (Kind.SERVER, Unavailable, 502),
        (Kind.SATURATED, Overloaded, 503),
        (Kind.TIMEOUT, Timeout, 504),
        (Kind.MALFORMED, InvalidResponse, 502),
        (Kind.TRUNCATED, InvalidResponse, 502),
        (Kind.CONFIG, Unavailable, 502),
    ],
)
async def test_an_exhausted_chain_names_its_last_failure(kind: Kind, error: type[LLMError], status: int) -> None:
    both = failed(kind, status=401 if kind is Kind.CONFIG else 0, retry_after_s=7.0)
    bench = Bench(FakeTransport("vllm", both), FakeTransport("ollama", both))
    with pytest.raises(error) as caught:
        await bench.run(wait_s=2.0)
    assert (caught.value.http_status, caught.value.request_id, caught.value.provider) == (status, "r", "ollama")
    assert caught.value.retry_after_s == 7.0
    bench.end()


async def test_the_callers_own_deadline_blames_nobody() -> None:
    bench = Bench(good("vllm", (60.0,)), good("ollama", (60.0,)), timeouts={"vllm": Timeouts(), "ollama": Timeouts()})
    with pytest.raises(Timeout):
        await bench.run(wait_s=0.2, own_deadline=True)
    bench.end()
    assert {kind for _, kind in bench.outcomes()} == {Kind.CANCELLED}


async def test_one_deadline_holds_for_the_whole_chain() -> None:
    bench = Bench(good("vllm", (60.0,)), good("ollama", (60.0,)), timeouts={"vllm": Timeouts(), "ollama": Timeouts()})
    began = asyncio.get_running_loop().time()
    with pytest.raises(Timeout):
        await bench.run(wait_s=2.0)
    assert asyncio.get_running_loop().time() - began < 2.9  # a second deadline of its own would make it 3
    assert bench.outcomes() == [("vllm", Kind.TIMEOUT), ("ollama", Kind.TIMEOUT)]
    bench.end()


async def test_times_and_counts_of_a_stream_are_told() -> None:
    bench = Bench(good("vllm", (ROLE, 0.02, HELLO, 0.04, HELLO, FINISH, USAGE, DONE)), good("ollama"))
    await bench.run()
    end = bench.end()
    assert end.usage is not None
    assert (end.usage.input_tokens, end.usage.output_tokens) == (3, 5)
    assert end.ttft_s is not None
    assert end.tpot_s is not None
    assert 0.02 <= end.ttft_s <= end.duration_s
    assert 0.04 / 4 <= end.tpot_s <= end.duration_s / 4


async def test_each_attempt_carries_its_own_id() -> None:
    bench = Bench(FakeTransport("vllm", failed(Kind.SERVER)), good("ollama"))
    await bench.run()
    assert bench.vllm.requests[0].id != bench.ollama.requests[0].id
    assert {r.id.rpartition("-")[0] for r in bench.vllm.requests + bench.ollama.requests} == {"r"}


async def test_cancelling_during_a_pause_leaves_nothing_untold() -> None:
    vllm = FakeTransport("vllm", failed(Kind.CLIENT, status=400))
    bench = Bench(vllm, FakeTransport("ollama", failed(Kind.CONNECT)), retries=0, backoff_s=30.0)
    task = asyncio.create_task(bench.engine.open(bench.call(wait_s=600.0)))
    while len(bench.told.of(AttemptEnded)) < 1:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.end().outcome.kind is Kind.CANCELLED
    assert sorted(bench.outcomes()) == [("ollama", Kind.CONNECT), ("vllm", Kind.CLIENT)]


async def test_two_refusals_in_one_chain_both_end() -> None:
    """Candidate 400, baseline 500, the fallback model: candidate 400, baseline answers."""
    refusal = failed(Kind.CLIENT, status=400)
    bench = Bench(FakeTransport("vllm", refusal), FakeTransport("ollama", failed(Kind.SERVER), STREAM))
    bench.with_fallback_model()
    assert await bench.run() == b"".join(STREAM)
    assert bench.end().attempts == 4
    assert sorted(bench.outcomes()) == [
        ("ollama", Kind.OK), ("ollama", Kind.SERVER), ("vllm", Kind.INCOMPATIBLE), ("vllm", Kind.INCOMPATIBLE),
    ]  # fmt: skip


async def test_an_incompatible_attempt_is_charged_its_own_time() -> None:
    bench = Bench(FakeTransport("vllm", failed(Kind.CLIENT, status=400)), good("ollama", (0.15, *STREAM)))
    await bench.run()
    (refused,) = [e for e in bench.told.of(AttemptEnded) if e.outcome.kind is Kind.INCOMPATIBLE]
    assert refused.duration_s < 0.1


async def test_a_bug_of_ours_is_told_as_one_and_the_next_target_answers() -> None:
    vllm = good("vllm")
    bench = Bench(vllm, good("ollama"))

    async def broken(request: WireRequest) -> Any:
        raise KeyError("oops")

    vllm.open = broken  # type: ignore[method-assign]  # the test breaks it on purpose
    assert await bench.run() == b"".join(STREAM)
    assert bench.end().outcome.kind is Kind.OK
    assert [e.part for e in bench.told.of(InternalError)] == ["engine"]
    assert bench.outcomes() == [("vllm", Kind.MALFORMED), ("ollama", Kind.OK)]


async def test_a_bug_of_ours_in_a_committed_stream_breaks_it_and_nothing_else() -> None:
    bench = Bench(good("vllm", (ROLE, HELLO, KeyError("oops"))), good("ollama"))
    with pytest.raises(StreamBroken):
        await bench.run()
    assert bench.end().outcome.kind is Kind.MALFORMED
    assert len(bench.told.of(InternalError)) == 1


async def test_an_unfinished_answer_of_the_last_target_is_passed_on_as_it_is() -> None:
    """Ollama's repeat guard: 200 without a finish."""
    body = b'{"model":"q","choices":[{"index":0,"message":{"content":"a a a"},"finish_reason":null}]}'
    bench = Bench(FakeTransport("vllm", failed(Kind.SERVER)), good("ollama", (body,)))
    exchange = await bench.engine.open(bench.call(stream=False))
    frame = await exchange.next()
    assert frame is not None
    assert (frame.data, await exchange.next()) == (body, None)
    await exchange.aclose()
    assert exchange.warnings == ("passed-on:unfinished",)
    assert bench.end().outcome.kind is Kind.TRUNCATED
    assert bench.outcomes() == [("vllm", Kind.SERVER), ("ollama", Kind.TRUNCATED)]


async def test_a_target_whose_breakers_are_open_is_not_blamed_and_not_named() -> None:
    vllm = good("vllm")
    vllm.refused, vllm.shut = "breaker-open", True
    bench = Bench(vllm, FakeTransport("ollama", failed(Kind.SERVER, status=500)))
    with pytest.raises(Unavailable) as caught:
        await bench.run()
    assert (caught.value.provider, caught.value.http_status) == ("ollama", 502)
    assert bench.end().attempts == 1
    assert bench.outcomes() == [("ollama", Kind.SERVER)]
    assert bench.told.of(FellBack) == []


async def test_when_every_breaker_is_open_it_is_said_at_once() -> None:
    vllm, ollama = good("vllm"), good("ollama")
    vllm.shut = ollama.shut = True
    bench = Bench(vllm, ollama)
    with pytest.raises(Unavailable, match="takes nothing now") as caught:
        await bench.run()
    assert (caught.value.http_status, caught.value.code) == (503, "ERR_5001")
    assert bench.end().attempts == 0


async def test_a_finish_that_was_delivered_is_a_success_however_the_body_ends() -> None:
    bench = Bench(good("vllm", (ROLE, HELLO, FINISH, failed(Kind.TRUNCATED))), good("ollama"))
    assert await bench.run() == ROLE + HELLO + FINISH
    assert bench.end().outcome.kind is Kind.OK


async def test_limits_are_measured_on_the_injected_clock() -> None:
    bench = Bench(good("vllm", (0.01, *STREAM)), good("ollama"))
    clock = ManualClock(1.0)
    bench.engine.clock = clock
    call = replace(bench.call(), accepted_at=1.0, deadline=6.0)
    exchange = await bench.engine.open(call)
    assert await exchange.next() is not None
    await exchange.aclose()


@pytest.mark.parametrize(("limit", "kind"), [("slice", Kind.TIMEOUT), ("total", Kind.CANCELLED)])
async def test_a_long_wait_in_vain_is_a_time_out_whoever_set_the_deadline(limit: str, kind: Kind) -> None:
    bench = Bench(FakeTransport("vllm", failed(Kind.TIMEOUT, code=limit)), good("ollama", WHOLE))
    clock = ManualClock(0.0)
    bench.engine.clock = clock
    slow = bench.vllm.open

    async def after_half_a_minute(request: WireRequest) -> Any:
        clock.advance(30.0)
        return await slow(request)

    bench.vllm.open = after_half_a_minute  # type: ignore[method-assign]  # the test breaks it on purpose
    exchange = await bench.engine.open(
        replace(bench.call(stream=False), accepted_at=0.0, deadline=60.0, own_deadline=True)
    )
    await exchange.aclose()
    assert bench.outcomes()[0] == ("vllm", kind)


SCRIPTS: list[Sequence[Step] | AttemptFailed] = [
    STREAM, (), (ROLE,), (ROLE, HELLO), (ROLE, HELLO, ERROR), (ROLE, HELLO, FINISH), (b"junk\n\n",), (KeyError("x"),),
    failed(Kind.CLIENT, status=400), failed(Kind.CONNECT), failed(Kind.SERVER),
    failed(Kind.SATURATED, retry_after_s=1.0), failed(Kind.CONFIG, status=404, code=MODEL_NOT_FOUND),
    (ROLE, 30.0), (ROLE, HELLO, 30.0),
]  # fmt: skip
scripts = st.lists(st.sampled_from(SCRIPTS), min_size=1, max_size=4)


@settings(max_examples=150)
@given(scripts, scripts, st.integers(0, 12), st.booleans(), st.integers(0, 2))
def test_whatever_happens_everything_that_started_ends_exactly_once(
    vllm: list[Any], ollama: list[Any], leave_after: int, fallback_model: bool, retries: int
) -> None:
    """Random back ends, random chains, and a client that leaves at a random step."""

    async def story() -> None:
        bench = Bench(FakeTransport("vllm", *vllm), FakeTransport("ollama", *ollama), retries=retries, backoff_s=0.001)
        if fallback_model:
            bench.with_fallback_model()
        task = asyncio.create_task(bench.run(wait_s=0.05))
        for _ in range(leave_after):
            await asyncio.sleep(0)
        if leave_after % 2:
            task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(result, bytes | LLMError | asyncio.CancelledError), result
        if bench.told.of(RequestStarted):
            bench.end()

    asyncio.run(story())


# --- what the guard is told -------------------------------------------------------------------------------------------


async def test_the_first_content_of_a_stream_is_told_once_and_of_whole_answers_nothing() -> None:
    bench = Bench(good("vllm"), good("ollama"))
    await bench.run()
    (began,) = bench.told.of(ContentBegan)
    (ended,) = bench.told.of(AttemptEnded)
    assert (began.provider, began.endpoint, began.request_id) == ("vllm", "http://vllm.test", "r")
    assert began.ttft_s == ended.ttft_s
    whole = Bench(good("vllm", WHOLE), good("ollama", WHOLE))
    await whole.run(stream=False)
    assert whole.told.of(ContentBegan) == []


async def test_when_it_was_agrees_with_how_long_it_took() -> None:
    bench = Bench(FakeTransport("vllm", failed(Kind.SERVER, status=500)), good("ollama", (ROLE, 0.01, *STREAM[1:])))
    clock = ManualClock(0.0)

    def looked_at() -> float:
        clock.advance(1 / 1024)  # else everything would be at once
        return clock()

    bench.engine.clock = looked_at
    answer = await bench.engine.open(replace(bench.call(), accepted_at=0.0, deadline=5.0))
    while await answer.next() is not None:
        pass
    await answer.aclose()
    began, ended = bench.told.of(AttemptStarted), bench.told.of(AttemptEnded)
    assert [end.at - start.at for start, end in zip(began, ended, strict=True)] == [end.duration_s for end in ended]
    (content,) = bench.told.of(ContentBegan)
    assert content.at - began[-1].at == content.ttft_s
    over = bench.end()
    assert over.at == over.duration_s
    assert 0 < began[0].at < ended[0].at < began[1].at < content.at < ended[1].at < over.at


async def test_a_refusal_that_waited_for_a_verdict_ended_when_it_did() -> None:
    bench = Bench(FakeTransport("vllm", failed(Kind.CLIENT, status=400)), good("ollama", (0.05, *STREAM)))
    await bench.run()
    refused = next(event for event in bench.told.of(AttemptEnded) if event.outcome.kind is Kind.INCOMPATIBLE)
    assert bench.told.events.index(refused) > bench.told.events.index(bench.told.of(AttemptStarted)[1])
    assert refused.at < bench.told.of(AttemptStarted)[1].at


async def test_the_content_that_a_fallback_gave_is_the_fallbacks() -> None:
    bench = Bench(FakeTransport("vllm", (ROLE,)), good("ollama"))
    await bench.run()
    assert [began.provider for began in bench.told.of(ContentBegan)] == ["ollama"]


@pytest.mark.parametrize(("content_after", "silent"), [(None, True), (0.01, False)])
async def test_who_leaves_tells_whether_anybody_got_anything_there(content_after: float | None, silent: bool) -> None:
    bench = Bench(FakeTransport("vllm", (ROLE, 30.0)), good("ollama"))
    told_at = float("-inf")
    bench.vllm.content_at = lambda endpoint: told_at  # type: ignore[method-assign]  # others' content
    bench.policy = replace(bench.policy, timeouts=dict.fromkeys(bench.policy.timeouts, Timeouts()))
    asking = asyncio.create_task(bench.run())
    while not bench.vllm.requests:
        await asyncio.sleep(0.001)
    if content_after is not None:
        told_at = asyncio.get_running_loop().time() + content_after
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    (ended,) = bench.told.of(AttemptEnded)
    assert (ended.outcome.kind, ended.silent) == (Kind.CANCELLED, silent)


@pytest.mark.parametrize(
    ("abandon_s", "content_at", "kind"),
    [(20.0, float("-inf"), Kind.TIMEOUT), (20.0, 15.0, Kind.CANCELLED), (40.0, float("-inf"), Kind.CANCELLED)],
)
async def test_how_long_is_too_long_is_the_guards_setting(abandon_s: float, content_at: float, kind: Kind) -> None:
    """And where others got content meanwhile, the caller was too impatient."""
    limits = GuardPolicy(default=Limits(abandon_s=99.0), components={"c": Limits(abandon_s=abandon_s)})
    bench = Bench(
        FakeTransport("vllm", failed(Kind.TIMEOUT, code="slice")), FakeTransport("ollama", WHOLE), guard=limits
    )
    clock = ManualClock(0.0)
    bench.engine.clock = clock
    bench.vllm.content_at = lambda endpoint: content_at  # type: ignore[method-assign]  # others' content
    slow = bench.vllm.open

    async def after_half_a_minute(request: WireRequest) -> Any:
        clock.advance(30.0)
        return await slow(request)

    bench.vllm.open = after_half_a_minute  # type: ignore[method-assign]  # the test breaks it on purpose
    exchange = await bench.engine.open(
        replace(bench.call(stream=False), accepted_at=0.0, deadline=60.0, own_deadline=True)
    )
    await exchange.aclose()
    assert bench.outcomes()[0] == ("vllm", kind)
