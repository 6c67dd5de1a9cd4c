"""A path that is passed on unread, as the inventory names it: what identifies one thing (a digest, an id) is left out.

So their number stays small, and nothing that a caller put into a path is kept but plain words.
"""

import re
from functools import lru_cache

BLANK = "…"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_WORDS = (
    "api v1 audio transcriptions translations speech images generations edits variations responses input_items "
    "input_tokens compact cancel messages count_tokens batches results files content fine_tuning jobs events "
    "checkpoints pause resume assistants threads runs steps submit_tool_outputs vector_stores search file_batches "
    "uploads parts complete moderations models chat completions embeddings conversations items videos realtime "
    "sessions evals containers rerank score pooling classify tokenize detokenize load_lora_adapter "
    "unload_lora_adapter blobs push pull create copy delete show tags ps version me signin signout user keys "
    "experimental web_search web_fetch status generate embed"
)
"""What paths of OpenAI's, Anthropic's, Ollama's and vLLM's APIs are made of."""

WORDS = frozenset(_WORDS.split())

_PLAIN = re.compile(r"[a-z][a-z_-]{0,23}")
MAX_SEGMENTS = 6


@lru_cache(maxsize=512)
def route_of(method: str, path: str) -> str:
    """`POST`, `/api/blobs/sha256:29fd…` → `POST /api/blobs/…`."""
    segments = path.split("?")[0].strip("/").split("/")
    named = [_named(place, segment) for place, segment in enumerate(segments[:MAX_SEGMENTS])]
    more = [BLANK] * (len(segments) > MAX_SEGMENTS)
    return f"{method if method in METHODS else 'OTHER'} /{'/'.join(named + more)}"


def _named(place: int, segment: str) -> str:
    """A route's own name may be one that we have never heard of; what follows it may be anybody's secret."""
    return segment if segment in WORDS or (place == 1 and _PLAIN.fullmatch(segment)) else BLANK
