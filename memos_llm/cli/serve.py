"""`serve`: run the gateway."""

import ipaddress
from typing import TYPE_CHECKING, Annotated

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    import socket

    from memos_llm.config import Settings, Source
    from memos_llm.wiring.reload import Accept


def register(app: typer.Typer) -> None:
    command(app, "serve", short_help="Run the gateway.")(serve)


def serve(
    cli: Cli,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; default: gateway.host.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Default: gateway.port; 0: any free one.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=256, help="Processes that share the address; default: 1.")
    ] = 1,
    seed: Annotated[bool, typer.Option("--seed", help="Fill a new store with the configured share.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow an address that other machines reach, without keys.")
    ] = False,
) -> int:
    """Run the gateway: OpenAI and Ollama wires on one address, until SIGTERM or Ctrl-C.

    Applications keep their protocol and change their address only. At the end, running streams are finished within
    gateway.drain_s. Without gateway.api_keys only this machine can reach it, unless --insecure is given with another
    --host. The configuration file is followed; SIGHUP reads it at once.

    With --workers, what is limited (gateway.max_concurrency, a key's rate_per_minute) is shared out evenly among them.

    \b
    Example:
      llmctl serve
      llmctl serve --port 8300 --seed
      llmctl serve --workers 4
      OLLAMA_HOST=http://127.0.0.1:8200 ollama run qwen3:8b
    """
    from memos_llm.config import Source, pending

    source = Source(cli.config, cli.environ)  # before the first reading, so that no change is missed
    settings = cli.settings
    for line in pending(settings):
        cli.out.warn(line)
    host = host or settings.gateway.host
    against = exposure(settings, host, insecure=insecure) or _apart(settings, workers)
    if against:
        raise failures.usage(against)
    listener = _bind(host, settings.gateway.port if port is None else port)
    with listener:
        _run(cli, settings, listener, source, _still_safe(host, insecure=insecure), workers=workers, seed=seed)
    return failures.DONE


def _run(
    cli: Cli,
    settings: "Settings",
    listener: "socket.socket",
    source: "Source",
    accept: "Accept",
    *,
    workers: int,
    seed: bool,
) -> None:
    import asyncio

    import uvloop

    from memos_llm.gateway.serve import serve as run
    from memos_llm.gateway.workers import Worker, supervise

    url = _url(listener)

    def ready() -> None:
        _announce(cli, url)

    def work(worker: Worker | None) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings, listener, seed=seed, ready=ready, source=source, accept=accept, worker=worker))

    if workers == 1:
        work(None)
    else:
        supervise(work, workers, listener, drain_s=settings.gateway.drain_s, ready=ready)


def exposure(settings: "Settings", host: str, *, insecure: bool) -> str:
    """What speaks against serving on that address; empty: nothing."""
    if insecure or settings.gateway.api_keys or _is_loopback(host):
        return ""
    return (
        f"{host} can be reached from other machines, and there are no API keys: make some with `llmctl keys new`, "
        f"use --host 127.0.0.1, or --insecure if the network is yours"
    )


def _apart(settings: "Settings", workers: int) -> str:
    """What speaks against that many processes; empty: nothing."""
    if workers == 1 or not settings.store_url.startswith("memory:"):
        return ""
    return "store: memory:// is each process's own, so that no two workers agree: use sqlite or redis, or --workers 1"


def _still_safe(host: str, *, insecure: bool) -> "Accept":
    """A configuration that takes the keys away must not open the gateway to the network."""
    from memos_llm.core.errors import ConfigError

    def accept(settings: "Settings") -> "Settings":
        if exposure(settings, host, insecure=insecure):
            raise ConfigError(
                f"gateway.api_keys: must not be empty while serving on {host}, which other machines can reach"
            )
        return settings

    return accept


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


def _url(listener: "socket.socket") -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _announce(cli: Cli, url: str) -> None:
    cli.out.note(f"listening on {url}")
    if cli.json:
        cli.out.result({"url": url})
