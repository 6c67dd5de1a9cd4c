"""How an attempt ended: decided once, at the provider's edge, and read from one table everywhere else."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct


class Kind(StrEnum):
    OK = "ok"
    CONNECT = "connect"
    TIMEOUT = "timeout"
    SERVER = "server"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    SATURATED = "saturated"
    CONFIG = "config"
    INCOMPATIBLE = "incompatible"
    CLIENT = "client"
    CANCELLED = "cancelled"


class Rule(NamedTuple):
    """What follows from a kind. `http_status` is what a client sees when no target is left."""

    try_next: bool
    counts_against_arm: bool
    http_status: int


OUTCOMES: Mapping[Kind, Rule] = {
    Kind.OK: Rule(try_next=False, counts_against_arm=False, http_status=200),
    Kind.CONNECT: Rule(try_next=True, counts_against_arm=True, http_status=503),
    Kind.TIMEOUT: Rule(try_next=True, counts_against_arm=True, http_status=504),
    Kind.SERVER: Rule(try_next=True, counts_against_arm=True, http_status=502),
    Kind.TRUNCATED: Rule(try_next=True, counts_against_arm=True, http_status=502),
    Kind.MALFORMED: Rule(try_next=True, counts_against_arm=True, http_status=502),
    Kind.SATURATED: Rule(try_next=True, counts_against_arm=True, http_status=503),
    Kind.CONFIG: Rule(try_next=True, counts_against_arm=True, http_status=502),
    Kind.INCOMPATIBLE: Rule(try_next=True, counts_against_arm=True, http_status=400),
    Kind.CLIENT: Rule(try_next=False, counts_against_arm=False, http_status=400),
    Kind.CANCELLED: Rule(try_next=False, counts_against_arm=False, http_status=499),
}

MODEL_NOT_FOUND = "model_not_found"  # the code of a `config` outcome that a client may have caused by a wrong name

NOT_SUPPORTED = "not_supported"  # the code of a `config` outcome: the model there cannot do it (501)

NO_FINISH = "no-finish"  # the code of a `truncated` outcome whose body ended well but without a terminal marker
BREAKER_OPEN = "breaker-open"  # the code of a `saturated` outcome that nobody was asked about: all endpoints had failed


class Outcome(Struct, frozen=True, kw_only=True):
    """How one attempt ended.

    Attributes:
        status: the back end's HTTP status, 0 when there was none.
        code: which limit or which fault, machine-readable (`ttft`, `refused`, `model_not_found`, …); bounded in number.
        retry_after_s: what the back end asked for, if it did.
    """

    kind: Kind
    status: int = 0
    code: str = ""
    retry_after_s: float | None = None

    @property
    def rule(self) -> Rule:
        return OUTCOMES[self.kind]


OK = Outcome(kind=Kind.OK)
