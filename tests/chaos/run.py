"""One run, from the first process to the verdict."""

import asyncio
import contextlib
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos import ending, schedule
from chaos.actors import Actors
from chaos.breaking import Breaker
from chaos.judging import Verdict, judge
from chaos.servers import EMULATED, Servers
from chaos.steering import Helm
from chaos.truth import AFTER_S, ANY, FOLLOWS_S, MACHINE, RELOADS_S, Truth
from chaos.wire import Exchange
from memos_llm.cli.demo.processes import Processes

WARM_S, CALM_S = 1.5, 2.0
TICK_S, PROGRESS_S = 0.1, 5.0
STALL_S = 1.0  # this process was held up for so long: then the others were too
MOST_SHOWN = 20

Say = Callable[[str], None]


@dataclass
class Report:
    """What came of a run. `violations` is empty when all held."""

    seed: int
    seconds: float
    workers: int
    violations: list[str] = field(default_factory=list)
    verdicts: Counter[str] = field(default_factory=Counter)
    wires: Counter[str] = field(default_factory=Counter)
    excuses: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    broke: dict[str, int] = field(default_factory=dict)
    steered: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    wall_s: float = 0.0

    def document(self) -> dict[str, Any]:
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}


async def run(seed: int, seconds: float, clients: int, say: Say, keep: Path | None = None) -> Report:
    """Everything once.

    Args:
        keep: where evidence of violations goes (raw exchanges, logs); None: nowhere.
    """
    report = Report(seed, seconds, clients)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="memos_llm-chaos-") as name:
        folder = Path(name)
        async with Processes(folder, Servers.environment(folder)) as processes:
            servers = Servers(folder, processes)
            try:
                run = Run(servers, report, say, keep)
                await run.play()
            finally:
                await servers.aclose()
                servers.disk.free([])
                if keep is not None and report.violations:
                    _keep(folder, keep)
                servers.disk.close()
    report.wall_s = round(time.monotonic() - began, 1)
    return report


class Run:
    """The parts of one run, and what they tell each other."""

    def __init__(self, servers: Servers, report: Report, say: Say, keep: Path | None) -> None:
        self._servers, self._report, self._say, self._keep = servers, report, say, keep
        self._truth = Truth()
        self._tally = ending.Tally()
        self._heard: list[Exchange] = []
        self._born = self._began = time.monotonic()
        self._breaker = Breaker(servers, self._truth, self._note)
        self._helm = Helm(servers, self._truth, self._note)
        self._timeline: list[str] = []
        self._marks: dict[str, float] = {}

    async def play(self) -> None:
        seconds, report = self._report.seconds, self._report
        self._mark("start")
        await self._servers.start()
        self._mark("ready")
        rest = await ending.bodies(self._servers)
        await self._helm.start()
        actors = Actors(self._servers.gateway, report.seed, report.workers, self._heard.append)
        watching = asyncio.create_task(self._watch())
        try:
            await actors.run("calm-before-", time.monotonic() + WARM_S)
            start = ending.at_start(rest, await ending.bodies(self._servers))
            self._began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(actors.run("actor-", self._began + seconds))
                group.create_task(self._breaker.run(schedule.breaks(report.seed, seconds), self._began))
                group.create_task(
                    self._helm.run(schedule.steers(report.seed, seconds), self._began, self._began + seconds - 3)
                )
            self._mark("over")
            for name in EMULATED:
                await self._servers.mend(name)
            await asyncio.sleep(max(FOLLOWS_S, RELOADS_S, AFTER_S))
            await self._probed()
            self._mark("well again")
            await actors.run("calm-after-", time.monotonic() + CALM_S)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        self._judge(float("inf"))
        await self._end(start)

    async def _probed(self) -> None:
        """Until the gateway has seen that all are well again."""
        deadline = time.monotonic() + 20.0
        while True:
            metrics = (await self._servers.get("/metrics")).text
            if all(value for _, value in ending.samples(metrics, "provider_up")):
                return
            if time.monotonic() > deadline:
                self._violate("20 s after the last fault a provider is still told as down")
                return
            await asyncio.sleep(0.2)

    async def _end(self, start: ending.Start) -> None:
        servers, report = self._servers, self._report
        self._mark("calm")
        (left, last), _ = await asyncio.gather(ending.settled(servers, start), self._ask_around())
        self._mark("settled")
        metrics = (await servers.get("/metrics")).text
        (servers.folder / "metrics.log").write_text(metrics)
        wrong, counted = ending.counters(metrics, self._tally, self._truth)
        if not servers.disk.mounted:  # metrics are files too: what they count while nothing may grow is lost
            wrong = [one for one in wrong if not one.startswith("requests_total")]
        store_wrong = ending.store(servers.store_path, self._helm.changes)
        begun = time.monotonic()
        code = await servers.aclose()
        if code != 0:
            self._violate(f"the gateway ended with {code} on SIGTERM")
        log_wrong, events = ending.logs(servers.folder / "gateway.log", self._tally, self._truth, servers.disk.excused)
        found = [*left, *wrong, *store_wrong, *log_wrong, *ending.canaries(servers.folder, report.seed)]
        found += [*ending.emulators(servers.folder), *self._breaker.problems, *self._helm.problems]
        for one in found:
            self._violate(one)
        report.broke, report.missed = dict(sorted(self._breaker.done.items())), dict(self._breaker.missed)
        report.steered = dict(sorted(self._helm.done.items()))
        report.facts = {
            "disk": servers.disk.way,
            "metrics": counted,
            "log": events,
            "rss_kb": {"warm": start.rss_kb, "end": max(body.rss_kb for body in last)},
            "sockets": {"at rest": start.sockets, "end": max(body.sockets for body in last)},
            "files": {"warm": start.files, "end": max(body.files for body in last)},
            "tasks": {"at rest": start.tasks, "end": max(sum(body.tasks.values()) for body in last)},
            "machine_stalls_s": self._stalls_s(),
            "stopped_in_s": round(time.monotonic() - begun, 2),
            "killed_workers": len(self._truth.kills),
            "changes": self._helm.changes,
            "phases_s": self._marks,
        }  # fmt: skip

    async def _ask_around(self) -> None:
        """What an operator would look at; it lands in a log, where no prompt may be."""
        for command in (("status",), ("history",), ("incidents",)):
            code, _, err = await self._servers.llmctl("--json", *command)
            if code:
                self._violate(f"`llmctl {' '.join(command)}` ended with {code}: {err.decode()[-300:]}")

    # While it runs

    async def _watch(self) -> None:
        """Judge what can be judged, show how it goes, notice when the machine itself stands still."""
        told = last = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            if now - last > STALL_S + TICK_S:
                self._truth.end(self._truth.begin(MACHINE, "stall", ANY, last), now)
            last = now
            self._judge(min(self._helm.pending or now, now) - 2 * TICK_S)
            if now - told >= PROGRESS_S:
                told = now
                self._say(self._progress())

    def _judge(self, until: float) -> None:
        """What ended before that moment; later things may still become known as explained."""
        due = [exchange for exchange in self._heard if exchange.ended < until]
        for exchange in due:
            self._heard.remove(exchange)
            self._weigh(exchange, judge(exchange, self._truth))

    def _weigh(self, exchange: Exchange, verdict: Verdict) -> None:
        report = self._report
        report.verdicts[verdict.kind] += 1
        report.wires[f"{exchange.asked.wire}{' stream' if exchange.asked.stream else ''}"] += 1
        self._tally.add(exchange, verdict)
        if verdict.kind == "right":
            report.served[verdict.why] += 1
        elif verdict.kind == "excused":
            report.excuses[verdict.why.partition(":")[0]] += 1
        elif verdict.wrong:
            self._evidence(exchange, verdict)

    def _evidence(self, exchange: Exchange, verdict: Verdict) -> None:
        asked, at_s = exchange.asked, exchange.started - self._began
        active = self._truth.active(exchange.started, exchange.ended)
        text = f"unexplained answer to {asked.id} ({asked.wire}) at {at_s:.2f} s: {verdict.why}; broken: {active}"
        self._violate(text)
        if self._keep is None:
            return
        self._keep.mkdir(parents=True, exist_ok=True)
        evidence = {
            "seed": self._report.seed,
            "why": verdict.why,
            "request": {"id": asked.id, "path": asked.path, "headers": dict(asked.headers), "body": asked.body},
            "client": asked.patience,
            "at_s": round(at_s, 3),
            "head_s": round(exchange.head_at - exchange.started, 3) if exchange.head_at else None,
            "took_s": round(exchange.ended - exchange.started, 3),
            "port": exchange.port,
            "error": exchange.error,
            "response": exchange.raw.decode(errors="replace"),
            "broken": active,
            "routes": sorted(map(str, self._truth.routes(asked, exchange.started, exchange.ended))),
            "timeline": self._timeline[-12:],
        }
        (self._keep / f"{asked.id}.json").write_text(json.dumps(evidence, indent=1, ensure_ascii=False))

    def _violate(self, text: str) -> None:
        self._report.violations.append(text)
        if len(self._report.violations) <= MOST_SHOWN:
            self._say(f"VIOLATION (seed {self._report.seed}): {text}")

    def _note(self, text: str) -> None:
        self._timeline.append(f"{time.monotonic() - self._began:.2f} s: {text}")

    def _stalls_s(self) -> list[float]:
        return [round((s.end or s.start) - s.start, 2) for s in self._truth.spans if s.where == MACHINE]

    def _mark(self, phase: str) -> None:
        self._marks[phase] = round(time.monotonic() - self._born, 1)

    def _progress(self) -> str:
        report = self._report
        at_s = time.monotonic() - self._began
        verdicts = ", ".join(f"{count} {kind}" for kind, count in sorted(report.verdicts.items()))
        active = ", ".join(sorted(set(self._truth.active(time.monotonic(), time.monotonic())))) or "calm"
        return f"{at_s:5.0f}/{report.seconds:.0f} s  {verdicts or 'nothing yet'}  now: {active}"


def _keep(folder: Path, keep: Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob("*.log"), *folder.glob("*.yaml")]:
        shutil.copy(path, keep / path.name)
