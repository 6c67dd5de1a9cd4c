"""The command behind `scripts/bench`."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop
from msgspec.structs import replace
from rich.console import Console

from memos_llm.bench.load import WrongAnswer
from memos_llm.bench.results import dump, render
from memos_llm.bench.run import QUICK, Plan, run
from memos_llm.bench.subjects import NotStarted

MAX_RATIO = 2.5
PLAIN_WIDTH = 110  # in a file or a log


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 within the limits, 1 over one, 2 usage, 4 the run could not be completed."""
    options = _parser().parse_args(arguments)
    plan = QUICK if options.quick else Plan()
    if options.rounds:
        plan = replace(plan, rounds=options.rounds)
    messages = Console(stderr=True)
    try:
        with messages.status("bench"), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(run(plan, options.max_ratio, lambda text: messages.print(f"bench: {text}")))
    except (NotStarted, WrongAnswer) as error:
        messages.print(f"bench: error: {error}", markup=False)
        return 4
    Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(render(report))
    if options.output:
        options.output.write_bytes(dump(report))
    return 0 if report.passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "scripts/bench",
        description="CPU time of the gateway per request and per SSE event, against a bare uvicorn + aiohttp "
        "pass-through, interleaved in one run; in process, Router.chat against aiohttp; what the guard adds: on a "
        "request's way, in one process with and without it, and beside it, in its own tasks. Only the ratios mean "
        "anything elsewhere. Exit code: 0 within the limits, 1 over one, 2 usage, 4 could not be completed.",
    )
    parser.add_argument("--quick", action="store_true", help="half a minute, for a rough idea")
    parser.add_argument("--rounds", type=_count, metavar="N", help=f"default {Plan().rounds}, quick {QUICK.rounds}")
    parser.add_argument("--max-ratio", type=float, default=MAX_RATIO, metavar="X", help=f"default {MAX_RATIO}")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="every sample and this machine, as JSON")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number from 1 upwards")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
