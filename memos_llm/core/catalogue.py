"""Which names a model has: the caller's, its aliases, and each provider's own.

`resolve` knows no I/O and never guesses: a name that nobody owns is None and stays with the baseline, as spelt.
"""

import re
from collections.abc import Iterable, Mapping

from msgspec import Struct

from memos_llm.core.call import ModelSettings, Target
from memos_llm.core.errors import ConfigError


class ProviderModel(Struct, frozen=True):
    """A model on one provider: its name there and how to talk to it."""

    name: str
    settings: ModelSettings = ModelSettings()


class Model(Struct, frozen=True):
    """A logical model.

    Attributes:
        on: provider → its own name; a provider that is missing does not have the model.
        fallbacks: logical names tried when no provider answers for this one.
    """

    name: str
    on: Mapping[str, ProviderModel]
    aliases: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()

    def target(self, provider: str) -> Target | None:
        own = self.on.get(provider)
        return None if own is None else Target(provider, own.name, own.settings)


class Catalogue:
    """All configured models, by every name they go by (case-insensitive, `X` = `X:latest`).

    Raises:
        ConfigError: two models own one name, or a fallback names no model.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self.models: Mapping[str, Model] = {model.name: model for model in models}
        self._by_name: dict[str, Model] = {}
        for model in self.models.values():
            for name in (model.name, *model.aliases, *(own.name for own in model.on.values())):
                self._own(canonical(name), model, name)
        for model in self.models.values():
            for fallback in model.fallbacks:
                if self.resolve(fallback) is None:
                    raise ConfigError(
                        f"models.{model.name}.fallbacks: {fallback!r} is not a configured model; "
                        f"choices: {', '.join(self.models)}"
                    )

    def resolve(self, name: str) -> Model | None:
        """The model a name belongs to, or None."""
        return self._by_name.get(name) or self._by_name.get(canonical(name))

    def _own(self, key: str, model: Model, spelt: str) -> None:
        owner = self._by_name.setdefault(key, model)
        if owner is not model:
            raise ConfigError(f"models: the name {spelt!r} belongs to both {owner.name!r} and {model.name!r}")


_EMBEDDING = re.compile(r"embed|minilm|\b(bge|e5|gte)-")


def is_embedding(name: str) -> bool:
    """Whether it is named like a model for embeddings; nothing else tells before one is asked."""
    return bool(_EMBEDDING.search(name.lower()))


def canonical(name: str) -> str:
    """The form in which names are compared: lower case, without Ollama's default tag."""
    return name.lower().removesuffix(":latest")
