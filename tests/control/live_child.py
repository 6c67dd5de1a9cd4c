"""A process of its own with live flags on one store, for `test_processes`. It speaks JSON lines on stdout.

usage: live_child.py follow|hammer STORE_URL NAME
  follow  tells every revision that comes into force, and when; ends when stdin is closed
  hammer  shifts to random shares without end, telling each that was acknowledged
"""

import asyncio
import json
import random
import sys
import time

from memos_llm.control import Live
from memos_llm.core.commands import Actor, Shift
from memos_llm.core.events import Bus, Event, FlagsChanged
from memos_llm.store import open_store


def tell(flags_revision: int, share_ppm: int) -> None:
    print(json.dumps({"revision": flags_revision, "share_ppm": share_ppm, "at": time.time()}), flush=True)


def told(event: Event) -> None:
    if isinstance(event, FlagsChanged):
        tell(event.flags.revision, event.flags.share_ppm("x"))


async def follow(url: str, name: str) -> None:
    bus = Bus()
    bus.subscribe("stdout", told)
    live = Live(open_store(url), bus, instance_id=name, kind="test", owns_store=True)
    await live.start()
    await asyncio.to_thread(sys.stdin.read)
    await live.aclose()


async def hammer(url: str, name: str) -> None:
    live = Live(open_store(url), Bus(), instance_id=name, kind="test", owns_store=True)
    await live.start()
    while True:
        flags = await live.submit(Shift(provider="vllm", share_ppm=random.randrange(1_000_000)), Actor(name))
        tell(flags.revision, flags.share_ppm("x"))


if __name__ == "__main__":
    mode, store_url, own_name = sys.argv[1:]
    asyncio.run({"follow": follow, "hammer": hammer}[mode](store_url, own_name))
