"""`demo`: the product shown on this machine, without a GPU. The show itself is in `cli.demo`, loaded when run."""

from pathlib import Path
from typing import Annotated

import typer

from memos_llm.cli.command import Cli, command


def register(app: typer.Typer) -> None:
    command(app, "demo", short_help="Watch a migration on this machine.")(demo)


def demo(
    cli: Cli,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running afterwards, until Ctrl-C.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A short one: about 20 s.")] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write the findings there as JSON.")] = None,
) -> int:
    """Watch a migration on this machine: emulated servers, a gateway, shifts, vLLM killed and back. No GPU is needed.

    Exit code 0 only if no client saw an error and the observed shares fit.

    \b
    Example:
      llmctl demo
      llmctl demo --keep
      llmctl demo --quick --report findings.json
    """
    from memos_llm.cli.demo import run

    return run(keep, quick=quick, report=report, as_json=cli.json)
