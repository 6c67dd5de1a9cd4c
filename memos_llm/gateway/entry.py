"""What every request passes before it is routed: may this `Host`, this web page, this client be here at all?

A web page in a browser on this machine can reach us, and can have its own name point to us: `Host` and `Origin` tell.
Costs a few header look-ups; everything is decided from the head.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from memos_llm.core.errors import BadRequest, Forbidden
from memos_llm.gateway.asgi import Headers, Message, Send
from memos_llm.gateway.auth import Doorkeeper
from memos_llm.gateway.principal import NOBODY, Principal
from memos_llm.gateway.rights import OPEN, PROBED, right_for
from memos_llm.gateway.rules import Rules

HOP_HEADER = b"x-memos-hop"
"""What our providers send with every request: it must never reach a gateway."""

EXPOSED = (
    b"x-request-id, x-memos-provider, x-memos-arm, x-memos-model, x-memos-attempts, x-memos-reason, x-memos-warnings, "
    b"x-memos-error-code, x-should-retry, retry-after"
)
SINGLE = (
    b"host",
    b"authorization",
    b"x-api-key",
    b"origin",
    b"sec-fetch-site",
    b"content-type",
    b"content-encoding",
    b"content-length",
    b"transfer-encoding",
    *(b"x-memos-" + name for name in (b"component", b"session", b"provider", b"timeout-ms")),
)
"""Only the last of two would be read: RFC 9112 (3.2) has a second `Host` refused, and the others decide as much."""

_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_PREFLIGHT_S = b"600"


class Loop(BadRequest):
    """A request that this gateway (or another) sent has come back to it."""

    status = 508


class MisdirectedHost(Forbidden):
    """The `Host` header names something else than this gateway."""


class UnsupportedEncoding(BadRequest):
    """The body is compressed."""

    status = 415


class HostMissing(BadRequest):
    """HTTP/1.1 without a `Host`, which RFC 9112 (3.2) has refused."""


def admit(method: str, path: str, headers: Mapping[bytes, bytes], rules: Rules, doorkeeper: Doorkeeper) -> Principal:
    """Who may go on to the route, if anyone.

    Raises:
        Forbidden: the caller lacks the scope that the route wants.
        Unauthorized, Overloaded: as `Doorkeeper.who`.
    """
    if path in OPEN:
        return NOBODY
    principal, right = doorkeeper.who(headers, rules), right_for(method, path)
    if right is not None:
        principal.require(right)
    return principal


def check_head(path: str, headers: Mapping[bytes, bytes], rules: Rules, version: str) -> None:
    """Whatever of a request's head would let nobody in, whoever asks.

    Raises:
        Forbidden: the `Host` or the web page is foreign. HostMissing, Loop, UnsupportedEncoding.
    """
    host = headers.get(b"host")
    if host is None and version == "1.1":
        raise HostMissing("HTTP/1.1 wants a Host header")
    if host is not None and path not in PROBED and not rules.admits_host(host.decode("latin-1")):
        raise MisdirectedHost(
            f"the host {_shown(host)} is not this gateway's: add it to gateway.allowed_hosts if it should be"
        )
    origin = headers.get(b"origin")
    if origin is not None:
        if not rules.admits_origin(origin.decode("latin-1"), (host or b"").decode("latin-1")):
            raise Forbidden(
                f"the web origin {_shown(origin)} may not call this gateway: "
                f"add it to gateway.cors_origins if it should"
            )
    elif headers.get(b"sec-fetch-site", b"").strip().lower() == b"cross-site":
        raise Forbidden("a web page of another site may not call this gateway")
    if HOP_HEADER in headers:
        raise Loop("this request comes from a memos_llm provider: a back end's address leads back to a gateway")
    if b"content-encoding" in headers or b"transfer-encoding" in headers:
        _check_codings(headers)


def _check_codings(headers: Mapping[bytes, bytes]) -> None:
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        raise UnsupportedEncoding("send the body uncompressed, without Content-Encoding")
    coding = headers.get(b"transfer-encoding")
    if coding is not None and coding.lower() != b"chunked":
        raise UnsupportedEncoding("no other Transfer-Encoding than chunked is understood here")


def check_single(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises:
    BadRequest: a header that decides something is there twice; which one holds, each reader would say for itself.
    """
    found = Counter(name for name, _ in headers)
    for name in SINGLE:
        if found[name] > 1:
            raise BadRequest(f"the header {name.decode()} is there {found[name]} times")


def preflight_headers(headers: Mapping[bytes, bytes]) -> Headers:
    """The answer to a browser that asks whether it may, but for what `with_cors` adds."""
    wanted = headers.get(b"access-control-request-headers", b"*")
    return [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", wanted if wanted != b"*" else b"authorization, content-type"),
        (b"access-control-max-age", _PREFLIGHT_S),
    ]


def with_cors(send: Send, origin: bytes) -> Send:
    """Lets the page of an admitted origin read the answer."""
    added: Headers = [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", EXPOSED),
        (b"vary", b"Origin"),
    ]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return sending


def _shown(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))
