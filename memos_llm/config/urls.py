"""Addresses of back ends: many spellings in, one form out (`scheme://host:port`, no trailing slash, no `/v1`)."""

import re
from urllib.parse import SplitResult, urlsplit

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # where a server listens is not where a client connects
_HOST = re.compile(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_PORTS = {"http": 80, "https": 443}


def normalise(text: str, default_port: int | None = None) -> str:
    """The address as an endpoint needs it.

    A bare host gets `http` and `default_port`; a URL with a scheme but no port has the scheme's own (80, 443), which is
    how Ollama reads OLLAMA_HOST. A path before `/v1` (a proxy's prefix) is kept.

    Raises:
        ValueError: with a message that does not repeat the text (it may hold a password).
    """
    raw = text.strip().strip("\"'")
    bare = "://" not in raw
    try:
        parts = urlsplit(f"http://{raw}" if bare else raw)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("is not a URL such as http://localhost:8000") from None
    _refuse(parts, host)
    host = ANY.get(host, host)
    port = port if port is not None else default_port if bare else None
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{'' if port is None else f':{port}'}{path}"


def _refuse(parts: SplitResult, host: str) -> None:
    if parts.scheme not in _PORTS:
        raise ValueError("must begin with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user name or password; use api_key")
    if parts.query or parts.fragment:
        raise ValueError("must not hold a query or a fragment")
    if host and not _HOST.fullmatch(host):
        raise ValueError("is not a URL such as http://localhost:8000")


def identity(url: str) -> tuple[str, int, str]:
    """What makes two addresses one: host (all loopback names are one), port and path."""
    parts = urlsplit(url)
    host = canonical_host(parts.hostname or "")
    return host, parts.port or _PORTS.get(parts.scheme, 0), parts.path.rstrip("/")


def canonical_host(host: str) -> str:
    host = host.lower().strip("[]")
    return "localhost" if ANY.get(host, host) in LOOPBACK else host
