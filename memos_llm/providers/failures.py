"""Between the two ways of saying that a call failed: an outcome, for the engine, and an error of the tree, for callers.

There and back is the same: an error that was made of an outcome still has it.
"""

from collections.abc import Mapping

from memos_llm.core.errors import (
    EXHAUSTED,
    AttemptFailed,
    BadRequest,
    EmbeddingServiceError,
    Forbidden,
    InvalidResponse,
    LLMError,
    ModelNotFound,
    Overloaded,
    StreamBroken,
    Timeout,
    Unauthorized,
)
from memos_llm.core.outcome import MODEL_NOT_FOUND, Kind, Outcome

PROVIDER = "provider"  # the code of an outcome that we know from an error's class only

KINDS_OF: Mapping[type[LLMError], tuple[Kind, str]] = {
    LLMError: (Kind.SERVER, PROVIDER),  # Unavailable and EmbeddingServiceError among them
    Overloaded: (Kind.SATURATED, PROVIDER),
    Timeout: (Kind.TIMEOUT, PROVIDER),
    InvalidResponse: (Kind.MALFORMED, PROVIDER),
    StreamBroken: (Kind.TRUNCATED, PROVIDER),
    BadRequest: (Kind.CLIENT, "status"),
    ModelNotFound: (Kind.CONFIG, MODEL_NOT_FOUND),
    Unauthorized: (Kind.CONFIG, "auth"),
    Forbidden: (Kind.CONFIG, "auth"),  # both of the credential that we were configured with
}
"""What a provider raised → how its attempt ended; an error counts as its nearest class here."""


def outcome_of(error: LLMError) -> AttemptFailed:
    """How an attempt ended that a provider ended with an error of the tree."""
    if isinstance(error.__cause__, AttemptFailed):
        outcome = error.__cause__.outcome
        return AttemptFailed(outcome, "" if _is_ours(outcome) else error.client_text)
    kind, code = next(KINDS_OF[cls] for cls in type(error).__mro__ if cls in KINDS_OF)
    status = error.http_status if isinstance(error, BadRequest) else 0
    outcome = Outcome(kind=kind, status=status, code=code, retry_after_s=error.retry_after_s)
    return AttemptFailed(outcome, "" if _is_ours(outcome) else error.text)


def error_of(
    failed: AttemptFailed, provider: str, request_id: str, *, begun: bool = False, embeds: bool = False
) -> LLMError:
    """The error that a caller of one provider sees. Raise it `from failed`.

    Args:
        begun: a stream had delivered content. embeds: the call was for embeddings.
    """
    outcome = failed.outcome
    kind = StreamBroken if begun else EXHAUSTED[outcome.kind]
    if outcome.code == MODEL_NOT_FOUND:
        kind = ModelNotFound
    refused = issubclass(kind, BadRequest)
    if embeds and not issubclass(kind, BadRequest | Timeout):
        kind = EmbeddingServiceError
    return kind(
        f"{provider}: {outcome.kind.value}{f' ({outcome.code})' if outcome.code else ''}",
        provider=provider,
        request_id=request_id,
        http_status=(outcome.status or None) if refused else None,
        client_text=failed.client_text,
        client_body=failed.client_body if refused else b"",
        retry_after_s=outcome.retry_after_s,
    )


def _is_ours(outcome: Outcome) -> bool:
    """What is wrong on our side (the key, the route) is none of the caller's business."""
    return outcome.kind is Kind.CONFIG and outcome.code != MODEL_NOT_FOUND
