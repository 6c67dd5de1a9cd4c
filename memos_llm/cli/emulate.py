"""`emulate`: an Ollama or vLLM server without a GPU, with faults on demand."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command

_RELEASE = re.compile(r"\d+\.\d+\.\d+(?:-\w+)?", re.ASCII)


class Engine(StrEnum):
    OLLAMA = "ollama"
    VLLM = "vllm"


def register(app: typer.Typer) -> None:
    command(app, "emulate", short_help="Play an Ollama or a vLLM server.")(emulate)


def emulate(
    cli: Cli,
    engine: Annotated[Engine, typer.Argument(help="Which server to play.", show_default=False)],
    host: Annotated[str, typer.Option("--host", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Default: the real server's; 0: any free one.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="NAME", help="A model that it has; may be repeated.")
    ] = None,
    ttft: Annotated[float, typer.Option("--ttft", min=0, help="Seconds to the first token.")] = 0.0,
    inter_token: Annotated[float, typer.Option("--inter-token", min=0, help="Seconds between tokens.")] = 0.0,
    fault: Annotated[
        list[str] | None,
        typer.Option("--fault", metavar="SPEC", help="NAME or NAME:key=value,…; may be repeated."),
    ] = None,
    release: Annotated[
        str | None, typer.Option("--release", metavar="VERSION", help="Which release to be; default: the newest known.")
    ] = None,
    load: Annotated[float | None, typer.Option("--load", min=0, help="Seconds that Ollama loads a model.")] = None,
    space: Annotated[
        str | None, typer.Option("--space", metavar="NAME", help="Embed as another emulator of that space does.")
    ] = None,
    embed: Annotated[
        bool, typer.Option("--embed", help="Be a vLLM with an embedding model, which has no chat route.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Varies answers and the choice of faults.")] = 0,
    list_faults: Annotated[bool, typer.Option("--list-faults", help="Print the faults and end.")] = False,
) -> int:
    """Play an Ollama or a vLLM server: real wire formats, deterministic answers, no GPU.

    For trying a migration and for tests. It runs until Ctrl-C or SIGTERM and says where it listens. Faults can also
    be set while it runs: POST /_emulator/faults with {"set": ["hang"]}, or {"set": []} to clear.

    \b
    Example:
      llmctl emulate ollama --port 11434 --model qwen3:8b
      llmctl emulate vllm --port 8000 --model Qwen/Qwen3-8B --ttft 0.2
      llmctl emulate ollama --release 0.17.4 --load 20
      llmctl emulate vllm --port 8100 --embed --model Qwen/Qwen3-Embedding-0.6B
      llmctl emulate vllm --fault status:code=500,rate=0.2
      llmctl emulate vllm --list-faults
    """
    from memos_llm.emulators import FAULTS, run

    if list_faults:
        _list(cli, FAULTS[engine.value])
        return failures.DONE
    _check(engine.value, fault or ())
    options = _options(engine, release, load, space, embed)
    try:
        run(
            engine.value,
            host=host,
            port=port,
            models=model or (),
            ttft_s=ttft,
            inter_token_s=inter_token,
            faults=fault or (),
            seed=seed,
            version=release,
            options=options,
        )
    except OSError as error:
        raise failures.cannot_listen(host, port, error) from None
    return failures.DONE


def _options(
    engine: Engine, release: str | None, load_s: float | None, space: str | None, embed: bool
) -> dict[str, float | str]:
    if release is not None and not _RELEASE.fullmatch(release):
        raise failures.usage(f"--release: {release!r} is not a version such as 0.17.4")
    if load_s is not None and engine is not Engine.OLLAMA:
        raise failures.usage("--load: only Ollama loads a model when it is asked for")
    if embed and engine is not Engine.VLLM:
        raise failures.usage("--embed: an Ollama has both kinds of models; name an embedding model with --model")
    given = {"load_s": load_s, "space": space, "task": "embed" if embed else None}
    return {name: value for name, value in given.items() if value is not None}


def _check(engine: str, specs: Sequence[str]) -> None:
    """Before anything listens: the emulators' own words on a fault that they do not know."""
    from memos_llm.emulators import FaultBoard

    try:
        FaultBoard(engine, seed=0, clock=lambda: 0.0).set(*specs)
    except ValueError as error:
        raise failures.usage(f"--fault: {error}") from None


def _list(cli: Cli, faults: Mapping[str, str]) -> None:
    from memos_llm.cli.output import table

    shown = table(("fault", "what it does (arguments)"), faults.items())
    common = "  every fault also takes rate=0..1, count=N, for_s=SECONDS, every_s=SECONDS (on, off, on, …), all=true"
    cli.out.result({"faults": dict(faults)}, shown, common)
