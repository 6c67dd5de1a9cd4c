"""`history`: who changed what, when, why."""

from typing import Annotated

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command


def register(app: typer.Typer) -> None:
    command(app, "history", short_help="Who changed what, when, why.")(history)


def history(
    cli: Cli,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many, newest first.")] = 100,
) -> int:
    """Show the changes of the flags: when, who, what, why. Newest first.

    \b
    Example:
      llmctl history
      llmctl history --limit 5 --json
    """
    from datetime import datetime

    from msgspec import to_builtins

    from memos_llm.cli.output import percent, table

    entries = cli.run(cli.desk.history(limit)).entries
    rows = [
        (
            str(entry.revision),
            datetime.fromtimestamp(entry.at).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            entry.command,
            entry.provider if entry.command == "maintain" else entry.scope,
            "-" if entry.command == "maintain" else f"{percent(entry.share_before)} -> {percent(entry.share_after)}",
            " ".join(filter(None, (entry.actor, f"- {entry.reason}" if entry.reason else ""))),
        )
        for entry in entries
    ]
    shown = table(("rev", "at", "command", "scope", "share", "who, why"), rows, right=("rev",))
    cli.out.result({"entries": to_builtins(entries)}, shown if rows else "nothing has been changed yet")
    return failures.DONE
