"""A process that tells webhooks: `webhook_child.py STORE URL SECRET LEASE_S`. Ends when its stdin does."""

import asyncio
import sys

from memos_llm.core.events import Bus
from memos_llm.store import open_store
from memos_llm.telemetry.webhooks import Hook, Webhooks


async def main(store_url: str, url: str, secret: str, lease_s: str) -> None:
    store = open_store(store_url)
    webhooks = Webhooks(
        store, Bus(), lambda: [Hook(url, secret)], by="child", lease_s=float(lease_s), limit_s=5.0, look_s=0.02
    )
    webhooks.start()
    try:
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await webhooks.aclose()
        await store.aclose()


asyncio.run(main(*sys.argv[1:]))
