"""What a back end gone wrong writes: a valid answer, and one thing (or all of it) spoilt. A function of a `Random`."""

import gzip
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fuzz import answers
from fuzz.mutating import mutate_bytes, mutate_document

INTRUDER = "case-0-x"
"""In what belongs to no request: nobody may ever read it."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """What is written, and what becomes of the connection.

    Attributes:
        fault: what is wrong with it; empty: nothing, however it is written.
        ends: `keeps` the connection for the next request, `closes` or `resets` it, or `hangs` until the other leaves.
    """

    fault: str
    pieces: tuple[bytes, ...]
    ends: str = "keeps"
    pause_s: float = 0.0

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer in its parts; `found` are a stream's events, None for a document."""

    wire: str
    stream: bool
    body: bytes
    found: list[answers.Event]
    status: str = "200 OK"
    headers: tuple[tuple[str, str], ...] = ()
    chunked: bool = False

    def head(self, *more: tuple[str, str], status: str = "") -> bytes:
        lines = [f"HTTP/1.1 {status or self.status}", *(f"{name}: {value}" for name, value in (*self.headers, *more))]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def whole(self, body: bytes | None = None, *more: tuple[str, str]) -> bytes:
        body = self.body if body is None else body
        if self.chunked:
            return self.head(("Transfer-Encoding", "chunked"), *more) + chunks(body)
        return self.head(("Content-Length", str(len(body))), *more) + body


def chunks(body: bytes, size: int = 50) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def valid(rng: random.Random, wire: str, mark: str, *, stream: bool, inputs: int = 1) -> Answer:
    """The answer to a request on a back end's wire."""
    whole = {} if stream else answers.whole(rng, wire, mark, inputs=inputs)
    found: list[answers.Event] = answers.events(rng, wire, mark) if stream else [whole]
    if stream:
        body = b"".join(answers.written(wire, found))
        kind = "application/x-ndjson" if wire.startswith("ollama") else "text/event-stream; charset=utf-8"
    else:
        body, kind = json.dumps(found[0], ensure_ascii=False).encode(), "application/json"
    chunked = stream or rng.random() < 0.2
    return Answer(wire=wire, stream=stream, body=body, found=found, headers=(("Content-Type", kind),), chunked=chunked)


def script(rng: random.Random, wire: str, mark: str, *, stream: bool, inputs: int = 1) -> Script:
    """A spoilt answer."""
    name = rng.choice(sorted(FAULTS))
    return replace(FAULTS[name](rng, valid(rng, wire, mark, stream=stream, inputs=inputs)), fault=name)


def plain(answer: Answer) -> Script:
    return Script(fault="", pieces=(answer.whole(),))


def _made(*pieces: bytes, ends: str = "keeps", pause_s: float = 0.0) -> Script:
    return Script(fault="", pieces=pieces, ends=ends, pause_s=pause_s)


def _too_long(rng: random.Random, answer: Answer) -> Script:
    head = answer.head(("Content-Length", str(len(answer.body) + rng.choice((1, 10, 10**6, 10**18)))))
    return _made(head + answer.body, ends=rng.choice(("closes", "closes", "resets")))


def _too_short(rng: random.Random, answer: Answer) -> Script:
    head = answer.head(("Content-Length", str(max(0, len(answer.body) - rng.choice((1, 2, 20))))))
    return _made(head + answer.body, ends=rng.choice(("keeps", "closes")))


def _cut(rng: random.Random, answer: Answer) -> Script:
    data = answer.whole()
    return _made(data[: rng.randrange(len(data))], ends=rng.choice(("closes", "resets")))


def _garbage_before(rng: random.Random, answer: Answer) -> Script:
    return _made(rng.randbytes(rng.choice((1, 10, 5000))) + answer.whole(), ends=rng.choice(("keeps", "closes")))


def _garbage_after(rng: random.Random, answer: Answer) -> Script:
    return _made(answer.whole() + rng.choice((b"\0", b"x" * 5000, b"\r\n\r\n", b"HTTP/1.1 ")))


def _second_response(rng: random.Random, answer: Answer) -> Script:
    second = valid(rng, answer.wire, INTRUDER, stream=answer.stream).whole()
    return rng.choice((_made(answer.whole() + second), _made(answer.whole(), second, pause_s=0.02)))


def _both_lengths(rng: random.Random, answer: Answer) -> Script:
    lengths = (("Content-Length", str(len(answer.body))), ("Transfer-Encoding", "chunked"))
    return _made(answer.head(*lengths) + rng.choice((chunks(answer.body), answer.body)), ends="closes")


def _two_headers(rng: random.Random, answer: Answer) -> Script:
    more = rng.choice((
        ("Content-Length", str(len(answer.body) + 1)), ("Content-Length", "5, 5"), ("Content-Type", "text/html"),
        ("Transfer-Encoding", "identity"), ("Content-Length", "-1"), ("Connection", "close"), ("Set-Cookie", "a=b"),
        ("X-Request-Id", "other"), ("X-Memos-Provider", "other"), ("Trailer", "x"), ("Retry-After", "-1"),
    ))  # fmt: skip
    return _made(answer.whole(None, more), ends="closes")


def _bad_chunk(rng: random.Random, answer: Answer) -> Script:
    size = rng.choice((b"zz", b"-5", b"ffffffffffffffffff", b"5;" + b"x" * 9000, b"", b"0x5", b" 5"))
    good = chunks(answer.body)
    spoilt = size + b"\r\n" + good.partition(b"\r\n")[2]
    at = good.find(b"\r\n", len(good) // 2) + 2
    data = rng.choice((spoilt, good[:at] + size + b"\r\n" + good[at:]))
    return _made(answer.head(("Transfer-Encoding", "chunked")) + data, ends=rng.choice(("keeps", "closes")))


def _no_last_chunk(rng: random.Random, answer: Answer) -> Script:
    data = chunks(answer.body).removesuffix(b"0\r\n\r\n")
    return _made(answer.head(("Transfer-Encoding", "chunked")) + data, ends="closes")


def _status(rng: random.Random, answer: Answer) -> Script:
    status = rng.choice((
        "500 Internal Server Error", "502 Bad Gateway", "503 Service Unavailable", "501 Not Implemented",
        "400 Bad Request", "404 Not Found", "401 Unauthorized", "403 Forbidden", "413 Too Large", "429 Too Many",
        "422 Unprocessable", "302 Found", "301 Moved", "204 No Content", "206 Partial", "304 Not Modified",
        "418 Teapot", "101 Switching Protocols", "999 Odd", "507 Full", "499 Gone",
    ))  # fmt: skip
    body = rng.choice((
        b"", b"<html>no</html>", b'{"error":"no"}', b'{"error":{"message":"no","type":"x","code":null}}', b"null",
        b'{"error":null}', b'{"error":[1]}', b'{"detail":[{"loc":["body"]}]}', b"\xff\xfe", b'{"error":"' + b"x" * 9000,
        answer.body,
    ))  # fmt: skip
    more = rng.choice(((), (("Location", "http://127.0.0.1:9/elsewhere"),)))
    return _made(replace(answer, status=status, chunked=False).whole(body, *more), ends=rng.choice(("keeps", "closes")))


def _status_line(rng: random.Random, answer: Answer) -> Script:
    line = rng.choice((
        b"HTTP/1.1 200", b"HTTP/1.1  200 OK", b"HTTP/0.9 200 OK", b"HTTP/2 200 OK", b"ICY 200 OK", b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK", b"HTTP/1.1 -1 OK", b"HTTP/1.1 OK", b"", b"HTTP/1.1 200 \xff\xfe", b"http/1.1 200 ok",
        b"HTTP/1.0 200 OK",
    ))  # fmt: skip
    return _made(line + b"\r\n" + answer.whole().partition(b"\r\n")[2], ends="closes")


def _bytes(rng: random.Random, answer: Answer) -> Script:
    return _made(mutate_bytes(rng, answer.whole()), ends="closes")


def _body(rng: random.Random, answer: Answer) -> Script:
    return _made(answer.whole(mutate_bytes(rng, answer.body)))


def _events(rng: random.Random, answer: Answer) -> Script:
    found = spoil(rng, answer.found)
    if not answer.stream:
        return _made(answer.whole(json.dumps(found[0]).encode() if found else b""))
    return _made(answer.whole(b"".join(answers.written(answer.wire, found))))


def spoil(rng: random.Random, found: list[Any]) -> list[Any]:
    """Events dropped, repeated, swapped, changed, or put behind the end."""
    found = list(found)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(found)) if found else 0
        change = rng.randrange(6)
        if change == 0 and len(found) > 1:
            del found[at]
        elif change == 1:
            found[at:at] = found[at : at + 1]
        elif change == 2:
            other = rng.randrange(len(found)) if found else 0
            found[at : at + 1], found[other : other + 1] = found[other : other + 1], found[at : at + 1]
        elif change == 3:
            found[at:at] = [rng.choice(STRAY)]
        elif found and not isinstance(found[at], str):
            found[at] = mutate_document(rng, found[at])
    return found


STRAY: tuple[Any, ...] = (
    {"error": "it broke"}, {"error": {"message": "it broke", "code": 500}}, {"error": None}, {}, [], None, 1, "", "{",
    {"choices": None}, {"choices": [{}]}, {"done": True}, {"done": "yes"}, {"message": None}, {"usage": {}}, "[DONE]",
)  # fmt: skip


def _gzip(rng: random.Random, answer: Answer) -> Script:
    body = rng.choice((answer.body, gzip.compress(answer.body), gzip.compress(bytes(10**6)), b"\x1f\x8b\x08\0\0"))
    return _made(answer.whole(body, ("Content-Encoding", rng.choice(("gzip", "br", "deflate", "gzip, gzip")))))


def _flood(rng: random.Random, answer: Answer) -> Script:
    more = (
        [(f"X-{n}", "y" * 20) for n in range(rng.choice((100, 3000)))] if rng.random() < 0.5 else [("X", "y" * 80_000)]
    )
    return _made(answer.whole(None, *more), ends="closes")


def _preamble(rng: random.Random, answer: Answer) -> Script:
    early = rng.choice((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", b"\r\n"))
    return _made(early * rng.choice((1, 3, 200)) + answer.whole(), ends="closes")


def _line_feeds(rng: random.Random, answer: Answer) -> Script:
    return _made(answer.whole().replace(b"\r\n", b"\n"), ends="closes")


def _hangs(rng: random.Random, answer: Answer) -> Script:
    data = answer.whole()
    return _made(data[: rng.randrange(len(data))], ends="hangs")


def _empty(rng: random.Random, answer: Answer) -> Script:
    return _made(ends=rng.choice(("closes", "resets")))


def _endless_line(rng: random.Random, answer: Answer) -> Script:
    return _made(answer.head(("Connection", "close")) + b'{"message":"' + b"x" * 300_000, ends="closes")


def _type(rng: random.Random, answer: Answer) -> Script:
    kind = rng.choice(
        ("text/html", "", "application/octet-stream", "text/event-stream", "application/x-ndjson", "\xff")
    )
    return _made(replace(answer, headers=(("Content-Type", kind),)).whole())


def _to_close(rng: random.Random, answer: Answer) -> Script:
    return _made(answer.head(("Connection", "close")) + answer.body, ends=rng.choice(("closes", "resets")))


FAULTS: Mapping[str, Callable[[random.Random, Answer], Script]] = {
    "length too long": _too_long,
    "length too short": _too_short,
    "cut": _cut,
    "garbage before": _garbage_before,
    "garbage after": _garbage_after,
    "second response": _second_response,
    "both lengths": _both_lengths,
    "two headers": _two_headers,
    "bad chunk": _bad_chunk,
    "no last chunk": _no_last_chunk,
    "status": _status,
    "status line": _status_line,
    "bytes": _bytes,
    "body": _body,
    "body again": _body,
    "events": _events,
    "events again": _events,
    "events once more": _events,
    "gzip": _gzip,
    "header flood": _flood,
    "preamble": _preamble,
    "line feeds": _line_feeds,
    "hangs": _hangs,
    "empty": _empty,
    "endless line": _endless_line,
    "type": _type,
    "until closed": _to_close,
}
