"""What a release of a back end needs otherwise than the current one: the only place that compares versions.

Sources: vLLM's entrypoints from 0.8.5 to 0.33, read release by release, and 0.32 measured. Releases that nobody read
count with the older ones: making do for what is no longer wrong there costs little.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from memos_llm.core.call import Quirk

Release = tuple[int, ...]


class Change(NamedTuple):
    """`quirk` holds for every release before `until`."""

    quirk: Quirk
    until: Release


CHANGES: Mapping[str, tuple[Change, ...]] = {
    "vllm": (
        Change(Quirk.OLD_REASONING, (0, 12)),
        Change(Quirk.GUIDED, (0, 12)),
        Change(Quirk.STRICT_LENGTH, (0, 32)),
    ),
}
"""Provider kind → what changed since."""

_NUMBERS = re.compile(r"v?(\d+(?:\.\d+)*)")


def quirks(kind: str, version: str) -> Quirk:
    """The quirks of a release; of a version that is not known or cannot be read, those of the current one."""
    release = _release(version)
    found = Quirk.NONE
    for change in CHANGES.get(kind, ()):
        if release and release < change.until:
            found |= change.quirk
    return found


def _release(version: str) -> Release:
    """`0.11.1rc2.dev3+gabc` → (0, 11, 1); a development build between two releases counts with the earlier one."""
    match = _NUMBERS.match(version)
    numbers = tuple(int(part) for part in match[1].split(".")) if match else ()
    return numbers if any(numbers) else ()  # 0.0.0 is what a build from source without tags calls itself
