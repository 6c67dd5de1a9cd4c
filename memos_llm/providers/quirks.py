"""Versions of back ends: every comparison of one is in this module, and nowhere else.

Sources: `GET /version` and `GET /api/version`; the releases are those named in each function.
"""

import re

Version = tuple[int, ...]

_NUMBERS = re.compile(r"v?(\d+(?:\.\d+)*)")


def parse(text: str) -> Version | None:
    """The numbers a version starts with; None for none, and for `0.0.0` (a development build: newer than any)."""
    match = _NUMBERS.match(text.strip())
    if match is None:
        return None
    version = tuple(int(number) for number in match[1].split("."))
    return version if any(version) else None


def older(text: str, than: Version) -> bool:
    """Whether a version is known to be older; an unknown one is taken for current."""
    version = parse(text)
    return version is not None and version < than


def vllm_says_reasoning_content(version: str) -> bool:
    """vLLM named the reasoning field `reasoning_content` before 0.12 (`reasoning` since; the old name gone by 0.16)."""
    return older(version, (0, 12))
