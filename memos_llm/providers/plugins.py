"""Kinds of provider that are `LLMProvider`s: LiteLLM, and what other distributions bring.

A distribution names a factory in the entry point group `memos_llm.providers`; the entry's name is the kind. It is
loaded only when a provider of that kind is configured.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points

from memos_llm.core.errors import ConfigError
from memos_llm.core.policy import ProviderSpec
from memos_llm.core.ports import LLMProvider
from memos_llm.providers import litellm

GROUP = "memos_llm.providers"

Factory = Callable[[ProviderSpec], LLMProvider]
"""Makes a provider of what `providers.NAME` says: its name, kind, addresses, key and time limits. No I/O."""

BUILT_IN: Mapping[str, Factory] = {"litellm": litellm.from_spec}


def make(spec: ProviderSpec, known: tuple[str, ...] = ()) -> LLMProvider:
    """The provider of a configured kind. `known` are the kinds that need none of this, for the message.

    Raises:
        ConfigError: no distribution has the kind, or two do, or its factory fails; names it and the cause.
    """
    built_in = BUILT_IN.get(spec.kind)
    if built_in is not None:
        return built_in(spec)
    entry = _entry(spec, known)
    factory = _loaded(spec, entry)
    try:
        made = factory(spec)
    except Exception as error:  # a third party's code: whatever it raises is a configuration that does not work
        raise _wrong(spec, entry, f"could not be made: {_said(error, spec)}") from error
    if not isinstance(made, LLMProvider):
        lacking = [name for name in _FACE if not hasattr(made, name)]
        raise _wrong(spec, entry, f"made a {type(made).__name__}, which lacks {', '.join(lacking)}")
    return made


_FACE = ("name", "generate", "chat", "stream", "embed", "aclose")


def _entry(spec: ProviderSpec, known: tuple[str, ...]) -> EntryPoint:
    installed = entry_points(group=GROUP)
    found = [entry for entry in installed if entry.name == spec.kind]
    if not found:
        choices = dict.fromkeys((*known, *BUILT_IN, *(entry.name for entry in installed)))
        raise ConfigError(f"providers.{spec.name}.kind: {spec.kind!r} is not known; choices: {', '.join(choices)}")
    if len({entry.value for entry in found}) > 1:
        owners = ", ".join(sorted(_owner(entry) for entry in found))
        raise ConfigError(f"providers.{spec.name}.kind: {spec.kind!r} is claimed by several: {owners}; uninstall one")
    return found[0]


def _loaded(spec: ProviderSpec, entry: EntryPoint) -> Factory:
    try:
        factory = entry.load()
    except Exception as error:  # a stranger's module may raise anything on import: its provider is named
        raise _wrong(spec, entry, f"could not be loaded: {_said(error, spec)}") from error
    if not callable(factory):
        raise _wrong(spec, entry, "is not callable: a factory (spec) -> LLMProvider is wanted")
    return factory  # type: ignore[no-any-return]  # what it returns is looked at above


def _wrong(spec: ProviderSpec, entry: EntryPoint, what: str) -> ConfigError:
    return ConfigError(f"providers.{spec.name}.kind: the plug-in {entry.name} ({_owner(entry)}) {what}")


def _owner(entry: EntryPoint) -> str:
    """`acme_llm:make of acme-llm 1.0`."""
    return entry.value if entry.dist is None else f"{entry.value} of {entry.dist.name} {entry.dist.version}"


def _said(error: Exception, spec: ProviderSpec) -> str:
    """An exception in one line; a factory may quote the key that it was given."""
    text = f"{type(error).__name__}: {error}".replace("\n", " ")
    return text.replace(spec.api_key, "***") if spec.api_key else text
