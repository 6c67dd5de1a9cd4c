"""Moving the split: `shift`, `rollback`, `rearm`. Each submits one command and says which instances follow it."""

from typing import TYPE_CHECKING, Annotated

import typer

from memos_llm.cli import asked
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from memos_llm.core.commands import Command

ComponentOption = Annotated[
    str | None, typer.Option("--component", metavar="NAME", help="One component only; default: everything (*).")
]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the history.")]
RequireAllOption = Annotated[
    bool, typer.Option("--require-all", help="Exit 4 unless every live instance is seen to follow.")
]


def register(app: typer.Typer) -> None:
    command(
        app,
        "shift",
        short_help="Set the candidate's share of the traffic.",
        options_metavar="--CANDIDATE SHARE [OPTIONS]",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},  # the candidate's name is one
    )(shift)
    command(app, "rollback", short_help="Take the share back to 0 at once, latched.")(rollback)
    command(app, "rearm", short_help="Lift the latch of a rollback.")(rearm)


def shift(
    cli: Cli,
    ctx: typer.Context,
    component: ComponentOption = None,
    reason: ReasonOption = "",
    require_all: RequireAllOption = False,
    new_index: Annotated[
        bool, typer.Option("--new-index", help="With --component embedding: the index is built anew.")
    ] = False,
) -> int:
    """Set the candidate's share of the traffic, up or down.

    The option's name is the configured candidate's: --vllm 0.3 (or 30%) sends three of ten conversations to vllm.
    Without --component it is the share of everything, and components lose shares of their own. It waits up to 10 s
    for every live instance to follow, and says which did.

    \b
    Example:
      llmctl shift --vllm 0.05 --reason "first step"
      llmctl shift --vllm 30% --component synthesis
      llmctl shift --vllm 0 --require-all
    """
    from memos_llm.core.commands import Shift

    settings = cli.settings
    share_ppm = asked.share_ppm(ctx.args, settings)
    scope = asked.scope(component)
    asked.check_new_index(new_index, scope)
    wanted = Shift(provider=asked.candidate(settings), share_ppm=share_ppm, scope=scope, reason=reason.strip())
    for warning in asked.doubts(scope, settings):
        cli.out.warn(warning)
    return _submit(cli, wanted, require_all)


def rollback(
    cli: Cli,
    component: ComponentOption = None,
    reason: ReasonOption = "",
    require_all: RequireAllOption = False,
) -> int:
    """Take the candidate's share back to 0, at once, and latch it there.

    New requests go to the baseline; streams that run are finished where they are. The latch holds until
    `llmctl rearm`; a rollback by hand has no hold-down. It is never refused.

    \b
    Example:
      llmctl rollback --reason "answers look wrong"
      llmctl rollback --component synthesis
    """
    from secrets import token_hex

    from memos_llm.core.commands import Rollback

    wanted = Rollback(
        provider=asked.candidate(cli.settings),
        incident=f"inc-{token_hex(6)}",
        scope=asked.scope(component),
        reason=reason.strip(),
    )
    return _submit(cli, wanted, require_all)


def rearm(
    cli: Cli,
    component: ComponentOption = None,
    reason: ReasonOption = "",
    force: Annotated[bool, typer.Option("--force", help="Cut the hold-down short; needs --reason.")] = False,
    require_all: RequireAllOption = False,
) -> int:
    """Lift the latch of a rollback. The share stays 0 until the next shift.

    The candidate is probed first and must be healthy; --force overrides a hold-down, never ill health.

    \b
    Example:
      llmctl rearm --reason "driver fixed"
      llmctl rearm --component synthesis --force --reason "was a false alarm"
    """
    from memos_llm.cli.submit import check_health
    from memos_llm.core.commands import Rearm

    cli.run(check_health(cli.settings, asked.candidate(cli.settings)))
    wanted = Rearm(
        provider=asked.candidate(cli.settings), scope=asked.scope(component), force=force, reason=reason.strip()
    )
    return _submit(cli, wanted, require_all)


def _submit(cli: Cli, wanted: "Command", require_all: bool) -> int:
    from memos_llm.cli.submit import submit

    return cli.run(submit(cli, wanted, require_all=require_all))
