"""Whether an answer is right, word for word, or its error explained by what was broken. Pure: truth and exchange in,
verdict out.

An error is excused only if
- every provider that the request might have been sent to was broken while it ran (before the first content; of Ollama
  also: it had swallowed the model's load shortly before, and the wait for that was a time-out), or
- the stream had begun and its own provider broke it off: the last event is an error in the client's dialect, or
- the gateway worker at the other end of its own connection was killed, or
- the client left.
"""

import json
from dataclasses import dataclass
from typing import Any

from chaos.asking import CHAT_MODEL, EMBED_MODEL, META, Asked, right, right_vectors
from chaos.reading import Said, error_of, read
from chaos.truth import ANY, DIVERTS_S, Effect, Truth
from chaos.wire import Exchange
from memos_llm.emulators.vectors import unit

STATUSES = frozenset({429, 502, 503, 504})  # of a chain that is exhausted
CLOSE = 2e-6  # between a vector's numbers and their single-precision form


@dataclass(frozen=True)
class Verdict:
    """`kind`: right, excused, left, wrong. `why`: in words; for `wrong`, what is unexplained."""

    kind: str
    why: str = ""

    @property
    def wrong(self) -> bool:
        return self.kind == "wrong"


class Wrong(Exception):
    """Unexplained."""


def judge(exchange: Exchange, truth: Truth) -> Verdict:
    """The verdict on one exchange."""
    try:
        return _judge(exchange, truth)
    except Wrong as wrong:
        return Verdict("wrong", str(wrong))


def _judge(exchange: Exchange, truth: Truth) -> Verdict:
    if not exchange.complete and not exchange.left:
        return _cut(exchange, truth)
    if exchange.status is None:
        return Verdict("left", "before the answer")
    if exchange.asked.wire == "meta":
        return _meta(exchange)
    if exchange.headers.get("x-request-id") != exchange.asked.id:
        raise Wrong(f"x-request-id is {exchange.headers.get('x-request-id')!r}")
    if exchange.status != 200:
        return _error(exchange, truth)
    return _answer(exchange, truth)


def _cut(exchange: Exchange, truth: Truth) -> Verdict:
    if not truth.cut(exchange.port, exchange.opened, exchange.started, exchange.ended):
        raise Wrong(f"cut off ({exchange.error}) after {len(exchange.body)} bytes, and its worker lived")
    if exchange.status == 200 and exchange.asked.stream:  # what had come must be right all the same
        _answer(exchange, truth)
    return Verdict("excused", "worker killed")


TELLING = {"model_missing": 404, "no_auto_tools": 400}
"""Faults whose own status a client may get where nobody else can answer."""


def _error(exchange: Exchange, truth: Truth) -> Verdict:
    """A chain that found nobody."""
    asked, status = exchange.asked, exchange.status
    words, fault = error_of(exchange)
    if fault:
        raise Wrong(f"{status}: {fault}")
    own = {TELLING[name] for name in map(_name, (s.what for s in _faults(exchange, truth))) if name in TELLING}
    if status not in STATUSES and status not in own:
        raise Wrong(f"status {status}: {words[:200]}")
    routes = truth.routes(asked, exchange.started, exchange.ended)
    for _, chain in sorted(routes):
        causes = [
            truth.broken(provider, asked.embeds, Effect.BEFORE, exchange.started, exchange.ended)
            or (truth.swallowed(exchange.started, exchange.ended) if status == 504 and provider == "ollama" else [])
            for provider in chain
        ]
        if all(causes):
            return Verdict("excused", f"{status}, all broken: " + "; ".join(sorted({str(c[0]) for c in causes})))
    raise Wrong(f"status {status} ({words[:200]}), though not all of {sorted(routes)} were broken")


def _answer(exchange: Exchange, truth: Truth) -> Verdict:
    """A 200."""
    asked, said = exchange.asked, read(_until_left(exchange))
    provider = _served(exchange, truth)
    if said.faults:
        raise Wrong("; ".join(said.faults))
    if asked.embeds:
        return _vectors(asked, said, provider)
    answer = right(asked, provider)
    if not answer.text.startswith(said.text):
        raise Wrong(f"not what {provider} said: {said.text!r}, not {answer.text!r}")
    if said.error is not None or not said.ended:
        return _broken_off(exchange, said, provider, truth)
    _word_for_word(asked, said, provider, bool(_without_usage(exchange, provider, truth)))
    return Verdict("right", provider)


def _broken_off(exchange: Exchange, said: Said, provider: str, truth: Truth) -> Verdict:
    asked = exchange.asked
    causes = truth.broken(provider, False, ANY, exchange.started, exchange.ended)
    if said.error is not None:
        if said.finish is not None or said.ended:
            raise Wrong("an error behind a finish")
        causes = [cause for cause in causes if cause.effect & Effect.MIDWAY]
        if not causes:
            raise Wrong(f"the stream of {provider} ends in an error ({said.error[:200]}), and {provider} was well")
        return Verdict("excused", f"stream broken off: {causes[0]}")
    if exchange.left:
        return Verdict("left", provider)
    if not exchange.complete:
        return Verdict("excused", "worker killed")
    if not asked.stream and provider == "ollama" and {"eof_without_done"} & {_name(c.what) for c in causes}:
        return Verdict("excused", "unfinished answer of the last target passed on as it is")
    raise Wrong(f"the answer of {provider} has no end and no error: {exchange.body[-120:]!r}")


def _word_for_word(asked: Asked, said: Said, provider: str, uncounted: bool) -> None:
    answer = right(asked, provider)
    calls: list[tuple[str, Any]] = [(call.name, dict(call.arguments)) for call in answer.tool_calls]
    finish = "tool_calls" if calls and asked.openai else answer.finish
    if said.text != answer.text:
        raise Wrong(f"{provider} said {answer.text!r}, the client got {said.text!r}")
    if said.calls != calls:
        raise Wrong(f"{provider} called {calls!r}, the client got {said.calls!r}")
    if said.finish != finish:
        raise Wrong(f"{provider} finished with {finish!r}, the client got {said.finish!r}")
    wanted = (answer.prompt_tokens, answer.completion_tokens)
    if asked.openai and asked.stream and not asked.counted:
        if said.usage is not None:
            raise Wrong("usage that nobody asked for")
    elif said.usage != wanted and not uncounted:
        raise Wrong(f"{provider} counted {wanted}, the client got {said.usage}")


def _vectors(asked: Asked, said: Said, provider: str) -> Verdict:
    wanted = right_vectors(asked, provider)
    if [len(v) for v in said.vectors] != [len(v) for v in wanted]:
        raise Wrong(f"{[len(v) for v in said.vectors]} numbers, not {[len(v) for v in wanted]}")
    legacy = asked.wire == "ollama.embeddings"  # its vectors are not of length 1
    for got, own in zip(map(unit, said.vectors) if legacy else said.vectors, wanted, strict=True):
        if any(abs(a - b) > CLOSE for a, b in zip(got, own, strict=True)):
            raise Wrong(f"the vectors are not those of {provider}")
    return Verdict("right", provider)


def _served(exchange: Exchange, truth: Truth) -> str:
    """Who the headers say it was; that must have been allowed."""
    asked, headers = exchange.asked, exchange.headers
    provider, arm = headers.get("x-memos-provider", ""), headers.get("x-memos-arm", "")
    start, until = exchange.started, exchange.head_at or exchange.ended
    routes = truth.routes(asked, start, until)
    if not any(arm == allowed and provider in chain for allowed, chain in routes):
        raise Wrong(f"served by {provider!r} on arm {arm!r}; the flags allow {sorted(routes)}")
    attempts = int(headers.get("x-memos-attempts", "0"))
    if attempts < 1:
        raise Wrong(f"x-memos-attempts is {headers.get('x-memos-attempts')!r}")
    chain = {provider for _, chain in routes for provider in chain}
    if attempts > 1 and not any(truth.broken(p, asked.embeds, Effect.BEFORE, start, until) for p in chain):
        raise Wrong(f"{attempts} attempts, and nobody was broken")
    own = "vllm" if arm == "candidate" else "ollama"
    if provider != own and attempts == 1 and not truth.broken(own, asked.embeds, ANY, start - DIVERTS_S, until):
        raise Wrong(f"{own} was passed over and had not been broken for {DIVERTS_S:g} s")
    return provider


def _meta(exchange: Exchange) -> Verdict:
    """Never split, and never an error: while the baseline is down its last good answer is given."""
    if exchange.status != 200 and not exchange.left:
        raise Wrong(f"{exchange.asked.path} answers {exchange.status}")
    if exchange.left:
        return Verdict("left")
    try:
        document = json.loads(exchange.body)
    except ValueError:
        raise Wrong(f"{exchange.asked.path} is no JSON: {exchange.body[:80]!r}") from None
    names = _model_names(exchange.asked.path, document)
    known = {CHAT_MODEL, f"{EMBED_MODEL}:latest", EMBED_MODEL}
    if names is None or not names <= known:
        raise Wrong(f"{exchange.asked.path} lists {names}, known are {known}")
    if exchange.asked.path in META[:2] and len(names) != 2:
        raise Wrong(f"{exchange.asked.path} lists {names}, not both models")
    return Verdict("right", "meta")


def _model_names(path: str, document: Any) -> set[str] | None:
    if path == "/v1/models":
        return {entry["id"] for entry in document["data"]}
    if path == "/api/version":
        return set() if "version" in document else None
    return {entry["model"] for entry in document["models"]}


def _until_left(exchange: Exchange) -> Exchange:
    """Of a client that left or was cut off: what it had read in whole events."""
    if exchange.complete:
        return exchange
    separator = b"\n\n" if exchange.asked.openai else b"\n"
    whole = exchange.body[: exchange.body.rfind(separator) + len(separator)] if separator in exchange.body else b""
    return Exchange(asked=exchange.asked, body=whole)


def _without_usage(exchange: Exchange, provider: str, truth: Truth) -> list[Any]:
    return truth.broken(provider, False, Effect.NO_USAGE, exchange.started, exchange.ended)


def _faults(exchange: Exchange, truth: Truth) -> list[Any]:
    providers = ("ollama", "vllm")
    found = [truth.broken(p, exchange.asked.embeds, ANY, exchange.started, exchange.ended) for p in providers]
    return [span for spans in found for span in spans]


def _name(what: str) -> str:
    return what.partition(":")[0].partition(" ")[0]
