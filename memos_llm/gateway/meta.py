"""What is never split: lists of models and the version. The baseline's own answer joined with the catalogue.

While the baseline is down its last good answer is given; a model of the catalogue that the baseline does not list
(one that only the candidate serves) is added.
"""

import asyncio
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from memos_llm.core.catalogue import Model, canonical
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.policy import Policy
from memos_llm.core.ports import Transport

FALLBACK_VERSION = "0.17.4"  # a real Ollama release: clients switch features on by it
LAST_GOOD_AFTER_S = 2.0  # a list that is a little old now is better than a fresh one too late
_DETAILS = {
    "parent_model": "",
    "format": "safetensors",
    "family": "",
    "families": [],
    "parameter_size": "",
    "quantization_level": "",
}


class Meta:
    """Answers `/v1/models`, `/api/tags` and `/api/version`."""

    def __init__(self, policy: Callable[[], Policy], baseline: Callable[[], Transport], started_at: float) -> None:
        self._policy, self._baseline = policy, baseline
        self._started_at = started_at
        self._last_good: dict[str, dict[str, Any]] = {}

    async def models(self) -> dict[str, Any]:
        """OpenAI's list. `data` is a list even where Ollama says null."""
        answer = await self._ask("/v1/models") or {}
        listed = _entries(answer, "data")
        listed += [
            {"id": name, "object": "model", "created": int(self._started_at), "owned_by": "memos_llm"}
            for name in self._missing({canonical(str(entry.get("id", ""))) for entry in listed})
        ]
        return {"object": "list", "data": listed}

    async def tags(self) -> dict[str, Any]:
        """Ollama's list of local models."""
        answer = await self._ask("/api/tags") or {}
        listed = _entries(answer, "models")
        listed += [
            self._tag(name) for name in self._missing({canonical(str(entry.get("name", ""))) for entry in listed})
        ]
        return {"models": listed}

    async def version(self) -> dict[str, Any]:
        answer = await self._ask("/api/version")
        return answer if answer and "version" in answer else {"version": FALLBACK_VERSION}

    async def _ask(self, path: str) -> dict[str, Any] | None:
        """The baseline's document, its last good one when it does not answer, None when it never did."""
        baseline = self._baseline()
        key = f"{baseline.name} {path}"
        try:
            async with asyncio.timeout(LAST_GOOD_AFTER_S if key in self._last_good else None):
                self._last_good[key] = msgspec.json.decode(await baseline.fetch(path), type=dict[str, Any])
        except (AttemptFailed, TimeoutError, msgspec.DecodeError):
            return self._last_good.get(key)
        return self._last_good[key]

    def _missing(self, listed: set[str]) -> list[str]:
        """Catalogue models that some provider other than the baseline serves and the baseline did not list."""
        policy = self._policy()
        return [
            model.name
            for model in policy.catalogue.models.values()
            if any(provider != policy.baseline for provider in model.on) and not listed & _names(model)
        ]

    def _tag(self, name: str) -> dict[str, Any]:
        spelt = name if ":" in name else f"{name}:latest"
        started = datetime.fromtimestamp(self._started_at, UTC).isoformat().replace("+00:00", "Z")
        return {
            "name": spelt,
            "model": spelt,
            "modified_at": started,
            "size": 0,
            "digest": hashlib.sha256(spelt.encode()).hexdigest(),
            "details": _DETAILS,
        }


def _entries(answer: dict[str, Any], key: str) -> list[dict[str, Any]]:
    listed = answer.get(key)
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def _names(model: Model) -> set[str]:
    return {canonical(name) for name in (model.name, *model.aliases, *(own.name for own in model.on.values()))}
