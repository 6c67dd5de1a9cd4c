"""`/v1/chat/completions` and `/v1/completions`, streamed and whole."""

from __future__ import annotations

from collections import Counter
from typing import Any

from memos_llm.emulators import vllm_chunks
from memos_llm.emulators.vllm_chunks import DONE, event
from memos_llm.emulators.vllm_generation import Job, Piece, carried, chat_pieces, said_apart
from memos_llm.emulators.vllm_requests import Rejection
from memos_llm.emulators.vllm_tokens import ends, generated


class _Plain:
    """What both have: errors in the middle end in [DONE] too, so that alone does not mean success."""

    broken = b'data: {"id":"chatcmpl-\n\n'

    def __init__(self, *, nested_errors: bool) -> None:
        self._nested = nested_errors

    def error(self, text: str) -> list[bytes]:
        return [event(Rejection(500, "InternalServerError", text).body(nested=self._nested)), DONE]


class ChatFormat(_Plain):
    """Chat."""

    def pieces(self, job: Job, index: int) -> list[Piece]:
        return chat_pieces(job, index)

    def preamble(self, job: Job) -> bytes:
        chunks = [vllm_chunks.role_chunk(job.frame, index) for index in range(len(job.answers))]
        return b"".join(event(self._counted(job, chunk, 0)) for chunk in chunks)

    def piece(self, job: Job, index: int, piece: Piece, so_far: int) -> bytes:
        shown = _chat_logprobs(job, [piece.token]) if piece.token else None
        return event(self._counted(job, vllm_chunks.delta_chunk(job.frame, index, piece.delta, shown), so_far))

    def ending(self, job: Job) -> list[bytes]:
        finished = [event(self._counted(job, self._finish(job, i), job.completion_tokens)) for i in _indices(job)]
        if not job.option("include_usage") or job.fault_name == "no_usage":
            return [*finished, DONE]
        body = vllm_chunks.usage_chunk(job.frame, job.completion_tokens, job.reasoning_tokens)
        return [*finished, event(body), DONE]

    def whole(self, job: Job) -> dict[str, Any]:
        return vllm_chunks.completion(job.frame, [self._choice(job, index) for index in _indices(job)], _counts(job))

    def _counted(self, job: Job, body: dict[str, Any], so_far: int) -> dict[str, Any]:
        if job.option("continuous_usage_stats") and job.option("include_usage"):
            body["usage"] = vllm_chunks.usage(job.frame, so_far, 0, running=True)
        return body

    def _finish(self, job: Job, index: int) -> dict[str, Any]:
        answer = job.answers[index]
        last = carried(job, index, chat_pieces(job, index))
        tokens = ([last.token] if last and last.token else []) + list(generated(answer)[-1:] if ends(answer) else ())
        return vllm_chunks.finish_chunk(
            job.frame,
            index,
            last.delta if last else self._nothing(job),
            job.finish_reason(index),
            answer.matched_stop,
            _chat_logprobs(job, tokens) if tokens else None,
            fingerprint=not job.option("include_usage"),
        )

    def _nothing(self, job: Job) -> dict[str, Any]:
        return {} if job.frame.release.has("finish delta is empty") else {"content": ""}

    def _choice(self, job: Job, index: int) -> dict[str, Any]:
        answer = job.answers[index]
        content, reasoning = said_apart(job, index)
        fields = vllm_chunks.reasoning_fields(job.frame.release, reasoning)
        return {
            "index": index,
            "message": vllm_chunks.message(answer, content, fields, job.call_ids(index)),
            "logprobs": _chat_logprobs(job, list(generated(answer))),
            "finish_reason": job.finish_reason(index),
            "stop_reason": answer.matched_stop,
            "token_ids": None,
            **({"routed_experts": None} if job.frame.release.has("nulls of 0.32") else {}),
        }


class TextFormat(_Plain):
    """Text completions; `echo` shows the prompt before the answer. One for each request: it counts what was sent."""

    def __init__(self, *, nested_errors: bool) -> None:
        super().__init__(nested_errors=nested_errors)
        self._sent_chars: Counter[int] = Counter()

    def pieces(self, job: Job, index: int) -> list[Piece]:
        echo = job.prompt(index).echo
        pieces = [Piece({"text": piece}, piece) for piece in self._tokens(job, index)]
        return [Piece({"text": echo}, ""), *pieces] if echo else pieces

    def preamble(self, job: Job) -> bytes:
        return b""

    def piece(self, job: Job, index: int, piece: Piece, so_far: int) -> bytes:
        tokens = [piece.token] if piece.token else list(job.prompt(index).echoed)
        return event(self._chunk(job, index, piece.delta["text"], tokens, None, prompt=not piece.token))

    def ending(self, job: Job) -> list[bytes]:
        finished = [event(self._finish(job, index)) for index in _indices(job)]
        if not job.option("include_usage") or job.fault_name == "no_usage":
            return [*finished, DONE]
        counts = vllm_chunks.usage(job.frame, job.completion_tokens, 0, whole=False)
        last = vllm_chunks.text_object(job.frame, [], counts, whole=False, fingerprint=True)
        return [*finished, event(last), DONE]

    def whole(self, job: Job) -> dict[str, Any]:
        return vllm_chunks.text_object(
            job.frame, [self._choice(job, i) for i in _indices(job)], _counts(job), whole=True
        )

    def _tokens(self, job: Job, index: int) -> tuple[str, ...]:
        return () if only_echo(job) else job.answers[index].content

    def _finish(self, job: Job, index: int) -> dict[str, Any]:
        answer = job.answers[index]
        last = carried(job, index, self.pieces(job, index))
        text = last.delta["text"] if last else ""
        tokens = ([last.token] if last and last.token else []) + list(generated(answer)[-1:] if ends(answer) else ())
        return self._chunk(job, index, text, tokens, job.finish_reason(index))

    def _chunk(
        self, job: Job, index: int, text: str, tokens: list[str], reason: str | None, *, prompt: bool = False
    ) -> dict[str, Any]:
        offset = self._sent_chars[index]
        self._sent_chars[index] += len(text)
        shown = _text_logprobs(job, tokens, len(tokens) if prompt else 0, offset) if tokens else None
        stop = job.answers[index].matched_stop if reason else None
        choice = vllm_chunks.text_choice(job.frame, index, text, reason, stop, shown, whole=False)
        marked = reason is not None and not job.option("include_usage")
        return vllm_chunks.text_object(job.frame, [choice], None, whole=False, fingerprint=marked)

    def _choice(self, job: Job, index: int) -> dict[str, Any]:
        answer, prompt = job.answers[index], job.prompt(index)
        tokens = [*prompt.echoed, *(() if only_echo(job) else generated(answer))]
        shown = _text_logprobs(job, tokens, len(prompt.echoed))
        text = prompt.echo + "".join(self._tokens(job, index))
        reason = job.finish_reason(index)
        return vllm_chunks.text_choice(job.frame, index, text, reason, answer.matched_stop, shown, whole=True)


def only_echo(job: Job) -> bool:
    """Whether only the prompt is wanted: `echo` with `max_tokens` 0."""
    return bool(job.given.get("echo")) and job.given.get("max_tokens") == 0


def _indices(job: Job) -> range:
    return range(len(job.answers))


def _counts(job: Job) -> dict[str, Any] | None:
    if job.fault_name == "no_usage":
        return None
    return vllm_chunks.usage(job.frame, job.completion_tokens, job.reasoning_tokens, whole=True)


def _chat_logprobs(job: Job, tokens: list[str]) -> dict[str, Any] | None:
    if not job.given.get("logprobs") or not job.shows_reasoning:
        return None
    return vllm_chunks.logprobs(tokens, job.given.get("top_logprobs") or 0)


def _text_logprobs(job: Job, tokens: list[str], prompt: int, offset: int = 0) -> dict[str, Any] | None:
    top = job.given.get("logprobs")
    return None if top is None else vllm_chunks.text_logprobs(tokens, top, offset=offset, prompt=prompt)
