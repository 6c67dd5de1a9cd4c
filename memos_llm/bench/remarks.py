"""What the figures of `llmctl bench` say in plain words, and what they must not be taken for. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from memos_llm.bench.cells import clients, factor, interval, listed, seconds, times
from memos_llm.bench.comparison import FEW, LEAST_ROUNDS, Comparison, Figures, Ratio
from memos_llm.bench.report import Level, ModelReport, Settings, Side

UNLIKE = 0.10  # of the longer answers: more than this apart, whole times do not compare
BUSY = 0.8  # of one core: beyond that the client may be what limits
THIS_HOST = "localhost"


def summary(models: Sequence[ModelReport]) -> list[str]:
    """A sentence for each provider that was compared, the highest level first."""
    said: list[str] = []
    for model in models:
        of = f" ({model.model})" if len(models) > 1 else ""
        for name in dict.fromkeys(found.provider for level in model.levels for found in level.comparisons):
            said.append(_sentence(model, name) + of)
            said.extend(_first_text(model, name, of))
    return said


def _sentence(model: ModelReport, name: str) -> str:
    levels = sorted(_compared(model, name), key=lambda found: -found.concurrency)
    reference, work = levels[0].reference, "embeddings" if model.embeds else "tokens"
    known = [(clients(found.concurrency), _verdict(found.per_s)) for found in levels if found.per_s is not None]
    unknown = [clients(found.concurrency) for found in levels if found.per_s is None]
    said = []
    if known:
        (at, first), *others = known
        said.append(f"at {at} {name} gives {first} the {work} per second of {reference}")
        said += [", ".join(f"at {at} {verdict}" for at, verdict in others)] if others else []
    if unknown:
        said.append(f"at {listed(unknown)} {name} and {reference} cannot be compared")
    return "; ".join(said)


def _verdict(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None or ratio.clear:
        return interval(ratio)
    return f"{times(ratio)} ({factor(ratio.low)}–{factor(ratio.high)}: no clear difference)"


def _first_text(model: ModelReport, name: str, of: str) -> Iterator[str]:
    """At the highest level, where a user waits longest."""
    level = max(model.levels, key=lambda level: level.concurrency, default=None)
    if level is None or model.embeds:
        return
    known = {found.provider: found.ttft_p50_s for found in level.figures}
    compared = next((found for found in level.comparisons if found.provider == name), None)
    if compared is None or known.get(name) is None or known.get(compared.reference) is None:
        return
    mine, other = seconds(known[name]), seconds(known[compared.reference])
    yield (
        f"at {clients(level.concurrency)} the first text comes after {mine} from {name}, "
        f"{other} from {compared.reference} (median){of}"
    )


def _compared(model: ModelReport, name: str) -> list[Comparison]:
    return [found for level in model.levels for found in level.comparisons if found.provider == name]


def warnings(
    settings: Settings, sides: Sequence[Side], models: Sequence[ModelReport], *, interrupted: bool = False
) -> list[str]:
    """What to know before believing the figures."""
    levels = [(model, level) for model in models for level in model.levels]
    return [
        *(["interrupted: these are the turns that were whole by then"] if interrupted else ()),
        *_failures(models, levels),
        *_lengths(models, levels),
        *_uncounted(models, levels),
        *_colocated(sides),
        *_queues(settings, sides),
        *_reloads(models),
        *_busy(models, levels),
        *_same(settings),
        *_few(settings, [level for _, level in levels]),
    ]


Levels = Sequence[tuple[ModelReport, Level]]


def _at(models: Sequence[ModelReport], model: ModelReport, level: Level) -> str:
    return clients(level.concurrency) + (f", {model.model}" if len(models) > 1 else "")


def _failures(models: Sequence[ModelReport], levels: Levels) -> Iterator[str]:
    for model, level in levels:
        for found in level.figures:
            if not found.errors:
                continue
            kinds = listed([f"{count} {kind}" for kind, count in found.errors.items()])
            what = "its figures are of the answered ones only" if found.answered else "there are no figures of it"
            failed = found.requests - found.answered
            where = f"{found.provider} at {_at(models, model, level)}"
            yield f"{where}: {failed} of {found.requests} failed ({kinds}); {what}"


def _lengths(models: Sequence[ModelReport], levels: Levels) -> Iterator[str]:
    for model, level in levels:
        known = [(found.provider, found.output_tokens_mean) for found in level.figures if found.output_tokens_mean]
        means = [mean or 0.0 for _, mean in known]
        if means and 1 - min(means) / max(means) > UNLIKE:
            said = listed([f"{name} {mean:.0f}" for name, mean in known])
            yield (
                f"the answers at {_at(models, model, level)} differ in length ({said} tokens on average): whole times "
                "do not compare, tokens/s only roughly; a smaller --max-tokens makes them alike"
            )


def _uncounted(models: Sequence[ModelReport], levels: Levels) -> Iterator[str]:
    for model, level in levels:
        for found in level.figures:
            if found.without_usage:
                yield (
                    f"{found.provider} at {_at(models, model, level)} told no token count for {found.without_usage} of "
                    f"{found.answered} answers: no tokens/s there"
                )


def _colocated(sides: Sequence[Side]) -> Iterator[str]:
    for one, other in combinations(sides, 2):
        shared = sorted(set(one.hosts) & set(other.hosts))
        if shared:
            where = listed(["this machine" if host == THIS_HOST else host for host in shared])
            yield (
                f"{one.name} and {other.name} both run on {where}: if they share a GPU, what one keeps in its memory "
                "the other lacks, and neither shows what it gives alone"
            )


def _queues(settings: Settings, sides: Sequence[Side]) -> Iterator[str]:
    most = max(settings.concurrency)
    for side in sides:
        if side.max_inflight is not None and side.max_inflight * len(side.endpoints) < most:
            yield (
                f"{side.name} has max_inflight {side.max_inflight} in the configuration: with more clients, requests "
                "wait here before they are sent, and fail as saturated after queue_s"
            )


def _reloads(models: Iterable[ModelReport]) -> Iterator[str]:
    for model in models:
        for provider, took in model.loads_s.items():
            if len(took) > 1:
                yield (
                    f"{provider} loaded {model.model} {len(took)} times (up to {seconds(max(took))}, not counted): "
                    "something pushes it out of memory between its turns"
                )


def _busy(models: Sequence[ModelReport], levels: Levels) -> Iterator[str]:
    busy = [
        (f"{found.provider} at {_at(models, model, level)}", found.client_cores)
        for model, level in levels
        for found in level.figures
        if found.client_cores > BUSY
    ]
    if busy:
        where, cores = max(busy, key=lambda one: one[1])
        yield (
            f"this program itself used {cores:.0%} of a core ({where}): it may be what limits, and the servers may "
            "give more"
        )


def _same(settings: Settings) -> Iterator[str]:
    if not settings.unique_prompts:
        yield "--same-prompt: a server with a prefix cache answers repeated prompts faster than new ones"


def _few(settings: Settings, levels: Sequence[Level]) -> Iterator[str]:
    thin = sorted({level.concurrency for level in levels if any(found.few for found in level.figures)})
    if thin:
        yield (
            f"fewer than {FEW} answers at {listed([str(count) for count in thin])} client{'s' * (thin != [1])}: the "
            f"p95 there (*) is the slowest one; --runs {-(-FEW // thin[0])} would do"
        )
    rounds = min((found.rounds for level in levels for found in level.figures), default=LEAST_ROUNDS)
    if rounds < LEAST_ROUNDS and any(level.comparisons for level in levels):
        yield f"{rounds} round{'s' * (rounds != 1)} a level: too few for an interval; --runs {LEAST_ROUNDS} gives one"


def loads(models: Iterable[ModelReport]) -> list[str]:
    """`load: 12.3 s`, for each model that was not there yet."""
    return [
        f"{provider} loaded {model.model} first: {seconds(took[0])} (not counted)"
        for model in models
        for provider, took in model.loads_s.items()
        if took
    ]


def failed(models: Iterable[ModelReport]) -> list[Figures]:
    """Providers that answered nothing at a level."""
    return [found for model in models for level in model.levels for found in level.figures if not found.answered]
