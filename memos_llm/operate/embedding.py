"""Having both back ends embed the same texts, directly: no split, no fallback, nothing counted."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from memos_llm.core.errors import EmbeddingServiceError
from memos_llm.core.events import Bus
from memos_llm.operate.changes import pair
from memos_llm.operate.vectors import Comparison, compare
from memos_llm.providers import AiohttpClient, open_transport
from memos_llm.providers.typed import TypedProvider

if TYPE_CHECKING:
    from memos_llm.config import Settings

BATCH = 16  # texts a request: small enough for either side's limits

Progress = Callable[[str, int], None]
"""Called with a provider's name and how many more texts it has embedded."""


async def measure(settings: "Settings", model: str, texts: Sequence[str], progress: Progress) -> Comparison:
    """Embed on baseline and candidate, compare.

    Raises:
        BadRequest: the model is not known on both. LLMError: a back end did not answer.
    """
    _, *names = pair(settings.policy(), model)
    sides = [settings.baseline, settings.candidate or ""]
    found = [await _side(settings, side, name, texts, progress) for side, name in zip(sides, names, strict=True)]
    return compare(*found)


async def _side(
    settings: "Settings", provider: str, model: str, texts: Sequence[str], progress: Progress
) -> list[list[float]]:
    spec = next(spec for spec in settings.provider_specs() if spec.name == provider)
    client = AiohttpClient()
    transport = open_transport(spec, client, Bus(), clock=time.monotonic)
    side = TypedProvider(transport, model=model, timeouts=spec.timeouts, client=client, kind=spec.kind)
    vectors: list[list[float]] = []
    try:
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            try:
                answer = await side.embed(batch)
            except EmbeddingServiceError as error:
                raise EmbeddingServiceError(
                    f"{error.message}: does {provider} run, and serve {model} for embeddings?", provider=provider
                ) from error
            if len(answer.vectors) != len(batch):
                raise EmbeddingServiceError(f"{provider} gave {len(answer.vectors)} vectors for {len(batch)} texts")
            vectors += answer.vectors
            progress(provider, len(batch))
    finally:
        await side.aclose()
    return vectors
