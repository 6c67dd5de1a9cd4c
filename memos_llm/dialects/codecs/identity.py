"""Client and back end speak the same wire: everything passes, except what is listed.

The body is written anew only when something must change, and then from the undecoded values, so that every value that
does not change keeps its bytes. What may change: the model's name, the `repairs`, the model's configured defaults, and
`stream_options.include_usage` (without it a stream reports no token counts). What the back end will leave out without
a word is named (`silence`).
"""

from collections.abc import Mapping

import msgspec
from msgspec import Raw

from memos_llm.core.call import Call, Operation, Target, Wire, WireRequest
from memos_llm.core.decision import Offer
from memos_llm.core.ports import Decoder
from memos_llm.dialects.codecs.apart import Together
from memos_llm.dialects.codecs.decoder import StreamDecoder, WholeDecoder
from memos_llm.dialects.codecs.passthrough import OllamaReader, OpenAIReader
from memos_llm.dialects.codecs.passthrough_vectors import EmbeddingsReader
from memos_llm.dialects.codecs.repairs import (
    DEFAULTS,
    OPENAI,
    Head,
    bodies_apart,
    is_set,
    prompts_apart,
    repaired,
    wanted_dimensions,
)
from memos_llm.dialects.codecs.silence import SILENCES, dropped
from memos_llm.dialects.framing import NdjsonFramer, SseFramer
from memos_llm.dialects.jsons import decode_as, decode_optional

ANSWERS = OPENAI | {Wire.OLLAMA_CHAT, Wire.OLLAMA_GENERATE}  # what a model says, and samples for

APART, CUT = "prompt", "dimensions"  # the repairs that an answer has to know of too
ONE_ANSWER = frozenset(kind for kind, silences in SILENCES.items() if any("n" in each.fields for each in silences))
"""The kinds of provider that give one answer, however many are asked for."""


class Identity:
    """The codec of equal wires."""

    def request(self, call: Call, target: Target, offer: Offer) -> tuple[WireRequest, tuple[str, ...]]:
        head = dict(call.head)
        repairs = repaired(head, call, target, offer)
        if _fill(head, call, target.settings.defaults):
            repairs.append(DEFAULTS)
        lost = dropped(head, call, target, offer)  # also of what was just filled in
        edits = (_rename(head, call, target), _ask_usage(head, call))
        body = msgspec.json.encode(head) if head and (repairs or any(edits)) else call.body
        more = bodies_apart(head, prompts_apart(call.head)) if APART in repairs else ()
        request = WireRequest(call.id, call.wire, target.model, body, call.stream, more=more)
        raw = call.wire is Wire.OPENAI_COMPLETION and VERBATIM in target.settings.repairs
        return request, _warnings(repairs, lost, raw) if repairs or lost or raw else ()

    def decoder(self, call: Call, target: Target) -> Decoder:
        if call.operation is Operation.EMBEDDINGS:
            return WholeDecoder(_vectors_reader(call, target).whole)
        if call.wire in OPENAI:
            return _openai_decoder(call, target)
        records = OllamaReader(call.model)
        return StreamDecoder(NdjsonFramer(), records) if call.stream else WholeDecoder(records.whole)


VERBATIM = "vllm"  # the kind that takes a completion's prompt as it is: Ollama puts it into the chat template
RAW_PROMPT = "approximated:prompt"


def _warnings(repairs: list[str], lost: list[str], raw: bool) -> tuple[str, ...]:
    told = (*(f"repaired:{name}" for name in repairs), *(f"dropped:{name}" for name in lost))
    return (*told, RAW_PROMPT) if raw else told


def _openai_decoder(call: Call, target: Target) -> Decoder:
    apart = call.wire is Wire.OPENAI_COMPLETION and APART in target.settings.repairs
    if apart and (prompts := prompts_apart(call.head)):
        return Together(call.model, len(prompts), stream=call.stream, tells_usage=not _hides_usage(call))
    reader = OpenAIReader(call.model, choices=_choices(call, target), hides_usage=_hides_usage(call))
    return StreamDecoder(SseFramer(), reader) if call.stream else WholeDecoder(reader.whole)


def _vectors_reader(call: Call, target: Target) -> EmbeddingsReader:
    cuts = call.wire is Wire.OPENAI_EMBEDDINGS and CUT in target.settings.repairs
    return EmbeddingsReader(call, dimensions=(wanted_dimensions(call.head) or 0) if cuts else 0)


def _rename(head: Head, call: Call, target: Target) -> bool:
    if target.model == call.model or "model" not in head:
        return False
    head["model"] = Raw(msgspec.json.encode(target.model))
    return True


_ALSO_GIVEN_BY = {"max_tokens": "max_completion_tokens"}


def _fill(head: Head, call: Call, defaults: Mapping[str, float]) -> bool:
    """Add the defaults that the caller leaves open: at the top on OpenAI's wires, among the options on Ollama's."""
    if not defaults or call.wire not in ANSWERS:
        return False
    if call.wire in OPENAI:
        return _add_missing(head, defaults)
    try:
        options = decode_optional(head.get("options", Raw(b"{}")), Head) or {}
    except ValueError:
        return False  # Ollama's to refuse
    if not _add_missing(options, defaults):
        return False
    head["options"] = Raw(msgspec.json.encode(options))
    return True


def _add_missing(values: Head, defaults: Mapping[str, float]) -> bool:
    missing = [name for name in defaults if not (is_set(values, name) or is_set(values, _ALSO_GIVEN_BY.get(name, "")))]
    values.update((name, Raw(msgspec.json.encode(defaults[name]))) for name in missing)
    return bool(missing)


def _stream_options(head: Mapping[str, Raw]) -> Head | None:
    """None when it is no object: the back end's to refuse."""
    try:
        return decode_optional(head.get("stream_options", Raw(b"{}")), Head) or {}
    except ValueError:
        return None


_ASKED = Raw(b'{"include_usage":true}')
_USUAL: Mapping[bytes, bool] = {b"": True, b"null": True, bytes(_ASKED): False, b'{"include_usage": true}': False}
"""What nearly every request says, told apart without decoding: whether its usage event is hidden."""


def _ask_usage(head: Head, call: Call) -> bool:
    if not _hides_usage(call):
        return False
    options = _stream_options(head) if is_set(head, "stream_options") else None
    head["stream_options"] = Raw(msgspec.json.encode({**options, "include_usage": True})) if options else _ASKED
    return True


def _hides_usage(call: Call) -> bool:
    """Whether the usage event is our own wish: asked for upstream, and kept from the caller."""
    if call.wire not in OPENAI or not call.stream or not call.head:
        return False
    usual = _USUAL.get(bytes(call.head.get("stream_options", b"")))
    if usual is not None:
        return usual
    options = _stream_options(call.head)
    return options is not None and bytes(options.get("include_usage", b"")) != b"true"


def _choices(call: Call, target: Target) -> int:
    """How many answers will come: `n` for every prompt, but only one from a back end that leaves `n` out."""
    if target.settings.repairs & ONE_ANSWER:
        return 1
    return _count(call) * _prompts(call)


def _count(call: Call) -> int:
    try:
        return max(1, decode_optional(call.head.get("n", Raw(b"1")), int) or 1)
    except ValueError:
        return 1


def _prompts(call: Call) -> int:
    """Of a list of texts, or of lists of token ids."""
    raw = bytes(call.head.get("prompt", b"")) if call.wire is Wire.OPENAI_COMPLETION else b""
    if not raw.startswith(b"["):
        return 1
    try:
        prompts = decode_as(raw, list[Raw])
    except ValueError:
        return 1
    return len(prompts) if prompts and bytes(prompts[0])[:1] in (b'"', b"[") else 1
