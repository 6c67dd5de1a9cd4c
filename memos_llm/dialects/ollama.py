"""The parts of Ollama's native requests that we read, as types (Ollama 0.33 source, 0.17.4 measured).

Also which tool result answers which call: natively both may come without an id.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Raw, Struct, field

_NULL = Raw(b"null")


class Function(Struct):
    """`arguments` is an object, undecoded so that its keys keep their order."""

    name: str = ""
    arguments: Raw = _NULL


class Call(Struct):
    id: str | None = None
    function: Function = field(default_factory=Function)


class Message(Struct):
    role: str = ""
    content: str | None = None
    images: list[str] | None = None
    thinking: str | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Options(Struct):
    """The two options that can make a call impossible elsewhere; of any type, since Ollama judges that itself."""

    stop: Any = None
    num_predict: Any = None


class Ids(Struct, frozen=True):
    """The ids of one message: of its calls, in order, or of the call that it answers (None: of none)."""

    calls: tuple[str, ...] = ()
    answers: str | None = None


def identify(messages: Sequence[Message]) -> list[Ids]:
    """Give every call an id and every tool result the id of its call.

    A result without a known id answers the first open call of its `tool_name`, or without a name simply the first
    open one. Made-up ids differ from all others in their last nine characters: vLLM's Mistral tokenizer keeps no more.
    """
    book = _Book(call.id for message in messages for call in message.tool_calls or ())
    return [book.enter(turn, message) for turn, message in enumerate(messages)]


def has_unmatched_result(messages: Sequence[Message]) -> bool:
    return any(
        message.role.lower() == "tool" and ids.answers is None
        for message, ids in zip(messages, identify(messages), strict=True)
    )


class _Book:
    """The calls so far, and those of the last assistant turn that nobody answered yet."""

    def __init__(self, given: Iterable[str | None]) -> None:
        self._taken = {id_[-9:] for id_ in given if id_}
        self._known: set[str] = set()
        self._open: list[tuple[str, str]] = []

    def enter(self, turn: int, message: Message) -> Ids:
        if message.tool_calls:
            calls = tuple(call.id or self._made(turn, n) for n, call in enumerate(message.tool_calls))
            self._known.update(calls)
            self._open = [(id_, call.function.name) for id_, call in zip(calls, message.tool_calls, strict=True)]
            return Ids(calls=calls)
        return Ids(answers=self._answered(message)) if message.role.lower() == "tool" else Ids()

    def _answered(self, message: Message) -> str | None:
        fits = (id_ for id_, name in self._open if not message.tool_name or message.tool_name == name)
        given = message.tool_call_id
        answered = given if given and given in self._known else next(fits, None)
        self._open = [entry for entry in self._open if entry[0] != answered]
        return answered

    def _made(self, turn: int, n: int) -> str:
        serial = turn * 1000 + n
        while (tail := f"{serial:09d}") in self._taken:
            serial += 1
        self._taken.add(tail)
        return f"call_{tail}"
