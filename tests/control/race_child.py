"""One of the processes of `test_races`: rolls back, shifts and re-arms at random, as guard and as human.

usage: race_child.py STORE_URL NAME SECONDS SEED
  Tells on stdout, as one line of JSON, how much of each it has done.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter

from memos_llm.control import Live
from memos_llm.core.commands import Actor, Command, Rearm, Rollback, Shift
from memos_llm.core.errors import Refused, StoreUnreachable
from memos_llm.core.events import Bus, Event, IncidentOpened, InternalError
from memos_llm.core.flags import GLOBAL, fresh
from memos_llm.core.verdicts import Evidence, Trigger
from memos_llm.store import open_store

SCOPES = (GLOBAL, "synthesis", "analysis")
TRIGGERS = (Trigger.TIMEOUTS, Trigger.ERROR_RATE)


class Racer:
    def __init__(self, live: Live, name: str, chance: random.Random) -> None:
        self._live, self._name, self.chance = live, name, chance
        self.done: Counter[str] = Counter()

    async def act(self) -> None:
        scope, number = self.chance.choice(SCOPES), self.done.total()
        what = self.chance.choice(("cut", "roll back", "shift", "shift", "rearm", "rearm"))
        incident = f"inc-{self._name}-{number}"
        commands: dict[str, Command] = {
            "roll back": Rollback(provider="vllm", incident=incident, scope=scope),
            "shift": Shift(provider="vllm", share_ppm=self.chance.randrange(1_000_000), scope=scope),
            "rearm": Rearm(provider="vllm", scope=scope, force=True, reason="a race"),
        }
        try:
            if what == "cut":
                self._cut(scope, incident)
            else:
                await self._live.submit(commands[what], Actor(self._name))
        except Refused:
            what = "refused"
        except StoreUnreachable:  # eight processes on two processors: Redis may not be heard within its 250 ms
            what = "unreachable"
        self.done[what] += 1

    def _cut(self, scope: str, incident: str) -> None:
        speaker, judged = self._live.current().effective(scope)
        trigger = self.chance.choice(TRIGGERS)
        evidence = Evidence(
            at=time.time(), by=self._name, scope=scope, trigger=trigger, rule="a race", limit=0.0, n=1, k=1
        )
        self._live.cut(
            Rollback(
                provider="vllm",
                incident=incident,
                scope=scope,
                trigger=trigger,
                automatic=True,
                epochs={speaker: judged.epoch},
                evidence=evidence,
            )
        )
        assert self._live.current().share_ppm(scope) == 0


async def race(url: str, name: str, seconds: float, seed: int) -> None:
    events: list[Event] = []
    bus = Bus()
    bus.subscribe("test", events.append, IncidentOpened, InternalError)
    live = Live(
        open_store(url),
        bus,
        instance_id=name,
        kind="test",
        seed=lambda: fresh("i", "s", 500_000, "vllm"),
        owns_store=True,
    )
    await live.start()
    racer = Racer(live, name, random.Random(seed))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await racer.act()
        await asyncio.sleep(racer.chance.uniform(0, 0.02))
    await live.aclose()
    opened = [event.incident.id for event in events if isinstance(event, IncidentOpened)]
    errors = [f"{event.error} {event.where}" for event in events if isinstance(event, InternalError)]
    print(json.dumps({"done": racer.done, "opened": opened, "errors": errors}), flush=True)


if __name__ == "__main__":
    asyncio.run(race(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])))
