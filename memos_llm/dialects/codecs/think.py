"""Cut `<think>…</think>` out of content, for servers that run without a reasoning parser.

As Ollama does it: the tag counts only at the very start, and white space around the tags goes.
"""

from collections.abc import Callable
from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"


class Piece(NamedTuple):
    """Some text, and whether it was thought or said."""

    text: str
    thought: bool


class ThinkSplitter:
    """Sans-IO; text that may yet turn out to be part of a tag is kept until it is clear."""

    def __init__(self) -> None:
        self._held = ""
        self._step: Callable[[], list[Piece]] = self._before

    def feed(self, text: str) -> list[Piece]:
        self._held += text
        return [piece for piece in self._step() if piece.text]

    def close(self) -> list[Piece]:
        """What was kept, at the end of the answer."""
        thought = self._step in (self._opened, self._inside)
        rest = self._held.rstrip() if thought else self._held
        self._held = ""
        return [Piece(rest, thought)] if rest else []

    def _before(self) -> list[Piece]:
        start = self._held.lstrip()
        if start.startswith(OPEN):
            self._held = start.removeprefix(OPEN)
            return self._enter(self._opened)
        return [] if OPEN.startswith(start) else self._enter(self._after)

    def _opened(self) -> list[Piece]:
        self._held = self._held.lstrip()
        return self._enter(self._inside) if self._held else []

    def _inside(self) -> list[Piece]:
        thought, tag, rest = self._held.partition(CLOSE)
        if tag:
            self._held = rest
            return [Piece(thought.rstrip(), True), *self._enter(self._closed)]
        keep = len(thought) - _clear(thought)
        self._held = thought[len(thought) - keep :] if keep else ""
        return [Piece(thought[: len(thought) - keep], True)]

    def _closed(self) -> list[Piece]:
        self._held = self._held.lstrip()
        return self._enter(self._after) if self._held else []

    def _after(self) -> list[Piece]:
        said, self._held = self._held, ""
        return [Piece(said, False)]

    def _enter(self, step: Callable[[], list[Piece]]) -> list[Piece]:
        self._step = step
        return step()


def _clear(text: str) -> int:
    """How much of it is surely neither white space before the closing tag nor the tag's beginning."""
    overlap = next((n for n in range(min(len(CLOSE) - 1, len(text)), 0, -1) if text.endswith(CLOSE[:n])), 0)
    return len(text[: len(text) - overlap].rstrip())
