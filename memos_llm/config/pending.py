"""Settings that are accepted, so that files stay valid, but that this version does not act on yet.

Said by `serve` and `config check`: nobody must believe in a comparison that is not made.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from memos_llm.config import schema


class Pending(NamedTuple):
    """`given` tells whether the configuration relies on it; `instead` what to do meanwhile."""

    given: Callable[[schema.Root], bool]
    instead: str


PENDING: Mapping[str, Pending] = {
    "shadow": Pending(lambda root: root.shadow.enabled, "nothing is mirrored or compared"),
}


def pending(root: schema.Root) -> tuple[str, ...]:
    """One line for each setting that is given and not in force."""
    return tuple(
        f"{key} is not in force in this version: {entry.instead}" for key, entry in PENDING.items() if entry.given(root)
    )
