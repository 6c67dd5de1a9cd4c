"""`bench`: how fast the back ends are side by side, with this configuration's models on this hardware."""

import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memos_llm.cli import completion, failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from memos_llm.bench.providers import Journal, Opened, Plan
    from memos_llm.bench.report import Report, Side
    from memos_llm.config import Settings as Configuration
    from memos_llm.core.errors import LLMError
    from memos_llm.core.policy import ProviderSpec

MOST_CLIENTS = 1_000


def register(app: typer.Typer) -> None:
    command(app, "bench", short_help="Which back end is faster here, and by how much?")(bench)


def bench(
    cli: Cli,
    providers: Annotated[
        str | None,
        typer.Option(
            "--providers",
            metavar="A,B",
            help="Whom to measure; the first is compared with.  [default: baseline,candidate]",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="A model that all of them have; may be repeated.  [default: the first such]",
            autocompletion=completion.models,
        ),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, max=10_000, help="Requests per client, at each level.")] = 6,
    concurrency: Annotated[
        str, typer.Option("--concurrency", metavar="N,N,…", help="Clients at once, level by level.")
    ] = "1,4,16",
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, max=1_000_000, help="Where each answer is cut off.")
    ] = 128,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help='One a line, or .jsonl of {"prompt": …} or {"messages": […]}; - for stdin.',
        ),
    ] = None,
    same_prompt: Annotated[
        bool, typer.Option("--same-prompt", help="Send prompts as they are: let prefix caches help.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds for one answer; configured limits hold too.")
    ] = 300.0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help=".json: every sample; .md, .csv: the figures."),
    ] = None,
) -> int:
    """Measure the back ends against each other, directly and not through the gateway.

    At each level of concurrency so many clients send one request each, all at once; that is a round. The providers
    take turns, round by round, so that what drifts meets all of them. A warm-up call goes before each turn: loading
    is told, and not counted. Every prompt begins with a mark of its own, for a prefix cache would flatter.

    TTFT is the time to the first text, TPOT the time per further token, "whole" the time of the whole answer, all of
    them as a client sees them; tokens/s counts all clients together. Behind each ratio stands its 95% interval
    (bootstrap over the rounds). An embedding model is measured in embeddings per second.

    Ctrl-C ends it early: what was measured is shown and written. Exit code 1 when a provider answered nothing at a
    level. No prompt and no answer is kept.

    \b
    Example:
      llmctl bench
      llmctl bench --providers ollama,vllm --runs 10 --concurrency 1,8,32 -o bench.md
      llmctl bench --model qwen3:8b --prompts mine.jsonl --max-tokens 256 -o bench.json
    """
    from memos_llm.bench.providers import Journal, planned

    if cli.gateway:
        raise failures.usage(
            "--gateway: bench calls the back ends themselves, without a gateway in between; leave it out "
            "(what the gateway itself costs is measured by scripts/bench)"
        )
    file = _file(output)
    levels = _levels(concurrency)
    settings = cli.settings
    specs = _specs(settings, providers)
    names = _models(settings, model or [], [spec.name for spec in specs])
    models = {name: _embeds(settings, name) for name in names}
    plans = _plans(models, levels, runs, max_tokens, timeout, prompts, same_prompt=same_prompt)
    run = _Run(Journal(), {}, time.time())
    with cli.out.progress(planned(plans, len(specs)), "bench") as progress:
        try:
            cli.run(_measure(settings, specs, plans, run, progress))
        except KeyboardInterrupt:
            run.interrupted = True
    if run.failed and not run.journal.turns:
        raise run.failed[0]
    if run.interrupted and not run.journal.turns:
        written = f"; {file} is not written" if file is not None else ""
        raise failures.Failure(
            f"interrupted before a round was whole: nothing was measured{written}", failures.INTERRUPTED, "INTERRUPTED"
        )
    code = _tell(cli, _report(settings, specs, plans, run, prompts), file)
    for failure in run.failed:
        cli.out.error(failure.message)
    return run.failed[0].code if run.failed and code in (failures.DONE, failures.NEGATIVE) else code


@dataclass(slots=True)
class _Run:
    """What is left when the measuring ended, however it did. `failed`: models that could not be measured at all."""

    journal: "Journal"
    found: "dict[str, Opened]"
    started_at: float
    interrupted: bool = False
    failed: list[failures.Failure] = field(default_factory=list)


def _tell(cli: Cli, report: "Report", file: Path | None) -> int:
    from msgspec import to_builtins

    from memos_llm.bench import remarks
    from memos_llm.bench.report import FORMATS, write

    document = to_builtins(report)
    document.pop("turns")
    cli.out.result(document, *_view(report))
    for load in remarks.loads(report.models):
        cli.out.note(load)
    for warning in report.warnings:
        cli.out.warn(warning)
    code = failures.NEGATIVE if remarks.failed(report.models) else failures.DONE
    if file is not None:
        try:
            write(file, FORMATS[file.suffix.lower()](report))
        except OSError as error:  # the answer is printed: it need not be measured again
            cli.out.error(f"{file} cannot be written: {error.strerror or type(error).__name__}")
            code = failures.USAGE
        else:
            cli.out.note(f"written to {file}" + (", as far as it went" if report.interrupted else ""))
    return failures.INTERRUPTED if report.interrupted else code


def _file(output: Path | None) -> Path | None:
    """Looked at before anything is measured: an hour later would be late."""
    from memos_llm.bench.report import FORMATS

    if output is None:
        return None
    if output.suffix.lower() not in FORMATS:
        raise failures.usage(f"-o {output}: the name must end in {', '.join(FORMATS)}")
    if output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise failures.usage(f"-o {output} cannot be written: is {output.parent} a directory of yours?")
    return output


def _levels(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdigit() and 1 <= int(part) <= MOST_CLIENTS for part in parts):
        raise failures.usage(f"--concurrency {text!r}: whole numbers from 1 to {MOST_CLIENTS}, such as 1,4,16")
    return tuple(sorted({int(part) for part in parts}))


def _specs(settings: "Configuration", text: str | None) -> "list[ProviderSpec]":
    """The providers to measure, in the order named."""
    usual = (settings.baseline, settings.candidate) if text is None else text.split(",")
    names = list(dict.fromkeys(name.strip() for name in usual if name and name.strip()))
    known = {spec.name: spec for spec in settings.provider_specs()}
    for name in names:
        if name not in known:
            why = "is disabled in the configuration" if name in settings.providers else "is not configured"
            raise failures.usage(f"--providers: {name!r} {why}; choices: {', '.join(known)}")
    if not names:
        raise failures.usage(f"--providers: name one or more of {', '.join(known)}")
    return [known[name] for name in names]


def _models(settings: "Configuration", wanted: Sequence[str], providers: Sequence[str]) -> list[str]:
    """The logical names of the models to measure."""
    catalogue = settings.catalogue()
    fit = [model.name for model in catalogue.models.values() if all(name in model.on for name in providers)]
    if not fit:
        raise failures.usage(
            f"no model is mapped on {' and '.join(providers)}: give one its name on each under `models` "
            "(`llmctl init` proposes pairs)"
        )
    found: list[str] = []
    for name in wanted:
        model = catalogue.resolve(name)
        if model is None:
            raise failures.usage(f"--model: there is no {name[:80]!r}; choices: {', '.join(fit)}")
        lacking = [provider for provider in providers if provider not in model.on]
        if lacking:
            raise failures.usage(f"--model: {model.name} has no name on {lacking[0]}: map it under `models`")
        found.append(model.name)
    return list(dict.fromkeys(found)) or fit[:1]


def _embeds(settings: "Configuration", model: str) -> bool:
    """Whether it is an embedding model, by any of its names."""
    from memos_llm.core.catalogue import is_embedding

    own = settings.catalogue().models[model].on.values()
    return any(map(is_embedding, (model, *(there.name for there in own))))


def _plans(
    models: Mapping[str, bool],
    levels: tuple[int, ...],
    runs: int,
    max_tokens: int,
    timeout_s: float,
    file: Path | None,
    *,
    same_prompt: bool,
) -> "list[Plan]":
    """`models`: whether each is an embedding model."""
    from memos_llm.bench.prompts import DEFAULT, text_of
    from memos_llm.bench.providers import Plan
    from memos_llm.cli.prompts import read

    asked = tuple(read(file)) if file is not None else DEFAULT
    if any(models.values()) and not all(map(text_of, asked)):
        raise failures.usage("--prompts: one of them holds no text to embed")
    return [
        Plan(
            model=name,
            concurrency=levels,
            runs=runs,
            prompts=asked,
            max_tokens=max_tokens,
            timeout_s=timeout_s,
            unique=not same_prompt,
            embeds=embeds,
        )
        for name, embeds in models.items()
    ]


async def _measure(
    settings: "Configuration",
    specs: "Sequence[ProviderSpec]",
    plans: "Sequence[Plan]",
    run: _Run,
    progress: Any,
) -> None:
    """Fills `run`, which the caller still has when this is interrupted."""
    from memos_llm.bench.providers import Bench, Subject, opened
    from memos_llm.core.errors import LLMError

    catalogue = settings.catalogue()
    async with opened(specs, connections=max(plans[0].concurrency)) as providers:
        run.found.update(providers)
        for plan in plans:
            on = catalogue.models[plan.model].on
            subjects = [Subject(one.provider, on[name].name) for name, one in providers.items()]
            try:
                await Bench(plan, subjects, run.journal, progress).run()
            except LLMError as error:  # another model may be there
                named = on[error.provider].name if error.provider in on else plan.model
                run.failed.append(_not_there(error, specs, named))


def _not_there(error: "LLMError", specs: "Sequence[ProviderSpec]", model: str) -> failures.Failure:
    """A provider that did not answer the first call, with what to look at. The call held no text of anybody's."""
    from memos_llm.core.lines import one_line

    spec = next((spec for spec in specs if spec.name == error.provider), None)
    where = f" at {', '.join(endpoint.url for endpoint in spec.endpoints)}" if spec else ""
    said = f": {one_line(error.client_text)[:200]}" if error.client_text else ""
    return failures.Failure(
        f"{error.message}{said}: does {error.provider or 'it'} run{where}, and serve {model}?",
        failures.exit_code(error),
        error.name,
    )


def _report(
    settings: "Configuration", specs: "Sequence[ProviderSpec]", plans: "Sequence[Plan]", run: "_Run", file: Path | None
) -> "Report":
    from memos_llm.bench.gather import gather
    from memos_llm.bench.prompts import chars
    from memos_llm.bench.providers import TEMPERATURE
    from memos_llm.bench.report import Settings

    plan, models = plans[0], settings.catalogue().models
    asked = Settings(
        providers=tuple(spec.name for spec in specs),
        concurrency=plan.concurrency,
        runs=plan.runs,
        max_tokens=plan.max_tokens,
        timeout_s=plan.timeout_s,
        temperature=TEMPERATURE,
        unique_prompts=plan.unique,
        prompts="from a file" if file is not None else "ready-made",
        prompt_chars=tuple(map(chars, plan.prompts)),
    )
    return gather(
        asked,
        [_side(spec, run.found.get(spec.name)) for spec in specs],
        [(plan, {spec.name: models[plan.model].on[spec.name].name for spec in specs}) for plan in plans],
        run.journal,
        environment=_environment(),
        started_at=run.started_at,
        interrupted=run.interrupted,
    )


def _side(spec: "ProviderSpec", found: "Opened | None") -> "Side":
    from urllib.parse import urlsplit

    from memos_llm.bench.report import Side
    from memos_llm.config.urls import canonical_host
    from memos_llm.core.lines import one_line

    hosts = dict.fromkeys(canonical_host(urlsplit(endpoint.url).hostname or "") for endpoint in spec.endpoints)
    return Side(
        name=spec.name,
        kind=spec.kind,
        endpoints=tuple(endpoint.url for endpoint in spec.endpoints),
        hosts=tuple(host for host in hosts if host),
        versions=tuple(map(one_line, found.versions)) if found else (),
        max_inflight=spec.max_inflight,
    )


def _environment() -> dict[str, Any]:
    """This machine: the client's, and the servers' too when they run here."""
    import asyncio

    from memos_llm import __version__
    from memos_llm.gateway.gpu import status

    return {
        "memos_llm": __version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [gpu["name"] for gpu in asyncio.run(status())["gpus"]],
    }


def _view(report: "Report") -> "Iterator[RenderableType]":
    from memos_llm.bench import cells
    from memos_llm.cli.output import heading, table

    for model in report.models:
        names = ", ".join(f"{provider} ({name})" for provider, name in model.names.items())
        yield heading(f"{model.model} on {names}")
        columns = cells.COLUMNS[model.embeds]
        for level in model.levels:
            rows = [cells.row(found, embeds=model.embeds) for found in level.figures]
            alone = len(level.comparisons) == 1
            rows += [cells.ratio_row(found, embeds=model.embeds, alone=alone) for found in level.comparisons]
            yield f"{cells.clients(level.concurrency)} at once" if level.concurrency > 1 else "1 client"
            yield table(columns, rows, right=columns[1:], whole=columns[-1:])
    yield from report.summary
