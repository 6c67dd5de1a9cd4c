"""Every error a user of the package can meet, in one tree.

    LLMError                    ERR_5100  anything below
    ├── Unavailable             ERR_5001  LLM_UNAVAILABLE       no target answered
    │   └── Overloaded          ERR_5104  LLM_OVERLOADED        every target was saturated
    ├── Timeout                 ERR_5002  LLM_TIMEOUT           the deadline, or a limit of the last target, passed
    ├── InvalidResponse         ERR_5003  LLM_INVALID_RESPONSE  malformed, cut off, or no terminal marker
    │   └── StreamBroken        ERR_5108  LLM_STREAM_BROKEN     a stream ended wrongly after its first content
    ├── EmbeddingServiceError   ERR_5004  EMBEDDING_SERVICE_ERROR
    ├── BadRequest              ERR_5101  LLM_BAD_REQUEST       the back end (or we) refused the request itself
    │   ├── ModelNotFound       ERR_5102  LLM_MODEL_NOT_FOUND
    │   ├── NotOffered          ERR_5103  LLM_NOT_OFFERED       no configured provider can do this
    │   ├── Forbidden           ERR_5111  LLM_FORBIDDEN         needs a scope that the caller lacks
    │   └── Unauthorized        ERR_5112  LLM_UNAUTHORIZED      the gateway wants a key, or does not know this one
    └── ControlError            ERR_5110  the control plane
        ├── Refused             ERR_5105  COMMAND_REFUSED       latched, conflict, …
        ├── StoreUnreachable    ERR_5106  STORE_UNREACHABLE
        └── ConfigError         ERR_5107  CONFIG_INVALID

`AttemptFailed` is not in the tree: a provider's edge tells the engine with it that one try ended; it never leaves it.
Messages may quote a back end to the *client* (`str(error)` of a request error never does; see `client_text`).
"""

from typing import TYPE_CHECKING, ClassVar

from memos_llm.core.outcome import Kind, Outcome

if TYPE_CHECKING:  # `import memos_llm` loads this module, and should load nothing more
    from memos_llm.core.decision import Decision


class LLMError(Exception):
    """Base of the tree.

    Attributes:
        code, name: stable identifiers (`ERR_5001`, `LLM_UNAVAILABLE`).
        retryable: whether the same call may succeed later, unchanged.
        http_status: what the gateway answers.
        provider, request_id: where it happened; empty when not known.
        client_text: the back end's own words, for the caller only: they may repeat the prompt, so `str()` leaves
            them out and nothing logs them.
        client_body: the back end's whole error body when it is on the caller's wire, to be passed on unchanged.
        retry_after_s: when to try again, if known.
        decision, attempts: where the call was to go, and how often it was tried; None and 0 when it never got there.
    """

    code: ClassVar[str] = "ERR_5100"
    name: ClassVar[str] = "LLM_ERROR"
    retryable: ClassVar[bool] = False
    status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        request_id: str = "",
        http_status: int | None = None,
        client_text: str = "",
        client_body: bytes = b"",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.provider = provider
        self.request_id = request_id
        self.http_status = http_status or self.status
        self.client_text = client_text
        self.client_body = client_body
        self.retry_after_s = retry_after_s
        self.decision: Decision | None = None
        self.attempts = 0

    @property
    def text(self) -> str:
        """What the caller may read: the back end's words if there are any, else ours."""
        return self.client_text or self.message


class Unavailable(LLMError):
    """No target answered. Retry later, or look at `llmctl status`."""

    code, name, retryable, status = "ERR_5001", "LLM_UNAVAILABLE", True, 503


class Overloaded(Unavailable):
    """Every target was saturated. Retry after `retry_after_s`."""

    code, name = "ERR_5104", "LLM_OVERLOADED"


class Timeout(LLMError):
    """The deadline passed. Raise `timeout_s`, or the provider's `timeouts`."""

    code, name, retryable, status = "ERR_5002", "LLM_TIMEOUT", True, 504


class InvalidResponse(LLMError):
    """The back end's answer was malformed or incomplete."""

    code, name, retryable, status = "ERR_5003", "LLM_INVALID_RESPONSE", True, 502


class StreamBroken(InvalidResponse):
    """A stream ended wrongly after its first content was delivered: what came is incomplete."""

    code, name = "ERR_5108", "LLM_STREAM_BROKEN"


class EmbeddingServiceError(LLMError):
    """Embeddings could not be had."""

    code, name, retryable, status = "ERR_5004", "EMBEDDING_SERVICE_ERROR", True, 502


class BadRequest(LLMError):
    """The request itself was refused; sending it again unchanged will not help."""

    code, name, status = "ERR_5101", "LLM_BAD_REQUEST", 400


class ModelNotFound(BadRequest):
    """No back end has the model."""

    code, name, status = "ERR_5102", "LLM_MODEL_NOT_FOUND", 404


class NotOffered(BadRequest):
    """No configured provider can do what the call asks for."""

    code, name = "ERR_5103", "LLM_NOT_OFFERED"


class Forbidden(BadRequest):
    """The caller lacks the scope for this."""

    code, name, status = "ERR_5111", "LLM_FORBIDDEN", 403


class Unauthorized(BadRequest):
    """The gateway wants a key, or does not know the one that was given."""

    code, name, status = "ERR_5112", "LLM_UNAUTHORIZED", 401


class ControlError(LLMError):
    """The control plane could not do what was asked; nothing was changed."""

    code, name = "ERR_5110", "CONTROL_ERROR"


class Refused(ControlError):
    """A command that the flags' state forbids (latched, wrong provider, conflict)."""

    code, name, status = "ERR_5105", "COMMAND_REFUSED", 409


class StoreUnreachable(ControlError):
    """The store did not answer; the last known flags stay in force."""

    code, name, retryable, status = "ERR_5106", "STORE_UNREACHABLE", True, 503


class ConfigError(ControlError):
    """The configuration is wrong; the message names the key and the choices."""

    code, name = "ERR_5107", "CONFIG_INVALID"


class AttemptFailed(Exception):
    """One try ended without an answer. `client_text` and `client_body` as in `LLMError`."""

    def __init__(self, outcome: Outcome, client_text: str = "", client_body: bytes = b"") -> None:
        super().__init__(f"{outcome.kind.value} {outcome.status or ''} {outcome.code}".strip())
        self.outcome = outcome
        self.client_text = client_text
        self.client_body = client_body


EXHAUSTED: dict[Kind, type[LLMError]] = {
    Kind.CONNECT: Unavailable,
    Kind.TIMEOUT: Timeout,
    Kind.SERVER: Unavailable,
    Kind.TRUNCATED: InvalidResponse,
    Kind.MALFORMED: InvalidResponse,
    Kind.SATURATED: Overloaded,
    Kind.CONFIG: Unavailable,
    Kind.INCOMPATIBLE: BadRequest,
    Kind.CLIENT: BadRequest,
}
"""What the caller gets when the last target's attempt ended with a kind. A test holds it complete."""
