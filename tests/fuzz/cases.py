"""One case: bytes to send and how the client behaves. Case n of a seed is always the same."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fuzz.grammar import CHAT_MODEL, EMBED_MODEL, Document, Request, request
from fuzz.mutating import INTERESTING, mutate_bytes, mutate_document, write

HOST = "localhost"
TOKEN = "fuzz-admin-token-0123456789"
CANARY = "canary"
HOSTILE = ("hvllm", "hollama", "hnative")
"""Providers whose endpoints are the fuzzer's own."""
ENDPOINTS = 4
"""Of each."""
MODELS: Mapping[str, tuple[str, ...]] = {name: tuple(f"{name}-{n}" for n in range(ENDPOINTS)) for name in HOSTILE}
OWN = ("/", "/health", "/ready", "/metrics", "/console", "/api/v1/health/quick", "/api/v1/system/health/aggregate")
LISTS = ("/api/tags", "/api/ps", "/api/version", "/v1/models", f"/v1/models/{CHAT_MODEL}", "/v1/models/none", "/")
PASSED = (
    "/v1/messages",
    "/v1/responses",
    "/api/show",
    "/api/unheard",
    "/v1/unheard",
    "/api/blobs/sha256:0",
    "/api/pull",
)
ADMIN_GET = ("status", "flags", "history", "incidents", "incidents/x", "explain", "inventory", "openapi.json", "none")
ADMIN_POST = ("shift", "rollback", "rearm", "adopt", "verify", "none")

Headers = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is sent, and what is known of it.

    Attributes:
        pieces: written one after the other. mark: what its prompt is found by.
        whole: the head is good HTTP, so that exactly one answer must come. right: it must be a 200.
        wire: the dialect of its route where that is one we translate, and nothing of the head was changed.
        leaves_after: bytes of the answer after which the client leaves; None: it stays.
        heals: the hostile provider and model that must answer rightly afterwards.
    """

    seed: int
    number: int
    kind: str
    pieces: tuple[bytes, ...]
    method: str = "POST"
    path: str = ""
    whole: bool = False
    right: bool = False
    wire: str = ""
    leaves_after: int | None = None
    resets: bool = False
    heals: tuple[str, str] = ("", "")

    @property
    def mark(self) -> str:
        return f"case-{self.number}-h"

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


def case(seed: int, number: int) -> Case:
    """The case."""
    rng = random.Random(f"{seed}:{number}")
    kind = rng.choices(tuple(KINDS), weights=[weight for weight, _ in KINDS.values()])[0]
    return replace(KINDS[kind][1](rng, f"case-{number}-h {CANARY}-{seed:x}"), seed=seed, number=number, kind=kind)


def http(method: str, path: str, headers: Headers, body: bytes | None, host: str = HOST) -> bytes:
    """A request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + (body or b"")


JSON: Headers = [("Content-Type", "application/json")]
ADMIN: Headers = [("Authorization", f"Bearer {TOKEN}")]


def told(asked: Request, headers: Headers | None = None, body: bytes | None = None) -> bytes:
    if body is None and asked.body is not None:
        body = json.dumps(asked.body).encode()
    return http(asked.method, asked.path, [*JSON, *(headers or [])], body)


def _case(asked: Request, *pieces: bytes, whole: bool = True, right: bool = False, wired: bool = True) -> Case:
    wire = asked.wire if wired else ""
    return Case(
        seed=0,
        number=0,
        kind="",
        pieces=pieces,
        method=asked.method,
        path=asked.path,
        whole=whole,
        right=right,
        wire=wire,
    )


def _valid(rng: random.Random, mark: str) -> Case:
    asked = request(rng, mark)
    return _case(asked, told(asked), right=True)


def _in_pieces(rng: random.Random, mark: str) -> Case:
    asked = request(rng, mark)
    data = told(asked)
    edges = sorted({rng.randrange(len(data)) for _ in range(rng.randint(1, 6))} | {0})
    pieces = [data[a:b] for a, b in zip(edges, [*edges[1:], len(data)], strict=True)]
    return _case(asked, *pieces, right=True)


def _json(rng: random.Random, mark: str) -> Case:
    asked = request(rng, mark)
    body = write(rng, mutate_document(rng, asked.body))
    return _case(asked, told(asked, body=body))


def _body(rng: random.Random, mark: str) -> Case:
    asked = request(rng, mark)
    body = mutate_bytes(rng, json.dumps(asked.body).encode())
    return _case(asked, told(asked, body=body))


def _head(rng: random.Random, mark: str) -> Case:
    asked = request(rng, mark)
    head, _, body = told(asked).partition(b"\r\n\r\n")
    return _case(asked, mutate_bytes(rng, head) + b"\r\n\r\n" + body, whole=False, wired=False)


def _garbage(rng: random.Random, mark: str) -> Case:
    data = rng.choice((
        rng.randbytes(rng.randint(0, 400)),
        b"".join(rng.choice(INTERESTING) for _ in range(rng.randint(1, 40))),
        b"GET / HTTP/1.1\r\n" + rng.randbytes(rng.randint(0, 200)) + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(30),
    ))  # fmt: skip
    return Case(seed=0, number=0, kind="", pieces=(data,))


HEADERS: Mapping[str, tuple[str, ...]] = {
    "X-Memos-Component": ("analysis", "", "a b", "é", "x" * 70, "x" * 20_000, "\x01", "a/b", "reflection"),
    "X-Memos-Session": ("s", "", "x" * 600, "é", "\x7f"),
    "X-Memos-Provider": ("vllm", "ollama", "none", "", "\xff"),
    "X-Memos-Timeout-Ms": ("1", "0", "-1", "1e3", "5000", "9" * 400, "x", "", "0x10", " 7 ", "١"),
    "X-Memos-Hop": ("1", ""),
    "X-Request-Id": ("id-1", "a b", "", "x" * 200, "\xe9", "a\tb"),
    "Authorization": ("Bearer x", "Bearer", "Basic eDp5", "Basic ====", "", "Bearer " + "x" * 5000, "\xff"),
    "X-Api-Key": ("x", "", "\xff"),
    "Host": (
        "evil.example",
        "",
        "localhost:99999",
        "[::1]:8200",
        "[::1",
        "127.0.0.1",
        "LOCALHOST",
        "a@localhost",
        "\xff",
    ),
    "Origin": ("http://localhost:3000", "https://evil.example", "null", "", "http://", "\xff", "app://x"),
    "Sec-Fetch-Site": ("cross-site", "same-origin", "none", "CROSS-SITE"),
    "Content-Encoding": ("gzip", "identity", "", "br", "IDENTITY"),
    "Content-Type": ("text/plain", "", "application/json; charset=utf-16", "\xff", "multipart/form-data"),
    "Content-Length": ("0", "5", "-1", "+5", "5, 5", "9" * 30, "", "x", "0005", " 7"),
    "Transfer-Encoding": ("chunked", "identity", "chunked, chunked", "gzip, chunked", "xchunked", " chunked"),
    "Connection": ("close", "keep-alive", "upgrade", "close, keep-alive", "\xff"),
    "Upgrade": ("websocket", "h2c"),
    "Expect": ("100-continue", "200-ok"),
    "Accept-Encoding": ("gzip", "*;q=0"),
    "Range": ("bytes=0-1",),
    "X-Http-Method-Override": ("DELETE",),
    "X-Forwarded-For": ("1.2.3.4",),
    "Cookie": ("a=b",),
}


def _headers(rng: random.Random, mark: str) -> Case:
    asked = request(rng, mark)
    names = rng.sample(sorted(HEADERS), rng.choice((1, 1, 2, 3)))
    more = [(name, rng.choice(HEADERS[name])) for name in names]
    if rng.random() < 0.2:
        more += more
    if rng.random() < 0.1:
        more += [(f"X-{n}", "y" * 30) for n in range(rng.choice((100, 3000)))]
    return _case(asked, told(asked, more), whole=False, wired=False)


def _chunked(rng: random.Random, mark: str) -> Case:
    """A body in chunks, which may be spoilt."""
    asked = request(rng, mark)
    body, size = json.dumps(asked.body).encode(), rng.choice((1, 7, 60, 10_000))
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    sent = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    head = http(asked.method, asked.path, [*JSON, ("Transfer-Encoding", "chunked")], None)
    if rng.random() < 0.4:
        return _case(asked, head + sent, right=True)
    return _case(asked, head + mutate_bytes(rng, sent), whole=False, wired=False)


def _pipelined(rng: random.Random, mark: str) -> Case:
    first, second = request(rng, mark), Request("GET", rng.choice(LISTS), None, "other")
    data = told(first) + http("GET", second.path, [], None)
    if rng.random() < 0.3:
        data += mutate_bytes(rng, http("GET", second.path, [], None), 1)
    return _case(first, data, whole=False, wired=False)


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "QUERY")


def _route(rng: random.Random, mark: str) -> Case:
    """Any method on any path, with the body of some valid request."""
    asked = request(rng, mark)
    path = rng.choice((*OWN, *LISTS, *PASSED, asked.path, f"/admin/v1/{rng.choice(ADMIN_GET + ADMIN_POST)}"))
    shape = rng.randrange(6)
    if shape == 0:
        path = f"/c/{rng.choice(('analysis', '', 'a%2Fb', 'x' * 80, '%00', 'é', '..'))}{path}"
    elif shape == 1:
        path = f"/c/x/s/{rng.choice(('1', '', '%2F', 'y' * 600))}{path}"
    elif shape == 2:
        path = (
            mutate_bytes(rng, path.encode(), 1).decode("latin-1").replace(" ", "+").replace("\r", "").replace("\n", "")
        )
    elif shape == 3:
        path += rng.choice(("?", "?a=b&a=c", "?%", "#x", "/", "//", "/..", ";x", "%2e%2e", "?limit=\xff"))
    method = rng.choice(METHODS)
    body = json.dumps(asked.body).encode() if rng.random() < 0.5 else None
    sent = Request(method, path, asked.body if body else None, "other")
    return replace(_case(sent, http(method, path, JSON, body), whole=False, wired=False), path="")


def _admin(rng: random.Random, mark: str) -> Case:
    if rng.random() < 0.4:
        name, method, body = rng.choice(ADMIN_GET), "GET", None
        query = {
            "limit": rng.choice(("1", "0", "-1", "x", "9" * 30, "", "1.5", "٣")),
            "model": rng.choice((CHAT_MODEL, "", "\0", "x" * 300)),
            "since": rng.choice(("7d", "1h", "-1d", "x", "9999999999w", "", "0d")),
            "session": rng.choice(("s", "", "%ff")),
            "component": rng.choice(("analysis", "a b", "")),
        }
        chosen = rng.sample(sorted(query), rng.randint(0, 3))
        path = f"/admin/v1/{name}?" + "&".join(f"{key}={query[key]}" for key in chosen)
        path = path.replace("\0", "%00")
    else:
        name, method = rng.choice(ADMIN_POST), "POST"
        path, document = f"/admin/v1/{name}", rng.choice(ORDERS)
        body = write(rng, mutate_document(rng, document) if rng.random() < 0.7 else document)
    headers = [*ADMIN, *(JSON if rng.random() < 0.9 else [("Content-Type", "text/plain")])]
    return replace(_case(Request(method, path, None, "admin"), http(method, path, headers, body)), wire="")


ORDERS: tuple[Document, ...] = (
    {"provider": "vllm", "share": 0.5, "reason": "fuzz", "wait_s": 0},
    {"provider": "vllm", "share": "30%", "component": "analysis", "wait_s": 0.1},
    {"provider": "vllm", "share": 0, "wait_s": 0},
    {"provider": "vllm", "share": 1.0, "component": "embedding", "new_index": True, "wait_s": 0},
    {"provider": "vllm", "reason": "fuzz", "wait_s": 0},
    {"component": "analysis", "reason": "fuzz", "force": True, "wait_s": 0},
    {"sure": False, "reason": "fuzz", "wait_s": 0},
    {"model": EMBED_MODEL, "proof": None, "reason": "fuzz", "wait_s": 0},
    {},
)


def _leaves(rng: random.Random, mark: str) -> Case:
    asked = request(rng, mark, wires=("ollama.chat", "ollama.generate", "openai.chat", "openai.completion"))
    assert asked.body is not None
    asked.body["stream"] = True
    after, resets = rng.choice((0, 1, 200, 600)), rng.random() < 0.5
    return replace(_case(asked, told(asked)), leaves_after=after, resets=resets)


def _hostile(rng: random.Random, mark: str) -> Case:
    """A valid request to a back end that answers nonsense."""
    provider = rng.choice(HOSTILE)
    model = rng.choice(MODELS[provider])
    asked = asked_of(rng, mark, provider, model)
    sent = told(asked, [*ADMIN, ("X-Memos-Provider", provider)])
    return replace(_case(asked, sent), heals=(provider, model))


def asked_of(rng: random.Random, mark: str, provider: str, model: str) -> Request:
    """A request that one answer with one choice answers, and that this provider can be asked."""
    asked = request(rng, mark, model)
    assert asked.body is not None
    for key in (
        "n",
        "logit_bias",
        "keep_alive",
        "options",
        "format",
        "tools",
        "think",
        "raw",
        "images",
        "encoding_format",
    ):
        asked.body.pop(key, None)
    for key in ("prompt", "input"):
        if isinstance(asked.body.get(key), list):
            asked.body[key] = asked.body[key][0]
    asked.body.pop("tool_choice", None)
    return asked


KINDS: Mapping[str, tuple[int, Callable[[random.Random, str], Case]]] = {
    "valid": (5, _valid),
    "in pieces": (4, _in_pieces),
    "json": (24, _json),
    "body": (8, _body),
    "head": (10, _head),
    "garbage": (4, _garbage),
    "headers": (8, _headers),
    "chunked": (5, _chunked),
    "pipelined": (3, _pipelined),
    "route": (9, _route),
    "admin": (8, _admin),
    "leaves": (4, _leaves),
    "hostile": (22, _hostile),
}
"""How often, and how it is made."""
