"""The verbs through a running gateway's admin API (`--gateway`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from memos_llm.cli import failures
from memos_llm.core.decoding import FAILURES
from memos_llm.core.errors import LLMError
from memos_llm.operate import documents, orders
from memos_llm.rollout.inventory import Inventory

T = TypeVar("T")

TOKEN_VARIABLE = "MEMOS_LLM_ADMIN_TOKEN"
TOKEN_FILE = "~/.local/state/memos_llm/admin_token"  # where `serve` keeps the one that it makes
CHECK = "check --gateway or MEMOS_LLM_GATEWAY_URL"
CONNECT_S, ANSWER_S = 3.0, 25.0  # a rearm probes for 3 s and waits for followers for 10 s


class GatewayDesk:
    """`cli.desk.Desk` over HTTP.

    Args:
        url: the gateway's; a path such as `/v1` is left out.
        environ: may hold the token.
    """

    def __init__(
        self, url: str, environ: Mapping[str, str], *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.url = _base(url)
        self._from_variable = bool(environ.get(TOKEN_VARIABLE, "").strip())
        self._token = _token(environ)
        self._transport = transport

    async def status(self) -> documents.Status:
        return await self._get("status", documents.Status)

    async def shift(self, order: orders.ShiftOrder) -> documents.Change:
        return await self._post("shift", order, documents.Change)

    async def rollback(self, order: orders.RollbackOrder) -> documents.Change:
        return await self._post("rollback", order, documents.Change)

    async def rearm(self, order: orders.RearmOrder) -> documents.Change:
        return await self._post("rearm", order, documents.Change)

    async def maintenance(self, order: orders.MaintenanceOrder) -> documents.Change:
        return await self._post("maintenance", order, documents.Change)

    async def verify(self, order: orders.VerifyOrder) -> documents.Change:
        return await self._post("verify", order, documents.Change)

    async def adopt(self, order: orders.AdoptOrder) -> documents.Adoption:
        return await self._post("adopt", order, documents.Adoption)

    async def history(self, limit: int) -> documents.History:
        return await self._get("history", documents.History, limit=limit)

    async def incidents(self, limit: int) -> documents.Incidents:
        return await self._get("incidents", documents.Incidents, limit=limit)

    async def incident(self, id: str) -> documents.Incidents:
        return await self._get(f"incidents/{quote(id, safe='')}", documents.Incidents)

    async def explain(self, order: orders.ExplainOrder) -> documents.Explained:
        asked = {name: value for name, value in msgspec.structs.asdict(order).items() if value is not None}
        return await self._get("explain", documents.Explained, **asked)

    async def health(self) -> tuple[str, bool]:
        """What it says of itself to anyone (healthy, degraded, unhealthy), and whether it is ready; empty: nothing."""
        limits = httpx.Timeout(CONNECT_S, connect=CONNECT_S)
        try:
            async with httpx.AsyncClient(timeout=limits, trust_env=False, transport=self._transport) as client:
                said = (await client.get(f"{self.url}/health")).json()
                ready = (await client.get(f"{self.url}/ready")).status_code == 200
                return (str(said["status"]), ready) if "router" in said["services"] else ("", False)
        except (httpx.HTTPError, ValueError, KeyError, TypeError):  # nobody there, or something else
            return "", False

    async def inventory(self, order: orders.InventoryOrder) -> Inventory:
        return await self._get("inventory", Inventory, since=order.since)

    async def _get(self, path: str, kind: type[T], **query: str | int) -> T:
        return await self._ask("GET", path, kind, params=query)

    async def _post(self, path: str, order: msgspec.Struct, kind: type[T]) -> T:
        headers = {"content-type": "application/json"}
        return await self._ask("POST", path, kind, content=msgspec.json.encode(order), headers=headers)

    async def _ask(self, method: str, path: str, kind: type[T], **request: Any) -> T:
        bearer = {"authorization": f"Bearer {self._token}"} if self._token else {}
        request["headers"] = {**request.get("headers", {}), **bearer}
        limits = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        try:
            async with httpx.AsyncClient(timeout=limits, trust_env=False, transport=self._transport) as client:
                answer = await client.request(method, f"{self.url}/admin/v1/{path}", **request)
        except httpx.HTTPError as error:
            raise failures.unreachable(
                f"the gateway {self.url} does not answer ({type(error).__name__}): "
                f"is `llmctl serve` running there? {CHECK}"
            ) from None
        if answer.status_code != 200:
            raise self._failure(answer)
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except FAILURES:
            raise failures.unreachable(
                f"{self.url} answers, but not as a gateway of this version of memos_llm does"
            ) from None

    def _failure(self, answer: httpx.Response) -> failures.Failure:
        """The gateway's error with the exit code that it would have here."""
        message, name = _problem(answer)
        if not message:
            return failures.unreachable(f"{self.url} answers {answer.status_code}, and not as a gateway does: {CHECK}")
        if answer.status_code in (401, 403):
            where = "given by " + TOKEN_VARIABLE if self._from_variable else f"read from {TOKEN_FILE}"
            had = f"the token was {where}" if self._token else "there was no token to send"
            return failures.Failure(
                f"{self.url}: {message}; {had}: set {TOKEN_VARIABLE}, or have the gateway's {TOKEN_FILE} here",
                failures.REFUSED,
                name,
            )
        return failures.Failure(message, _exit_code(answer.status_code, name), name)


def _base(url: str) -> str:
    """Scheme, host and port."""
    text = url if "://" in url else f"http://{url}"
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise failures.usage(f"--gateway {url!r} is no address: write http://HOST:8200")
    return f"{parsed.scheme}://{parsed.netloc.decode('ascii')}"


def _token(environ: Mapping[str, str]) -> str:
    given = environ.get(TOKEN_VARIABLE, "").strip()
    if given:
        return given
    try:
        return Path(TOKEN_FILE).expanduser().read_text().strip()
    except OSError:
        return ""


def _problem(answer: httpx.Response) -> tuple[str, str]:
    """Message and name; no message where something else answers, be it in between or instead."""
    try:
        found = answer.json()["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", "HTTP_ERROR"
    if isinstance(found, dict):
        return str(found.get("message", "")), str(found.get("name", "HTTP_ERROR"))
    return str(found), "HTTP_ERROR"


def _exit_code(status: int, name: str) -> int:
    known = {kind.name: kind for kind in _tree(LLMError)}
    if name in known:
        return failures.exit_code(known[name](""))
    return failures.USAGE if 400 <= status < 500 else failures.UNREACHABLE


def _tree(kind: type[LLMError]) -> list[type[LLMError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _tree(child))]
