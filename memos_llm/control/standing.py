"""How the store looks from here, told whenever it changes."""

from pathlib import Path

from memos_llm.control.adopt import View
from memos_llm.control.words import newer, regressed
from memos_llm.core.errors import StoreUnreachable
from memos_llm.core.events import Bus, StoreState
from memos_llm.core.flags import SCHEMA


class Standing:
    """`last_good`: where the flags are kept meanwhile. `barred`: why the store takes nothing, though it answers."""

    def __init__(self, bus: Bus, last_good: Path | None) -> None:
        self._bus, self._last_good = bus, last_good
        self._told: StoreState | None = None
        self.barred = ""

    @property
    def state(self) -> StoreState:
        return self._told or StoreState(reachable=False, detail="not asked yet")

    def found(self, view: View) -> None:
        """It answered; `view`: what this process holds now."""
        fault, schema = view.fault, view.published.schema
        detail = newer(schema) if schema > SCHEMA else self.barred
        if fault:
            detail = regressed(fault, self._last_good)
        self._say(StoreState(reachable=True, regressed=bool(fault), detail=detail))

    def lost(self, view: View, error: StoreUnreachable) -> None:
        """It did not answer."""
        self._say(StoreState(reachable=False, regressed=bool(view.fault), detail=error.message))

    def _say(self, state: StoreState) -> None:
        if state != self._told:
            self._told = state
            self._bus.emit(state)
