"""`config check` and `config show`: what the file and the environment amount to."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from memos_llm.config import Settings

app = typer.Typer(
    help="""Check and show the configuration.

\b
Example:
  llmctl config check
  llmctl config show
""",
    rich_markup_mode=None,
    no_args_is_help=False,
)


def check(cli: Cli) -> int:
    """Read the configuration and say what it amounts to, or what is wrong and where. Exit code 2 if it is wrong.

    \b
    Example:
      llmctl config check
      llmctl --config staging.yaml config check
    """
    settings = cli.settings
    found = _summary(cli, settings)
    cli.out.result(found, *_view(found))
    return failures.DONE


def show(cli: Cli) -> int:
    """Show every setting in force, by its key: the file, the environment and the defaults together. Secrets are ***.

    \b
    Example:
      llmctl config show
      llmctl config show --json | jq .rollback
    """
    shown = cli.settings.show()
    cli.out.result(shown, *_lines(shown, ""))
    return failures.DONE


command(app, "check", short_help="Is the configuration right, and what is it?")(check)
command(app, "show", short_help="Every setting in force.")(show)


def _summary(cli: Cli, settings: "Settings") -> dict[str, Any]:
    from memos_llm.config import find, pending

    file = cli.config or find(cli.environ)
    specs = settings.provider_specs()
    models = settings.catalogue().models.values()
    return {
        "ok": True,
        "file": None if file is None else str(file),
        "baseline": settings.baseline,
        "candidate": settings.candidate,
        "providers": {spec.name: [endpoint.url for endpoint in spec.endpoints] for spec in specs},
        "models": {model.name: {provider: own.name for provider, own in model.on.items()} for model in models},
        "share": settings.routing.share,
        "pins": dict(settings.policy().pins),
        "store": settings.show()["store"],
        "guard": _guard(settings),
        "pending": list(pending(settings)),
    }


def _guard(settings: "Settings") -> dict[str, Any]:
    """What the candidate is held to, in words; whoever has limits of their own; who is told."""
    from memos_llm.operate.guarding import in_words
    from memos_llm.wiring.hooks import hooks

    guard = settings.policy().guard
    kinds = {"provider": guard.providers, "component": guard.components, "model": guard.models}
    return {
        "enabled": guard.enabled,
        "limits": f"rolls back at {in_words(guard.default)}",
        "own": {f"{kind} {name}": in_words(own) for kind, named in kinds.items() for name, own in named.items()},
        "webhooks": [hook.host for hook in hooks(settings)],
    }


def _view(found: dict[str, Any]) -> Iterator[str]:
    candidate = found["candidate"]
    yield f"{found['file'] or 'no file: the built-in defaults'}: fine"
    yield f"  baseline   {found['baseline']}"
    yield f"  candidate  {candidate or 'none'}"
    for name, urls in found["providers"].items():
        yield f"  provider   {name}: {', '.join(urls) or 'no endpoint'}"
    mapped = [name for name, on in found["models"].items() if candidate in on]
    yield f"  models     {len(found['models'])}, of which {len(mapped)} on {candidate or 'a candidate'}"
    for component, provider in found["pins"].items():
        yield f"  pin        {component} -> {provider}"
    yield f"  share      {found['share']:g} (for a new store)"
    yield f"  store      {found['store']}"
    guard = found["guard"]
    yield f"  guard      {guard['limits'] if guard['enabled'] else 'off: nothing rolls back by itself'}"
    yield from (f"  guard      {name}: {limits}" for name, limits in guard["own"].items() if guard["enabled"])
    yield from (f"  webhook    {host}" for host in guard["webhooks"])
    yield from (f"  note       {line}" for line in found["pending"])


def _lines(value: Any, key: str) -> Iterator[str]:
    """`providers.vllm.base_url: "http://…"`: the keys are those of error messages and of MEMOS_LLM_… variables."""
    if not isinstance(value, dict) or not value:
        yield f"{key}: {json.dumps(value, ensure_ascii=False)}"
        return
    for name, item in value.items():
        yield from _lines(item, f"{key}.{name}" if key else name)
