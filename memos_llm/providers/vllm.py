"""vLLM: the OpenAI wires, a bearer key, models by their exact names."""

import msgspec

from memos_llm.core.call import Feature, Wire
from memos_llm.providers.health import Finding, Get, optional
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
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def ask(get: Get) -> Finding:
    """`/health` says whether the engine lives (503: dead); names and version are asked for besides."""
    await get("/health")
    return Finding(models=_models(await optional(get, "/v1/models")), version=_version(await optional(get, "/version")))


def _models(body: bytes) -> tuple[str, ...] | None:
    try:
        return tuple(model.id for model in msgspec.json.decode(body, type=_Models).data)
    except msgspec.DecodeError:
        return None


def _version(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Version).version
    except msgspec.DecodeError:
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
)
