"""What the demo's two applications talk about, and whether an answer is right.

A conversation is one session: it is asked again and again through the whole demo, so that it shows a flip. The
emulators' answers are a pure function of engine and messages, so an answer is compared word for word with what the
engine named in `x-memos-provider` must have said; an answer cut short, mixed or untranslated cannot pass.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from memos_llm.emulators import expected

Message = dict[str, Any]

MODEL = "qwen3:8b"
COMPONENTS = ("classification", "analysis", "synthesis", "reflection")
CITIES = ("Lima", "Oslo", "Kyoto", "Quito", "Accra", "Turin")
TOPICS = ("llamas", "paged attention", "strangler figs", "canary birds", "rollbacks", "queues", "tokens", "salt")
TOOLS: tuple[Mapping[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city now.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "its name"},
                    "unit": {"type": "string", "description": "of temperatures", "enum": ["celsius", "fahrenheit"]},
                },
                "required": ["city"],
            },
        },
    },
)
REMEMBERED = 4  # messages of a conversation that are sent again


class Style(Enum):
    """How a conversation is held."""

    WHOLE = "whole"
    STREAM = "stream"
    TURNS = "turns"  # streamed, with what was said before
    TOOLS = "tools"  # a tool call, its result, the answer
    PROMPT = "prompt"  # Ollama's /api/generate, streamed


class Naming(Enum):
    """How an application tells the gateway which conversation a request belongs to."""

    PATH = "path"  # /c/{component}/s/{session}: the Ollama SDK cannot set headers per call
    HEADER = "header"  # x-memos-session
    USER = "user"  # OpenAI's own field


STYLES: Mapping[str, tuple[Style, ...]] = {
    "ollama": (Style.STREAM, Style.WHOLE, Style.TURNS, Style.TOOLS, Style.PROMPT),
    "openai": (Style.STREAM, Style.WHOLE, Style.TURNS, Style.TOOLS),
}
NAMINGS: Mapping[str, tuple[Naming, ...]] = {
    "ollama": (Naming.PATH,),
    "openai": (Naming.HEADER, Naming.USER, Naming.PATH),
}


@dataclass(slots=True)
class Session:
    """One conversation of one application."""

    app: str
    id: str
    component: str
    style: Style
    naming: Naming
    turns: int = 0
    history: list[Message] = field(default_factory=list)

    @property
    def key(self) -> bytes:
        """What the split hashes."""
        return self.id.encode()


def sessions(app: str, count: int, rng: random.Random) -> list[Session]:
    """`count` conversations of an application, over all components, styles and namings."""
    styles, namings = STYLES[app], NAMINGS[app]
    return [
        Session(
            app=app,
            id=f"{app}-{rng.randrange(16**6):06x}-{number}",
            component=COMPONENTS[number % len(COMPONENTS)],
            style=styles[number % len(styles)],
            naming=namings[number % len(namings)],
        )
        for number in range(count)
    ]


@dataclass(frozen=True, slots=True)
class Heard:
    """One answer as an SDK gave it.

    Attributes:
        headers: of the response, names in lower case.
        finished: the protocol's final marker was there.
        assistant: the answer as a message of the application's dialect, to be sent again.
        results: the messages that answer its tool calls.
    """

    headers: Mapping[str, str]
    text: str
    calls: tuple[tuple[str, Mapping[str, Any]], ...]
    finished: bool
    assistant: Message
    results: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: the messages in the application's dialect, and whether tools go with them."""

    session: Session
    messages: Sequence[Message]
    stream: bool
    tools: tuple[Mapping[str, Any], ...] = ()


class Application(Protocol):
    """One program with one SDK. What it cannot answer it raises."""

    name: str

    async def ask(self, asked: Asked) -> Heard: ...


def opening(session: Session) -> Asked:
    """The first request of the session's next turn."""
    session.turns += 1
    number, style = session.turns, session.style
    if style is Style.TOOLS:
        text = f"What is the weather in {CITIES[number % len(CITIES)]}? ({session.id}, question {number})"
        return Asked(session, [{"role": "user", "content": text}], stream=number % 2 == 0, tools=TOOLS)
    text = f"Tell me about {TOPICS[number % len(TOPICS)]}. ({session.id}, question {number})"
    earlier = session.history[-REMEMBERED:] if style is Style.TURNS else []
    return Asked(session, [*earlier, {"role": "user", "content": text}], stream=style is not Style.WHOLE)


def following(asked: Asked, heard: Heard) -> Asked | None:
    """The next request of the same turn: the results of the tools that were called. None when the turn is over."""
    if heard.results and asked.tools:
        return Asked(asked.session, [*asked.messages, heard.assistant, *heard.results], stream=asked.stream)
    if asked.session.style is Style.TURNS:
        asked.session.history = [*asked.messages, heard.assistant][-REMEMBERED:]
    return None


def wrong(asked: Asked, heard: Heard) -> str:
    """What is wrong with an answer, in a few words; empty when it is complete and word for word right."""
    provider = heard.headers.get("x-memos-provider", "")
    if provider not in ("ollama", "vllm"):
        return f"x-memos-provider is {provider!r}"
    if not heard.finished:
        return f"the answer of {provider} has no final marker"
    right = expected("vllm" if provider == "vllm" else "ollama", asked.messages, tools=asked.tools)
    if heard.text != right.text:
        return f"not what {provider} said: {heard.text[:40]!r}, not {right.text[:40]!r}"
    calls = tuple((call.name, dict(call.arguments)) for call in right.tool_calls)
    if heard.calls != calls:
        return f"not the tool calls of {provider}: {heard.calls!r}, not {calls!r}"
    return ""
