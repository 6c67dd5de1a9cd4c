"""The webhooks, when no gateway is there to tell them of a rollback: this command does, before it ends."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec.structs import replace

from memos_llm.core.errors import LLMError
from memos_llm.core.events import Bus
from memos_llm.core.ports import StateStore
from memos_llm.operate.documents import Change
from memos_llm.telemetry.webhooks import WebhookTried
from memos_llm.wiring.hooks import hooks, teller

if TYPE_CHECKING:
    from memos_llm.config import Settings

LIMIT_S = 8.0


async def told(store: StateStore, settings: "Settings", change: Change) -> Change:
    """The change, and what came of telling of it. A live gateway or library tells by itself, within seconds."""
    given = hooks(settings)
    try:
        if not given or any(not one.ephemeral for one in await store.instances()):
            return change
    except LLMError:  # the rollback is in the store, and must not look as if it were not
        return change
    heard: list[WebhookTried] = []
    bus = Bus()
    bus.subscribe("cli", lambda event: heard.append(event) if isinstance(event, WebhookTried) else None, WebhookTried)
    webhooks = teller(store, bus, lambda: settings)
    try:
        await webhooks.settle(LIMIT_S)
    finally:
        await webhooks.aclose()
    mine = [one for one in heard if one.incident == change.latched]
    return replace(
        change,
        notes=(*change.notes, *_delivered(mine)),
        warnings=(*change.warnings, *_owed(mine, [hook.host for hook in given])),
    )


def _delivered(tried: list[WebhookTried]) -> Iterator[str]:
    hosts = dict.fromkeys(one.host for one in tried if one.result == "delivered")
    if hosts:
        yield f"told: {', '.join(hosts)} (no gateway is running that would)"


def _owed(tried: list[WebhookTried], hosts: list[str]) -> Iterator[str]:
    """What has failed, in a word each; nothing was tried when this rollback made no new incident."""
    reached = {one.host for one in tried if one.result == "delivered"}
    failed = {one.host: one.error or f"it answered {one.status}" for one in tried if one.host not in reached}
    for host in dict.fromkeys(hosts):
        if host in failed:
            yield f"{host} could not be told of it ({failed[host]}): the next gateway that starts tries again"
