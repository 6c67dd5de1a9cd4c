"""Ollama: native and OpenAI wires, no key, models by any spelling that it takes for the same."""

import msgspec

from memos_llm.core.call import Feature, Wire
from memos_llm.core.decoding import FAILURES
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.providers.health import MODELS, Finding, Get, optional
from memos_llm.providers.http import Profile

DEFAULT_URL = "http://localhost:11434"


class _Version(msgspec.Struct):
    version: str


class _Model(msgspec.Struct):
    name: str


class _Tags(msgspec.Struct):
    models: list[_Model] | None = None


async def ask(get: Get) -> Finding:
    """`/api/version` answers while a model loads and in front of a stopped runner; `/api/tags` lists the models."""
    try:
        version = msgspec.json.decode(await get("/api/version"), type=_Version).version
    except FAILURES:
        raise AttemptFailed(Outcome(kind=Kind.MALFORMED, code="version")) from None
    (tags,) = await optional(get, "/api/tags")
    models = _models(tags)
    return Finding(version=version, models=models, detail=MODELS if tags and models is None else "")


def canonical(model: str) -> str:
    """Names match case-insensitively, and the tag defaults to `latest`."""
    return model.lower().removesuffix(":latest")


def _models(body: bytes) -> tuple[str, ...] | None:
    try:
        tags = msgspec.json.decode(body, type=_Tags)
    except FAILURES:
        return None
    return tuple(model.name for model in tags.models or ())


PROFILE = Profile(
    paths={
        Wire.OLLAMA_CHAT: "/api/chat",
        Wire.OLLAMA_GENERATE: "/api/generate",
        Wire.OPENAI_CHAT: "/v1/chat/completions",
        Wire.OPENAI_COMPLETION: "/v1/completions",
        Wire.OPENAI_EMBEDDINGS: "/v1/embeddings",
        Wire.OLLAMA_EMBED: "/api/embed",
        Wire.OLLAMA_EMBEDDINGS: "/api/embeddings",
    },
    features=Feature.ALL,
    canonical=canonical,
    ask=ask,
    cold=True,
)
