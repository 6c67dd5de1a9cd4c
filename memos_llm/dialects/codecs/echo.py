"""Put the caller's spelling of the model's name into an answer, and touch no other byte."""

import re

import msgspec

_STRING = rb'"(?:[^"\\]|\\.)*"'
_TOKEN = re.compile(rb'"model"\s*:\s*(?P<value>' + _STRING + rb")|" + _STRING + rb"|[{}\[\]]", re.DOTALL)


class ModelEcho:
    """Stateless but for a cache. Only the top-level `model` is ever written, wherever it stands."""

    def __init__(self, caller: str) -> None:
        self._caller = msgspec.json.encode(caller)
        self._served: str | None = None
        self._needle = b""

    def rewrite(self, raw: bytes, served: str) -> bytes:
        """`raw` with the top-level model, known to be `served`, replaced."""
        if served != self._served:
            self._served, self._needle = served, b'"model":' + msgspec.json.encode(served)
        at = raw.find(self._needle)
        if at < 0 or not _surely_top(raw, at):
            return self._scanned(raw)
        return b'%b"model":%b%b' % (raw[:at], self._caller, raw[at + len(self._needle) :])

    def _scanned(self, raw: bytes) -> bytes:
        depth = 0
        for token in _TOKEN.finditer(raw):
            if depth == 1 and token["value"]:
                start, end = token.span("value")
                return raw[:start] + self._caller + raw[end:]
            depth += (token.group() in b"{[") - (token.group() in b"}]")
        return raw


def _surely_top(raw: bytes, at: int) -> bool:
    """No second brace or bracket stands before it, not even inside a string."""
    return raw.count(b"{", 0, at) == 1 and raw.find(b"[", 0, at) < 0 and raw[at - 1 : at] != b"\\"
