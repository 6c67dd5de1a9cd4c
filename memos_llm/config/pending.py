"""Settings that are accepted, so that files stay valid, but that this version does not act on yet.

Said by `serve` and `config check`: nobody must believe in a rollback that will not come.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from pydantic import BaseModel

from memos_llm.config import schema


class Pending(NamedTuple):
    """`given` tells whether the configuration relies on it; `instead` what to do meanwhile."""

    given: Callable[[schema.Root], bool]
    instead: str


def _set(section: Callable[[schema.Root], BaseModel], key: str) -> Callable[[schema.Root], bool]:
    return lambda root: key in section(root).model_fields_set


PENDING: Mapping[str, Pending] = {
    "rollback": Pending(
        lambda root: "rollback" in root.model_fields_set and root.rollback.enabled,
        "nothing rolls back by itself; watch /metrics and use `llmctl rollback`",
    ),
    "shadow": Pending(lambda root: root.shadow.enabled, "nothing is mirrored or compared"),
    "providers.*.keep_warm": Pending(
        lambda root: any(entry.keep_warm for entry in root.providers.values()),
        "keep models loaded with Ollama's own OLLAMA_KEEP_ALIVE",
    ),
    "timeouts.stall_s": Pending(
        _set(lambda root: root.timeouts, "stall_s"), "`idle_s` bounds every stream, `ttft_s` its beginning"
    ),
    "gateway.allowed_hosts": Pending(lambda root: bool(root.gateway.allowed_hosts), "any Host header is accepted"),
    "gateway.cors_origins": Pending(lambda root: bool(root.gateway.cors_origins), "no CORS headers are sent"),
    "gateway.header_timeout_s": Pending(
        _set(lambda root: root.gateway, "header_timeout_s"), "request headers have no time limit"
    ),
}


def pending(root: schema.Root) -> tuple[str, ...]:
    """One line for each setting that is given and not in force."""
    return tuple(
        f"{key} is not in force in this version: {entry.instead}" for key, entry in PENDING.items() if entry.given(root)
    )
