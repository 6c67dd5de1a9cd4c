"""`explain`: where a call would go and why, nothing sent. The decision is the engine's own."""

from typing import TYPE_CHECKING, Annotated

import typer

from memos_llm.cli import completion, failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memos_llm.operate.documents import Explained


def register(app: typer.Typer) -> None:
    command(app, "explain", short_help="Where a call would go, and why.")(explain)


def explain(
    cli: Cli,
    component: Annotated[
        str | None,
        typer.Option(
            "--component",
            metavar="NAME",
            help="The pipeline stage; default: by the rules.",
            autocompletion=completion.components,
        ),
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", metavar="KEY", help="The conversation; default: a new one.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="The model; default: the first configured.",
            autocompletion=completion.models,
        ),
    ] = None,
) -> int:
    """Say where a call would go, and why. Nothing is sent to a model.

    The same session always gets the same answer at the same share: that is what keeps a conversation on one side.

    \b
    Example:
      llmctl explain --component synthesis --session conv-42 --model qwen3:8b
      llmctl explain --session conv-42 --json
    """
    from msgspec import to_builtins

    from memos_llm.operate.orders import ExplainOrder

    found = cli.run(cli.desk.explain(ExplainOrder(component=component, session=session, model=model)))
    if session is None:
        cli.out.note("without --session each call has a key of its own; this is one of them")
    cli.out.result(to_builtins(found), *_view(found))
    return failures.DONE


def _view(found: "Explained") -> "Iterator[str]":
    _, *others = found.targets
    yield f"{found.provider} serves it, as {found.model} ({found.arm} arm, reason {found.reason})"
    yield f"  why        {found.why}"
    yield f"  call       component {found.component}, session {found.session}, model {found.logical_model}"
    if others:
        yield f"  then       {', '.join(f'{target.provider} ({target.model})' for target in others)}"
    yield f"  flags      revision {found.revision}, scope {found.scope}, epoch {found.epoch}"
