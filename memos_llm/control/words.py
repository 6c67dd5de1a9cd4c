"""What the driver says of the store and of its cuts, and how a new store begins."""

import secrets
from pathlib import Path

from msgspec.structs import replace

from memos_llm.control.adopt import Cut, blank
from memos_llm.core.commands import Audit
from memos_llm.core.events import RollbackHeld
from memos_llm.core.flags import GLOBAL, SCHEMA, Flags, format_share


def founding() -> Flags:
    """The base of a command that is the first ever on a store: share 0, its own installation and salt."""
    return replace(blank(), installation=secrets.token_hex(8), salt=secrets.token_hex(16))


def seeded(flags: Flags, at: float, actor: str) -> Audit:
    """The first line of a history that begins with a configured share."""
    return Audit(
        revision=flags.revision,
        at=at,
        actor=actor,
        command="seed",
        scope=GLOBAL,
        provider="",
        share_before=0.0,
        share_after=format_share(flags.share_ppm(GLOBAL)),
    )


def regressed(fault: str, last_good: Path | None) -> str:
    at = "" if last_good is None else f" (kept in {last_good})"
    return (
        f"the store has regressed: {fault}; the last good flags{at} stay in force here. "
        f"Put the right store back, or, if this one is meant: `llmctl store adopt`"
    )


def newer(schema: int) -> str:
    return (
        f"a newer memos_llm has taken the store over (schema {schema}, this version knows {SCHEMA}): its flags are "
        f"followed here and nothing can be changed; upgrade this one"
    )


def withdrawn(cut: Cut, scope: str) -> RollbackHeld:
    why, detail = (
        "newer-epoch",
        f"the flags of {scope} changed after what was judged: the new epoch is judged by itself",
    )
    if cut.stale:
        why, detail = "too-old", "a process that ended long ago decided it and could not publish it; nobody else has"
    return RollbackHeld(provider=cut.command.provider, scope=scope, trigger=cut.command.trigger, why=why, detail=detail)
