"""The driver of `llmctl bench`: providers take turns, level by level, round by round.

Straight to the back ends through this package's own providers: no split, no fallback, no retries, nothing counted.
In every round each provider has its turn (a, b, a, b, …), after a warm-up call of one token. What a turn measured is
kept once the turn is whole, in a `Journal` that outlives an interruption: of a turn that was cut short only the quick
answers would be known.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from msgspec import Struct
from msgspec.structs import replace

from memos_llm.bench.comparison import Sample, Turn
from memos_llm.bench.prompts import WARM_UP, Messages, chars, marked, text_of
from memos_llm.core.call import Usage
from memos_llm.core.errors import LLMError
from memos_llm.core.events import Bus
from memos_llm.core.policy import ProviderSpec
from memos_llm.core.ports import Clock
from memos_llm.providers import AiohttpClient, open_transport
from memos_llm.providers.failures import outcome_of
from memos_llm.providers.typed import TypedProvider

EMPTY = "empty"  # the error of an answer without any text: the fastest back end says nothing at all
TIMEOUT = "timeout"
SPARE_CONNECTIONS = 16  # for loads and probes beside the clients
LOOK_S = 5.0
TEMPERATURE = 0.0  # the same prompt gives the same answer, or nearly

Progress = Callable[[str, int], None]
"""Called with what is measured now and how many requests of it have ended."""


class Plan(Struct, frozen=True, kw_only=True):
    """What to measure of one model.

    Attributes:
        concurrency: clients at once, level by level. runs: rounds at each level, of one request per client.
        timeout_s: for a whole answer, from the sending.
        unique: each request begins with a mark of its own. embeds: it is an embedding model.
    """

    model: str
    concurrency: tuple[int, ...]
    runs: int
    prompts: tuple[Messages, ...]
    max_tokens: int
    timeout_s: float
    unique: bool = True
    embeds: bool = False


class Subject(Struct, frozen=True):
    """A provider under measurement, and its own name for the model."""

    provider: TypedProvider
    model: str

    @property
    def name(self) -> str:
        return self.provider.name


class Opened(Struct, frozen=True):
    """A provider that is ready to be asked, and the releases that its servers said they are."""

    provider: TypedProvider
    versions: tuple[str, ...]


class Journal:
    """What was measured so far: whole turns, and how long the first warm-up calls took (by model and provider)."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.first_calls: dict[tuple[str, str], list[float]] = {}

    def warm_ups(self, model: str, provider: str) -> list[float | None]:
        """How long each warm-up call took, in order; None for one that failed."""
        turns = (turn for turn in self.turns if (turn.model, turn.provider) == (model, provider))
        return [*self.first_calls.get((model, provider), ()), *(turn.warm_up_s for turn in turns)]


@asynccontextmanager
async def opened(specs: Iterable[ProviderSpec], connections: int) -> AsyncIterator[dict[str, Opened]]:
    """The providers by name, closed at the end; each was asked once how it is, so that its release is known.

    Args:
        connections: how many are used at once.

    Raises:
        ConfigError: one cannot be made.
    """
    async with AsyncExitStack() as parts:
        client = AiohttpClient(max_connections=connections + SPARE_CONNECTIONS)
        parts.push_async_callback(client.aclose)
        found: dict[str, Opened] = {}
        for spec in specs:
            transport = open_transport(spec, client, Bus(), clock=time.monotonic)
            provider = TypedProvider(transport, timeouts=spec.timeouts, kind=spec.kind)
            parts.push_async_callback(provider.aclose)
            versions: list[str] = []
            try:
                async with asyncio.timeout(LOOK_S):
                    versions = [probed.version for probed in await transport.probe() if probed.version]
            except TimeoutError:
                pass  # the warm-up call says whether it answers
            found[spec.name] = Opened(provider, tuple(dict.fromkeys(versions)))
        yield found


class Bench:
    """Measures one model on several providers.

    Args:
        journal: receives what was measured. progress: is told how far it is.
        run_id: what marks begin with, another for each run, so that no run profits from an earlier one.
    """

    def __init__(
        self,
        plan: Plan,
        subjects: Sequence[Subject],
        journal: Journal,
        progress: Progress,
        *,
        clock: Clock = time.perf_counter,
        cpu: Clock = time.process_time,
        run_id: str = "",
    ) -> None:
        self._plan, self._subjects, self._journal, self._progress = plan, subjects, journal, progress
        self._clock, self._cpu, self._run_id = clock, cpu, run_id or os.urandom(4).hex()
        self._chars = [chars(messages) for messages in plan.prompts]
        self._marks = 0

    async def run(self) -> None:
        """Everything that is planned.

        Raises:
            LLMError: a provider did not answer the first warm-up call. Later failures are part of what is measured.
        """
        for subject in self._subjects:
            self._progress(f"{subject.name}, loading", 0)
            calls = self._journal.first_calls.setdefault((self._plan.model, subject.name), [])
            for _ in range(2):  # the first may load the model; the second says how long it takes when it is there
                calls.append(await self._warm_up(subject))
        for clients in self._plan.concurrency:
            for number in range(self._plan.runs):
                for subject in self._subjects:
                    self._journal.turns.append(await self._turn(subject, clients, number))

    async def _turn(self, subject: Subject, clients: int, number: int) -> Turn:
        label = f"{subject.name}, {clients} client{'s' if clients > 1 else ''}"
        self._progress(label, 0)
        warm_up_s: float | None = None
        load_s = self._journal.first_calls[self._plan.model, subject.name][0]
        try:
            async with asyncio.timeout(load_s + self._plan.timeout_s):
                warm_up_s = await self._warm_up(subject)
        except (LLMError, TimeoutError):
            warm_up_s = None  # the requests themselves will tell what is wrong
        prompts = [(number * clients + client) % len(self._plan.prompts) for client in range(clients)]
        started, used = self._clock(), self._cpu()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._request(subject, prompt, label)) for prompt in prompts]
        return Turn(
            model=self._plan.model,
            provider=subject.name,
            concurrency=clients,
            round=number,
            wall_s=self._clock() - started,
            warm_up_s=warm_up_s,
            client_cpu_s=self._cpu() - used,
            samples=tuple(task.result() for task in tasks),
        )

    async def _warm_up(self, subject: Subject) -> float:
        """Seconds of a call of one token. Nobody knows how long a load may take: the configured limits are in force."""
        started = self._clock()
        if self._plan.embeds:
            await subject.provider.embed([text_of(WARM_UP)], model=subject.model)
        else:
            await subject.provider.chat(WARM_UP, model=subject.model, max_tokens=1, temperature=TEMPERATURE)
        return self._clock() - started

    async def _request(self, subject: Subject, prompt: int, label: str) -> Sample:
        messages = marked(self._plan.prompts[prompt], self._mark())
        sample, started = Sample(prompt=prompt, prompt_chars=self._chars[prompt], whole_s=0.0), self._clock()
        ask = self._embed if self._plan.embeds else self._stream
        try:
            async with asyncio.timeout(self._plan.timeout_s):
                sample = await ask(subject, messages, sample, started)
        except TimeoutError:
            sample = replace(sample, error=TIMEOUT)
        except LLMError as error:
            sample = replace(sample, error=_kind(error))
        self._progress(label, 1)
        return replace(sample, whole_s=self._clock() - started)

    async def _stream(self, subject: Subject, messages: Messages, sample: Sample, started: float) -> Sample:
        first_s: float | None = None
        last_s: float | None = None
        usage: Usage | None = None
        stream = subject.provider.stream(
            messages, model=subject.model, max_tokens=self._plan.max_tokens, temperature=TEMPERATURE
        )
        async for chunk in stream:
            if chunk.text or chunk.reasoning:
                last_s = self._clock() - started
                first_s = last_s if first_s is None else first_s
            usage = chunk.usage or usage
        return replace(
            sample,
            ttft_s=first_s,
            last_s=last_s,
            input_tokens=usage.input_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            error="" if first_s is not None else EMPTY,
        )

    async def _embed(self, subject: Subject, messages: Messages, sample: Sample, started: float) -> Sample:
        answer = await subject.provider.embed([text_of(messages)], model=subject.model)
        return replace(sample, input_tokens=answer.usage.input_tokens if answer.usage else None)

    def _mark(self) -> str:
        if not self._plan.unique:
            return ""
        self._marks += 1
        return f"[{self._run_id}-{self._marks:06d}]"


def _kind(error: LLMError) -> str:
    """What went wrong, as a word that many errors share."""
    outcome = outcome_of(error).outcome
    return f"{outcome.kind.value} {outcome.status}" if outcome.status else outcome.kind.value


def planned(plans: Iterable[Plan], providers: int) -> int:
    """How many requests there will be, warm-up calls not counted."""
    return sum(providers * plan.runs * clients for plan in plans for clients in plan.concurrency)
