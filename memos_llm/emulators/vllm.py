"""Emulator of vLLM's OpenAI server.

Never kinder than the real one: strict validation, one base model under its served names, the first served name in
every answer, an idle connection closed after 5 s, a client that leaves aborted at once. Facts: vLLM 0.32.0,
measured; 0.33 source.
Not emulated (404 in the server's way): embeddings and the other pooling routes, `/v1/responses`, `/v1/messages`,
audio, LoRA, `/detokenize`, development routes. `structured_outputs` other than json and json_object is a 501, and so
is a request whose choices together are longer than `vllm_requests.MAX_HELD`.
"""

from __future__ import annotations

import gzip
import hmac
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from memos_llm.emulators import answers, vllm_chunks, vllm_requests
from memos_llm.emulators.answers import Answer
from memos_llm.emulators.emulator import Emulator, json_bytes
from memos_llm.emulators.faults import Fault
from memos_llm.emulators.playing import EngineFailure, Script, play, reply_whole
from memos_llm.emulators.vllm_chunks import DONE, Frame, event
from memos_llm.emulators.vllm_engine import DEAD, Engine, Run, exposition
from memos_llm.emulators.vllm_requests import Held, Limits, Rejection
from memos_llm.emulators.wire import Exchange

JSON = (("content-type", "application/json"),)
SSE = (("content-type", "text/event-stream; charset=utf-8"),)
_GUARDED = ("/v1", "/v2", "/inference", "/cohere")
_KEEP_ALIVE_S = 5.0
_DEFAULT_MODELS = ("Qwen/Qwen3-8B",)
_COMPLETION_MAX_TOKENS = 16
_QUEUE_TEXT = "The server is overloaded: too many requests are queued. Please retry later."

Route = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Piece:
    """One engine output of one choice: a delta for the client, and the tokens it stands for."""

    delta: Mapping[str, Any]
    token: str


@dataclass(frozen=True, slots=True)
class Job:
    """One checked request with everything its answer needs."""

    given: Mapping[str, Any]
    frame: Frame
    answers: Sequence[Answer]
    thinking: bool
    chat: bool
    fault: Fault | None
    prefixes: Sequence[str] = ()  # echoed prompts of text completions

    @property
    def fault_name(self) -> str:
        """Name of the fault, empty if there is none."""
        return self.fault.name if self.fault else ""

    @property
    def completion_tokens(self) -> int:
        """Generated tokens of all choices."""
        return sum(answer.completion_tokens for answer in self.answers)

    @property
    def reasoning_tokens(self) -> int:
        """Thinking tokens of all choices."""
        return sum(len(answer.thinking) for answer in self.answers)

    def option(self, name: str) -> bool:
        """A flag of stream_options."""
        return bool((self.given.get("stream_options") or {}).get(name))


class VllmEmulator(Emulator):
    """A vLLM server.

    Args:
        models: served names of the one model; the first is the name in every answer, the others are aliases.
        api_key: Bearer token asked for on /v1, None for none. version: "0.33.0" or e.g. "0.32.0".
        enable_auto_tool_choice: started with that flag and a tool parser; without, tools are a 400.
        reasoning_parser: name of one, None leaves `<think>` text in the content.
        thinking: the model thinks unless `enable_thinking` is false; None: if its name says Qwen3.
        vision: accepts images; None: if its name says VL.
        max_model_len, max_num_seqs: tokens, and requests that run at once.
        http_keep_alive_s: an idle connection is closed after this.
        max_num_queued_reqs: admission limit, None for none. finish_carries_last: the finish chunk carries the
            last delta (it always does when the limit was reached).
        words: fixed length of answers in words, None for 5 to 12. Others: see `Emulator`.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        models: Iterable[str] = _DEFAULT_MODELS,
        ttft_s: float = 0.0,
        inter_token_s: float = 0.0,
        api_key: str | None = None,
        faults: Iterable[str | Fault] = (),
        seed: int = 0,
        version: str = "0.33.0",
        enable_auto_tool_choice: bool = True,
        reasoning_parser: str | None = "qwen3",
        thinking: bool | None = None,
        vision: bool | None = None,
        max_model_len: int = 40960,
        max_num_seqs: int = 256,
        max_num_queued_reqs: int | None = None,
        http_keep_alive_s: float = _KEEP_ALIVE_S,
        finish_carries_last: bool = False,
        words: int | None = None,
    ) -> None:
        super().__init__(
            "vllm",
            host=host,
            port=port,
            ttft_s=ttft_s,
            inter_token_s=inter_token_s,
            faults=faults,
            seed=seed,
            server_header="uvicorn",
            idle_close_s=http_keep_alive_s,
        )
        self.version = version
        self.words = words
        self.served = tuple(models)
        name = self.served[0].lower()
        self.thinking = "qwen3" in name if thinking is None else thinking
        self.reasoning_parser = reasoning_parser
        self._api_key = api_key
        self._finish_carries_last = finish_carries_last
        self._ids = random.Random(seed)
        self._limits = Limits(
            served=self.served,
            max_model_len=max_model_len,
            auto_tools=enable_auto_tool_choice,
            vision=("vl" in name) if vision is None else vision,
            clamps=self.since("0.32.0"),
            four_stops=self.since("0.28.0"),
            upper_temperature=self.since("0.26.0"),
            empty_tools=self.since("0.20.0"),
        )
        self.engine_core = Engine(
            self.timing,
            max_num_seqs=max_num_seqs,
            kv_tokens=8 * max_model_len,
            max_queued=max_num_queued_reqs,
            on_token=self._generated,
        )
        self._routes: Mapping[str, Mapping[str, Route]] = {
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/version": {"GET": self._version},
            "/load": {"GET": self._load},
            "/metrics": {"GET": self._metrics},
            "/tokenize": {"POST": self._tokenize},
            "/v1/models": {"GET": self._models},
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/completions": {"POST": self._completions},
        }

    def since(self, version: str) -> bool:
        """Whether the emulated release is this one or newer."""
        return _numbers(self.version) >= _numbers(version)

    def is_data_route(self, path: str) -> bool:
        return path in ("/v1/chat/completions", "/v1/completions")

    def stream_headers(self, path: str) -> tuple[tuple[str, str], ...]:
        return SSE

    def faults_changed(self) -> None:
        self.engine_core.set_state(dead=self.faults.active("engine_dead"), hung=self.faults.active("hang_engine"))

    async def before(self, exchange: Exchange, fault: Fault) -> None:
        code = {"model_missing": 404, "queue_full": 503}.get(fault.name, fault.code)
        if code == 401:
            await self._unauthorized(exchange)
            return
        await self._reject(exchange, _injected(code, _model_of(exchange.request.body)))

    # -- dispatch

    async def dispatch(self, exchange: Exchange) -> None:
        request = exchange.request
        if not self._authorized(exchange):
            await self._unauthorized(exchange)
            return
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            await exchange.reply(400, b"Disallowed CORS origin", [("content-type", "text/plain; charset=utf-8")])
            return
        methods = self._routes.get(request.path)
        route = (methods or {}).get(request.method)
        if route is not None:
            await self._guarded(route, exchange)
        elif methods is not None:
            allow = ("allow", ", ".join(methods))
            await exchange.reply(405, json_bytes({"detail": "Method Not Allowed"}), (allow, *JSON))
        else:
            await self._unknown(exchange)

    async def _unknown(self, exchange: Exchange) -> None:
        bare = exchange.request.path.rstrip("/")
        if bare in self._routes and bare != exchange.request.path:
            location = f"http://{exchange.request.headers.get('host', '')}{bare}"
            await exchange.reply(307, b"", [("location", location)])
        else:
            await exchange.reply(404, json_bytes({"detail": "Not Found"}), JSON)

    async def _guarded(self, route: Route, exchange: Exchange) -> None:
        try:
            await route(exchange)
        except Rejection as rejection:
            await self._reject(exchange, rejection)
        except EngineFailure as failure:
            await self._reject(exchange, Rejection(500, "InternalServerError", str(failure)))

    def _authorized(self, exchange: Exchange) -> bool:
        request = exchange.request
        if self._api_key is None or request.method == "OPTIONS" or not request.path.startswith(_GUARDED):
            return True
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.encode(), self._api_key.encode())

    async def _unauthorized(self, exchange: Exchange) -> None:
        await exchange.reply(401, json_bytes({"error": "Unauthorized"}), JSON)

    async def _reject(self, exchange: Exchange, rejection: Rejection) -> None:
        await exchange.reply(rejection.status, json_bytes(vllm_chunks.error_body(rejection)), JSON)

    # -- small routes

    async def _health(self, exchange: Exchange) -> None:
        await exchange.reply(503 if self.engine_core.dead else 200)

    async def _version(self, exchange: Exchange) -> None:
        await exchange.reply(200, json_bytes({"version": self.version}), JSON)

    async def _load(self, exchange: Exchange) -> None:
        await exchange.reply(200, json_bytes({"server_load": 0}), JSON)

    async def _metrics(self, exchange: Exchange) -> None:
        page = exposition(self.engine_core, self.served[0], self._limits.max_model_len)
        headers = [("content-type", "text/plain; version=0.0.4; charset=utf-8")]
        if "gzip" in exchange.request.headers.get("accept-encoding", ""):
            page = gzip.compress(page)
            headers.append(("content-encoding", "gzip"))
        await exchange.reply(200, page, headers)

    async def _models(self, exchange: Exchange) -> None:
        now = int(time.time())
        cards = [_card(name, self.served[0], now, self._limits.max_model_len) for name in self.served]
        await exchange.reply(200, json_bytes({"object": "list", "data": cards}), JSON)

    async def _tokenize(self, exchange: Exchange) -> None:
        given = self._read(exchange)
        vllm_requests.check_model(given.get("model"), self._limits)
        vllm_requests.check_conversation(given)
        vllm_requests.check_parts(given.get("messages") or (), self._limits)
        if isinstance(given.get("messages"), list):
            count = answers.prompt_tokens(answers.logical("vllm", given["messages"]), given.get("tools") or ())
            texts = [m["content"] for m in answers.logical("vllm", given["messages"])]
        elif isinstance(given.get("prompt"), str):
            texts = [given["prompt"]]
            count = len(answers.tokens(given["prompt"]))
        else:
            raise vllm_requests.schema_error(("prompt",), "missing", "Field required", given)
        ids = [answers.token_id(piece) for text in texts for piece in answers.tokens(text)]
        ids = [151644] * (count - len(ids)) + ids  # the template's own tokens
        body = {"count": count, "max_model_len": self._limits.max_model_len, "tokens": ids, "token_strs": None}
        await exchange.reply(200, json_bytes(body), JSON)

    # -- inference

    def _read(self, exchange: Exchange) -> dict[str, Any]:
        request = exchange.request
        return vllm_requests.read_json(request.body, request.headers.get("content-type", ""))

    async def _chat(self, exchange: Exchange) -> None:
        given = self._read(exchange)
        vllm_requests.check_chat(given, self._limits)
        thinking = self._thinks(given) and given.get("continue_final_message") is not True
        prompt = answers.prompt_tokens(answers.logical("vllm", given["messages"]), given.get("tools") or ())
        wanted = given.get("max_completion_tokens") or given.get("max_tokens")
        limit = vllm_requests.output_limit(None if wanted is None else int(wanted), prompt, self._limits)
        how = {"tools": given.get("tools"), "tool_choice": given.get("tool_choice"), "thinking": thinking}
        said = self._said(given, given["messages"], limit, len(exchange.request.body), Held(given), **how)
        frame = self._frame(exchange, "chatcmpl", prompt)
        await self._run(exchange, Job(given, frame, said, thinking, True, self.faults.take("answer")))

    async def _completions(self, exchange: Exchange) -> None:
        given = self._read(exchange)
        vllm_requests.check_completion(given, self._limits)
        wanted = given.get("max_tokens", _COMPLETION_MAX_TOKENS)
        said, prompts, held = [], _prompts(given["prompt"]), Held(given)
        counts = [len(answers.tokens(prompt)) for prompt in prompts]
        for prompt, count in zip(prompts, counts, strict=True):
            limit = vllm_requests.output_limit(None if wanted is None else int(wanted), count, self._limits)
            said += self._said(given, [{"role": "raw", "content": prompt}], limit, len(prompt), held)
        frame = self._frame(exchange, "cmpl", sum(counts))
        echoed = [prompt for prompt in prompts for _ in range(int(given.get("n") or 1))] if given.get("echo") else []
        await self._run(exchange, Job(given, frame, said, False, False, self.faults.take("answer"), echoed))

    def _said(
        self,
        given: Mapping[str, Any],
        messages: Sequence[Mapping[str, Any]],
        limit: int,
        prompt_chars: int,
        held: Held,
        **how: Any,
    ) -> list[Answer]:
        """The `n` choices for one prompt."""
        said = []
        for choice in range(int(given.get("n") or 1)):
            held.prompt(prompt_chars)
            answer = answers.expected(
                "vllm",
                messages,
                seed=self.seed,
                schema=requested_schema(given),
                max_tokens=limit,
                stop=_stops(given),
                words=limit if given.get("ignore_eos") else self.words,
                choice=choice,
                **how,
            )
            held.answer(answer.completion_tokens)
            said.append(answer)
        return said

    def _frame(self, exchange: Exchange, prefix: str, prompt_tokens: int) -> Frame:
        request_id = exchange.request.headers.get("x-request-id") or f"{self._ids.getrandbits(64):016x}"
        return Frame(
            id=f"{prefix}-{request_id}",
            created=int(time.time()),
            model=self.served[0],
            fingerprint=f"vllm-{self.version}-{answers.token_id(self.served[0]):08x}",
            modern=self.since("0.33.0"),
            parser=self.reasoning_parser is not None,
            prompt_tokens=prompt_tokens,
        )

    def _thinks(self, given: Mapping[str, Any]) -> bool:
        if not self.thinking:
            return False
        asked = (given.get("chat_template_kwargs") or {}).get("enable_thinking")
        if asked is not None:
            return bool(asked)
        return not (self.since("0.26.0") and given.get("reasoning_effort") == "none")

    def _generated(self, count: int) -> None:
        self.counters.tokens_generated += count

    async def _run(self, exchange: Exchange, job: Job) -> None:
        if self.engine_core.dead:
            raise EngineFailure(DEAD)
        if self.engine_core.full():
            self.engine_core.rejected += 1
            raise Rejection(503, "Service Unavailable", _QUEUE_TEXT)
        if job.given.get("stream"):
            await play(exchange, self._script(job), job.fault)
        else:
            await self._whole(exchange, job)

    # -- streams

    def _script(self, job: Job) -> Script:
        return Script(
            headers=SSE,
            early=True,
            events=self._events(job),
            preamble=lambda: self._preamble(job),
            ending=lambda: self._ending(job),
            error=_error_events,
            failure="Internal server error",
            broken=b'data: {"id":"chatcmpl-\n\n',
        )

    def _preamble(self, job: Job) -> bytes:
        if not job.chat:
            return b""
        return b"".join(event(vllm_chunks.role_chunk(job.frame, index)) for index in range(len(job.answers)))

    async def _events(self, job: Job) -> AsyncGenerator[bytes, None]:
        async with AsyncExitStack() as stack:
            run = await stack.enter_async_context(self.engine_core.request(job.frame.prompt_tokens))
            for index, answer in enumerate(job.answers):
                for piece in self._sent_alone(job, index, answer):
                    await run.token()
                    yield self._piece_event(job, index, piece, run)
                await run.token()  # the token that ends it
            run.finish(self._engine_reason(job))

    def _sent_alone(self, job: Job, index: int, answer: Answer) -> list[Piece]:
        pieces = self._pieces(job, index, answer)
        return pieces[:-1] if self._carries_last(answer) else pieces

    def _carried(self, job: Job, index: int, answer: Answer) -> Piece | None:
        pieces = self._pieces(job, index, answer)
        return pieces[-1] if pieces and self._carries_last(answer) else None

    def _carries_last(self, answer: Answer) -> bool:
        return self._finish_carries_last or answer.finish == "length"

    def _engine_reason(self, job: Job) -> str:
        return "abort" if job.fault_name == "finish_abort" else job.answers[0].finish

    def _pieces(self, job: Job, index: int, answer: Answer) -> list[Piece]:
        if not job.chat:
            prefix = [Piece({"text": job.prefixes[index]}, "")] if job.prefixes else []
            return prefix + [Piece({"text": piece}, piece) for piece in answer.content]
        pieces = self._thinking_pieces(job, answer)
        pieces += [Piece({"content": piece}, piece) for piece in answer.content]
        deltas = vllm_chunks.tool_deltas(
            answer,
            self._call_ids(job, index, answer),
            repeat_metadata=job.fault_name == "repeat_tool_metadata",
        )
        return pieces + [Piece(delta, "") for delta in deltas]

    def _thinking_pieces(self, job: Job, answer: Answer) -> list[Piece]:
        if not answer.thinking:
            return []
        if self.reasoning_parser is None:
            shown = _think_text(answer)
            return [Piece({"content": piece}, piece) for piece in shown]
        if job.given.get("include_reasoning") is False:
            return []
        return [Piece(delta, piece) for piece in answer.thinking for delta in [self._reasoning_delta(piece)]]

    def _reasoning_delta(self, piece: str) -> dict[str, str]:
        """`reasoning` alone since 0.16, both names in 0.12, the old one before."""
        if self.since("0.16.0"):
            return {"reasoning": piece}
        return (
            {"reasoning": piece, "reasoning_content": piece} if self.since("0.12.0") else {"reasoning_content": piece}
        )

    def _call_ids(self, job: Job, index: int, answer: Answer) -> list[str]:
        generator = random.Random(f"{job.frame.id}/{index}")
        return [f"chatcmpl-tool-{generator.getrandbits(64):016x}" for _ in answer.tool_calls]

    def _piece_event(self, job: Job, index: int, piece: Piece, run: Run) -> bytes:
        if not job.chat:
            choice = vllm_chunks.text_choice(index, piece.delta["text"], None, None, whole=False)
            return event(vllm_chunks.text_object(job.frame, [choice], None, whole=False))
        shown = None
        if job.given.get("logprobs") and piece.token:
            shown = vllm_chunks.logprobs([piece.token], int(job.given.get("top_logprobs") or 0))
        body = vllm_chunks.delta_chunk(job.frame, index, piece.delta, shown)
        if job.option("continuous_usage_stats") and job.option("include_usage"):
            body["usage"] = vllm_chunks.usage(job.frame, run.generated, 0, whole=False)
        return event(body)

    def _finish_event(self, job: Job, index: int, answer: Answer) -> bytes:
        reason, carried = self._finish_reason(job, answer), self._carried(job, index, answer)
        if not job.chat:
            text = carried.delta["text"] if carried else ""
            choice = vllm_chunks.text_choice(index, text, reason, answer.matched_stop, whole=False)
            return event(vllm_chunks.text_object(job.frame, [choice], None, whole=False))
        delta = carried.delta if carried else {"content": ""}
        return event(
            vllm_chunks.finish_chunk(
                job.frame,
                index,
                delta,
                reason,
                answer.matched_stop,
                fingerprint=not job.option("include_usage"),
            )
        )

    def _finish_reason(self, job: Job, answer: Answer) -> str:
        if job.fault_name == "finish_abort":
            return "abort"
        if answer.tool_calls and not isinstance(job.given.get("tool_choice"), dict):
            return "tool_calls"
        return answer.finish

    def _ending(self, job: Job) -> list[bytes]:
        """Finish chunks, the usage chunk if asked for, [DONE]; each in a write of its own."""
        finished = [self._finish_event(job, index, answer) for index, answer in enumerate(job.answers)]
        if not job.option("include_usage") or job.fault_name == "no_usage":
            return [*finished, DONE]
        if job.chat:
            body = vllm_chunks.usage_chunk(job.frame, job.completion_tokens, job.reasoning_tokens)
        else:
            counts = vllm_chunks.usage(job.frame, job.completion_tokens, 0, whole=False)
            body = vllm_chunks.text_object(job.frame, [], counts, whole=False)
        return [*finished, event(body), DONE]

    # -- whole answers

    async def _whole(self, exchange: Exchange, job: Job) -> None:
        async with self.engine_core.request(job.frame.prompt_tokens) as run:
            for _ in range(max(answer.completion_tokens for answer in job.answers)):
                await run.token()
            run.finish(self._engine_reason(job))
        if job.fault_name == "error_mid_stream":
            raise EngineFailure("Internal server error")
        counts = None
        if job.fault_name != "no_usage":
            counts = vllm_chunks.usage(job.frame, job.completion_tokens, job.reasoning_tokens, whole=True)
        choices = [self._choice(job, index, answer) for index, answer in enumerate(job.answers)]
        if job.chat:
            body = vllm_chunks.completion(job.frame, choices, counts)
        else:
            body = vllm_chunks.text_object(job.frame, choices, counts, whole=True)
        await reply_whole(exchange, json_bytes(body), JSON, job.fault)

    def _choice(self, job: Job, index: int, answer: Answer) -> dict[str, Any]:
        reason = self._finish_reason(job, answer)
        if not job.chat:
            text = (job.prefixes[index] if job.prefixes else "") + answer.text
            return vllm_chunks.text_choice(index, text, reason, answer.matched_stop, whole=True)
        content, reasoning = answer.text, None
        if answer.thinking and self.reasoning_parser is None:
            content = "".join(_think_text(answer)) + content
        elif answer.thinking and job.given.get("include_reasoning") is not False:
            reasoning = answer.thinking_text
        message = vllm_chunks.message(answer, content, reasoning, self._call_ids(job, index, answer))
        shown = None
        if job.given.get("logprobs"):
            shown = vllm_chunks.logprobs(answer.content, int(job.given.get("top_logprobs") or 0))
        return {
            "index": index,
            "message": message,
            "logprobs": shown,
            "finish_reason": reason,
            "stop_reason": answer.matched_stop,
            "token_ids": None,
        }


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split("."))


def _think_text(answer: Answer) -> list[str]:
    """What stays in the content without a reasoning parser; unclosed if the limit came first."""
    closed = ["\n</think>\n\n"] if answer.content or answer.finish == "stop" else []
    return ["<think>\n", *answer.thinking, *closed]


def _error_events(text: str) -> list[bytes]:
    """A mid-stream error is followed by [DONE]: that alone does not mean success."""
    return [event(vllm_chunks.error_body(Rejection(500, "InternalServerError", text))), DONE]


def _injected(code: int, model: str) -> Rejection:
    known = {
        404: Rejection(404, "NotFoundError", f"The model `{model}` does not exist.", "model"),
        429: Rejection(429, "Too Many Requests", "Too many requests"),
        500: Rejection(500, "InternalServerError", "Internal server error"),
        503: Rejection(503, "Service Unavailable", _QUEUE_TEXT),
    }
    return known.get(code) or Rejection(code, "InternalServerError", "Injected error")


def _model_of(body: bytes) -> str:
    try:
        given = vllm_requests.read_json(body, "application/json")
    except Rejection:
        return ""
    return str(given.get("model", ""))


def _card(name: str, root: str, now: int, max_model_len: int) -> dict[str, Any]:
    permission = {
        "id": f"modelperm-{answers.token_id(name):016x}",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": now,
        "owned_by": "vllm",
        "root": root,
        "parent": None,
        "max_model_len": max_model_len,
        "permission": [permission],
    }


def requested_schema(given: Mapping[str, Any]) -> Any:
    """The JSON schema an answer must fit, "json" for any object, None for free text.

    Raises:
        Rejection: 501 for a constraint that is not emulated.
    """
    outputs = given.get("structured_outputs") or {}
    wanted = given.get("response_format") or {}
    if outputs.get("json") is not None:
        return outputs["json"]
    if outputs.get("json_object") or wanted.get("type") == "json_object":
        return "json"
    if outputs:
        raise Rejection(501, "NotImplementedError", "this structured output is not emulated")
    return (wanted.get("json_schema") or {}).get("schema") if wanted.get("type") == "json_schema" else None


def _stops(given: Mapping[str, Any]) -> list[str]:
    stop = given.get("stop") or []
    return [stop] if isinstance(stop, str) else list(stop)


def _prompts(prompt: Any) -> list[str]:
    """The prompts of a completion request; token ids are shown to the model as their numbers."""
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(item, int) for item in prompt):
        return [" ".join(str(item) for item in prompt)]
    return [item if isinstance(item, str) else " ".join(str(i) for i in item) for item in prompt]
