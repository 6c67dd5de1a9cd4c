"""What one command opens and closes again: the store, this process's flags, the actor's name.

Commands that only read do without the wiring: its imports are most of what a short command costs.
"""

import getpass
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from memos_llm.cli import failures
from memos_llm.core.commands import Actor
from memos_llm.core.errors import StoreUnreachable
from memos_llm.core.events import Bus
from memos_llm.core.flags import Flags
from memos_llm.core.ports import StateStore
from memos_llm.store import open_store

if TYPE_CHECKING:
    from memos_llm.config import Settings
    from memos_llm.control.live import Live


@asynccontextmanager
async def opened_store(settings: "Settings") -> AsyncIterator[StateStore]:
    """The configured store, for reading.

    Raises:
        Failure: it is a memory of this process's own, which nobody else sees.
    """
    if settings.store_url.startswith("memory:"):
        raise failures.usage(
            "store: memory:// is each process's own, and this command's is empty: ask a running gateway with "
            "--gateway URL, or keep the flags in a file (sqlite:///…) or in Redis (redis://…)"
        )
    store = open_store(settings.store_url)
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def opened_live(settings: "Settings", *, seed: bool = False) -> "AsyncIterator[Live]":
    """This process's flags while a command needs them; nobody waits for such a short-lived instance.

    Raises:
        StoreUnreachable: a command that changes flags has no use for remembered ones.
    """
    from memos_llm.wiring import open_live

    async with opened_store(settings) as store:
        live = open_live(settings, Bus(), kind="cli", seed=seed, ephemeral=True, store=store)
        await live.start()
        try:
            require_store(live)
            yield live
        finally:
            await live.aclose()


def require_store(live: "Live") -> Flags:
    """The flags in force, known to be the store's.

    Raises:
        StoreUnreachable
    """
    if not live.store_state.reachable:
        raise StoreUnreachable(live.store_state.detail or "the store does not answer")
    return live.current()


def actor() -> Actor:
    """Who the history will name: user and host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        user = f"uid{os.getuid()}"
    return Actor(f"{user}@{socket.gethostname()}")
