"""This process's flags, kept fresh: one driver (`live`) around pure decisions (`adopt`).

The store is reached through `core.ports.StateStore` only. Nothing here ever raises into a request: a request reads a
snapshot, and everything else happens beside it.
"""

from memos_llm.control.confirm import Confirmation
from memos_llm.control.live import Live

__all__ = ["Confirmation", "Live"]
