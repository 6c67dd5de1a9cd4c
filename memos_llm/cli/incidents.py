"""`incidents`: the rollbacks, and what is on record of one."""

from typing import TYPE_CHECKING, Annotated

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from memos_llm.core.commands import Incident
    from memos_llm.operate.documents import Incidents


def register(app: typer.Typer) -> None:
    command(app, "incidents", short_help="Rollbacks, and why they were.")(incidents)


def incidents(
    cli: Cli,
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="One incident, in full.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many, newest first.")] = 100,
) -> int:
    """Show the incidents, newest first; with an ID all that is on record of that one.

    That is: the rule with its numbers, both sides over the time judged, the last probes, versions, ids of requests
    that went wrong, how fast it was seen and acted on, who else saw it, and what to do now.

    \b
    Example:
      llmctl incidents
      llmctl incidents inc-0a1b2c3d4e5f
    """
    from msgspec import to_builtins

    if id is not None:
        from memos_llm.cli.incident_text import full

        one = cli.run(cli.desk.incident(id))
        cli.out.result(to_builtins(one), *full(one, one.incidents[0]))
        return failures.DONE
    found = cli.run(cli.desk.incidents(limit))
    cli.out.result(to_builtins(found), *_listed(found))
    return failures.DONE


def _listed(found: "Incidents") -> "Iterator[RenderableType]":
    from memos_llm.cli.output import table

    if not found.incidents:
        yield "there have been no incidents"
        return
    held = {latch.incident for latch in found.latched}
    rows = [
        (each.id, _when(each.at), ", ".join((each.scope, *each.also)), each.trigger, _state(each, held), each.reason)
        for each in found.incidents
    ]
    yield table(("id", "at", "scope", "trigger", "latch", "reason"), rows, whole=("id",))
    yield "  all of one: `llmctl incidents ID`"


def _state(one: "Incident", held: set[str]) -> str:
    return "holds" if one.id in held else "lifted"


def _when(at: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
