"""The ASGI application: which path is answered by whom.

The data plane is a dictionary look-up and a call; everything else goes through Starlette. A path under `/c/…` is the
same path with a component (and a session) said.
"""

from collections.abc import Callable

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from memos_llm.core.errors import BadRequest
from memos_llm.gateway.asgi import Receive, Scope, Send, respond
from memos_llm.gateway.health import UNHEALTHY, HealthBoard
from memos_llm.gateway.inference import WIRES, Inference
from memos_llm.gateway.meta import Meta
from memos_llm.gateway.paths import locate

Render = Callable[[], tuple[bytes, str]]


class App:
    """ASGI 3. `render` gives the metrics as text and media type."""

    def __init__(self, inference: Inference, meta: Meta, health: HealthBoard, render: Render) -> None:
        self._inference = inference
        self._rest = _Rest(meta, health, render).application()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        try:
            place = locate(scope["raw_path"].decode("latin-1"))
        except BadRequest as error:
            await respond(send, 400, [(b"content-type", b"application/json")], _json({"error": error.message}))
            return
        wire = WIRES.get(place.path)
        if wire is not None and scope["method"] == "POST":
            await self._inference(scope, receive, send, wire, place)
            return
        scope = {**scope, "path": place.path, "raw_path": place.path.encode()}
        await self._rest(scope, receive, send)


def _json(document: object) -> bytes:
    return msgspec.json.encode(document)


def _document(document: object, status: int = 200) -> Response:
    return Response(_json(document), status, media_type="application/json")


class _Rest:
    """The routes off the hot path."""

    def __init__(self, meta: Meta, health: HealthBoard, render: Render) -> None:
        self._meta, self._health, self._render = meta, health, render

    def application(self) -> Starlette:
        handlers = {
            "/": self.root,
            "/v1/models": self.models,
            "/api/tags": self.tags,
            "/api/version": self.version,
            "/health": self.health,
            "/ready": self.ready,
            "/metrics": self.metrics,
        }
        return Starlette(routes=[Route(path, handler) for path, handler in handlers.items()])

    async def root(self, request: Request) -> Response:
        return PlainTextResponse("Ollama is running")  # what Ollama's own clients look for

    async def models(self, request: Request) -> Response:
        return _document(await self._meta.models())

    async def tags(self, request: Request) -> Response:
        return _document(await self._meta.tags())

    async def version(self, request: Request) -> Response:
        return _document(await self._meta.version())

    async def health(self, request: Request) -> Response:
        return _document(self._health.report())

    async def ready(self, request: Request) -> Response:
        if self._health.draining():
            return _document({"status": "draining"}, 503)
        status = self._health.report()["status"]
        return _document({"status": status}, 503 if status == UNHEALTHY else 200)

    async def metrics(self, request: Request) -> Response:
        body, media_type = self._render()
        return Response(body, headers={"content-type": media_type})
