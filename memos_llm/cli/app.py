"""The program: its commands, and `main`, where every error becomes a line and an exit code."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from memos_llm import __version__
from memos_llm.cli import (
    adoption,
    bench,
    config,
    demo_entry,
    doctor,
    embeddings,
    emulate,
    explain,
    failures,
    history,
    incidents,
    init,
    inventory,
    keys,
    serve,
    shift,
    status,
)
from memos_llm.cli.command import Cli, ConfigOption, GatewayOption, JsonOption, StoreOption

HELP = """Move LLM traffic from one provider to another, step by step, and back at once.

The flags (shares, latches, history) live in a store that every gateway and every process with the library follows;
these commands read and change it, or ask a running gateway to (--gateway URL, or MEMOS_LLM_GATEWAY_URL).
--config, --store, --gateway and --json may stand before or after a command.

\b
Example:
  llmctl init                    find the servers, write config/memos_llm.yaml
  llmctl serve                   the gateway, http://127.0.0.1:8200
  llmctl shift --vllm 0.05       5% of the traffic to vllm
  llmctl status                  what is in force, and who is up
  llmctl rollback                everything back, at once
"""

app = typer.Typer(
    help=HELP,
    add_completion=True,
    no_args_is_help=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmctl {__version__}")
        raise typer.Exit


@app.callback()
def _shared(
    ctx: typer.Context,
    config: ConfigOption = None,
    store: StoreOption = None,
    gateway: GatewayOption = None,
    json: JsonOption = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    ctx.obj = Cli(config=config, store=store, gateway=gateway, json=json)


for group in (init, serve, status, shift, history, incidents, explain, inventory, doctor, bench, emulate, demo_entry):
    group.register(app)
for name, group_app in (
    ("embeddings", embeddings.app),
    ("config", config.app),
    ("keys", keys.app),
    ("store", adoption.app),
):
    app.add_typer(group_app, name=name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        return app(arguments, prog_name="llmctl", standalone_mode=False) or failures.DONE
    except KeyboardInterrupt:
        return failures.INTERRUPTED
    except SystemExit:  # typer's way out when nobody reads on (`| head`); its code would say "a negative verdict"
        return failures.UNREAD
    except Exception as error:  # a user gets one line that names the fix, whatever went wrong
        if failures.wants_traceback():
            raise
        return _fail(_read(error), as_json="--json" in arguments)


def _read(error: Exception) -> failures.Failure:
    """typer's own errors are known by their face: releases of typer have them from different packages."""
    said = getattr(error, "format_message", None)
    if said is None:
        return failures.read(error)
    path = getattr(getattr(error, "ctx", None), "command_path", "llmctl")
    return failures.usage(f"{said().rstrip('.')} (see `{path} --help`)")


def _fail(failure: failures.Failure, *, as_json: bool) -> int:
    from memos_llm.cli.output import Output

    out = Output(as_json=as_json)
    out.result(failures.document(failure))
    for line in failure.message.splitlines():
        out.error(line)
    return failure.code
