"""Who is let in at all: Ollama's checks of Host and Origin, before any route (measured on 0.17.4)."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from memos_llm.emulators.wire import Exchange

_ORIGIN_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")
_STAINLESS = (
    *("Arch", "Async", "Custom-Poll-Interval", "Helper-Method", "Lang", "Os", "Package-Version", "Poll-Helper"),
    *("Retry-Count", "Runtime", "Runtime-Version", "Timeout"),
)
_ALLOWED_HEADERS = (
    *("Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "Openai-Beta"),
    *(f"X-Stainless-{name}" for name in _STAINLESS),
)
_ORIGIN_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")


def admitted(exchange: Exchange, *, loopback: bool) -> bool:
    """Whether the request may pass; an allowed Origin is echoed. loopback: bound to it, so Host is checked too."""
    headers = exchange.request.headers
    if loopback and not _host_allowed(headers.get("host", "")):
        return False
    origin = headers.get("origin")
    if origin is None or origin == f"http://{headers.get('host')}":
        return True
    if not _origin_allowed(origin):
        return False
    exchange.extra_headers += [("access-control-allow-origin", origin), ("vary", "Origin")]
    return True


def preflight(exchange: Exchange, methods: Iterable[str]) -> list[tuple[str, str]]:
    """Headers of the answer to an OPTIONS with an Origin; what is allowed is told where the method is asked for."""
    allow = [("allow", ", ".join(methods))] if methods else []
    if "access-control-request-method" not in exchange.request.headers or not exchange.extra_headers:
        return allow
    return [
        *allow,
        ("access-control-allow-headers", ",".join(_ALLOWED_HEADERS)),
        ("access-control-allow-methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
        ("access-control-max-age", "43200"),
        ("vary", "Access-Control-Request-Method"),
        ("vary", "Access-Control-Request-Headers"),
    ]


def _host_allowed(host: str) -> bool:
    name = (urlsplit(f"//{host}").hostname or "").lower()
    if name in ("", "localhost", socket.gethostname().lower()) or name.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified


def _origin_allowed(origin: str) -> bool:
    parts = urlsplit(origin)
    if parts.scheme in _ORIGIN_SCHEMES:
        return True
    return parts.scheme in ("http", "https") and parts.hostname in _ORIGIN_HOSTS
