"""The gateway through its own command, its guard on a switch; a program of its own.

For every line `on`, `off` or `used` on stdin it prints what `Switch.answer` says. (What `serve` prints comes before.)

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
        asyncio.get_running_loop().add_reader(STDIN, self._hear)

    def _hear(self) -> None:
        heard = os.read(STDIN, 100).decode().split()
        if not heard:
            asyncio.get_running_loop().remove_reader(STDIN)
        for line in heard:
            print(self.answer(line), flush=True)  # noqa: T201 - the answer to the driver


if __name__ == "__main__":
    install(Told)
    sys.exit(import_module("memos_llm.cli").main(["serve", "--seed", "--config", sys.argv[1]]))
