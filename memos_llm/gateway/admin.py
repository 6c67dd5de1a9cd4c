"""The admin API, `/admin/v1/…`: the control plane's verbs over HTTP, as JSON.

`VERBS` is the whole surface: routing, rights, reading and the OpenAPI document come from it. Who asks was found out at
the entry; each verb names the right it takes, and a shift takes more when it raises a share. POST takes JSON only (a
web page cannot send that to another origin unasked), of known keys only.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from memos_llm.control.adopt import raises
from memos_llm.core.commands import Actor, Shift
from memos_llm.core.errors import BadRequest, LLMError, Refused, StoreUnreachable
from memos_llm.core.events import InternalError, RequestRefused, place_of
from memos_llm.core.flags import EMBEDDING, Flags
from memos_llm.core.ports import Instance
from memos_llm.gateway.admin_events import Feed
from memos_llm.gateway.admin_openapi import Operation, encoded
from memos_llm.gateway.asgi import BodyTooLarge, ClientLeft, read_body
from memos_llm.gateway.principal import Principal, Right, found
from memos_llm.operate import changes, documents, orders, records, standing
from memos_llm.operate.board import Board
from memos_llm.operate.explain import explain, offers_of
from memos_llm.operate.guarding import Guarded, Heard, look
from memos_llm.operate.inventory import inventory
from memos_llm.rollout.inventory import Inventory
from memos_llm.wiring import Runtime

PREFIX = "/admin/v1"
MAX_BODY_BYTES = 65_536
PART = "admin"


class Listing(Struct, frozen=True, kw_only=True):
    """How many, newest first."""

    limit: int = records.LIMIT


class Nothing(Struct, frozen=True, kw_only=True):
    """A verb that is asked without further words."""


class Asked(NamedTuple):
    """One request: what was read of it, and who asks. `rest` is what the path says beyond the verb."""

    order: Any
    principal: Principal
    rest: str

    @property
    def actor(self) -> Actor:
        """Whoever may not raise a share is held to that by the flags themselves, whatever changes meanwhile."""
        return Actor(self.principal.id, "human" if Right.ADMIN in self.principal.rights else "operator")


Answer = Callable[[Asked], Awaitable[Struct | Response]]


class Verb(NamedTuple):
    """One operation: what it takes, what it gives, and who may."""

    operation: Operation
    right: Right
    answer: Answer


def routes(runtime: Runtime, draining: Callable[[], bool] = lambda: False) -> list[BaseRoute]:
    """Every route under `/admin/v1`. `draining`: whether the server is about to end, so that streams end too."""
    admin = _Admin(runtime, draining)
    return [Route(PREFIX + "/{rest:path}", admin.answer, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])]


class _Admin:
    """The verbs over one runtime."""

    def __init__(self, runtime: Runtime, draining: Callable[[], bool]) -> None:
        self._runtime = runtime
        self._board = Board(lambda: runtime.settings.provider_specs())
        runtime.bus.subscribe("admin.board", self._board.on_event, *Board.KINDS)
        self._guard = Heard()
        runtime.bus.subscribe("admin.guard", self._guard.on_event, *Heard.KINDS)
        self._feed = Feed(runtime.bus, draining, keys=lambda: runtime.settings.gateway.api_keys)
        self._verbs = {(verb.operation.method, verb.operation.path): verb for verb in self._table()}
        self._openapi = encoded(PREFIX, tuple(verb.operation for verb in self._verbs.values()))

    def _table(self) -> list[Verb]:
        read, operate, admin = Right.READ, Right.OPERATE, Right.ADMIN
        o, d = orders, documents

        def verb(method: str, path: str, right: Right, answer: Answer, order: Any, gives: Any, says: str) -> Verb:
            return Verb(Operation(method, path, right.value, order, gives, says), right, answer)

        return [
            verb("GET", "status", read, self.status, Nothing, d.Status, "How things stand, as this gateway sees it"),
            verb("GET", "flags", read, self.flags, Nothing, d.FlagsDocument, "The flags in force, without their salt"),
            verb("GET", "history", read, self.history, Listing, d.History, "Who changed what, when, why"),
            verb("GET", "incidents", read, self.incidents, Listing, d.Incidents, "Rollbacks and why"),
            verb("GET", "incidents/{id}", read, self.incident, Nothing, d.Incidents, "One incident"),
            verb("GET", "explain", read, self.explain, o.ExplainOrder, d.Explained, "Where a call would go, and why"),
            verb(
                "GET", "inventory", read, self.inventory, o.InventoryOrder, Inventory,
                "Who calls what, and what still hangs on the baseline",
            ),
            verb("GET", "events", read, self.events, Nothing, None, "What happens, as server-sent events"),
            verb("GET", "openapi.json", read, self.openapi, Nothing, None, "This document"),
            verb(
                "POST", "shift", operate, self.shift, o.ShiftOrder, d.Change,
                "Set the candidate's share; to raise one, or to move embeddings, takes `admin`",
            ),
            verb("POST", "rollback", operate, self.rollback, o.RollbackOrder, d.Change, "Share to 0 at once, latched"),
            verb(
                "POST", "maintenance", operate, self.maintenance, o.MaintenanceOrder, d.Change,
                "Drain a provider for a while, or end that: its requests are diverted, nothing is rolled back",
            ),
            verb("POST", "rearm", admin, self.rearm, o.RearmOrder, d.Change, "Lift a latch; the share stays 0"),
            verb(
                "POST", "adopt", admin, self.adopt, o.AdoptOrder, d.Adoption,
                "Accept a store that has regressed; without `sure` only say what that would do",
            ),
            verb("POST", "verify", admin, self.verify, o.VerifyOrder, d.Change, "Record a proof of equal embeddings"),
        ]  # fmt: skip

    async def answer(self, request: Request) -> Response:
        """One request; whatever goes wrong is a document."""
        try:
            verb, rest = self._find(request.method, request.path_params["rest"])
            principal = found(request.scope)
            principal.require(verb.right)
            order = await self._read(request, verb.operation.order)
            made = await verb.answer(Asked(order, principal, rest))
        except LLMError as error:
            self._refused(error)
            return _error(error)
        except ClientLeft:
            return Response(status_code=499)
        except Exception as error:  # noqa: BLE001 - our own fault: told, and answered as one
            self._runtime.bus.emit(InternalError(part=PART, error=type(error).__name__, where=place_of(error)))
            return _error(LLMError(f"internal error: {type(error).__name__}"))
        return made if isinstance(made, Response) else _json(made)

    def _find(self, method: str, path: str) -> tuple[Verb, str]:
        """The verb, and what the path says beyond it."""
        head, _, rest = path.strip("/").partition("/")
        place = f"{head}/{{id}}" if rest else head
        verb = self._verbs.get((method, place))
        if verb is not None:
            return verb, rest
        others = [known for known, name in self._verbs if name == place]
        if others:
            raise BadRequest(f"{PREFIX}/{place} takes {' or '.join(others)}, not {method}", http_status=405)
        known = ", ".join(dict.fromkeys(name.partition("/")[0] for _, name in self._verbs))
        raise BadRequest(f"there is no {PREFIX}/{place[:80]}; there are {known}", http_status=404)

    async def _read(self, request: Request, kind: type[Struct]) -> Struct:
        if request.method == "GET":
            query = request.query_params
            if len(query.multi_items()) != len(query):
                raise BadRequest("a parameter is there twice: each is read once")
            return orders.convert(dict(query), kind, strict=False)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise BadRequest("send JSON: content-type: application/json", http_status=415)
        limit_s = self._runtime.settings.gateway.body_timeout_s
        try:
            body = await read_body(request.receive, max_bytes=MAX_BODY_BYTES, timeout_s=limit_s)
        except BodyTooLarge:
            raise BadRequest(f"the body is larger than {MAX_BODY_BYTES} bytes", http_status=413) from None
        except TimeoutError:
            raise BadRequest(f"the body did not arrive within {limit_s:g} s", http_status=408) from None
        return orders.read(body, kind)

    def _refused(self, error: LLMError) -> None:
        if error.http_status in (401, 403):  # who asks for what is not theirs is told of, as on the data paths
            self._runtime.bus.emit(
                RequestRefused(request_id="", status=error.http_status, error_name=error.name, error_code=error.code)
            )

    # To look

    async def status(self, asked: Asked) -> Struct:
        runtime, live = self._runtime, self._runtime.live
        instances: tuple[Instance, ...] = ()
        with suppress(StoreUnreachable):  # the document says that it is
            instances = tuple(await live.store.instances())
        config = runtime.config_state()
        return standing.status(
            runtime.settings,
            runtime.policy(),
            live.current(),
            instances=instances,
            providers=self._board.providers(),
            store=live.store_state,
            now=time.time(),
            seen_by="gateway",
            config=documents.ConfigSeen(
                path=config.path, generation=config.generation, errors=config.errors, waiting=config.waiting
            ),
            guarded=await self._guarded(),
        )

    async def _guarded(self) -> Guarded:
        """What the guard said last; in its first second, what it would say of the store's windows."""
        heard, live = self._guard.guarded(), self._runtime.live
        if heard.at is None:
            with suppress(StoreUnreachable):
                return await look(live.store, self._runtime.policy(), live.current())
        return heard

    async def flags(self, asked: Asked) -> Struct:
        return standing.flags_document(self._runtime.live.current())

    async def history(self, asked: Asked) -> Struct:
        return await records.history(self._runtime.live.store, asked.order.limit)

    async def incidents(self, asked: Asked) -> Struct:
        return await records.incidents(self._runtime.live.store, asked.order.limit)

    async def incident(self, asked: Asked) -> Struct:
        return await records.incident(self._runtime.live.store, asked.rest)

    async def explain(self, asked: Asked) -> Struct:
        runtime = self._runtime
        routes = runtime.routes()
        return explain(asked.order, runtime.live.current(), routes.policy, offers_of(routes))

    async def inventory(self, asked: Asked) -> Struct:
        live = self._runtime.live
        return await inventory(live.store, self._runtime.policy(), live.current(), asked.order)

    async def events(self, asked: Asked) -> Response:
        client = self._feed.open()
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(client.lines(), media_type="text/event-stream", headers=headers)

    async def openapi(self, asked: Asked) -> Response:
        return Response(self._openapi, media_type="application/json")

    # To change

    async def shift(self, asked: Asked) -> Struct:
        live = self._runtime.live
        asked.principal.require(_right_to_shift(asked.order, live.current()))
        return await changes.shift(live, self._runtime.settings, asked.order, asked.actor)

    async def rollback(self, asked: Asked) -> Struct:
        if asked.order.component == EMBEDDING:
            asked.principal.require(Right.ADMIN)
        return await changes.rollback(self._runtime.live, self._runtime.settings, asked.order, asked.actor)

    async def rearm(self, asked: Asked) -> Struct:
        live, settings, transports = self._runtime.live, self._runtime.settings, self._runtime.transports
        return await changes.rearm(live, settings, asked.order, asked.actor, transports)

    async def maintenance(self, asked: Asked) -> Struct:
        return await changes.maintenance(self._runtime.live, self._runtime.settings, asked.order, asked.actor)

    async def adopt(self, asked: Asked) -> Struct:
        return await changes.adopt(self._runtime.live, asked.order, asked.actor)

    async def verify(self, asked: Asked) -> Struct:
        return await changes.verify(self._runtime.live, self._runtime.settings, asked.order, asked.actor)


def _right_to_shift(order: orders.ShiftOrder, flags: Flags) -> Right:
    """Down is the safe side; up is not, nor is moving vectors either way."""
    scope = orders.scope_of(order.component)
    if scope == EMBEDDING:
        return Right.ADMIN
    with suppress(Refused):  # it will be refused again, with its reason
        after = Shift(provider=order.provider, share_ppm=order.share_ppm, scope=scope).apply(flags, 0.0)
        return Right.ADMIN if raises(flags, after) else Right.OPERATE
    return Right.OPERATE


def _json(made: Struct, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(made), status, headers, media_type="application/json")


def _error(error: LLMError) -> Response:
    problem = documents.Problem(message=error.message, code=error.code, name=error.name)
    headers = {"x-memos-error-code": error.code}
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    return _json(documents.ErrorDocument(error=problem), error.http_status, headers)
