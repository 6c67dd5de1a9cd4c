"""`keys new`: make an API key. The key is printed once and kept nowhere; the configuration gets its SHA-256."""

import hashlib
import json
import secrets
from typing import Annotated, Any

import typer

from memos_llm.cli import completion, failures
from memos_llm.cli.command import Cli, command

PREFIX = "mlk_"
BYTES = 32

app = typer.Typer(
    help="""Make keys for applications and people.

\b
Example:
  llmctl keys new --scope inference --id search-service
""",
    rich_markup_mode=None,
    no_args_is_help=False,
)


def new(
    cli: Cli,
    scope: Annotated[
        list[str],
        typer.Option("--scope", metavar="S", help="May be repeated.", autocompletion=completion.scopes),
    ],
    id: Annotated[
        str | None, typer.Option("--id", metavar="NAME", help="Its name in the history; default: made up.")
    ] = None,
    component: Annotated[
        str | None,
        typer.Option(
            "--component",
            metavar="NAME",
            help="The component of calls that name none.",
            autocompletion=completion.components,
        ),
    ] = None,
    rate: Annotated[int | None, typer.Option("--rate", metavar="N", min=1, help="Requests a minute, at most.")] = None,
) -> int:
    """Make an API key and print it, once, with the entry for gateway.api_keys.

    Scopes: inference (the data paths), metrics, read (status, history, …), operate (shares down, rollback), admin
    (shares up, re-arm, overrides, Ollama's management). As soon as one key is configured, every caller needs one.

    \b
    Example:
      llmctl keys new --scope inference --component synthesis --id synth
      llmctl keys new --scope read --scope metrics --id dashboards --rate 600
      llmctl keys new --scope operate --json
    """
    from memos_llm.cli import asked

    asked.check_scope(component)
    key = PREFIX + secrets.token_urlsafe(BYTES)
    entry: dict[str, Any] = {
        "id": _id(id) or f"key-{secrets.token_hex(4)}",
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "scopes": _scopes(scope),
    }
    if component is not None:
        entry["component"] = component
    if rate is not None:
        entry["rate_per_minute"] = rate
    cli.out.result(
        {"key": key, "entry": entry},
        f"key (shown this once): {key}",
        "entry, under gateway.api_keys in the configuration:",
        f"  - {json.dumps(entry, ensure_ascii=False)}",
    )
    return failures.DONE


command(app, "new", short_help="Make a key.")(new)


def _id(given: str | None) -> str | None:
    from memos_llm.core.call import COMPONENT

    if given is not None and not COMPONENT.fullmatch(given):
        raise failures.usage(f"--id {given!r}: letters, digits, and . _ : -, 64 at most")
    return given


def _scopes(given: list[str]) -> list[str]:
    """What is asked for, in their order, none twice."""
    from difflib import get_close_matches

    for name in given:
        if name not in completion.SCOPES:
            close = get_close_matches(name, completion.SCOPES, 1)
            guess = f"; did you mean {close[0]}?" if close else ""
            raise failures.usage(f"--scope {name!r} is none: {', '.join(completion.SCOPES)}{guess}")
    return [name for name in completion.SCOPES if name in given]
