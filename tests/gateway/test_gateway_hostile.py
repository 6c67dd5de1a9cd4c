"""Clients that mean harm, shape by shape: a clear 4xx or a closed connection, told once; nobody behind it is fooled."""

import asyncio
import json
from collections import Counter

import pytest
from attacking import CHAT, CHUNKED, HOST, chunks, head, play, post
from stack import Stack

from memos_llm.core.events import InternalError, RequestRefused

STAYS, CLOSES = False, True

FRAMING: dict[str, tuple[bytes, int, bool]] = {
    # shape: what is sent, the status, whether the connection must end with it
    "length and chunks": (post(headers=CHUNKED, body=chunks()), 400, CLOSES),
    "chunks and length": (head(headers=CHUNKED + b"content-length: 4\r\n") + chunks(), 400, CLOSES),
    "two equal lengths": (post(headers=b"content-length: %d\r\n" % len(CHAT)), 400, CLOSES),
    "two lengths": (post(headers=b"content-length: 5\r\n"), 400, CLOSES),
    "a list of lengths": (head(headers=b"content-length: 80, 80\r\n") + CHAT, 400, CLOSES),
    "a length with a plus": (head(headers=b"content-length: +80\r\n") + CHAT, 400, CLOSES),
    "a negative length": (head(headers=b"content-length: -1\r\n") + CHAT, 400, CLOSES),
    "a length in hex": (head(headers=b"content-length: 0x10\r\n") + CHAT, 400, CLOSES),
    "a length with a space": (head(headers=b"content-length: 1 0\r\n") + CHAT, 400, CLOSES),
    "a space before the colon": (head(headers=b"content-length : 80\r\n") + CHAT, 400, CLOSES),
    "an empty length": (head(headers=b"content-length:\r\n") + CHAT, 400, CLOSES),
    "a length over 64 bits": (head(headers=b"content-length: %d\r\n" % 10**22) + CHAT, 400, CLOSES),
    "a length of 2**63": (head(headers=b"content-length: %d\r\n" % 2**63) + CHAT, 413, CLOSES),
    "xchunked": (head(headers=b"transfer-encoding: xchunked\r\n") + chunks(), 400, CLOSES),
    "chunked, identity": (head(headers=b"transfer-encoding: chunked, identity\r\n") + chunks(), 400, CLOSES),
    "identity": (head(headers=b"transfer-encoding: identity\r\n") + CHAT, 400, CLOSES),
    "gzip, chunked": (head(headers=b"transfer-encoding: gzip, chunked\r\n") + chunks(), 415, STAYS),
    "gzip and chunked": (head(headers=b"transfer-encoding: gzip\r\n" + CHUNKED) + chunks(), 400, STAYS),
    "chunked twice": (head(headers=CHUNKED + CHUNKED) + chunks(), 400, CLOSES),
    "a vertical tab": (head(headers=b"transfer-encoding: \x0bchunked\r\n") + chunks(), 400, CLOSES),
    "chunked in 1.0": (head(headers=CHUNKED, version=b"HTTP/1.0") + chunks(), 400, CLOSES),
    "a folded header": (post(headers=b"x-a: b\r\n c\r\n"), 400, CLOSES),
    "a folded coding": (head(headers=b"transfer-encoding:\r\n chunked\r\n") + chunks(), 400, CLOSES),
    "bare line feeds": (post().replace(b"\r\n", b"\n"), 400, CLOSES),
    "a bare carriage return": (post(headers=b"x-a: b\rx-memos-provider: y\r\n"), 400, CLOSES),
    "NUL in a header": (post(headers=b"x-a: b\0c\r\n"), 400, CLOSES),
    "no colon": (post(headers=b"garbage\r\n"), 400, CLOSES),
    "no name": (post(headers=b": x\r\n"), 400, CLOSES),
    "a name with a space": (post(headers=b"x y: z\r\n"), 400, CLOSES),
    "a chunk's extension": (head(headers=CHUNKED) + chunks(extension=b";a=b"), 200, STAYS),
    "a huge extension": (head(headers=CHUNKED) + chunks(extension=b";" + b"a" * 200_000), 431, CLOSES),
    "a chunk over 64 bits": (head(headers=CHUNKED) + b"F" * 17 + b"\r\n" + CHAT, 400, CLOSES),
    "a negative chunk": (head(headers=CHUNKED) + b"-5\r\n" + CHAT, 400, CLOSES),
    "a chunk in 0x": (head(headers=CHUNKED) + b"0x4f\r\n" + CHAT, 400, CLOSES),
    "chunks with bare line feeds": (head(headers=CHUNKED) + chunks().replace(b"\r\n", b"\n"), 400, CLOSES),
    "a chunk that goes on": (head(headers=CHUNKED) + b"4f\r\n" + CHAT + b"0\r\n\r\n", 400, CLOSES),
    "trailers": (
        head(headers=CHUNKED) + chunks(end=b"0\r\nx-memos-provider: vllm\r\nhost: evil\r\nx-memos-hop: 1\r\n\r\n"),
        200,
        STAYS,
    ),
    "a flood of trailers": (head(headers=CHUNKED) + chunks(end=b"0\r\n" + b"x-a: bbbbbb\r\n" * 9000), 431, CLOSES),
    "one huge trailer": (head(headers=CHUNKED) + chunks(end=b"0\r\nx-a: " + b"b" * 200_000), 431, CLOSES),
    "a request in a body": (
        post(b"/health", body=b"GET /admin/v1/status HTTP/1.1\r\n" + HOST + b"\r\n").replace(b"POST", b"GET", 1),
        200,
        STAYS,
    ),
    "garbage": (b"\x00\x01\x02garbage\r\n\r\n", 400, CLOSES),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400, CLOSES),
    "spaces first": (b"   " + post(), 400, CLOSES),
    "empty lines first": (b"\r\n\r\n" + post(), 200, STAYS),
    "many headers": (post(headers=b"".join(b"x-%d: y\r\n" % at for at in range(5000))), 200, STAYS),
    "too many headers": (post(headers=b"a:\r\n" * 16_000), 431, CLOSES),
}  # fmt: skip

LINES: dict[str, tuple[bytes, int, bool]] = {
    "HTTP/0.9": (b"GET /health\r\n\r\n", 400, CLOSES),
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\n\r\n", 200, CLOSES),
    "HTTP/1.0 that stays": (b"GET /health HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", 200, CLOSES),
    "HTTP/1.2": (post().replace(b"HTTP/1.1", b"HTTP/1.2"), 400, CLOSES),
    "HTTP/2.0": (post().replace(b"HTTP/1.1", b"HTTP/2.0"), 400, CLOSES),
    "HTTPS/1.1": (post().replace(b"HTTP/1.1", b"HTTPS/1.1"), 400, CLOSES),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, CLOSES),
    "h2c": (post(headers=b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\n"), 200, STAYS),
    "a web socket": (
        head(b"/api/chat", b"connection: upgrade\r\nupgrade: websocket\r\n", method=b"GET"),
        405,
        STAYS,
    ),
    "CONNECT": (b"CONNECT evil:443 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", 400, CLOSES),
    "CONNECT of a path": (head(method=b"CONNECT"), 400, CLOSES),
    "TRACE": (head(method=b"TRACE"), 405, STAYS),
    "a method in lower case": (post().replace(b"POST", b"post"), 400, CLOSES),
    "no method": (post().replace(b"POST", b"BREW"), 400, CLOSES),
    "an authority": (post(b"127.0.0.1:80"), 400, CLOSES),
    "an asterisk": (head(b"*", method=b"OPTIONS"), 404, STAYS),
    "the whole address": (post(b"http://127.0.0.1/api/chat"), 200, STAYS),
    "a foreign address": (post(b"http://evil.example/api/chat"), 403, STAYS),
    "an address that looks like ours": (post(b"http://127.0.0.1@evil.example/api/chat"), 403, STAYS),
    "a foreign address without a path": (post(b"http://evil.example?x"), 403, STAYS),
    "a path of 60 kB": (post(b"/nothing/" + b"a" * 60_000), 404, STAYS),
    "a path of 70 kB": (post(b"/nothing/" + b"a" * 70_000), 431, CLOSES),
    "dots": (post(b"/api/%2e%2e/api/pull"), 400, STAYS),
    "dots behind": (post(b"/api/chat%2f..%2fpull"), 400, STAYS),
    "two slashes": (post(b"//api/chat"), 404, STAYS),
    "a host in the path": (post(b"//evil/api/chat"), 404, STAYS),
    "NUL in the path": (post(b"/api/chat%00"), 400, STAYS),
    "NUL itself": (post(b"/api/ch\0at"), 400, CLOSES),
    "UTF-8 itself": (post("/api/chät".encode()), 400, CLOSES),
    "no UTF-8": (post(b"/v1/%ff%fe"), 404, STAYS),
    "a backslash": (post(b"/api\\chat"), 404, STAYS),
    "a line end in the path": (post(b"/api/x%0d%0aevil:1"), 400, STAYS),
    "controls in the query": (post(b"/api/chat?\x01&&&=%zz;;"), 400, CLOSES),
    "a query of junk": (post(b"/api/chat?a=b&&&=%zz;;#x?"), 200, STAYS),
}  # fmt: skip

HEADERS: dict[str, tuple[bytes, int, bool]] = {
    "no host": (post(host=b""), 400, STAYS),
    "an empty host": (post(host=b"host:\r\n"), 403, STAYS),
    "two hosts": (post(headers=HOST), 400, STAYS),
    "a foreign host": (post(host=b"host: evil.example\r\n"), 403, STAYS),
    "a host with a user": (post(host=b"host: a@127.0.0.1\r\n"), 403, STAYS),
    "a host with a path": (post(host=b"host: localhost/evil\r\n"), 403, STAYS),
    "a list of hosts": (post(host=b"host: localhost, evil\r\n"), 403, STAYS),
    "a port of junk": (post(host=b"host: localhost:abc\r\n"), 403, STAYS),
    "a port too high": (post(host=b"host: 127.0.0.1:9999999\r\n"), 403, STAYS),
    "an address with a tail": (post(host=b"host: [::1]evil\r\n"), 403, STAYS),
    "an IPv6 address": (post(host=b"host: [::1]:80\r\n"), 200, STAYS),
    "a final dot": (post(host=b"host: localhost.\r\n"), 200, STAYS),
    "a foreign origin": (post(headers=b"origin: http://evil\r\n"), 403, STAYS),
    "two origins": (post(headers=b"origin: http://localhost\r\norigin: http://evil\r\n"), 400, STAYS),
    "two origins in one": (post(headers=b"origin: http://localhost http://evil\r\n"), 403, STAYS),
    "a hop": (post(headers=b"x-memos-hop: 1\r\n"), 508, STAYS),
    "gzip": (post(headers=b"content-encoding: gzip\r\n"), 415, STAYS),
    "deflate": (post(headers=b"content-encoding: deflate\r\n"), 415, STAYS),
    "br": (post(headers=b"content-encoding: BR\r\n"), 415, STAYS),
    "a name with a line end": (post(b"/c/a%0ab/api/chat"), 400, STAYS),
    "a name of 65 characters": (post(b"/c/" + b"a" * 65 + b"/api/chat"), 400, STAYS),
    "a name that is no UTF-8": (post(headers=b"x-memos-component: \xff\r\n"), 400, STAYS),
    "a session that is no UTF-8": (post(headers=b"x-memos-session: \xff\r\n"), 400, STAYS),
    "a session with a line end": (post(b"/c/a/s/x%0d%0ay/api/chat"), 200, STAYS),
    "a negative time": (post(headers=b"x-memos-timeout-ms: -5\r\n"), 400, STAYS),
    "no time": (post(headers=b"x-memos-timeout-ms: 0\r\n"), 400, STAYS),
    "a float": (post(headers=b"x-memos-timeout-ms: 1e3\r\n"), 400, STAYS),
    "a time of 5000 digits": (post(headers=b"x-memos-timeout-ms: " + b"9" * 5000 + b"\r\n"), 400, STAYS),
    "another's digits": (post(headers="x-memos-timeout-ms: ²\r\n".encode("latin-1")), 400, STAYS),
    "somebody else's choice": (post(headers=b"x-memos-provider: vllm\r\n"), 403, STAYS),
    "what nobody expects": (post(headers=b"expect: unicorns\r\n"), 200, STAYS),
    "what curl expects": (post(headers=b"expect: 100-continue\r\n"), 200, STAYS),
    "an id of 5000 characters": (post(headers=b"x-request-id: " + b"a" * 5000 + b"\r\n"), 200, STAYS),
    "two ids": (post(headers=b"x-request-id: a\r\nx-request-id: b\r\n"), 200, STAYS),
    "Latin-1": (post(headers=b"x-a: \xff\xfe\r\n"), 200, STAYS),
    "a key of junk": (post(headers=b"authorization: Basic \xff\xfe==\r\n"), 200, STAYS),
}  # fmt: skip


@pytest.mark.parametrize("table", [FRAMING, LINES, HEADERS], ids=["framing", "lines", "headers"])
async def test_every_shape_gets_its_answer_and_is_told_once(
    table: dict[str, tuple[bytes, int, bool]], stack: Stack
) -> None:
    played = dict(
        zip(table, await asyncio.gather(*[play(stack.url, shape[0]) for shape in table.values()]), strict=True)
    )
    found = {name: (each.answer.status, each.closed) for name, each in played.items()}
    wanted = {name: (status, closes) for name, (_, status, closes) in table.items()}
    assert {name: each for name, each in found.items() if each != wanted[name]} == {}
    answers = [each.answer for each in played.values()]
    refused = [each for each in answers if each.status >= 400 and b"x-memos-attempts" not in each.head]
    for answer in refused:
        json.loads(answer.body)  # in the words of an API, not a server's
        assert b"x-memos-error-code: " in answer.head
    told = stack.told.of(RequestRefused)
    assert Counter(each.status for each in told) == Counter(each.status for each in refused)
    counted = 'memos_llm_refused_requests_total{code="ERR_5101"} '
    (counter,) = (each for each in (await stack.metrics()).splitlines() if each.startswith(counted))
    assert float(counter.removeprefix(counted)) == sum(b"ERR_5101" in each.head for each in refused)
    assert not stack.told.of(InternalError)
