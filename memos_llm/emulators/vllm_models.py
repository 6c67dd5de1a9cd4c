"""The names a vLLM server answers to: one base model under several names, and its LoRA adapters.

Decides which name an answer carries: the first served name whatever alias was asked for, or the adapter's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from memos_llm.emulators import answers
from memos_llm.emulators.vllm_requests import Rejection
from memos_llm.emulators.vllm_versions import Release


class Served:
    """The names of one server.

    Args:
        names: `--served-model-name`, the first is shown. loras: `--lora-modules`, names alone.
        max_model_len: tokens, of the base model.
    """

    def __init__(self, names: Iterable[str], loras: Iterable[str], max_model_len: int, release: Release) -> None:
        self.names, self.loras = tuple(names), tuple(loras)
        self._max_model_len, self._release = max_model_len, release
        if not self.names:
            raise ValueError("a server has one model at least: give it a name")

    @property
    def first(self) -> str:
        """The name in every answer of the base model."""
        return self.names[0]

    def shown(self, asked: str | None, param: str | None = "model") -> str:
        """The name that the answer to a request for `asked` carries; none at all means the base model.

        Raises:
            Rejection: 404, no such model.
        """
        if not asked or asked in self.names:
            return self.first
        if asked in self.loras:
            return asked
        text = f"The model `{asked}` does not exist."
        if param is not None and self._release.has("aliases in the unknown model text"):
            text = f"{text} Valid aliases: {', '.join((*self.names, *self.loras))}."
        raise Rejection(404, "NotFoundError", text, param)

    def cards(self, now: int) -> list[dict[str, Any]]:
        """What `/v1/models` lists: the names in their order, then the adapters."""
        base = [_card(name, self.first, None, self._max_model_len, now) for name in self.names]
        return base + [_card(name, f"/adapters/{name}", self.first, None, now) for name in self.loras]


def _card(name: str, root: str, parent: str | None, max_model_len: int | None, now: int) -> dict[str, Any]:
    permission = {
        "id": f"modelperm-{answers.token_id(name):016x}",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": now,
        "owned_by": "vllm",
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
        "permission": [permission],
    }
