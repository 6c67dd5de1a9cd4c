"""The command behind `scripts/simulate_guard`."""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from memos_llm.bench.guard.plots import save
from memos_llm.bench.guard.results import dump, render
from memos_llm.bench.guard.run import run
from memos_llm.core.policy import Limits

PLAIN_WIDTH = 160  # in a file or a log
QUICK = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 every figure holds, 1 one does not, 2 usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.plots and find_spec("matplotlib") is None:
        parser.error("--plots needs matplotlib: pip install 'memos_llm[report]'")
    messages = Console(stderr=True)
    with messages.status("simulate_guard") as status:
        report = run(
            options.seed,
            QUICK if options.quick else 1.0,
            lambda text: status.update(f"simulate_guard: {text}"),
            Limits(),
        )
    Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(render(report), highlight=False)
    if options.output:
        options.output.write_bytes(dump(report))
    if options.plots:
        for path in save(report, options.plots):
            messages.print(f"simulate_guard: wrote {path}", markup=False, soft_wrap=True)
    return 0 if report.holds else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "scripts/simulate_guard",
        description="How often the guard, with its default limits, rolls back a candidate that is well, and how soon "
        "one that is not. Exit code: 0 every figure holds, 1 one does not, 2 usage.",
    )
    parser.add_argument("--quick", action="store_true", help="a twentieth of the runs, for a rough idea")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the same seed draws the same (default 1)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="every figure and point, as JSON")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="pictures, as PNG")
    return parser


if __name__ == "__main__":
    sys.exit(main())
