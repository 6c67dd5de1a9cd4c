"""The same requests to the real servers and to the emulators that play them: every difference is known, or fails."""

import asyncio
import difflib
import fnmatch
import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import real_shape
from real_cases_more import cases
from real_servers import CHAT_MODEL, CONTEXT, DIMENSION, EMBED, EMBED_MODEL, OLLAMA, PARALLEL, PLAIN_MODEL, VLLM, Server
from real_wire import Case, Exchange, exchange

from memos_llm.emulators import OllamaEmulator, OllamaModel, VllmEmulator

LISTED = Path(__file__).with_name("differences.toml")
TRAINED = 2 * CONTEXT
ENDS_ALIKE = ("one token", "num_predict 1", "max_tokens 1", "load", "stop hit")
"""Words in the names of cases whose end is no chance."""
WORDS = 400
"""Length of an emulated answer: more than any `max_tokens` of the cases, as the random model's mostly is."""


@dataclass(slots=True)
class Known:
    """A difference that stays. `cases`, `lines`: shell patterns of names, and of the lines that may differ."""

    cases: Sequence[str]
    lines: Sequence[str]
    why: str
    met: int = 0

    def covers(self, case: str, line: str) -> bool:
        named = any(fnmatch.fnmatchcase(case, pattern) for pattern in self.cases)
        return named and any(fnmatch.fnmatchcase(line, pattern) for pattern in self.lines)


@dataclass(slots=True)
class Parity:
    """What came of it."""

    asked: dict[str, int] = field(default_factory=dict)
    listed: dict[str, list[str]] = field(default_factory=dict)
    unlisted: dict[str, list[str]] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.unlisted


async def compare(servers: Mapping[str, Server], only: str = "*") -> Parity:
    """Ask everything of both; `only`: a shell pattern of case names."""
    known = read_listed()
    result = Parity()
    async with emulated(servers) as emulators:
        wanted = [case for case in cases() if fnmatch.fnmatchcase(case.name, only)]

        async def ask(server: str) -> None:
            mine = [case for case in wanted if case.at == (server,)]
            result.asked[server] = len(mine)
            for case in mine:  # in order: some change what others find
                answers = exchange(servers[server].url, case), exchange(emulators[server], case)
                _judge(result, known, case, *await asyncio.gather(*answers))

        await asyncio.gather(*(ask(server) for server in emulators))
    result.gone = [entry.why for entry in known if not entry.met]
    return result


def _judge(result: Parity, known: Sequence[Known], case: Case, real: Exchange, played: Exchange) -> None:
    found = different(real, played, ends_alike=any(word in case.name for word in ENDS_ALIKE))
    covering = {line: next((k for k in known if k.covers(case.name, line[2:])), None) for line in found}
    for entry in covering.values():
        if entry is not None:
            entry.met += 1
    if found:
        where = result.listed if all(covering.values()) else result.unlisted
        where[case.name] = found


def different(real: Exchange, played: Exchange, *, ends_alike: bool = False) -> list[str]:
    """Lines that only the real server has (`- `), and only the emulator (`+ `)."""
    theirs, ours = (real_shape.lines(got, ends_alike=ends_alike) for got in (real, played))
    both = difflib.ndiff(theirs, ours)
    return [line for line in both if line.startswith(("- ", "+ "))]


def read_listed() -> list[Known]:
    listed = tomllib.loads(LISTED.read_text())
    return [Known(**entry) for entry in listed.get("difference", [])]


@asynccontextmanager
async def emulated(servers: Mapping[str, Server]) -> AsyncIterator[dict[str, str]]:
    """Emulators of the same releases, with the same models; their addresses."""
    able: Any = {"context_length": TRAINED, "family": "llama", "dimension": DIMENSION}
    chat = OllamaModel(CHAT_MODEL, ("completion", "tools"), **able)
    plain = OllamaModel(PLAIN_MODEL, ("completion",), source=chat.short, **able)
    vllm: Any = {"max_model_len": CONTEXT, "max_num_seqs": 32, "version": servers[VLLM].version}
    async with (
        OllamaEmulator(
            models=[plain, OllamaModel(EMBED_MODEL, ("completion", "tools"), **able), chat],
            version=servers[OLLAMA].version,
            num_parallel=PARALLEL,
            keep_alive_s=float("inf"),
            words=WORDS,
        ) as ollama,
        VllmEmulator(models=[CHAT_MODEL], reasoning_parser=None, words=WORDS, **vllm) as generating,
        VllmEmulator(models=[EMBED_MODEL], task="embed", dimension=DIMENSION, **vllm) as embedding,
    ):
        yield {OLLAMA: ollama.url, VLLM: generating.url, EMBED: embedding.url}


def show(result: Parity, servers: Mapping[str, Server]) -> None:
    """Print the table, then what is not listed."""
    print(f"\n{'server':12} {'release':8} {'requests':>8}  {'same':>5}  {'listed':>6}  {'unlisted':>8}")
    for name, count in result.asked.items():
        listed, unlisted = (
            sum(case.startswith(f"{name}:") or case.startswith(f"{name} ") for case in found)
            for found in (result.listed, result.unlisted)
        )
        print(f"{name:12} {servers[name].version:8} {count:8}  {count - listed - unlisted:5}  {listed:6}  {unlisted:8}")
    for case, found in result.unlisted.items():
        print(f"\nunlisted: {case}")
        print("\n".join(f"  {line[:700]}" for line in found))
    for why in result.gone:
        print(f"listed, but no longer there: {why}")


def as_json(result: Parity, servers: Mapping[str, Server]) -> dict[str, Any]:
    return {
        "versions": {name: servers[name].version for name in result.asked},
        "requests": result.asked,
        "listed": result.listed,
        "unlisted": result.unlisted,
        "gone": result.gone,
    }
