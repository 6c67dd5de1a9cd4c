"""Any other route under `/api/` and `/v1/`: passed to the baseline as it is, and its answer back, byte for byte.

Of a body only the model's name is read, for the books and for what may leave this machine.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from msgspec import Raw

from memos_llm.core.call import Call, Passage
from memos_llm.core.errors import BadRequest
from memos_llm.core.ports import Exchange, Routes
from memos_llm.dialects.jsons import decode_as
from memos_llm.gateway import calls
from memos_llm.gateway.asgi import Headers, header_value
from memos_llm.gateway.dialogue import told
from memos_llm.gateway.errors import Voice, voice_of
from memos_llm.gateway.inference import Arrival, Local, Reply
from memos_llm.gateway.paths import rest_of
from memos_llm.gateway.screening import ANY_KEYS, check_media, check_model
from memos_llm.gateway.templates import route_of

RETURNED = (
    "content-length",
    "content-encoding",
    "content-disposition",
    "allow",
    "retry-after",
    "location",
    "cache-control",
)
"""What of the back end's headers is the client's, besides the content type."""

SPACE = " \t\r\n"  # JSON's

STREAMS = ("text/event-stream", "application/x-ndjson")
"""Types of answers that can end with an error."""

_BODILESS = frozenset({204, 304})
_PLAIN_SEGMENT = re.compile(r"[^\x00-\x1f\x7f\\]+")


class PassageWork:
    """The `Work` of a passage."""

    def __init__(self, path: str, routes: Callable[[], Routes]) -> None:
        self._routes = routes
        self.voice: Voice = voice_of(path)

    def call(self, arrival: Arrival, body: bytes, *, id: str, accepted_at: float) -> Call:
        place, headers, rules = arrival.place, arrival.headers, arrival.rules
        check_path(place.path)
        head = _head(body)
        names = list(_names(head))
        for name in names:
            check_model(name, rules)
        if head:
            check_media(body, rules, ANY_KEYS)
        query = arrival.scope.get("query_string", b"").decode("latin-1")
        path = rest_of(arrival.scope["raw_path"].decode("latin-1"))
        target = f"{path}?{query}" if query else path
        method, media_type = arrival.scope["method"], headers.get(b"content-type", b"").decode("latin-1")
        passage = Passage(method, target, media_type, route_of(method, place.path))
        return calls.passing(
            passage,
            body,
            headers,
            place,
            self._routes().policy,
            model=names[0] if names else "",
            stream=_streams(head),
            id=id,
            accepted_at=accepted_at,
            principal=arrival.principal,
        )

    async def play(self, call: Call, exchange: Exchange, reply: Reply) -> None:
        given = exchange.headers
        streams = given.get("content-type", "").startswith(STREAMS) and "content-length" not in given
        await reply.start(exchange.status, _headers(exchange, reply.id), events=streams)
        while (frame := await exchange.next()) is not None:
            if frame.data:
                await reply.write(frame.data)
        await reply.end()

    def instead(self, call: Call, error: BadRequest) -> Local | None:
        return None


def check_path(path: str) -> None:
    """A back end must read a path as we did when we judged it.

    Raises:
        BadRequest: it has empty or dotted segments, a backslash or control characters.
    """
    *inner, last = path.split("/")[1:]
    segments = [*inner, last] if last else inner  # a final slash is the back end's to judge
    if not all(_PLAIN_SEGMENT.fullmatch(each) and each not in (".", "..") for each in segments):
        raise BadRequest("the path has empty or dotted segments, or characters that no path should have")


def _head(body: bytes) -> Mapping[str, Raw]:
    """The members of a JSON object; none of anything else.

    Raises:
        BadRequest: we cannot read it, though the back end might: Ollama overlooks what follows the first document.
    """
    if not _is_object(body):
        return {}
    try:
        return decode_as(body, dict[str, Raw])
    except ValueError as error:
        raise BadRequest(f"the body begins like a JSON object and is none in UTF-8: {error}") from None


def _is_object(body: bytes) -> bool:
    """Whether some back end would take it for a JSON object: Python's `json.loads` reads more than our UTF-8."""
    encoding = json.detect_encoding(body)
    if encoding == "utf-8":
        return body.lstrip(SPACE.encode())[:1] == b"{"
    try:
        return body.decode(encoding, "surrogatepass").lstrip(SPACE)[:1] == "{"
    except ValueError:
        return False


def _names(head: Mapping[str, Raw]) -> Iterator[str]:
    """The model's name under every key that a back end might take for it (Ollama ignores case), `model` first."""
    for wanted in ("model", "name"):
        for key, raw in head.items():
            if key.lower() == wanted and (name := _read(raw, str)):
                yield name


def _streams(head: Mapping[str, Raw]) -> bool:
    return "stream" in head and _read(head["stream"], bool) is True


def _read(raw: Raw, kind: type[Any]) -> Any:
    try:
        return decode_as(raw, kind)
    except ValueError:
        return None


def _headers(exchange: Exchange, id: str) -> Headers:
    given = exchange.headers
    headers = told(exchange, id, _sent(given.get("content-type", "")))
    if "content-type" not in given:
        del headers[0]
    for name in RETURNED:
        bodiless = name == "content-length" and exchange.status in _BODILESS
        if name in given and not bodiless and not (name == "location" and _is_abroad(given[name])):
            headers.append((name.encode(), _sent(given[name])))
    return headers


def _is_abroad(location: str) -> bool:
    """Whether it names a host: the back end's, where no client should go."""
    return not location.startswith("/") or location.startswith(("//", "/\\"))  # browsers take a \ for a /


def _sent(value: str) -> bytes:
    return header_value(value.encode("utf-8", "surrogateescape").decode("latin-1"))
