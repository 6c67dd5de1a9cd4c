"""Who makes a request, and what that one may do.

`entry` finds it out before anything is routed and leaves it in the ASGI scope; routes ask for the scope they need.
"""

from collections.abc import Mapping, MutableMapping
from enum import StrEnum
from typing import Any

from msgspec import Struct

from memos_llm.core.errors import Forbidden, Unauthorized

_PLACE = "memos_llm.principal"


class Right(StrEnum):
    """What a key's scopes grant."""

    INFERENCE = "inference"  # the data paths
    METRICS = "metrics"  # /metrics
    READ = "read"  # to look: status, history, explain, …
    OPERATE = "operate"  # to the safe side: shares down, rollback, pause
    ADMIN = "admin"  # to the other: shares up, re-arm, overrides, Ollama's management routes


IMPLIES: Mapping[Right, frozenset[Right]] = {
    Right.INFERENCE: frozenset({Right.INFERENCE}),
    Right.METRICS: frozenset({Right.METRICS}),
    Right.READ: frozenset({Right.READ}),
    Right.OPERATE: frozenset({Right.READ, Right.OPERATE}),
    Right.ADMIN: frozenset({Right.READ, Right.OPERATE, Right.ADMIN}),
}
"""Who may change things may see them. Nothing else is implied: an admin key serves no inference."""


class Principal(Struct, frozen=True):
    """The one who asks. `id` is what the history names: a key's id, `admin-token`, or `anonymous` on loopback."""

    id: str
    rights: frozenset[Right]
    component: str | None = None

    def require(self, right: Right) -> None:
        """Raises:
        Unauthorized: nobody in particular asks, and this takes somebody.
        Forbidden: naming the scope that is missing.
        """
        if right in self.rights:
            return
        if self.id == ANONYMOUS.id:
            raise Unauthorized(f"this needs a key with the scope {right.value!r}, or the admin token")
        raise Forbidden(f"this needs a key with the scope {right.value!r}; {self.id} does not have it")


def rights_of(scopes: tuple[str, ...]) -> frozenset[Right]:
    """What the scopes of a configured key grant together."""
    return frozenset().union(*(IMPLIES[Right(scope)] for scope in scopes))


ANONYMOUS = Principal("anonymous", frozenset({Right.INFERENCE, Right.METRICS}))
"""Anyone on this machine, where no keys are configured. What needs more takes the admin token, on loopback too."""

NOBODY = Principal("anonymous", frozenset())
"""Whoever asks for what is open to all: nobody looked at the key."""


def leave(scope: MutableMapping[str, Any], principal: Principal) -> None:
    scope[_PLACE] = principal


def found(scope: Mapping[str, Any]) -> Principal:
    principal: Principal = scope[_PLACE]
    return principal
