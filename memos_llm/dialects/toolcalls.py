"""Put the fragments of streamed tool calls together.

vLLM's parsers repeat ids and names and forget to count indexes up (vLLM 0.33 source and issues), so: fragments belong
together by index, a name is never appended to, and another id with another name on a known index is another call.
"""

from collections.abc import Iterable

from msgspec import Struct, field


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
        self._by_index: dict[int, Assembled] = {}
        self._last = 0

    def add(self, fragments: Iterable[Fragment]) -> None:
        for fragment in fragments:
            self._add(fragment)

    def calls(self) -> list[Assembled]:
        """In the order in which they began."""
        return self._calls

    def _add(self, fragment: Fragment) -> None:
        index = self._last if fragment.index is None else fragment.index
        self._last = index
        call = self._by_index.get(index)
        if call is None or _begins_another(fragment, call):
            call = self._by_index[index] = Assembled(fragment.id or "", fragment.function.name or "")
            self._calls.append(call)
        call.id = call.id or fragment.id or ""
        call.name = call.name or fragment.function.name or ""
        call.arguments += fragment.function.arguments or ""


def _begins_another(fragment: Fragment, call: Assembled) -> bool:
    return bool(fragment.id and call.id and fragment.id != call.id and fragment.function.name)
