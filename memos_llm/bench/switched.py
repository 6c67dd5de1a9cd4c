"""The gateway through its own command, its guard on a switch; a program of its own.

For every line `on` or `off` on stdin it switches and prints the line. (What `serve` prints comes before.)

usage: python -m memos_llm.bench.switched CONFIG
"""

import asyncio
import os
import sys
from importlib import import_module

from memos_llm.bench.switch import Switch, install

STDIN = 0


class Told(Switch):
    """Does as stdin says, on the gateway's own loop."""

    def start(self) -> None:
        super().start()
        self._tasks = set[asyncio.Task[None]]()
        asyncio.get_running_loop().add_reader(STDIN, self._hear)

    def _hear(self) -> None:
        heard = os.read(STDIN, 100).decode().split()
        if not heard:
            asyncio.get_running_loop().remove_reader(STDIN)
        for word in heard:
            task = asyncio.create_task(self._obey(word))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _obey(self, word: str) -> None:
        await self.turn(word)
        print(word, flush=True)  # noqa: T201 - the answer to the driver


if __name__ == "__main__":
    install(Told)
    sys.exit(import_module("memos_llm.cli").main(["serve", "--seed", "--config", sys.argv[1]]))
