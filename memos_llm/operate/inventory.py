"""Who calls what, and what still hangs on the baseline: the store's counts, judged by the configuration of now."""

import asyncio
import re
import time

from memos_llm.core.errors import BadRequest
from memos_llm.core.flags import Flags
from memos_llm.core.inventory import KEEP_DAYS, day_of
from memos_llm.core.policy import Policy
from memos_llm.core.ports import Clock, StateStore
from memos_llm.operate.orders import InventoryOrder
from memos_llm.rollout.inventory import Inventory
from memos_llm.rollout.inventory import inventory as judged

UNITS_S = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

_SPAN = re.compile(r"(\d{1,5})([mhdw])")


async def inventory(
    store: StateStore, policy: Policy, flags: Flags, order: InventoryOrder, clock: Clock = time.time
) -> Inventory:
    """What was called within `order.since` of now.

    Raises:
        BadRequest, StoreUnreachable.
    """
    now = clock()
    since = now - span_s(order.since)
    recorded = await store.recorded(day_of(since))
    return await asyncio.to_thread(judged, recorded, policy, flags, since=since, now=now)  # 0.1 s for 2,000 rows


def span_s(text: str) -> float:
    """Seconds of `7d`, `12h`, `90m`, `2w`.

    Raises:
        BadRequest: it is none of these, nothing, or more than is kept.
    """
    found = _SPAN.fullmatch(text.strip())
    seconds = int(found[1]) * UNITS_S[found[2]] if found else 0
    if not 0 < seconds <= KEEP_DAYS * UNITS_S["d"]:
        raise BadRequest(f"since: {text[:20]!r} is no span: write 7d, 12h, 90m or 2w; {KEEP_DAYS}d at most are kept")
    return float(seconds)
