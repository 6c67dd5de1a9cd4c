"""What a request's body may not ask for: models in somebody's cloud, and media that a back end would fetch for it.

Ollama sends what is asked of a `:cloud` model to ollama.com; vLLM fetches media URLs from inside the network.
"""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from memos_llm.core.errors import BadRequest, Forbidden
from memos_llm.dialects.jsons import decode_as
from memos_llm.gateway.rules import Rules

URL_KEYS = frozenset({"image_url", "video_url", "audio_url", "file_url"})
"""What holds a media URL, or an object with one: chat's and Responses' content parts. (Messages' are `source`.)"""

_SOURCES = frozenset({"source"}) | URL_KEYS
ANY_KEYS = (b"_url", b'"source"')
"""What stands in a body of any API that names media by URL; a chat's has the first only."""

_NOT_CONTENT = frozenset({"tools", "functions", "arguments", "parameters", "input_schema", "metadata"})


MAX_MODEL_CHARS = 1024
WINDOW_BYTES = 1 << 17


class TooManyValues(BadRequest):
    """A body of more than `gateway.max_json_values` values."""

    status = 413


def check_model(name: str, rules: Rules) -> None:
    """Raises:
    BadRequest: no model has a name so long. Forbidden: the name is one of Ollama's cloud models.
    """
    if len(name) > MAX_MODEL_CHARS:
        raise BadRequest(f"a model's name is at most {MAX_MODEL_CHARS} characters")
    if name.endswith("cloud") or name[-5:].lower() == "cloud":
        tag = name.rpartition(":")[2].lower() if ":" in name else ""
        if (tag == "cloud" or tag.endswith("-cloud")) and not rules.allow_cloud:
            raise Forbidden(
                "a :cloud model is answered by ollama.com: set gateway.allow_cloud if prompts may leave this machine"
            )


def check_media(body: bytes, rules: Rules, keys: tuple[bytes, ...] = (b"_url",)) -> None:
    """Look for media URLs in a body where one of `keys` is in it; an escape may spell a key, too.

    Raises:
        BadRequest: a media URL points to a domain that is not allowed, or the body is nested too deep.
    """
    if b"\\u00" in body or any(key in body for key in keys):
        for url in _urls(_decoded(body)):
            _check_url(url, rules)


async def check_values(body: bytes, limit: int) -> None:
    """Keep every walk over a JSON body short: each of its values costs time that the other requests wait for.

    Counts what separates values, outside of strings, and lets the others run meanwhile.

    Raises:
        TooManyValues.
    """
    if body.lstrip()[:1] not in (b"{", b"["):
        return
    values, at, inside = 0, 0, False
    while at < len(body):
        part = body[at : at + WINDOW_BYTES]
        part += body[at + len(part) :][:1] if _ends_escaping(part) else b""
        at += len(part)
        if inside and b'"' not in part:  # most of an image
            continue
        pieces = part.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        values += b"".join(pieces[inside::2]).count(b",")
        inside ^= len(pieces) % 2 == 0
        if values >= limit:
            raise TooManyValues(f"the body holds more than {limit} JSON values: see gateway.max_json_values")
        await asyncio.sleep(0)


def _ends_escaping(part: bytes) -> bool:
    return (len(part) - len(part.rstrip(b"\\"))) % 2 == 1


def _decoded(body: bytes) -> Any:
    try:
        return decode_as(body, Any)
    except ValueError as error:
        raise BadRequest(f"the body is not a JSON document: {error}") from None


def _urls(document: Any) -> Iterator[str]:
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for key, inner in value.items():
                if key in _SOURCES:
                    yield from _media(key, inner)
                if key not in _NOT_CONTENT and not (key == "input" and value.get("type") == "tool_use"):
                    waiting.append(inner)


def _media(key: str, value: Any) -> Iterable[str]:
    url = value.get("url") if isinstance(value, dict) else value if key in URL_KEYS else None
    return (url,) if isinstance(url, str) else ()


def _check_url(url: str, rules: Rules) -> None:
    if url.lstrip()[:5].lower() == "data:":
        return
    if not _allowed(url, rules.media_domains):
        raise BadRequest(
            "media by URL would be fetched from inside this network: send it as a data: URL, "
            "or have its domain added to gateway.media_domains"
        )


def _allowed(url: str, domains: tuple[str, ...]) -> bool:
    """Whether every reader of URLs would take this one for a page of an allowed domain."""
    if not domains or any(sign in url for sign in "\\@") or any(ord(sign) <= 32 for sign in url):
        return False
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower().rstrip(".")
    except ValueError:
        return False
    fits = any(host == domain or host.endswith(f".{domain}") for domain in domains)
    return parts.scheme in ("http", "https") and fits
