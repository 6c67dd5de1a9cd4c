"""From samples to figures, and from figures to a verdict. Pure.

A *sample* is one phase of one subject in one round. A *figure* is the cost of one unit of work: what the subject used
in each round, and how that compares with its reference in the same round. The cost of an event is the slope between
long and short streams, so that what a request costs is not in it. A limit judges the median, of the ratios or of the
differences. What is judged by differences is sampled many times a round, for they are small; what the subject uses
beside its work, measured by itself, is added to their median.
"""

import os
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from math import floor, sqrt
from statistics import median

import msgspec
from msgspec import Struct
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


class Sample(Struct, frozen=True, kw_only=True):
    """One phase. CPU in nanoseconds, times in seconds; `reads`: pieces in which the client got the answers."""

    subject: str
    phase: str
    answers: int
    cpu_ns: int
    client_cpu_ns: int = 0
    upstream_cpu_ns: int = 0
    events: int = 0
    reads: int = 0
    took_s: float = 0.0
    first_p50_s: float = 0.0
    whole_p50_s: float = 0.0
    whole_p95_s: float = 0.0

    @property
    def chain_ns(self) -> int:
        """Of everyone who took part: client, subject, upstream."""
        return self.cpu_ns + self.client_cpu_ns + self.upstream_cpu_ns


Round = Sequence[Sample]


class Unit(Struct, frozen=True, kw_only=True):
    """What is counted.

    Attributes:
        phases: one, for the cost of an answer; short and long, for that of an event.
        limited: the ratio is. limit_us: how much more than the reference it may cost; None: as much as it likes.
    """

    name: str
    phases: tuple[str, ...]
    subject: str = "gateway"
    reference: str = "passthrough"
    limited: bool = False
    limit_us: float | None = None


GUARD_US = 10.0
GUARDED, UNGUARDED = "guarded", "unguarded"
BESIDE = "-beside"  # ends the name of the phase in which that is measured

UNITS = (
    Unit(name="request", phases=("requests",), limited=True),
    Unit(name="SSE event", phases=("short", "long"), limited=True),
    Unit(name="native request, translated", phases=("native",)),
    Unit(name="native event, translated", phases=("native-short", "native-long")),
    Unit(name="call in process", phases=("calls",), subject="router", reference="bare"),
    Unit(name="guard, request", phases=("guard-requests",), subject=GUARDED, reference=UNGUARDED, limit_us=GUARD_US),
    Unit(
        name="guard, call in process", phases=("guard-calls",), subject=GUARDED, reference=UNGUARDED, limit_us=GUARD_US
    ),
)


class Figure(Struct, frozen=True, kw_only=True):
    """The cost of one unit in µs of CPU: one value a round, or one for each pair of samples. `difference_us`: the
    median of the differences and that of what is used beside, which the ratios know nothing of.
    """

    unit: str
    subject: str
    reference: str
    limited: bool
    subject_us: list[float]
    reference_us: list[float]
    ratios: list[float]
    ratio: float
    differences_us: list[float]
    beside_us: list[float]
    difference_us: float
    limit_us: float | None


class Report(Struct, frozen=True, kw_only=True):
    """What `-o` writes."""

    version: int
    machine: dict[str, object]
    settings: dict[str, object]
    max_ratio: float
    passed: bool
    figures: list[Figure]
    background_ms_per_s: dict[str, float]
    rounds: list[list[Sample]]


def figures(rounds: Sequence[Round], units: Iterable[Unit] = UNITS) -> list[Figure]:
    return [_figure(unit, rounds) for unit in units]


def exceeding(found: Iterable[Figure], max_ratio: float) -> list[str]:
    """The names of the units whose median is over their limit."""
    return [figure.unit for figure in found if _over(figure, max_ratio)]


def _over(figure: Figure, max_ratio: float) -> bool:
    if figure.limit_us is not None:
        return figure.difference_us > figure.limit_us
    return figure.limited and figure.ratio > max_ratio


def machine() -> dict[str, object]:
    """What the figures depend on."""
    packages = ("memos_llm", "aiohttp", "uvicorn", "uvloop", "httptools", "msgspec")
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": _processor(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in packages},
        "load_average": os.getloadavg(),
    }


def dump(report: Report) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def render(report: Report) -> RenderableType:
    """For a terminal."""
    return Group(
        _costs(report), _differences(report), _chain(report.rounds), _latencies(report.rounds), Text(_footer(report))
    )


def percentile(values: Sequence[float], part: float) -> float:
    """The nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


def _figure(unit: Unit, rounds: Sequence[Round]) -> Figure:
    subject = [value for samples in rounds for value in _cost_us(unit, unit.subject, samples)]
    reference = [value for samples in rounds for value in _cost_us(unit, unit.reference, samples)]
    pairs = list(zip(subject, reference, strict=True))
    ratios = [mine / its if its > 0 else float("inf") for mine, its in pairs]
    differences = [mine - its for mine, its in pairs]
    beside = [value for samples in rounds for value in _each_us(unit.subject, unit.phases[0] + BESIDE, samples)]
    return Figure(
        unit=unit.name,
        subject=unit.subject,
        reference=unit.reference,
        limited=unit.limited,
        subject_us=subject,
        reference_us=reference,
        ratios=ratios,
        ratio=median(ratios),
        differences_us=differences,
        beside_us=beside,
        difference_us=median(differences) + (median(beside) if beside else 0),
        limit_us=unit.limit_us,
    )


def _cost_us(unit: Unit, subject: str, samples: Round) -> list[float]:
    if len(unit.phases) == 1:
        return _each_us(subject, unit.phases[0], samples)
    of = {sample.phase: sample for sample in samples if sample.subject == subject}
    short, long = (of[phase] for phase in unit.phases)
    return [(long.cpu_ns - short.cpu_ns) / (long.events - short.events) / 1000]


def _each_us(subject: str, phase: str, samples: Round) -> list[float]:
    mine = [sample for sample in samples if (sample.subject, sample.phase) == (subject, phase)]
    return [sample.cpu_ns / sample.answers / 1000 for sample in mine]


def of_median(values: Sequence[float]) -> tuple[float, float]:
    """Where the median of what these are drawn from is, with a confidence of 95 %: by ranks, whatever they are drawn
    from (David and Nagaraja, Order Statistics, 7.1). Of fewer than six that is from the least to the greatest.
    """
    ordered, count = sorted(values), len(values)
    off = max(0, floor(count / 2 - 0.98 * sqrt(count)))
    return ordered[off], ordered[count - 1 - off]


def _costs(report: Report) -> Table:
    table = Table(title="CPU time per unit of work", title_justify="left")
    table.add_column("unit")
    for name in ("reference [µs]", "ours [µs]", "ratio", "min–max", "limit"):
        table.add_column(name, justify="right")
    for figure in report.figures:
        if figure.limit_us is None:
            ratio, between = f"{figure.ratio:.2f}", f"{min(figure.ratios):.2f}–{max(figure.ratios):.2f}"
            limit = f"{report.max_ratio:g}" if figure.limited else "–"
            table.add_row(*_compared(figure), _judged(ratio, figure, report), between, limit)
    return table


def _differences(report: Report) -> Table:
    """What comes and goes within one process; its cost is what is left when everything else is taken off."""
    table = Table(title="CPU time that is added per unit of work", title_justify="left")
    table.add_column("unit")
    for name in ("without [µs]", "on its way [µs]", "95 % [µs]", "beside it [µs]", "together [µs]", "limit [µs]"):
        table.add_column(name, justify="right")
    for figure in report.figures:
        if figure.limit_us is not None:
            without, added = median(figure.reference_us), median(figure.differences_us)
            between = "{:+.1f} to {:+.1f}".format(*of_median(figure.differences_us))
            together = _judged(f"{figure.difference_us:+.1f}", figure, report)
            beside = f"{figure.difference_us - added:+.1f}"
            limit = f"{figure.limit_us:g}"
            table.add_row(figure.unit, f"{without:.1f}", f"{added:+.1f}", between, beside, together, limit)
    return table


def _compared(figure: Figure) -> tuple[str, str, str]:
    name = f"{figure.unit}, {figure.subject} : {figure.reference}"
    return name, f"{median(figure.reference_us):.1f}", f"{median(figure.subject_us):.1f}"


def _judged(value: str, figure: Figure, report: Report) -> Text:
    return Text(value, style="bold red" if _over(figure, report.max_ratio) else "bold")


def _chain(rounds: Sequence[Round]) -> Table:
    """Direct has no process in between; what the whole chain uses is comparable with it."""
    table = Table(title="CPU time of client, what is between, and upstream together", title_justify="left")
    table.add_column("unit")
    for subject in ("direct", "passthrough", "gateway"):
        table.add_column(f"{subject} [µs]", justify="right")
    of = _by_phase(rounds)
    requests = [_median_us(of[name, "requests"], []) for name in ("direct", "passthrough", "gateway")]
    events = [_median_us(of[name, "long"], of[name, "short"]) for name in ("direct", "passthrough", "gateway")]
    table.add_row("request", *requests)
    table.add_row("SSE event", *events)
    return table


def _median_us(samples: list[Sample], less: list[Sample]) -> str:
    if not less:
        return f"{median(s.chain_ns / s.answers for s in samples) / 1000:.1f}"
    pairs = zip(samples, less, strict=True)
    return f"{median((a.chain_ns - b.chain_ns) / (a.events - b.events) for a, b in pairs) / 1000:.1f}"


def _latencies(rounds: Sequence[Round]) -> Table:
    """For orientation only: wall time on shared cores."""
    table = Table(title="Latency under that load (wall time, not judged)", title_justify="left")
    table.add_column("what")
    for name in ("p50 [ms]", "p95 [ms]", "first byte p50 [ms]", "answers [1/s]", "reads per event"):
        table.add_column(name, justify="right")
    for (subject, phase), samples in _by_phase(rounds).items():
        if phase not in ("requests", "long"):
            continue
        events, reads = sum(s.events for s in samples), sum(s.reads for s in samples)
        table.add_row(
            f"{'streams' if phase == 'long' else phase}, {subject}",
            f"{median(s.whole_p50_s for s in samples) * 1000:.2f}",
            f"{median(s.whole_p95_s for s in samples) * 1000:.2f}",
            f"{median(s.first_p50_s for s in samples) * 1000:.2f}",
            f"{median(s.answers / s.took_s for s in samples):.0f}",
            f"{reads / events:.2f}" if events else "–",
        )
    return table


def _footer(report: Report) -> str:
    background = ", ".join(f"{name} {value:.1f}" for name, value in report.background_ms_per_s.items())
    over = [figure for figure in report.figures if _over(figure, report.max_ratio)]
    slow = ", ".join(figure.unit for figure in over if figure.limit_us is None)
    dear = ", ".join(f"{figure.unit} (over {figure.limit_us:g} µs)" for figure in over if figure.limit_us is not None)
    failed = [f"over {report.max_ratio:g} times the pass-through: {slow}"] * bool(slow) + [dear] * bool(dear)
    verdict = f"FAILED: {'; '.join(failed)}" if failed else "passed"
    return f"CPU while idle [ms/s]: {background}\nrounds: {len(report.rounds)}; {verdict}"


def _by_phase(rounds: Sequence[Round]) -> dict[tuple[str, str], list[Sample]]:
    found: dict[tuple[str, str], list[Sample]] = {}
    for samples in rounds:
        for sample in sorted(samples, key=lambda sample: sample.subject):
            found.setdefault((sample.subject, sample.phase), []).append(sample)
    return dict(sorted(found.items(), key=lambda item: (item[0][1], item[0][0])))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
