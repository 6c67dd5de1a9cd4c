"""`explain`: where a call would go and why, nothing sent. The decision is the engine's own."""

from typing import TYPE_CHECKING, Annotated

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from memos_llm.cli.explanation import Explanation


def register(app: typer.Typer) -> None:
    command(app, "explain", short_help="Where a call would go, and why.")(explain)


def explain(
    cli: Cli,
    component: Annotated[
        str | None, typer.Option("--component", metavar="NAME", help="The pipeline stage; default: by the rules.")
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", metavar="KEY", help="The conversation; default: a new one.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The model; default: the first configured.")
    ] = None,
) -> int:
    """Say where a call would go, and why. Nothing is sent, but the providers are probed.

    The same session always gets the same answer at the same share: that is what keeps a conversation on one side.

    \b
    Example:
      llmctl explain --component synthesis --session conv-42 --model qwen3:8b
      llmctl explain --session conv-42 --json
    """
    from memos_llm.cli.explanation import document, view

    found = cli.run(_explain(cli, component, session, model))
    if session is None:
        cli.out.note("without --session each call has a key of its own; this is one of them")
    cli.out.result(document(found), *view(found))
    return failures.DONE


async def _explain(cli: Cli, component: str | None, session: str | None, model: str | None) -> "Explanation":
    from memos_llm.cli.explanation import explained
    from memos_llm.cli.opening import opened_store

    async with opened_store(cli.settings) as store:
        return await explained(cli.settings, store, component=component, session=session, model=model)
