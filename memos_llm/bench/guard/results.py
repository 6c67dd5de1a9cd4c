"""Figures, what they are held to, and how they are shown."""

from collections.abc import Iterable, Sequence
from itertools import groupby

import msgspec
from msgspec import Struct
from rich.console import Group
from rich.table import Table
from rich.text import Text

from memos_llm.guard.binomial import upper

SURE = 0.95
PROMISED_S = 300  # for all of it, on two cores


class Figure(Struct, frozen=True, kw_only=True):
    """One figure.

    Attributes:
        section, case: what it is about. name: what it is.
        value: in `unit`; None: it never happened.
        high: one-sided 95 % upper bound of a part that was drawn.
        at_most, at_least: what the defaults are held to; `bound`: the bound is held to it, not the value.
        runs: how often it was drawn; 0: computed exactly.
    """

    section: str
    case: str
    name: str
    value: float | None
    unit: str
    high: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    bound: bool = False
    runs: int = 0
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """None: it is held to nothing."""
        if self.at_most is None and self.at_least is None:
            return None
        judged = self.high if self.bound else self.value
        if judged is None:
            return False
        return (self.at_most is None or judged <= self.at_most) and (self.at_least is None or judged >= self.at_least)


class Point(Struct, frozen=True, kw_only=True):
    """For a plot: a point of a line of a picture."""

    picture: str
    line: str
    x: float
    y: float


class Report(Struct, frozen=True, kw_only=True):
    seed: int
    seconds: float
    figures: tuple[Figure, ...]
    points: tuple[Point, ...]

    @property
    def holds(self) -> bool:
        return all(figure.holds is not False for figure in self.figures)


def bound(hits: int, runs: int) -> float:
    """How often it may happen after all, having happened so often."""
    return upper(hits, runs, SURE)


def dump(report: Report) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def render(report: Report) -> Group:
    """The table."""
    parts: list[Table | Text] = []
    for section, figures in groupby(report.figures, key=lambda figure: figure.section):
        parts.append(_table(section, list(figures)))
    broken = sum(figure.holds is False for figure in report.figures)
    held = sum(figure.holds is not None for figure in report.figures)
    parts.append(Text(f"{held - broken} of {held} figures hold; {report.seconds:.0f} s, seed {report.seed}"))
    if report.seconds > PROMISED_S:
        parts.append(Text(f"SLOW: it took longer than the {PROMISED_S} s that two cores of their own should need"))
    return Group(*parts)


def _table(title: str, figures: Sequence[Figure]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("case", "figure", "value", "95 % upper", "held to", "drawn", ""):
        table.add_column(name, justify="right" if name in ("value", "95 % upper", "drawn") else "left")
    for figure in figures:
        table.add_row(*_row(figure))
    return table


def _row(figure: Figure) -> Iterable[str]:
    yield figure.case
    yield figure.name + (f" ({figure.note})" if figure.note else "")
    yield said(figure.value, figure.unit)
    yield said(figure.high, figure.unit) if figure.high is not None else ""
    yield _held(figure)
    yield f"{figure.runs:,}" if figure.runs else "exact"
    yield {None: "", True: "ok", False: "BROKEN"}[figure.holds]


def _held(figure: Figure) -> str:
    at_most = "" if figure.at_most is None else f"≤ {said(figure.at_most, figure.unit)}"
    at_least = "" if figure.at_least is None else f"≥ {said(figure.at_least, figure.unit)}"
    return at_most + at_least + (" (upper)" if figure.bound else "")


def said(value: float | None, unit: str) -> str:
    if value is None:
        return "never"
    if unit == "part":
        return f"{value * 100:.2g} %" if value < 0.1 else f"{value * 100:.1f} %"
    if value >= 1e6:
        return f"{value:.2g} {unit}"
    return f"{value:,.0f} {unit}" if value == int(value) else f"{value:,.1f} {unit}"
