"""What the guard does and says: a line where something changes, gauges of the windows, a counter of rollbacks."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from memos_llm.core.commands import Incident
from memos_llm.core.events import Event, GuardBlind, GuardSaid, IncidentOpened, RollbackHeld
from memos_llm.core.verdicts import ArmWindow, Evaluation, Sum, Trigger, Verdict
from memos_llm.telemetry.logs import RequestLog, configure
from memos_llm.telemetry.metrics import Metrics

INCIDENT = Incident(
    id="inc-0123456789ab",
    at=1_700_000_000.0,
    provider="vllm",
    scope="synthesis",
    also=("analysis",),
    trigger="error_run",
    reason="free text of an operator",
    actor="gateway-a-1",
    revision=8,
    epoch=3,
    shares_before={"*": 0.5},
    shares_after={"*": 0.5, "synthesis": 0.0},
    rule="6 of 6 requests in a row failed",
    limit=0.05,
    n=6,
    k=6,
)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure(stream=stream)
    yield stream
    structlog.reset_defaults()


def written(stream: io.StringIO, *events: Event) -> list[dict[str, Any]]:
    log = RequestLog()
    for event in events:
        log.on_event(event)
    log.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def said(verdict: Verdict, component: str = "synthesis", reason: str = "") -> GuardSaid:
    one = Evaluation(
        trigger=Trigger.ERROR_RATE,
        sum=Sum(provider="vllm", component=component),
        verdict=verdict,
        reason=reason or ("over-limit" if verdict is Verdict.FAIL else "within"),
        text="9 of 60 requests failed",
        n=60,
        k=9,
        limit=0.05,
    )
    return GuardSaid(at=1_700_000_000.0, evaluations=(one,), windows=())


def test_a_rollback_is_an_error_with_the_numbers_and_without_anyones_words(lines: io.StringIO) -> None:
    (line,) = written(lines, IncidentOpened(incident=INCIDENT))
    assert (line["level"], line["event"], line["incident"]) == ("error", "rollback", INCIDENT.id)
    assert (line["scope"], line["also"], line["trigger"]) == ("synthesis", ["analysis"], "error_run")
    assert (line["n"], line["k"], line["limit"], line["rule"]) == (6, 6, 0.05, INCIDENT.rule)
    assert "free text" not in json.dumps(line)


def test_what_is_held_and_what_it_is_blind_to_are_lines(lines: io.StringIO) -> None:
    held = RollbackHeld(provider="vllm", scope="*", trigger="error_rate", why="baseline-down", detail="ollama is down")
    first, second, third = written(lines, held, GuardBlind(what="lag", detail="late"), GuardBlind(what=""))
    assert (first["level"], first["event"], first["why"]) == ("warning", "rollback-held", "baseline-down")
    assert (second["level"], second["event"], second["what"]) == ("warning", "guard-blind", "lag")
    assert (third["level"], third["what"]) == ("info", "nothing any more")


def test_a_verdict_is_a_line_when_it_fires_and_when_it_no_longer_does(lines: io.StringIO) -> None:
    found = written(
        lines,
        *(said(Verdict.PASS), said(Verdict.INCONCLUSIVE), said(Verdict.FAIL), said(Verdict.FAIL)),
        *(said(Verdict.FAIL), said(Verdict.PASS), said(Verdict.PASS)),
    )
    assert [(line["event"], line["level"], line["verdict"]) for line in found] == [
        ("verdict", "warning", "fail"),
        ("verdict", "info", "pass"),
    ]
    assert (found[0]["component"], found[0]["trigger"], found[0]["k"]) == ("synthesis", "error_rate", 9)


def test_what_is_surely_over_but_not_surely_enough_is_a_line_when_it_comes_and_when_the_rule_is_kept_again(
    lines: io.StringIO,
) -> None:
    reasons = ["unsure", "unsure-over", "unsure-over", "unsure", "unresolved", "unsure-over", "within", "unsure"]
    found = written(
        lines,
        *(said(Verdict.PASS if one == "within" else Verdict.INCONCLUSIVE, reason=one) for one in reasons),
        *(said(Verdict.INCONCLUSIVE, reason="unsure-over"), said(Verdict.FAIL), said(Verdict.FAIL)),
        *(said(Verdict.INCONCLUSIVE, reason="unsure-over"), said(Verdict.INCONCLUSIVE, reason="no-data")),
    )
    assert [(line["level"], line["verdict"], line["reason"]) for line in found] == [
        ("warning", "inconclusive", "unsure-over"),
        ("info", "pass", "within"),
        ("warning", "inconclusive", "unsure-over"),
        ("warning", "fail", "over-limit"),
        ("warning", "inconclusive", "unsure-over"),
        ("info", "inconclusive", "no-data"),
    ]


def test_names_that_callers_make_up_cannot_flood(lines: io.StringIO) -> None:
    (line,) = written(lines, said(Verdict.FAIL, "x" * 10_000))
    assert len(line["component"]) < 300


def arm(provider: str, component: str = "", model: str = "", n: int = 50, p95_ms: float | None = 800.0) -> ArmWindow:
    return ArmWindow(
        provider=provider,
        component=component,
        model=model,
        since=0.0,
        until=300.0,
        n=n,
        ended=n,
        failures=n // 10,
        slow=0,
        timed=n,
        p95_ms=p95_ms,
    )


def exposed(metrics: Metrics) -> set[str]:
    body, _ = metrics.render()
    return {line for line in body.decode().splitlines() if "rollbacks_total" in line or "_window_" in line}


def test_the_windows_are_gauges_and_what_is_over_is_shown_no_more() -> None:
    metrics = Metrics(candidate="vllm", components=["synthesis"])
    windows = (arm("vllm"), arm("vllm", "synthesis"), arm("vllm", model="qwen3:8b"), arm("ollama", n=0, p95_ms=None))
    metrics.on_event(GuardSaid(at=1.0, evaluations=(), windows=windows))
    shown = exposed(metrics)
    assert 'memos_llm_window_requests{component="*",provider="vllm"} 50.0' in shown
    assert 'memos_llm_window_error_ratio{component="synthesis",provider="vllm"} 0.1' in shown
    assert 'memos_llm_window_latency_p95_seconds{component="*",provider="vllm"} 0.8' in shown
    assert 'memos_llm_window_requests{component="*",provider="ollama"} 0.0' in shown
    assert not [line for line in shown if 'provider="ollama"' in line and "_requests{" not in line], "of none no ratio"
    metrics.on_event(GuardSaid(at=2.0, evaluations=(), windows=(arm("vllm"),)))
    assert not [line for line in exposed(metrics) if "synthesis" in line]


def test_rollbacks_are_counted_by_who_opened_them_from_nought_on() -> None:
    metrics = Metrics(candidate="vllm")
    assert 'memos_llm_rollbacks_total{provider="vllm",trigger="error_run"} 0.0' in exposed(metrics)
    metrics.on_event(IncidentOpened(incident=INCIDENT))
    assert 'memos_llm_rollbacks_total{provider="vllm",trigger="error_run"} 1.0' in exposed(metrics)
