"""What every rule table of a translation is made of, so that the docs can be generated from the tables."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

from msgspec import Raw, Struct, field

from memos_llm.core.call import Call, Quirk, Target
from memos_llm.core.decision import Offer
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.dialects.jsons import decode_optional

T = TypeVar("T")


class Policy(StrEnum):
    """What becomes of a field: exact; near enough, and said so; left out silently; left out and said; not taken."""

    MAPPED = "mapped"
    APPROXIMATED = "approximated"
    IGNORED = "ignored"
    DROPPED = "dropped"
    REFUSED = "refused"


SAID = (Policy.APPROXIMATED, Policy.DROPPED)
"""What the caller is told of, as `<policy>:<field>`."""


class Draft(Struct):
    """A back end's request while it is being written."""

    call: Call
    target: Target
    offer: Offer
    body: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def read(self, key: str, kind: type[T]) -> T | None:
        """A value of the caller's head; None when absent or null.

        Raises:
            AttemptFailed: `client`, naming the key, when it has another type.
        """
        if key not in self.call.head:
            return None
        try:
            return decode_optional(self.call.head[key], kind)
        except ValueError as error:
            raise bad_request(f"{key}: {error}") from None

    def warn(self, policy: Policy, name: str) -> None:
        self.warnings.append(f"{policy.value}:{name}")


class Rule(Struct, frozen=True):
    """One key of the caller's request.

    Attributes:
        apply: writes into the draft; None when there is nothing to write (or another rule does it). It is called
            when the key is given and not null, or always when `always`.
        to: the back end's field, for the docs.
        says: which further warnings it can give besides the one of its policy, for the docs.
    """

    policy: Policy
    to: str = ""
    apply: Callable[[Draft], None] | None = None
    note: str = ""
    always: bool = False
    says: tuple[Policy, ...] = ()


def carry_out(rules: dict[str, Rule], draft: Draft) -> None:
    """Apply a table. What the head holds beyond it is unknown to the caller's own server too, and means nothing."""
    for key, rule in rules.items():
        given = is_given(draft.call, key)
        if rule.apply is not None and (given or rule.always):
            rule.apply(draft)
        elif given and rule.policy is Policy.DROPPED and bytes(draft.call.head[key]) not in (b'""', b"[]"):
            draft.warn(Policy.DROPPED, key)


def is_given(call: Call, key: str) -> bool:
    return bytes(call.head.get(key, Raw(b"null"))) != b"null"


def bad_request(text: str) -> AttemptFailed:
    """The caller's body cannot be understood; another target would not understand it either."""
    return AttemptFailed(Outcome(kind=Kind.CLIENT, status=400, code="bad-request"), client_text=text)


def unlimited(offer: Offer) -> int | None:
    """The `max_tokens` of a vLLM completion without a limit: its context, which it cuts to what the prompt leaves.

    None where that would be refused or the context is not known; but 0.32 reads a null as 16 tokens (measured), which
    the releases that refuse do not.
    """
    return None if offer.quirks & Quirk.STRICT_LENGTH else offer.context_tokens


def not_offered(text: str) -> AttemptFailed:
    """This target cannot do it, another may."""
    return AttemptFailed(Outcome(kind=Kind.INCOMPATIBLE, status=400, code="not-offered"), client_text=text)
