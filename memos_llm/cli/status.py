"""`status`: what is in force, who is up, who follows. Reads only."""

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from memos_llm.cli.standing import Standing

EVERY_S = 2.0


def register(app: typer.Typer) -> None:
    command(app, "status", short_help="What is in force, who is up, who follows.")(status)


def status(
    cli: Cli,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every 2 s, until Ctrl-C.")] = False,
) -> int:
    """Show what is in force: shares, latches, the providers' health, live instances.

    The providers are probed now (3 s at most). It says so when the configuration's share and the store's differ: the
    file's share seeds a new store only, `llmctl shift` is what changes it.

    \b
    Example:
      llmctl status
      llmctl status --watch
      llmctl status --json | jq '.shares["*"]'
    """
    if watch and cli.json:
        raise failures.usage("--watch draws on a terminal; with --json call status again instead")
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            cli.run(_watch(cli))
        return failures.DONE
    now = cli.run(_look(cli))
    from memos_llm.cli.standing import document, view

    cli.out.result(document(now), *view(now))
    return failures.DONE


async def _look(cli: Cli) -> "Standing":
    from memos_llm.cli.opening import opened_store
    from memos_llm.cli.standing import look

    async with opened_store(cli.settings) as store:
        return await look(cli.settings, store)


async def _watch(cli: Cli) -> None:
    import asyncio

    from rich.console import Group
    from rich.live import Live

    from memos_llm.cli.opening import opened_store
    from memos_llm.cli.standing import look, view

    async with opened_store(cli.settings) as store:
        with Live(console=cli.out.console, auto_refresh=False) as screen:
            while True:
                screen.update(Group(*view(await look(cli.settings, store))), refresh=True)
                await asyncio.sleep(EVERY_S)
