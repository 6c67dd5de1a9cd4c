"""The client: raw bytes out, raw bytes in, and a strict reading of what came. No client library smooths anything."""

import asyncio
import contextlib
import re
import socket
import struct
import time
from dataclasses import dataclass, field

import httptools

PATIENCE_S = 25.0  # longer than any limit of the gateway's configuration
QUIET_S = 0.08  # a request that is not whole gets this long for an answer
LINGERS_S = 0.03  # after the last expected byte: nothing more may come
REFUSED_UNREAD = 60_000  # bytes: a head or body as large may be refused, and closed upon, before it is read
STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) ?[\x20-\x7e\x80-\xff]*")
HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
BODILESS = frozenset({204, 304})


@dataclass
class Got:
    """What came back. closed: the gateway closed. left: we did, before the end. seconds: from the first byte sent."""

    data: bytes = b""
    closed: bool = False
    left: bool = False
    seconds: float = 0.0
    error: str = ""


@dataclass
class Response:
    """One answer, read strictly."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")


@dataclass
class Read:
    """What a row of bytes says. `problem`: where it is no HTTP; `cut`: the last answer has no end."""

    responses: list[Response] = field(default_factory=list)
    problem: str = ""
    cut: bool = False


@dataclass
class Asked:
    """What another reader of HTTP (llhttp, through httptools) makes of the bytes sent: whole requests, or an error."""

    methods: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    whole: int = 0
    error: str = ""
    begun: bool = False
    odd: bool = False  # a version that is not spoken


class _Requests:
    def __init__(self, asked: Asked) -> None:
        self.asked, self.parser = asked, httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.asked.begun = True
        self.asked.paths.append("")

    def on_url(self, url: bytes) -> None:
        self.asked.paths[-1] += url.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.asked.odd = self.asked.odd or self.parser.get_http_version() not in ("1.0", "1.1")
        self.asked.methods.append(self.parser.get_method().decode("latin-1"))

    def on_message_complete(self) -> None:
        self.asked.whole += 1


def asked_by(data: bytes) -> Asked:
    """What is asked by these bytes."""
    asked = Asked()
    reader = _Requests(asked)
    try:
        reader.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        asked.error = "upgrade"
    except httptools.HttpParserError as error:
        asked.error = type(error).__name__
    return asked


def read(data: bytes, methods: list[str]) -> Read:
    """All answers in a row of bytes; `methods` of the requests, in order (HEAD has no body)."""
    found = Read()
    while data and not found.problem and not found.cut:
        method = methods[len(found.responses)] if len(found.responses) < len(methods) else ""
        data = _one(data, method, found)
    return found


def _one(data: bytes, method: str, found: Read) -> bytes:
    head, separator, rest = data.partition(b"\r\n\r\n")
    if not separator:
        found.cut = True
        return b""
    first, *lines = head.split(b"\r\n")
    status, headers = STATUS_LINE.fullmatch(first), [HEADER.fullmatch(line) for line in lines]
    if status is None or None in headers:
        found.problem = f"no good head: {head[:200]!r}"
        return b""
    pairs = [(each[1].decode().lower(), each[2].decode("latin-1")) for each in headers if each]
    response = Response(int(status[1]), pairs, b"")
    if response.status < 200:
        return rest
    if method == "HEAD" or response.status in BODILESS:
        found.responses.append(response)
        return rest
    return _body(response, rest, found)


def _body(response: Response, rest: bytes, found: Read) -> bytes:
    lengths = [value for name, value in response.headers if name == "content-length"]
    coded = [value for name, value in response.headers if name == "transfer-encoding"]
    if len(lengths) + len(coded) != 1:
        found.problem = f"lengths {lengths} and codings {coded}"
        return b""
    found.responses.append(response)
    if coded:
        return _chunks(response, rest, found)
    size = int(lengths[0]) if lengths[0].isdigit() else -1
    if size < 0:
        found.problem = f"the length {lengths[0]!r}"
        return b""
    response.body, found.cut = rest[:size], len(rest) < size
    return rest[size:]


def _chunks(response: Response, rest: bytes, found: Read) -> bytes:
    while True:
        line, separator, rest = rest.partition(b"\r\n")
        if not separator:
            found.cut = True
            return b""
        if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", line):
            found.problem = f"a chunk of the size {line[:60]!r}"
            return b""
        size = int(line, 16)
        piece, end, rest = rest[:size], rest[size : size + 2], rest[size + 2 :]
        if len(end) < 2:
            found.cut = True
            return b""
        if end != b"\r\n":
            found.problem = f"a chunk ends with {end!r}"
            return b""
        response.body += piece
        if size == 0:
            return rest


async def exchange(
    host: str, port: int, pieces: tuple[bytes, ...], asked: Asked, *, leaves_after: int | None, resets: bool
) -> Got:
    """Send the pieces and read until all that was asked is answered, the gateway closes, or the client leaves."""
    got, begun = Got(), time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as error:
        got.error = f"connect: {type(error).__name__}"
        return got
    try:
        with contextlib.suppress(ConnectionError):  # what came is read all the same
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_S):
            await _receive(reader, got, asked, leaves_after)
    except TimeoutError:
        got.error = f"nothing more for {PATIENCE_S:g} s"
    except OSError:
        got.closed = True  # a reset: an answer to what we had not yet read may be lost with it
        small = sum(map(len, pieces)) < REFUSED_UNREAD
        got.error = "reset" if small and asked.whole and not asked.error else ""
    finally:
        got.seconds = time.monotonic() - begun
        _leave(writer, resets=resets)
    return got


async def _receive(reader: asyncio.StreamReader, got: Got, asked: Asked, leaves_after: int | None) -> None:
    while leaves_after is None or len(got.data) < leaves_after:
        wanted = asked.whole or bool(asked.error)
        limit_s = None if wanted and not _answered(got, asked) else QUIET_S if not wanted else LINGERS_S
        try:
            async with asyncio.timeout(limit_s):
                data = await reader.read(65536)
        except TimeoutError:
            got.left = not wanted
            return
        if not data:
            got.closed = True
            return
        got.data += data
    got.left = True


def _answered(got: Got, asked: Asked) -> bool:
    if asked.error and not asked.whole:
        return False  # until it is closed
    found = read(got.data, asked.methods)
    return bool(found.problem) or (not found.cut and len(found.responses) >= max(1, asked.whole))


def _leave(writer: asyncio.StreamWriter, *, resets: bool) -> None:
    if resets:
        raw = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
