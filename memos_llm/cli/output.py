"""The one place that prints. stdout gets the answer, stderr everything said about it.

With `--json` stdout holds exactly one JSON document. Without, tables and sentences that fit 80 columns; rich leaves
colours and line drawing motion out when nobody is looking (not a terminal).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

COLUMNS = 80


class Output:
    """Where one command's words go."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._answer = Console(highlight=False, markup=False, emoji=False)
        self._aside = Console(stderr=True, highlight=False, markup=False, emoji=False)

    @property
    def console(self) -> Console:
        """For live views only."""
        return self._answer

    def result(self, document: Any, *view: RenderableType) -> None:
        """The answer: the document with `--json`, else its view."""
        if self.as_json:
            self._answer.file.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
            self._answer.file.flush()
            return
        for part in view:
            self._answer.print(part, soft_wrap=isinstance(part, str | Text))

    @contextmanager
    def progress(self, total: int, label: str) -> Iterator[Callable[[str, int], None]]:
        """A bar on stderr while a terminal looks at it; call what it gives with (what, how many more)."""
        from rich.progress import Progress

        with Progress(console=self._aside, transient=True, disable=not self._aside.is_terminal) as bar:
            task = bar.add_task(label, total=total)
            yield lambda what, more: bar.update(task, advance=more, description=f"{label} ({what})")

    def note(self, text: str) -> None:
        """Something said about the answer."""
        self._aside.print(text, soft_wrap=True)

    def warn(self, text: str) -> None:
        self._aside.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)

    def error(self, text: str) -> None:
        self._aside.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), whole: Sequence[str] = ()
) -> RenderableType:
    """Plain columns, nothing cut off: what is too wide goes on in the next line.

    Args:
        right: the columns that are aligned so. whole: the columns that the others make room for, within reason.
    """
    rows = list(rows)
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, column in enumerate(columns):
        longest = max((len(row[place]) for row in rows), default=0) if column in whole else 0
        justify: Literal["left", "right"] = "right" if column in right else "left"
        made.add_column(column, overflow="fold", justify=justify, min_width=min(longest, COLUMNS // 2))
    for row in rows:
        made.add_row(*row)
    return Padding(made, (0, 0, 0, 2), expand=False)


def heading(text: str) -> Text:
    return Text(text, style="bold")


def percent(share: float) -> str:
    """`0.3` → `30%`, exact to the ppm that shares are kept in."""
    return f"{share * 100:.4f}".rstrip("0").rstrip(".") + "%"


def clock(at: float) -> str:
    """A moment in local time, to the second; today's without its date."""
    moment = datetime.fromtimestamp(at).astimezone()
    today = moment.date() == datetime.now().astimezone().date()
    return moment.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def moment(at: float) -> str:
    """A moment in local time with its date and zone: `2026-11-21 10:39:35 CET`."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def ago(seconds: float) -> str:
    """`75.2` → `1m 15s`."""
    whole = max(0, round(seconds))
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // smaller}{name}"
    return f"{whole}s"
