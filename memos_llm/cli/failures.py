"""Errors as a user meets them: one line that names the fix, and an exit code.

0 done · 1 a negative verdict · 2 usage · 3 refused · 4 a needed service is unreachable · 70 our own fault · 130 Ctrl-C
141 nobody read the answer to its end
"""

import errno
import os
from typing import Any

from memos_llm.core.errors import (
    BadRequest,
    ConfigError,
    EmbeddingServiceError,
    Forbidden,
    InvalidResponse,
    LLMError,
    NotOffered,
    Refused,
    StoreUnreachable,
    Timeout,
    Unavailable,
)

DONE, NEGATIVE, USAGE, REFUSED, UNREACHABLE, FAULT, INTERRUPTED, UNREAD = 0, 1, 2, 3, 4, 70, 130, 141
TRACEBACK = "LLMCTL_TRACEBACK"

EXIT_CODES: dict[type[LLMError], int] = {
    ConfigError: USAGE,
    Refused: REFUSED,
    Forbidden: REFUSED,
    NotOffered: REFUSED,
    BadRequest: USAGE,
    StoreUnreachable: UNREACHABLE,
    Unavailable: UNREACHABLE,
    Timeout: UNREACHABLE,
    InvalidResponse: UNREACHABLE,
    EmbeddingServiceError: UNREACHABLE,
    LLMError: NEGATIVE,
}
"""By class, the nearest ancestor counts; a test holds that each of the tree finds one."""

HINTS: dict[type[LLMError], str] = {
    StoreUnreachable: "check `store` in the configuration, or --store",
}


class Failure(Exception):
    """A command ends without its answer. `code` is the exit code, `name` a stable word for `--json`."""

    def __init__(self, message: str, code: int, name: str) -> None:
        super().__init__(message)
        self.message, self.code, self.name = message, code, name


def usage(message: str) -> Failure:
    return Failure(message, USAGE, "USAGE")


def unreachable(message: str) -> Failure:
    return Failure(message, UNREACHABLE, "UNREACHABLE")


def exit_code(error: LLMError) -> int:
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)


def read(error: Exception) -> Failure:
    """What to say of an error that ended a command."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, LLMError):
        hint = next((HINTS[kind] for kind in type(error).__mro__ if kind in HINTS), "")
        return Failure("; ".join(filter(None, (error.message, hint))), exit_code(error), error.name)
    said = " ".join(str(error).split())
    return Failure(
        f"internal error: {type(error).__name__}: {said} (set {TRACEBACK}=1 to see where)", FAULT, "INTERNAL_ERROR"
    )


def document(failure: Failure) -> dict[str, Any]:
    """The one JSON document of a command that failed."""
    return {"error": {"name": failure.name, "message": failure.message, "exit_code": failure.code}}


def wants_traceback() -> bool:
    return bool(os.environ.get(TRACEBACK))


def cannot_listen(host: str, port: int | None, error: OSError) -> Failure:
    """A listening socket was not to be had: taken (4), or not ours to take (2)."""
    place = f"{host}:{port}" if port is not None else host
    if error.errno == errno.EADDRINUSE:
        return unreachable(f"{place} is taken: stop what listens there, or choose another --port")
    said = error.strerror or type(error).__name__
    return usage(f"cannot listen on {place} ({said}): choose another --host or --port")
