"""Put the fragments of streamed tool calls together.

vLLM's parsers repeat ids and names and forget to count indexes up (vLLM 0.33 source and issues), so: fragments belong
together by index, a name is never appended to, and another id with another name on a known index is another call.
"""

from collections.abc import Iterable

from msgspec import Struct, field

from memos_llm.core.errors import AttemptFailed
from memos_llm.dialects.framing import MAX_EVENT_BYTES, OVERSIZE

_PER_FRAGMENT = 64  # bytes that keeping one costs besides its text


class FunctionFragment(Struct):
    name: str | None = None
    arguments: str | None = None


class Fragment(Struct):
    index: int | None = None
    id: str | None = None
    function: FunctionFragment = field(default_factory=FunctionFragment)


class Assembled(Struct):
    """A call; `arguments` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str = ""


class Assembler:
    """All calls of one answer."""

    def __init__(self) -> None:
        self._calls: list[Assembled] = []
        self._pieces: list[list[str]] = []  # of each call's arguments: to append to a text is to copy it
        self._by_index: dict[int, int] = {}
        self._last = self._size = 0

    def add(self, fragments: Iterable[Fragment]) -> None:
        """Raises:
        AttemptFailed: `malformed`, code `oversize`: together they are longer than an event may be.
        """
        for fragment in fragments:
            self._add(fragment)

    def calls(self) -> list[Assembled]:
        """In the order in which they began."""
        for call, pieces in zip(self._calls, self._pieces, strict=True):
            call.arguments = "".join(pieces)
        return self._calls

    def _add(self, fragment: Fragment) -> None:
        index = self._last if fragment.index is None else fragment.index
        self._last = index
        place, text = self._by_index.get(index), fragment.function.arguments or ""
        self._size += len(text) + _PER_FRAGMENT
        if self._size > MAX_EVENT_BYTES:
            raise AttemptFailed(OVERSIZE)
        if place is None or _begins_another(fragment, self._calls[place]):
            place = self._by_index[index] = len(self._calls)
            self._calls.append(Assembled(fragment.id or "", fragment.function.name or ""))
            self._pieces.append([])
        call = self._calls[place]
        call.id = call.id or fragment.id or ""
        call.name = call.name or fragment.function.name or ""
        self._pieces[place].append(text)


def _begins_another(fragment: Fragment, call: Assembled) -> bool:
    return bool(fragment.id and call.id and fragment.id != call.id and fragment.function.name)
