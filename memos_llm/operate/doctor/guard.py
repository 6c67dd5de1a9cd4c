"""The guard: is it on, does the baseline itself keep the limits, is anybody told?"""

from collections.abc import Iterator

from memos_llm.core.policy import Limits
from memos_llm.operate.doctor.checks import Check, Group, listed
from memos_llm.operate.doctor.facts import Facts
from memos_llm.operate.documents import WindowState
from memos_llm.operate.guarding import in_words

GROUP = Group("guard")


def enabled(facts: Facts) -> Iterator[Check]:
    settings = facts.settings
    if settings is None or settings.candidate is None:
        return
    limits = settings.policy().guard.of(settings.candidate)
    if not settings.rollback.enabled:
        yield GROUP.warn(
            "guard.enabled", "rollback.enabled is false: nothing rolls back by itself", "set it to true before a shift"
        )
    elif _all_off(limits):
        yield GROUP.warn(
            "guard.enabled", "every limit of rollback is null: nothing rolls back by itself", "give error_rate at least"
        )
    else:
        yield GROUP.ok("guard.enabled", f"{settings.candidate} goes back at {in_words(limits)}")


def _all_off(limits: Limits) -> bool:
    given = (limits.error_rate, limits.latency_p95_s, limits.consecutive_timeouts, limits.health_failures)
    return all(limit is None for limit in given)


def fit(facts: Facts) -> Iterator[Check]:
    """A limit that the baseline does not keep says nothing of the candidate."""
    settings = facts.settings
    if settings is None or not settings.rollback.enabled:
        return
    mine = [one for one in _windows(facts) if one.provider == settings.baseline and not one.model]
    judged = [one for one in mine if one.reason not in ("no-data", "too-few")]
    for one in judged:
        yield from _fit(one)
    if not judged:
        yield GROUP.skipped("guard.fit", f"too few requests of {settings.baseline} were seen to try the limits on it")
    elif not any(_beyond(one) for one in judged):
        yield GROUP.ok("guard.fit", f"{settings.baseline} itself is within the limits")


def _fit(one: WindowState) -> Iterator[Check]:
    for setting, value, limit in _beyond(one):
        place = f"component {one.component}" if one.component else "everything"
        yield GROUP.warn(
            f"guard.fit.{one.component or 'all'}.{setting}",
            f"{one.provider} itself is beyond rollback.{setting} ({place}): {value}, and the limit is {limit}",
            "mend the baseline, or raise the limit: nothing is rolled back to a baseline that is as bad",
        )


def _beyond(one: WindowState) -> list[tuple[str, str, str]]:
    found = []
    if one.error_rate is not None and one.error_limit is not None and one.error_rate > one.error_limit:
        found.append(("error_rate", f"{one.error_rate * 100:.3g}%", f"{one.error_limit * 100:g}%"))
    if one.p95_ms is not None and one.p95_limit_ms is not None and one.p95_ms > one.p95_limit_ms:
        found.append(("latency_p95_ms", f"{one.p95_ms:.0f} ms", f"{one.p95_limit_ms:g} ms"))
    return found


def _windows(facts: Facts) -> tuple[WindowState, ...]:
    if facts.gateway is not None:
        return facts.gateway.status.windows if facts.gateway.status else ()
    return facts.store.windows if facts.store else ()


def told(facts: Facts) -> Iterator[Check]:
    settings = facts.settings
    if settings is None:
        return
    if not settings.rollback.webhooks:
        yield GROUP.ok("guard.webhooks", "no webhook: a rollback is told by the log, /metrics and `llmctl incidents`")
        return
    if not facts.webhooks:
        yield GROUP.skipped("guard.webhooks", "whether the webhooks can be reached was not tried", "--deep tries it")
        return
    dead = {host: fault for host, fault in facts.webhooks.items() if fault}
    for host, fault in dead.items():
        yield GROUP.warn(f"guard.webhooks.{host}", f"{host} cannot be reached: {fault}", "check rollback.webhooks")
    if len(dead) < len(facts.webhooks):
        reached = tuple(host for host in facts.webhooks if host not in dead)
        yield GROUP.ok("guard.webhooks", f"{listed(reached)} can be reached (HEAD; nothing was told)")


RULES = (enabled, fit, told)
