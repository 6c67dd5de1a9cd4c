"""`doctor`: everything that a shift rests on, looked at now. Reads, and generates only when asked to."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from memos_llm.cli import failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from memos_llm.config import Settings
    from memos_llm.operate.doctor import Check, Checkup, Facts
    from memos_llm.operate.doctor.facts import ConfigFacts, GatewayFacts

WORDS = {"ok": "ok", "warn": "WARN", "fail": "FAIL", "skipped": "skipped"}
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}


def register(app: typer.Typer) -> None:
    command(app, "doctor", short_help="Is everything fit for a shift?")(doctor)


def doctor(
    cli: Cli,
    share: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="SHARE", help="Also judge a shift to that share: 0.1 or 10%.", show_default=False
        ),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Also send each mapped model a few short requests, which generate, and ask the webhooks' servers.",
        ),
    ] = False,
) -> int:
    """Check configuration, store, servers and models; say what was seen, and what to do.

    Before the first shift, and at 3 a.m. Without --deep nothing is generated and no model is loaded (with it, Ollama
    loads each). The store is read, and a row of ours written and taken out again. Every check is ok, WARN, FAIL, or
    skipped with the reason. Exit code 0 when nothing failed, 1 when something did, 4 when nothing could be looked at.

    With --gateway that gateway is asked too, how it and its store are; the servers are still asked from here, by the
    configuration here.

    \b
    Example:
      llmctl doctor
      llmctl doctor --deep --for 10%
      llmctl doctor --gateway http://gpu1:8200
      llmctl doctor --json | jq '.checks[] | select(.verdict == "fail")'
    """
    from msgspec import to_builtins

    from memos_llm.operate.doctor import Verdict, examine

    checkup = examine(cli.run(_facts(cli, _share_ppm(share), deep=deep)))
    counts = {verdict.value: sum(one.verdict is verdict for one in checkup.checks) for verdict in Verdict}
    cli.out.result({**to_builtins(checkup), "counts": counts}, *_view(checkup.checks), *_summary(checkup, counts))
    return failures.NEGATIVE if checkup.verdict is Verdict.FAIL else failures.DONE


def _share_ppm(share: str | None) -> int | None:
    from memos_llm.core.flags import parse_share

    try:
        return None if share is None else parse_share(share)
    except ValueError as error:
        raise failures.usage(f"--for: {error}") from None


# What is gathered


async def _facts(cli: Cli, wanted_ppm: int | None, *, deep: bool) -> "Facts":
    import time

    from memos_llm.core.version import VERSION
    from memos_llm.operate.doctor import Facts

    settings, config = _config(cli)
    gateway = await _gateway(cli)
    if settings is None and gateway is not None and not gateway.health and not config.errors:
        raise failures.unreachable(
            f"{gateway.url} does not answer as a gateway, and there is no configuration here to look by: "
            "check --gateway, or name a file with --config"
        )
    facts = Facts(
        at=time.time(),
        version=VERSION,
        config=config,
        settings=settings,
        gateway=gateway,
        wanted_ppm=wanted_ppm,
        deep=deep,
    )
    return facts if settings is None else await _looked(cli, facts, settings)


async def _looked(cli: Cli, facts: "Facts", settings: "Settings") -> "Facts":
    """The servers, and the store unless a gateway speaks for its own; then, on what these told, what is generated."""
    import asyncio

    from msgspec.structs import replace

    from memos_llm.control import last_good
    from memos_llm.gateway import gpu
    from memos_llm.operate.doctor import deep as generate
    from memos_llm.operate.doctor import look
    from memos_llm.telemetry.webhooks import reach
    from memos_llm.wiring import last_good_file
    from memos_llm.wiring.hooks import hooks

    with cli.out.progress(look.steps(settings), "looking") as told:
        servers, gpus = await asyncio.gather(look.servers(settings, told), gpu.status())
        store = None
        if facts.gateway is None:
            store = await look.store(settings, last_good.read(last_good_file(settings)).published, told)
    facts = replace(facts, providers=servers, store=store, gpus=tuple(gpus["gpus"]))
    if not facts.deep:
        return facts
    facts = replace(facts, webhooks=await reach(hooks(settings)))
    with cli.out.progress(generate.steps(facts), "asking models") as told:
        return replace(facts, talks=await generate.talks(facts, told))


def _config(cli: Cli) -> "tuple[Settings | None, ConfigFacts]":
    """A wrong file is a finding. Through a gateway, the built-in defaults say nothing: there must be a file."""
    from memos_llm.cli.serve import exposure
    from memos_llm.config import Source, pending
    from memos_llm.config.spelling import aliases_given
    from memos_llm.core.errors import ConfigError
    from memos_llm.operate.doctor.facts import ConfigFacts

    file = Source(cli.config, cli.environ).path
    name = None if file is None else str(file)
    if file is None and cli.gateway_url is not None:
        return None, ConfigFacts()
    try:
        settings = cli.settings
        aliases = aliases_given(file, cli.environ)
    except ConfigError as error:
        return None, ConfigFacts(file=name, errors=tuple(error.message.splitlines()))
    return settings, ConfigFacts(
        file=name,
        aliases=aliases,
        pending=pending(settings),
        exposed=exposure(settings, settings.gateway.host, insecure=False),
    )


async def _gateway(cli: Cli) -> "GatewayFacts | None":
    """What it says without a token (is it well, is it ready), and with one (its status)."""
    url = cli.gateway_url
    if url is None:
        return None
    from memos_llm.cli.remote import GatewayDesk
    from memos_llm.operate.doctor.facts import GatewayFacts

    desk = GatewayDesk(url, cli.environ)
    health, ready = await desk.health()
    if not health:
        return GatewayFacts(url=desk.url)
    try:
        return GatewayFacts(url=desk.url, health=health, ready=ready, status=await desk.status())
    except failures.Failure as failure:
        return GatewayFacts(url=desk.url, health=health, ready=ready, fault=failure.message)


# What is shown


def _view(checks: "Sequence[Check]") -> "Iterator[RenderableType]":
    """A heading for each group, a line or more for each check; what to do stands under what was seen."""
    from memos_llm.cli.output import heading

    for group in dict.fromkeys(check.group for check in checks):
        yield heading(group)
        yield _rows([check for check in checks if check.group == group])


def _rows(checks: "Sequence[Check]") -> "RenderableType":
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(min_width=len(WORDS["skipped"]))
    made.add_column(overflow="fold")
    for check in checks:
        made.add_row(Text(WORDS[check.verdict], style=STYLES[check.verdict]), check.seen)
        if check.fix:
            made.add_row("", Text(f"-> {check.fix}"))
    return Padding(made, (0, 0, 0, 2), expand=False)


def _summary(checkup: "Checkup", counts: dict[str, int]) -> "Iterator[RenderableType]":
    """The last lines on the screen: how many of what, and again what failed."""
    from rich.text import Text

    said = ", ".join(f"{many} {WORDS[verdict]}" for verdict, many in counts.items() if many)
    yield Text.assemble((WORDS[checkup.verdict], STYLES[checkup.verdict]), f": {said}")
    failed = [check for check in checkup.checks if check.verdict == "fail"]
    if failed:
        yield _rows(failed)
