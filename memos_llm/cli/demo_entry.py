"""`demo`: the product shown on this machine, without a GPU. The show itself is in `cli.demo`, loaded when run."""

from typing import Annotated

import typer

from memos_llm.cli.command import Cli, command


def register(app: typer.Typer) -> None:
    command(app, "demo", short_help="Watch a migration on this machine.")(demo)


def demo(
    cli: Cli,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running afterwards, until Ctrl-C.")] = False,
) -> int:
    """Watch a migration on this machine: emulated servers, a gateway, shifts, a rollback. No GPU is needed.

    \b
    Example:
      llmctl demo
      llmctl demo --keep
    """
    from memos_llm.cli.demo import run

    return run(keep, as_json=cli.json)
