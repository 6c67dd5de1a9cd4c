"""A model that Ollama does not have, described as Ollama (and OpenAI) would describe it."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from msgspec import Struct

from memos_llm.core.catalogue import Model, is_embedding
from memos_llm.core.decision import Offer

ARCHITECTURE = "unknown"  # of the model; clients take it as the prefix of further keys
FOREVER = timedelta(days=106_751)  # what Ollama's own "forever" comes to: the longest duration of Go
DETAILS = {
    "parent_model": "",
    "format": "safetensors",
    "family": "",
    "families": [],
    "parameter_size": "",
    "quantization_level": "",
}


class Card(Struct, frozen=True, kw_only=True):
    """What is known of a model: `context_tokens` None when its server did not say; `up`: it would answer now."""

    name: str
    started_at: float
    context_tokens: int | None
    capabilities: tuple[str, ...]
    up: bool

    @classmethod
    def of(cls, model: Model, provider: str, offer: Offer, started_at: float) -> Self:
        own = model.on[provider]
        chat = ("completion", "tools") + (("thinking",) if own.settings.thinking else ())
        return cls(
            name=model.name,
            started_at=started_at,
            context_tokens=offer.context_tokens,
            capabilities=("embedding",) if is_embedding(own.name) else chat,
            up=offer.refused is None and bool(offer.wires) and offer.listed,
        )

    @property
    def spelt(self) -> str:
        """As Ollama spells names: with a tag."""
        return self.name if ":" in self.name else f"{self.name}:latest"


def as_openai(card: Card) -> dict[str, Any]:
    entry = {"id": card.name, "object": "model", "created": int(card.started_at), "owned_by": "memos_llm"}
    return entry if card.context_tokens is None else {**entry, "max_model_len": card.context_tokens}


def as_tag(card: Card) -> dict[str, Any]:
    return {**_common(card), "modified_at": _time(card), "capabilities": card.capabilities}


def as_loaded(card: Card) -> dict[str, Any]:
    loaded = {"expires_at": _time(card, FOREVER), "size_vram": 0, "context_length": card.context_tokens or 0}
    return {**_common(card), **loaded}


def as_shown(card: Card) -> dict[str, Any]:
    info: dict[str, Any] = {"general.architecture": ARCHITECTURE, "general.basename": card.name}
    if card.context_tokens is not None:
        info[f"{ARCHITECTURE}.context_length"] = card.context_tokens
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": DETAILS,
        "model_info": info,
        "capabilities": card.capabilities,
        "modified_at": _time(card),
    }


def _common(card: Card) -> dict[str, Any]:
    digest = hashlib.sha256(card.spelt.encode()).hexdigest()
    return {"name": card.spelt, "model": card.spelt, "size": 0, "digest": digest, "details": DETAILS}


def _time(card: Card, after: timedelta = timedelta()) -> str:
    return (datetime.fromtimestamp(card.started_at, UTC) + after).isoformat().replace("+00:00", "Z")
