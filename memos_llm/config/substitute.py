"""`${VAR}` and `${VAR:-default}` in the file's values, as a shell reads them; `$${` is a literal `${`."""

import re
from collections.abc import Mapping
from typing import Any

from memos_llm.config.document import Document, Key

_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<body>[^{}]*)\}|\$\{")
_BODY = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)
_NAMED = re.compile(rb"\$\{([A-Za-z_][A-Za-z0-9_]*)")
SECRET_CHARS = 8
_FORMS = "write ${NAME} or ${NAME:-default}, or $${ for a literal ${"


def substitute(document: Document, environ: Mapping[str, str]) -> None:
    """Replace every reference in the document's values, in place. Keys are left alone.

    Raises:
        ConfigError: a variable without a default is not set (it is named), or a reference is malformed.
    """
    document.tree = _value(document.tree, (), document, environ)


def unsaid(message: str, data: bytes, environ: Mapping[str, str]) -> str:
    """A message with the names of the file's variables in place of their values, where those are long enough for a key.

    A key that landed where a provider's name belongs would otherwise be quoted as a name that nobody has.
    """
    named = {name.decode() for name in _NAMED.findall(data)}
    for name in sorted(named, key=lambda name: -len(environ.get(name, ""))):
        value = environ.get(name, "")
        if len(value) >= SECRET_CHARS:
            message = message.replace(value, f"${{{name}}}")
    return message


def _value(value: Any, key: Key, document: Document, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _value(item, (*key, name), document, environ) for name, item in value.items()}
    if isinstance(value, list):
        return [_value(item, (*key, str(index)), document, environ) for index, item in enumerate(value)]
    if isinstance(value, str) and "${" in value:
        return _REFERENCE.sub(lambda found: _resolved(found, key, document, environ), value)
    return value


def _resolved(found: re.Match[str], key: Key, document: Document, environ: Mapping[str, str]) -> str:
    if found[0] == "$${":
        return "${"
    body = _BODY.fullmatch(found["body"] or "")
    if body is None:
        raise document.error(key, f"a ${{ that is not a reference; {_FORMS}")
    name, default = body["name"], body["default"]
    if default is not None:
        return environ.get(name) or default
    if name not in environ:
        raise document.error(key, f"the environment variable {name} is not set (or write ${{{name}:-default}})")
    return environ[name]
