"""The environment as a source: `MEMOS_LLM_…` (nested with `__`) over the file, conventional variables under it.

A part of a variable's name finds an existing key whatever its case and punctuation: `MODELS__QWEN3_8B` is `qwen3:8b`.
Values are text, or JSON when they begin with `{` or `[`, or `null`; an empty variable counts as not set.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from memos_llm.config import aliases
from memos_llm.config.document import Document, Key, Tree
from memos_llm.config.urls import normalise
from memos_llm.core.errors import ConfigError

PREFIX = "MEMOS_LLM_"
RESERVED = frozenset({"CONFIG", "GATEWAY_URL", "ADMIN_TOKEN"})  # of the programs, not settings
# Kubernetes gives every pod these for a Service called memos-llm or memos-llm-…
_SERVICE_LINK = re.compile(r"(.+_)?(SERVICE_(HOST|PORT)(_.+)?=.*|PORT_\d+_(TCP|UDP|SCTP)(_.+)?=.*|PORT=\w+://.*)")
_INSTEAD_OF = {"base_url": "endpoints", "endpoints": "base_url"}  # two ways to say one thing: the later source's counts

DEFAULT_PORTS = {"ollama": 11434, "vllm": 8000}


class Convention(NamedTuple):
    """Variables that other tools read too; they fill a provider's field when nobody else did."""

    kind: str
    field: str
    variables: tuple[str, ...]


CONVENTIONS = (
    Convention("ollama", "base_url", ("OLLAMA_BASE_URL", "OLLAMA_HOST")),
    Convention("vllm", "base_url", ("VLLM_BASE_URL",)),
    Convention("vllm", "api_key", ("VLLM_API_KEY",)),
)


def overlay(document: Document, environ: Mapping[str, str]) -> None:
    """Lay the `MEMOS_LLM_…` variables over a document, in place.

    Raises:
        ConfigError: a value that is not JSON but begins like it, or variables that contradict each other.
    """
    source = Document()
    for variable in sorted(environ):
        rest = variable.removeprefix(PREFIX)
        if rest != variable and environ[variable] and _is_setting(rest, environ[variable]):
            key = _key(rest, document.tree)
            source.put(key, _value(variable, environ[variable]), f"environment variable {variable}")
    aliases.resolve(source)
    _merge(document.tree, source.tree)
    document.origins |= source.origins


def _is_setting(rest: str, value: str) -> bool:
    return rest not in RESERVED and ("__" in rest or not _SERVICE_LINK.fullmatch(f"{rest}={value}"))


def _key(rest: str, tree: Tree) -> Key:
    """The dotted key that a variable means, with the spelling of the keys that are there."""
    key: list[str] = []
    holder: Any = tree
    for part in rest.lower().split("__"):
        known = {_folded(name): name for name in holder} if isinstance(holder, dict) else {}
        key.append(known.get(_folded(part), part))
        holder = holder.get(key[-1]) if isinstance(holder, dict) else None
    return tuple(key)


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def _value(variable: str, text: str) -> Any:
    text = text.strip()
    if text == "null":
        return None
    if not text.startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(f"environment variable {variable}: begins like JSON but is not") from None


def _merge(base: Tree, over: Tree) -> None:
    for name, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            _merge(base[name], value)
            continue
        base[name] = value
        if name in _INSTEAD_OF and _INSTEAD_OF[name] not in over:
            base.pop(_INSTEAD_OF[name], None)


def fill_conventional(document: Document, environ: Mapping[str, str]) -> None:
    """Give providers what the conventional variables say, where the configuration leaves it open.

    Raises:
        ConfigError: a variable that holds no address.
    """
    for convention in CONVENTIONS:
        provider = _owner(document.get(("providers",)), convention.kind)
        variable = next((name for name in convention.variables if environ.get(name)), None)
        if provider is None or variable is None or not _is_open(document, provider, convention.field):
            continue
        key = ("providers", provider, convention.field)
        origin = f"environment variable {variable}"
        try:
            document.put(key, _conventional(convention, environ[variable]), origin)
        except ValueError as error:
            raise ConfigError(f"{origin}: {error}") from None


def _conventional(convention: Convention, text: str) -> str:
    if convention.field == "base_url":
        return normalise(text, DEFAULT_PORTS[convention.kind])
    return text


def _owner(providers: Any, kind: str) -> str | None:
    """The provider that a kind's variables are about: the one named like it, else the only one of that kind."""
    if not isinstance(providers, dict):
        return None
    ours = [name for name, entry in providers.items() if kind_of(name, entry) == kind]
    if kind in ours:
        return kind
    return ours[0] if len(ours) == 1 else None


def kind_of(name: str, entry: Any) -> Any:
    """A provider's kind; one that does not say is of the kind it is named after."""
    return (entry.get("kind") if isinstance(entry, dict) else None) or name


def _is_open(document: Document, provider: str, field: str) -> bool:
    if field == "base_url":
        return not any(document.get(("providers", provider, name)) for name in ("base_url", "endpoints"))
    return document.get(("providers", provider, field)) is None
