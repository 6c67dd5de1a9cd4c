"""The end: a table of the stages, one line of verdict, and the same as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memos_llm.cli.demo.checks import Row
from memos_llm.core.flags import PPM

LEGEND = """\
Conversations: expected on vLLM by the split, seen there, and the bounds that
99.9% of fair splits stay in. Fallbacks: requests that Ollama answered for vLLM."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the demo found. `failures` is empty if and only if the verdict is yes."""

    rows: Sequence[Row]
    failures: Sequence[str]
    conversations: int
    requests: int
    errors: int
    waiting_at_kill: int
    rescued: int
    diversion_ended_s: float
    explained: Sequence[dict[str, Any]]
    gateway_counted: dict[str, int]
    duration_s: float

    @property
    def passed(self) -> bool:
        return not self.failures

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"passed": self.passed, **asdict(self)}


def write(report: Report, file: Path) -> None:
    file.write_text(json.dumps(report.document(), indent=2) + "\n")


def show(report: Report, console: Console) -> None:
    """Table and verdict."""
    console.print()
    console.print(_table(report))
    console.print(LEGEND, style="dim", soft_wrap=True)
    console.print(_verdict(report), soft_wrap=True)


def _table(report: Report) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("stage", no_wrap=True)
    for name in ("s", "requests", "expected", "on vLLM", "99.9%", "errors", "fallbacks", "p95 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        fits = row.observed == row.expected and row.low <= row.observed <= row.high
        table.add_row(
            row.title,
            f"{row.duration_s:.1f}",
            str(row.requests),
            f"{row.share_ppm / PPM:.0%} = {row.expected}",
            Text(f"{row.observed}/{row.talked}", "green" if fits else "bold red"),
            f"{row.low}–{row.high}",
            Text(str(row.errors), "bold red" if row.errors else "green"),
            str(row.fallbacks),
            f"{row.p95_ms:.0f}",
        )
    return table


def _verdict(report: Report) -> Text:
    if report.passed:
        return Text(
            f"PASSED: {report.requests} requests of {report.conversations} conversations in {report.duration_s:.0f} s, "
            f"no client saw an error, and the shares fit.",
            "bold green",
        )
    return Text("\n".join(["FAILED:", *(f"  - {failure}" for failure in report.failures)]), "bold red")
