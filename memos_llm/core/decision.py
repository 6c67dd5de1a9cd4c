"""Where a call goes and why. A decision is a pure function of (call, flags, catalogue, offers)."""

from enum import StrEnum

from msgspec import Struct

from memos_llm.core.call import Feature, Quirk, Target, Wire


class Arm(StrEnum):
    """The side a request was *assigned* to, whoever serves it in the end."""

    BASELINE = "baseline"
    CANDIDATE = "candidate"


class Reason(StrEnum):
    """Why: logged, counted, returned in `x-memos-reason`."""

    SPLIT = "split"
    PIN = "pin"
    LATCHED = "latched"
    UNMAPPED_MODEL = "unmapped-model"
    NOT_OFFERED = "not-offered"
    DIVERTED = "diverted"
    OVERRIDE = "override"
    EMBEDDINGS_UNVERIFIED = "embeddings-unverified"
    PASSTHROUGH = "passthrough"


class Offer(Struct, frozen=True):
    """What a provider can do with one of its models right now; told without I/O.

    Attributes:
        wires: the byte formats it speaks for that model.
        refused: why it takes nothing at the moment (`down`, `breaker-open`, `maintenance`), or None when it does. It
            is diverted from; the arm stays.
        context_tokens: the model's context length there, None when not known.
        quirks: what its release needs otherwise.
        listed: whether its servers, as far as they told, have the model.
        known: whether any of them told anything yet; else the above is a guess.
    """

    wires: frozenset[Wire]
    features: Feature = Feature.ALL
    refused: str | None = None
    context_tokens: int | None = None
    quirks: Quirk = Quirk.NONE
    listed: bool = True
    known: bool = True


class Diversion(Struct, frozen=True):
    """A target that was passed over because its provider was refusing."""

    provider: str
    reason: str


class Decision(Struct, frozen=True, kw_only=True):
    """The assigned arm, the chain in order, and the reason.

    Attributes:
        scope: the scope whose share spoke (`*` or a component); `epoch` is that scope's.
        diverted: the targets passed over on the way to `targets[0]`.
    """

    arm: Arm
    targets: tuple[Target, ...]
    reason: Reason
    scope: str
    epoch: int
    revision: int
    shadow: Target | None = None
    diverted: tuple[Diversion, ...] = ()

    @property
    def assigned(self) -> str:
        """The provider that the request was assigned to, whoever it was diverted to."""
        return self.diverted[0].provider if self.diverted else self.targets[0].provider
