"""`history`: who changed what, when, why."""

from typing import TYPE_CHECKING, Annotated

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memos_llm.core.commands import Audit


def register(app: typer.Typer) -> None:
    command(app, "history", short_help="Who changed what, when, why.")(history)


def history(
    cli: Cli,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, newest first.")] = 100,
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

    entries = cli.run(_read(cli, limit))
    rows = [
        (
            str(entry.revision),
            datetime.fromtimestamp(entry.at).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            entry.command,
            entry.scope,
            f"{percent(entry.share_before)} -> {percent(entry.share_after)}",
            " ".join(filter(None, (entry.actor, f"- {entry.reason}" if entry.reason else ""))),
        )
        for entry in entries
    ]
    shown = table(("rev", "at", "command", "scope", "share", "who, why"), rows, right=("rev",))
    cli.out.result({"entries": to_builtins(entries)}, shown if rows else "nothing has been changed yet")
    return failures.DONE


async def _read(cli: Cli, limit: int) -> "Sequence[Audit]":
    from memos_llm.cli.opening import opened_store

    async with opened_store(cli.settings) as store:
        return await store.history(limit)
