"""From a decoded request to a job: checked, its model found, its prompt counted, its answers made.

No I/O: `Jobs` knows what the server was started with, and asks `answers` what the model says.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memos_llm.emulators import answers, vllm_checks, vllm_types
from memos_llm.emulators.answers import Answer
from memos_llm.emulators.vllm_checks import Limits
from memos_llm.emulators.vllm_chunks import Frame
from memos_llm.emulators.vllm_generation import Job, Prompt
from memos_llm.emulators.vllm_models import Served
from memos_llm.emulators.vllm_requests import not_emulated, schema_error
from memos_llm.emulators.vllm_sampling import Held, output_limit, stops
from memos_llm.emulators.vllm_tokens import Vocabulary, history_reasoning, prompt_ids
from memos_llm.emulators.vllm_versions import Release

_COMPLETION_MAX_TOKENS = 16
_GUIDED = ("guided_regex", "guided_choice", "guided_grammar")


@dataclass(frozen=True, slots=True)
class Model:
    """How the emulated model speaks.

    Args:
        thinks: unless told not to. parser: a reasoning parser is set. words: fixed length of answers, None for 5
            to 12. carries_last: the finish chunk carries the last delta. seed: varies answers and ids.
    """

    thinks: bool
    parser: bool
    words: int | None
    carries_last: bool
    seed: int


class Jobs:
    """Makes jobs of requests."""

    def __init__(self, model: Model, served: Served, limits: Limits) -> None:
        self._model, self._served, self.limits = model, served, limits
        self._release: Release = limits.release
        self._ids = random.Random(model.seed)
        self.vocabulary = Vocabulary()

    def frame(self, prefix: str, request_id: str | None, model: str, prompt_tokens: int) -> Frame:
        """What every object of one response shares."""
        return Frame(
            id=f"{prefix}{request_id or f'{self._ids.getrandbits(64):016x}'}",
            created=int(time.time()),
            model=model,
            release=self._release,
            parser=self._model.parser,
            prompt_tokens=prompt_tokens,
        )

    def chat(self, given: dict[str, Any], prefix: str, request_id: str | None) -> Job:
        """The job of a chat request.

        Raises:
            Rejection: in the server's words.
        """
        vllm_checks.check_chat(given, self.limits)
        model = self._served.shown(given.get("model"))
        vllm_checks.check_chat_of_model(given, self.limits)
        ids = self.conversation(given)
        wanted = next((given[n] for n in ("max_completion_tokens", "max_tokens") if given.get(n) is not None), None)
        limit = output_limit(wanted, len(ids), self.limits.max_model_len, self._release)
        thinking = self._thinks(given) and given.get("continue_final_message") is not True
        how = _How(given.get("tools"), given.get("tool_choice"), thinking)
        said = self._said(given, given["messages"], limit, len(repr(given["messages"])), Held(given), how)
        frame = self.frame(prefix, request_id, model, len(ids))
        return Job(given, frame, [Prompt(ids)], said, wanted, self._model.carries_last)

    def completion(self, given: dict[str, Any], request_id: str | None) -> Job:
        """The job of a completion request.

        Raises:
            Rejection: in the server's words.
        """
        vllm_checks.check_completion(given, self.limits)
        model = self._served.shown(given.get("model"))
        vllm_checks.check_completion_of_model(given, self.limits)
        wanted = given.get("max_tokens", _COMPLETION_MAX_TOKENS)
        if wanted is None and self._release.has("null max_tokens is absent"):
            wanted = _COMPLETION_MAX_TOKENS
        held, said, prompts = Held(given), [], []
        for text in self._texts(given["prompt"]):
            ids = self.vocabulary.ids(text)
            limit = output_limit(
                wanted or (1 if wanted == 0 else None), len(ids), self.limits.max_model_len, self._release
            )
            said += self._said(given, [{"role": "raw", "content": text}], limit, len(text), held, _How())
            echoed = answers.tokens(text) if given.get("echo") else ()
            prompts.append(Prompt(ids, "".join(echoed), echoed))
        frame = self.frame("cmpl-", request_id, model, sum(len(prompt.ids) for prompt in prompts))
        return Job(given, frame, prompts, said, wanted, self._model.carries_last)

    def conversation(self, given: Mapping[str, Any]) -> list[int]:
        """The ids of a checked conversation."""
        seen = answers.logical("vllm", given["messages"])
        ids = prompt_ids(self.vocabulary, seen, given.get("tools") or ())
        return ids + self.vocabulary.ids(history_reasoning(given["messages"], self._release))

    def tokenized(self, given: dict[str, Any]) -> dict[str, Any]:
        """The answer of `/tokenize`, which no context length limits.

        Raises:
            Rejection: in the server's words.
        """
        vllm_types.convert(given, vllm_types.TOKENIZE)
        if given.get("messages") is not None:
            vllm_checks.check_conversation(given)
        elif not isinstance(given.get("prompt"), str):
            kind, text = (
                ("string_type", "Input should be a valid string")
                if "prompt" in given
                else ("missing", "Field required")
            )
            raise schema_error(("prompt",), kind, text, given.get("prompt", given))
        self._served.shown(given.get("model"))
        if given.get("messages") is not None:
            vllm_checks.check_parts(given["messages"], self.limits)
            ids = self.conversation(given)
            if given.get("add_generation_prompt") is False:
                ids = ids[:-3]
        else:
            ids = self.vocabulary.ids(given["prompt"])
        texts = [self.vocabulary.piece(token) for token in ids] if given.get("return_token_strs") else None
        return {"count": len(ids), "max_model_len": self.limits.max_model_len, "tokens": ids, "token_strs": texts}

    def detokenized(self, given: dict[str, Any]) -> dict[str, Any]:
        """The answer of `/detokenize`.

        Raises:
            Rejection: in the server's words.
        """
        if "tokens" not in given:
            raise schema_error(("tokens",), "missing", "Field required", given)
        ids = given["tokens"]
        if not isinstance(ids, list) or not all(vllm_checks.is_id(token) for token in ids):
            raise schema_error(("tokens",), "list_type", "Input should be a valid list", ids)
        self._served.shown(given.get("model"))
        return {"prompt": self.vocabulary.text(ids)}

    def _texts(self, prompt: Any) -> list[str]:
        items = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
        return [item if isinstance(item, str) else self.vocabulary.text(item) for item in items]

    def _thinks(self, given: Mapping[str, Any]) -> bool:
        if not self._model.thinks:
            return False
        asked = (given.get("chat_template_kwargs") or {}).get("enable_thinking")
        if asked is not None:
            return bool(asked)
        return not (self._release.has("effort drives thinking") and given.get("reasoning_effort") == "none")

    def _said(
        self,
        given: Mapping[str, Any],
        messages: Sequence[Mapping[str, Any]],
        limit: int,
        prompt_chars: int,
        held: Held,
        how: _How,
    ) -> list[Answer]:
        """The `n` choices for one prompt."""
        said: list[Answer] = []
        for choice in range(given.get("n") or 1):
            held.prompt(prompt_chars)
            answer = answers.expected(
                "vllm",
                messages,
                seed=self._model.seed,
                tools=how.tools,
                tool_choice=how.tool_choice,
                thinking=how.thinking,
                schema=requested_schema(given, self._release),
                max_tokens=limit,
                stop=stops(given),
                words=limit if given.get("ignore_eos") else self._model.words,
                choice=choice,
            )
            if given.get("parallel_tool_calls") is False:
                answer = replace(answer, tool_calls=answer.tool_calls[:1])
            held.answer(answer.completion_tokens)
            said.append(answer)
        return said


@dataclass(frozen=True, slots=True)
class _How:
    """What only chat has."""

    tools: Any = None
    tool_choice: Any = None
    thinking: bool = False


def requested_schema(given: Mapping[str, Any], release: Release) -> Any:
    """The JSON schema an answer must fit, "json" for any object, None for free text.

    `guided_json` counted up to 0.11 and is ignored since, as every unknown field is.

    Raises:
        Rejection: 501 for a constraint that is not emulated.
    """
    outputs = (given.get("structured_outputs") or {}) if release.has("structured_outputs") else {}
    wanted = given.get("response_format") or {}
    guided = _wanted(given, ("guided_json", *_GUIDED)) if release.has("guided_json") else {}
    if outputs.get("json") is not None or guided.get("guided_json"):
        return outputs.get("json") or guided["guided_json"]
    if outputs.get("json_object") or wanted.get("type") == "json_object":
        return "json"
    if outputs or guided or wanted.get("type") == "structural_tag":
        raise not_emulated("this structured output is")
    return (wanted.get("json_schema") or {}).get("schema") if wanted.get("type") == "json_schema" else None


def _wanted(given: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: given[name] for name in names if given.get(name)}
