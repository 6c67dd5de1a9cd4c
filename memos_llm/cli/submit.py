"""Submit one command and say what came of it: the new share, what it took with it, and who follows."""

from typing import TYPE_CHECKING, Any

from memos_llm.cli import failures
from memos_llm.cli.opening import actor, opened_live
from memos_llm.cli.output import percent
from memos_llm.cli.probing import ills, probe_all
from memos_llm.control.confirm import Confirmation
from memos_llm.control.live import Live
from memos_llm.core.commands import Command
from memos_llm.core.errors import Refused, StoreUnreachable
from memos_llm.core.flags import EMBEDDING, GLOBAL, Flags, format_share

if TYPE_CHECKING:
    from memos_llm.cli.command import Cli
    from memos_llm.config import Settings

CONFIRM_S = 10.0


async def check_health(settings: "Settings", provider: str) -> None:
    """Ask a provider now.

    Raises:
        Refused: it is not healthy; each reason is named.
    """
    health = await probe_all(spec for spec in settings.provider_specs() if spec.name == provider)
    found = ills(provider, health.get(provider, ()), settings.policy())
    if found:
        raise Refused(f"{provider} is not healthy: {'; '.join(found)}; mend it first (--force does not help)")


async def submit(cli: "Cli", wanted: Command, *, require_all: bool) -> int:
    """The exit code.

    Raises:
        Refused: nothing was changed.
        StoreUnreachable: nothing was changed, unless the message names a revision.
    """
    async with opened_live(cli.settings) as live:
        before = live.current()
        after = await live.submit(wanted, actor())
        followers = await _confirm(live, after)
    lost = dropped(before, after)
    share = format_share(after.share_ppm(wanted.scope))
    document: dict[str, Any] = {
        "revision": after.revision,
        "scope": wanted.scope,
        "provider": wanted.provider,
        "share": share,
        "confirmed": list(followers.confirmed),
        "unconfirmed": list(followers.unconfirmed),
        "dropped": lost,
    }
    cli.out.result(document, *_lines(wanted, before, after, followers))
    _say_more(cli, wanted, after, lost)
    _warn_of_followers(cli, followers)
    return failures.UNREACHABLE if require_all and followers.unconfirmed else failures.DONE


async def _confirm(live: Live, after: Flags) -> Confirmation:
    try:
        return await live.confirm(after.revision, CONFIRM_S)
    except StoreUnreachable as error:
        raise StoreUnreachable(
            f"revision {after.revision} is committed, but who follows it could not be seen: {error.message}"
        ) from error


def dropped(before: Flags, after: Flags) -> dict[str, float]:
    """The components whose own share was taken away, and what it was."""
    return {
        name: format_share(scope.share_ppm)
        for name, scope in before.scopes.items()
        if scope.share_ppm is not None and after.scope(name).share_ppm is None
    }


def _lines(wanted: Command, before: Flags, after: Flags, followers: Confirmation) -> list[str]:
    of = "everything" if wanted.scope == GLOBAL else wanted.scope
    was, now = (percent(format_share(flags.share_ppm(wanted.scope))) for flags in (before, after))
    if wanted.name == "rearm":
        lines = [f"the latch of {of} is lifted; {wanted.provider}'s share stays {now} (revision {after.revision})"]
    else:
        latch = after.effective(wanted.scope)[1].latch
        state = f", latched (incident {latch.incident})" if latch else ""
        lines = [f"{wanted.provider}'s share of {of}: {was} -> {now}{state} (revision {after.revision})"]
    if followers.confirmed:
        lines.append(f"followed by {', '.join(followers.confirmed)}")
    return lines


def _say_more(cli: "Cli", wanted: Command, after: Flags, lost: dict[str, float]) -> None:
    if lost:
        listed = ", ".join(f"{name} ({percent(share)})" for name, share in lost.items())
        cli.out.note(f"own shares dropped, these follow everything now: {listed}")
    if wanted.name != "shift" or wanted.scope != GLOBAL:
        return
    for name, scope in after.scopes.items():
        if scope.latch is not None and name != GLOBAL:
            cli.out.note(f"{name} is latched and stays at 0% until `llmctl rearm --component {name}`")
    if after.share_ppm(GLOBAL) and not after.share_ppm(EMBEDDING):
        cli.out.note("embedding stays with the baseline: vectors of two back ends never mix")


def _warn_of_followers(cli: "Cli", followers: Confirmation) -> None:
    if followers.unconfirmed:
        cli.out.warn(f"not seen to follow within {CONFIRM_S:g} s: {', '.join(followers.unconfirmed)}")
    elif not followers.confirmed:
        cli.out.warn("nothing follows this store: start `llmctl serve`, or check --config and --store")
