"""The guard on a switch: the product as it ships, but that its guard comes and goes between two measurements.

One process with it and without: two processes would differ by more than it costs. Where the wiring makes its guard it
makes one of these; looked up late, since this package sits below the wiring.
"""

from functools import partial
from importlib import import_module
from typing import Any

from memos_llm.guard.watch import Guard

ON, OFF = "on", "off"


class Switch:
    """Stands where a process's `Guard` does, and is switched on at first."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        self._make = partial(Guard, *parts, **options)
        self._guard: Guard | None = self._make()

    def start(self) -> None:
        if self._guard is not None:
            self._guard.start()

    def dead(self) -> tuple[str, ...] | None:
        return None if self._guard is None else self._guard.dead()

    async def turn(self, to: str) -> None:
        """`ON` or `OFF`. What a guard does at its start and its end is over when this returns."""
        await self.aclose()
        if to == ON:
            self._guard = self._make()
            await self._guard.flush()  # learns all that the store has, once
            self._guard.start()

    async def aclose(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            await guard.aclose()


def install(kind: type[Switch] = Switch) -> list[Switch]:
    """From now on each guard of this process is a switch; the list gets those that are made."""
    made: list[Switch] = []

    def make(*parts: Any, **options: Any) -> Switch:
        made.append(kind(*parts, **options))
        return made[-1]

    vars(import_module("memos_llm.wiring"))["Guard"] = make
    return made
