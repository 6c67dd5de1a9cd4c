"""`inventory`: who calls what, why it is still on the baseline, and whether that may be switched off. Reads only."""

from typing import TYPE_CHECKING, Annotated

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from memos_llm.rollout.inventory import Inventory, Row

MOST_ROWS = 200  # shown; `--json` has them all
MARGIN, GAP = 2, 2  # of `cli.output.table`


def register(app: typer.Typer) -> None:
    command(app, "inventory", short_help="Who calls what, and what still hangs on the baseline.")(inventory)


def inventory(
    cli: Cli,
    since: Annotated[
        str, typer.Option("--since", metavar="SPAN", help="How far back: 7d, 12h, 90m, 2w; 90d at most are kept.")
    ] = "7d",
    check: Annotated[bool, typer.Option("--check", help="Exit 1 unless the baseline may be switched off.")] = False,
) -> int:
    """Show who calls what and who answers, and what still hangs on the provider that you come from.

    Before a migration: what do my agents call, and what of it can move? At its end: may the old one be switched off?
    Every gateway and every program with the library counts its requests into the store, every few seconds and when
    it ends. Counts are kept by day (UTC), 90 days long; no prompt, no key, no session is among them.

    \b
    State of a row:
      ready   the candidate answered all of it, or a third provider did
      moves   it is on the baseline because the share says so
      HANGS   without the baseline it would have no answer: why, and what to do

    \b
    Example:
      llmctl inventory
      llmctl inventory --since 24h --check && echo "switch it off"
      llmctl inventory --json | jq '.rows[] | select(.state == "hangs")'
    """
    from msgspec import to_builtins

    from memos_llm.operate.orders import InventoryOrder

    found = cli.run(cli.desk.inventory(InventoryOrder(since=since)))
    cli.out.result(to_builtins(found), *_view(found, cli.out.console.width))
    return failures.NEGATIVE if check and found.verdict != "free" else failures.DONE


def _view(found: "Inventory", width: int) -> "Iterator[RenderableType]":
    from memos_llm.cli.output import heading, table

    shown = found.rows[:MOST_ROWS]
    columns = _Columns(shown, found, width)
    for group in _groups(shown):
        yield heading(_title(group[0], found))
        if group[0].todo:
            yield _wrapped(group[0].todo, indent=2)
        yield columns.table(group)
    if found.other:
        yield f"  {found.other:,} requests beyond the bound on rows are counted together as `other`"
    if len(found.rows) > len(shown):
        yield f"  and {len(found.rows) - len(shown)} rows more: see --json"
    noted = [(", ".join(_names(row)[:3]), line) for row in shown for line in _noted(row)]
    if noted:
        yield heading("in detail")
        yield table(("of", "what"), noted)
    yield _wrapped(found.text, style="bold")


class _Columns:
    """One set of columns for all groups: names side by side where they fit, else one after the other, wrapped."""

    def __init__(self, rows: "Sequence[Row]", found: "Inventory", width: int) -> None:
        self._found = found
        self._numbers = ("requests", found.candidate or found.baseline, "last")
        callers = len({row.caller for row in rows}) > 1
        self._names: tuple[str, ...] = ("component", "model", "call", "caller")[: 3 + callers]
        self._widths = _widest(self._names, [_names(row) for row in rows])
        self._number_widths = _widest(self._numbers, [_numbers(row, found) for row in rows])
        taken = (*self._number_widths, *self._widths)
        self._fits = MARGIN + sum(taken) + GAP * len(taken) <= width

    def table(self, group: "Sequence[Row]") -> "RenderableType":
        from memos_llm.cli.output import table

        names = self._names if self._fits else (", ".join(self._names),)
        rows = [(*self._counts(row), *self._named(row)) for row in group]
        whole = (*self._numbers, *names) if self._fits else self._numbers
        return table((*self._numbers, *names), rows, right=self._numbers, whole=whole)

    def _counts(self, row: "Row") -> "Iterator[str]":
        return map(str.rjust, _numbers(row, self._found), self._number_widths)

    def _named(self, row: "Row") -> tuple[str, ...]:
        names = _names(row)[: len(self._names)]
        return tuple(map(str.ljust, names, self._widths)) if self._fits else (", ".join(names),)


def _widest(heads: "Sequence[str]", rows: "Sequence[Sequence[str]]") -> list[int]:
    return [max([len(head), *(len(row[place]) for row in rows)]) for place, head in enumerate(heads)]


def _groups(rows: "Sequence[Row]") -> "list[list[Row]]":
    """Rows that are to be dealt with alike; what hangs comes first, and of that the most requests."""
    by_todo: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        by_todo.setdefault((row.state, row.why, row.todo), []).append(row)
    states = list(dict.fromkeys(row.state for row in rows))
    return sorted(by_todo.values(), key=lambda of: (states.index(of[0].state), -sum(row.requests for row in of)))


def _title(row: "Row", found: "Inventory") -> str:
    if row.why == "unanswered":
        return "in doubt: too many were not answered at all"
    if row.state == "hangs":
        return f"HANGS on {found.baseline}: {row.why}"
    if row.why == "refused":
        return "hangs on nobody: asked wrongly (4xx)"
    return "moves with the share" if row.state == "moves" else f"ready: needs no {found.baseline}"


def _numbers(row: "Row", found: "Inventory") -> tuple[str, str, str]:
    from memos_llm.cli.output import ago

    on = row.on_baseline if found.candidate is None else row.on_candidate
    share = f"{100 * on / row.requests:.0f}%" if row.requests else "-"
    return f"{row.requests or row.unanswered or row.refused:,}", share, ago(found.at - row.last_seen).partition(" ")[0]


def _names(row: "Row") -> tuple[str, str, str, str]:
    return row.component, row.model or "-", row.route or row.wire, row.caller


def _noted(row: "Row") -> "Iterator[str]":
    if len(row.reasons) > 1:
        yield "why: " + ", ".join(f"{cause} ×{n:,}" for cause, n in row.reasons.items())
    yield from (f"{one.provider} refused it: {one.code} ×{one.n:,}" for one in row.incompatible)
    yield from (f"needs {one.name} ×{one.n:,}" for one in row.needs)
    yield from (f"{one.provider} failed it: {one.name} ×{one.n:,}" for one in row.failures)
    if row.warnings:
        yield ", ".join(f"{one.name} ×{one.n:,}" for one in row.warnings)
    if row.requests and row.unanswered:
        yield f"answered by nobody ×{row.unanswered:,}"
    if row.requests and row.refused:
        yield f"the caller's mistake (4xx) ×{row.refused:,}"


def _wrapped(text: str, *, indent: int = 0, style: str = "") -> "RenderableType":
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text(text, style=style), (0, 0, 0, indent), expand=False)
