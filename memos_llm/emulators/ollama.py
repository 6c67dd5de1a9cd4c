"""Emulator of an Ollama server: the native API (`/v1` is in `ollama_v1`).

Never kinder than the real one: streams by default, refuses what Ollama refuses in its words, one slot a model,
headers withheld until the load ends. Facts: Ollama 0.17.4, measured; 0.33 source.
Not emulated (404): embed, pull, push, create, copy, delete, blobs, `/v1/embeddings`, `/v1/responses`,
`/v1/messages`, cloud routes.
"""

from __future__ import annotations

import ipaddress
import math
import random
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any
from urllib.parse import urlsplit

from memos_llm.emulators import answers, golang, ollama_requests, ollama_v1
from memos_llm.emulators.emulator import Emulator
from memos_llm.emulators.faults import Fault
from memos_llm.emulators.ollama_generation import CRASH, CRASH_0_33, Clock, Generation, Record, fit, output_limit
from memos_llm.emulators.ollama_requests import Asked, Refusal
from memos_llm.emulators.ollama_runner import (
    DEFAULT_MODELS,
    Catalogue,
    LoadCounts,
    OllamaModel,
    QueueFull,
    Runner,
    Scheduler,
)
from memos_llm.emulators.playing import EngineFailure, Script, play, reply_whole
from memos_llm.emulators.wire import Exchange

JSON = (("content-type", "application/json; charset=utf-8"),)
JSON_BARE = (("content-type", "application/json"),)
NDJSON = (("content-type", "application/x-ndjson"),)
SSE = (("content-type", "text/event-stream"),)
TEXT = (("content-type", "text/plain"),)
BUSY = "server busy, please try again.  maximum pending requests exceeded"
CHUNK_ABOVE = 2048
_INSTALLED_NS = 1_755_000_000_000_000_000
_GIBIBYTE = 1 << 30
_FAULT_TEXTS: Mapping[int, str] = {401: "unauthorized", 429: "too many requests", 503: BUSY}
_ORIGIN_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")
_ORIGIN_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")

Route = Callable[[Exchange], Awaitable[None]]


class OllamaEmulator(Emulator):
    """An Ollama server.

    Args:
        models: installed models, names or `OllamaModel`s. version: "0.33.0" or e.g. "0.17.4".
        load_s: seconds a model load takes. num_parallel: slots of a loaded model (Ollama's default is 1).
        max_queue: pending loads before a 503. keep_alive_s: how long an idle model stays loaded.
        words: fixed length of answers in words, None for 5 to 12.
        Others: see `Emulator`.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        models: Iterable[str | OllamaModel] = DEFAULT_MODELS,
        ttft_s: float = 0.0,
        inter_token_s: float = 0.0,
        faults: Iterable[str | Fault] = (),
        seed: int = 0,
        version: str = "0.33.0",
        load_s: float = 0.0,
        num_parallel: int = 1,
        max_queue: int = 512,
        keep_alive_s: float = 300.0,
        words: int | None = None,
    ) -> None:
        super().__init__(
            "ollama",
            host=host,
            port=port,
            ttft_s=ttft_s,
            inter_token_s=inter_token_s,
            faults=faults,
            seed=seed,
            server_header=None,
            idle_close_s=10 * 365 * 86400,  # Go's server sets no idle time-out
        )
        self.version = version
        self.words = words
        self.catalogue = Catalogue(models)
        self.scheduler = Scheduler(
            load_s=load_s,
            num_parallel=num_parallel,
            max_queue=max_queue,
            keep_alive_s=keep_alive_s,
            counts=LoadCounts(self._load_started, self._load_aborted),
        )
        self._ids = random.Random(seed)
        self._routes: Mapping[str, Mapping[str, Route]] = {
            "/": {"GET": self._alive, "HEAD": self._alive},
            "/api/version": {"GET": self._version, "HEAD": self._version},
            "/api/tags": {"GET": self._tags, "HEAD": self._tags},
            "/api/ps": {"GET": self._ps},
            "/api/show": {"POST": self._show},
            "/api/chat": {"POST": self._chat},
            "/api/generate": {"POST": self._generate},
            "/v1/models": {"GET": self._v1_models},
            "/v1/chat/completions": {"POST": self._v1_chat},
        }

    def since(self, version: str) -> bool:
        """Whether the emulated release is this one or newer."""
        return _numbers(self.version) >= _numbers(version)

    def is_data_route(self, path: str) -> bool:
        return path in ("/api/chat", "/api/generate", "/v1/chat/completions")

    def stream_headers(self, path: str) -> tuple[tuple[str, str], ...]:
        return SSE if path.startswith("/v1/") else NDJSON

    async def before(self, exchange: Exchange, fault: Fault) -> None:
        code = {"model_missing": 404, "queue_full": 503}.get(fault.name, fault.code)
        name = _model_of(exchange.request.body)
        text = f"model '{name}' not found" if code == 404 else _FAULT_TEXTS.get(code, CRASH)
        if code == 500 and _streams(exchange.request.body):
            await self._fail_unstarted(exchange, text)
        else:
            await self.refuse(exchange, Refusal(code, text))

    def faults_changed(self) -> None:
        """Nothing to do: every fault of Ollama's acts on single requests or on the listener."""

    # -- dispatch

    async def dispatch(self, exchange: Exchange) -> None:
        request = exchange.request
        if not self._admitted(exchange):
            await exchange.reply(403)
            return
        if request.method == "OPTIONS" and "origin" in request.headers:
            await exchange.reply(204)
            return
        methods = self._methods(request.path)
        route = (methods or {}).get(request.method)
        if route is not None:
            await self._guarded(route, exchange)
        elif methods is not None:
            await exchange.reply(405, b"405 method not allowed", [*TEXT, ("allow", ", ".join(methods))])
        else:
            await self._unknown(exchange)

    def _methods(self, path: str) -> Mapping[str, Route] | None:
        parent, _, name = path.rpartition("/")
        if parent == "/v1/models" and name:
            return {"GET": self._v1_model}
        return self._routes.get(path)

    async def _guarded(self, route: Route, exchange: Exchange) -> None:
        try:
            await route(exchange)
        except Refusal as refusal:
            await self.refuse(exchange, refusal)
        except QueueFull:
            await self.refuse(exchange, Refusal(503, BUSY))

    async def _unknown(self, exchange: Exchange) -> None:
        request = exchange.request
        bare = request.path.rstrip("/")
        if bare != request.path and request.method in self._routes.get(bare, {}):
            await exchange.reply(301 if request.method == "GET" else 307, b"", [("location", bare)])
        else:
            await exchange.reply(404, b"404 page not found", TEXT)

    def _admitted(self, exchange: Exchange) -> bool:
        headers = exchange.request.headers
        if self.bound_to_loopback and not _host_allowed(headers.get("host", "")):
            return False
        origin = headers.get("origin")
        if origin is None or origin == f"http://{headers.get('host')}":
            return True
        exchange.extra_headers += [("access-control-allow-origin", origin), ("vary", "Origin")]
        if not _origin_allowed(origin):
            exchange.extra_headers.clear()
            return False
        return True

    async def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer an error, in the shape of the dialect the path belongs to."""
        if exchange.request.path.startswith("/v1/"):
            body = ollama_v1.error(refusal, by_status=self.since("0.18.0"))
            await exchange.reply(refusal.status, body, JSON if refusal.by_layer else JSON_BARE)
        else:
            await exchange.reply(refusal.status, golang.dumps({"error": refusal.text}), JSON)

    # -- small routes

    async def _alive(self, exchange: Exchange) -> None:
        await exchange.reply(200, b"Ollama is running", [("content-type", "text/plain; charset=utf-8")])

    async def _version(self, exchange: Exchange) -> None:
        await self._json(exchange, {"version": self.version})

    async def _tags(self, exchange: Exchange) -> None:
        await self._json(exchange, {"models": [self._tag(model) for model in self.catalogue.all()]})

    async def _ps(self, exchange: Exchange) -> None:
        runners = await self.scheduler.loaded(wait=self.since("0.32.4"))
        await self._json(exchange, {"models": [self._loaded(runner) for runner in runners]})

    async def _show(self, exchange: Exchange) -> None:
        given = _show_request(exchange.request.body)
        asked = Asked(str(given.get("model") or given.get("name") or ""), [])
        model = ollama_requests.find_model(self.catalogue, asked, strict_names=self.since("0.17.6"))
        await self._json(exchange, _shown(model, self._details(model)))

    async def _v1_models(self, exchange: Exchange) -> None:
        data = [_v1_card(model, model.short) for model in self.catalogue.all()]
        await exchange.reply(200, golang.dumps({"object": "list", "data": data or None}) + b"\n", JSON_BARE)

    async def _v1_model(self, exchange: Exchange) -> None:
        name = exchange.request.path.rpartition("/")[2]
        model = ollama_requests.find_model(self.catalogue, Asked(name, []), strict_names=self.since("0.17.6"))
        await exchange.reply(200, golang.dumps(_v1_card(model, name)) + b"\n", JSON_BARE)

    async def _json(self, exchange: Exchange, value: Any) -> None:
        body = golang.dumps(value)
        await exchange.reply(200, body, JSON, chunked=len(body) > CHUNK_ABOVE)

    def _details(self, model: OllamaModel) -> dict[str, Any]:
        details: dict[str, Any] = {
            "parent_model": "",
            "format": "gguf",
            "family": model.family,
            "families": [model.family],
            "parameter_size": "8.2B",
            "quantization_level": "Q4_K_M",
        }
        if self.since("0.18.0"):
            details["context_length"] = model.context_length
        return details

    def _tag(self, model: OllamaModel) -> dict[str, Any]:
        tag = {
            "name": model.short,
            "model": model.short,
            "modified_at": golang.timestamp(_INSTALLED_NS),
            "size": 5 * _GIBIBYTE,
            "digest": model.digest,
            "details": self._details(model),
        }
        if self.since("0.18.0"):
            tag["capabilities"] = list(model.capabilities)
        return tag

    def _loaded(self, runner: Runner) -> dict[str, Any]:
        forever = math.isinf(runner.keep_alive_s)
        expires = "2319-01-01T00:00:00Z" if forever else golang.timestamp(int(runner.expires_at * 1e9))
        return {
            "name": runner.model.short,
            "model": runner.model.short,
            "size": 6 * _GIBIBYTE,
            "digest": runner.model.digest,
            "details": self._details(runner.model),
            "expires_at": expires,
            "size_vram": 6 * _GIBIBYTE,
            "context_length": runner.num_ctx,
        }

    def _load_started(self) -> None:
        self.counters.loads += 1

    def _load_aborted(self) -> None:
        self.counters.load_aborts += 1

    # -- inference

    async def _chat(self, exchange: Exchange) -> None:
        asked = ollama_requests.read_chat(exchange.request.body)
        await self._infer(exchange, asked, NativeShape(asked, self.since("0.18.0")))

    async def _generate(self, exchange: Exchange) -> None:
        asked = ollama_requests.read_generate(exchange.request.body)
        await self._infer(exchange, asked, NativeShape(asked, self.since("0.18.0")))

    async def _v1_chat(self, exchange: Exchange) -> None:
        asked, include_usage = ollama_v1.read_chat(exchange.request.body, since=self.since)
        number = self._ids.randrange(999)
        shape = ollama_v1.V1Shape(asked, number, include_usage=include_usage, finish_alone=self.since("0.32.6"))
        await self._infer(exchange, asked, shape)

    async def _infer(self, exchange: Exchange, asked: Asked, shape: Shape) -> None:
        clock = Clock()
        model = ollama_requests.find_model(self.catalogue, asked, strict_names=self.since("0.17.6"))
        if asked.empty and asked.keep_alive_s == 0:
            self.scheduler.unload(model)
            await exchange.reply(200, shape.loaded("unload"), shape.whole_headers)
            return
        think = ollama_requests.check_capabilities(model, asked, levels_everywhere=self.since("0.17.7"))
        ollama_requests.check_options(asked.options)
        async with AsyncExitStack() as stack:
            runner = await self._runner(stack, model, asked)
            clock.loaded = time.monotonic_ns()
            if asked.empty:
                await exchange.reply(200, shape.loaded("load"), shape.whole_headers)
                return
            if asked.format_error:
                raise Refusal(500, asked.format_error)
            generation = self._generation(asked, model, runner, clock, think=think)
            await self._answer(exchange, asked, generation, shape)

    async def _runner(self, stack: AsyncExitStack, model: OllamaModel, asked: Asked) -> Runner:
        cold = self.faults.take("load")
        num_ctx = asked.options.get("num_ctx")
        return await stack.enter_async_context(
            self.scheduler.runner(
                model,
                num_ctx=None if num_ctx is None else int(num_ctx),
                keep_alive_s=asked.keep_alive_s,
                cold_s=cold.seconds if cold else None,
            )
        )

    def _generation(self, asked: Asked, model: OllamaModel, runner: Runner, clock: Clock, *, think: bool) -> Generation:
        window = fit(asked, model, runner.num_ctx, exact=not self.since("0.30.0"))
        answer = answers.expected(
            "ollama",
            window.messages,
            seed=self.seed,
            tools=asked.tools,
            schema=asked.schema,
            thinking=think,
            max_tokens=output_limit(asked, model, runner.num_ctx),
            stop=asked.stop,
            words=self.words,
        )
        return Generation(
            asked,
            answer,
            runner,
            clock=clock,
            timing=self.timing,
            on_token=self._generated,
            prompt_tokens=window.prompt_tokens,
            crash_text=self._crash_text,
        )

    @property
    def _crash_text(self) -> str:
        return CRASH_0_33 if self.since("0.30.0") else CRASH

    def _generated(self, count: int) -> None:
        self.counters.tokens_generated += count

    async def _answer(self, exchange: Exchange, asked: Asked, generation: Generation, shape: Shape) -> None:
        fault = self.faults.take("answer")
        if asked.stream:
            await play(exchange, self._script(exchange, generation, shape, fault), fault)
        else:
            await self._answer_whole(exchange, generation, shape, fault)

    def _script(self, exchange: Exchange, generation: Generation, shape: Shape, fault: Fault | None) -> Script:
        async def events() -> AsyncGenerator[bytes, None]:
            sent = 0
            async with aclosing(generation.records()) as records:
                async for record in records:
                    self._maybe_crash(generation, fault, sent)
                    sent += 1
                    yield shape.record(record)
            if fault and fault.after >= sent:
                self._maybe_crash(generation, fault, fault.after)

        async def fail(text: str) -> None:
            await self._fail_unstarted(exchange, text)

        return Script(
            headers=shape.stream_headers,
            early=False,
            events=events(),
            ending=lambda: shape.ending(generation),
            error=shape.error,
            failure=self._crash_text,
            broken=shape.broken,
            fail=fail,
        )

    async def _fail_unstarted(self, exchange: Exchange, text: str) -> None:
        """An error before the first record keeps its status; it is chunked and without charset (measured)."""
        if exchange.request.path.startswith("/v1/"):
            await self.refuse(exchange, Refusal(500, text))
        else:
            await exchange.reply(500, golang.dumps({"error": text}), JSON_BARE, chunked=True)

    def _maybe_crash(self, generation: Generation, fault: Fault | None, sent: int) -> None:
        if fault and fault.name == "runner_crash" and sent == fault.after:
            generation.runner.crashed = True
            raise EngineFailure(self._crash_text)

    async def _answer_whole(
        self, exchange: Exchange, generation: Generation, shape: Shape, fault: Fault | None
    ) -> None:
        try:
            records = [record async for record in generation.records()]
            if fault and fault.name in ("runner_crash", "error_mid_stream"):
                generation.runner.crashed = fault.name == "runner_crash"
                raise EngineFailure(self._crash_text)
        except EngineFailure as failure:
            await self.refuse(exchange, Refusal(500, str(failure)))
            return
        finished = not (fault and fault.name == "eof_without_done")
        body = shape.whole(records, generation, finished=finished)
        await reply_whole(exchange, body, shape.whole_headers, fault, chunk_above=CHUNK_ABOVE)


class NativeShape:
    """Native records of `/api/chat` and `/api/generate`."""

    stream_headers = NDJSON
    whole_headers = JSON
    broken = b'{"model":"broken","created_at":\n'

    def __init__(self, asked: Asked, report_single_eval: bool) -> None:
        self._asked = asked
        self._report_single_eval = report_single_eval

    def loaded(self, reason: str) -> bytes:
        """The answer to a load or unload."""
        return golang.dumps({**self._start(), **self._said(Record()), "done": True, "done_reason": reason})

    def record(self, record: Record) -> bytes:
        """One line of a stream."""
        body = {**self._start(), **self._said(record), "done": False}
        if record.logprobs:
            body["logprobs"] = list(record.logprobs)
        return golang.dumps(body) + b"\n"

    def ending(self, generation: Generation) -> list[bytes]:
        """The final record."""
        last = Record(tool_calls=generation.calls if generation.calls_at_the_end else ())
        return [golang.dumps({**self._start(), **self._said(last), **self._final(generation)}) + b"\n"]

    def error(self, text: str) -> list[bytes]:
        """The error line."""
        return [golang.dumps({"error": text}) + b"\n"]

    def whole(self, records: list[Record], generation: Generation, *, finished: bool) -> bytes:
        """The one object of a non-streamed answer."""
        joined = merged(records, generation)
        body = {**self._start(), **self._said(joined)}
        body |= self._final(generation) if finished else {"done": False}
        if joined.logprobs:
            body["logprobs"] = list(joined.logprobs)
        return golang.dumps(body)

    def _start(self) -> dict[str, Any]:
        return {"model": self._asked.model_name, "created_at": golang.timestamp(time.time_ns())}

    def _said(self, record: Record) -> dict[str, Any]:
        extra: dict[str, Any] = {"thinking": record.thinking} if record.thinking else {}
        if not self._asked.chat:
            return {"response": record.content, **extra}
        if record.tool_calls:
            extra["tool_calls"] = list(record.tool_calls)
        return {"message": {"role": "assistant", "content": record.content, **extra}}

    def _final(self, generation: Generation) -> dict[str, Any]:
        answer = generation.answer
        final: dict[str, Any] = {"done": True, "done_reason": answer.finish}
        if not self._asked.chat and not self._asked.raw:
            final["context"] = _context(generation)
        return final | generation.clock.durations(
            generation.prompt_tokens, answer.completion_tokens, single_eval=self._report_single_eval
        )


Shape = NativeShape | ollama_v1.V1Shape


def merged(records: Iterable[Record], generation: Generation) -> Record:
    """All records as one."""
    kept = list(records)
    return Record(
        "".join(r.content for r in kept),
        "".join(r.thinking for r in kept),
        generation.calls,
        tuple(one for r in kept for one in r.logprobs),
    )


def _context(generation: Generation) -> list[int]:
    texts = [message["content"] for message in generation.asked.messages] + [generation.answer.text]
    return [answers.token_id(piece) for text in texts for piece in answers.tokens(text)]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("-")[0].split("."))


def _v1_card(model: OllamaModel, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _INSTALLED_NS // 10**9, "owned_by": _namespace(model)}


def _namespace(model: OllamaModel) -> str:
    return model.name.split("/")[-2] if "/" in model.name else "library"


def _object_of(body: bytes) -> dict[str, Any]:
    try:
        given = golang.loads(body)
    except golang.DecodeError:
        return {}
    return given if isinstance(given, dict) else {}


def _model_of(body: bytes) -> str:
    return str(_object_of(body).get("model", ""))


def _streams(body: bytes) -> bool:
    return _object_of(body).get("stream", True) is True


def _show_request(body: bytes) -> dict[str, Any]:
    text = ("string", "string")
    try:
        return golang.fields(golang.loads(body), "ShowRequest", {"model": text, "name": text})
    except golang.EmptyBody as reason:
        raise Refusal(400, "missing request body") from reason
    except golang.DecodeError as reason:
        raise Refusal(400, str(reason)) from reason


def _shown(model: OllamaModel, details: dict[str, Any]) -> dict[str, Any]:
    return {
        "modelfile": f'# Modelfile generated by "ollama show"\nFROM {model.short}\n',
        "parameters": 'stop                           "<|im_end|>"',
        "template": "{{ .Prompt }}",
        "details": details,
        "model_info": {
            "general.architecture": model.family,
            f"{model.family}.context_length": model.context_length,
            f"{model.family}.embedding_length": 1024,
            "tokenizer.ggml.tokens": None,
        },
        "tensors": [{"name": "token_embd.weight", "type": "F16", "shape": [1024, 151643]}],
        "capabilities": list(model.capabilities),
        "modified_at": golang.timestamp(_INSTALLED_NS),
    }


def _host_allowed(host: str) -> bool:
    name = (urlsplit(f"//{host}").hostname or "").lower()
    if name in ("", "localhost", socket.gethostname().lower()) or name.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified


def _origin_allowed(origin: str) -> bool:
    parts = urlsplit(origin)
    if parts.scheme in _ORIGIN_SCHEMES:
        return True
    return parts.scheme in ("http", "https") and parts.hostname in _ORIGIN_HOSTS
