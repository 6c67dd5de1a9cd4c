"""What is logged of each event: its level, the line's name, and its fields. Pure.

Names that callers make up are cut to a length that cannot flood; what anybody wrote in free text is never told.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from memos_llm.core.commands import shares
from memos_llm.core.events import (
    BreakerChanged,
    ConfigChanged,
    ConfigRejected,
    Event,
    FellBack,
    FlagsChanged,
    GuardBlind,
    GuardSaid,
    IncidentOpened,
    InternalError,
    KeyConcentrated,
    ProbeEnded,
    RequestEnded,
    RequestRefused,
    RollbackHeld,
    StoreState,
)
from memos_llm.core.verdicts import Evaluation, Verdict
from memos_llm.telemetry.webhooks import WebhookTried

Level = Literal["info", "warning", "error"]
Line = tuple[Level, str, dict[str, Any]]

MAX_NAME = 200


def _request(event: RequestEnded) -> Line:
    decision, outcome, usage = event.decision, event.outcome, event.usage
    fields = {
        "request_id": event.request_id,
        "provider": event.provider,
        "arm": decision.arm.value,
        "reason": decision.reason.value,
        "component": _short(event.component),
        "model": _short(event.model),
        "operation": event.operation.value,
        "outcome": outcome.kind.value,
        "code": outcome.code or None,
        "status": outcome.status or None,
        "attempts": event.attempts,
        "stream": event.stream,
        "duration_ms": _ms(event.duration_s),
        "ttft_ms": _ms(event.ttft_s),
        "tpot_ms": _ms(event.tpot_s),
        "input_tokens": usage.input_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "warnings": len(event.warnings) or None,
        "epoch": decision.epoch,
        "revision": decision.revision,
    }
    return "warning" if outcome.rule.counts_against_arm else "info", "request", fields


def _refused(event: RequestRefused) -> Line:
    fields = {"request_id": event.request_id, "status": event.status, "error": event.error_name}
    return "info", "refused", fields | {"code": event.error_code}


def _fell_back(event: FellBack) -> Line:
    fields = {"request_id": event.request_id, "from": event.from_provider, "to": event.to_provider}
    return "warning", "fallback", fields | {"reason": event.reason}


def _flags(event: FlagsChanged) -> Line:
    flags = event.flags
    latched = [name for name, scope in flags.scopes.items() if scope.latch is not None]
    fields = {"revision": flags.revision, "shares": shares(flags), "latched": latched}
    return "warning" if latched else "info", "flags", fields


def _breaker(event: BreakerChanged) -> Line:
    level: Level = "info" if event.state == "closed" else "warning"
    return level, "breaker", {"provider": event.provider, "endpoint": event.endpoint, "state": event.state}


def _probe(event: ProbeEnded) -> Line:
    level: Level = "info" if event.up else "warning"
    fields: dict[str, Any] = {"provider": event.provider, "endpoint": event.endpoint, "up": event.up}
    if event.failure:
        fields["failure"] = event.failure
    return level, "provider", fields


def _store(event: StoreState) -> Line:
    level: Level = "info" if event.reachable and not event.regressed else "error"
    fields = {"reachable": event.reachable, "regressed": event.regressed, "detail": event.detail or None}
    return level, "store", fields


def _concentrated(event: KeyConcentrated) -> Line:
    return "warning", "key-concentrated", {"key_hmac": event.fingerprint, "share": round(event.share, 3)}


class LibraryWarned(Event, frozen=True, kw_only=True):
    """A library logged a warning or an error: which logger, where in its source, the error's type, constant words."""

    logger: str
    where: str
    error: str = ""
    text: str = ""


def _library(event: LibraryWarned) -> Line:
    fields = {"logger": event.logger, "where": event.where, "error": event.error or None, "text": event.text or None}
    return "warning", "library", fields


def _incident(event: IncidentOpened) -> Line:
    incident = event.incident
    fields = {
        "incident": incident.id,
        "provider": incident.provider,
        "scope": _short(incident.scope),
        "also": [_short(name) for name in incident.also] or None,
        "trigger": incident.trigger,
        "rule": _short(incident.rule) or None,
        "n": incident.n,
        "k": incident.k,
        "limit": incident.limit,
        "shares_before": incident.shares_before,
        "shares_after": incident.shares_after,
        "actor": incident.actor,
        "epoch": incident.epoch,
        "revision": incident.revision,
    }
    return "error", "rollback", fields


def _held(event: RollbackHeld) -> Line:
    fields = {"provider": event.provider, "scope": _short(event.scope), "trigger": event.trigger, "why": event.why}
    return "warning", "rollback-held", fields | {"detail": _short(event.detail) or None}


def _blind(event: GuardBlind) -> Line:
    level: Level = "warning" if event.what else "info"
    return level, "guard-blind", {"what": event.what or "nothing any more", "detail": event.detail or None}


class VerdictChanged(Event, frozen=True, kw_only=True):
    """How a rule stands has changed: see `standing`."""

    evaluation: Evaluation


TOLD = frozenset({Verdict.FAIL, Verdict.ERROR})
ALERT = "unsure-over"
"""The reason of what is over its limit surely enough to be told, and not to be acted upon."""
IN_DOUBT = frozenset({"unsure", "unresolved"})


def standing(said: Evaluation, before: str) -> str:
    """How a rule stands, where that is told when it comes and when it goes: it fires, could not be evaluated, or is an
    alert, which is over once the rule is kept, so that it does not come and go with each request. Else nothing.
    """
    if said.verdict in TOLD:
        return said.verdict
    if said.reason == ALERT or (before == ALERT and said.reason in IN_DOUBT):
        return ALERT
    return ""


def _verdict(event: VerdictChanged) -> Line:
    said = event.evaluation
    fields = {
        "provider": said.sum.provider,
        "component": _short(said.sum.component) or None,
        "model": _short(said.sum.model) or None,
        "trigger": said.trigger.value,
        "verdict": said.verdict.value,
        "reason": said.reason,
        "rule": _short(said.text) or None,
        "n": said.n,
        "k": said.k,
        "limit": said.limit,
    }
    return "warning" if standing(said, "") else "info", "verdict", fields


def _webhook(event: WebhookTried) -> Line:
    level: Level = "info" if event.result == "delivered" else "warning" if event.result == "failed" else "error"
    fields = {"host": event.host or None, "incident": event.incident, "result": event.result, "tries": event.tries}
    how = {"status": event.status or None, "error": event.error or None, "took_ms": _ms(event.took_s)}
    return level, "webhook", fields | how


def _config(event: ConfigChanged) -> Line:
    level: Level = "warning" if event.waiting else "info"
    fields = {"path": event.path, "changed": event.changed, "generation": event.generation}
    return level, "config", fields | {"providers": event.providers, "needs_restart": event.waiting or None}


def _config_rejected(event: ConfigRejected) -> Line:
    return "error", "config-rejected", {"path": event.path, "kept": "the one in force", "errors": event.errors}


def _internal_error(event: InternalError) -> Line:
    return "error", "internal-error", {"part": event.part, "error": event.error, "where": event.where or None}


LINES: Mapping[type[Event], Callable[[Any], Line]] = {
    RequestEnded: _request,
    RequestRefused: _refused,
    FellBack: _fell_back,
    FlagsChanged: _flags,
    BreakerChanged: _breaker,
    ProbeEnded: _probe,
    StoreState: _store,
    KeyConcentrated: _concentrated,
    ConfigChanged: _config,
    ConfigRejected: _config_rejected,
    InternalError: _internal_error,
    WebhookTried: _webhook,
    IncidentOpened: _incident,
    RollbackHeld: _held,
    GuardBlind: _blind,
    VerdictChanged: _verdict,
    LibraryWarned: _library,
}
HEARD: tuple[type[Event], ...] = (*LINES, GuardSaid)
"""The events to subscribe to: what the guard says each second has a line only where a verdict changes."""


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _short(name: str) -> str:
    """Names that a caller makes up, at a length that cannot flood."""
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…"
