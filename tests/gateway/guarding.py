"""What the tests of the guard do through a gateway: ask, let time pass for the guard, and read what it said."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx
from stack import Stack, until

from memos_llm.core.commands import Incident
from memos_llm.core.events import GuardSaid, IncidentOpened, InternalError, RollbackHeld
from memos_llm.core.flags import GLOBAL
from memos_llm.core.verdicts import ArmWindow

SHORT = {"answer_s": 0.4, "ttft_s": 0.4}
WIDE = {"num_parallel": 32}  # of an Ollama: nobody waits in its queue
ILL = "status:code=500,rate=0.6"  # with all of them its breaker would open, and most would go elsewhere


async def ask(
    client: httpx.AsyncClient, number: int, *, session: str = "", retry: int = 0, patience_s: float = 20.0, **more: Any
) -> httpx.Response:
    """A chat of its own conversation, so that its arm is its own too."""
    body = {"model": "qwen3:8b", "messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": 8}
    headers = {"x-memos-session": session or f"conversation-{number}", "x-stainless-retry-count": str(retry)}
    return await client.post(
        "/v1/chat/completions", json=body | more, headers=headers, timeout=httpx.Timeout(20.0, read=patience_s)
    )


async def some(client: httpx.AsyncClient, first: int, count: int, **more: Any) -> list[int]:
    """The statuses of requests that are under way together; 0: the client left."""

    async def one(number: int) -> int:
        with contextlib.suppress(httpx.ReadTimeout):
            return (await ask(client, number, **more)).status_code
        return 0

    return await asyncio.gather(*(one(number) for number in range(first, first + count)))


async def ask_until(
    stack: Stack, client: httpx.AsyncClient, kind: type[IncidentOpened] | type[RollbackHeld], many: int = 1, **more: Any
) -> list[int]:
    """Ask, so many at a time, until the guard has acted (or held); all statuses. One by one the same ones fail each
    time; of several it is chance whether five end in a row that failed: then the breaker opens, and hides the others.
    """
    statuses: list[int] = []
    async with asyncio.timeout(40):
        while not stack.told.of(kind):
            statuses += await some(client, len(statuses), many, **more)
    return statuses


async def said_again(stack: Stack, times: int = 2) -> GuardSaid:
    """Wait until the guard has judged everything again, with all that has happened until now."""
    before = len(stack.told.of(GuardSaid))
    await until(lambda: len(stack.told.of(GuardSaid)) >= before + times)
    return stack.told.of(GuardSaid)[-1]


def window(said: GuardSaid, provider: str = "vllm") -> ArmWindow:
    """All of a provider's."""
    return next(one for one in said.windows if (one.provider, one.component, one.model) == (provider, "", ""))


async def probe(stack: Stack, *providers: str, times: int = 3) -> None:
    """As the prober does, without its pauses."""
    for _ in range(times):
        for provider in providers:
            for ended in await stack.runtime.transports[provider].probe():
                stack.runtime.bus.emit(ended)


@contextlib.asynccontextmanager
async def probing(stack: Stack, *providers: str, pause_s: float = 0.1) -> AsyncIterator[None]:
    """The prober, in a hurry."""

    async def forever() -> None:
        while True:
            await probe(stack, *providers, times=1)
            await asyncio.sleep(pause_s)

    task = asyncio.create_task(forever())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Asking:
    """Applications that ask again as soon as they are answered, each conversation once."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.providers: list[str] = []


@contextlib.asynccontextmanager
async def asking(client: httpx.AsyncClient, many: int = 4, **more: Any) -> AsyncIterator[Asking]:
    seen = Asking()

    async def app(number: int) -> None:
        while True:
            answer = await ask(client, number := number + many, **more)
            seen.statuses.append(answer.status_code)
            seen.providers.append(answer.headers.get("x-memos-provider", ""))
            await asyncio.sleep(0.02)

    apps = [asyncio.create_task(app(number)) for number in range(many)]
    try:
        yield seen
    finally:
        for each in apps:
            each.cancel()
        ended = await asyncio.gather(*apps, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in ended), ended


def held(stack: Stack) -> set[tuple[str, str]]:
    """Trigger and reason of what was held; each was told once."""
    told = stack.told.of(RollbackHeld)
    found = {(one.trigger, one.scope, one.why) for one in told}
    assert len(found) == len(told), told
    return {(trigger, why) for trigger, _, why in found}


def incidents(stack: Stack) -> Sequence[Incident]:
    return [event.incident for event in stack.told.of(IncidentOpened)]


def share(stack: Stack) -> float:
    return stack.runtime.live.current().share_ppm("default") / 1_000_000


def latched(stack: Stack) -> bool:
    return stack.runtime.live.current().scope(GLOBAL).latch is not None


def nothing_broke(stack: Stack) -> None:
    assert stack.told.of(InternalError) == []


async def status(stack: Stack) -> dict[str, Any]:
    """As `llmctl status --json` shows it."""
    token = (Path.home() / ".local/state/memos_llm/admin_token").read_text().strip()
    async with stack.client() as client:
        answer = await client.get("/admin/v1/status", headers={"authorization": f"Bearer {token}"})
    found: dict[str, Any] = answer.json()
    return found


def folder(parent: Path, name: str) -> Path:
    """A new one."""
    path = parent / name.replace(" ", "-")
    path.mkdir()
    return path


async def together(cases: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Each waits for its own guard's second, so they wait at the same time."""
    async with asyncio.TaskGroup() as group:
        for case in cases:
            group.create_task(case)
