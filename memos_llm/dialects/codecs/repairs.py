"""What is changed in a request that goes to a back end on its own wire, so that it takes what its predecessor took.

Each repair that was made is named to the caller as `repaired:<name>`. Facts: vLLM 0.32 and Ollama 0.17.4, measured.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
from msgspec import Raw

from memos_llm.core.call import Call, Target, Wire
from memos_llm.core.decision import Offer
from memos_llm.dialects.codecs.rules import not_offered, unlimited
from memos_llm.dialects.jsons import decode_as

OPENAI = frozenset({Wire.OPENAI_CHAT, Wire.OPENAI_COMPLETION})
UNSET = (b"null", b"")

DEFAULTS = "defaults"  # told like a repair: the model's configured defaults filled in what the caller left open

MAX_APART = 4096  # one request of a client makes no more than that
MAX_APART_BYTES = 64 * 1024 * 1024  # of all bodies that one call with a list of prompts is taken apart into

Head = dict[str, Raw]


class Repair(NamedTuple):
    """One change.

    Attributes:
        apply: edits the head and tells whether it did.
        optional: only where the model's settings ask for it.
    """

    wires: frozenset[Wire]
    apply: Callable[[Head, Offer], bool]
    optional: bool
    note: str


def repaired(head: Head, call: Call, target: Target, offer: Offer) -> list[str]:
    """Make the repairs that this call to this target needs; returns their names."""
    wanted = target.settings.repairs
    return [
        name
        for name, repair in _BY_WIRE.get(call.wire, ())
        if (not repair.optional or name in wanted) and repair.apply(head, offer)
    ]


def is_set(head: Mapping[str, Raw], key: str) -> bool:
    return key in head and bytes(head[key]) not in UNSET


# --- chat and completions ---------------------------------------------------------------------------------------------


def _drop_empty_tools(head: Head, offer: Offer) -> bool:
    if "tools" not in head or b"".join(bytes(head["tools"]).split()) != b"[]":
        return False
    del head["tools"]
    if bytes(head.get("tool_choice", b"")) in (b'"auto"', b'"none"'):
        del head["tool_choice"]
    return True


def _name_max_tokens(head: Head, offer: Offer) -> bool:
    if not is_set(head, "max_completion_tokens"):
        return False
    head["max_tokens"] = head.pop("max_completion_tokens")
    return True


def _no_limit(head: Head, offer: Offer) -> bool:
    limit = Raw(msgspec.json.encode(unlimited(offer)))
    if is_set(head, "max_tokens") or bytes(head.get("max_tokens", b"")) == bytes(limit):
        return False
    head["max_tokens"] = limit
    return True


def prompts_apart(head: Mapping[str, Raw]) -> list[Raw]:
    """The prompts of a list of texts; empty when there is no such list."""
    raw = head.get("prompt", Raw(b""))
    if not bytes(raw).startswith(b"["):
        return []
    try:
        prompts = decode_as(raw, list[Raw])
    except ValueError:
        return []  # the back end's to refuse
    return prompts if all(bytes(prompt).startswith(b'"') for prompt in prompts) else []


def _take_apart(head: Head, offer: Offer) -> bool:
    """The head keeps the first prompt; `bodies_apart` makes the requests for the others."""
    prompts = prompts_apart(head)
    if not prompts:
        return False
    rest = sum(len(key) + len(bytes(value)) for key, value in head.items() if key != "prompt")
    if len(prompts) > MAX_APART or len(prompts) * rest > MAX_APART_BYTES:
        raise not_offered(f"{len(prompts)} prompts in one call, which would be sent one by one")
    head["prompt"] = prompts[0]
    return True


def bodies_apart(head: Mapping[str, Raw], prompts: list[Raw]) -> tuple[bytes, ...]:
    """One body for each prompt after the first."""
    return tuple(msgspec.json.encode({**head, "prompt": prompt}) for prompt in prompts[1:])


# --- embeddings -------------------------------------------------------------------------------------------------------

MARKS = 8  # tokens that a tokenizer puts around a text, at most

_ENCODINGS = (*UNSET, b'"float"', b'"base64"')  # the ones that we can cut; vLLM has two of its own


def _truncate(head: Head, offer: Offer) -> bool:
    """A token is a byte of the text at least: what is surely short enough is left alone."""
    if is_set(head, "truncate_prompt_tokens") or "input" not in head or _surely_fits(head["input"], offer):
        return False
    head["truncate_prompt_tokens"] = Raw(b"-1")
    return True


def _surely_fits(raw: Raw, offer: Offer) -> bool:
    if offer.context_tokens is None:
        return False
    most = offer.context_tokens - MARKS
    return len(bytes(raw)) <= most or _longest(raw) <= most


def _longest(raw: Raw) -> int:
    """The bytes of the longest input; a list of token ids is one input."""
    try:
        inputs = [bytes(one) for one in decode_as(raw, list[Raw])]
    except ValueError:
        return len(bytes(raw))
    several = all(one.startswith((b'"', b"[")) for one in inputs)
    return max(map(len, inputs), default=0) if several else len(bytes(raw))


def _cut_here(head: Head, offer: Offer) -> bool:
    if wanted_dimensions(head) is None:
        return False
    del head["dimensions"]
    return True


def _usual_encoding(head: Head, offer: Offer) -> bool:
    if bytes(head.get("encoding_format", b"")) != b"null":
        return False
    del head["encoding_format"]
    return True


def wanted_dimensions(head: Mapping[str, Raw]) -> int | None:
    """How long the vectors are to be; None when nobody said so, or in an encoding that we do not know."""
    if not is_set(head, "dimensions") or bytes(head.get("encoding_format", b"")) not in _ENCODINGS:
        return None
    try:
        return decode_as(head["dimensions"], int)
    except ValueError:
        return None  # the back end's to refuse


# --- the table --------------------------------------------------------------------------------------------------------

_COMPLETION, _EMBEDDINGS = frozenset({Wire.OPENAI_COMPLETION}), frozenset({Wire.OPENAI_EMBEDDINGS})

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
    "max_tokens": Repair(
        _COMPLETION,
        _no_limit,
        optional=True,
        note="vLLM stops a completion at 16 tokens where nothing or `null` is said, Ollama never: its whole context",
    ),
    "prompt": Repair(
        _COMPLETION,
        _take_apart,
        optional=True,
        note="a list of prompts is sent to Ollama one by one, and the answers are put together",
    ),
    "truncate_prompt_tokens": Repair(
        _EMBEDDINGS,
        _truncate,
        optional=True,
        note="vLLM refuses an input that is too long, Ollama cuts it: -1 is added unless every input surely fits",
    ),
    "encoding_format": Repair(
        _EMBEDDINGS,
        _usual_encoding,
        optional=True,
        note="vLLM refuses a null, which means nothing to Ollama (LiteLLM sends one)",
    ),
    "dimensions": Repair(
        _EMBEDDINGS,
        _cut_here,
        optional=True,
        note="vLLM refuses it unless the model is a Matryoshka one: the vectors are cut and normalised here, as Ollama "
        "does with any model",
    ),
}
"""Name → repair."""

BY_KIND: Mapping[str, frozenset[str]] = {
    "ollama": frozenset({"max_completion_tokens", "prompt", "ollama"}),
    "vllm": frozenset({"max_tokens", "truncate_prompt_tokens", "dimensions", "encoding_format", "vllm"}),
}
"""Kind of provider → the optional repairs that it needs, and whose silences (`dialects.codecs.silence`) it keeps."""

_BY_WIRE: Mapping[Wire, tuple[tuple[str, Repair], ...]] = {
    wire: tuple((name, repair) for name, repair in REPAIRS.items() if wire in repair.wires) for wire in Wire
}
