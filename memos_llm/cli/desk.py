"""Where a command's verb is done: here on the configuration's store, or by a running gateway. Same answers."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from memos_llm.cli import failures

if TYPE_CHECKING:
    from memos_llm.config import Settings
    from memos_llm.operate.documents import Adoption, Change, Explained, History, Incidents, Status
    from memos_llm.operate.orders import (
        AdoptOrder,
        ExplainOrder,
        InventoryOrder,
        MaintenanceOrder,
        RearmOrder,
        RollbackOrder,
        ShiftOrder,
        VerifyOrder,
    )
    from memos_llm.rollout.inventory import Inventory


class Desk(Protocol):
    """The verbs. Each may raise `LLMError` or `failures.Failure`."""

    async def status(self) -> "Status": ...
    async def shift(self, order: "ShiftOrder") -> "Change": ...
    async def rollback(self, order: "RollbackOrder") -> "Change": ...
    async def rearm(self, order: "RearmOrder") -> "Change": ...
    async def maintenance(self, order: "MaintenanceOrder") -> "Change": ...
    async def verify(self, order: "VerifyOrder") -> "Change": ...
    async def adopt(self, order: "AdoptOrder") -> "Adoption": ...
    async def history(self, limit: int) -> "History": ...
    async def incidents(self, limit: int) -> "Incidents": ...
    async def incident(self, id: str) -> "Incidents": ...
    async def explain(self, order: "ExplainOrder") -> "Explained": ...
    async def inventory(self, order: "InventoryOrder") -> "Inventory": ...


class StoreDesk:
    """On the configured store; the providers are asked by this process."""

    def __init__(self, settings: "Settings") -> None:
        self._settings = settings

    async def status(self) -> "Status":
        import asyncio
        import time

        from memos_llm.cli.opening import opened_store
        from memos_llm.core.events import StoreState
        from memos_llm.operate import standing
        from memos_llm.operate.guarding import look
        from memos_llm.operate.probing import probe_all

        settings = self._settings
        async with opened_store(settings) as store:
            flags, instances, health = await asyncio.gather(
                store.load(), store.instances(), probe_all(settings.provider_specs())
            )
            flags = flags or standing.NO_FLAGS
            guarded = await look(store, settings.policy(), flags)
        return standing.status(
            settings,
            settings.policy(),
            flags,
            instances=instances,
            providers={name: standing.probed(found) for name, found in health.items()},
            store=StoreState(reachable=True),
            now=time.time(),
            seen_by="cli",
            guarded=guarded,
        )

    async def shift(self, order: "ShiftOrder") -> "Change":
        from memos_llm.cli.opening import actor, opened_live
        from memos_llm.operate import changes

        async with opened_live(self._settings) as live:
            return await changes.shift(live, self._settings, order, actor())

    async def rollback(self, order: "RollbackOrder") -> "Change":
        from memos_llm.cli.opening import actor, opened_live
        from memos_llm.cli.telling import told
        from memos_llm.operate import changes

        async with opened_live(self._settings) as live:
            change = await changes.rollback(live, self._settings, order, actor())
            if live.store_state.regressed and change.unconfirmed:
                raise _not_rolled_back(live.store_state.detail, change.unconfirmed)
            return await told(live.store, self._settings, change)

    async def rearm(self, order: "RearmOrder") -> "Change":
        from memos_llm.cli.opening import actor, opened_live
        from memos_llm.operate import changes

        async with opened_live(self._settings) as live:
            return await changes.rearm(live, self._settings, order, actor())

    async def maintenance(self, order: "MaintenanceOrder") -> "Change":
        from memos_llm.cli.opening import actor, opened_live
        from memos_llm.operate import changes

        async with opened_live(self._settings) as live:
            return await changes.maintenance(live, self._settings, order, actor())

    async def verify(self, order: "VerifyOrder") -> "Change":
        from memos_llm.cli.opening import actor, opened_live
        from memos_llm.operate import changes

        async with opened_live(self._settings) as live:
            return await changes.verify(live, self._settings, order, actor())

    async def adopt(self, order: "AdoptOrder") -> "Adoption":
        from memos_llm.cli.opening import actor, opened_live
        from memos_llm.operate import changes

        async with opened_live(self._settings) as live:
            return await changes.adopt(live, order, actor())

    async def history(self, limit: int) -> "History":
        from memos_llm.cli.opening import opened_store
        from memos_llm.operate import records

        async with opened_store(self._settings) as store:
            return await records.history(store, limit)

    async def incidents(self, limit: int) -> "Incidents":
        from memos_llm.cli.opening import opened_store
        from memos_llm.operate import records

        async with opened_store(self._settings) as store:
            return await records.incidents(store, limit)

    async def incident(self, id: str) -> "Incidents":
        from memos_llm.cli.opening import opened_store
        from memos_llm.operate import records

        async with opened_store(self._settings) as store:
            return await records.incident(store, id)

    async def explain(self, order: "ExplainOrder") -> "Explained":
        """A provider that does not answer in time stays unknown: so a process that just started sees it too."""
        import asyncio

        from memos_llm.cli.opening import opened_store, require_store
        from memos_llm.operate.explain import explain, offers_of
        from memos_llm.operate.probing import LIMIT_S
        from memos_llm.wiring import open_runtime

        async with opened_store(self._settings) as store:
            runtime = await open_runtime(self._settings, kind="cli", ephemeral=True, guarded=False, store=store)
            try:
                flags = require_store(runtime.live)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LIMIT_S):
                        await asyncio.gather(*(transport.probe() for transport in runtime.transports.values()))
                return explain(order, flags, runtime.policy(), offers_of(runtime.routes()))
            finally:
                await runtime.aclose()

    async def inventory(self, order: "InventoryOrder") -> "Inventory":
        from memos_llm.cli.opening import opened_store
        from memos_llm.operate import standing
        from memos_llm.operate.inventory import inventory

        async with opened_store(self._settings) as store:
            flags = await store.load() or standing.NO_FLAGS
            return await inventory(store, self._settings.policy(), flags, order)


def _not_rolled_back(fault: str, running: Sequence[str]) -> failures.Failure:
    """Who holds to his last good flags reads nothing in a regressed store, and no rollback either."""
    return failures.unreachable(
        f"NOT rolled back in {', '.join(running)}: {fault}. "
        "Roll back there at once: `llmctl --gateway http://HOST:8200 rollback`, for each gateway"
    )
