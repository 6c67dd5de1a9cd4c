"""From the file's `rollback` to what the guard holds providers to: overrides filled up, milliseconds made seconds."""

from collections.abc import Mapping
from typing import Any

from memos_llm.config import schema
from memos_llm.core.policy import GuardPolicy, Limits, Signal


def guard(rules: schema.RollbackRules) -> GuardPolicy:
    """What is in force. Each override is whole: what it leaves out is the base's."""
    return GuardPolicy(
        enabled=rules.enabled,
        default=_limits(_said(rules)),
        providers=_filled(rules, rules.providers),
        components=_filled(rules, rules.components),
        models=_filled(rules, rules.models),
    )


def shown(rules: schema.RollbackRules) -> dict[str, dict[str, Any]]:
    """The overrides as they are in force, for `config show`."""
    base = _said(rules)
    overrides = {"providers": rules.providers, "components": rules.components, "models": rules.models}
    return {
        kind: {name: base | one.model_dump(mode="json", exclude_unset=True) for name, one in named.items()}
        for kind, named in overrides.items()
    }


def _said(rules: schema.Limits) -> dict[str, Any]:
    return rules.model_dump(mode="json", include=set(schema.Limits.model_fields))


def _filled(rules: schema.RollbackRules, overrides: Mapping[str, schema.Limits]) -> dict[str, Limits]:
    base = _said(rules)
    return {name: _limits(base | one.model_dump(mode="json", exclude_unset=True)) for name, one in overrides.items()}


def _limits(said: Mapping[str, Any]) -> Limits:
    rest = dict(said)
    latency_ms, signal = rest.pop("latency_p95_ms"), rest.pop("latency_signal")
    latency_s = None if latency_ms is None else latency_ms / 1000
    return Limits(latency_p95_s=latency_s, signal=Signal(signal), **rest)
