"""The driver of `--deep`: a few short generations on each side of every mapped model, one after the other."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from memos_llm.core.call import Wire, WireRequest
from memos_llm.core.decoding import FAILURES
from memos_llm.core.errors import AttemptFailed, ConfigError, LLMError
from memos_llm.core.events import Bus
from memos_llm.core.lines import one_line
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.ports import Transport
from memos_llm.operate.doctor.facts import DeepFacts, Facts, Talk
from memos_llm.operate.doctor.look import Told
from memos_llm.operate.doctor.models import Pair, pairs
from memos_llm.operate.embedding import measure
from memos_llm.providers import AiohttpClient, open_transport

if TYPE_CHECKING:
    from memos_llm.config import Settings

ANSWER_S = 120.0  # Ollama may have to load the model first
MAX_WORDS = 160  # characters of a back end's own words
FEW = 32  # tokens of an answer
MOST_BYTES = 262_144  # of such an answer: who sends more never ends
PROMPT = [{"role": "user", "content": "Say OK."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time of day in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "doctor", "schema": SCHEMA}}
TEXTS = ("The cat sat on the mat.", "Interest rates rose again.", "def add(a, b): return a + b", "Guten Morgen!")


def steps(facts: Facts) -> int:
    """How many steps `talks` tells."""
    return sum(1 for _ in _reached(facts))


def _reached(facts: Facts) -> Iterator[Pair]:
    """What is known not to be there has been said, and is not asked for."""
    return (pair for pair in pairs(facts) if pair.there_at_all)


async def talks(facts: Facts, told: Told) -> Mapping[str, DeepFacts]:
    """By the model's logical name. Never raises for a server's sake."""
    settings = facts.settings
    assert settings is not None, "there are pairs only with a configuration"
    found: dict[str, DeepFacts] = {}
    async with _transports(settings) as transports:
        for pair in _reached(facts):
            told(pair.model.name, 0)
            found[pair.model.name] = await (_vectors(settings, pair) if pair.embeds else _talks(pair, transports))
            told(pair.model.name, 1)
    return found


@asynccontextmanager
async def _transports(settings: "Settings") -> AsyncIterator[Mapping[str, Transport]]:
    """Of baseline and candidate, each with what a first probe tells; a plug-in that does not work is left out."""
    client, opened = AiohttpClient(), dict[str, Transport]()
    try:
        for spec in settings.provider_specs():
            if spec.name in (settings.baseline, settings.candidate):
                try:
                    opened[spec.name] = open_transport(spec, client, Bus(), clock=time.monotonic)
                except ConfigError:
                    continue
        await asyncio.gather(*(transport.probe() for transport in opened.values()))
        yield opened
    finally:
        await asyncio.gather(*(transport.aclose() for transport in opened.values()))
        await client.aclose()


async def _vectors(settings: "Settings", pair: Pair) -> DeepFacts:
    try:
        async with asyncio.timeout(ANSWER_S):
            return DeepFacts(vectors=await measure(settings, pair.model.name, TEXTS, lambda *_: None))
    except LLMError as error:
        return DeepFacts(vectors_fault=error.message)
    except TimeoutError:
        return DeepFacts(vectors_fault=f"no vectors in {ANSWER_S:g} s")


async def _talks(pair: Pair, transports: Mapping[str, Transport]) -> DeepFacts:
    """A chat on both sides; what only the candidate may lack is asked of it alone."""
    names = {pair.baseline.name: pair.here, pair.candidate.name: pair.there}
    chats = {name: await _talk(transports.get(name), own) for name, own in names.items()}
    if chats[pair.candidate.name].fault:
        return DeepFacts(chats=chats)
    candidate = transports.get(pair.candidate.name)
    takes_tools = pair.shown is None or not pair.shown.capabilities or "tools" in pair.shown.capabilities
    return DeepFacts(
        chats=chats,
        tools=await _talk(candidate, pair.there, tools=[TOOL]) if takes_tools else None,
        schema=await _talk(candidate, pair.there, response_format=FORMAT),
    )


async def _talk(transport: Transport | None, model: str, **more: Any) -> Talk:
    if transport is None:
        return Talk(fault="its plug-in does not work")
    body = {
        "model": model,
        "messages": PROMPT,
        "max_tokens": FEW,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }
    request = WireRequest("doctor", Wire.OPENAI_CHAT, model, msgspec.json.encode(body), stream=True)
    started = time.monotonic()
    try:
        async with asyncio.timeout(ANSWER_S):
            return read_stream(*await _read(transport, request, started))
    except TimeoutError:
        return Talk(fault=f"no answer in {ANSWER_S:g} s")
    except AttemptFailed as error:
        said = one_line(error.client_text)[:MAX_WORDS]
        return Talk(fault=f"{error}: {said}" if said else str(error), status=error.outcome.status)


async def _read(transport: Transport, request: WireRequest, started: float) -> tuple[bytes, float | None]:
    """The whole body, and how long it took until something was said in it.

    Raises:
        AttemptFailed: also for an answer that is longer than any of so few tokens.
    """
    reply = await transport.open(request)
    body, first_s = bytearray(), None
    try:
        while chunk := await reply.read():
            body += chunk
            if len(body) > MOST_BYTES:
                raise AttemptFailed(Outcome(kind=Kind.MALFORMED, code="endless"))
            if first_s is None and _says(read_stream(bytes(body), None)):
                first_s = time.monotonic() - started
    finally:
        await reply.aclose()
    return bytes(body), first_s


def _says(talk: Talk) -> bool:
    return bool(talk.text or talk.reasoning or talk.tool_calls)


class _Delta(Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


def read_stream(body: bytes, first_s: float | None) -> Talk:
    """An event stream of OpenAI's chat, whole or cut anywhere."""
    chunks = [chunk for line in body.split(b"\n") if (chunk := _chunk(line)) is not None]
    if any(chunk.error is not None for chunk in chunks):
        return Talk(fault="an error event within the stream", status=200)
    choices = [choice for chunk in chunks for choice in chunk.choices or ()]
    usage = next((chunk.usage for chunk in reversed(chunks) if chunk.usage is not None), None)
    return Talk(
        status=200,
        first_s=first_s,
        text="".join(choice.delta.content or "" for choice in choices),
        reasoning=any(choice.delta.reasoning or choice.delta.reasoning_content for choice in choices),
        tool_calls=any(choice.delta.tool_calls for choice in choices),
        finish_reason=next((one.finish_reason for one in reversed(choices) if one.finish_reason), None),
        input_tokens=usage.prompt_tokens if usage else None,
        output_tokens=usage.completion_tokens if usage else None,
    )


def _chunk(line: bytes) -> _Chunk | None:
    """None for what is no event: comments, blank lines, `[DONE]`, one that was cut."""
    if not line.startswith(b"data:"):
        return None
    try:
        return msgspec.json.decode(line[len(b"data:") :], type=_Chunk)
    except FAILURES:
        return None
