"""Which of the migration report's names a valid configuration uses, for `llmctl doctor`: loading resolves them away."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from memos_llm.config.aliases import ALIASES, MODEL_FALLBACKS, homes
from memos_llm.config.document import Document, dotted, read_yaml
from memos_llm.config.environment import PREFIX
from memos_llm.core.errors import ConfigError


def aliases_given(file: Path | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Each as it is spelt → the setting that it is. A file that cannot be read uses none."""
    found = dict(_in_environment(environ))
    if file is not None:
        with suppress(OSError, ConfigError):  # it has changed since it was loaded
            found |= _in_document(read_yaml(file.read_bytes(), str(file)))
    return found


def _in_document(document: Document) -> Iterator[tuple[str, str]]:
    for alias, target in ALIASES.items():
        for home in homes(target):
            if document.has((*home, alias)):
                yield dotted((*home, alias)), dotted(target)
    for home in ((), ("routing",), ("models",)):
        if document.has((*home, MODEL_FALLBACKS)):
            yield dotted((*home, MODEL_FALLBACKS)), "models.<model>.fallbacks"


def _in_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for variable, value in environ.items():
        name = variable.removeprefix(PREFIX).rpartition("__")[2].lower()
        if variable.startswith(PREFIX) and value and name in ALIASES:
            yield variable, dotted(ALIASES[name])
