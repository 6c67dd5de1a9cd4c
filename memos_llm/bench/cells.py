"""Figures as a person reads them: cells of the tables, numbers with their units. Pure."""

from collections.abc import Sequence

from memos_llm.bench.comparison import Comparison, Figures, Ratio

NONE = "–"
GREATEST = "*"  # behind a 95th percentile that is only the greatest of too few

COLUMNS: Sequence[Sequence[str]] = (
    ("provider", "failed", "TTFT p50/95", "TPOT p50", "whole p50/95", "tokens/s"),
    ("provider", "failed", "whole p50/95", "embeddings/s"),
)
"""For chat, and for embeddings."""


def row(found: Figures, *, embeds: bool) -> list[str]:
    """One provider at one level."""
    counted = [found.provider, f"{found.requests - found.answered} of {found.requests}"]
    whole = spread(found.whole_p50_s, found.whole_p95_s, few=found.few)
    if embeds:
        return [*counted, whole, rate(found.per_s)]
    first = spread(found.ttft_p50_s, found.ttft_p95_s, few=found.few)
    return [*counted, first, seconds(found.tpot_p50_s), whole, rate(found.per_s)]


def ratio_row(compared: Comparison, *, embeds: bool, alone: bool = True) -> list[str]:
    """One provider over the reference. `alone`: there is no other that it could be."""
    name = "ratio" if alone else f"{compared.provider} ratio"
    counted, whole, per_s = [name, ""], times(compared.whole_p50), interval(compared.per_s)
    if embeds:
        return [*counted, whole, per_s]
    return [*counted, times(compared.ttft_p50), times(compared.tpot_p50), whole, per_s]


def seconds(value: float | None) -> str:
    """`0.0253` → `25.3 ms`, `1.234` → `1.23 s`."""
    if value is None:
        return NONE
    return f"{_digits(value * 1000)} ms" if value < 1 else f"{_digits(value)} s"


def spread(middle: float | None, late: float | None, *, few: bool) -> str:
    """Median and 95th percentile in one unit: `0.05/1.92 s`."""
    if middle is None or late is None:
        return NONE
    factor, unit = (1000, "ms") if late < 1 else (1, "s")
    both = "/".join(_short(value * factor) for value in (middle, late))
    return f"{both} {unit}{GREATEST if few else ''}"


def rate(value: float | None) -> str:
    return NONE if value is None else _digits(value)


def times(ratio: Ratio | None) -> str:
    """`5.12` → `5.1×`."""
    return NONE if ratio is None else f"{factor(ratio.value)}×"


def interval(ratio: Ratio | None) -> str:
    """`5.1× (4.6–5.5)`."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return times(ratio)
    return f"{times(ratio)} ({factor(ratio.low)}–{factor(ratio.high)})"


def factor(value: float) -> str:
    """Two digits that count, more where it is near 1."""
    if value >= 20:
        return f"{value:.0f}"
    if value >= 2:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def _digits(value: float) -> str:
    """Three digits that count, and no exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
