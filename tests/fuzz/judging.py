"""What an exchange must be, whatever was sent: each problem in words, none when all is well."""

import re
from collections.abc import Iterator
from urllib.parse import unquote

from fuzz.cases import HOSTILE, Case
from fuzz.hostile import INTRUDER, Script
from fuzz.validating import document, error_body, foreign_error, ollama_stream, openai_stream
from fuzz.wire import Asked, Got, Read, Response, read

OURS = "x-memos-error-code"
UNREADABLE = b"Invalid HTTP request received."
FAULTY = frozenset({502, 503, 504})
LOOP = 508
CONFLICT = frozenset({503})
INTERNAL = b"internal error"
SLOW_S = 15.0
_PREFIX = re.compile(r"^/c/[^/]*/(s/[^/]*/)?")
_OPTION = re.compile(
    rb'^\{"error":(\{"message":)?"(option .* must be of |invalid format: |invalid JSON schema in format)'
)
"""Ollama's own 500 for a mistake of the caller's."""
_SURROGATE = re.compile(rb"\xed[\xa0-\xbf]|\\u[dD][89a-fA-F]")
"""Half a character: no server that encodes its prompt can take it, and the emulated vLLM says 500 as Python would."""
_CHUNK_SIZE = re.compile(rb"\r\n[0-9a-f]+\r\n")
_MALFORMED = re.compile(r"^/c/(/|[^/]*/s//)")


def judge(case: Case, asked: Asked, got: Got, said: Script | None = None) -> list[str]:
    """What is wrong with the answer. `said`: what the fuzzer's own back end told, if it was asked."""
    if got.error:
        return [got.error]
    found = read(got.data, asked.methods)
    problems = [*_framed(case, asked, got, found)]
    for number, response in enumerate(found.responses):
        cut = (found.cut or bool(found.problem)) and number == len(found.responses) - 1
        path = asked.paths[number] if number < len(asked.paths) else ""
        problems += _response(case, asked, path, response, said, cut=cut)
    if case.right and [response.status for response in found.responses] != [200]:
        problems.append(f"a valid request got {[(r.status, r.body[:300]) for r in found.responses]}")
    if got.seconds > SLOW_S:
        problems.append(f"it took {got.seconds:.1f} s")
    return problems


def _framed(case: Case, asked: Asked, got: Got, found: Read) -> Iterator[str]:
    """Whether what came is a row of whole answers, as many as were asked for."""
    if found.problem:
        yield f"not HTTP: {found.problem}"
    if found.cut and not got.left:
        yield f"an answer without its end: {got.data[-120:]!r}"
    if case.leaves_after is not None:
        return
    if asked.whole and not found.responses and not found.problem:
        yield "no answer"
    if case.whole and len(found.responses) > 1:
        yield f"{len(found.responses)} answers to one request"
    if not asked.whole and not asked.error and not asked.begun and found.responses:
        yield "an answer to nothing"


def _response(
    case: Case, asked: Asked, path: str, response: Response, said: Script | None, *, cut: bool
) -> Iterator[str]:
    status, body = response.status, response.body
    if INTERNAL in body and status >= 500:
        yield f"an error of our own: {status} {body[:200]!r}"
    if INTRUDER.encode() in body:
        yield "it holds what belongs to no request"
    if status >= 500:
        yield from _fault(case, response, said)
    if cut:
        return
    if status >= 400:
        yield from _error(case, asked, path, response)
    elif case.wire and status == 200:
        yield from _success(case, response, said)


def _fault(case: Case, response: Response, said: Script | None) -> Iterator[str]:
    """Nobody was at fault but the back end: it was the hostile one, or the request looped."""
    status = response.status
    if said is not None and said.fault:
        if status not in FAULTY:
            yield f"a faulty back end ({said.fault}) became {status}"
    elif not (status == LOOP and b"X-Memos-Hop" in case.data) and not _is_told(case, response):
        yield f"{status} without a fault: {response.body[:300]!r}"


def _is_told(case: Case, response: Response) -> bool:
    """The emulated back end's own: a 501, or what it says on a route that is passed on unread."""
    passed = not case.wire and OURS not in dict(response.headers) and response.status in (500, 501)
    passed = passed or (response.status == 500 and _OPTION.match(response.body) is not None)
    passed = passed or (response.body.find(b"Internal Server Error") > 0 and _SURROGATE.search(case.data) is not None)
    late = response.status == 504 and b"x-memos-timeout-ms" in case.data.lower()
    return passed or late


def _error(case: Case, asked: Asked, path: str, response: Response) -> Iterator[str]:
    """In the words of its path's API."""
    if response.body == UNREADABLE and (asked.error or not path):
        return
    if OURS in dict(response.headers) and not _is_head(asked):
        provider = response.get("x-memos-provider")
        theirs = bool(provider) and not translated(case.wire, provider)
        if theirs or _is_unclear(asked, path):
            yield from foreign_error(response.body)
        else:
            yield from error_body(place_of(path), response.body)


def _is_unclear(asked: Asked, path: str) -> bool:
    """Whether nobody could say which dialect is spoken: no good head, or no good path."""
    return bool(asked.error or asked.odd or "CONNECT" in asked.methods or _MALFORMED.match(path))


def _is_head(asked: Asked) -> bool:
    return "HEAD" in asked.methods


def place_of(target: str) -> str:
    """The path without what comes before it: `/c/COMPONENT` and `/c/COMPONENT/s/SESSION`."""
    path = target.partition("?")[0]
    return unquote(_PREFIX.sub("/", path))


def _success(case: Case, response: Response, said: Script | None) -> Iterator[str]:
    kind, wire = response.get("content-type"), case.wire
    provider = response.get("x-memos-provider")
    strict = provider not in HOSTILE or translated(wire, provider)
    if kind.startswith("application/x-ndjson"):
        yield from ollama_stream(wire, response.body, strict=strict)
    elif kind.startswith("text/event-stream"):
        yield from openai_stream(wire, response.body, strict=strict)
    elif kind.startswith("application/json"):
        yield from document(wire, response.body, strict=strict)
    else:
        yield f"a 200 of the type {kind!r}"
    if said is not None and said.fault and provider in HOSTILE:
        yield from _finished(response, said)


def translated(wire: str, provider: str) -> bool:
    """Whether the answer is written by us: the back end does not speak the client's wire."""
    return (wire.startswith("ollama") and provider in ("vllm", "hvllm")) or (
        wire == "openai.chat" and provider == "hnative"
    )


def _finished(response: Response, said: Script) -> Iterator[str]:
    """Nobody may be told that an answer is whole when its end was never said."""
    told = b'"done":true' in response.body.replace(b" ", b"") or b"data: [DONE]" in response.body
    ends = (b"done", b"DONE", b"finish_reason", b"\\u00", b"Content-Encoding")
    if told and not any(end in _CHUNK_SIZE.sub(b"", said.data) for end in ends):
        yield f"an end that was never said ({said.fault})"


def healed(response: Response | None, mark: str, wire: str) -> str:
    """Whether a valid answer came through, right behind a bad one on the same endpoint; else what did."""
    if response is None or response.status != 200:
        return f"behind it a valid answer became {response and (response.status, response.body[:200])}"
    if wire.endswith(("embed", "embeddings")):
        return ""
    return "" if mark.encode() in response.body else f"behind it came another's answer: {response.body[:200]!r}"
