"""`llmctl doctor`: what an engineer wants to know before the first shift, and at 3 a.m.

facts          what was found, as data            look    the driver that asks: cheap requests, never a generation
checks         a check, its verdict, a checkup    deep    the driver of `--deep`: short generations
configuration, store, servers, models, talk, shift, guard, gateway   the rules: functions from facts to checks

A rule reads facts and nothing else: no clock, no disk, no network. A new one goes into `RULES` of its group's module.
"""

from collections.abc import Callable, Iterable, Iterator

from memos_llm.operate.doctor import configuration, gateway, guard, models, servers, shift, store, talk
from memos_llm.operate.doctor.checks import Check, Checkup, Verdict
from memos_llm.operate.doctor.facts import Facts

__all__ = ["Check", "Checkup", "Facts", "Verdict", "examine"]

Rule = Callable[[Facts], Iterable[Check]]

RULES: tuple[Rule, ...] = (
    *gateway.RULES,
    *configuration.RULES,
    *store.RULES,
    *shift.RULES,
    *guard.RULES,
    *servers.RULES,
    *models.RULES,
    *talk.RULES,
)
"""In the order in which they are shown."""


def examine(facts: Facts) -> Checkup:
    """Every rule on the facts. The verdict is the worst that a check has; what was skipped is no verdict."""
    checks = tuple(_checks(facts))
    found = {check.verdict for check in checks}
    worst = next((verdict for verdict in (Verdict.FAIL, Verdict.WARN) if verdict in found), Verdict.OK)
    return Checkup(verdict=worst, checks=checks, deep=facts.deep, at=facts.at, version=facts.version)


def _checks(facts: Facts) -> Iterator[Check]:
    for rule in RULES:
        yield from rule(facts)
