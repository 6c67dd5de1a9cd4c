"""One line per request and per notable event, off the path, with nothing in it that anyone wrote."""

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from msgspec.structs import replace

from memos_llm.core.call import Operation, Target, Usage, Wire
from memos_llm.core.decision import Arm, Decision, Reason
from memos_llm.core.events import (
    BreakerChanged,
    ConfigChanged,
    ConfigRejected,
    Event,
    FellBack,
    FlagsChanged,
    InternalError,
    ProbeEnded,
    RequestEnded,
    RequestRefused,
    RequestStarted,
)
from memos_llm.core.flags import Flags, Latch, Scope
from memos_llm.core.outcome import OK, Kind, Outcome
from memos_llm.telemetry.logs import WHOLE_BYTES, RequestLog, configure, say

AT = 1_700_000_000.25
CANARY = "canary-31337"
DECISION = Decision(
    arm=Arm.CANDIDATE, targets=(Target("vllm", "Q"),), reason=Reason.SPLIT, scope="*", epoch=2, revision=7
)


def ended(
    request_id: str = "r1", outcome: Outcome = OK, model: str = "qwen3:8b", warnings: tuple[str, ...] = ()
) -> RequestEnded:
    return RequestEnded(
        request_id=request_id,
        decision=DECISION,
        provider="vllm",
        component="synthesis",
        model=model,
        operation=Operation.CHAT,
        outcome=outcome,
        attempts=1,
        stream=True,
        duration_s=1.5,
        ttft_s=0.25,
        tpot_s=0.0125,
        usage=Usage(10, 20),
        warnings=warnings,
        wire=Wire.OPENAI_CHAT,
        at=1.5,
    )


def probe(up: bool, endpoint: str = "http://v:1") -> ProbeEnded:
    return ProbeEnded(provider="vllm", endpoint=endpoint, up=up, detail=CANARY, models=(CANARY,), version=CANARY)


class Output(io.StringIO):
    """A stderr that can be blocked, as a full pipe is."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def write(self, text: str) -> int:
        self.gate.wait()
        return super().write(text)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def output() -> Iterator[Output]:
    stream = Output()
    configure("INFO", stream)
    yield stream
    stream.gate.set()
    structlog.reset_defaults()


def written(output: Output, *events: Event) -> list[dict[str, Any]]:
    log = RequestLog(clock=lambda: AT)
    for event in events:
        log.on_event(event)
    log.close()
    return output.lines()


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_request_is_one_line(output: Output) -> None:
    assert written(output, ended(warnings=("max_tokens",))) == [
        {
            "time": "2023-11-14T22:13:20.250Z",
            "event": "request",
            "level": "info",
            "request_id": "r1",
            "provider": "vllm",
            "arm": "candidate",
            "reason": "split",
            "component": "synthesis",
            "model": "qwen3:8b",
            "operation": "chat",
            "outcome": "ok",
            "attempts": 1,
            "stream": True,
            "duration_ms": 1500.0,
            "ttft_ms": 250.0,
            "tpot_ms": 12.5,
            "input_tokens": 10,
            "output_tokens": 20,
            "warnings": 1,
            "epoch": 2,
            "revision": 7,
        }
    ]


@pytest.mark.parametrize(
    ("kind", "level"), [(Kind.OK, "info"), (Kind.CANCELLED, "info"), (Kind.CLIENT, "info"), (Kind.TIMEOUT, "warning")]
)
def test_a_failure_of_the_provider_is_a_warning(output: Output, kind: Kind, level: str) -> None:
    assert written(output, ended(outcome=Outcome(kind=kind, code="x")))[0]["level"] == level


def test_a_provider_that_goes_down_is_told_with_what_failed(output: Output) -> None:
    down = ProbeEnded(provider="vllm", endpoint="http://v:1", up=False, failure="connect")
    (line,) = written(output, down)
    assert (line["event"], line["up"], line["failure"]) == ("provider", False, "connect")


def test_notable_events_are_lines(output: Output) -> None:
    latch = Latch(provider="vllm", since=1.0, incident="i", holddown_until=1.0)
    flags = Flags(installation="i", revision=3, salt="s", scopes={"*": Scope(share_ppm=0, epoch=1, latch=latch)})
    lines = written(
        output,
        FlagsChanged(flags=flags),
        BreakerChanged(provider="vllm", endpoint="http://v:1", state="open"),
        FellBack(request_id="r1", from_provider="vllm", to_provider="ollama", reason="timeout"),
        InternalError(part="metrics", error="ValueError"),
        InternalError(part="gateway", error="ValueError", where="memos_llm.gateway.inference:87"),
        RequestRefused(request_id="r2", status=503, error_name="LLM_OVERLOADED", error_code="ERR_5104"),
    )
    told = [{name: value for name, value in line.items() if name != "time"} for line in lines]
    assert told == [
        {"event": "flags", "level": "warning", "revision": 3, "shares": {"*": 0.0}, "latched": ["*"]},
        {"event": "breaker", "level": "warning", "provider": "vllm", "endpoint": "http://v:1", "state": "open"},
        {
            "event": "fallback",
            "level": "warning",
            "request_id": "r1",
            "from": "vllm",
            "to": "ollama",
            "reason": "timeout",
        },
        {"event": "internal-error", "level": "error", "part": "metrics", "error": "ValueError"},
        {
            "event": "internal-error",
            "level": "error",
            "part": "gateway",
            "error": "ValueError",
            "where": "memos_llm.gateway.inference:87",
        },
        {
            "event": "refused",
            "level": "info",
            "request_id": "r2",
            "status": 503,
            "error": "LLM_OVERLOADED",
            "code": "ERR_5104",
        },
    ]


def test_a_reload_is_a_line_and_a_refused_one_is_an_error_with_every_reason(output: Output) -> None:
    taken = ConfigChanged(
        path="my.yaml",
        changed=True,
        generation=2,
        providers=("ollama", "vllm"),
        endpoints=(("ollama", "http://o:1"), ("vllm", "http://v:1")),
        candidate="vllm",
        components=("default",),
        models=("m",),
    )
    errors = ("my.yaml:3: retries: must be greater than or equal to 0, not -1", "my.yaml:7: prot: unknown key")
    lines = written(output, taken, replace(taken, waiting=("store",)), ConfigRejected(path="my.yaml", errors=errors))
    told = [{name: value for name, value in line.items() if name != "time"} for line in lines]
    taken_line = {
        "event": "config",
        "level": "info",
        "path": "my.yaml",
        "changed": True,
        "generation": 2,
        "providers": ["ollama", "vllm"],
    }
    assert told == [
        taken_line,
        taken_line | {"level": "warning", "needs_restart": ["store"]},
        {
            "event": "config-rejected",
            "level": "error",
            "path": "my.yaml",
            "kept": "the one in force",
            "errors": list(errors),
        },
    ]


def test_a_workers_lines_say_which(output: Output) -> None:
    configure("INFO", output, worker="3")
    assert [line["worker"] for line in written(output, ended(), ended("r2"))] == ["3", "3"]


def test_lines_reach_a_pipe_that_others_write_to_whole() -> None:
    class Pipe(io.StringIO):
        def __init__(self) -> None:
            super().__init__()
            self.pieces: list[str] = []

        def write(self, text: str) -> int:
            self.pieces.append(text)
            return super().write(text)

    pipe = Pipe()
    configure("INFO", pipe)
    log = RequestLog(clock=lambda: AT)
    for number in range(100):
        log.on_event(ended(f"r{number}", model="ü" * number))
    log.close()
    structlog.reset_defaults()
    assert [json.loads(line)["request_id"] for line in pipe.getvalue().splitlines()] == [f"r{n}" for n in range(100)]
    assert all(piece.endswith("\n") and len(piece.encode()) <= WHOLE_BYTES for piece in pipe.pieces)
    assert len(pipe.pieces) < 50


def test_a_line_may_be_written_without_a_bus_or_a_thread() -> None:
    stream = io.StringIO()
    say("error", "worker-died", {"worker": "1"}, stream)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["worker"]) == ("worker-died", "error", "1")
    assert line["time"].endswith("Z")


def test_only_a_probe_that_changes_something_is_a_line(output: Output) -> None:
    lines = written(
        output, probe(True), probe(True), probe(False), probe(False), probe(False, "http://v:2"), probe(True)
    )
    assert [(line["endpoint"][-1], line["up"], line["level"]) for line in lines] == [
        ("1", True, "info"),
        ("1", False, "warning"),
        ("2", False, "warning"),
        ("1", True, "info"),
    ]


def test_a_started_request_is_no_line(output: Output) -> None:
    event = RequestStarted(request_id="r", decision=DECISION, component="c", model="m", operation=Operation.CHAT)
    assert written(output, event) == []


def test_free_text_of_anyone_never_gets_here(output: Output) -> None:
    written(output, ended(warnings=(CANARY,)), probe(True))
    assert output.getvalue().count("\n") == 2
    assert CANARY not in output.getvalue()


def test_a_made_up_name_can_neither_flood_nor_forge_a_line(output: Output) -> None:
    lines = written(output, ended(model='x\n{"event":"forged"}' + "y" * 10_000))
    assert len(lines) == 1
    assert len(lines[0]["model"]) < 250


def test_the_level_is_kept(output: Output) -> None:
    configure("ERROR", output)
    assert [line["event"] for line in written(output, ended(), InternalError(part="p", error="E"))] == [
        "internal-error"
    ]


def test_lines_are_written_by_another_thread_soon(output: Output) -> None:
    log = RequestLog()
    for number in range(200):
        log.on_event(ended(f"r{number}"))
    wait_until(lambda: len(output.lines()) == 200)
    log.on_event(ended("later"))
    wait_until(lambda: len(output.lines()) == 201)
    log.close()
    assert [line["request_id"] for line in output.lines()][:200] == [f"r{number}" for number in range(200)]


def test_a_blocked_output_never_blocks_a_request_and_what_is_lost_is_counted_and_told(output: Output) -> None:
    log = RequestLog(capacity=10)
    output.gate.clear()
    log.on_event(ended("first"))
    start = time.monotonic()
    for _ in range(500):
        log.on_event(ended())
    assert time.monotonic() - start < 1
    assert log.dropped >= 480
    assert not log.flush(timeout_s=0.2)
    output.gate.set()
    log.close()
    assert output.lines()[-1]["event"] == "log-lines-dropped"
    assert output.lines()[-1]["total"] == log.dropped
    assert len(output.lines()) + log.dropped == 502


def test_close_does_not_hang_on_a_blocked_output(output: Output) -> None:
    log = RequestLog()
    output.gate.clear()
    log.on_event(ended())
    start = time.monotonic()
    log.close(timeout_s=0.1)
    assert time.monotonic() - start < 2


def test_flush_writes_at_once_and_close_may_be_repeated(output: Output) -> None:
    log = RequestLog()
    log.on_event(ended())
    assert log.flush()
    assert len(output.lines()) == 1
    log.close()
    log.close()
    log.on_event(ended())
    assert log.dropped == 1


def test_a_closed_output_does_not_end_the_thread(output: Output) -> None:
    broken = Output()
    broken.close()
    configure("INFO", broken)
    log = RequestLog()
    log.on_event(ended())
    log.flush()
    assert log.dropped >= 1
    configure("INFO", output)
    log.on_event(ended())
    log.close()
    assert "request" in [line["event"] for line in output.lines()]


def test_importing_configures_nothing() -> None:
    code = "import structlog, memos_llm.telemetry.logs; raise SystemExit(structlog.is_configured())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
