"""The codec from Ollama's native embeddings to vLLM's: `/api/embed` and `/api/embeddings` to `/v1/embeddings`.

vLLM cuts no vector (unless the model is a Matryoshka one) and normalises as the model says; Ollama's /api/embed does
both for any model, and so do we. Facts: Ollama 0.33 source, 0.17.4 measured.
"""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from memos_llm.core.call import Call, Feature, Frame, Target, Wire, WireRequest
from memos_llm.core.decision import Offer
from memos_llm.core.decoding import FAILURES
from memos_llm.core.ports import Clock, Decoder
from memos_llm.dialects.codecs import vectors, vectors_found
from memos_llm.dialects.codecs.decoder import USAGE, WHOLE, WholeDecoder, counted, failed, malformed
from memos_llm.dialects.codecs.ollama_options import read_option, within_context
from memos_llm.dialects.codecs.rules import Draft, Policy, Rule, bad_request, carry_out, not_offered
from memos_llm.dialects.jsons import decode_as, decode_optional, go_json

_NS = 1_000_000_000

RAW_LENGTH = "approximated:embedding"
"""Of `/api/embeddings`: it gives what Ollama's runner computed, of any length; `/api/embed` normalises."""


class EmbedToOpenAI:
    """Stateless; `clock` tells monotonic seconds."""

    features = Feature.NONE

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock

    def upstream(self, call: Call) -> Wire:
        return Wire.OPENAI_EMBEDDINGS

    def request(self, call: Call, target: Target, offer: Offer) -> tuple[WireRequest, tuple[str, ...]]:
        if call.needs & Feature.LOAD:
            raise not_offered("vLLM loads nothing")
        draft = Draft(call, target, offer, {"model": target.model})
        carry_out(RULES[call.wire], draft)
        body = msgspec.json.encode(draft.body)
        return WireRequest(call.id, Wire.OPENAI_EMBEDDINGS, target.model, body, stream=False), tuple(draft.warnings)

    def decoder(self, call: Call, target: Target) -> Decoder:
        return WholeDecoder(_Answer(call, self._clock).whole)


# --- requests ---------------------------------------------------------------------------------------------------------


def _input(draft: Draft) -> None:
    raw = draft.call.head["input"]
    try:
        given = decode_as(raw, str | list[str])  # type: ignore[arg-type]  # a union is no class, and as good
    except ValueError:
        raise bad_request("invalid input type") from None
    draft.body["input"] = given


def _prompt(draft: Draft) -> None:
    draft.body["input"] = draft.read("prompt", str)
    draft.warnings.append(RAW_LENGTH)  # which models Ollama normalises here is known to its runner only


def _truncate(draft: Draft) -> None:
    """Absent means true; without it vLLM refuses what is too long, as Ollama does when told not to cut."""
    if draft.read("truncate", bool) is not False:
        draft.body["truncate_prompt_tokens"] = -1


def _dimensions(draft: Draft) -> None:
    draft.read("dimensions", int)  # the answer is cut


def _options(draft: Draft) -> None:
    for name, given in (draft.read("options", dict[str, Any]) or {}).items():
        value = read_option(name, given)
        if name == "num_ctx" and value is not None and not within_context(draft, value):
            draft.warn(Policy.DROPPED, name)


_MAP, _IGNORE = Policy.MAPPED, Policy.IGNORED

_COMMON: dict[str, Rule] = {
    "model": Rule(_MAP, "model", note="the back end's own name; answers echo the caller's spelling"),
    "options": Rule(_MAP, "", _options, "num_ctx is dropped as in a chat; the others shape no vector"),
    "keep_alive": Rule(_IGNORE, note="vLLM keeps its model"),
}

EMBED: dict[str, Rule] = {
    "input": Rule(_MAP, "input", _input, "text or texts; empty ones load the model, which only Ollama does"),
    **_COMMON,
    "truncate": Rule(_MAP, "truncate_prompt_tokens", _truncate, "absent means true: -1; false is left out", True),
    "dimensions": Rule(_MAP, "", _dimensions, "the vectors are cut and normalised here, as Ollama does"),
}
"""`/api/embed` to `/v1/embeddings`."""

EMBEDDINGS: dict[str, Rule] = {
    "prompt": Rule(_MAP, "input", _prompt, f"one text; never cut, as on Ollama. Always with `{RAW_LENGTH}`"),
    **_COMMON,
}
"""`/api/embeddings` to `/v1/embeddings`."""

RULES: Mapping[Wire, dict[str, Rule]] = {Wire.OLLAMA_EMBED: EMBED, Wire.OLLAMA_EMBEDDINGS: EMBEDDINGS}

# --- answers ----------------------------------------------------------------------------------------------------------


class _Usage(Struct):
    prompt_tokens: float | None = None


class _Document(Struct):
    data: Raw = vectors_found.ABSENT
    usage: _Usage | None = None
    error: Any = None


_document = msgspec.json.Decoder(_Document).decode


class _Embedded(Struct, omit_defaults=True):
    """As Ollama writes it: keys in its order, zeros left out."""

    model: str
    embeddings: list[Raw]
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0


class _Answer:
    """One answer, and when it was asked for."""

    def __init__(self, call: Call, clock: Clock) -> None:
        self._call, self._clock = call, clock
        self._dimensions = _wanted(call)

    def whole(self, body: bytes) -> Frame:
        try:
            document = _document(body)
        except FAILURES as error:
            raise malformed("not-json") from error
        if document.error is not None:
            raise failed(document.error, "error-body")
        found = self._vectors(document.data)
        usage = counted(document.usage.prompt_tokens, None) if document.usage else None
        return Frame(self._written(found, usage.input_tokens if usage else 0), WHOLE | (USAGE if usage else 0), usage)

    def _vectors(self, data: Raw) -> list[Raw]:
        """In the order of the inputs, one for each, as the caller's wire has them; one at a time is decoded."""
        count = vectors_found.asked(self._call)
        items = vectors_found.items(data, count)
        shown, lengths = [], []
        for at in vectors_found.order(items, count):
            vector = vectors_found.numbers(items[at].embedding)
            lengths.append(len(vector))
            shown.append(Raw(go_json(self._shaped(vector))))
        vectors_found.of_one_length(lengths)
        return shown

    def _shaped(self, vector: list[float]) -> list[float]:
        if self._call.wire is Wire.OLLAMA_EMBEDDINGS:
            return vector
        return vectors.normalised(vectors.cut(vector, self._dimensions))

    def _written(self, found: list[Raw], tokens: int) -> bytes:
        if self._call.wire is Wire.OLLAMA_EMBEDDINGS:
            return go_json({"embedding": found[0]})
        took_ns = max(1, round((self._clock() - self._call.accepted_at) * _NS))
        return go_json(_Embedded(self._call.model, found, took_ns, 1, tokens))  # it loads nothing; the key is expected


def _wanted(call: Call) -> int:
    try:
        return decode_optional(call.head["dimensions"], int) or 0 if "dimensions" in call.head else 0
    except ValueError:
        return 0  # refused when the request was written
