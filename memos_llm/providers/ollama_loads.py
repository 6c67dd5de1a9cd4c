"""Which runner an Ollama request needs, how to have it loaded, and what `/api/ps` says is: pure reading and writing.

A runner is started with the load-time options (and `shift`) of the request that needed it; another value of any of
them starts it anew. Facts: Ollama 0.17.4, measured, and the source of 0.33.
"""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import msgspec.structs
from msgspec import Raw, Struct

from memos_llm.core.call import Wire, WireRequest
from memos_llm.core.decoding import FAILURES
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.dialects.jsons import decode_as

Fixed = tuple[tuple[str, bytes], ...]
"""Load-time options by name, their values as JSON; in the order of `LOAD_OPTIONS`, then `shift`."""

SHIFT = "shift"
PS = "/api/ps"
MAX_S = 1e9  # more is as good as forever
KEEP_ALIVE_S = 300.0  # Ollama's own default; a server may be told otherwise, and then /api/ps corrects us

PATHS: Mapping[Wire, str] = {
    Wire.OLLAMA_CHAT: "/api/generate",
    Wire.OPENAI_CHAT: "/api/generate",
    Wire.OLLAMA_GENERATE: "/api/generate",
    Wire.OPENAI_COMPLETION: "/api/generate",
    Wire.OLLAMA_EMBED: "/api/embed",
    Wire.OLLAMA_EMBEDDINGS: "/api/embed",
    Wire.OPENAI_EMBEDDINGS: "/api/embed",
}
"""Where a load-only call loads what a wire needs: a model that only embeds is refused by `/api/generate`."""

ANY_MODEL = "/api/embed"  # without input it loads models of every kind

_NATIVE = frozenset({Wire.OLLAMA_CHAT, Wire.OLLAMA_GENERATE, Wire.OLLAMA_EMBED, Wire.OLLAMA_EMBEDDINGS})
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PIECE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|µs|ns)")
_EMPTY = re.compile(rb'\s*(?:null|""|\[\s*(?:""\s*)?\])\s*')


class Needs(Struct, frozen=True, kw_only=True):
    """What a request wants of the runner.

    Attributes:
        options: the load-time ones that it gives.
        keep_alive: how long the runner is to stay afterwards, as JSON; empty leaves that as it is.
        keep_alive_s: the same in seconds, 0 to unload at once; None when not given or not understood.
        unloads: it asks for nothing else than to unload.
        path: of the load-only call.
    """

    path: str
    options: Fixed = ()
    keep_alive: bytes = b""
    keep_alive_s: float | None = None
    unloads: bool = False


PLAIN: Mapping[Wire, Needs] = {wire: Needs(path=path) for wire, path in PATHS.items()}
"""Of requests that say nothing of the runner."""


_NOT_GIVEN = Raw(b"")
_UNSET = (b"", b"null")


class _Options(Struct):
    num_ctx: Raw = _NOT_GIVEN
    num_batch: Raw = _NOT_GIVEN
    num_gpu: Raw = _NOT_GIVEN
    main_gpu: Raw = _NOT_GIVEN
    use_mmap: Raw = _NOT_GIVEN
    num_thread: Raw = _NOT_GIVEN
    draft_num_predict: Raw = _NOT_GIVEN


LOAD_OPTIONS = _Options.__struct_fields__


class _Said(Struct):
    """What a body says of the runner. To skip the rest of it costs 0.8 µs for 2 kB, 30 µs for 133 kB: less than to
    search it for the words."""

    options: _Options | None = None
    shift: Raw = _NOT_GIVEN
    keep_alive: Raw = _NOT_GIVEN


class _Work(Struct):
    messages: Raw = Raw(b"null")
    prompt: Raw = Raw(b"null")
    input: Raw = Raw(b"null")


_said = msgspec.json.Decoder(_Said).decode


def needs(request: WireRequest) -> Needs:
    """Of a request on a wire in `PATHS`."""
    plain = PLAIN[request.wire]
    if request.wire not in _NATIVE:  # /v1 reads no options
        return plain
    try:
        said = _said(request.body)
    except FAILURES:
        return plain  # Ollama will say what is wrong with it
    options, keep_alive = _fixed(said), bytes(said.keep_alive)
    if keep_alive in _UNSET:
        return Needs(path=plain.path, options=options) if options else plain
    keep_alive_s = duration_s(keep_alive)
    unloads = keep_alive_s == 0 and _is_idle(request.body)
    return Needs(path=plain.path, options=options, keep_alive=keep_alive, keep_alive_s=keep_alive_s, unloads=unloads)


def _fixed(said: _Said) -> Fixed:
    found = [] if said.options is None else _given(said.options)
    shift = bytes(said.shift)
    return tuple(found) if shift in _UNSET else (*found, (SHIFT, shift))


def _given(options: _Options) -> list[tuple[str, bytes]]:
    values = zip(LOAD_OPTIONS, msgspec.structs.astuple(options), strict=True)
    return [(name, bytes(value)) for name, value in values if bytes(value) not in _UNSET]


def _is_idle(body: bytes) -> bool:
    """It asks for no answer."""
    work = decode_as(body, _Work)
    return all(_EMPTY.fullmatch(part) for part in (work.messages, work.prompt, work.input))


def duration_s(value: bytes) -> float | None:
    """A `keep_alive`, given as JSON: seconds, or Go's notation ("1h30m"); negative means forever."""
    try:
        read = decode_as(value, Any) if value else None
    except ValueError:
        return None
    if isinstance(read, str):
        return _go_duration_s(read)
    if isinstance(read, bool) or not isinstance(read, int | float):
        return None
    return math.inf if read < 0 or read > MAX_S else float(read)


def _go_duration_s(text: str) -> float | None:
    bare = text.lstrip("+-")
    if bare == "0":
        return 0.0
    if not bare or _PIECE.sub("", bare):
        return None
    return math.inf if text.startswith("-") else sum(float(n) * _UNITS_S[unit] for n, unit in _PIECE.findall(bare))


def load_body(model: str, need: Needs) -> bytes:
    """Of a call that loads and does nothing else. A `keep_alive` of 0 would make it an unload."""
    options = {name: Raw(value) for name, value in need.options if name != SHIFT}
    body: dict[str, object] = {"model": model, "stream": False}
    if need.path == ANY_MODEL:
        body = {"model": model, "input": []}
    else:
        body |= {name: Raw(value) for name, value in need.options if name == SHIFT}
    if options:
        body["options"] = options
    if need.keep_alive_s:
        body["keep_alive"] = Raw(need.keep_alive)
    return msgspec.json.encode(body)


class Loaded(Struct, frozen=True):
    """One row of `/api/ps`: `left_s` until it is unloaded, not positive for one that is about to be."""

    model: str
    left_s: float
    context_tokens: int | None = None


class _Row(Struct):
    name: str = ""
    model: str = ""
    expires_at: str = ""
    context_length: int | None = None


class _Ps(Struct):
    models: list[_Row] | None = None


def read_ps(body: bytes, now: datetime) -> Sequence[Loaded]:
    """What is loaded, at a wall-clock time.

    Raises:
        AttemptFailed: `malformed`.
    """
    try:
        rows = msgspec.json.decode(body, type=_Ps).models or []
    except FAILURES:
        raise AttemptFailed(Outcome(kind=Kind.MALFORMED, code="ps")) from None
    return [Loaded(row.model or row.name, _left_s(row.expires_at, now), row.context_length) for row in rows]


def _left_s(expires_at: str, now: datetime) -> float:
    try:
        then = msgspec.convert(expires_at, datetime)
    except msgspec.ValidationError:
        return KEEP_ALIVE_S
    return (then.replace(tzinfo=then.tzinfo or UTC) - now).total_seconds()
