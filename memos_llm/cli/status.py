"""`status`: what is in force, who is up, who follows. Reads only."""

import contextlib
from typing import Annotated

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command
from memos_llm.core.errors import LLMError

EVERY_S = 2.0


def register(app: typer.Typer) -> None:
    command(app, "status", short_help="What is in force, who is up, who follows.")(status)


def status(
    cli: Cli,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every 2 s, until Ctrl-C.")] = False,
) -> int:
    """Show what is in force: shares, latches, the providers' health, live instances.

    The providers are probed now (3 s at most); with --gateway it is what that gateway knows: breakers, requests in
    flight, and of the guard every rule, where the store alone knows the windows' two. It says so when the
    configuration's share and the store's differ: the file's share seeds a new store only, `llmctl shift` is what
    changes it.

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
    from msgspec import to_builtins

    from memos_llm.cli.standing import view

    now = cli.run(cli.desk.status())
    cli.out.result(to_builtins(now), *view(now))
    return failures.DONE


async def _watch(cli: Cli) -> None:
    """A store or gateway that does not answer is said on the screen, and asked again."""
    import asyncio
    from datetime import datetime

    from rich.console import Group
    from rich.live import Live

    from memos_llm.cli.standing import view

    desk = cli.desk
    with Live(console=cli.out.console, auto_refresh=False) as screen:
        while True:
            try:
                now = await desk.status()
                shown = Group(f"at {datetime.fromtimestamp(now.at):%H:%M:%S} (Ctrl-C ends)", *view(now))
            except (failures.Failure, LLMError) as error:
                shown = Group(f"cannot look: {error.message}")
            screen.update(shown, refresh=True)
            await asyncio.sleep(EVERY_S)
