"""Emulator of an Ollama server: its routes, and what it says where there is no route.

Never kinder than the real one: streams by default, refuses what Ollama refuses in its words, one slot a model,
headers withheld until the load ends. Facts: Ollama 0.17.4, measured; 0.33 source.
Not emulated (404): cloud accounts and cloud models, audio transcription, image generation.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping

from memos_llm.emulators import (
    ollama_catalogue,
    ollama_door,
    ollama_embedding,
    ollama_requests,
    ollama_store,
    ollama_v1,
)
from memos_llm.emulators.emulator import Emulator
from memos_llm.emulators.faults import Fault
from memos_llm.emulators.ollama_answering import infer
from memos_llm.emulators.ollama_completions import completions
from memos_llm.emulators.ollama_messages import messages
from memos_llm.emulators.ollama_models import DEFAULT_MODELS, PULLABLE, Catalogue, OllamaModel
from memos_llm.emulators.ollama_native import NativeShape
from memos_llm.emulators.ollama_requests import Refusal
from memos_llm.emulators.ollama_responses import responses
from memos_llm.emulators.ollama_runner import Load, QueueFull, Scheduler
from memos_llm.emulators.ollama_server import BUSY, JSON, NDJSON, SSE, TEXT, Ollama
from memos_llm.emulators.ollama_versions import behaviour
from memos_llm.emulators.wire import Exchange

_FAULT_TEXTS: Mapping[int, str] = {401: "unauthorized", 429: "too many requests", 503: BUSY}
_DATA_ROUTES: Mapping[str, bool | None] = {  # path: whether it streams unless told otherwise, None never
    "/api/chat": True,
    "/api/generate": True,
    "/api/embed": None,
    "/api/embeddings": None,
    "/v1/chat/completions": False,
    "/v1/completions": False,
    "/v1/embeddings": None,
    "/v1/responses": False,
    "/v1/messages": False,
}

Route = Callable[[Ollama, Exchange], Awaitable[None]]


class OllamaEmulator(Emulator):
    """An Ollama server.

    Args:
        models: installed models, names or `OllamaModel`s. version: "0.33.0" or e.g. "0.17.4".
        load_s: seconds a model load takes. num_parallel: slots of a loaded model (Ollama's default is 1).
        max_queue: pending loads before a 503. keep_alive_s: how long an idle model stays loaded.
        words: fixed length of answers in words, None for 5 to 12.
        space: name of a vector space that another emulator shares, None for a space of its own.
        pullable: names that the registry has.
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
        space: str | None = None,
        pullable: Iterable[str] = PULLABLE,
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
        self.loads: list[Load] = []
        self.server = Ollama(
            version=version,
            behaves=behaviour(version),
            catalogue=Catalogue(models, pullable),
            scheduler=Scheduler(
                load_s=load_s,
                num_parallel=num_parallel,
                max_queue=max_queue,
                keep_alive_s=keep_alive_s,
                told=self._load_told,
            ),
            faults=self.faults,
            timing=self.timing,
            counters=self.counters,
            ids=random.Random(seed),
            seed=seed,
            words=words,
            space=space,
        )

    @property
    def version(self) -> str:
        """The emulated release."""
        return self.server.version

    @property
    def catalogue(self) -> Catalogue:
        """What is installed."""
        return self.server.catalogue

    @property
    def scheduler(self) -> Scheduler:
        """What is loaded."""
        return self.server.scheduler

    def is_data_route(self, path: str) -> bool:
        return path in _DATA_ROUTES

    def stream_headers(self, path: str) -> tuple[tuple[str, str], ...]:
        if _DATA_ROUTES.get(path) is None:
            return JSON
        return SSE if path.startswith("/v1/") else NDJSON

    async def before(self, exchange: Exchange, fault: Fault) -> None:
        request = exchange.request
        code = {"model_missing": 404, "queue_full": 503}.get(fault.name, fault.code)
        name = ollama_requests.peek(request.body, "model", "")
        words = _missing_words(request.path).replace("{name}", str(name))
        text = words if code == 404 else _FAULT_TEXTS.get(code, self.server.crash_text)
        usual = _DATA_ROUTES.get(request.path)
        if code == 500 and usual is not None and ollama_requests.peek(request.body, "stream", usual) is True:
            await self.server.fail_unstarted(exchange, text)
        else:
            await self.server.refuse(exchange, Refusal(code, text))

    def faults_changed(self) -> None:
        """Nothing to do: every fault of Ollama's acts on single requests or on the listener."""

    def _load_told(self, load: Load) -> None:
        if load.state == "loading":
            self.loads.append(load)
            self.counters.loads += 1
            self.counters.loads_started[load.model] += 1
        elif load.state == "done":
            self.counters.loads_completed[load.model] += 1
        else:
            self.counters.load_aborts += 1
            self.counters.loads_aborted[load.model] += 1

    # -- dispatch

    async def dispatch(self, exchange: Exchange) -> None:
        request = exchange.request
        if not ollama_door.admitted(exchange, loopback=self.bound_to_loopback):
            offered = (self._methods(request.path) or ()) if request.method == "OPTIONS" else ()
            await exchange.reply(403, b"", ollama_door.preflight(exchange, offered))
            return
        if request.method == "OPTIONS" and "origin" in request.headers:
            await exchange.reply(204, b"", ollama_door.preflight(exchange, self._methods(request.path) or ()))
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
        if name and parent in _NAMED_ROUTES:
            return _NAMED_ROUTES[parent]
        since = _NEWER_ROUTES.get(path)
        if since is not None and not getattr(self.server.behaves, since):
            return None
        return _ROUTES.get(path)

    async def _guarded(self, route: Route, exchange: Exchange) -> None:
        try:
            await route(self.server, exchange)
        except Refusal as refusal:
            await self.server.refuse(exchange, refusal)
        except QueueFull:
            await self.server.refuse(exchange, Refusal(503, BUSY))

    async def _unknown(self, exchange: Exchange) -> None:
        request = exchange.request
        bare = request.path.rstrip("/")
        if bare != request.path and request.method in _ROUTES.get(bare, {}):
            await _redirect(exchange, bare)
        else:
            await exchange.reply(404, b"404 page not found", TEXT)


async def _redirect(exchange: Exchange, place: str) -> None:
    """As Go's http.Redirect: a page for a GET, nothing but the headers for what is to be sent again."""
    if exchange.request.method == "GET":
        page = f'<a href="{place}">Moved Permanently</a>.\n\n'.encode()
        await exchange.reply(301, page, [("location", place), ("content-type", "text/html; charset=utf-8")])
    else:
        await exchange.reply(307, b"", [("location", place)])


def _missing_words(path: str) -> str:
    embeds = "embed" in path
    return (ollama_requests.EMBED_NAMING if embeds else ollama_requests.CHAT_NAMING).unknown[1]


# -- small routes


async def _alive(server: Ollama, exchange: Exchange) -> None:
    await exchange.reply(200, b"Ollama is running", [("content-type", "text/plain; charset=utf-8")])


async def _version(server: Ollama, exchange: Exchange) -> None:
    await server.show(exchange, {"version": server.version})


async def _status(server: Ollama, exchange: Exchange) -> None:
    await server.show(exchange, {"cloud": {"disabled": True, "source": "env"}})


async def _chat(server: Ollama, exchange: Exchange) -> None:
    asked = ollama_requests.read_chat(exchange.request.body, server.behaves)
    await infer(server, exchange, asked, NativeShape(asked, server.behaves.single_eval_duration))


async def _generate(server: Ollama, exchange: Exchange) -> None:
    asked = ollama_requests.read_generate(exchange.request.body, server.behaves)
    await infer(server, exchange, asked, NativeShape(asked, server.behaves.single_eval_duration))


async def _v1_chat(server: Ollama, exchange: Exchange) -> None:
    asked, include_usage = ollama_v1.read_chat(exchange.request.body, behaves=server.behaves)
    number = server.ids.randrange(999)
    alone = server.behaves.finish_alone
    shape = ollama_v1.V1Shape(asked, number, include_usage=include_usage, finish_alone=alone)
    await infer(server, exchange, asked, shape)


_ROUTES: Mapping[str, Mapping[str, Route]] = {
    "/": {"HEAD": _alive, "GET": _alive},
    "/api/version": {"HEAD": _version, "GET": _version},
    "/api/status": {"GET": _status},
    "/api/tags": {"HEAD": ollama_catalogue.tags, "GET": ollama_catalogue.tags},
    "/api/ps": {"GET": ollama_catalogue.ps},
    "/api/show": {"POST": ollama_catalogue.show},
    "/api/chat": {"POST": _chat},
    "/api/generate": {"POST": _generate},
    "/api/embed": {"POST": ollama_embedding.embed},
    "/api/embeddings": {"POST": ollama_embedding.embeddings},
    "/v1/models": {"GET": ollama_catalogue.v1_models},
    "/v1/chat/completions": {"POST": _v1_chat},
    "/v1/completions": {"POST": completions},
    "/v1/embeddings": {"POST": ollama_embedding.v1_embeddings},
    "/v1/responses": {"POST": responses},
    "/v1/messages": {"POST": messages},
    "/api/pull": {"POST": ollama_store.pull},
    "/api/push": {"POST": ollama_store.push},
    "/api/create": {"POST": ollama_store.create},
    "/api/copy": {"POST": ollama_store.copy},
    "/api/delete": {"DELETE": ollama_store.delete},
}
_NAMED_ROUTES: Mapping[str, Mapping[str, Route]] = {  # one path segment more
    "/v1/models": {"GET": ollama_catalogue.v1_model},
    "/api/blobs": {"HEAD": ollama_store.has_blob, "POST": ollama_store.add_blob},
}
_NEWER_ROUTES: Mapping[str, str] = {"/v1/responses": "v1_responses", "/v1/messages": "v1_messages"}
