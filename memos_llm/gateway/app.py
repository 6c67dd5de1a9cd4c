"""The ASGI application: who may come in, and which path is answered by whom.

The data plane is a dictionary look-up and a call; what we answer ourselves goes through Starlette; everything else
under `/api/` and `/v1/` is passed to the baseline. A path under `/c/…` is the same path with a component (and a
session) said.
"""

import resource
import sys
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from memos_llm.core.errors import BadRequest, LLMError, ModelNotFound, Overloaded
from memos_llm.core.events import Bus, InternalError, place_of
from memos_llm.core.ports import Routes
from memos_llm.gateway import calls, console, gpu, pull
from memos_llm.gateway.asgi import ClientLeft, Receive, Scope, Send, respond
from memos_llm.gateway.auth import Doorkeeper
from memos_llm.gateway.dialogue import Dialogue
from memos_llm.gateway.entry import admit, check_head, check_single, preflight_headers, with_cors
from memos_llm.gateway.errors import as_http, error_headers, refusal, refuse, tell, voice_of
from memos_llm.gateway.health import UNHEALTHY, HealthBoard
from memos_llm.gateway.inference import WIRES, Arrival, Inference, body_of
from memos_llm.gateway.meta import Meta, TooLarge
from memos_llm.gateway.passage import PassageWork
from memos_llm.gateway.paths import locate
from memos_llm.gateway.principal import Right, leave
from memos_llm.gateway.rights import PULL
from memos_llm.gateway.rules import Rules

Render = Callable[[], tuple[bytes, str]]


class MethodNotAllowed(BadRequest):
    """The path takes other methods."""

    status = 405


class NotFound(BadRequest):
    """Nothing is served at this path."""

    status = 404


class HeadRefused(BadRequest):
    """What came is no request in HTTP/1.1, its head was too large, or took too long."""


_HEADS = {
    431: "the request line and headers are too large",
    408: "the request's headers did not arrive within gateway.header_timeout_s",
}


class App:
    """ASGI 3. `rules` are those in force; `own` answers the paths that are ours."""

    def __init__(
        self,
        rules: Callable[[], Rules],
        doorkeeper: Doorkeeper,
        inference: Inference,
        routes: Callable[[], Routes],
        own: "Own",
        meta: Meta,
        bus: Bus,
    ) -> None:
        self.rules = rules
        self._doorkeeper, self._inference, self._routes, self._bus = doorkeeper, inference, routes, bus
        self._dialogues: Mapping[str, Dialogue] = {path: Dialogue(wire, routes) for path, wire in WIRES.items()}
        self._meta = meta
        self._rest = own.application()
        self._questions = {"/api/show": self._show, PULL: self._pull}
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._places = sys.maxsize if files == resource.RLIM_INFINITY else files // 2

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        raw_path, headers, rules = scope["raw_path"].decode("latin-1"), dict(scope["headers"]), self.rules()
        method = scope["method"]
        try:
            place = locate(raw_path)
            if len(headers) != len(scope["headers"]):
                check_single(scope["headers"])
            check_head(place.path, headers, rules, scope.get("http_version", ""))
            if b"origin" in headers:
                send = with_cors(send, headers[b"origin"])
                if method == "OPTIONS":
                    await _allow(send, headers)
                    return
            principal = admit(method, place.path, headers, rules, self._doorkeeper)
        except LLMError as error:
            await refuse(send, self._bus, raw_path, error, calls.request_id(headers))
            return
        leave(scope, principal)
        arrival = Arrival(scope, receive, send, headers, place, principal, rules)
        dialogue = self._dialogues.get(place.path)
        if dialogue is not None and method == "POST":
            await self._inference(arrival, dialogue)
        else:
            await self._route(arrival)

    @property
    def header_timeout_s(self) -> float:
        """How long the server waits for a request's head."""
        return self.rules().header_timeout_s

    @property
    def max_connections(self) -> int:
        """How many connections clients may have; no more than leave half of our files for the back ends'."""
        return min(self.rules().max_connections, self._places)

    def refused_head(self, status: int, target: str, why: str = "") -> bytes:
        """The server's answer where there is no request to be carried out, in the words of the path's API."""
        id, path = calls.request_id({}), "/" + target.partition("?")[0].lstrip("/")
        error: LLMError = HeadRefused(why or _HEADS.get(status, ""), http_status=status)
        if status == Overloaded.status:
            error = Overloaded("the gateway is at its limit of connections", retry_after_s=1)
        return as_http(refusal(self._bus, path, error, id))

    async def _route(self, arrival: Arrival) -> None:
        """Whatever is no request on a wire that we read."""
        path, method = arrival.place.path, arrival.scope["method"]
        ours = OWN.get(path)
        if path in self._dialogues or (ours is not None and method not in ours):
            await self._guarded(arrival, _not_allowed)
        elif ours is None and not path.startswith(("/api/", "/v1/", "/admin/")):
            await self._guarded(arrival, _not_served)
        elif ours is not None or path.startswith("/admin/") or _is_model(method, path):
            await self._rest({**arrival.scope, "path": path, "raw_path": path.encode()}, arrival.receive, arrival.send)
        elif path in self._questions and method == "POST":
            await self._guarded(arrival, self._questions[path])
        else:
            await self._pass(arrival)

    async def _pass(self, arrival: Arrival) -> None:
        await self._inference(arrival, PassageWork(arrival.place.path, self._routes))

    async def _show(self, arrival: Arrival) -> None:
        try:
            document = await self._meta.show(await body_of(arrival), arrival.rules)
        except TooLarge as large:
            await self._pass(arrival._replace(receive=pull.replay(large.question)))
            return
        await respond(arrival.send, 200, [(b"content-type", b"application/json; charset=utf-8")], document)

    async def _pull(self, arrival: Arrival) -> None:
        body = await body_of(arrival)
        wanted = pull.asked(body)
        if Right.ADMIN not in arrival.principal.rights:
            arrival.principal.require(Right.INFERENCE)
        if await self._meta.knows(wanted.name):
            media_type, done = pull.done(wanted)
            await respond(arrival.send, 200, [(b"content-type", media_type)], done)
        else:
            arrival.principal.require(Right.ADMIN)
            await self._pass(arrival._replace(receive=pull.replay(body)))

    async def _guarded(self, arrival: Arrival, handle: Callable[[Arrival], Awaitable[None]]) -> None:
        """Whatever goes wrong before the answer has begun is told in the words of the path's API."""
        path, id = arrival.place.path, calls.request_id(arrival.headers)
        try:
            await handle(arrival)
        except ClientLeft:
            return
        except LLMError as error:
            await refuse(arrival.send, self._bus, path, error, id)
        except Exception as error:  # noqa: BLE001 - counted, and never a traceback for the client
            self._bus.emit(InternalError(part="gateway", error=type(error).__name__, where=place_of(error)))
            await tell(arrival.send, voice_of(path), LLMError("internal error of the gateway"), id)


async def _not_allowed(arrival: Arrival) -> None:
    path, method = arrival.place.path, arrival.scope["method"]
    raise MethodNotAllowed(f"{path} takes {', '.join(sorted(OWN.get(path, {'POST'})))}, not {method}")


async def _not_served(arrival: Arrival) -> None:
    raise NotFound(f"nothing is served at {arrival.place.path}")


def _is_model(method: str, path: str) -> bool:
    return path.startswith("/v1/models/") and method in READ


async def _allow(send: Send, headers: Mapping[bytes, bytes]) -> None:
    """A browser asks whether it may; it gives no key."""
    await send({"type": "http.response.start", "status": 204, "headers": preflight_headers(headers)})
    await send({"type": "http.response.body", "body": b""})


READ = frozenset({"GET", "HEAD"})

OWN: Mapping[str, frozenset[str]] = {
    "/": READ,
    "/v1/models": READ,
    "/api/tags": READ,
    "/api/ps": READ,
    "/api/version": READ,
    "/api/v1/models/gpu/status": READ,
    "/api/v1/health/quick": READ,
    "/api/v1/system/health/aggregate": READ,
    "/health": READ,
    "/ready": READ,
    "/metrics": READ,
    **dict.fromkeys(sorted(console.PATHS), READ),
}
"""What is answered here, and the methods that it takes."""


def _document(document: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")


def _error(request: Request, error: LLMError) -> Response:
    voice = voice_of(request.scope["path"])
    told = error_headers(error, calls.request_id(dict(request.scope["headers"])), voice.media_type)
    headers = {name.decode(): value.decode("latin-1") for name, value in told}
    return Response(voice.body(error, ""), voice.status(error), headers)


def _checked(report: Mapping[str, object]) -> Response:
    return _document(report, 503 if report["status"] == UNHEALTHY else 200)


async def _nothing_here(request: Request, error: Exception) -> Response:
    return _error(request, NotFound(f"nothing is served at {request.scope['path']}"))


async def _not_taken(request: Request, error: Exception) -> Response:
    return _error(request, MethodNotAllowed(f"{request.scope['path']} does not take {request.method}"))


class Own:
    """The routes off the hot path. `more` are further ones (the admin API)."""

    def __init__(self, meta: Meta, health: HealthBoard, render: Render, more: list[BaseRoute]) -> None:
        self._meta, self._health, self._render, self._more = meta, health, render, more
        self._console = console.read()

    def application(self) -> Starlette:
        handlers = {
            "/": self.root,
            "/v1/models": self.models,
            "/v1/models/{id:path}": self.model,
            "/api/tags": self.tags,
            "/api/ps": self.ps,
            "/api/version": self.version,
            "/api/v1/models/gpu/status": self.gpu,
            "/health": self.health,
            "/api/v1/health/quick": self.quick,
            "/api/v1/system/health/aggregate": self.aggregate,
            "/ready": self.ready,
            "/metrics": self.metrics,
            **dict.fromkeys(self._console, self.console),
        }
        routes: list[BaseRoute] = [Route(path, handler) for path, handler in handlers.items()]
        application = Starlette(routes=[*routes, *self._more], exception_handlers={404: _nothing_here, 405: _not_taken})
        application.router.redirect_slashes = False  # to an address made of the caller's own Host
        return application

    async def root(self, request: Request) -> Response:
        return PlainTextResponse("Ollama is running")  # what Ollama's own clients look for

    async def models(self, request: Request) -> Response:
        return _document(await self._meta.models())

    async def model(self, request: Request) -> Response:
        try:
            return _document(await self._meta.model(request.path_params["id"]))
        except ModelNotFound as error:
            return _error(request, error)

    async def tags(self, request: Request) -> Response:
        return _document(await self._meta.tags())

    async def ps(self, request: Request) -> Response:
        return _document(await self._meta.ps())

    async def version(self, request: Request) -> Response:
        return _document(await self._meta.version())

    async def gpu(self, request: Request) -> Response:
        return _document(await gpu.status())

    async def health(self, request: Request) -> Response:
        return _document(self._health.report())

    async def quick(self, request: Request) -> Response:
        return _checked(self._health.report())

    async def aggregate(self, request: Request) -> Response:
        return _checked(self._health.aggregate())

    async def ready(self, request: Request) -> Response:
        if self._health.draining():
            return _document({"status": "draining"}, 503)
        status = self._health.report()["status"]
        return _document({"status": status}, 503 if status == UNHEALTHY else 200)

    async def metrics(self, request: Request) -> Response:
        body, media_type = self._render()
        return Response(body, headers={"content-type": media_type})

    async def console(self, request: Request) -> Response:
        file = self._console[request.scope["path"]]
        return Response(file.body, headers=file.headers)
