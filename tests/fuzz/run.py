"""One run, from the first process to the verdict; and one case again."""

import asyncio
import base64
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz.backend import Backend
from fuzz.cases import ADMIN, CANARY, HOST, MODELS, Case, asked_of, case, told
from fuzz.grammar import CHAT_MODEL
from fuzz.hostile import Script
from fuzz.judging import healed, judge
from fuzz.servers import Body, Servers
from fuzz.wire import Asked, Got, asked_by, exchange, read
from memos_llm.cli.demo.processes import Processes, tail
from memos_llm.emulators import expected

CLIENTS = 6
WARM = 150  # cases before the gateway's memory is looked at first
CONTROL_EVERY = 100
CONTROL_S = 5.0
PROGRESS_S = 10.0
SETTLES_S = 15.0
SPARE_SOCKETS, SPARE_FILES = 6, 3  # probes under way; files open while they are written
RSS_FACTOR, RSS_SPARE_KB = 1.3, 32_768
MOST_KEPT = 30

Say = Callable[[str], None]


@dataclass
class Finding:
    """A case whose answer was wrong, with all that was on the wire."""

    case: Case
    problems: list[str]
    got: Got
    said: Script | None

    def document(self) -> dict[str, Any]:
        made, said = self.case, self.said
        return {
            "seed": made.seed,
            "number": made.number,
            "kind": made.kind,
            "problems": self.problems,
            "sent": [_text(piece) for piece in made.pieces],
            "got": _text(self.got.data),
            "closed": self.got.closed,
            "seconds": round(self.got.seconds, 3),
            "back_end": None if said is None else {"fault": said.fault, "ends": said.ends, "sent": _text(said.data)},
        }


def _text(data: bytes) -> dict[str, str]:
    """Exactly (`base64`), and for a reader."""
    return {"base64": base64.b64encode(data).decode(), "shown": data[:4000].decode("latin-1")}


@dataclass
class Report:
    """What came of a run."""

    seed: int
    minutes: float
    cases: Counter[str] = field(default_factory=Counter)
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    wrong: int = 0
    violations: list[str] = field(default_factory=list)
    controls: int = 0
    slowest_control_s: float = 0.0
    seconds: float = 0.0
    start: Body | None = None
    warm: Body | None = None
    end: Body | None = None
    kept: str = ""

    @property
    def total(self) -> int:
        return sum(self.cases.values())

    @property
    def failed(self) -> bool:
        return bool(self.wrong or self.violations)

    def document(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "minutes": round(self.seconds / 60, 2),
            "requests": self.total,
            "per_second": round(self.total / max(self.seconds, 0.001), 1),
            "kinds": dict(self.cases),
            "answers": {kind: dict(found) for kind, found in self.answers.items()},
            "faults": dict(self.faults),
            "controls": self.controls,
            "slowest_control_s": round(self.slowest_control_s, 3),
            "wrong": self.wrong,
            "violations": self.violations,
            "findings": [{"number": each.case.number, "problems": each.problems} for each in self.findings],
            "gateway": {name: vars(body) for name in ("start", "warm", "end") if (body := getattr(self, name))},
            "kept": self.kept,
        }


@asynccontextmanager
async def running(seed: int, say: Say) -> AsyncIterator[Servers]:
    """The servers, up and found healthy."""
    folder = Path(tempfile.mkdtemp(prefix="memos_llm-fuzz-"))
    try:
        models = tuple(model for name in MODELS for model in MODELS[name])
        async with Backend(seed, models) as backend, Processes(folder, Servers.environment(folder)) as processes:
            servers = Servers(folder, processes, backend)
            try:
                await servers.start()
                say(f"the gateway listens on port {servers.port}")
                yield servers
            finally:
                await servers.aclose()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Run:
    """Cases one after the other, by a few clients, until the time (or the number of cases) is over."""

    def __init__(self, servers: Servers, report: Report, keep: Path, say: Say) -> None:
        self.servers, self.report, self._keep, self._say = servers, report, keep, say
        self._numbers = iter(range(1, 10**12))
        self._began = time.monotonic()
        self._alone = {model: asyncio.Lock() for models in MODELS.values() for model in models}

    async def play(self, seconds: float, most: int | None = None) -> None:
        """Everything; the report is filled in."""
        report = self.report
        report.start = self.servers.body()
        self._began = time.monotonic()
        progress = asyncio.create_task(self._progress(seconds))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(CLIENTS):
                    group.create_task(self._client(seconds, most))
        finally:
            progress.cancel()
        report.seconds = time.monotonic() - self._began
        await self._end()

    async def _client(self, seconds: float, most: int | None) -> None:
        while time.monotonic() - self._began < seconds and self.servers.running and self.report.wrong < MOST_KEPT:
            number = next(self._numbers)
            if most is not None and number > most:
                return
            await self.one(case(self.report.seed, number))
            if number % CONTROL_EVERY == 0:
                await self._control(number)
            if number == WARM:
                self.report.warm = self.servers.body()

    async def one(self, made: Case) -> list[str]:
        """One case; what was wrong with it. One at a time on an endpoint of ours: none must blame it on another."""
        if not made.heals[1]:
            return await self._one(made)
        async with self._alone[made.heals[1]]:
            return await self._one(made)

    async def _one(self, made: Case) -> list[str]:
        port, report = self.servers.port, self.report
        asked = asked_by(made.data)
        got = await exchange(HOST, port, made.pieces, asked, leaves_after=made.leaves_after, resets=made.resets)
        said = self.servers.backend.played.get(made.mark)
        problems = judge(made, asked, got, said)
        if made.heals[0]:
            problems += await self._heal(made, said)
            report.faults[said.fault if said else "not asked"] += 1
        self._count(made, asked, got)
        self._forget(made)
        if problems:
            self._note(Finding(made, problems, got, said))
        return problems

    async def _heal(self, made: Case, said: Script | None) -> list[str]:
        """The endpoint must serve two valid requests rightly, so that its breaker has seen more good than bad."""
        provider, model = made.heals
        problems = []
        if said is not None and said.pause_s:
            await asyncio.sleep(3 * said.pause_s)  # what no client can tell from an answer must be there before it asks
        for turn in range(2):
            mark = f"case-{made.number * 10 + turn}-c"
            asked = asked_of(Random(f"{made.seed}:{made.number}:{turn}"), mark, provider, model)
            data = told(asked, [*ADMIN, ("X-Memos-Provider", provider)])
            got = await exchange(HOST, self.servers.port, (data,), asked_by(data), leaves_after=None, resets=False)
            responses = read(got.data, ["POST"]).responses
            problem = healed(responses[0] if responses else None, mark, asked.wire)
            problems += [problem] if problem else []
            self.servers.backend.scripts.pop(mark, None)
            self.servers.backend.played.pop(mark, None)
        return problems

    async def _control(self, number: int) -> None:
        """An ordinary client gets the right words, soon."""
        messages = [{"role": "user", "content": f"control {number}"}]
        begun = time.monotonic()
        path = ("/api/chat", "/v1/chat/completions")[number // CONTROL_EVERY % 2]
        answer = await self.servers.post(path, {"model": CHAT_MODEL, "messages": messages, "stream": False})
        seconds = time.monotonic() - begun
        self.report.controls += 1
        self.report.slowest_control_s = max(self.report.slowest_control_s, seconds)
        engine = "vllm" if answer.headers.get("x-memos-provider") == "vllm" else "ollama"
        text = expected("vllm" if engine == "vllm" else "ollama", messages).text
        if answer.status_code != 200 or json.dumps(text)[1:-1] not in json.dumps(answer.json()):
            self.report.violations.append(f"control {number} got {answer.status_code} {answer.text[:200]}")
        if seconds > CONTROL_S:
            self.report.violations.append(f"control {number} took {seconds:.1f} s")

    def _count(self, made: Case, asked: Asked, got: Got) -> None:
        report = self.report
        report.cases[made.kind] += 1
        statuses = [str(each.status) for each in read(got.data, asked.methods).responses]
        report.answers.setdefault(made.kind, Counter())[statuses[0] if statuses else "none"] += 1

    def _forget(self, made: Case) -> None:
        self.servers.backend.scripts.pop(made.mark, None)
        self.servers.backend.played.pop(made.mark, None)

    def _note(self, finding: Finding) -> None:
        report, made = self.report, finding.case
        report.wrong += 1
        report.findings.append(finding)
        self._keep.mkdir(parents=True, exist_ok=True)
        path = self._keep / f"{made.seed}-{made.number}.json"
        path.write_text(json.dumps(finding.document(), indent=1))
        self._say(f"WRONG seed {made.seed} case {made.number} ({made.kind}): {finding.problems[0][:200]}")
        self._say(f"      scripts/fuzz --replay {path}")

    async def _progress(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            now, report = time.monotonic() - self._began, self.report
            rate = report.total / now
            self._say(f"{now:5.0f}/{seconds:.0f} s  {report.total} requests, {rate:.0f}/s, {report.wrong} wrong")

    # The end

    async def _end(self) -> None:
        report, servers = self.report, self.servers
        if not servers.running:
            report.violations.append(f"the gateway has ended: {tail(servers.folder / 'gateway.log')}")
            self._keep_log()
            return
        report.violations += await self._settled()
        code = await servers.aclose()
        if code != 0:
            report.violations.append(f"the gateway ended with exit code {code}")
        report.violations += self._log()
        if report.violations:
            self._keep_log()

    async def _settled(self) -> list[str]:
        """What has not come back to the start, after a while."""
        deadline = time.monotonic() + SETTLES_S
        while True:
            self.report.end = self.servers.body()
            metrics = await self.servers.metrics()
            left = [*self._leaks(), *_counters(metrics)]
            busy = await self.servers.in_flight()
            left += [f"the back ends have {busy} requests in flight"] if busy else []
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.25)

    def _leaks(self) -> list[str]:
        start, end = self.report.start, self.report.end
        assert start is not None
        assert end is not None
        warm = self.report.warm or start
        found = []
        if end.sockets > start.sockets + SPARE_SOCKETS:
            found.append(f"{end.sockets} sockets, at the start {start.sockets}")
        if end.files > warm.files + SPARE_FILES:
            found.append(f"{end.files} open files, after warming up {warm.files}")
        if end.rss_kb > warm.rss_kb * RSS_FACTOR + RSS_SPARE_KB:
            found.append(f"{end.rss_kb} kB of memory, after warming up {warm.rss_kb}")
        return found

    def _log(self) -> list[str]:
        log, found = self.servers.log, []
        if "Traceback" in log:
            found.append(f"the log has a traceback: {log[log.find('Traceback') :][:1500]}")
        if '"internal-error"' in log:
            line = next(line for line in log.splitlines() if '"internal-error"' in line)
            found.append(f"the log has an internal error: {line[:400]}")
        word = f"{CANARY}-{self.report.seed:x}"
        held = [line for line in log.splitlines() if word in line and word in _without_model(line)]
        if held:
            found.append(f"the log holds a prompt: {held[0][:300]}")
        return found

    def _keep_log(self) -> None:
        self._keep.mkdir(parents=True, exist_ok=True)
        path = self._keep / f"{self.report.seed}-gateway.log"
        shutil.copy(self.servers.folder / "gateway.log", path)
        self.report.kept = str(path)


def _without_model(line: str) -> str:
    """A request may call its prompt a model's name."""
    try:
        return json.dumps({key: value for key, value in json.loads(line).items() if key != "model"})
    except ValueError:
        return line


def _counters(metrics: dict[str, float]) -> list[str]:
    found = []
    if metrics.get("inflight_requests"):
        found.append(f"inflight_requests is {metrics['inflight_requests']:g} with nobody there")
    if metrics.get("internal_errors_total"):
        found.append(f"internal_errors_total is {metrics['internal_errors_total']:g}")
    return found


async def fuzz(seed: int, minutes: float, keep: Path, say: Say, most: int | None = None) -> Report:
    """A whole run."""
    report = Report(seed, minutes)
    async with running(seed, say) as servers:
        await Run(servers, report, keep, say).play(minutes * 60, most)
    return report


async def replay(path: Path, keep: Path, say: Say) -> Report:
    """One kept case, byte for byte, its back end's answer too."""
    document = json.loads(await asyncio.to_thread(path.read_text))
    made = case(document["seed"], document["number"])
    sent = tuple(base64.b64decode(piece["base64"]) for piece in document["sent"])
    if sent != made.pieces:
        say("cases are made otherwise now: what was kept is played, and judged as bytes")
        made = Case(seed=made.seed, number=made.number, kind=document["kind"], pieces=sent, heals=made.heals)
    report = Report(made.seed, 0.0)
    async with running(made.seed, say) as servers:
        if (said := document["back_end"]) is not None:
            data = base64.b64decode(said["sent"]["base64"])
            servers.backend.scripts[made.mark] = Script(fault=said["fault"], pieces=(data,), ends=said["ends"])
        run = Run(servers, report, keep, say)
        report.start = servers.body()
        await run.one(made)
        await run._end()
    return report
