"""The report of `llmctl bench`: what was measured and where, and the files it is written to. Pure but for `write`.

JSON holds everything, each sample included; Markdown and CSV hold the figures. No prompt is in any of them.
"""

import contextlib
import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from memos_llm.bench.cells import COLUMNS, clients, ratio_row, row
from memos_llm.bench.comparison import Comparison, Figures, Ratio, Turn


class Side(Struct, frozen=True, kw_only=True):
    """One provider. `hosts` are those of its endpoints, all names of this machine as one."""

    name: str
    kind: str
    endpoints: tuple[str, ...]
    hosts: tuple[str, ...]
    versions: tuple[str, ...] = ()
    max_inflight: int | None = None


class Level(Struct, frozen=True, kw_only=True):
    """What was measured with so many clients at once; the first provider is what the others are compared with."""

    concurrency: int
    figures: tuple[Figures, ...]
    comparisons: tuple[Comparison, ...]


class ModelReport(Struct, frozen=True, kw_only=True):
    """One model. `names`: by provider; `loads_s`: how long each load took, by provider, the first one first."""

    model: str
    embeds: bool
    names: dict[str, str]
    loads_s: dict[str, list[float]]
    levels: tuple[Level, ...]


class Settings(Struct, frozen=True, kw_only=True):
    """What was asked for. `prompt_chars`: of each prompt, in order."""

    providers: tuple[str, ...]
    concurrency: tuple[int, ...]
    runs: int
    max_tokens: int
    timeout_s: float
    temperature: float
    unique_prompts: bool
    prompts: str
    prompt_chars: tuple[int, ...]


class Report(Struct, frozen=True, kw_only=True):
    """Everything. `started_at`: Unix seconds; `interrupted`: the figures are of the turns that were whole by then."""

    version: int
    started_at: float
    interrupted: bool
    settings: Settings
    environment: dict[str, Any]
    providers: tuple[Side, ...]
    models: tuple[ModelReport, ...]
    summary: tuple[str, ...]
    warnings: tuple[str, ...]
    turns: tuple[Turn, ...]


def as_json(report: Report) -> str:
    return msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n"


def as_markdown(report: Report) -> str:
    return "\n".join(_markdown(report)) + "\n"


def as_csv(report: Report) -> str:
    """One line for each model, level and provider; seconds, and ratios with their intervals."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for model in report.models:
        for level in model.levels:
            compared = {comparison.provider: comparison for comparison in level.comparisons}
            for found in level.figures:
                writer.writerow(_csv_row(found, compared.get(found.provider)))
    return out.getvalue()


FORMATS: Mapping[str, Callable[[Report], str]] = {".json": as_json, ".md": as_markdown, ".csv": as_csv}
"""By the ending of the file's name."""


def write(file: Path, text: str) -> None:
    """Whoever reads sees the old file or the whole new one.

    Raises:
        OSError: it cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


_COUNTED = ("model", "concurrency", "provider", "rounds", "requests", "answered")
_MEASURED = (
    "ttft_p50_s",
    "ttft_p95_s",
    "tpot_p50_s",
    "whole_p50_s",
    "whole_p95_s",
    "per_s",
    "output_tokens_mean",
    "client_cores",
)
RATIOS = ("per_s", "ttft_p50", "tpot_p50", "whole_p50")
CSV_COLUMNS = (
    *_COUNTED,
    "errors",
    "p95_is_greatest",
    *_MEASURED,
    "reference",
    *(f"{name}_ratio{end}" for name in RATIOS for end in ("", "_low", "_high")),
)


def _csv_row(found: Figures, compared: Comparison | None) -> dict[str, object]:
    return {
        **{name: getattr(found, name) for name in (*_COUNTED, *_MEASURED)},
        "errors": "; ".join(f"{kind} {count}" for kind, count in found.errors.items()),
        "p95_is_greatest": int(found.few),
        "reference": compared.reference if compared else "",
        **_csv_ratios(compared),
    }


def _csv_ratios(compared: Comparison | None) -> dict[str, object]:
    cells: dict[str, object] = {}
    for name in RATIOS:
        found: Ratio | None = getattr(compared, name) if compared else None
        ends = (found.value, found.low, found.high) if found else (None, None, None)
        cells |= {f"{name}_ratio{end}": value for end, value in zip(("", "_low", "_high"), ends, strict=True)}
    return cells


def _markdown(report: Report) -> Iterator[str]:
    yield f"# {' against '.join(side.name for side in report.providers)}"
    yield ""
    yield from (f"- {sentence}" for sentence in report.summary)
    for model in report.models:
        yield from ("", f"## {model.model}", "")
        yield ", ".join(f"{provider}: `{name}`" for provider, name in model.names.items())
        for level in model.levels:
            yield from ("", f"### {clients(level.concurrency)}", "")
            yield from _markdown_table(level, embeds=model.embeds)
    yield from ("", "## Read with care", "")
    yield from (f"- {warning}" for warning in report.warnings)
    yield from ("", "## Measured where and how", "")
    yield from _markdown_facts(report)


def _markdown_table(level: Level, *, embeds: bool) -> Iterator[str]:
    head = COLUMNS[embeds]
    yield _line(head)
    yield _line(["---", *("---:" for _ in head[1:])])
    for found in level.figures:
        yield _line(row(found, embeds=embeds))
    for compared in level.comparisons:
        yield _line(ratio_row(compared, embeds=embeds, alone=len(level.comparisons) == 1))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _markdown_facts(report: Report) -> Iterator[str]:
    for side in report.providers:
        releases = f", release {', '.join(side.versions)}" if side.versions else ""
        yield f"- {side.name}: {side.kind} at {', '.join(side.endpoints)}{releases}"
    for name, value in msgspec.to_builtins(report.settings).items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        yield f"- {name}: {shown}"
    for name, value in report.environment.items():
        if value:
            yield f"- {name}: {', '.join(map(str, value)) if isinstance(value, list) else value}"
