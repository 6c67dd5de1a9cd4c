"""Puts the demo together, runs it, says the verdict, and takes everything apart again, however it ends."""

import asyncio
import json
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from memos_llm.cli.demo import report as reporting
from memos_llm.cli.demo.applications import OllamaApplication, OpenAIApplication
from memos_llm.cli.demo.background import Background
from memos_llm.cli.demo.checks import failures, rows
from memos_llm.cli.demo.conversations import MODEL, Application, sessions
from memos_llm.cli.demo.failures import DemoFailed, Interrupted
from memos_llm.cli.demo.processes import Processes
from memos_llm.cli.demo.report import Report
from memos_llm.cli.demo.scenario import FULL, QUICK, Pace, Scenario, Story
from memos_llm.cli.demo.screen import REFRESH_S, Screen
from memos_llm.cli.demo.stack import DEFAULT_PORT, Stack
from memos_llm.cli.demo.tally import PROVIDERS, Stage, Tally
from memos_llm.cli.demo.traffic import Traffic
from memos_llm.cli.demo.watch import Watch, answered

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KEPT_PAUSE_S = 2.0  # of a worker of the applications, for --keep


@dataclass(frozen=True, slots=True)
class Options:
    """As `run` takes them."""

    keep: bool
    quick: bool
    report: Path | None
    as_json: bool


async def show(options: Options) -> int:
    """The whole demo; the exit code."""
    console = Console(stderr=options.as_json, highlight=False)
    folder = Path(tempfile.mkdtemp(prefix="memos_llm_demo_"))
    demo = Demo(options, console, folder)
    code = 1
    try:
        with _signals() as signalled:
            await demo.run(signalled)
        code = demo.exit_code
    except Interrupted as interrupted:
        code = interrupted.exit_code if demo.report is None else demo.exit_code
    except DemoFailed as failure:
        console.print(f"FAILED: {failure}", style="bold red", markup=False, soft_wrap=True)
    finally:
        if code == 1:
            console.print(f"logs: {folder}", markup=False, soft_wrap=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return code


class Demo:
    """One run. `report` is None until there is a verdict."""

    def __init__(self, options: Options, console: Console, folder: Path) -> None:
        self.report: Report | None = None
        self._options, self._console, self._folder = options, console, folder
        self._pace: Pace = QUICK if options.quick else FULL
        rng = random.Random()
        self._sessions = {app: sessions(app, self._pace.sessions, rng) for app in ("ollama", "openai")}
        self._tally = Tally({session.id: session for own in self._sessions.values() for session in own})
        self._screen = Screen(console, self._tally)

    @property
    def exit_code(self) -> int:
        return 0 if self.report is not None and self.report.passed else 1

    async def run(self, signalled: "asyncio.Future[int]") -> None:
        """From nothing to the verdict, and on until a signal if everything is to be kept.

        Raises:
            DemoFailed: there is no verdict.
            Interrupted: by a signal, before or after the verdict.
        """
        async with AsyncExitStack() as cleaning:
            processes = await cleaning.enter_async_context(Processes(self._folder, Stack.environment(self._folder)))
            stack = await cleaning.enter_async_context(Stack(self._folder, processes))
            background = await cleaning.enter_async_context(Background())
            cleaning.enter_context(self._screen.shown())
            background.start(_interruption(signalled))
            background.start(self._refresh())
            await background.during(self._play(stack, background, cleaning))

    async def _play(self, stack: Stack, background: Background, cleaning: AsyncExitStack) -> None:
        self._screen.say("starting emulated Ollama and vLLM servers, and the gateway")
        for child in await stack.start():
            background.start(child.watch())
        self._greet(stack)
        applications: list[Application] = [
            await cleaning.enter_async_context(OllamaApplication(stack.gateway)),
            await cleaning.enter_async_context(OpenAIApplication(stack.gateway)),
        ]
        watch = Watch(stack, self._screen.say)
        background.start(watch.run())
        self._screen.share = lambda: watch.share
        traffic = self._talk(applications, background, self._pace.pause_s)
        scenario = Scenario(stack, self._tally, watch, self._screen, self._pace)
        story = await scenario.play()
        for one in traffic:
            one.stop()
        await self._tally.quiet()
        await scenario.explain()
        self._conclude(story, answered((await stack.get("/metrics")).text))
        if self._options.keep:
            self._tally.enter(Stage("running until Ctrl-C", share_ppm=0))
            self._talk(applications, background, KEPT_PAUSE_S)
            self._invite(stack)
            await asyncio.Event().wait()

    def _talk(self, applications: Sequence[Application], background: Background, pause_s: float) -> list[Traffic]:
        traffic = [
            Traffic(one, self._sessions[one.name], self._tally, workers=self._pace.workers, pause_s=pause_s)
            for one in applications
        ]
        for one in traffic:
            background.start(one.run())
        return traffic

    async def _refresh(self) -> NoReturn:
        while True:
            self._screen.refresh()
            await asyncio.sleep(REFRESH_S)

    def _greet(self, stack: Stack) -> None:
        taken = "" if stack.gateway.endswith(f":{DEFAULT_PORT}") else f" (port {DEFAULT_PORT} is taken)"
        for line in (
            f"gateway {stack.gateway}{taken}",
            f"Ollama {stack.ollama}, vLLM {stack.vllm} (emulated)",
            f"MEMOS_LLM_CONFIG={stack.config}",
            f"two applications, on the ollama SDK and on the openai SDK, {self._pace.sessions} conversations each",
        ):
            self._screen.say(line)

    def _conclude(self, story: Story, counted: Mapping[str, int]) -> None:
        tally = self._tally
        found = [*failures(tally, story.slots), *story.failures, *_miscounted(tally, counted)]
        self.report = Report(
            rows=rows(tally, story.slots),
            failures=found,
            conversations=len(tally.sessions),
            requests=len(tally.served),
            errors=len(tally.problems),
            waiting_at_kill=story.waiting_at_kill,
            rescued=sum(one.fell_back for one in tally.served if tally.stages[one.stage].dead),
            diversion_ended_s=round(story.diversion_ended_s, 3),
            explained=story.explained,
            gateway_counted=dict(counted),
            duration_s=round(time.monotonic() - tally.started_s, 3),
        )
        reporting.show(self.report, self._console)
        if self._options.report is not None:
            reporting.write(self.report, self._options.report)
        if self._options.as_json:
            reporting.write(self.report, Path("/dev/stdout"))

    def _invite(self, stack: Stack) -> None:
        self._screen.plain_s = float("inf")
        ask = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "stream": False})
        lines = (
            "",
            "Everything goes on until Ctrl-C, the applications more slowly:",
            f"  gateway  {stack.gateway}   /v1/…, /api/…",
            f"  metrics  {stack.gateway}/metrics",
            f"  health   {stack.gateway}/health",
            f"  Ollama   {stack.ollama}   (emulated; faults: POST /_emulator/faults)",
            f"  vLLM     {stack.vllm}   (emulated)",
            f"  logs     {self._folder}",
            "Try:",
            f"  export MEMOS_LLM_CONFIG={stack.config}",
            "  llmctl status",
            "  llmctl shift --vllm 50%",
            "  llmctl explain --session conv-42 --component synthesis",
            f"  curl -i {stack.gateway}/c/synthesis/s/conv-42/api/chat -d '{ask}'",
            f'  curl -i {stack.vllm}/_emulator/faults -d \'{{"set": ["status:code=500"]}}\'',
            "  llmctl rollback --reason 'enough'",
        )
        for line in lines:
            self._console.print(line, markup=False, soft_wrap=True)


def _miscounted(tally: Tally, counted: Mapping[str, int]) -> list[str]:
    """The gateway's own metrics must tell of the answers that the clients got; of more, if somebody else called it."""
    seen = {provider: sum(o.provider == provider and not o.problem for o in tally.served) for provider in PROVIDERS}
    if all(counted.get(provider, 0) >= n for provider, n in seen.items()):
        return []
    return [f"the gateway's metrics count {dict(counted)} answers, the clients got {seen}"]


async def _interruption(signalled: "asyncio.Future[int]") -> NoReturn:
    raise Interrupted(await signalled)


@contextmanager
def _signals() -> "Iterator[asyncio.Future[int]]":
    """The first signal, instead of a death in the middle of things. Later ones find the end already under way."""
    loop = asyncio.get_running_loop()
    signalled: asyncio.Future[int] = loop.create_future()

    def note(number: int) -> None:
        if not signalled.done():
            signalled.set_result(number)

    for number in SIGNALS:
        loop.add_signal_handler(number, note, number)
    try:
        yield signalled
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
