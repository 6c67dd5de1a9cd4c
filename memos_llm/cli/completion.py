"""What a shell may complete: names out of the configuration. Whatever is wrong with that, completing stays silent."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from typer.core import TyperCommand

from memos_llm.core.errors import LLMError

if TYPE_CHECKING:
    from memos_llm.config import Settings

SCOPES = ("inference", "metrics", "read", "operate", "admin")


def components(ctx: typer.Context, incomplete: str) -> list[str]:
    """The components that the configuration knows of."""
    settings = _settings(ctx)
    return _starting(settings.components() if settings else (), incomplete)


def models(ctx: typer.Context, incomplete: str) -> list[str]:
    settings = _settings(ctx)
    return _starting(settings.models if settings else (), incomplete)


def providers(ctx: typer.Context, incomplete: str) -> list[str]:
    settings = _settings(ctx)
    return _starting(settings.providers if settings else (), incomplete)


def scopes(incomplete: str) -> list[str]:
    return _starting(SCOPES, incomplete)


class Item(NamedTuple):
    """What typer's completion reads of one proposal; releases of typer have the class in different packages."""

    value: str
    type: str = "plain"
    help: str | None = None


class WithCandidate(TyperCommand):
    """`shift`, whose option for the share is named like the candidate."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        found = super().shell_complete(ctx, incomplete)
        settings = _settings(ctx) if incomplete.startswith("-") else None
        if settings is None or settings.candidate is None or not f"--{settings.candidate}".startswith(incomplete):
            return found
        return [Item(f"--{settings.candidate}", help="Its share: 0.3 or 30%."), *found]


def _settings(ctx: Any) -> "Settings | None":
    from memos_llm.config import load

    named = ctx.params.get("config") or ctx.find_root().params.get("config")
    try:
        return load(named)
    except LLMError:
        return None


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
