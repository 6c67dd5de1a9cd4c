"""The names of the migration report, accepted next to ours.

An alias may stand at the top level, in `routing`, or in the section that its setting lives in. It is resolved in each
source (file, environment) before the two are merged, so that the environment still wins over the file.
"""

from typing import Any

from memos_llm.config.document import Document, Key, dotted

COMPONENTS = ("classification", "analysis", "synthesis", "reflection", "evaluation", "verification", "embedding")

ALIASES: dict[str, Key] = {
    "primary_provider": ("baseline",),
    "fallback_provider": ("fallback",),
    "vllm_traffic_percentage": ("routing", "share"),
    "enable_shadow_mode": ("shadow", "enabled"),
    "shadow_provider": ("shadow", "provider"),
    "rollback_error_rate": ("rollback", "error_rate"),
    "rollback_latency_p95_ms": ("rollback", "latency_p95_ms"),
    "vllm_enabled": ("providers", "vllm", "enabled"),
} | {f"{component}_provider": ("routing", "components", component) for component in COMPONENTS}

MODEL_FALLBACKS = "model_fallbacks"  # a mapping: each entry is one model's `fallbacks`


def resolve(document: Document) -> None:
    """Move every alias to its setting, in place.

    Raises:
        ConfigError: an alias disagrees with the real key, or with another alias of it.
    """
    for alias, target in ALIASES.items():
        for home in homes(target):
            _move(document, (*home, alias), target)
    for home in ((), ("routing",), ("models",)):
        _move_model_fallbacks(document, (*home, MODEL_FALLBACKS))


def homes(target: Key) -> tuple[Key, ...]:
    """The sections that an alias of a setting may stand in."""
    return tuple(dict.fromkeys(((), ("routing",), target[:-1][:1])))


def _take(document: Document, key: Key) -> tuple[bool, Any]:
    if not document.has(key):
        return False, None
    return True, document.get(key[:-1]).pop(key[-1])


def _move(document: Document, alias: Key, target: Key) -> None:
    found, value = _take(document, alias)
    if found:
        _settle(document, alias, target, value)


def _move_model_fallbacks(document: Document, alias: Key) -> None:
    found, value = _take(document, alias)
    if not found:
        return
    if not isinstance(value, dict):
        raise document.error(alias, 'must be a mapping of model to its fallbacks, such as {"qwen3:8b": ["gemma3:4b"]}')
    for model, fallbacks in value.items():
        _settle(document, (*alias, model), ("models", model, "fallbacks"), fallbacks)


def _settle(document: Document, alias: Key, target: Key, value: Any) -> None:
    existing = document.get(target)
    if document.has(target) and not _same(existing, value):
        raise document.error(
            alias, f"{value!r} disagrees with {dotted(target)}: {existing!r}; they are one setting, keep one"
        )
    place = document.where(alias)
    spelt = dotted(alias)
    document.put(target, value, place if spelt in place.lower() else f"{place}: {spelt}" if place else spelt)


def _same(one: Any, other: Any) -> bool:
    return _normal(one) == _normal(other)


def _normal(value: Any) -> list[str]:
    return [str(item).lower() for item in (value if isinstance(value, list) else [value])]
