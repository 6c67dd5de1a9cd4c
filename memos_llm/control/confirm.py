"""Whether a change has arrived: asks the live instances' heartbeats until all have it, or the time is over."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from memos_llm.core.ports import Instance, StateStore

LOOK_S = 0.05


class Confirmation(NamedTuple):
    """Ids of live, non-ephemeral instances: those at the revision or beyond, and those not seen there."""

    confirmed: tuple[str, ...]
    unconfirmed: tuple[str, ...]


async def confirm(store: StateStore, revision: int, timeout_s: float) -> Confirmation:
    """Wait until every live instance follows `revision`. An instance that dies meanwhile is not waited for.

    Raises:
        StoreUnreachable
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        found = sort_out(await store.instances(), revision)
        if not found.unconfirmed or asyncio.get_running_loop().time() >= deadline:
            return found
        await asyncio.sleep(LOOK_S)


def sort_out(instances: Sequence[Instance], revision: int) -> Confirmation:
    lasting = sorted((instance for instance in instances if not instance.ephemeral), key=lambda i: i.id)
    return Confirmation(
        tuple(instance.id for instance in lasting if instance.revision >= revision),
        tuple(instance.id for instance in lasting if instance.revision < revision),
    )
