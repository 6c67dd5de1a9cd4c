"""TLS to a back end: name and certificate are checked. (`tls/` holds a certificate for `localhost`, made for this.)"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.providers.http1 import Http1Client

TLS = Path(__file__).parent / "tls"


class Server(NamedTuple):
    port: int
    accepted: list[asyncio.StreamWriter]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """It answers every request on a connection with its body."""
    accepted: list[asyncio.StreamWriter] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                size = int(head.lower().partition("content-length: ")[2].partition("\r")[0])
                body = await reader.readexactly(size)
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass  # the client has left
        finally:
            writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    listener = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context)
    yield Server(listener.sockets[0].getsockname()[1], accepted)
    listener.close()
    await listener.wait_closed()


async def posted(client: Http1Client, url: str, body: bytes) -> bytes:
    reply = await client.send("POST", url, {}, body, connect_s=3.0)
    found = b""
    while chunk := await reply.read():
        found += chunk
    await reply.aclose()
    return found


async def test_a_trusted_server_is_asked_and_its_connection_used_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "cert.pem"))
    client = Http1Client()
    try:
        for body in (b"hello", b"x" * 300_000, b"again"):
            assert await posted(client, f"https://localhost:{server.port}/v1/chat/completions", body) == body
        assert len(server.accepted) == 1
    finally:
        await client.aclose()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_server_that_is_not_trusted_or_has_another_name_is_not_asked(
    host: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if host != "localhost":  # trusted, but the certificate is another's
        monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "cert.pem"))
    client = Http1Client()
    try:
        with pytest.raises(AttemptFailed) as failed:
            await posted(client, f"https://{host}:{server.port}/", b"secret")
        assert failed.value.outcome == Outcome(kind=Kind.CONNECT, code="tls")
    finally:
        await client.aclose()
