"""Token ids of prompts, and the way back: what `/tokenize`, `/detokenize` and the prefix cache see.

A conversation becomes as many ids as `answers.prompt_tokens` counts, and one that goes on begins with the ids of its
beginning, answers included: that is what makes prefix caching pay.
Ids are hashes of pieces, so the way back is remembered: an id that was never handed out is shown as its number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from memos_llm.emulators import answers
from memos_llm.emulators.emulator import json_bytes
from memos_llm.emulators.vllm_requests import plain_error
from memos_llm.emulators.vllm_versions import Release

START, END, NEWLINE = 151644, 151645, 198
"""<|im_start|>, <|im_end|> and a line break in Qwen's vocabulary."""
_NO_TEXT = "TextEncodeInput must be Union[TextInputSequence, Tuple[InputSequence, InputSequence]]"
_SPECIAL: Mapping[int, str] = {START: "<|im_start|>", END: "<|im_end|>", NEWLINE: "\n"}
_IMAGE = 151655
_IMAGE_TOKENS = 256
_REMEMBERED = 65_536  # pieces
_LONGEST = 1024  # characters of a remembered piece


class Vocabulary:
    """Pieces seen by this server, by id; the oldest go when there are too many."""

    def __init__(self) -> None:
        self._pieces: dict[int, str] = {}

    def ids(self, text: str) -> list[int]:
        """The ids of a text, remembered.

        Raises:
            Rejection: a lone surrogate is in it, which the tokenizer does not take (0.32, measured).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise plain_error(_NO_TEXT) from error
        found = []
        for piece in answers.tokens(text):
            token = answers.token_id(piece)
            found.append(token)
            if len(piece) <= _LONGEST:
                self._pieces[token] = piece
        while len(self._pieces) > _REMEMBERED:
            self._pieces.pop(next(iter(self._pieces)))
        return found

    def piece(self, token: int) -> str:
        """One id as text."""
        return _SPECIAL.get(token) or self._pieces.get(token) or f" {token}"

    def text(self, ids: Sequence[int]) -> str:
        """Ids as text."""
        unknown = bool(ids) and ids[0] not in _SPECIAL and ids[0] not in self._pieces
        return "".join(self.piece(token) for token in ids)[1 if unknown else 0 :]


def prompt_ids(
    vocabulary: Vocabulary, seen: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """The ids of a conversation as `answers.logical` returned it, with a ChatML-like template around."""
    ids = [token for tool in tools for token in vocabulary.ids(_compact(tool))]
    for message in seen:
        ids += _message_ids(vocabulary, message)
    if any(message["role"] != "raw" for message in seen):
        ids += [START, _role_id("assistant"), NEWLINE]
    return ids


def _message_ids(vocabulary: Vocabulary, message: Mapping[str, Any]) -> list[int]:
    inner = [_IMAGE] * (_IMAGE_TOKENS * len(message.get("images", ())))
    for at, image in enumerate(message.get("images", ())):
        inner[at * _IMAGE_TOKENS] = answers.token_id(image)
    inner += vocabulary.ids(message["content"])
    inner += [token for call in message.get("calls", ()) for token in vocabulary.ids(_compact(call))]
    if message["role"] == "raw":
        return inner
    return [START, _role_id(message["role"]), NEWLINE, *inner, END]


def history_reasoning(messages: Sequence[Mapping[str, Any]], release: Release) -> str:
    """The reasoning of past answers that the template shows: of those after the last user message, as Qwen3's does.

    Which spelling is read depends on the release.
    """
    last = max((at for at, m in enumerate(messages) if m.get("role") == "user"), default=-1)
    names = [name for name in ("reasoning", "reasoning_content") if release.has(f"reads {name}")]
    texts = [next((m[name] for name in names if isinstance(m.get(name), str)), "") for m in messages[last + 1 :]]
    return "".join(texts)


def _role_id(role: str) -> int:
    return answers.token_id(f"role:{role}")


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def generated(answer: answers.Answer) -> tuple[str, ...]:
    """Every token of an answer as text, the end token included; as many as it counts if no stop string cut it."""
    called = [json_bytes({"arguments": c.arguments, "name": c.name}).decode() for c in answer.tool_calls]
    pieces = (*answer.thinking, *answer.content, *(t for text in called for t in answers.tokens(text)))
    return (*pieces, _SPECIAL[END]) if ends(answer) else pieces


def ends(answer: answers.Answer) -> bool:
    """Whether the model ended the answer itself, by its end token."""
    return answer.finish == "stop" and answer.matched_stop is None


def blocks(ids: Sequence[int], size: int) -> list[int]:
    """Chained hashes of the full blocks of some ids: equal up to where two prompts differ."""
    starts = range(0, len(ids) - len(ids) % size + 1, size)
    found, before = [], 0
    for start, stop in pairwise(starts):
        before = hash((before, *ids[start:stop]))
        found.append(before)
    return found
