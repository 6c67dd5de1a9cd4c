"""A valid configuration, and what the rest of the product is given of it: plain data, no settings."""

from functools import cached_property
from typing import Any

from msgspec import to_builtins

from memos_llm.config import limits, schema
from memos_llm.config.aliases import COMPONENTS
from memos_llm.config.checks import endpoints
from memos_llm.core.call import ModelSettings
from memos_llm.core.catalogue import Catalogue, Model, ProviderModel, canonical
from memos_llm.core.flags import PPM
from memos_llm.core.policy import (
    DEFAULT_COMPONENT,
    FOLLOW_SHARE,
    ComponentRule,
    Endpoint,
    Policy,
    ProviderSpec,
    Timeouts,
)
from memos_llm.dialects.codecs.repairs import BY_KIND

KIND_TIMEOUTS: dict[str, dict[str, float]] = {"vllm": {"ttft_s": 15.0}}  # Ollama has none: its loads take minutes


class Settings(schema.Root):
    """The whole configuration, checked. Its `repr`, `show` and error messages hold no secret."""

    def policy(self, generation: int = 0) -> Policy:
        """What routing reads. A disabled candidate is none; a pin to a disabled provider means the baseline."""
        return Policy(
            baseline=self.baseline,
            candidate=self.candidate if self.candidate and self._enabled(self.candidate) else None,
            fallback=tuple(name for name in self.fallback if self._enabled(name)),
            pins={
                component: self._pinned(value)
                for component, value in self.routing.components.items()
                if value != FOLLOW_SHARE
            },
            timeouts={spec.name: spec.timeouts for spec in self.provider_specs()},
            catalogue=self.catalogue(),
            common={name: ModelSettings(repairs=_repairs(entry)) for name, entry in self.providers.items()},
            total_s=self.timeouts.total_s,
            retries=self.retries,
            backoff_s=self.backoff_s,
            generation=generation,
            rules=self.component_rules(),
            guard=limits.guard(self.rollback),
        )

    def provider_specs(self) -> tuple[ProviderSpec, ...]:
        """The enabled providers, in the file's order."""
        return tuple(self._spec(name, entry) for name, entry in self.providers.items() if entry.enabled)

    def catalogue(self) -> Catalogue:
        """Every configured model, and every fallback that is not configured itself: such a one is where all are.

        Raises:
            ConfigError: two models own one name.
        """
        return self._catalogue

    def component_rules(self) -> tuple[ComponentRule, ...]:
        return tuple(
            ComponentRule(component=rule.component, model=rule.model, operation=rule.operation)
            for rule in self.routing.component_rules
        )

    def components(self) -> tuple[str, ...]:
        """Every component the configuration knows of: these never lose their metrics label."""
        named = (
            *self.routing.components,
            *(rule.component for rule in self.routing.component_rules),
            *(entry.component for entry in self.gateway.api_keys if entry.component),
        )
        return tuple(dict.fromkeys((DEFAULT_COMPONENT, *COMPONENTS, *named)))

    @property
    def share_ppm(self) -> int:
        """The share that a new store is seeded with, in parts per million."""
        return round(self.routing.share * PPM)

    @property
    def store_url(self) -> str:
        """The store's URL, its password included."""
        return self.store.get_secret_value()

    def show(self) -> dict[str, Any]:
        """The effective configuration as plain data for `config show`; secrets are `***`."""
        shown = self.model_dump(mode="json")
        for name, entry in self.providers.items():
            shown["providers"][name]["timeouts"] = to_builtins(self._timeouts(entry))
        shown["rollback"] |= limits.shown(self.rollback)
        return shown

    @cached_property
    def _catalogue(self) -> Catalogue:
        models = [self._model(name, entry) for name, entry in self.models.items()]
        owned = {canonical(name) for model in models for name in _names(model)}
        wanted = {canonical(name): name for model in models for name in model.fallbacks}
        implied = [self._model(name, schema.Model()) for key, name in wanted.items() if key not in owned]
        return Catalogue([*models, *implied])

    def _enabled(self, name: str) -> bool:
        return self.providers[name].enabled

    def _pinned(self, value: str) -> str:
        name = {"baseline": self.baseline, "candidate": self.candidate}.get(value, value)
        return name if name and self._enabled(name) else self.baseline

    def _spec(self, name: str, entry: schema.Provider) -> ProviderSpec:
        return ProviderSpec(
            name=name,
            kind=entry.kind,
            endpoints=tuple(Endpoint(server.url, server.models) for _, server in endpoints(name, entry)),
            api_key=entry.api_key.get_secret_value(),
            timeouts=self._timeouts(entry),
            max_inflight=entry.max_inflight,
            queue_s=entry.queue_s,
            model_prefix=entry.model_prefix,
            own_loads=entry.own_loads,
            native_chat=entry.native_chat,
            keep_warm=entry.keep_warm,
        )

    def _timeouts(self, entry: schema.Provider) -> Timeouts:
        """The provider's own word, else the general one, else its kind's, else ours."""
        general = {name: value for name, value in self.timeouts.model_dump().items() if value is not None}
        own = entry.timeouts.model_dump(exclude_unset=True)
        return Timeouts(**(KIND_TIMEOUTS.get(entry.kind, {}) | general | own))

    def _model(self, name: str, entry: schema.Model) -> Model:
        defaults = entry.defaults.model_dump(exclude_none=True)
        on, aliases = {}, list(entry.aliases)
        for provider in self.providers:
            own = self._name_on(provider, name, entry)
            if own is None:
                continue
            if self._enabled(provider):
                repairs = _repairs(self.providers[provider])
                settings = ModelSettings(own.thinking, own.split_think_tags, defaults, repairs)
                on[provider] = ProviderModel(own.name, settings)
            else:
                aliases.append(own.name)  # its name there still means this model
        return Model(name, on, tuple(aliases), entry.fallbacks)

    def _name_on(self, provider: str, name: str, entry: schema.Model) -> schema.ModelOnProvider | None:
        """Ollama and the baseline have every model under its logical name unless told otherwise; others when mapped."""
        if provider in entry.on:
            return entry.on[provider]
        implied = self.providers[provider].kind == "ollama" or provider == self.baseline
        return schema.ModelOnProvider(name=name) if implied else None


def _names(model: Model) -> tuple[str, ...]:
    return (model.name, *model.aliases, *(own.name for own in model.on.values()))


def _repairs(entry: schema.Provider) -> frozenset[str]:
    return BY_KIND.get(entry.kind, frozenset())
