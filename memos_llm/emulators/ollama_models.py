"""Ollama's installed models: what each can do, how names are matched, and what the registry has to pull."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

_EMBEDDING = ("embedding",)
DEFAULT_CAPABILITIES: Mapping[str, tuple[str, ...]] = {
    "qwen3": ("completion", "tools", "thinking"),
    "gemma3": ("completion", "vision"),
    "llama3.2": ("completion", "tools"),
    "qwen2.5-coder": ("completion", "tools", "insert"),
    "gpt-oss": ("completion", "tools", "thinking"),
    **dict.fromkeys(("mxbai-embed-large", "nomic-embed-text", "all-minilm", "bge-m3"), _EMBEDDING),
}
_EMBEDDING_SIZES: Mapping[str, tuple[int, int]] = {  # trained context in tokens, numbers in a vector
    "mxbai-embed-large": (512, 1024),
    "nomic-embed-text": (2048, 768),
    "all-minilm": (512, 384),
    "bge-m3": (8192, 1024),
}
DEFAULT_MODELS = ("qwen3:8b", "gemma3:4b", "llama3.2:3b", "mxbai-embed-large")
PULLABLE = (*DEFAULT_MODELS, "qwen3:4b", "qwen2.5-coder:7b", "nomic-embed-text", "all-minilm", "gpt-oss:20b")
_NAME = re.compile(r"(?:[\w.:-]+/)?(?:[\w.-]+/)?[\w.-]+(?::[\w.-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """One installed model.

    Args:
        name: with or without tag. capabilities: completion, tools, insert, vision, embedding, thinking.
        context_length: trained length in tokens. family: architecture name.
        jinja: runs through llama-server's own template ("native path"): tool calls come in the final record.
        dimension: numbers in an embedding. load_s: seconds its load takes, None for the emulator's.
        source: name of the model whose file this one shares (a copy, or made from it), empty for its own.
    """

    name: str
    capabilities: tuple[str, ...] = ("completion", "tools")
    context_length: int = 40960
    family: str = "llama"
    jinja: bool = False
    dimension: int = 1024
    load_s: float | None = None
    source: str = ""

    @classmethod
    def named(cls, name: str) -> OllamaModel:
        """A model with the capabilities its family usually has; completion and tools for unknown families."""
        family = name.rsplit("/", 1)[-1].split(":")[0].lower()
        capabilities = DEFAULT_CAPABILITIES.get(family, ("completion", "tools"))
        context_length, dimension = _EMBEDDING_SIZES.get(family, (40960, 1024))
        return cls(name, capabilities, context_length, family=family, dimension=dimension)

    def copied(self, name: str) -> OllamaModel:
        """The same model under another name: one file, one digest, one runner (measured)."""
        return replace(self, name=name, source=self.source or self.short)

    @property
    def short(self) -> str:
        """The canonical short form, with its tag."""
        return _tagged(self.name)

    @property
    def qualified(self) -> str:
        """The full registry path, as capability errors show it."""
        prefix = {0: "registry.ollama.ai/library/", 1: "registry.ollama.ai/"}
        return prefix.get(self.short.count("/"), "") + self.short

    @property
    def digest(self) -> str:
        """A stable bare hex digest."""
        return hashlib.sha256((self.source or self.short).encode()).hexdigest()

    @property
    def namespace(self) -> str:
        """Who it belongs to on the registry."""
        return self.name.split("/")[-2] if "/" in self.name else "library"


def spelled_out(name: str) -> str:
    """A malformed name as an error shows it: with what it lacks."""
    *above, last = name.split("/")
    model, _, tag = last.partition(":")
    parts = [*("registry.ollama.ai", "library")[: max(0, 2 - len(above))], *above, model]
    return f"{'/'.join(part or '!MISSING!' for part in parts)}:{tag or 'latest'}"


def valid_name(name: str) -> bool:
    """Whether a model name is well-formed."""
    return _NAME.fullmatch(name) is not None


def canonical(name: str) -> str:
    """A name as the manifests are searched for it: lower case, with tag, without the default registry."""
    return _tagged(name.lower().removeprefix("registry.ollama.ai/").removeprefix("library/"))


def _tagged(name: str) -> str:
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


class Catalogue:
    """The installed models, newest first, and the names that can be pulled."""

    def __init__(self, models: Iterable[str | OllamaModel], pullable: Iterable[str] = PULLABLE) -> None:
        listed = [m if isinstance(m, OllamaModel) else OllamaModel.named(m) for m in models]
        self._models = {canonical(model.name): model for model in listed}
        self._pullable = {canonical(name): name for name in pullable}

    def find(self, name: str) -> OllamaModel | None:
        """The model of that name, None if it is not installed."""
        return self._models.get(canonical(name))

    def all(self) -> list[OllamaModel]:
        """Every model."""
        return list(self._models.values())

    def published(self, name: str) -> OllamaModel | None:
        """What a pull of that name would install, None if the registry does not have it."""
        known = self._pullable.get(canonical(name))
        return None if known is None else self.find(known) or OllamaModel.named(known)

    def add(self, model: OllamaModel) -> None:
        """Install a model, as the newest; an old one of that name is replaced."""
        others = {key: old for key, old in self._models.items() if key != canonical(model.name)}
        self._models = {canonical(model.name): model, **others}

    def remove(self, model: OllamaModel) -> None:
        """Delete a name."""
        self._models.pop(canonical(model.name), None)
