"""`serve`: run the gateway."""

import ipaddress
from typing import TYPE_CHECKING, Annotated

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    import socket

    from memos_llm.config import Settings


def register(app: typer.Typer) -> None:
    command(app, "serve", short_help="Run the gateway.")(serve)


def serve(
    cli: Cli,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; default: gateway.host.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Default: gateway.port; 0: any free one.")
    ] = None,
    seed: Annotated[bool, typer.Option("--seed", help="Fill a new store with the configured share.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow an address that other machines reach, without keys.")
    ] = False,
) -> int:
    """Run the gateway: OpenAI and Ollama wires on one address, until SIGTERM or Ctrl-C.

    Applications keep their protocol and change their address only. At the end, running streams are finished within
    gateway.drain_s. Only this machine can reach it, unless --insecure is given with another --host.

    \b
    Example:
      llmctl serve
      llmctl serve --port 8300 --seed
      OLLAMA_HOST=http://127.0.0.1:8200 ollama run qwen3:8b
    """
    import asyncio

    import uvloop

    from memos_llm.config import pending
    from memos_llm.gateway.serve import serve as run

    settings = cli.settings
    for line in pending(settings):
        cli.out.warn(line)
    host = host or settings.gateway.host
    _check_exposure(settings, host, insecure=insecure)
    listener = _bind(host, settings.gateway.port if port is None else port)

    with listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings, listener, seed=seed, ready=lambda: _announce(cli, listener)))
    return failures.DONE


def _check_exposure(settings: "Settings", host: str, *, insecure: bool) -> None:
    if settings.gateway.api_keys:
        raise failures.usage(
            "gateway.api_keys is set, but keys are not enforced in this release: "
            "remove them, and keep the gateway on a loopback address"
        )
    if not insecure and not _is_loopback(host):
        raise failures.usage(
            f"{host} can be reached from other machines, and there are no API keys: "
            f"use --host 127.0.0.1, or --insecure if the network is yours"
        )


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _bind(host: str, port: int) -> "socket.socket":
    from memos_llm.gateway import server

    try:
        return server.bind(host.strip("[]"), port)
    except OSError as error:
        raise failures.cannot_listen(host, port, error) from None


def _announce(cli: Cli, listener: "socket.socket") -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    cli.out.note(f"listening on {url}")
    if cli.json:
        cli.out.result({"url": url})
