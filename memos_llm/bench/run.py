"""The driver: start everything, play the rounds, take the samples.

Within a round every phase is played twice by each subject, the second time in reverse order (A B B A), so that a
noisy or a drifting machine hits them alike. Before a phase its connections are opened and used once, unmeasured.
What the guard costs is too small a difference for that: see `added`.
"""

import asyncio
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct
from msgspec.structs import asdict

from memos_llm.bench import subjects
from memos_llm.bench.added import Asked, AskedGateway, AskedRouter, samples
from memos_llm.bench.load import Burst, Client, WrongAnswer
from memos_llm.bench.results import Report, Sample, exceeding, figures, machine, percentile
from memos_llm.bench.subjects import START_S, Cores, Program
from memos_llm.bench.wire import CHAT, NATIVE, TRANSLATED, requests

CONVERSATIONS = 256  # enough that each arm gets its half of them, within a few per cent
SETTLE_S = 0.1  # log lines and the like are written that late


class Plan(Struct, frozen=True, kw_only=True):
    """How much of what each time. `short` and `long` are events per stream; every stream gets one per tick. Of the
    guard's cost: `pairs` of samples, requests or calls in a `turn` between two switches, and for how long what it uses
    beside them is measured.
    """

    rounds: int = 5
    requests: int = 640
    concurrency: int = 32
    streams: int = 64
    short: int = 4
    long: int = 54
    tick_ms: float = 10.0
    calls: int = 320
    pairs: int = 300
    turn: int = 40
    beside_s: float = 4.0


QUICK = Plan(rounds=1, requests=320, long=24, calls=160, pairs=50, beside_s=2.0)


class Phase(Struct, frozen=True, kw_only=True):
    """One kind of load, and where each subject takes it."""

    name: str
    paths: dict[str, str]
    connections: int
    count: int
    stream: bool = False
    tokens: int = 256

    def requests(self, subject: str) -> Sequence[bytes]:
        return requests(self.paths[subject], CONVERSATIONS, stream=self.stream, tokens=self.tokens)


def phases(plan: Plan) -> list[Phase]:
    chat = {"direct": CHAT, "passthrough": CHAT, "gateway": CHAT}
    native = {"passthrough": NATIVE, "gateway": TRANSLATED}
    whole, streams = plan.concurrency, plan.streams
    return [
        Phase(name="requests", paths=chat, connections=whole, count=plan.requests),
        Phase(name="short", paths=chat, connections=streams, count=streams, stream=True, tokens=plan.short),
        Phase(name="long", paths=chat, connections=streams, count=streams, stream=True, tokens=plan.long),
        Phase(name="native", paths=native, connections=whole, count=plan.requests // 2),
        Phase(name="native-short", paths=native, connections=streams, count=streams, stream=True, tokens=plan.short),
        Phase(name="native-long", paths=native, connections=streams, count=streams, stream=True, tokens=plan.long),
    ]


class Tally:
    """What one subject did in one phase of a round, added up."""

    def __init__(self, subject: str, phase: str) -> None:
        self.subject, self.phase = subject, phase
        self.burst = Burst()
        self.took_s = 0.0
        self.cpu_ns = self.client_cpu_ns = self.upstream_cpu_ns = 0

    def sample(self) -> Sample:
        return Sample(
            subject=self.subject,
            phase=self.phase,
            answers=self.burst.answers,
            cpu_ns=self.cpu_ns,
            client_cpu_ns=self.client_cpu_ns,
            upstream_cpu_ns=self.upstream_cpu_ns,
            events=self.burst.events,
            reads=self.burst.reads,
            took_s=self.took_s,
            first_p50_s=percentile(self.burst.first_s, 0.5),
            whole_p50_s=percentile(self.burst.whole_s, 0.5),
            whole_p95_s=percentile(self.burst.whole_s, 0.95),
        )


class Meter:
    """The CPU time of one process: within measured phases, and outside of them since `start`."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.start()

    def start(self) -> None:
        self._first_ns, self._started_at = self._program.cpu_ns(), time.perf_counter()
        self._measured_ns, self._measured_s = 0, 0.0

    def begin(self) -> None:
        self._begun_ns, self._begun_at = self._program.cpu_ns(), time.perf_counter()

    def end(self) -> int:
        """Nanoseconds since `begin`."""
        used = self._program.cpu_ns() - self._begun_ns
        self._measured_ns += used
        self._measured_s += time.perf_counter() - self._begun_at
        return used

    def background_ms_per_s(self) -> float:
        """What it does while nobody asks it anything: probes, the store, its timers."""
        idle_ns = self._program.cpu_ns() - self._first_ns - self._measured_ns
        return idle_ns / 1e6 / (time.perf_counter() - self._started_at - self._measured_s)


class Bench:
    """The processes of a run, started, and the clients to them."""

    def __init__(self, plan: Plan, upstream: Program, served: dict[str, tuple[Program, int]], direct: int) -> None:
        self._phases, self._plan = phases(plan), plan
        self._upstream = upstream
        self.meters = {name: Meter(program) for name, (program, _) in served.items()}
        self._clients = {"direct": Client(direct)} | {name: Client(port) for name, (_, port) in served.items()}
        self.callers: dict[str, Program] = {}
        self._asked: list[Asked] = []

    def switch(self, gateway: Program, port: int, router: Program) -> None:
        """Of what the guard's cost is measured."""
        client = self._clients["switched"] = Client(port)
        prepared, at_once = requests(CHAT, CONVERSATIONS, stream=False, tokens=256), self._plan.concurrency
        self._asked = [AskedGateway(gateway, client, prepared, at_once), AskedRouter(router, at_once)]

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    async def warm_up(self) -> None:
        """Every kind of load once, none of it long."""
        for phase in self._phases:
            if not phase.name.endswith("long"):
                for name in phase.paths:
                    await self._play(phase, Tally(name, phase.name))
        for name, caller in self.callers.items():
            self._call(caller, self._plan.calls, Tally(name, "calls"))
        for asked in self._asked:
            await samples(asked, pairs=1, turn=self._plan.turn, beside_s=0.1)

    async def round(self) -> list[Sample]:
        """Every phase of every subject, twice, summed up."""
        found = []
        for phase in self._phases:
            tallies = {name: Tally(name, phase.name) for name in phase.paths}
            for name in _there_and_back(phase.paths):
                await self._play(phase, tallies[name])
            found += [tally.sample() for tally in tallies.values()]
        called = {name: Tally(name, "calls") for name in self.callers}
        for name in _there_and_back(called):
            self._call(self.callers[name], self._plan.calls, called[name])
        found += [tally.sample() for tally in called.values()]
        plan = self._plan
        for asked in self._asked:
            found += await samples(asked, pairs=plan.pairs, turn=plan.turn, beside_s=plan.beside_s)
        return found

    async def _play(self, phase: Phase, tally: Tally) -> None:
        client, meter = self._clients[tally.subject], self.meters.get(tally.subject)
        priming = requests(phase.paths[tally.subject], CONVERSATIONS, stream=False, tokens=256)
        if meter is not None:
            meter.begin()
        await client.burst(priming, connections=phase.connections, count=phase.connections)
        await asyncio.sleep(SETTLE_S)
        upstream_ns, prepared = self._upstream.cpu_ns(), phase.requests(tally.subject)
        if meter is not None:
            meter.end()
            meter.begin()
        client_ns, started = time.process_time_ns(), time.perf_counter()
        least = phase.tokens if phase.stream else 0
        burst = await client.burst(prepared, connections=phase.connections, count=phase.count, least_events=least)
        tally.took_s += time.perf_counter() - started
        tally.client_cpu_ns += time.process_time_ns() - client_ns
        await asyncio.sleep(SETTLE_S)  # what it still does for these answers is theirs
        tally.cpu_ns += meter.end() if meter is not None else 0
        tally.upstream_cpu_ns += self._upstream.cpu_ns() - upstream_ns
        tally.burst.add(burst)

    def _call(self, caller: Program, count: int, tally: Tally) -> None:
        """The library's turn; the program measures itself."""
        at_once = self._plan.concurrency
        caller.tell(f"{at_once} {at_once} 0")
        tally.cpu_ns += int(caller.tell(f"{count} {at_once} 0"))
        tally.burst.answers += count


def _there_and_back(names: Iterable[str]) -> list[str]:
    there = list(names)
    return there + there[::-1]


async def run(plan: Plan, max_ratio: float, note: Callable[[str], None]) -> Report:
    """A whole run; `note` is told how far it is.

    Raises:
        NotStarted: a process of the run did not come up.
        WrongAnswer: one of them did not do its work.
    """
    cores, rounds = Cores(), []
    with ExitStack() as stack:
        stack.enter_context(cores.use(cores.rest))
        note("starting")
        bench = await _start(stack, cores, plan)
        note("warm-up")
        await bench.warm_up()
        for meter in bench.meters.values():
            meter.start()
        for number in range(1, plan.rounds + 1):
            note(f"round {number} of {plan.rounds}")
            rounds.append(await bench.round())
        background = {name: meter.background_ms_per_s() for name, meter in bench.meters.items()}
    found = figures(rounds)
    return Report(
        version=1,
        machine=machine(),
        settings=asdict(plan),
        max_ratio=max_ratio,
        passed=not exceeding(found, max_ratio),
        figures=found,
        background_ms_per_s=background,
        rounds=rounds,
    )


async def _start(stack: ExitStack, cores: Cores, plan: Plan) -> Bench:
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memos_llm-bench-")))
    upstream = stack.enter_context(subjects.upstream(home, plan.tick_ms))
    ollama, vllm = map(int, upstream.line().split())
    ports = _free_port(), _free_port()
    homes = home / "gateway", home / "switched"
    config, switched_config = (
        subjects.configuration(folder, ollama_port=ollama, vllm_port=vllm, gateway_port=port)
        for folder, port in zip(homes, ports, strict=True)
    )
    with cores.use(cores.measured):
        passthrough = stack.enter_context(subjects.passthrough(home, vllm))
        gateway = stack.enter_context(subjects.gateway(homes[0], config))
        switched = stack.enter_context(subjects.switched(homes[1], switched_config))
        served = {"passthrough": (passthrough, int(passthrough.line())), "gateway": (gateway, ports[0])}
        await _ready(gateway, ports[0])
        await _ready(switched, ports[1])
        router = subjects.router(homes[0], config)
        callers = [stack.enter_context(subjects.bare(home, vllm)), stack.enter_context(router)]
    bench = Bench(plan, upstream, served, vllm)
    stack.callback(bench.close)
    for caller in callers:
        caller.line()
        bench.callers[caller.name] = caller
    bench.switch(switched, ports[1], router)
    return bench


async def _ready(gateway: Program, port: int) -> None:
    """Wait until it says that it is.

    Raises:
        NotStarted: it ended, or did not say so in time.
    """
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if not gateway.alive():
            raise gateway.failed("ended at its start")
        client = Client(port)
        try:
            if (await client.ask(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")).status == 200:
                return
        except (OSError, WrongAnswer):
            pass  # not listening yet
        finally:
            client.close()
        await asyncio.sleep(0.1)
    raise gateway.failed(f"was not ready after {START_S:g} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
