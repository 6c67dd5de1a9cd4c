"""How much of unfinished answers a process keeps: one budget over all its requests.

What an answer may hold by itself (an event, a whole document) is bounded, but a thousand of them at once are not. Over
the budget an answer that is no longer small ends, and the chain goes on; small ones, which nearly all are, never do.
"""

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome

MAX_HELD_BYTES = 512 * 2**20
SMALL_BYTES = 262_144

FULL = Outcome(kind=Kind.SATURATED, code="buffers")


class Buffers:
    """The budget."""

    def __init__(self, limit_bytes: int = MAX_HELD_BYTES, small_bytes: int = SMALL_BYTES) -> None:
        self._limit, self._small = limit_bytes, small_bytes
        self.held_bytes = 0

    def hold(self, size: int, already: int) -> int:
        """Keep `size` bytes more of an answer of which `already` so many are kept; how many are now.

        Raises:
            AttemptFailed: `saturated`, code `buffers`.
        """
        if already + size > self._small and self.held_bytes + size > self._limit:
            raise AttemptFailed(FULL)
        self.held_bytes += size
        return already + size

    def free(self, size: int) -> None:
        self.held_bytes -= size
