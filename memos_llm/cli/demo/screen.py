"""The timeline: events scroll by, and on a terminal a board below them lives. Legible from 80 columns by 24 rows.

Without a terminal: the same events as plain lines, and a line of figures every other second.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from memos_llm.cli.demo.tally import BASELINE, CANDIDATE, PROVIDERS, Served, Tally, percentile_ms

REFRESH_S, PLAIN_S = 0.25, 2.0
COLOURS = {BASELINE: "yellow", CANDIDATE: "cyan"}
NAMES = {BASELINE: "Ollama", CANDIDATE: "vLLM"}
STEPS = " ▁▂▃▄▅▆▇█"
STAGES = 5


@dataclass(slots=True)
class Screen:
    """Where the demo speaks. Use `shown()` around it and call `refresh` now and then."""

    console: Console
    tally: Tally
    share: Callable[[], float] = lambda: 0.0
    last_command: str = ""
    plain_s: float = PLAIN_S
    _live: Live | None = None
    _plain_at_s: float = field(default_factory=time.monotonic)

    def shown(self) -> AbstractContextManager[object]:
        """While inside, the board is on the terminal."""
        if not self.console.is_terminal:
            return nullcontext()
        self._live = Live(board(self, self.console.width), console=self.console, auto_refresh=False, transient=True)
        return self._live

    @property
    def now(self) -> str:
        elapsed_s = time.monotonic() - self.tally.started_s
        return f"{int(elapsed_s // 60):02}:{elapsed_s % 60:04.1f}"

    def say(self, text: str, style: str = "") -> None:
        """One event."""
        line = Text.assemble((f"{self.now}  ", "dim"), (text, style))
        self.console.print(line, soft_wrap=not self.console.is_terminal)

    def command(self, line: str) -> None:
        """A command that is run now."""
        self.last_command = line
        self.say(f"$ {line}", "green")

    def refresh(self) -> None:
        if self._live is not None:
            self._live.update(board(self, self.console.width), refresh=True)
        elif time.monotonic() - self._plain_at_s >= self.plain_s:
            self._plain_at_s = time.monotonic()
            self.say(plain(self.tally))


def plain(tally: Tally) -> str:
    """The figures on one line."""
    stage = len(tally.stages) - 1
    served = tally.of_stage(stage)
    parts = [
        f"{NAMES[provider]} {n} ({_part(n, len(served))}, p95 {percentile_ms(own, 0.95):.0f} ms)"
        for provider in PROVIDERS
        for own in [_by(provider, served)]
        for n in [len(own)]
    ]
    fallbacks = sum(one.fell_back for one in served)
    return f"  stage {stage + 1}: {', '.join(parts)}, fallbacks {fallbacks}, client errors {len(tally.problems)}"


def board(screen: Screen, width: int) -> RenderableType:
    """What lives at the bottom of the terminal."""
    tally = screen.tally
    width = min(width, 120)
    return Group(_heading(screen, width), _providers(tally, width), _conversations(screen, width), _foot(tally))


def _heading(screen: Screen, width: int) -> Text:
    stages = screen.tally.stages
    title = stages[-1].title if stages else "starting"
    if 0 < len(stages) <= STAGES:
        title = f"stage {len(stages)} of {STAGES}: {title}"
    line = Text.assemble(
        ("─" * width + "\n", "dim"), ("memos_llm demo", "bold"), f"  {screen.now[:5]}  ", (title, "bold magenta")
    )
    if screen.last_command:
        line.append(f"\n$ {screen.last_command}", "green")
    line.truncate(4 * width)
    return line


def _providers(tally: Tally, width: int) -> Table:
    """All requests, and this stage's figures, per provider."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", min_width=7)
    for name in ("answered", "in stage", "share", "p50 ms", "p95 ms", "errors", "fallbacks"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("a second", no_wrap=True)
    stage = tally.of_stage(len(tally.stages) - 1)
    for provider in PROVIDERS:
        own, all_own = _by(provider, stage), _by(provider, tally.served)
        table.add_row(
            Text(NAMES[provider], COLOURS[provider]),
            str(len(all_own)),
            str(len(own)),
            _part(len(own), len(stage)),
            f"{percentile_ms(own, 0.5):.0f}",
            f"{percentile_ms(own, 0.95):.0f}",
            str(sum(bool(one.problem) for one in all_own)),
            str(sum(one.fell_back for one in all_own)),
            Text(sparkline(tally, provider, max(8, width - 66)), COLOURS[provider]),
        )
    return table


def sparkline(tally: Tally, provider: str, width: int) -> str:
    """Requests answered in each of the last `width` whole seconds."""
    now = int(time.monotonic() - tally.started_s)
    seconds = range(now - width, now)
    most = max((sum(tally.per_second[second].values()) for second in seconds if second in tally.per_second), default=1)
    counts = [tally.per_second[second][provider] if second in tally.per_second else 0 for second in seconds]
    return "".join(STEPS[-(-count * (len(STEPS) - 1) // most)] if most else " " for count in counts)


def _conversations(screen: Screen, width: int) -> Text:
    """How many conversations are on the candidate, against its share."""
    tally = screen.tally
    arms: dict[str, str] = {}
    for one in tally.served:
        if one.arm:
            arms[one.session] = one.arm
    moved, total = sum(arm == "candidate" for arm in arms.values()), len(tally.sessions)
    room = max(10, width - 50)
    filled = round(room * moved / max(total, 1))
    return Text.assemble(
        "conversations on vLLM ",
        ("█" * filled, COLOURS[CANDIDATE]),
        ("░" * (room - filled), COLOURS[BASELINE]),
        f" {moved} of {total}, share {screen.share():.0%}",
    )


def _foot(tally: Tally) -> Text:
    errors = len(tally.problems)
    return Text.assemble("client errors ", (str(errors), "bold red" if errors else "bold green"))


def _by(provider: str, requests: list[Served]) -> list[Served]:
    return [one for one in requests if one.provider == provider]


def _part(n: int, of: int) -> str:
    return f"{n / of:.0%}" if of else "–"
