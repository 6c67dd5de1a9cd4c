"""From samples to figures: costs per unit, ratios within a round, and the verdict."""

import io

import msgspec
import pytest
from rich.console import Console

from memos_llm.bench.results import Report, Sample, Unit, dump, exceeding, figures, of_median, percentile, render

REQUEST = Unit(name="request", phases=("requests",), limited=True)
EVENT = Unit(name="event", phases=("short", "long"), limited=True)
GUARD = Unit(name="guard", phases=("guard",), subject="guarded", reference="unguarded", limit_us=10)


def requests(subject: str, cpu_us: int, answers: int = 100) -> Sample:
    return Sample(subject=subject, phase="requests", answers=answers, cpu_ns=cpu_us * answers * 1000, took_s=1)


def streams(subject: str, setup_us: int, event_us: int) -> list[Sample]:
    return [
        Sample(
            subject=subject,
            phase=phase,
            answers=10,
            events=10 * events,
            cpu_ns=10 * (setup_us + event_us * events) * 1000,
            took_s=1,
        )
        for phase, events in (("short", 4), ("long", 54))
    ]


def a_round(factor: int = 2) -> list[Sample]:
    direct = [requests("direct", 0), *streams("direct", 0, 0)]
    passthrough = [requests("passthrough", 100), *streams("passthrough", 300, 20)]
    return [*direct, *passthrough, requests("gateway", 100 * factor), *streams("gateway", 900, 20 * factor)]


def test_the_cost_of_a_request_is_cpu_time_divided_by_answers() -> None:
    (figure,) = figures([a_round()], [REQUEST])
    assert (figure.reference_us, figure.subject_us, figure.ratio) == ([100], [200], 2)


def test_the_cost_of_an_event_is_the_slope_so_that_what_a_stream_costs_is_not_in_it() -> None:
    (figure,) = figures([a_round()], [EVENT])
    assert figure.reference_us == pytest.approx([20])
    assert figure.subject_us == pytest.approx([40])


def test_ratios_are_taken_within_a_round_and_the_median_speaks() -> None:
    (figure,) = figures([a_round(2), a_round(9), a_round(3)], [REQUEST])
    assert figure.ratios == [2, 9, 3]
    assert figure.ratio == 3


def test_the_verdict_names_what_is_over_the_limit() -> None:
    found = figures([a_round(3)], [REQUEST, EVENT])
    assert exceeding(found, 2.5) == ["request", "event"]
    assert exceeding(found, 3.1) == []


def test_what_has_no_limit_is_never_over_it() -> None:
    shown_only = Unit(name="request", phases=("requests",))
    assert exceeding(figures([a_round(9)], [shown_only]), 2.5) == []


def switched(*added_us: int) -> list[list[Sample]]:
    """Pairs in which a request costs 250 µs, and so much more with the guard."""
    parts = [
        (Sample(subject="unguarded", phase="guard", answers=100, cpu_ns=100 * 250_000, took_s=1), more)
        for more in added_us
    ]
    return [
        [without, msgspec.structs.replace(without, subject="guarded", cpu_ns=100 * (250 + more) * 1000)]
        for without, more in parts
    ]


def test_what_comes_and_goes_is_judged_by_the_difference_that_it_makes() -> None:
    (figure,) = figures(switched(8, 30, 7), [GUARD])
    assert (figure.differences_us, figure.difference_us, figure.ratio) == ([8, 30, 7], 8, 258 / 250)
    assert exceeding([figure], 1.0) == []
    assert exceeding(figures(switched(11), [GUARD]), 9.0) == ["guard"]


def test_what_is_used_beside_the_work_is_added_to_the_difference() -> None:
    rounds = switched(8, 8)
    for samples, beside_us in zip(rounds, (1, 4), strict=True):
        samples.append(Sample(subject="guarded", phase="guard-beside", answers=500, cpu_ns=500_000 * beside_us))
    (figure,) = figures(rounds, [GUARD])
    assert (figure.beside_us, figure.difference_us) == ([1, 4], 10.5)
    assert exceeding([figure], 9.0) == ["guard"]


def test_a_median_lies_between_two_of_the_values_that_are_far_enough_from_the_ends() -> None:
    assert of_median([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert of_median([float(value) for value in range(1, 31)]) == (10.0, 21.0)


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.95) == 3.0
    assert percentile([], 0.5) == 0.0


def test_a_report_is_json_that_reads_back_and_a_table_that_says_what_failed() -> None:
    rounds = [a_round(3) + switched(12)[0]]
    report = Report(
        version=1,
        machine={"cpus": 2},
        settings={"rounds": 1},
        max_ratio=2.5,
        passed=False,
        figures=figures(rounds, [REQUEST, EVENT, GUARD]),
        background_ms_per_s={"gateway": 1.0},
        rounds=rounds,
    )
    assert msgspec.json.decode(dump(report), type=Report) == report
    shown = io.StringIO()
    Console(width=120, file=shown).print(render(report))
    assert "FAILED: over 2.5 times the pass-through: request, event; guard (over 10 µs)" in shown.getvalue()
    assert "+12.0 to +12.0" in shown.getvalue()
