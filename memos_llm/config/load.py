"""Find the file, and the order in which sources become settings. The only place here that touches the disk."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from memos_llm.config import aliases, checks, environment
from memos_llm.config.document import Document, read_yaml
from memos_llm.config.environment import DEFAULT_PORTS
from memos_llm.config.problems import from_validation
from memos_llm.config.settings import Settings
from memos_llm.config.substitute import substitute, unsaid
from memos_llm.core.errors import ConfigError

SEARCH_PATHS = ("config/memos_llm.yaml", "~/.config/memos_llm/memos_llm.yaml")
VARIABLE = "MEMOS_LLM_CONFIG"
DEFAULT_URLS = {kind: f"http://localhost:{port}" for kind, port in DEFAULT_PORTS.items()}  # when none is configured


def find(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file in force: `MEMOS_LLM_CONFIG`, else the first of `SEARCH_PATHS` that is there, else None."""
    if environ.get(VARIABLE):
        return expanded(environ[VARIABLE], environ)
    places = (expanded(place, environ) for place in SEARCH_PATHS)
    return next((place for place in places if place.is_file()), None)


def load(path: Path | str | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the configuration.

    Args:
        path: the file; None searches (`find`), and finding none means the built-in defaults.
        environ: the variables that substitute, override and fill in.

    Raises:
        ConfigError: one line for each thing that is wrong, with place, dotted key and choices.
    """
    found = find(environ) if path is None else expanded(str(path), environ)
    if found is None:
        return parse(b"", environ)
    try:
        data = found.read_bytes()
    except OSError as error:
        by = f" (named by {VARIABLE})" if path is None and environ.get(VARIABLE) else ""
        raise ConfigError(f"{found}{by}: cannot be read: {error.strerror or type(error).__name__}") from None
    return parse(data, environ, str(found))


def parse(data: bytes, environ: Mapping[str, str], name: str = "") -> Settings:
    """Settings from a file's bytes and an environment, and from nothing else; `name` is what errors call the file.

    Raises:
        ConfigError: as `load`; what a variable holds is not repeated, for it may be a key in the wrong place.
    """
    try:
        return _parse(data, environ, name)
    except ConfigError as error:
        raise ConfigError(unsaid(error.message, data, environ)) from None


def _parse(data: bytes, environ: Mapping[str, str], name: str) -> Settings:
    document = read_yaml(data, name)
    substitute(document, environ)
    builtin = not document.tree.get("providers")
    if builtin:
        document.tree["providers"] = {kind: {"kind": kind} for kind in DEFAULT_URLS}
    aliases.resolve(document)
    environment.overlay(document, environ)
    environment.fill_conventional(document, environ)
    _fill(document, builtin)
    return _validated(document)


def _validated(document: Document) -> Settings:
    try:
        settings = Settings.model_validate(document.tree)
    except ValidationError as error:
        raise from_validation(error, document) from None
    checks.run(settings, document)
    try:
        settings.catalogue()
    except ConfigError as error:
        raise ConfigError(": ".join(part for part in (document.where(("models",)), str(error)) if part)) from None
    return settings


def _fill(document: Document, builtin: bool) -> None:
    """The defaults that depend on what is configured."""
    tree, providers = document.tree, document.tree["providers"]
    if not isinstance(providers, dict):
        raise document.error(("providers",), "must be a mapping of name to provider")
    for name in providers:
        providers[name] = {} if providers[name] is None else providers[name]
        _fill_provider(name, providers[name], builtin)
    tree["baseline"] = tree.get("baseline") or _only("ollama", providers)
    if tree["baseline"] is None:
        raise document.error(("baseline",), f"is required: the provider you come from; choices: {', '.join(providers)}")
    if "candidate" not in tree and "vllm" in providers and tree["baseline"] != "vllm":
        tree["candidate"] = "vllm"
    if "fallback" not in tree:
        tree["fallback"] = [tree["baseline"]]


def _fill_provider(name: str, entry: Any, builtin: bool) -> None:
    if not isinstance(entry, dict):
        return
    entry["kind"] = environment.kind_of(name, entry)
    if entry.get("base_url") == "":
        entry["base_url"] = None  # "${VLLM_BASE_URL:-}" of a variable that is not set
    if builtin and name in DEFAULT_URLS and not entry.get("base_url") and not entry.get("endpoints"):
        entry["base_url"] = DEFAULT_URLS[name]


def _only(preferred: str, providers: dict[str, Any]) -> str | None:
    if preferred in providers:
        return preferred
    return next(iter(providers)) if len(providers) == 1 else None


def expanded(place: str, environ: Mapping[str, str]) -> Path:
    """A path with `~` as that environment means it."""
    if place.startswith("~/") and environ.get("HOME"):
        return Path(environ["HOME"]) / place[2:]
    return Path(place).expanduser()
