"""Keeps an application busy: a few workers take conversation after conversation and hold one turn of it.

A conversation is with one worker at a time, so its requests have an order; whether it ever flips back can be said.
"""

import asyncio
import random
from collections import deque
from collections.abc import Sequence

from memos_llm.cli.demo.conversations import Application, Asked, Heard, Session, following, opening, wrong
from memos_llm.cli.demo.tally import Begun, Tally


class Traffic:
    """One application at work.

    Args:
        workers: turns held at once; fewer than there are sessions.
        pause_s: mean pause of a worker between two turns; may be changed at any time.
    """

    def __init__(
        self, application: Application, sessions: Sequence[Session], tally: Tally, *, workers: int, pause_s: float
    ) -> None:
        self.pause_s = pause_s
        self._application, self._tally, self._workers = application, tally, workers
        self._waiting = deque(sessions)
        self._stopping = False

    async def run(self) -> None:
        """Until `stop`, and then until the turns under way are over."""
        await asyncio.gather(*(self._work(random.Random(number)) for number in range(self._workers)))

    def stop(self) -> None:
        self._stopping = True

    async def _work(self, rng: random.Random) -> None:
        await asyncio.sleep(rng.uniform(0, 2 * self.pause_s))
        while not self._stopping:
            session = self._waiting.popleft()
            await self._turn(session)
            self._waiting.append(session)
            await asyncio.sleep(rng.uniform(0, 2 * self.pause_s))

    async def _turn(self, session: Session) -> None:
        asked: Asked | None = opening(session)
        while asked is not None:
            with self._tally.request(session) as begun:
                heard = await self._ask(asked, begun)
            asked = following(asked, heard) if heard is not None and not begun.problem else None

    async def _ask(self, asked: Asked, begun: Begun) -> Heard | None:
        try:
            heard = await self._application.ask(asked)
        except Exception as error:  # noqa: BLE001 - whatever an application sees is what the demo counts
            begun.problem = f"{type(error).__name__}: {error}"[:200]
            return None
        begun.provider = heard.headers.get("x-memos-provider", "")
        begun.arm = heard.headers.get("x-memos-arm", "")
        begun.reason = heard.headers.get("x-memos-reason", "")
        begun.attempts = int(heard.headers.get("x-memos-attempts", "0"))
        begun.problem = wrong(asked, heard)
        return heard
