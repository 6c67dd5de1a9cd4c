"""What changed between Ollama's releases, as one table: behaviour → first release that has it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

_SINCE = "since"


def _since(release: str) -> Any:
    return field(metadata={_SINCE: release})


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Which changes a release has. Releases: Ollama's release notes and tags; texts and shapes 0.17.4 measured."""

    reasoning_effort: bool = _since("0.11.5")  # read by /v1; ignored before
    embed_dimensions: bool = _since("0.11.11")  # ignored before
    thinks_unasked: bool = _since("0.12.4")  # a thinking model thinks when `think` is absent
    v1_base64: bool = _since("0.12.7")  # encoding_format; ignored before
    tool_call_ids: bool = _since("0.12.10")
    logprobs: bool = _since("0.12.11")  # ignored before
    v1_responses: bool = _since("0.13.3")  # 404 before
    v1_messages: bool = _since("0.14.0")  # 404 before
    strict_names: bool = _since("0.17.6")  # 400 `invalid model name` everywhere; cloud models by tag
    think_levels_everywhere: bool = _since("0.17.7")  # before, "low" … only on gpt-oss
    v1_typed_errors: bool = _since("0.18.0")  # before, the native handler's errors are all `api_error`
    listed_capabilities: bool = _since("0.18.0")  # tags: capabilities, details.context_length
    single_eval_duration: bool = _since("0.18.0")  # before, left out when one token was generated
    think_max: bool = _since("0.22.0")
    llama_server: bool = _since("0.30.0")  # other overflow rule, other crash text, `shift` belongs to the load
    ps_waits: bool = _since("0.32.4")  # for a load in progress
    finish_alone: bool = _since("0.32.6")  # /v1 finish chunk with an empty delta, role only once
    more_efforts: bool = _since("0.32.11")  # minimal, xhigh, ultra


def behaviour(version: str) -> Behaviour:
    """The behaviour of a release such as "0.17.4" or "0.33.0-rc2"."""
    release = _numbers(version)
    return Behaviour(*(release >= _numbers(change.metadata[_SINCE]) for change in fields(Behaviour)))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("-")[0].split("."))
