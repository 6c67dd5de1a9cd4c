"""Client and back end speak the same wire: everything passes, except what is listed here.

The body is written anew only when something must change, and then from the undecoded values, so that every value that
does not change keeps its bytes. What may change: the model's name, the `REPAIRS`, the model's configured defaults, and
`stream_options.include_usage` (without it a stream reports no token counts).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
from msgspec import Raw

from memos_llm.core.call import Call, Operation, Target, Wire, WireRequest
from memos_llm.core.decision import Offer
from memos_llm.core.ports import Decoder
from memos_llm.dialects.codecs.decoder import StreamDecoder, WholeDecoder
from memos_llm.dialects.codecs.passthrough import EmbeddingsReader, OllamaReader, OpenAIReader
from memos_llm.dialects.framing import NdjsonFramer, SseFramer
from memos_llm.dialects.jsons import decode_optional

OPENAI = frozenset({Wire.OPENAI_CHAT, Wire.OPENAI_COMPLETION})
ANSWERS = OPENAI | {Wire.OLLAMA_CHAT, Wire.OLLAMA_GENERATE}  # what a model says, and samples for
_UNSET = (b"null", b"")

Head = dict[str, Raw]


class Repair(NamedTuple):
    """A change that lets a back end take what its predecessor took.

    `apply` edits the head and tells whether it did. `optional`: only where the model's settings ask for it.
    """

    wires: frozenset[Wire]
    apply: Callable[[Head], bool]
    optional: bool
    note: str


def _drop_empty_tools(head: Head) -> bool:
    if "tools" not in head or b"".join(bytes(head["tools"]).split()) != b"[]":
        return False
    del head["tools"]
    if bytes(head.get("tool_choice", b"")) in (b'"auto"', b'"none"'):
        del head["tool_choice"]
    return True


def _name_max_tokens(head: Head) -> bool:
    if bytes(head.get("max_completion_tokens", b"")) in _UNSET:
        return False
    head["max_tokens"] = head.pop("max_completion_tokens")
    return True


REPAIRS: Mapping[str, Repair] = {
    "tools": Repair(
        OPENAI,
        _drop_empty_tools,
        optional=False,
        note="`tools: []` is a 400 on vLLM since 0.16–0.20, and means nothing; so is a `tool_choice` without tools, "
        "which is dropped too if it is `auto` or `none`",
    ),
    "max_completion_tokens": Repair(
        OPENAI, _name_max_tokens, optional=True, note="Ollama's /v1 reads only `max_tokens`, and would not stop"
    ),
}
"""Name → repair; each one that was made is told as `repaired:<name>`."""


class Identity:
    """The codec of equal wires."""

    def request(self, call: Call, target: Target, offer: Offer) -> tuple[WireRequest, tuple[str, ...]]:
        head = dict(call.head)
        warnings = tuple(
            f"repaired:{name}"
            for name, repair in REPAIRS.items()
            if _fits(name, repair, call, target) and repair.apply(head)
        )
        edits = (_rename(head, call, target), _fill(head, call, target.settings.defaults), _ask_usage(head, call))
        body = msgspec.json.encode(head) if head and (warnings or any(edits)) else call.body
        return WireRequest(call.id, call.wire, target.model, body, call.stream), warnings

    def decoder(self, call: Call, target: Target) -> Decoder:
        if call.operation is Operation.EMBEDDINGS:
            return WholeDecoder(EmbeddingsReader(call.model).whole)
        if call.wire in OPENAI:
            reader = OpenAIReader(call.model, choices=_choices(call), hides_usage=_hides_usage(call))
            return StreamDecoder(SseFramer(), reader) if call.stream else WholeDecoder(reader.whole)
        records = OllamaReader(call.model)
        return StreamDecoder(NdjsonFramer(), records) if call.stream else WholeDecoder(records.whole)


def _fits(name: str, repair: Repair, call: Call, target: Target) -> bool:
    return call.wire in repair.wires and (not repair.optional or name in target.settings.repairs)


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
    missing = [
        name for name in defaults if not (_is_set(values, name) or _is_set(values, _ALSO_GIVEN_BY.get(name, "")))
    ]
    values.update((name, Raw(msgspec.json.encode(defaults[name]))) for name in missing)
    return bool(missing)


def _is_set(values: Head, name: str) -> bool:
    return name in values and bytes(values[name]) not in _UNSET


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
    options = _stream_options(head) if _is_set(head, "stream_options") else None
    head["stream_options"] = Raw(msgspec.json.encode({**options, "include_usage": True})) if options else _ASKED
    return True


def _hides_usage(call: Call) -> bool:
    """Whether the usage event is our own wish: asked for upstream, and kept from the caller."""
    if call.wire is not Wire.OPENAI_CHAT or not call.stream or not call.head:
        return False
    usual = _USUAL.get(bytes(call.head.get("stream_options", b"")))
    if usual is not None:
        return usual
    options = _stream_options(call.head)
    return options is not None and bytes(options.get("include_usage", b"")) != b"true"


def _choices(call: Call) -> int:
    try:
        return max(1, decode_optional(call.head.get("n", Raw(b"1")), int) or 1)
    except ValueError:
        return 1
