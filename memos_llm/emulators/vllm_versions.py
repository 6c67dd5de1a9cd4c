"""What changed between vLLM releases, as data: which behaviours a release has.

The first release that was read with a behaviour is its beginning (0.8.5, 0.10.2, 0.11, 0.12, 0.16, 0.20.2, 0.26, 0.28,
0.30 and 0.33 sources; 0.32.0 measured), so the true one may lie a little earlier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Releases from `since` on, before `until`."""

    since: str = "0"
    until: str | None = None


SWITCHES: Mapping[str, Sequence[Span]] = {
    # errors
    "nested errors": [Span("0.10")],
    "health is 503 when dead": [Span("0.11")],
    "a dead engine says so in JSON": [Span("0.20")],
    "aliases in the unknown model text": [Span("0.32")],
    # routes
    "/v1/responses": [Span("0.10")],
    "/v1/messages": [Span("0.12")],
    "/v1/messages/count_tokens": [Span("0.20")],
    "admission limits": [Span("0.30")],
    # requests
    "guided_json": [Span(until="0.12")],
    "structured_outputs": [Span("0.11")],
    "empty tools are refused": [Span("0.20")],
    "temperature at most 2": [Span("0.26")],
    "effort drives thinking": [Span("0.26")],
    "four stops": [Span("0.28")],
    "null max_tokens is absent": [Span("0.32")],  # of completions; before, it filled the context
    "long answers are clamped": [Span("0.32")],
    "reads reasoning": [Span("0.12")],
    "reads reasoning_content": [Span(until="0.16"), Span("0.26")],
    # answers
    "says reasoning": [Span("0.12")],
    "says reasoning_content": [Span(until="0.16")],
    "finish delta is empty": [Span("0.32", "0.33")],  # measured; 0.33 source: an empty content
    "nulls of 0.33": [Span("0.33")],
    "nulls of 0.32": [Span("0.32")],
    # metrics
    "engine label": [Span("0.9")],
    "gpu_ metrics": [Span(until="0.11")],
    "kv_cache metrics": [Span("0.10")],
    "time_per_output_token metric": [Span(until="0.12")],
    "inter_token_latency metric": [Span("0.10")],
    "waiting by reason metric": [Span("0.20")],
    "prompt sources metrics": [Span("0.20")],
    "prompt_tokens_recomputed metric": [Span("0.16", "0.17")],
    "admission_rejections metric": [Span("0.32")],
    "estimates metrics": [Span("0.32")],
    "finish reason error": [Span("0.16")],
    "finish reason repetition": [Span("0.20")],
}
EFFORTS: Sequence[tuple[str, tuple[str, ...]]] = (
    ("0.26", ("none", "minimal", "low", "medium", "high", "xhigh", "max")),
    ("0.20", ("none", "low", "medium", "high")),
    ("0", ("low", "medium", "high")),
)
GUARDED: Sequence[tuple[str, tuple[str, ...]]] = (
    ("0.28", ("/v1", "/v2", "/inference", "/cohere")),
    ("0.26", ("/v1", "/v2", "/inference")),
    ("0", ("/v1",)),
)
"""Values by release, newest first: accepted `reasoning_effort`, and the paths that an API key guards."""


class Release:
    """One release.

    Args:
        version: "0.33.0", "0.10.2", "0.8.5.post1".
    """

    def __init__(self, version: str) -> None:
        self.version = version
        self._numbers = _numbers(version)

    def has(self, behaviour: str) -> bool:
        """Whether this release behaves so; one of `SWITCHES`."""
        return any(
            self._since(span.since) and (span.until is None or not self._since(span.until))
            for span in SWITCHES[behaviour]
        )

    @property
    def efforts(self) -> tuple[str, ...]:
        """Values of `reasoning_effort`."""
        return self._newest(EFFORTS)

    @property
    def guarded(self) -> tuple[str, ...]:
        """Beginnings of the paths that an API key guards."""
        return self._newest(GUARDED)

    def _newest(self, values: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[str, ...]:
        return next(value for since, value in values if self._since(since))

    def _since(self, version: str) -> bool:
        return self._numbers >= _numbers(version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())
