"""vLLM: the OpenAI wires, a bearer key, models by their exact names."""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from memos_llm.core.call import Feature, Wire
from memos_llm.core.decoding import FAILURES
from memos_llm.providers.engines import read_page
from memos_llm.providers.health import MODELS, Finding, Get, optional
from memos_llm.providers.http import Profile

DEFAULT_URL = "http://localhost:8000"

LACKS = (
    Feature.LOAD  # one model, loaded at its start
    | Feature.GO_TEMPLATE
    | Feature.CONTEXT
    | Feature.DEBUG_RENDER
    | Feature.MANY_STOPS  # at most four since 0.28
    | Feature.NO_PREDICT  # max_tokens is at least 1
    | Feature.UNMATCHED_TOOL_RESULT
)


class _Version(msgspec.Struct):
    version: str = ""


class _Model(msgspec.Struct):
    """A card. A LoRA's has no length of its own, and names its `parent`."""

    id: str
    max_model_len: int | None = None
    parent: str | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


async def ask(get: Get) -> Finding:
    """`/health` says whether the engine lives (503: dead); names, version and load are asked for besides."""
    await get("/health")
    models, version, metrics = await optional(get, "/v1/models", "/version", "/metrics")
    page, found = read_page(metrics), _told(models, version)
    return replace(found, load=page.load(), busy=page.busy()) if page else found


async def look(get: Get) -> Finding:
    """Without the load: metrics that hang keep no request waiting."""
    await get("/health")
    return _told(*await optional(get, "/v1/models", "/version"))


def _told(models: bytes, version: bytes) -> Finding:
    cards = _cards(models)
    return Finding(
        detail=MODELS if models and cards is None else "",
        models=None if cards is None else tuple(card.id for card in cards),
        contexts=_contexts(cards or []),
        version=_version(version),
    )


def _cards(body: bytes) -> list[_Model] | None:
    try:
        return msgspec.json.decode(body, type=_Models).data
    except FAILURES:
        return None


def _contexts(cards: Sequence[_Model]) -> Mapping[str, int]:
    own = {card.id: card.max_model_len for card in cards}
    found = {card.id: card.max_model_len or own.get(card.parent or "") for card in cards}
    return {name: length for name, length in found.items() if length}


def _version(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Version).version
    except FAILURES:
        return ""


PROFILE = Profile(
    paths={
        Wire.OPENAI_CHAT: "/v1/chat/completions",
        Wire.OPENAI_COMPLETION: "/v1/completions",
        Wire.OPENAI_EMBEDDINGS: "/v1/embeddings",
    },
    features=Feature.ALL & ~LACKS,
    canonical=str,
    ask=ask,
    look=look,
)
