"""How a function becomes a command: the options that every command has are added here, before or after its name.

A command takes a `Cli` first, then its own options, and returns an exit code or None for 0.
"""

import functools
import inspect
import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from memos_llm.cli.desk import Desk
    from memos_llm.cli.output import Output
    from memos_llm.config import Settings

T = TypeVar("T")
Function = Callable[..., int | None]

STORE_VARIABLE = "MEMOS_LLM_STORE"  # `--store` is this variable's value: one way in, one validation
GATEWAY_VARIABLE = "MEMOS_LLM_GATEWAY_URL"

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="The configuration file.", show_default=False)
]
StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="URL", help="The store, instead of the configured one.")
]
GatewayOption = Annotated[
    str | None, typer.Option("--gateway", metavar="URL", help="Ask this running gateway instead of the store.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
SHARED: Mapping[str, tuple[Any, Any]] = {
    "config": (ConfigOption, None),
    "store": (StoreOption, None),
    "gateway": (GatewayOption, None),
    "json": (JsonOption, False),
}


class Cli:
    """What a command has at hand: the shared options, the output, the configuration."""

    def __init__(
        self,
        *,
        config: Path | None = None,
        store: str | None = None,
        gateway: str | None = None,
        json: bool = False,
    ) -> None:
        self.config, self.store, self.gateway, self.json = config, store, gateway, json

    @functools.cached_property
    def out(self) -> "Output":
        from memos_llm.cli.output import Output

        return Output(as_json=self.json)

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment as this invocation sees it."""
        return os.environ | ({STORE_VARIABLE: self.store} if self.store else {})

    @functools.cached_property
    def settings(self) -> "Settings":
        """The configuration in force.

        Raises:
            ConfigError
        """
        from memos_llm.config import load
        from memos_llm.core.errors import ConfigError

        try:
            return load(self.config, self.environ)
        except ConfigError as error:
            if self.store is None:
                raise
            raise ConfigError(
                error.message.replace(f"environment variable {STORE_VARIABLE}: store", "--store")
            ) from None

    @property
    def gateway_url(self) -> str | None:
        """The gateway to ask, if any: the option's, else the variable's unless a store was named.

        Raises:
            Failure: both were named.
        """
        from memos_llm.cli import failures

        if self.gateway and self.store:
            raise failures.usage("--gateway and --store exclude each other: a gateway works on its own store")
        return self.gateway or (None if self.store else self.environ.get(GATEWAY_VARIABLE) or None)

    @property
    def desk(self) -> "Desk":
        """Where the verbs are done."""
        url = self.gateway_url
        if url is not None:
            from memos_llm.cli.remote import GatewayDesk

            return GatewayDesk(url, self.environ)
        from memos_llm.cli.desk import StoreDesk

        return StoreDesk(self.settings)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        import asyncio

        return asyncio.run(work)

    def over(self, before: "Cli | None") -> "Cli":
        """These options over the ones given before the command's name."""
        if before is None:
            return self
        return Cli(
            config=self.config or before.config,
            store=self.store or before.store,
            gateway=self.gateway or before.gateway,
            json=self.json or before.json,
        )


def command(app: typer.Typer, name: str, **settings: Any) -> Callable[[Function], Function]:
    """Register a function as a command of `app`."""

    def register(function: Function) -> Function:
        app.command(name, **settings)(with_shared_options(function))
        return function

    return register


def with_shared_options(function: Function) -> Function:
    """The function as typer is to see it: `cli` is replaced by the context and the shared options."""
    own = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def run(ctx: typer.Context, **values: Any) -> int | None:
        shared = Cli(**{option: values.pop(option) for option in SHARED})
        cli = shared.over(ctx.find_root().obj)
        ctx.obj = cli
        takes_context = {"ctx": ctx} if "ctx" in own.parameters else {}
        return function(cli, **takes_context, **values)

    parameters = [p for p in own.parameters.values() if p.name not in ("cli", "ctx")]
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(option, keyword, default=default, annotation=kind)
        for option, (kind, default) in SHARED.items()
    ]
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    everything = [context, *(p.replace(kind=keyword) for p in parameters), *shared]
    run.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]  # read by inspect
    run.__annotations__ = {p.name: p.annotation for p in everything}
    return run
