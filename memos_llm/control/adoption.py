"""Accepting a store that has regressed: emptied, restored from a backup, or another one.

What comes of it, as a pure function: the shares are the store's, everything else that must not be lost is kept:
- the salt in force here, so that every conversation keeps its slot;
- every latch, of either side, unless the store shows that a human lifted it later;
- the share of embeddings where the store says nothing of them (an index's vectors must not change sides unsaid), unless
  the store's shares are another provider's; the proofs of equal vectors;
- what the next hold-down grows by, and a maintenance, of either side.

How the processes agree: an installation's id names, behind its own, the ids that it took over (`new/old/older`). A
process believes flags whose installation took over its own, whatever their revision; nothing else has changed for it.
So all processes accept the adopted store, those that held the old flags (at any revision) and those that had begun on
the regressed one; and none ever goes back from it.
"""

import secrets
from collections.abc import Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from memos_llm.core.commands import REMEMBERED as ROLLBACKS_REMEMBERED
from memos_llm.core.flags import EMBEDDING, GLOBAL, Flags, Scope

REMEMBERED = 8  # installations that an id names behind its own


def own_id(installation: str) -> str:
    return installation.partition("/")[0]


def took_over(read: Flags, known: Flags) -> bool:
    """Whether the installation of `read` is the adopted successor of that of `known`."""
    _, *earlier = read.installation.split("/")
    return bool(known.installation) and own_id(known.installation) in earlier


def successor(*installations: str) -> str:
    """A new installation's id, which takes over others; what it does not know by name it cannot take over."""
    earlier = [part for installation in installations for part in installation.split("/") if part]
    return "/".join((secrets.token_hex(8), *list(dict.fromkeys(earlier))[:REMEMBERED]))


class Adopt(Struct, frozen=True, kw_only=True):
    """A command: the store's flags become the successor of those that are in force here (`known`)."""

    known: Flags
    installation: str
    reason: str = ""
    scope: str = GLOBAL
    provider: str = ""
    name: str = "adopt"

    def apply(self, flags: Flags, now: float) -> Flags:
        scopes = {name: self._scope(name, flags, now) for name in (*flags.scopes, *_more(self.known, flags))}
        drained = {**self.known.maintenance, **flags.maintenance}
        return Flags(
            schema=max(self.known.schema, flags.schema),
            installation=self.installation,
            revision=max(self.known.revision, flags.revision) + 1,
            salt=self.known.salt or flags.salt,
            scopes=scopes,
            candidate=flags.candidate if flags.given() else self.known.candidate or flags.candidate,
            maintenance={name: until for name, until in drained.items() if until > now},
            verified={**self.known.verified, **flags.verified},
        )

    def _scope(self, name: str, read: Flags, now: float) -> Scope:
        ours, theirs = self.known.scope(name), read.scope(name)
        another = bool(read.given()) and read.candidate != self.known.candidate
        if name == EMBEDDING and theirs.share_ppm is None and not another:
            theirs = replace(theirs, share_ppm=ours.share_ppm, new_index=ours.new_index)
        latch = theirs.latch
        if latch is None and ours.latch is not None and theirs.rearmed_at <= ours.latch.since:
            latch = ours.latch
        return Scope(
            share_ppm=theirs.share_ppm if latch is None else 0,
            epoch=max(ours.epoch, theirs.epoch) + 1,
            latch=latch,
            rearmed_at=max(ours.rearmed_at, theirs.rearmed_at),
            new_index=theirs.new_index and latch is None,
            since=now,
            rolled_back=tuple(sorted({*ours.rolled_back, *theirs.rolled_back}))[-ROLLBACKS_REMEMBERED:],
        )


def _more(known: Flags, read: Flags) -> tuple[str, ...]:
    """Scopes that only we know, kept for their epochs and latches."""
    return tuple(name for name in known.scopes if name not in read.scopes)


class Proposal(Struct, frozen=True, kw_only=True):
    """What adopting would do: the command, the store's flags it was worked out on (None: empty), and the result."""

    command: Adopt
    read: Flags | None
    after: Flags
    fault: str

    @property
    def notes(self) -> Iterator[str]:
        yield from notes(self.command.known, self.read, self.after)


def propose(known: Flags, read: Flags | None, base: Flags, fault: str, reason: str, now: float) -> Proposal:
    """`base` stands for a store that is empty."""
    installation = successor(known.installation, read.installation if read else "")
    command = Adopt(known=known, installation=installation, reason=reason)
    return Proposal(command=command, read=read, after=command.apply(read or base, now), fault=fault)


def notes(known: Flags, read: Flags | None, after: Flags) -> Iterator[str]:
    """What a person should know of it."""
    if read is not None and read.salt != known.salt:
        yield "conversations keep the side that they have here; those of processes that began on this store may move"
    if known.share_ppm(EMBEDDING) != after.share_ppm(EMBEDDING):
        yield "embedding changes sides: indexes must hold the vectors of that side"
    for name, latch in _lifted(known, after).items():
        yield f"the latch of {name} (incident {latch}) is not carried over: the store has it lifted later"


def _lifted(known: Flags, after: Flags) -> Mapping[str, str]:
    return {
        name: scope.latch.incident
        for name, scope in known.scopes.items()
        if scope.latch is not None and after.scope(name).latch is None
    }
