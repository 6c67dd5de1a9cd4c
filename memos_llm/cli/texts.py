"""The texts of a file: one a line, or JSON Lines, or CSV. No line is ever shown: they may be anybody's."""

import csv
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from memos_llm.cli import failures

KEYS = ("text", "input", "content", "prompt", "query", "document")


def read(file: Path, most: int) -> list[str]:
    """The first `most` texts; `-` is stdin. `.jsonl`/`.ndjson` and `.csv` are known by their names, the rest is lines.

    JSON Lines hold strings, or objects with one of `KEYS`. CSV's column is one of `KEYS` by its header, else the first.
    """
    found = _READERS.get(file.suffix.lower(), _lines)(whole(file), file)
    texts = list(islice((text.strip() for text in found if text.strip()), most))
    if not texts:
        raise failures.usage(f"--file {file} holds no texts: one a line, JSON Lines (.jsonl) or CSV (.csv)")
    return texts


def whole(file: Path, option: str = "--file") -> str:
    """What a file holds; `-` is stdin, and `option` is what named it."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise failures.usage(f"{option} {file} cannot be read: {error.strerror or type(error).__name__}") from None
    except UnicodeDecodeError:
        raise failures.usage(f"{option} {file} is not UTF-8 text") from None


def _lines(content: str, file: Path) -> Iterator[str]:
    yield from content.splitlines()


def _json_lines(content: str, file: Path) -> Iterator[str]:
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise failures.usage(f"--file {file}, line {number}: not JSON") from None
        text = _text_of(value)
        if text is None:
            raise failures.usage(
                f"--file {file}, line {number}: neither text nor an object with one of {', '.join(KEYS)}"
            )
        yield text


def _text_of(value: Any) -> str | None:
    found = next((value[key] for key in KEYS if key in value), None) if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def _csv(content: str, file: Path) -> Iterator[str]:
    try:
        rows = [row for row in csv.reader(content.splitlines(keepends=True)) if row]
    except csv.Error as error:
        raise failures.usage(f"--file {file}: not CSV ({error})") from None
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    column = next((header.index(key) for key in KEYS if key in header), None)
    start, place = (0, 0) if column is None else (1, column)
    for row in rows[start:]:
        if len(row) > place:
            yield row[place]


_READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _csv}
