"""What a rollback was worth, from time stamps that were recorded while it happened, and what must hold of it."""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fleet.fleet import Fleet, Line
from fleet.traffic import Answer, Traffic

ZERO_S = 1.0  # from a verdict to a share of 0 in every process
TABLE = "FLEET_TABLE"  # names a file that gets a line of JSON for each measurement
GLOBAL, EMBEDDING = "*", "embedding"

Incident = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        scope: with what else was latched. until_verdict_s: since the fault was set; requests: those that the candidate
            was asked meanwhile, in that scope. zero_ms: from the verdict to a share of 0, in each process.
        late: requests of the scope that were given to the candidate although they came a second after the verdict.
        errors: answers that had not begun and failed; cut: those that had; left: clients that tired.
    """

    store: str
    fault: str
    trigger: str
    scope: tuple[str, ...]
    until_verdict_s: float
    requests: int
    zero_ms: tuple[int, ...]
    incidents: int
    errors: int
    late: int
    cut: int
    left: int
    answers: int

    def __str__(self) -> str:
        zero = "/".join(map(str, self.zero_ms))
        return (
            f"| {self.fault} | {self.store} | {self.trigger} | {', '.join(self.scope)} | {self.requests} | "
            f"{self.until_verdict_s:.1f} | {zero} | {self.incidents} | {self.errors} of {self.answers} | "
            f"{'in time' if self.in_time else f'LATE, {self.late} requests too'} |"
        )

    @property
    def in_time(self) -> bool:
        return max(self.zero_ms) <= ZERO_S * 1000 and not self.late


HEAD = (
    "| fault | store | trigger | scope | requests until verdict | s until verdict "
    "| verdict → zero share, ms in each process | incidents | client errors | within 1 s |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def latched_at(lines: Iterable[Line], scope: str, since: float) -> float | None:
    """When one process no longer gave the candidate anything of a scope."""
    line = _first_latched(lines, scope, since)
    return float(line["at"]) if line else None


def _first_latched(lines: Iterable[Line], scope: str, since: float) -> Line | None:
    told = (line for line in lines if line["event"] == "flags" and line["at"] >= since)
    return next((line for line in told if scope in line["latched"]), None)


def scopes_told(evidence: Mapping[str, Any], incident: Incident) -> tuple[str, ...]:
    """What a piece of evidence is about: the first one is about all that the incident began with."""
    began = evidence is incident["evidence"][0]
    return (evidence["scope"], *(incident["also"] if began else ()))


def in_scope(component: str, scope: str) -> bool:
    return component == scope or (scope == GLOBAL and component != EMBEDDING)


class Verdict(NamedTuple):
    """One scope's: when it was decided, and by that process's clock when each process had taken its share back."""

    scope: str
    at: float
    zero_at: tuple[float, ...]

    @property
    def zero_ms(self) -> tuple[int, ...]:
        return tuple(max(0, round((at - self.at) * 1000)) for at in self.zero_at)


def verdicts(fleet: Fleet, incident: Incident, since: float) -> tuple[Verdict, ...]:
    """Of each scope that is latched, by the evidence that was first. A process that came to it by itself may have been
    quicker still.
    """
    found = []
    for scope in latched(fleet, incident):
        told = [one for one in incident["evidence"] if scope in scopes_told(one, incident)]
        at = min(float(one["at"]) for one in told or incident["evidence"])
        zero_at = [latched_at(log.lines(), scope, since) for log in fleet.logs]
        assert all(zero_at), f"not all processes took the share of {scope} back: {zero_at}"
        found.append(Verdict(scope, at, tuple(moment or 0.0 for moment in zero_at)))
    return tuple(found)


def latched(fleet: Fleet, incident: Incident) -> tuple[str, ...]:
    """What is latched at the end, by the lines of the first gateway; the widest scope says it all."""
    line = [line for line in fleet.logs[0].of("flags") if line["latched"]][-1]
    scopes = tuple(line["latched"])
    return (GLOBAL,) if GLOBAL in scopes else scopes


def judge(store: str, fault: str, fleet: Fleet, traffic: Traffic, incidents: Sequence[Incident], since: float) -> Row:
    """Once the traffic has stopped. `incidents`: those since then, newest first; the first of them is looked at."""
    first = incidents[-1]
    found = verdicts(fleet, first, since)
    scopes = tuple(verdict.scope for verdict in found)
    verdict_at = min(verdict.at for verdict in found)
    asked = [answer for answer in traffic.answers if answer.ended_at >= since]
    _keeps_the_rest(asked, found, verdict_at)
    return Row(
        store=store,
        fault=fault,
        trigger=str(first["trigger"]),
        scope=scopes,
        until_verdict_s=verdict_at - since,
        requests=sum(since <= moment <= verdict_at for moment in _given(fleet, found, since)),
        zero_ms=tuple(max(times) for times in zip(*(verdict.zero_ms for verdict in found), strict=True)),
        incidents=len(incidents),
        errors=sum(answer.failed_unbegun for answer in asked),
        late=sum(_is_late(answer, verdict) for answer in asked for verdict in found),
        cut=sum(answer.cut for answer in asked),
        left=sum(answer.left for answer in asked),
        answers=len(asked),
    )


def _keeps_the_rest(asked: Sequence[Answer], found: Sequence[Verdict], verdict_at: float) -> None:
    """A component that is not latched is given to the candidate as before."""
    spared = {
        answer.asks.component: set[str]()
        for answer in asked
        if not any(in_scope(answer.asks.component, verdict.scope) for verdict in found)
    }
    for answer in asked:
        if answer.asks.component in spared and answer.asked_at > verdict_at:
            spared[answer.asks.component].add(answer.arm)
    assert all("candidate" in arms for arms in spared.values()), spared


def _given(fleet: Fleet, found: Sequence[Verdict], since: float) -> list[float]:
    """When requests of these scopes came that the candidate was given, in every process: none by latched flags."""
    given = []
    for log in fleet.logs:
        latched_by = {verdict.scope: _first_latched(log.lines(), verdict.scope, since) for verdict in found}
        for line in log.of("request", since):
            for scope, flags in latched_by.items():
                if line["arm"] == "candidate" and in_scope(line["component"], scope):
                    assert flags is not None
                    assert line["revision"] < flags["revision"], (line, flags)
                    given.append(started(line))
    return given


def started(line: Line) -> float:
    """When a request had come, by its own line."""
    return float(line["at"]) - float(line["duration_ms"]) / 1000


def _is_late(answer: Answer, verdict: Verdict) -> bool:
    late = answer.asked_at > verdict.at + ZERO_S
    return late and answer.arm == "candidate" and in_scope(answer.asks.component, verdict.scope)


def keep(row: Row) -> None:
    """Print a row, and write it to the file that the environment names."""
    print(row)
    if path := os.environ.get(TABLE):
        table = Path(path)
        head = "" if table.exists() else f"{HEAD}\n"
        with table.open("a") as file:
            file.write(f"{head}{row}\n")
        with table.with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps({"at": time.time(), **asdict(row)}) + "\n")
