"""HTTP to a back end, on aiohttp: the only module that knows that library. (The programs use `http1`.)

`AiohttpClient` is a `BackendClient`: no redirects, no proxies from the environment, no cookies, no decompression.
Every exception of aiohttp becomes an `AttemptFailed` in `translate`, here and nowhere else. aiohttp's messages may
quote the answer, so a failure that can follow its first byte is raised `from None`: no traceback repeats it.

Keep-alive: vLLM closes an idle connection after 5 s, so ours expire sooner. The race that is left (it closed while
our request was on its way) shows as a *reused* connection that ends before any byte; such a request is sent again at
once, on a connection of its own.
"""

import io
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NoReturn

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.providers.connections import KEEP_ALIVE_S, MAX_CONNECTIONS, NO_CONNECTION, cause

MAX_HEADER_BYTES = 16_384  # of one header line of an answer; aiohttp caps their number

_UNPOOLED_CONNECTIONS = 64  # further ones, for requests that are sent again
_MAX_URLS = 1_000  # kept parsed: endpoints are few, but a passage's path is anything
_LARGE_BODY_BYTES = 2**20  # above this aiohttp wants a file object, and warns otherwise
_OURS_TO_SAY = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")  # headers aiohttp would add

FAULTS: Mapping[str, Outcome] = {
    # Nothing was sent.
    "ClientConnectorError": Outcome(kind=Kind.CONNECT, code="unreachable"),
    "ClientConnectorDNSError": Outcome(kind=Kind.CONNECT, code="dns"),
    "ClientSSLError": Outcome(kind=Kind.CONNECT, code="tls"),
    "ClientConnectorSSLError": Outcome(kind=Kind.CONNECT, code="tls"),
    "ClientConnectorCertificateError": Outcome(kind=Kind.CONNECT, code="tls"),
    "ServerFingerprintMismatch": Outcome(kind=Kind.CONNECT, code="tls"),
    "ClientProxyConnectionError": Outcome(kind=Kind.CONNECT, code="unreachable"),
    "UnixClientConnectorError": Outcome(kind=Kind.CONNECT, code="unreachable"),
    "ConnectionTimeoutError": Outcome(kind=Kind.TIMEOUT, code="connect"),
    # Sent, and the connection ended before the head of an answer was complete.
    "ClientConnectionError": Outcome(kind=Kind.TRUNCATED, code="no_answer"),
    "ClientConnectionResetError": Outcome(kind=Kind.TRUNCATED, code="no_answer"),
    "ClientOSError": Outcome(kind=Kind.TRUNCATED, code="no_answer"),
    "ServerConnectionError": Outcome(kind=Kind.TRUNCATED, code="no_answer"),
    "ServerDisconnectedError": Outcome(kind=Kind.TRUNCATED, code="no_answer"),
    "ServerTimeoutError": Outcome(kind=Kind.TIMEOUT, code="socket"),
    "SocketTimeoutError": Outcome(kind=Kind.TIMEOUT, code="socket"),
    "UploadAbortedError": Outcome(kind=Kind.TRUNCATED, code="no_answer"),
    # Not HTTP as we speak it.
    "ClientError": Outcome(kind=Kind.MALFORMED, code="http"),
    "ClientPayloadError": Outcome(kind=Kind.MALFORMED, code="http"),
    "ClientResponseError": Outcome(kind=Kind.MALFORMED, code="http"),
    "ContentTypeError": Outcome(kind=Kind.MALFORMED, code="http"),
    "WSServerHandshakeError": Outcome(kind=Kind.MALFORMED, code="http"),
    # Ours to have configured otherwise.
    "ClientHttpProxyError": Outcome(kind=Kind.CONFIG, code="proxy"),
    "TooManyRedirects": Outcome(kind=Kind.CONFIG, code="redirect"),
    "RedirectClientError": Outcome(kind=Kind.CONFIG, code="redirect"),
    "InvalidUrlRedirectClientError": Outcome(kind=Kind.CONFIG, code="redirect"),
    "NonHttpUrlRedirectClientError": Outcome(kind=Kind.CONFIG, code="redirect"),
    "InvalidURL": Outcome(kind=Kind.CONFIG, code="url"),
    "InvalidUrlClientError": Outcome(kind=Kind.CONFIG, code="url"),
    "NonHttpUrlClientError": Outcome(kind=Kind.CONFIG, code="url"),
    # Not aiohttp's own.
    "TimeoutError": Outcome(kind=Kind.TIMEOUT, code="socket"),
    "OSError": Outcome(kind=Kind.TRUNCATED, code="no_answer"),
}
"""What each exception means before the head of an answer is there; the most derived class listed speaks.

By name: not every release of aiohttp that we run on has them all."""

_CUT = Outcome(kind=Kind.TRUNCATED, code="cut")  # the connection broke within the body
_CAUGHT = (aiohttp.ClientError, OSError)  # TimeoutError is an OSError

_made: ContextVar[bool] = ContextVar("memos_llm_connection_made", default=True)


def translate(error: Exception) -> Outcome:
    """What an exception means that was raised before the head of an answer was there."""
    found = next(FAULTS[c.__name__] for c in type(error).__mro__ if c.__name__ in FAULTS)
    if found.code != "unreachable":
        return found
    return Outcome(kind=found.kind, code=cause(getattr(error, "os_error", error)))


def _fail(error: Exception) -> NoReturn:
    if _waited_in_vain(error):
        raise AttemptFailed(Outcome(kind=Kind.SATURATED, code=NO_CONNECTION)) from None
    failed = translate(error)
    raise AttemptFailed(failed) from (error if failed.kind is Kind.CONNECT else None)


def _waited_in_vain(error: Exception) -> bool:
    """The time for connecting went by in the line for a connection: none was begun."""
    return isinstance(error, aiohttp.ConnectionTimeoutError) and not _made.get()


def _was_stale(error: Exception) -> bool:
    """The connection came from the pool and ended before any byte of an answer."""
    if _made.get() or translate(error).code != "no_answer":
        return False
    return not isinstance(error, aiohttp.ServerDisconnectedError) or isinstance(error.message, str)


class _Connector(aiohttp.TCPConnector):
    """Remembers, for the task that asked, that its connection was made for it."""

    async def _create_connection(self, *args: Any, **kwargs: Any) -> ResponseHandler:
        _made.set(True)
        return await super()._create_connection(*args, **kwargs)


class AiohttpReply:
    """A `RawReply`. The connection goes back to the pool by itself at the end of the body."""

    __slots__ = ("_content", "_response", "endpoint", "status")

    def __init__(self, response: aiohttp.ClientResponse, endpoint: str) -> None:
        self._response = response
        self._content = response.content
        self.status = response.status
        self.endpoint = endpoint

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    @property
    def ready(self) -> bool:
        return self._content.at_eof()

    async def read(self) -> bytes:
        try:
            return await self._content.readany()
        except _CAUGHT:
            raise AttemptFailed(_CUT) from None

    async def aclose(self) -> None:
        connection = self._response.connection  # None once the body has ended
        if connection is not None and connection.transport is not None:
            connection.transport.abort()  # close() would first wait for what is still to be sent
        self._response.close()


class AiohttpClient:
    """A `BackendClient`. One for all providers; made anywhere, it belongs to the loop of its first request.

    Args:
        keep_alive_s: how long an idle connection may be used again.
        max_header_bytes: longest header line of an answer.
        max_connections: in use at once, over all back ends; who finds none free waits for `connect_s`.
    """

    def __init__(
        self,
        *,
        keep_alive_s: float = KEEP_ALIVE_S,
        max_header_bytes: int = MAX_HEADER_BYTES,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._keep_alive_s = keep_alive_s
        self._max_connections = max_connections
        self._max_header_bytes = max_header_bytes
        self._pool: aiohttp.ClientSession | None = None
        self._unpooled: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}
        self._timeouts: dict[float, aiohttp.ClientTimeout] = {}

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, *, connect_s: float
    ) -> AiohttpReply:
        if self._pool is None:
            self._pool = self._session(_Connector(limit=self._max_connections, keepalive_timeout=self._keep_alive_s))
        _made.set(False)
        try:
            return await self._send(self._pool, method, url, headers, body, connect_s)
        except _CAUGHT as error:
            if not _was_stale(error):
                _fail(error)
        return await self._send_again(method, url, headers, body, connect_s)

    async def aclose(self) -> None:
        for session in (self._pool, self._unpooled):
            if session is not None:
                await session.close()

    async def _send_again(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, connect_s: float
    ) -> AiohttpReply:
        """On a connection of its own: the others of the pool are as old as the one that failed."""
        if self._unpooled is None:
            self._unpooled = self._session(_Connector(limit=_UNPOOLED_CONNECTIONS, force_close=True))
        _made.set(False)
        try:
            return await self._send(self._unpooled, method, url, headers, body, connect_s)
        except _CAUGHT as error:
            _fail(error)

    async def _send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        connect_s: float,
    ) -> AiohttpReply:
        response = await session.request(
            method,
            self._urls.get(url) or self._parsed(url),
            data=(body if len(body) <= _LARGE_BODY_BYTES else io.BytesIO(body)) or None,
            headers=headers,
            allow_redirects=False,
            timeout=self._timeouts.get(connect_s) or self._limit(connect_s),
        )
        return AiohttpReply(response, url)

    def _session(self, connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_OURS_TO_SAY,
            auto_decompress=False,
            trust_env=False,
            max_line_size=self._max_header_bytes,
            max_field_size=self._max_header_bytes,
        )

    def _parsed(self, url: str) -> URL:
        """As it is: what is in a path is the caller's."""
        if len(self._urls) >= _MAX_URLS:
            self._urls.clear()
        return self._urls.setdefault(url, URL(url, encoded=True))

    def _limit(self, connect_s: float) -> aiohttp.ClientTimeout:
        """`connect` and not `sock_connect`: it covers the look-up of the name as well."""
        return self._timeouts.setdefault(connect_s, aiohttp.ClientTimeout(total=None, connect=connect_s))
