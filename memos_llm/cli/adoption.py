"""`store adopt`: accept a store that was emptied, restored or replaced."""

from typing import TYPE_CHECKING, Annotated

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memos_llm.operate.documents import Adoption

app = typer.Typer(
    help="""Look after the store of flags and history.

\b
Example:
  llmctl store adopt
""",
    rich_markup_mode=None,
    no_args_is_help=False,
)


def adopt(
    cli: Cli,
    yes: Annotated[bool, typer.Option("--yes", help="Do it, and not only show what it would do.")] = False,
    force: Annotated[bool, typer.Option("--force", help="As --yes.")] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the history.")] = "",
) -> int:
    """Accept a store that is not the one that was in force: emptied, restored from a backup, or another one.

    Processes that know newer flags keep those, and refuse raises, until somebody says that the store is meant. From
    then on the store's shares are in force everywhere. Every latch is kept, and so are the conversations' sides. It
    shows what changes first, and does it with --yes (or --force, or --json). Run it where the gateway runs, or with
    --gateway: what was in force is known there.

    \b
    Example:
      llmctl store adopt
      llmctl store adopt --yes --reason "restored Monday's backup"
    """
    from msgspec import to_builtins

    from memos_llm.operate.orders import AdoptOrder

    sure = yes or force or cli.json
    found = cli.run(cli.desk.adopt(AdoptOrder(sure=sure, reason=reason)))
    cli.out.result(to_builtins(found), *_view(found))
    if found.unconfirmed:
        cli.out.warn(f"not seen to follow: {', '.join(found.unconfirmed)}")
    if found.fault and not found.adopted:
        raise failures.Failure("nothing was changed: --yes adopts the store", failures.REFUSED, "NOT_CONFIRMED")
    return failures.DONE


command(app, "adopt", short_help="Accept an emptied, restored or replaced store.")(adopt)


def _view(found: "Adoption") -> "Iterator[str]":
    from memos_llm.cli.output import percent

    if not found.fault:
        yield f"the store is well (revision {found.revision}): there is nothing to adopt"
        yield from (f"  note: {note}" for note in found.notes)
        return
    yield f"the store has regressed: {found.fault}"
    yield "shares in force, before and after:" if found.adopted else "shares in force now, and once it is adopted:"
    for name, before in found.before.items():
        after = found.after[name]
        mark = "  RAISED" if name in found.raised else "  latched" if name in found.latched else ""
        shown = "* (everything)" if name == "*" else name
        yield f"  {shown:<20} {percent(before):>6} -> {percent(after)}{mark}"
    yield from (f"  note: {note}" for note in found.notes)
    if found.adopted:
        who = f", followed by {', '.join(found.confirmed)}" if found.confirmed else ""
        yield f"adopted (revision {found.revision}){who}"
