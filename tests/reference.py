"""The tables of the README that are written by the code: `scripts/docs` writes them, `test_readme` holds them to it."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from memos_llm.cli.app import app
from memos_llm.config import describe_settings
from memos_llm.config.aliases import ALIASES
from memos_llm.config.pending import PENDING
from memos_llm.core import errors
from memos_llm.dialects.codecs import report
from memos_llm.telemetry.metrics import describe_metrics

README = Path(__file__).parent.parent / "README.md"
_BLOCK = re.compile(r"(<!-- written by scripts/docs: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

BAR = "\\|"  # a bar within a cell
Rows = Iterable[tuple[str, ...]]


def table(head: tuple[str, ...], rows: Rows) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", BAR) for cell in line) + " |\n" for line in lines)


def settings() -> str:
    rows = (
        (f"`{s.key}`", _default(s.required, s.default), _in_force(s.key) + s.description) for s in describe_settings()
    )
    return table(("setting", "default", "what it does"), rows)


def _in_force(key: str) -> str:
    return "*(not yet)* " if key.partition(".")[0] in PENDING else ""


def _default(required: bool, value: Any) -> str:
    if required:
        return "required"
    return "" if value in (None, "", (), {}) else f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(getattr(value, "value", value))


def aliases() -> str:
    return table(("name", "setting"), ((f"`{alias}`", f"`{'.'.join(key)}`") for alias, key in ALIASES.items()))


EVERYWHERE = frozenset({"--config", "--store", "--gateway", "--json", "--help"})  # what every command takes


def commands() -> str:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    return table(("command", "what it does", "options"), _commands(root, "llmctl"))


def _commands(group: TyperGroup, name: str) -> Iterator[tuple[str, ...]]:
    for key, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _commands(command, f"{name} {key}")
            continue
        words = [(p.metavar or p.name or "").upper() for p in command.params if isinstance(p, TyperArgument)]
        options = [p.opts[0] for p in command.params if isinstance(p, TyperOption) and not p.hidden]
        own = " ".join(f"`{option}`" for option in options if option not in EVERYWHERE)
        yield f"`{' '.join((name, key, *words))}`", command.get_short_help_str(200), own


def metrics() -> str:
    rows = ((f"`{m.name}`", m.kind, ", ".join(m.labels), m.help) for m in describe_metrics())
    return table(("name", "type", "labels", "what it counts"), rows)


def error_codes() -> str:
    rows = [
        (cls.code, f"`{cls.name}`", f"`{cls.__name__}`", str(cls.status), "yes" if cls.retryable else "no", _first(cls))
        for cls in _tree(errors.LLMError)
    ]
    return table(("code", "name", "class", "HTTP", "retryable", "meaning"), sorted(rows))


def _tree(cls: type[errors.LLMError]) -> Iterator[type[errors.LLMError]]:
    """Those of the public tree; a package's own subclasses share their parent's code."""
    if cls.__module__ == errors.__name__:
        yield cls
        for below in cls.__subclasses__():
            yield from _tree(below)


def _first(cls: type) -> str:
    return (cls.__doc__ or "").partition("\n")[0]


BLOCKS: Mapping[str, Callable[[], str]] = {
    "settings": settings,
    "aliases": aliases,
    "commands": commands,
    "metrics": metrics,
    "errors": error_codes,
    "translation": report.markdown,
}


def written(text: str) -> str:
    """The README with every block as the code has it now."""
    return _BLOCK.sub(lambda found: found[1] + BLOCKS[found["name"]]() + found[3], text)


def named(text: str) -> set[str]:
    return {found["name"] for found in _BLOCK.finditer(text)}


if __name__ == "__main__":
    before = README.read_text()
    after = written(before)
    README.write_text(after)
    sys.stdout.write("docs: README.md is written anew\n" if after != before else "docs: README.md is up to date\n")
