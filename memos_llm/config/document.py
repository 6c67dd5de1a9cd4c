"""A configuration source as a plain tree, with the place where each key was written.

YAML is read here and nowhere else. Duplicate keys are refused; positions are kept, so that an error found much later
can still name file and line. Messages from here never quote values: any of them may be a secret.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from memos_llm.core.errors import ConfigError

Key = tuple[str, ...]
Tree = dict[str, Any]

_QUOTED_OR_COMMENT = re.compile(r"\"(?:\\.|[^\"\\])*\"|'[^']*'|(?:^|\s)#.*")
_DUPLICATE = re.compile(r'found duplicate key "(.*?)" with value')
QUOTE_IT = 'an unquoted ${ is YAML syntax inside { } and [ ]: quote it, as in "${NAME}"'


@dataclass
class Document:
    """A tree of plain values and, for each key, where it came from (`file:line` or a variable's name)."""

    tree: Tree = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    name: str = ""

    def where(self, key: Key) -> str:
        """The place of a key, or of the nearest key around it; empty when nobody wrote it."""
        while key not in self.origins and key:
            key = key[:-1]
        return self.origins.get(key, self.name)

    def error(self, key: Key, message: str) -> ConfigError:
        return ConfigError(self.line(key, message))

    def line(self, key: Key, message: str) -> str:
        """One line that names place, key and what is wrong."""
        return ": ".join(part for part in (self.where(key), dotted(key), message) if part)

    def get(self, key: Key) -> Any:
        """The value at a key, None when there is none."""
        value: Any = self.tree
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def has(self, key: Key) -> bool:
        """Whether a key was written, be it as `null`."""
        holder = self.get(key[:-1])
        return isinstance(holder, dict) and key[-1] in holder

    def put(self, key: Key, value: Any, origin: str) -> None:
        """Set a value, making the sections around it; a section that is `null` counts as empty."""
        holder = self.tree
        for depth, part in enumerate(key[:-1], start=1):
            if holder.get(part) is None:
                holder[part] = {}
            holder = holder[part]
            if not isinstance(holder, dict):
                raise self.error(key[:depth], "must be a mapping")
        holder[key[-1]] = value
        self.origins[key] = origin


def dotted(key: Key) -> str:
    return ".".join(key)


def read_yaml(data: bytes, name: str) -> Document:
    """Parse a file.

    Raises:
        ConfigError: not UTF-8, not YAML, a duplicate key, or not a mapping.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 (byte {error.start})") from None
    document = Document(lines=text.splitlines(), name=name)
    root = _parse(text, document)
    if root is None:
        return document
    if not isinstance(root, CommentedMap):
        raise ConfigError(f"{name}: must be a mapping of settings, such as `baseline: ollama`")
    document.tree = _plain(root, (), document)
    return document


_NAMED = re.compile(r"(?<=alias) '.*'", re.DOTALL)  # a secret that begins with * is one for YAML


def _parse(text: str, document: Document) -> Any:
    try:
        return YAML(typ="rt").load(text)
    except DuplicateKeyError as error:
        key = _DUPLICATE.search(error.problem or "")
        message = f"the key {key[1] if key else ''!r} is there twice; keep one"
        raise ConfigError(f"{_place(error, document)}: {message}") from None
    except MarkedYAMLError as error:
        hint = f"; {QUOTE_IT}" if _unquoted_variable(error, document.lines) else ""
        problem = _NAMED.sub("", error.problem or "")
        raise ConfigError(f"{_place(error, document)}: not valid YAML: {problem}{hint}") from None
    except YAMLError as error:
        raise ConfigError(f"{document.name}: not valid YAML ({type(error).__name__})") from None


def _place(error: MarkedYAMLError, document: Document) -> str:
    return f"{document.name}:{error.problem_mark.line + 1}" if error.problem_mark else document.name


def _unquoted_variable(error: MarkedYAMLError, lines: list[str]) -> bool:
    marks = [mark.line for mark in (error.problem_mark, error.context_mark) if mark]
    near = lines[min(marks, default=0) : max(marks, default=0) + 1]
    return any("${" in _QUOTED_OR_COMMENT.sub("", line) for line in near)


def _plain(node: Any, key: Key, document: Document) -> Any:
    if isinstance(node, CommentedMap):
        return {str(name): _item(node, name, (*key, str(name)), document) for name in node}
    if isinstance(node, CommentedSeq):
        return [_item(node, index, (*key, str(index)), document) for index in range(len(node))]
    return _scalar(node, key, document)


def _item(node: CommentedMap | CommentedSeq, name: Any, key: Key, document: Document) -> Any:
    position = (node.lc.data or {}).get(name)
    if position is not None:
        document.origins[key] = f"{document.name}:{position[0] + 1}"
    return _plain(node[name], key, document)


_SCALARS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (bool, bool),
    (ScalarBoolean, bool),  # an int to Python: an anchored `true`
    (int, int),
    (float, float),
    (str, str),
)


def _scalar(node: Any, key: Key, document: Document) -> Any:
    if node is None:
        return None
    for kind, plain in _SCALARS:
        if isinstance(node, kind):
            return plain(node)
    raise document.error(key, "must be text, a number, true, false or null (quote a date, and leave out YAML tags)")
