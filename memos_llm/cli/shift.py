"""Moving the split: `shift`, `rollback`, `rearm`, `maintenance`. Each submits one command and says who follows it."""

from typing import TYPE_CHECKING, Annotated

import typer

from memos_llm.cli import asked, completion, failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memos_llm.operate.documents import Change

ComponentOption = Annotated[
    str | None,
    typer.Option(
        "--component",
        metavar="NAME",
        help="One component only; default: everything (*).",
        autocompletion=completion.components,
    ),
]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the history.")]
RequireAllOption = Annotated[
    bool, typer.Option("--require-all", help="Exit 4 unless every live instance is seen to follow.")
]

WaitOption = Annotated[
    float, typer.Option("--wait", metavar="SECONDS", min=0, max=10, help="How long to wait for the instances.")
]
WAIT_S = 10.0


def register(app: typer.Typer) -> None:
    command(
        app,
        "shift",
        short_help="Set the candidate's share of the traffic.",
        cls=completion.WithCandidate,
        options_metavar="--CANDIDATE SHARE [OPTIONS]",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},  # the candidate's name is one
    )(shift)
    command(app, "rollback", short_help="Take the share back to 0 at once, latched.")(rollback)
    command(app, "rearm", short_help="Lift the latch of a rollback.")(rearm)
    command(app, "maintenance", short_help="Drain a provider for a while, and roll nothing back.")(maintenance)


def shift(
    cli: Cli,
    ctx: typer.Context,
    component: ComponentOption = None,
    reason: ReasonOption = "",
    require_all: RequireAllOption = False,
    wait: WaitOption = WAIT_S,
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
    from memos_llm.operate.orders import ShiftOrder

    provider, share = asked.share(ctx.args, None if cli.gateway_url else cli.settings)
    asked.check_scope(component, new_index=new_index)
    order = ShiftOrder(
        provider=provider, share=share, component=component, reason=reason, new_index=new_index, wait_s=wait
    )
    return tell(cli, cli.run(cli.desk.shift(order)), require_all=require_all)


def rollback(
    cli: Cli,
    component: ComponentOption = None,
    reason: ReasonOption = "",
    require_all: RequireAllOption = False,
    wait: WaitOption = WAIT_S,
) -> int:
    """Take the candidate's share back to 0, at once, and latch it there.

    New requests go to the baseline; streams that run are finished where they are. The latch holds until
    `llmctl rearm`; a rollback by hand has no hold-down. It is never refused.

    \b
    Example:
      llmctl rollback --reason "answers look wrong"
      llmctl rollback --component synthesis
    """
    from memos_llm.operate.orders import RollbackOrder

    asked.check_scope(component)
    order = RollbackOrder(component=component, reason=reason, wait_s=wait)
    return tell(cli, cli.run(cli.desk.rollback(order)), require_all=require_all)


def rearm(
    cli: Cli,
    component: ComponentOption = None,
    reason: ReasonOption = "",
    force: Annotated[bool, typer.Option("--force", help="Cut the hold-down short; needs --reason.")] = False,
    require_all: RequireAllOption = False,
    wait: WaitOption = WAIT_S,
) -> int:
    """Lift the latch of a rollback. The share stays 0 until the next shift.

    The candidate is probed first and must be healthy; --force overrides a hold-down, never ill health.

    \b
    Example:
      llmctl rearm --reason "driver fixed"
      llmctl rearm --component synthesis --force --reason "was a false alarm"
    """
    from memos_llm.operate.orders import RearmOrder

    asked.check_scope(component)
    order = RearmOrder(component=component, force=force, reason=reason, wait_s=wait)
    return tell(cli, cli.run(cli.desk.rearm(order)), require_all=require_all)


def maintenance(
    cli: Cli,
    provider: Annotated[
        str, typer.Argument(metavar="PROVIDER", help="Whom to drain.", autocompletion=completion.providers)
    ],
    lasts: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="How long: 90s, 10m, 2h; 24h at most.", show_default=False),
    ] = None,
    end: Annotated[bool, typer.Option("--end", help="It is over: take requests again.")] = False,
    reason: ReasonOption = "",
    require_all: RequireAllOption = False,
    wait: WaitOption = WAIT_S,
) -> int:
    """Drain a provider before a planned restart: its new requests go to the fallback, and nothing is rolled back.

    Shares and latches stay as they are. It ends by itself when the time is over, or with --end. Requests that run
    are finished where they are: `llmctl status` tells how many of a gateway's are still in flight.

    \b
    Example:
      llmctl maintenance vllm --for 10m --reason "new driver"
      llmctl maintenance vllm --end
    """
    from memos_llm.core.errors import BadRequest
    from memos_llm.operate.orders import MaintenanceOrder

    if end and lasts is not None:
        raise failures.usage(
            "--for and --end do not go together: --for 10m begins it or changes its end, --end ends it now"
        )
    if not end and lasts is None:
        raise failures.usage("say how long: --for 10m (90s, 2h; 24h at most); or --end, when it is over")
    order = MaintenanceOrder(provider=provider, lasts=lasts, end=end, reason=reason, wait_s=wait)
    try:
        _ = order.for_s
    except BadRequest as error:
        raise failures.usage(f"--{error.message}") from None
    if cli.gateway_url is None:
        asked.provider(provider, cli.settings)
    return tell(cli, cli.run(cli.desk.maintenance(order)), require_all=require_all)


def tell(cli: Cli, change: "Change", *, require_all: bool = False) -> int:
    """Say what came of it. The exit code."""
    from msgspec import to_builtins

    cli.out.result(to_builtins(change), *_lines(change))
    for note in change.notes:
        cli.out.note(note)
    for warning in change.warnings:
        cli.out.warn(warning)
    return failures.UNREACHABLE if require_all and change.unconfirmed else failures.DONE


def _lines(change: "Change") -> "Iterator[str]":
    from memos_llm.cli.output import clock, percent

    of = "everything" if change.scope == "*" else change.scope
    was, now = percent(change.share_before), percent(change.share)
    if change.command == "maintain" and change.until is not None:
        yield f"{change.provider} is drained until {clock(change.until)} (revision {change.revision})"
    elif change.command == "maintain":
        yield f"{change.provider} takes requests again (revision {change.revision})"
    elif change.command == "rearm":
        yield f"the latch of {of} is lifted; {change.provider}'s share stays {now} (revision {change.revision})"
    else:
        state = f", latched (incident {change.latched})" if change.latched else ""
        yield f"{change.provider}'s share of {of}: {was} -> {now}{state} (revision {change.revision})"
    if change.confirmed:
        yield f"followed by {', '.join(change.confirmed)}"
