"""Which models one Ollama endpoint has loaded, as far as this process knows: a table, no I/O.

Two sources: `/api/ps`, and our own requests that went well. Models made from one file share a runner, and `/api/ps`
lists only the one that loaded it: a model that just served us and is not listed is such a `hidden` one, and is trusted
until its time is over instead of being loaded again and again.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct

from memos_llm.providers.ollama_loads import KEEP_ALIVE_S, Fixed, Loaded

FRESH_S = 2.0  # so long ago at most, a success counts against a list that lacks the model


class Warm(Struct):
    """A loaded model.

    Attributes:
        until: when it is unloaded if nobody uses it. keep_s: how long a use keeps it.
        options: what it was loaded with, None if somebody else did. context_tokens: by `/api/ps`.
        proved_at: our last success with it.
    """

    until: float
    keep_s: float
    options: Fixed | None = None
    context_tokens: int | None = None
    proved_at: float = float("-inf")
    hidden: bool = False


class Warmth:
    """Of one endpoint. Names are folded by `canonical`.

    Attributes:
        asked: `/api/ps` has been asked, whatever came of it.
    """

    def __init__(self, canonical: Callable[[str], str]) -> None:
        self.asked = False
        self._canonical = canonical
        self._warm: dict[str, Warm] = {}

    def fits(self, model: str, options: Fixed, now: float) -> bool:
        """Whether a request with these load-time options finds the model loaded for it."""
        warm = self._warm.get(self._canonical(model))
        if warm is None or now >= warm.until:
            return False
        return _agrees(warm, options)

    def find(self, model: str, now: float) -> Warm | None:
        """What is known of a loaded model."""
        warm = self._warm.get(self._canonical(model))
        return warm if warm is not None and now < warm.until else None

    def proved(self, model: str, options: Fixed, keep_alive_s: float | None, now: float) -> None:
        """A load or a request with these options went well."""
        name = self._canonical(model)
        if keep_alive_s == 0:
            self._warm.pop(name, None)
            return
        warm = self._warm.get(name)
        if warm is None:
            warm = self._warm[name] = Warm(until=now, keep_s=KEEP_ALIVE_S)
        warm.keep_s = warm.keep_s if keep_alive_s is None else keep_alive_s
        warm.until, warm.options, warm.proved_at = now + warm.keep_s, options, now

    def forget(self, model: str) -> None:
        self._warm.pop(self._canonical(model), None)

    def clear(self) -> None:
        """The server went away: it starts empty."""
        self._warm.clear()

    def listed(self, rows: Sequence[Loaded], now: float) -> None:
        """`/api/ps` has answered."""
        here = {self._canonical(row.model): row for row in rows}
        for name, warm in list(self._warm.items()):
            if name in here:
                continue
            warm.hidden = bool(rows) and (warm.hidden or now - warm.proved_at <= FRESH_S)  # its twin is listed
            if not warm.hidden or now >= warm.until:
                del self._warm[name]
        for name, row in here.items():
            if row.left_s > 0:  # else it is being unloaded: a busy one is listed on
                self._list(name, row, now)

    def _list(self, name: str, row: Loaded, now: float) -> None:
        warm = self._warm.get(name)
        if warm is None:
            warm = self._warm[name] = Warm(until=now, keep_s=KEEP_ALIVE_S)
        elif warm.context_tokens not in (None, row.context_tokens):
            warm.options = None  # somebody had it loaded anew
        warm.until, warm.context_tokens, warm.hidden = now + row.left_s, row.context_tokens, False


def _agrees(warm: Warm, options: Fixed) -> bool:
    """Of a runner that somebody else had loaded only its context length is known."""
    if warm.options is not None:
        return warm.options == options
    return not options or options == (("num_ctx", str(warm.context_tokens).encode()),)
