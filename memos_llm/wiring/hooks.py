"""The configured webhooks, as telemetry tells them."""

import os
import socket
from collections.abc import Callable

from memos_llm.config import Settings
from memos_llm.core.events import Bus
from memos_llm.core.ports import StateStore
from memos_llm.telemetry.webhooks import Hook, Webhooks


def hooks(settings: Settings) -> tuple[Hook, ...]:
    """Each address once, whatever the file says."""
    given = (Hook(one.url.get_secret_value(), one.secret.get_secret_value()) for one in settings.rollback.webhooks)
    return tuple({hook.url: hook for hook in given}.values())


def teller(store: StateStore, bus: Bus, settings: Callable[[], Settings]) -> Webhooks:
    """What tells the webhooks that are configured at the moment (not started)."""
    return Webhooks(
        store, bus, lambda: hooks(settings()), by=f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
    )
