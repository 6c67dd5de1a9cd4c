"""`init`: find the two servers, propose model pairs, write the configuration, seed the store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from memos_llm.cli.draft import Found
    from memos_llm.core.flags import Flags

BESIDE = (8001, 8002, 8003, 8080, 8100)  # where a second vLLM, or the only one, is usually put
DEFAULT_PATH = Path("config/memos_llm.yaml")


def register(app: typer.Typer) -> None:
    command(app, "init", short_help="Find the servers and write the configuration.")(init)


def init(
    cli: Cli,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> int:
    """Find Ollama and vLLM, propose which model is which, write the configuration, seed the store.

    It asks OLLAMA_HOST (else :11434) and VLLM_BASE_URL (else :8000, and the usual ports beside it) for their models and
    pairs them by name, saying how sure it is; embedding models and what has no partner are comments. Nothing is sent to
    a model and nothing is shifted: the share starts at 0. The file is config/memos_llm.yaml, or what --config names.

    \b
    Example:
      llmctl init
      VLLM_BASE_URL=http://gpu1:8000 llmctl init --config staging.yaml
    """
    from memos_llm.cli.draft import document, text, view

    path = _path(cli)
    if path.exists() and not force:
        raise failures.usage(f"{path} is there already: --force overwrites it, --config FILE writes another")
    found = cli.run(_look(cli))
    _write(path, text(found))
    written = Cli(config=path, store=cli.store, json=cli.json)
    seeded = cli.run(_seed(written))
    result: dict[str, Any] = {"file": str(path), **document(found), "revision": seeded.revision}
    cli.out.result(result, f"wrote {path}", *view(found), *_next(path, found.candidate))
    return failures.DONE


def _path(cli: Cli) -> Path:
    named = cli.config or cli.environ.get("MEMOS_LLM_CONFIG")
    return Path(named).expanduser() if named else DEFAULT_PATH


async def _look(cli: Cli) -> "Found":
    """Ask every place at once. A server at one of the further ports counts only if it lists models."""
    from msgspec.structs import replace

    from memos_llm.cli.draft import CANDIDATE, Found
    from memos_llm.config import parse
    from memos_llm.core.policy import Endpoint
    from memos_llm.operate.probing import probe_all

    specs = parse(b"", cli.environ).provider_specs()
    usual = () if cli.environ.get("VLLM_BASE_URL") else tuple(Endpoint(f"http://localhost:{port}") for port in BESIDE)
    health = dict(
        await probe_all(
            replace(spec, endpoints=(*spec.endpoints, *usual)) if spec.name == CANDIDATE else spec for spec in specs
        )
    )
    found = health[CANDIDATE]
    kept = [one for one in found if one.up and one.models] or list(found[:1])
    health[CANDIDATE] = tuple(kept)
    ends = tuple(Endpoint(one.url) for one in kept)
    return Found(
        specs=tuple(replace(spec, endpoints=ends) if spec.name == CANDIDATE else spec for spec in specs), health=health
    )


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise failures.usage(f"{path} cannot be written ({error.strerror}): --config FILE names another") from None


async def _seed(cli: Cli) -> "Flags":
    from memos_llm.cli.opening import opened_live

    async with opened_live(cli.settings, seed=True) as live:
        return live.current()


def _next(path: Path, candidate: str) -> list[str]:
    option = "" if path == DEFAULT_PATH else f" --config {path}"
    return [
        "next:",
        f"  llmctl{option} serve                 # the gateway; point your applications at it",
        f"  llmctl{option} status                # what is in force, and who is up",
        f"  llmctl{option} shift --{candidate} 0.05     # the first 5%",
    ]
