"""The configuration: is it right, and is what it says likely to be what is meant?"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from memos_llm.operate.doctor.checks import Check, Group, counted, listed
from memos_llm.operate.doctor.facts import Facts

if TYPE_CHECKING:
    from memos_llm.config import Settings
    from memos_llm.core.policy import Timeouts

GROUP = Group("configuration")


def file(facts: Facts) -> Iterator[Check]:
    config = facts.config
    for number, error in enumerate(config.errors):
        yield GROUP.fail(f"config.file.{number}" if number else "config.file", error, "mend it: `llmctl config check`")
    if config.errors:
        return
    if facts.settings is None:
        yield GROUP.skipped("config.file", "there is no configuration file here, and the gateway has its own")
    elif config.file is None:
        yield GROUP.warn(
            "config.file",
            "no file: the built-in defaults (Ollama on :11434, vLLM on :8000, no model mapped)",
            "`llmctl init` finds the servers and writes one; --config FILE names one",
        )
    else:
        yield GROUP.ok("config.file", f"{config.file} is right")


def aliases(facts: Facts) -> Iterator[Check]:
    if facts.config.aliases:
        said = tuple(f"{alias} = {setting}" for alias, setting in facts.config.aliases.items())
        yield GROUP.ok("config.aliases", f"the migration report's names are read: {listed(said)}")


def pending(facts: Facts) -> Iterator[Check]:
    for line in facts.config.pending:
        key, _, instead = line.partition(": ")
        yield GROUP.warn(f"config.pending.{key.split()[0]}", key, instead)


def roles(facts: Facts) -> Iterator[Check]:
    settings = facts.settings
    if settings is None:
        return
    candidate = settings.candidate
    if candidate is None:
        yield GROUP.warn(
            "config.roles", f"baseline {settings.baseline}, no candidate: nothing can be shifted", "set `candidate`"
        )
    elif not settings.providers[candidate].enabled:
        yield GROUP.warn(
            "config.roles",
            f"candidate {candidate} is disabled: everything stays with {settings.baseline}",
            f"set providers.{candidate}.enabled: true when it may serve",
        )
    else:
        yield GROUP.ok("config.roles", f"from {settings.baseline} to {candidate}")


def fallback(facts: Facts) -> Iterator[Check]:
    settings = facts.settings
    if settings is None or settings.candidate is None:
        return
    others = tuple(name for name in settings.policy().fallback if name != settings.candidate)
    if others:
        yield GROUP.ok("config.fallback", f"{listed(others)} answers when {settings.candidate} cannot")
    else:
        yield GROUP.warn(
            "config.fallback",
            f"nobody answers for {settings.candidate}: each of its failures reaches a client",
            f"set `fallback: {settings.baseline}`",
        )


class Odd(NamedTuple):
    """Limits that cannot work together. `holds` over one provider's; `says` with its numbers; `fix` in words."""

    holds: Callable[["Timeouts", float], bool]
    says: Callable[["Timeouts", float], str]
    fix: str


ODD: Mapping[str, Odd] = {
    "ttft": Odd(
        lambda t, total_s: t.ttft_s is not None and t.ttft_s >= total_s,
        lambda t, total_s: f"ttft_s {t.ttft_s:g} never ends an attempt: the whole chain has total_s {total_s:g}",
        "make ttft_s smaller than the top-level timeouts.total_s, so that a fallback has time left",
    ),
    "answer": Odd(
        lambda t, total_s: t.answer_s is not None and t.answer_s >= total_s,
        lambda t, total_s: f"answer_s {t.answer_s:g} never ends an attempt: the whole chain has total_s {total_s:g}",
        "make answer_s smaller than the top-level timeouts.total_s, so that a fallback has time left",
    ),
    "connect": Odd(
        lambda t, _: t.ttft_s is not None and t.connect_s >= t.ttft_s,
        lambda t, _: f"connect_s {t.connect_s:g} is no shorter than ttft_s {t.ttft_s:g}",
        "1 to 3 s connect anything that is there",
    ),
    "order": Odd(
        lambda t, _: t.ttft_s is not None and t.answer_s is not None and t.answer_s < t.ttft_s,
        lambda t, _: f"answer_s {t.answer_s:g} is shorter than ttft_s {t.ttft_s:g}: a whole answer takes longer",
        "answer_s is for the whole of an answer that does not stream: make it the longer one",
    ),
}


def timeouts(facts: Facts) -> Iterator[Check]:
    settings = facts.settings
    if settings is None:
        return
    total_s, odd = settings.timeouts.total_s, False
    for spec in settings.provider_specs():
        for name, one in ODD.items():
            if one.holds(spec.timeouts, total_s):
                odd = True
                id = f"config.timeouts.{spec.name}.{name}"
                yield GROUP.warn(id, f"{spec.name}: {one.says(spec.timeouts, total_s)}", one.fix)
        if spec.kind == "ollama" and spec.timeouts.ttft_s is not None:
            odd = True
            yield GROUP.warn(
                f"config.timeouts.{spec.name}.cold",
                f"{spec.name}: ttft_s {spec.timeouts.ttft_s:g} also limits how long Ollama may load a model",
                "leave it out for Ollama: it sends nothing until the load has ended, which takes up to minutes",
            )
    if not odd:
        yield GROUP.ok("config.timeouts", f"the time-outs fit each other; {total_s:g} s for a whole chain")


def exposure(facts: Facts) -> Iterator[Check]:
    settings = facts.settings
    if settings is None:
        return
    gateway = settings.gateway
    if facts.config.exposed:
        yield GROUP.fail(
            "config.exposure",
            f"gateway.host {gateway.host} can be reached from other machines, and there are no API keys: "
            "`llmctl serve` refuses to start",
            "`llmctl keys new` makes a key; or gateway.host: 127.0.0.1",
        )
        return
    keys = counted(len(gateway.api_keys), "API key") if gateway.api_keys else "no keys, this machine only"
    yield GROUP.ok("config.exposure", f"the gateway is to listen on {gateway.host}:{gateway.port} ({keys})")


def mapped(facts: Facts) -> Iterator[Check]:
    settings = facts.settings
    if settings is None or settings.candidate is None:
        return
    candidate, names = settings.candidate, tuple(settings.catalogue().models)
    unmapped = tuple(model.name for model in settings.catalogue().models.values() if model.target(candidate) is None)
    if not _enabled(settings):
        return
    if len(unmapped) == len(names):
        yield GROUP.warn(
            "config.models",
            f"no model has a name on {candidate}: whatever the share, everything stays with {settings.baseline}",
            f"map one: `models: {{qwen3:8b: {{{candidate}: Qwen/Qwen3-8B}}}}`; `llmctl init` proposes pairs",
        )
    else:
        stay = f"; {listed(unmapped)}: on {settings.baseline} whatever the share" if unmapped else ""
        yield GROUP.ok(
            "config.models",
            f"{len(names) - len(unmapped)} of {counted(len(names), 'model')} mapped on {candidate}{stay}",
        )


def _enabled(settings: "Settings") -> bool:
    return settings.candidate is not None and settings.providers[settings.candidate].enabled


RULES = (file, aliases, pending, roles, fallback, timeouts, exposure, mapped)
