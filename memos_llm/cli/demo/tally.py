"""What the applications saw: one record per request, the stages they fell into, and the figures of the screen.

Everything here is observed from outside, at the clients; nothing is asked of the product. A request belongs to the
stage in which it began. It is `settled` unless it began while something was being changed: what is unsettled must be
answered rightly too, but says nothing about a share.
"""

import asyncio
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from memos_llm.cli.demo.conversations import Session
from memos_llm.cli.demo.failures import DemoFailed

BASELINE, CANDIDATE = "ollama", "vllm"
PROVIDERS = (BASELINE, CANDIDATE)
LOOK_S = 0.02
MOST = 20_000  # requests remembered; a demo makes a tenth of that, unless it is kept running


@dataclass(slots=True)
class Stage:
    """One row of the table. `dead`: the candidate is, so the baseline must serve everything."""

    title: str
    share_ppm: int
    dead: bool = False
    started_s: float = 0.0
    ended_s: float | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """One request as its client saw it; times on the monotonic clock. `problem` is empty when all was well."""

    stage: int
    settled: bool
    number: int
    app: str
    session: str
    started_s: float
    ended_s: float
    provider: str = ""
    arm: str = ""
    reason: str = ""
    attempts: int = 0
    problem: str = ""

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.started_s

    @property
    def fell_back(self) -> bool:
        """Assigned to the candidate, answered by the baseline."""
        return self.arm == "candidate" and self.provider == BASELINE


@dataclass(slots=True)
class Begun:
    """One request under way; the application fills in how it went."""

    stage: int
    settled: bool
    number: int
    session: Session
    started_s: float
    provider: str = ""
    arm: str = ""
    reason: str = ""
    attempts: int = 0
    problem: str = ""


@dataclass(slots=True)
class Tally:
    """All of it."""

    sessions: dict[str, Session]
    started_s: float = field(default_factory=time.monotonic)
    stages: list[Stage] = field(default_factory=list)
    settled: bool = False
    served: list[Served] = field(default_factory=list)
    per_second: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    _under_way: dict[int, Begun] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def enter(self, stage: Stage) -> None:
        """The next stage begins, unsettled."""
        now = time.monotonic()
        if self.stages:
            self.stages[-1].ended_s = now
        stage.started_s = now
        self.stages.append(stage)
        self.settled = False

    def finish(self) -> None:
        self.stages[-1].ended_s = time.monotonic()

    @contextmanager
    def request(self, session: Session) -> Iterator[Begun]:
        """Around one request. One that is cancelled was ended by the demo itself and is not counted."""
        begun = Begun(len(self.stages) - 1, self.settled, next(self._numbers), session, time.monotonic())
        self._under_way[begun.number] = begun
        try:
            yield begun
        except asyncio.CancelledError:
            raise
        else:
            self._ended(begun)
        finally:
            del self._under_way[begun.number]

    def _ended(self, begun: Begun) -> None:
        now = time.monotonic()
        if len(self.served) >= MOST:
            del self.served[: MOST // 2]
        self.served.append(
            Served(
                stage=begun.stage,
                settled=begun.settled,
                number=begun.number,
                app=begun.session.app,
                session=begun.session.id,
                started_s=begun.started_s,
                ended_s=now,
                provider=begun.provider,
                arm=begun.arm,
                reason=begun.reason,
                attempts=begun.attempts,
                problem=begun.problem,
            )
        )
        self.per_second[int(now - self.started_s)][begun.provider if not begun.problem else "error"] += 1

    async def quiet(self, limit_s: float = 20.0) -> None:
        """Wait until every request that is under way now has ended; newer ones go on.

        Raises:
            DemoFailed: one did not end in time.
        """
        mark = next(self._numbers)
        deadline = time.monotonic() + limit_s
        while any(number < mark for number in self._under_way):
            if time.monotonic() > deadline:
                raise DemoFailed(f"a request was not answered within {limit_s:g} s")
            await asyncio.sleep(LOOK_S)

    def under_way(self) -> list[Session]:
        """The conversations that wait for an answer now."""
        return [begun.session for begun in self._under_way.values()]

    def of_stage(self, stage: int, *, settled: bool = False) -> list[Served]:
        """The requests of a stage, or its settled ones only."""
        return [one for one in self.served if one.stage == stage and (one.settled or not settled)]

    @property
    def problems(self) -> list[Served]:
        return [one for one in self.served if one.problem]


def percentile_ms(requests: Iterable[Served], part: float) -> float:
    """A latency percentile in milliseconds (nearest rank); 0 without requests."""
    ranked = sorted(one.duration_s for one in requests)
    return ranked[min(len(ranked) - 1, int(part * len(ranked)))] * 1000 if ranked else 0.0
