"""The clients: each asks, thinks and asks again; some are slow, some leave."""

import asyncio
import time
from collections.abc import Callable

from chaos.asking import Asker
from chaos.wire import Client, Exchange

THINK_S = (0.02, 0.25)


class Actors:
    """`count` clients of a gateway. What they hear goes to `heard`."""

    def __init__(self, gateway: str, seed: int, count: int, heard: Callable[[Exchange], None]) -> None:
        host, _, port = gateway.removeprefix("http://").partition(":")
        self._host, self._port, self._seed, self._count = host, int(port), seed, count
        self._heard = heard
        self._stopping = False
        self.waiting = 0

    async def run(self, name: str, until: float) -> None:
        """All of them, until that moment (monotonic); each finishes what it has begun."""
        await asyncio.gather(*(self._live(f"{name}{number}", until) for number in range(self._count)))

    async def _live(self, name: str, until: float) -> None:
        asker, client = Asker(name, self._seed), Client(self._host, self._port)
        calm = name.startswith("calm")
        rng = asker.rng
        try:
            while time.monotonic() < until:
                asked = asker.next()
                if calm and asked.patience != "stays":
                    continue
                self.waiting += 1
                try:
                    self._heard(
                        await client.ask(
                            asked, early_s=rng.uniform(0, 0.08), events=rng.randrange(1, 30), reset=rng.random() < 0.5
                        )
                    )
                finally:
                    self.waiting -= 1
                await asyncio.sleep(rng.uniform(*THINK_S))
        finally:
            client.close()
