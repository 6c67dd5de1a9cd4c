"""The one versioned document that routing reads: an immutable snapshot in every process.

Only commands (`core.commands`) make a new one; only a store keeps one; `revision` grows by one with every change.
Shares are integer parts per million inside and 0…1 outside (`parse_share`, `format_share`).
"""

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

SCHEMA = 1  # one number on everything stored; a reader that finds a newer one is read-only
PPM = 1_000_000
GLOBAL = "*"
EMBEDDING = "embedding"  # never follows `*`: the vectors of two back ends do not mix


class Latch(Struct, frozen=True):
    """State after a rollback: no share above 0 in this scope until a human re-arms it.

    Attributes:
        since, holddown_until: Unix time in seconds; a manual rollback has no hold-down (`holddown_until == since`).
        incident: the id of the incident that tells why.
    """

    provider: str
    since: float
    incident: str
    holddown_until: float

    @property
    def automatic(self) -> bool:
        """Whether the guard set it: only then there is a hold-down."""
        return self.holddown_until > self.since


class Verification(Struct, frozen=True, kw_only=True):
    """Proof that two back ends' vectors of one model are the same: `llmctl embeddings verify` records it.

    Attributes:
        baseline, candidate: the model's own names there; another name is another pair and needs its own proof.
        dimension: of the vectors of both. cosine_min: the least similarity over all texts, −1…1.
        texts: how many were compared. at: Unix seconds.
    """

    baseline: str
    candidate: str
    dimension: int
    cosine_min: float
    texts: int
    at: float


COSINE_LIMIT = 0.999  # vectors at least this similar may stand in one index


class Scope(Struct, frozen=True):
    """Share, epoch and latch of everything (`*`) or of one component.

    `share_ppm` is None for a component that follows `*` (it is listed for its epoch or latch only). `rearmed_at` is
    when its last latch was lifted (Unix time in seconds, 0 for never): evidence older than that latches it no more.
    `new_index` is of embeddings alone: the index is built anew, so that unverified models move too. `since` is when the
    epoch began; `rolled_back`: the last automatic rollbacks, oldest first, which the hold-down grows by (Unix seconds).
    """

    share_ppm: int | None = None
    epoch: int = 0
    latch: Latch | None = None
    rearmed_at: float = 0.0
    new_index: bool = False
    since: float = 0.0
    rolled_back: tuple[float, ...] = ()


class Flags(Struct, frozen=True, kw_only=True):
    """The document.

    Attributes:
        installation: random id of the store; another one means another (or a recreated) store.
        salt: random per installation (hex); unchanged by share, step, plan or retry, so keys keep their slots.
        scopes: always holds `*`.
        candidate: the provider that the shares were set for; empty while none was. What is one provider's never
            becomes another's because a configuration says so.
        verified: logical embedding model → the proof that its vectors are the same on both sides.
        maintenance: provider → until when (Unix seconds) it is drained: its requests are diverted, nothing latches.
    """

    schema: int = SCHEMA
    installation: str
    revision: int
    salt: str
    scopes: Mapping[str, Scope]
    candidate: str = ""
    verified: Mapping[str, Verification] = {}
    maintenance: Mapping[str, float] = {}

    def scope(self, name: str) -> Scope:
        return self.scopes.get(name, Scope())

    def share_ppm(self, component: str) -> int:
        """The candidate's share of one component's traffic, latches applied."""
        return self.effective(component)[1].share_ppm or 0

    def proof(self, model: str, baseline: str, candidate: str) -> Verification | None:
        """The proof that a logical model's vectors are the same under these two names of it."""
        proof = self.verified.get(model)
        return proof if proof and (proof.baseline, proof.candidate) == (baseline, candidate) else None

    @property
    def rearmed_at(self) -> float:
        """When a latch of any scope was lifted last, Unix seconds; 0: never."""
        return max(scope.rearmed_at for scope in self.scopes.values())

    def maintained(self, now: float) -> frozenset[str]:
        """The providers under maintenance; `now` in Unix seconds."""
        return frozenset(name for name, until in self.maintenance.items() if until > now)

    def given(self) -> dict[str, int]:
        """Every scope whose own share is above 0, and that share."""
        return {name: scope.share_ppm for name, scope in self.scopes.items() if scope.share_ppm}

    def effective(self, component: str) -> tuple[str, Scope]:
        """The scope that speaks for a component, and what it says; a latch makes the share 0."""
        own = self.scopes.get(component)
        if component == EMBEDDING:
            return component, own or Scope(share_ppm=0)
        everything = self.scopes[GLOBAL]
        if own is not None and own.latch is not None:
            return component, replace(own, share_ppm=0)
        if everything.latch is not None:
            return GLOBAL, replace(everything, share_ppm=0)
        if own is not None and own.share_ppm is not None:
            return component, own
        return GLOBAL, everything


def fresh(installation: str, salt: str, share_ppm: int = 0, candidate: str = "") -> Flags:
    """The first document of a new store."""
    scopes = {GLOBAL: Scope(share_ppm=share_ppm)}
    return Flags(installation=installation, revision=1, salt=salt, scopes=scopes, candidate=candidate)


def parse_share(text: str) -> int:
    """Parts per million from `0.3` or `30%`.

    Raises:
        ValueError: with a message that says how to write it (a bare `30` names both readings).
    """
    raw = text.strip()
    try:
        value = float(raw[:-1]) / 100 if raw.endswith("%") else float(raw)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a share: write a fraction such as 0.3, or a percentage such as 30%"
        ) from None
    if not raw.endswith("%") and 1 < value <= 100:
        raise ValueError(
            f"a share is a fraction from 0 to 1: for {value:g} per cent write {value / 100:g} or {value:g}%"
        )
    if not 0 <= value <= 1:  # also refuses NaN
        raise ValueError(f"{text!r} is outside 0 to 1 (0% to 100%)")
    return round(value * PPM)


def format_share(share_ppm: int) -> float:
    return share_ppm / PPM
