"""The library's side: the same call through `Router.chat` and through a bare aiohttp session, each in its own process.

A program of its own: for every line `COUNT CONCURRENCY FIRST` on stdin it makes so many calls, of conversations from
the first on, and prints the CPU nanoseconds that they took. To `on`, `off` and `used` the router's guard answers as
`Switch.answer` says.

usage: python -m memos_llm.bench.inprocess bare URL | router CONFIG
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from time import process_time_ns

import aiohttp
import uvloop

from memos_llm.bench.switch import OFF, ON, USED, install
from memos_llm.bench.wire import CHAT, MODEL, messages

Call = Callable[[int], Awaitable[object]]
Answer = Callable[[str], str]


async def bare(url: str) -> None:
    """What a pipeline would write without us: a session, JSON in, JSON out."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call(number: int) -> object:
            body = {"model": MODEL, "messages": messages(number), "max_tokens": 256, "temperature": 0.2}
            async with session.post(url + CHAT, json=body) as answer:
                return (await answer.json())["choices"][0]["message"]["content"]

        await obey(call)


async def router(config: str) -> None:
    """Through the public name, as a pipeline does; looked up late, since this package sits below the library."""
    switches = install()
    async with import_module("memos_llm").Router.open(config) as opened:

        async def call(number: int) -> object:
            return await opened.chat(messages(number), model=MODEL, max_tokens=256, temperature=0.2)

        await obey(call, switches[0].answer)


async def obey(call: Call, answer: Answer | None = None) -> None:
    """Until stdin ends."""
    loop = asyncio.get_running_loop()
    print("ready", flush=True)  # noqa: T201 - the answers to the driver
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if answer is not None and line.strip() in (ON, OFF, USED):
            print(answer(line.strip()), flush=True)  # noqa: T201 - an answer to the driver
            continue
        count, concurrency, first = map(int, line.split())
        left = iter(range(first, first + count))

        async def work() -> None:
            for number in left:  # noqa: B023 - all workers of one line share it, and end with it
                await call(number)

        before = process_time_ns()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        print(process_time_ns() - before, flush=True)  # noqa: T201 - an answer to the driver


if __name__ == "__main__":
    how, where = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run({"bare": bare, "router": router}[how](where))
