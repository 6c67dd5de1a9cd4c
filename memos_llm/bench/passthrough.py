"""The measuring stick: the least that a Python proxy can do on the same server and the same client library.

Bare ASGI on uvicorn (uvloop, httptools, the gateway's flags) and one aiohttp session: a POST's body goes on as it is,
the answer's bytes come back as they are. No routing, no limits, no metrics, no log, no watch for a client that left.
It shares nothing with the product. A program of its own.

usage: python -m memos_llm.bench.passthrough UPSTREAM_URL    (prints its port)
"""

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import uvicorn
from yarl import URL

Message = MutableMapping[str, Any]


class PassThrough:
    """ASGI 3."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._urls: dict[str, URL] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        body = await _body(receive)
        async with self._open().post(
            self._url(scope["path"]), data=body, headers={"Content-Type": "application/json"}, allow_redirects=False
        ) as answer:
            headers = [
                (name.lower().encode(), answer.headers[name].encode())
                for name in ("Content-Type", "Content-Length")
                if name in answer.headers
            ]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(),
            )
        return self._session

    def _url(self, path: str) -> URL:
        return self._urls.get(path) or self._urls.setdefault(path, URL(self._upstream + path))


async def _body(receive: Callable[[], Awaitable[Message]]) -> bytes:
    message = await receive()
    body: bytes = message["body"]
    while message["more_body"]:
        message = await receive()
        body += message["body"]
    return body


def main(upstream: str) -> None:
    """Until killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(listener.getsockname()[1], flush=True)  # noqa: T201 - its one output
    config = uvicorn.Config(
        PassThrough(upstream),
        http="httptools",
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
    )
    asyncio.Runner(loop_factory=config.get_loop_factory()).run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main(sys.argv[1])
