"""From a journal of turns to the report. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from memos_llm.bench import remarks
from memos_llm.bench.comparison import Turn, compare, figures, loads
from memos_llm.bench.providers import Journal, Plan
from memos_llm.bench.report import Level, ModelReport, Report, Settings, Side


def gather(
    asked: Settings,
    sides: Sequence[Side],
    plans: Sequence[tuple[Plan, Mapping[str, str]]],
    journal: Journal,
    *,
    environment: dict[str, Any],
    started_at: float,
    interrupted: bool,
) -> Report:
    """Everything that is known. Models and levels that were not reached are left out.

    Args:
        plans: each with the providers' own names for its model.
    """
    found = [_model(plan, names, asked.providers, journal) for plan, names in plans]
    models = [model for model in found if model.levels]
    return Report(
        version=1,
        started_at=started_at,
        interrupted=interrupted,
        settings=asked,
        environment=environment,
        providers=tuple(sides),
        models=tuple(models),
        summary=tuple(remarks.summary(models)),
        warnings=tuple(remarks.warnings(asked, sides, models, interrupted=interrupted)),
        turns=tuple(journal.turns),
    )


def _model(plan: Plan, names: Mapping[str, str], providers: Sequence[str], journal: Journal) -> ModelReport:
    turns = [turn for turn in journal.turns if turn.model == plan.model]
    levels = (
        _level(clients, [turn for turn in turns if turn.concurrency == clients], providers, embeds=plan.embeds)
        for clients in plan.concurrency
    )
    return ModelReport(
        model=plan.model,
        embeds=plan.embeds,
        names=dict(names),
        loads_s={name: loads(journal.warm_ups(plan.model, name)) for name in providers},
        levels=tuple(level for level in levels if level.figures),
    )


def _level(clients: int, turns: Sequence[Turn], providers: Sequence[str], *, embeds: bool) -> Level:
    by_provider = [[turn for turn in turns if turn.provider == name] for name in providers]
    reference, *others = by_provider
    compared = [compare(mine, reference, embeds=embeds) for mine in others]
    return Level(
        concurrency=clients,
        figures=tuple(figures(mine, embeds=embeds) for mine in by_provider if mine),
        comparisons=tuple(found for found in compared if found is not None),
    )
