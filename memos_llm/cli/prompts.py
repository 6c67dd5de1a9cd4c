"""The prompts of a file: JSON Lines of `{"prompt": …}` or `{"messages": […]}`, else one a line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memos_llm.cli import failures, texts
from memos_llm.dialects.typed import check_messages

MOST = 10_000
OPTION = "--prompts"


def read(file: Path) -> list[Sequence[Mapping[str, Any]]]:
    """Conversations, at most `MOST`. No line is ever shown.

    Raises:
        Failure: the file cannot be read, or a line is none; it says which.
    """
    lines = [line for line in enumerate(texts.whole(file, OPTION).splitlines(), start=1) if line[1].strip()]
    if not lines:
        raise failures.usage(f"{OPTION} {file} holds no prompts: one a line, or JSON Lines (.jsonl)")
    if file.suffix.lower() not in (".jsonl", ".ndjson"):
        return [_question(line.strip()) for _, line in lines[:MOST]]
    return [_line(line, f"{OPTION} {file}, line {number}") for number, line in lines[:MOST]]


def _line(line: str, where: str) -> Sequence[Mapping[str, Any]]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise failures.usage(f"{where}: not JSON") from None
    if isinstance(value, str) and value:
        return _question(value)
    if isinstance(value, dict) and isinstance(value.get("prompt"), str) and value["prompt"]:
        return _question(value["prompt"])
    messages = value.get("messages") if isinstance(value, dict) else None
    if not messages:
        raise failures.usage(f'{where}: neither text nor {{"prompt": "…"}} nor {{"messages": […]}}')
    try:
        check_messages(messages)
    except TypeError as error:
        raise failures.usage(f"{where}: {error}") from None
    return list(messages)


def _question(text: str) -> Sequence[Mapping[str, Any]]:
    return [{"role": "user", "content": text}]
