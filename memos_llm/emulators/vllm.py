"""Emulator of vLLM's OpenAI server: start-up options, routes, keys, and the error of each route.

Never kinder than the real one: strict validation, one base model under its served names, the first served name in
every answer, an idle connection closed after 5 s, a client that leaves aborted at once. Facts: vLLM 0.32.0,
measured; 0.33 source; `vllm_versions` for what other releases do.
Not emulated (404 in the server's way): pooling routes other than embeddings, audio, `/inference`, development routes.
A 501: `structured_outputs` other than json and json_object, `bytes` embeddings, responses in the background or with
built-in tools, and a request for more tokens than `vllm_sampling.MAX_HELD` or more numbers than
`vllm_embeddings.MAX_FLOATS` at once.
"""

from __future__ import annotations

import gzip
import hmac
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from memos_llm.emulators import vllm_embeddings, vllm_messages, vllm_responses
from memos_llm.emulators.emulator import Emulator, json_bytes
from memos_llm.emulators.faults import Fault
from memos_llm.emulators.playing import EngineFailure, reply_whole
from memos_llm.emulators.vectors import DIMENSION
from memos_llm.emulators.vllm_checks import Limits
from memos_llm.emulators.vllm_embeddings import Space
from memos_llm.emulators.vllm_engine import DEAD, Engine
from memos_llm.emulators.vllm_formats import ChatFormat, TextFormat
from memos_llm.emulators.vllm_generation import JSON, SSE, Format, Job, respond
from memos_llm.emulators.vllm_jobs import Jobs, Model
from memos_llm.emulators.vllm_messages import MessagesFormat
from memos_llm.emulators.vllm_metrics import UNCOUNTED, Shown, exposition
from memos_llm.emulators.vllm_models import Served
from memos_llm.emulators.vllm_requests import Rejection, plain_error, read_json
from memos_llm.emulators.vllm_responses import ResponsesFormat
from memos_llm.emulators.vllm_versions import Release
from memos_llm.emulators.wire import Exchange

_KEEP_ALIVE_S = 5.0
_DEFAULT_MODELS = ("Qwen/Qwen3-8B",)
_QUEUE_TEXT = "The server is overloaded: too many requests are queued. Please retry later."
_MESSAGES = "/v1/messages"
OTHER_MODEL = "another/model"
_COUNT_TOKENS = "/v1/messages/count_tokens"
_RESPONSES = "/v1/responses"

_NO_PREFLIGHT = (
    ("content-type", "text/plain; charset=utf-8"),
    ("access-control-allow-methods", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY"),
    ("access-control-max-age", "600"),
    (
        "vary",
        "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network",
    ),
)

Route = Callable[[Exchange], Awaitable[None]]


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
        max_num_queued_reqs: admission limit (0.30 and newer), None for none. finish_carries_last: the finish chunk
            carries the last delta (it always does when the limit was reached).
        words: fixed length of answers in words, None for 5 to 12. Others: see `Emulator`.
        loras: names of adapters of the model.
        task: "embed" serves embeddings and nothing else. dimension: length of a vector. matryoshka: lengths that
            `dimensions` may ask for, True for all, False for none. space: name of a vector space shared with
            another emulator, None for one of its own.

    Raises:
        ValueError: an option that this release does not know.
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
        loras: Iterable[str] = (),
        task: Literal["generate", "embed"] = "generate",
        dimension: int = DIMENSION,
        matryoshka: bool | Sequence[int] = False,
        space: str | None = None,
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
        self.release = Release(version)
        if max_num_queued_reqs is not None and not self.release.has("admission limits"):
            raise ValueError(f"vLLM {version} has no --max-num-queued-reqs: it came with 0.30")
        self._served = Served(models, loras, max_model_len, self.release)
        name = self._served.first.lower()
        self._api_key = api_key
        self._limits = Limits(
            max_model_len=max_model_len,
            auto_tools=enable_auto_tool_choice,
            vision=("vl" in name) if vision is None else vision,
            release=self.release,
            served=self._served.first,
        )
        speech = Model(
            thinks="qwen3" in name if thinking is None else thinking,
            parser=reasoning_parser is not None,
            words=words,
            carries_last=finish_carries_last,
            seed=seed,
        )
        self._jobs = Jobs(speech, self._served, self._limits)
        self._space = Space(dimension, matryoshka, self._served.first, space)
        self._handled: Counter[tuple[str, str, str]] = Counter()
        self.engine_core = Engine(
            self.timing,
            max_num_seqs=max_num_seqs,
            kv_tokens=8 * max_model_len,
            max_queued=max_num_queued_reqs,
            on_token=self._generated,
        )
        inference = {"/v1/embeddings": self._embeddings} if task == "embed" else self._generating()
        self._data_routes = frozenset(inference) - {_COUNT_TOKENS}
        self._routes = self._small() | {path: {"POST": route} for path, route in inference.items()}

    @property
    def _newer(self) -> bool:
        return self.release.has("nulls of 0.32")

    def _small(self) -> dict[str, dict[str, Route]]:
        return {
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/version": {"GET": self._version},
            "/load": {"GET": self._load},
            "/metrics": {"GET": self._metrics},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/v1/models": {"GET": self._models},
        }

    def _generating(self) -> dict[str, Route]:
        routes: dict[str, Route] = {"/v1/chat/completions": self._chat, "/v1/completions": self._completions}
        newer = {_RESPONSES: self._respond, _MESSAGES: self._message, _COUNT_TOKENS: self._count_tokens}
        return routes | {path: route for path, route in newer.items() if self.release.has(path)}

    def is_data_route(self, path: str) -> bool:
        return path in self._data_routes

    def stream_headers(self, path: str) -> tuple[tuple[str, str], ...]:
        return SSE

    def faults_changed(self) -> None:
        self.engine_core.set_state(dead=self.faults.active("engine_dead"), hung=self.faults.active("hang_engine"))
        without = self.faults.active("no_auto_tools")
        self._jobs.limits = replace(self._limits, auto_tools=self._limits.auto_tools and not without)

    async def before(self, exchange: Exchange, fault: Fault) -> None:
        code = {"model_missing": 404, "queue_full": 503}.get(fault.name, fault.code)
        if code == 401:
            await self._unauthorized(exchange)
            return
        await self._reject(exchange, _injected(code, _model_of(exchange.request.body)))

    # -- dispatch

    async def dispatch(self, exchange: Exchange) -> None:
        request = exchange.request
        if self._newer:
            exchange.extra_headers.append(("vary", "Origin"))  # on every answer, whoever asks (0.32, measured)
        try:
            await self._dispatch(exchange)
        finally:
            if exchange.status is not None and request.path in self._routes and request.path not in UNCOUNTED:
                self._handled[(request.path, request.method, f"{exchange.status // 100}xx")] += 1

    async def _dispatch(self, exchange: Exchange) -> None:
        request = exchange.request
        if not self._authorized(exchange):
            await self._unauthorized(exchange)
            return
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            exchange.extra_headers.clear()
            await exchange.reply(400, b"Disallowed CORS origin", _NO_PREFLIGHT)
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
        request = exchange.request
        bare = request.path.rstrip("/")
        above, _, name = request.path.rpartition("/")
        if bare in self._routes and bare != request.path:
            location = f"http://{request.headers.get('host', '')}{bare}"
            await exchange.reply(307, b"", [("location", location)])
        elif above == _RESPONSES and _RESPONSES in self._routes and request.method == "GET":
            await self._reject(exchange, vllm_responses.not_found(name))
        else:
            await exchange.reply(404, json_bytes({"detail": "Not Found"}), JSON)

    async def _guarded(self, route: Route, exchange: Exchange) -> None:
        try:
            await route(exchange)
        except Rejection as rejection:
            await self._reject(exchange, rejection)
        except EngineFailure as failure:
            if self.engine_core.dead and not self.release.has("a dead engine says so in JSON"):
                await exchange.reply(500)
            else:
                await self._reject(exchange, Rejection(500, "InternalServerError", str(failure)))

    def _authorized(self, exchange: Exchange) -> bool:
        request = exchange.request
        if self._api_key is None or request.method == "OPTIONS" or not request.path.startswith(self.release.guarded):
            return True
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.encode(), self._api_key.encode())

    async def _unauthorized(self, exchange: Exchange) -> None:
        await exchange.reply(401, json_bytes({"error": "Unauthorized"}), JSON)

    async def _reject(self, exchange: Exchange, rejection: Rejection) -> None:
        body = rejection.body(nested=self.release.has("nested errors"))
        if exchange.request.path.startswith(_MESSAGES) and rejection.kind != "Bad Request":
            body = vllm_messages.error_body(rejection)
        try:
            content = json_bytes(body)
        except UnicodeEncodeError as error:  # it quotes a lone surrogate, and says so instead (0.32, measured)
            await self._reject(exchange, plain_error(str(error)))
        else:
            await exchange.reply(rejection.status, content, JSON)

    # -- small routes

    async def _health(self, exchange: Exchange) -> None:
        dead = 503 if self.release.has("health is 503 when dead") else 500
        await exchange.reply(dead if self.engine_core.dead else 200)

    async def _version(self, exchange: Exchange) -> None:
        await _answer(exchange, {"version": self.release.version})

    async def _load(self, exchange: Exchange) -> None:
        await _answer(exchange, {"server_load": 0})

    async def _metrics(self, exchange: Exchange) -> None:
        shown = Shown(self._served.first, self.release, self._served.loras, self._handled)
        page = exposition(self.engine_core, shown)
        headers = [("content-type", "text/plain; version=0.0.4; charset=utf-8")]
        if "gzip" in exchange.request.headers.get("accept-encoding", ""):
            page = gzip.compress(page)
            headers.append(("content-encoding", "gzip"))
        await exchange.reply(200, page, headers)

    async def _models(self, exchange: Exchange) -> None:
        cards = self._served.cards(int(time.time()))
        if self.faults.whole("model_missing"):  # a server has a model always: it is another one
            cards = [{**cards[0], "id": OTHER_MODEL, "root": OTHER_MODEL}]
        await _answer(exchange, {"object": "list", "data": cards})

    async def _tokenize(self, exchange: Exchange) -> None:
        await _answer(exchange, self._jobs.tokenized(_read(exchange)))

    async def _detokenize(self, exchange: Exchange) -> None:
        await _answer(exchange, self._jobs.detokenized(_read(exchange)))

    # -- inference

    async def _chat(self, exchange: Exchange) -> None:
        job = self._jobs.chat(_read(exchange), "chatcmpl-", _request_id(exchange))
        await self._run(exchange, job, ChatFormat(nested_errors=self.release.has("nested errors")))

    async def _completions(self, exchange: Exchange) -> None:
        job = self._jobs.completion(_read(exchange), _request_id(exchange))
        await self._run(exchange, job, TextFormat(nested_errors=self.release.has("nested errors")))

    async def _respond(self, exchange: Exchange) -> None:
        given = _read(exchange)
        chat = vllm_responses.to_chat(given)
        job = self._jobs.chat(chat, "resp_", _request_id(exchange))
        await self._run(exchange, job, ResponsesFormat(given))

    async def _message(self, exchange: Exchange) -> None:
        chat = vllm_messages.to_chat(_read(exchange))
        job = self._jobs.chat(chat, "chatcmpl-", _request_id(exchange))
        await self._run(exchange, job, MessagesFormat())

    async def _count_tokens(self, exchange: Exchange) -> None:
        chat = vllm_messages.to_chat(_read(exchange), counting=True)
        asked: dict[str, Any] = {name: chat[name] for name in ("model", "messages", "tools") if name in chat}
        count = self._jobs.tokenized(asked)["count"]
        managed = {"context_management": {"original_input_tokens": count}} if self._newer else {}
        await _answer(exchange, {"input_tokens": count, **managed})

    async def _embeddings(self, exchange: Exchange) -> None:
        given = _read(exchange)
        length = self._limits.max_model_len
        vllm_embeddings.check(given, self._limits)
        model = self._served.shown(given.get("model"), param=None)  # its error names no parameter (measured)
        inputs = vllm_embeddings.inputs_of(given, length, self._jobs.vocabulary)
        vllm_embeddings.check_work(given.get("dimensions"), self._space, inputs)
        self._admit()
        fault = self.faults.take("answer")
        for item in inputs:
            async with self.engine_core.request(item.ids) as run:
                await run.pooled()
                run.finish("stop")
        if fault and fault.name == "error_mid_stream":
            raise EngineFailure("Internal server error")
        vectors = await vllm_embeddings.vectors_of(inputs, self._space, given.get("dimensions"))
        tokens = sum(len(item.ids) for item in inputs)
        frame = self._jobs.frame("embd-", _request_id(exchange), model, tokens)
        body = vllm_embeddings.answer(frame, vectors, given.get("encoding_format", "float"))
        if fault and fault.name == "no_usage":
            body.pop("usage")
        await reply_whole(exchange, json_bytes(body), JSON, fault)

    def _generated(self, count: int) -> None:
        self.counters.tokens_generated += count

    def _admit(self) -> None:
        if self.engine_core.dead:
            raise EngineFailure(DEAD)
        if self.engine_core.full():
            self.engine_core.rejected += 1
            raise Rejection(503, "Service Unavailable", _QUEUE_TEXT)

    async def _run(self, exchange: Exchange, job: Job, form: Format) -> None:
        self._admit()
        job = replace(job, fault=self.faults.take("answer"))  # now: a refused request uses up no fault
        await respond(exchange, job, self.engine_core, form)


def _read(exchange: Exchange) -> dict[str, Any]:
    return read_json(exchange.request.body, exchange.request.headers.get("content-type", ""))


def _request_id(exchange: Exchange) -> str | None:
    return exchange.request.headers.get("x-request-id")


async def _answer(exchange: Exchange, body: Mapping[str, Any]) -> None:
    await exchange.reply(200, json_bytes(body), JSON)


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
        return str(read_json(body, "application/json").get("model", ""))
    except Rejection:
        return ""
