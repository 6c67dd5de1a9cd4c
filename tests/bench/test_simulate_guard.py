"""`scripts/simulate_guard`: the default limits keep what the README says of them, by the production code."""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from rich.console import Console

from memos_llm.bench.guard import bursts, counts, exact, faults, scenes
from memos_llm.bench.guard.__main__ import main
from memos_llm.bench.guard.plots import FRAMES, save
from memos_llm.bench.guard.results import Figure, Report, bound, dump, render, said
from memos_llm.core.outcome import Kind
from memos_llm.core.policy import Limits
from memos_llm.core.verdicts import Trigger
from memos_llm.guard.sequences import ErrorRun, mean_run_length, parameters

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "simulate_guard"
README = ROOT / "README.md"
DEFAULT = Limits()
RUN = parameters(0.05)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


# Exactly


def test_every_exact_figure_of_the_default_limits_holds() -> None:
    held = [figure for figure in exact.figures(DEFAULT) if figure.holds is not None]
    assert len(held) == 4
    assert all(figure.holds for figure in held)


def test_the_sequential_rule_is_silent_for_a_hundred_million_requests_at_3_percent() -> None:
    assert mean_run_length(0.03, RUN) >= 1e8


def test_it_rolls_back_one_good_candidate_of_ten_thousand_at_3_percent_and_fewer_below() -> None:
    assert exact.tripped_within(10_000, 0.03, RUN) == pytest.approx(7.7e-5, rel=0.02)
    assert exact.tripped_within(10_000, 0.02, RUN) == pytest.approx(4.2e-6, rel=0.02)


@pytest.mark.parametrize(("rate", "requests"), [(1.0, 6), (0.5, 15), (0.2, 122)])
def test_it_sees_a_fault_within(rate: float, requests: int) -> None:
    assert exact.detected_by(0.5, rate, RUN) == requests


def test_with_everything_failing_six_requests_are_always_enough() -> None:
    assert exact.detected_by(1.0, 1.0, RUN) == 6


@pytest.mark.parametrize("rate", [0.02, 0.03, 0.04])
def test_the_chain_and_the_mean_run_length_agree(rate: float) -> None:
    """After the first few requests, trips come as by chance: about n / mean of them within n."""
    assert exact.tripped_within(10_000, rate, RUN) == pytest.approx(10_000 / mean_run_length(rate, RUN), rel=0.05)


def test_the_chain_is_that_of_the_production_code(rng: np.random.Generator) -> None:
    lengths = [faults.feed(ErrorRun(RUN), rng.random(2000) < 0.5, 0) for _ in range(2000)]
    within = [sum(n is not None and n < most for n in lengths) / len(lengths) for most in (10, 15, 20, 30)]
    assert within == pytest.approx([exact.tripped_within(most, 0.5, RUN) for most in (10, 15, 20, 30)], abs=0.04)


# Drawn: few runs here, all of them in the slow test


def test_a_good_candidate_is_left_alone(rng: np.random.Generator) -> None:
    assert faults.endure(rng, DEFAULT, 0.02, 100, 500_000, 10_000) == 0
    assert counts.false_alarms(rng, DEFAULT, 0.03, 10, 10_000, 300) == 0


def test_a_bad_one_is_not(rng: np.random.Generator) -> None:
    assert counts.false_alarms(rng, DEFAULT, 0.10, 10, 10_000, 20) == 20


@pytest.mark.parametrize(("rate", "requests"), [(1.0, 6), (0.5, 18), (0.2, 150)])
def test_faults_are_seen_by_both_rules_together(rng: np.random.Generator, rate: float, requests: int) -> None:
    """With room for the few runs; the least is what either needs."""
    seen = [one.requests for one in faults.detect(rng, DEFAULT, rate, 10, 200, 5_000) if one]
    assert len(seen) == 200
    assert median(seen) <= requests


def test_a_small_fault_is_seen_by_the_window(rng: np.random.Generator) -> None:
    seen = faults.detect(rng, DEFAULT, 0.10, 1, 40, 5_000)
    assert all(seen)
    assert sum(one.by_window for one in seen if one) > 30


@pytest.mark.parametrize("quick", [False, True])
def test_a_stall_is_one_event(rng: np.random.Generator, quick: bool) -> None:
    assert [scenes.stall(rng, DEFAULT, 300, 0.01, quick) for _ in range(8)] == [None] * 8


def test_a_stall_that_does_not_end_is_seen(rng: np.random.Generator) -> None:
    """The same callers, and nothing but failures after it."""
    fired = scenes.stall(rng, DEFAULT, 300, 1.0, True)
    assert fired is not None


def test_quick_errors_do_not_outrun_slow_answers(rng: np.random.Generator) -> None:
    assert [scenes.quick_errors(rng, DEFAULT, 0.02, 50, 20.0) for _ in range(10)] == [None] * 10
    assert scenes.quick_errors(rng, DEFAULT, 0.5, 50, 20.0) is not None


@pytest.mark.parametrize("per_s", [4, 10, 50])
def test_slow_answers_are_seen_within_5_s_after_the_limit(rng: np.random.Generator, per_s: int) -> None:
    for _ in range(4):
        took_s = scenes.slowness(rng, DEFAULT, per_s, steady=True, window=True)
        assert took_s is not None
        assert 0 < took_s <= 5


def test_bursts_of_slowness_are_borne_and_steady_slowness_is_not(rng: np.random.Generator) -> None:
    burst = bursts.Weather(mean=0.02, inside=0.30, burst_s=5)
    assert [bursts.play(rng, DEFAULT, burst, 10, 1000) for _ in range(50)] == [None] * 50
    assert all(bursts.play(rng, DEFAULT, bursts.Weather(0.2), 10, 300) for _ in range(10))


def test_bursts_are_as_many_as_they_should_be(rng: np.random.Generator) -> None:
    burst = bursts.Weather(mean=0.02, inside=0.30, burst_s=5)
    assert np.mean([bursts.parts(rng, burst, 2000) for _ in range(200)]) == pytest.approx(0.02, rel=0.1)


def test_a_request_a_minute_is_enough(rng: np.random.Generator) -> None:
    for kind, trigger in (
        (Kind.SERVER, Trigger.ERROR_RUN),
        (Kind.TIMEOUT, Trigger.TIMEOUTS),
        (Kind.OK, Trigger.LATENCY_RUN),
    ):
        fired = scenes.few(rng, DEFAULT, 1.0, kind, 3.0)
        assert fired is not None
        assert fired.trigger == trigger


# What the README says

CLOSE = 0.25  # what is drawn is stated in short, and another order of drawing may change it a little
FALSE, SEEN, SCENES = 0, 1, 2  # the section's tables
POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


def section() -> str:
    return README.read_text().split("### How sure the guard is\n")[1].split("\n### ")[0]


def table(number: int) -> dict[str, list[str]]:
    """Its rows: the first cell, and the others."""
    found = [block for block in section().split("\n\n") if block.startswith("|")][number]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.strip().splitlines()[2:]]
    return {first: rest for first, *rest in rows}


def power(text: str) -> float:
    """`8·10⁶`"""
    found = re.fullmatch(r"(?:(?:([\d.]+)·)?10([⁰¹²³⁴⁵⁶⁷⁸⁹]+)|([\d,]+))", text)
    assert found, text
    factor, exponent, plain = found.groups()
    return float(plain.replace(",", "")) if plain else float(factor or 1) * 10.0 ** int(exponent.translate(POWERS))


def numbers(cell: str) -> list[float]:
    """All but rates."""
    return [float(text.replace(",", "")) for text in re.findall(r"\d[\d,]*(?:\.\d+)?", re.sub(r"\d+/s", "", cell))]


def test_the_readme_states_the_mean_run_between_false_trips() -> None:
    rows = table(FALSE)
    assert len(rows) == 4
    for failing, (*_, between) in rows.items():
        assert power(between) == pytest.approx(mean_run_length(numbers(failing)[0] / 100, RUN), rel=0.05)


def test_the_readme_states_how_often_three_time_outs_come_by_chance() -> None:
    means = {figure.case: figure.value for figure in exact.figures(DEFAULT) if "time-outs in a row" in figure.name}
    said = section().split("come by chance too: ")[1].split("\n")[0]
    stated = re.findall(r"in (\S+)(?: requests)? (?:when|at) ([\d.]+) %", said)
    assert {f"{rate} % timing out": power(mean) for mean, rate in stated} == pytest.approx(means, rel=0.05)


# What is shown


def figure(value: float | None = 0.1, **held: float) -> Figure:
    return Figure(section="s", case="c", name="n", value=value, unit="part", **held)  # type: ignore[arg-type]  # floats only


def test_a_figure_holds_by_its_value_or_by_its_bound() -> None:
    assert figure().holds is None
    assert figure(at_most=0.2).holds is True
    assert figure(at_least=0.2).holds is False
    assert figure(None, at_most=0.2).holds is False
    assert (
        Figure(section="s", case="c", name="n", value=0.1, high=0.3, unit="part", at_most=0.2, bound=True).holds
        is False
    )


def test_nothing_in_three_hundred_is_up_to_one_in_a_hundred() -> None:
    assert bound(0, 300) == pytest.approx(0.00994, rel=0.01)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.000077, "part", "0.0077 %"),
        (0.5, "part", "50.0 %"),
        (1.3e8, "requests", "1.3e+08 requests"),
        (None, "s", "never"),
    ],
)
def test_figures_are_said_in_short(value: float | None, unit: str, text: str) -> None:
    assert said(value, unit) == text


@pytest.fixture
def report() -> Report:
    figures = (*exact.figures(DEFAULT), figure(at_most=0.05))
    return Report(seed=1, seconds=2.0, figures=figures, points=tuple(exact.points(DEFAULT)))


def test_a_report_says_what_does_not_hold(report: Report) -> None:
    console = Console(width=160, record=True, file=StringIO())
    console.print(render(report))
    text = console.export_text()
    assert "4 of 5 figures hold" in text
    assert text.count("BROKEN") == 1
    assert not report.holds
    assert len(json.loads(dump(report))["figures"]) == len(report.figures)


@pytest.mark.parametrize(("seconds", "slow"), [(299.0, False), (301.0, True)])
def test_a_report_says_when_it_took_longer_than_promised(report: Report, seconds: float, slow: bool) -> None:
    console = Console(width=160, record=True, file=StringIO())
    console.print(render(replace(report, seconds=seconds)))
    assert ("SLOW" in console.export_text()) is slow


def test_pictures_are_drawn(report: Report, tmp_path: Path) -> None:
    paths = save(report, tmp_path / "plots")
    assert [path.name for path in paths] == [f"{name}.png" for name in FRAMES]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_help_teaches() -> None:
    found = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True, timeout=30)
    assert "usage: scripts/simulate_guard" in found.stdout
    assert found.stdout.strip().endswith("as PNG")


# All of it


class Found:
    """The figures of a run."""

    def __init__(self, figures: Sequence[Mapping[str, Any]]) -> None:
        self._figures = figures

    def all(self, *parts: str, name: str) -> list[Mapping[str, Any]]:
        """Those whose case holds these parts, in order."""
        cases = [figure for figure in self._figures if figure["name"].endswith(name)]
        return [figure for figure in cases if all(part in figure["case"] for part in parts)]

    def values(self, *parts: str, name: str) -> list[float]:
        return [figure["value"] for figure in self.all(*parts, name=name)]

    def hits(self, *parts: str) -> list[float]:
        """Of those, rolled back, and of how many."""
        found = self.all(*parts, name="rolled back")
        return [count for figure in found for count in (figure["value"] * figure["runs"], figure["runs"])]

    def highs(self, *parts: str) -> list[float]:
        return [figure["high"] * 100 for figure in self.all(*parts, name="rolled back")]

    def scenes(self) -> list[list[float]]:
        """What the README says of each, in its order."""
        young, old = (self.hits("3 s stall", f"epoch {age_s} s") for age_s in (65, 305))
        quick, bursts = ("30 s answers", "first 20 s"), ("in bursts of 5 s",)
        late = [
            self.values("all slow", how, name=name) for how in ("evenly", "chance") for name in ("median", "longest")
        ]
        start = self.values(" slow from an epoch's start", name="median to verdict")
        minutes = [self.values(case, name="median to verdict") for case in FEW_CASES]
        return [
            [sum(young[::2]), sum(young[1::2])],
            [sum(old[::2]), sum(old[1::2])],
            self.hits("3 s stall", "epoch 10 s"),
            self.hits(*quick) + self.highs(*quick),
            self.hits(*bursts) + self.highs(*bursts),
            late[0] + late[1],
            late[2] + late[3],
            start[:2],
            minutes[0] + minutes[1] + minutes[2],
            minutes[3] + minutes[4],
        ]


FEW_CASES = ("100 % failing", "100 % timing out after", "100 % slow", "50 % failing", "20 % failing")


@pytest.mark.slow
def test_every_figure_holds_and_the_readme_states_it(tmp_path: Path) -> None:
    assert main(["-o", str(tmp_path / "figures.json"), "--plots", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "figures.json").read_bytes())["figures"]
    assert sum(figure["at_most"] is not None or figure["at_least"] is not None for figure in figures) > 40
    found = Found(figures)
    false_rollbacks_are_stated(found)
    detection_is_stated(found)
    scenes_are_stated(found)


def false_rollbacks_are_stated(found: Found) -> None:
    for failing, (*cells, _) in table(FALSE).items():
        for cell, per_s in zip(cells, (1, 10, 100), strict=True):
            (figure,) = found.all(f"{failing} failing, {per_s}/s", name="rolled back")
            stated, high = numbers(cell)
            seen = figure["runs"] if "none of" in cell else figure["value"] * 100
            assert [stated, high] == pytest.approx([seen, figure["high"] * 100], rel=CLOSE), (failing, per_s)
            assert "none of" not in cell or figure["value"] * figure["runs"] < 0.5


def detection_is_stated(found: Found) -> None:
    rows = table(SEEN)
    assert len(rows) == 5
    for failing, cells in rows.items():
        for cell, per_s in zip(cells, (1, 10, 100), strict=True):
            case = f"{failing} failing, {per_s}/s"
            seen = found.values(case, name="median") + found.values(case, name="95 % within")
            assert numbers(cell) == pytest.approx(seen, rel=CLOSE), case


def scenes_are_stated(found: Found) -> None:
    for (what, (then,)), seen in zip(table(SCENES).items(), found.scenes(), strict=True):
        assert numbers(then) == pytest.approx(seen, rel=CLOSE), what
