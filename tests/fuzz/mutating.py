"""What is done to valid requests and answers: to their bytes, and to their JSON before it is written."""

import json
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

DEEP = "@deep@"
NESTED = 5_000
INTERESTING: tuple[bytes, ...] = (
    b"\r\n", b"\n", b"\r", b"\0", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"%00", b"%2e%2e/", b"//", b" ", b"\t",
    b":", b"{", b"}", b"[", b"]", b'"', b"\\", b"null", b"NaN", b"1e999", b"-", b"data: ", b"[DONE]", b'"done":true',
    b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: evil.example\r\n",
    b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\n", b"HTTP/1.0", b"HTTP/9.9", b"0\r\n\r\n",
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**40, -(10**40), 0.5, -0.0, 1e308, 5e-324, float("nan"),
    float("inf"), "", " ", "x", "\0", "\ud800", "é" * 50, "a\nb", "true", "1", "data:,", "http://127.0.0.1:1/",
    "x" * 3000,
    [], [[]], [None], [1, "a"], {}, {"": 1}, {"a": {"b": [None]}}, {"role": "user"}, DEEP,
)  # fmt: skip


def mutate_bytes(rng: random.Random, data: bytes, times: int | None = None) -> bytes:
    """A few changes anywhere."""
    for _ in range(times or rng.choice((1, 1, 2, 4, 8))):
        data = rng.choice(_BYTES)(rng, data)
    return data


def _flip(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _remove(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 2, 8, 64)) :]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    piece = data[at : at + rng.choice((1, 8, 64))]
    return data[:at] + piece * rng.choice((2, 2, 50)) + data[at + len(piece) :]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((rng.choice(INTERESTING), rng.randbytes(rng.randint(1, 6)))) + data[at:]


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _swap(rng: random.Random, data: bytes) -> bytes:
    a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    return data[:a] + data[b:] + data[a:b]


_BYTES = (_flip, _flip, _remove, _repeat, _insert, _insert, _cut, _swap)

Place = tuple[Any, Any]
"""A container, and the key or index of something in it."""


def places(value: Any) -> list[Place]:
    """Every place of a document."""
    items: list[Place] = []
    if isinstance(value, dict):
        items = [(value, key) for key in value]
    elif isinstance(value, list):
        items = [(value, index) for index in range(len(value))]
    return items + [below for box, key in items for below in places(box[key])]


def mutate_document(rng: random.Random, document: Any, times: int | None = None) -> Any:
    """A few changes of its structure; works on a copy."""
    document = json.loads(json.dumps(document))
    for _ in range(times or rng.choice((1, 1, 1, 2, 3))):
        found = places(document)
        if not found:
            return deepcopy(rng.choice(ODD))
        box, key = rng.choice(found)
        rng.choice(_CHANGES)(rng, box, key)
    return document


def _replace(rng: random.Random, box: Any, key: Any) -> None:
    box[key] = deepcopy(rng.choice(ODD))


def _drop(rng: random.Random, box: Any, key: Any) -> None:
    del box[key]


def _rename(rng: random.Random, box: Any, key: Any) -> None:
    if isinstance(box, dict):
        changed = (key.upper(), key.title(), f" {key}", f"{key}s", "", key.replace("s", "ſ"), key.replace("k", "K"))
        box[rng.choice(changed)] = box[key] if rng.random() < 0.5 else box.pop(key)
    else:
        box.append(box[key])


def _wrap(rng: random.Random, box: Any, key: Any) -> None:
    box[key] = rng.choice(([box[key]], {"value": box[key]}, {key if isinstance(key, str) else "x": box[key]}))


def _spread(rng: random.Random, box: Any, key: Any) -> None:
    if isinstance(box[key], list) and box[key]:
        box[key] = box[key] * rng.choice((2, 20))
    else:
        box[key] = str(box[key])[:1000]


_CHANGES: tuple[Callable[[random.Random, Any, Any], None], ...] = (_replace, _replace, _drop, _rename, _wrap, _spread)


def write(rng: random.Random, document: Any, *, odd: bool = True) -> bytes:
    """As JSON, and now and then as something near it: keys that come twice, a BOM, something behind the end."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5, separators=rng.choice(((",", ":"), (", ", ": "))))
    data = text.encode(errors="surrogatepass")
    data = data.replace(f'"{DEEP}"'.encode(), b"[" * NESTED + b"]" * NESTED)
    return rng.choice(_WRITTEN)(rng, data) if odd and rng.random() < 0.15 else data


def _twice(rng: random.Random, data: bytes) -> bytes:
    return b'{"model":"x",' + data[1:] if data.startswith(b"{") else data


_WRITTEN: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _twice,
    lambda rng, data: data[:-1] + b',"stream":true}' if data.endswith(b"}") else data,
    lambda rng, data: b"\xef\xbb\xbf" + data,
    lambda rng, data: data + b" \n",
    lambda rng, data: data + b"{}",
    lambda rng, data: data.decode(errors="replace").encode("utf-16"),
    lambda rng, data: b" " * 70_000 + data,
    lambda rng, data: mutate_bytes(rng, data, 1),
)
