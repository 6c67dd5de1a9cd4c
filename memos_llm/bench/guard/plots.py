"""The pictures. matplotlib is loaded here and nowhere else."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from memos_llm.bench.guard.exact import FAULT_RATES
from memos_llm.bench.guard.results import Point, Report


class Frame(NamedTuple):
    title: str
    x: str
    y: str
    limit: float | None = None
    least: float = 0.0
    ticks: tuple[float, ...] = ()


COLOURS = {"1/s": "tab:blue", "10/s": "tab:orange", "100/s": "tab:red"}
FRAMES = {
    "run_length": Frame(
        "How long the sequential rule stays silent", "true failure rate", "mean requests between trips", 0.05
    ),
    "false_rollbacks": Frame(
        "False rollbacks within 10,000 requests (limit 5 %)", "true failure rate", "part rolled back", None, 1e-7
    ),
    "detection": Frame(
        "How soon a fault is seen (limit 5 %)", "failing part", "requests until the verdict", None, 1, FAULT_RATES
    ),
}


def save(report: Report, folder: Path) -> list[Path]:
    """One PNG for each picture; points at 0 are left out, for the axes are logarithmic.

    Raises:
        ImportError: matplotlib is not installed (extra `report`).
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, frame in FRAMES.items():
        figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
        axes = figure.subplots()
        for line, points in _lines(report, name).items():
            exact = "exact" in line
            axes.plot(
                [point.x for point in points],
                [point.y for point in points],
                label=line,
                color="black" if exact else COLOURS[line.rpartition(", ")[2]],
                marker="" if exact else "o",
                linestyle="--" if line.startswith("95") else ":" if exact and name != "run_length" else "-",
            )
        axes.set_yscale("log")
        if frame.ticks:
            axes.set_xscale("log")
            axes.set_xticks(frame.ticks)
            axes.minorticks_off()
        if frame.least:
            axes.set_ylim(bottom=frame.least)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None if not frame.ticks else 0))
        if frame.limit is not None:
            axes.axvline(frame.limit, color="grey", linestyle=":", label="limit")
        axes.set(title=frame.title, xlabel=frame.x, ylabel=frame.y)
        axes.grid(True, which="major", alpha=0.3)
        if axes.has_data():
            axes.legend()
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1])
    return paths


def _lines(report: Report, picture: str) -> dict[str, list[Point]]:
    lines: dict[str, list[Point]] = defaultdict(list)
    for point in report.points:
        if point.picture == picture and point.y > 0:
            lines[point.line].append(point)
    return lines
