"""`incidents`: the rollbacks, and what is on record of one."""

from typing import TYPE_CHECKING, Annotated

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memos_llm.core.commands import Incident


def register(app: typer.Typer) -> None:
    command(app, "incidents", short_help="Rollbacks, and why they were.")(incidents)


def incidents(
    cli: Cli,
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="One incident, in full.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many, newest first.")] = 100,
) -> int:
    """Show the incidents, newest first; with an ID all that is on record of that one.

    \b
    Example:
      llmctl incidents
      llmctl incidents inc-0a1b2c3d4e5f
    """
    from msgspec import to_builtins

    from memos_llm.cli.output import table

    if id is not None:
        one = cli.run(cli.desk.incident(id))
        cli.out.result(to_builtins(one), *_full(one.incidents[0]))
        return failures.DONE
    found = cli.run(cli.desk.incidents(limit))
    rows = [(each.id, _when(each.at), each.scope, each.trigger, each.reason or "-") for each in found.incidents]
    shown = table(("id", "at", "scope", "trigger", "reason"), rows)
    cli.out.result(to_builtins(found), shown if rows else "there have been no incidents")
    return failures.DONE


def _full(one: "Incident") -> "Iterator[str]":
    from memos_llm.cli.output import percent

    yield f"{one.id}: {one.provider} rolled back, {'everything' if one.scope == '*' else one.scope}"
    yield f"  at         {_when(one.at)}"
    yield f"  by         {one.actor} ({one.trigger})"
    yield f"  reason     {one.reason or '-'}"
    for name, before in one.shares_before.items():
        after = one.shares_after.get(name)
        yield f"  share      {name}: {percent(before)} -> {'follows *' if after is None else percent(after)}"
    yield f"  flags      revision {one.revision}, epoch {one.epoch}"


def _when(at: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
