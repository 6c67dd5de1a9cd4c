"""The gateway's settings as requests meet them: worked out once per configuration."""

import ipaddress
import re
from collections.abc import Callable, Mapping

from msgspec import Struct

from memos_llm.config import Settings
from memos_llm.gateway.principal import Principal, rights_of

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

LOCAL_ORIGINS = (
    *(f"{scheme}://{host}" for scheme in ("http", "https") for host in ("localhost", "127.0.0.1", "0.0.0.0")),
    *(f"{scheme}://{host}:*" for scheme in ("http", "https") for host in ("localhost", "127.0.0.1", "0.0.0.0")),
    *(f"{scheme}://*" for scheme in ("app", "file", "tauri", "vscode-webview", "vscode-file")),
)
"""Whom Ollama lets in by default (OLLAMA_ORIGINS, Ollama 0.33 source)."""


class Key(Struct, frozen=True):
    """A configured key: whose it is, its digest, and how many requests a minute it may make (None: any number)."""

    principal: Principal
    digest: bytes
    rate_per_minute: int | None = None


class Rules(Struct, frozen=True, kw_only=True):
    """What holds for every request.

    Attributes:
        keys: by the SHA-256 of the key; empty: anyone on this machine.
        hosts: names that `Host` may say, lower case; None: any.
        local_hosts: what is this machine or its network may stand there, too.
        origins: web origins, lower case; one that ends in `*` stands for whatever continues it.
        media_domains: where media URLs may point to, lower case, subdomains included.
    """

    keys: Mapping[bytes, Key] = {}
    hosts: frozenset[str] | None = LOCAL_NAMES
    local_hosts: bool = True
    origins: tuple[str, ...] = LOCAL_ORIGINS
    media_domains: tuple[str, ...] = ()
    allow_cloud: bool = False
    max_connections: int = 4096
    max_concurrency: int = 1024
    max_body_bytes: int = 33_554_432
    max_bodies_bytes: int = 1_073_741_824
    max_json_values: int = 200_000
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0

    def admits_host(self, host: str) -> bool:
        """Whether a `Host` header may stand on a request: a web page can have its own name point to this machine."""
        if self.hosts is None:
            return True
        name = host_name(host)
        return name in self.hosts or (self.local_hosts and _is_local(name))

    def admits_origin(self, origin: str, host: str) -> bool:
        """Whether a web page from there may call; one of this gateway's own always may."""
        origin = origin.lower()
        if origin == "null":  # any page can have that one, in a sandboxed frame: it is as good as a wildcard
            return False
        if origin in (f"http://{host}".lower(), f"https://{host}".lower()):
            return True
        return any(_fits(origin, allowed) for allowed in self.origins)


OPEN = Rules()
"""What holds where nothing is configured."""


def rules_of(settings: Settings) -> Rules:
    """The rules that a configuration makes."""
    gateway = settings.gateway
    keys = {}
    for entry in gateway.api_keys:
        digest = bytes.fromhex(entry.sha256)
        principal = Principal(entry.id, rights_of(entry.scopes), entry.component)
        keys[digest] = Key(principal, digest, entry.rate_per_minute)
    named = frozenset(host_name(host) for host in gateway.allowed_hosts)
    return Rules(
        keys=keys,
        hosts=named or (None if keys else LOCAL_NAMES),
        local_hosts=not named,
        origins=tuple(origin.lower().rstrip("/") for origin in gateway.cors_origins) or LOCAL_ORIGINS,
        media_domains=tuple(domain.lower().lstrip(".") for domain in gateway.media_domains),
        allow_cloud=gateway.allow_cloud,
        max_connections=gateway.max_connections,
        max_concurrency=gateway.max_concurrency,
        max_body_bytes=gateway.max_body_bytes,
        max_bodies_bytes=gateway.max_bodies_bytes,
        max_json_values=gateway.max_json_values,
        header_timeout_s=gateway.header_timeout_s,
        body_timeout_s=gateway.body_timeout_s,
    )


class Rulebook:
    """The rules in force: those of `settings()`, worked out again only when that is another object."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._of: Settings | None = None
        self._rules = OPEN

    def __call__(self) -> Rules:
        settings = self._settings()
        if settings is not self._of:
            self._rules, self._of = rules_of(settings), settings
        return self._rules


_HOST = re.compile(r"(?:\[([^\[\]]+)\]?|([^\[\]]*?))(?::[0-9]{1,5})?")


def host_name(host: str) -> str:
    """A `Host` header without its port, lower case, without a final dot; what cannot be one, as it is."""
    host = host.strip().lower()
    found = _HOST.fullmatch(host)
    return host if found is None else found[1] or found[2].rstrip(".")


def _is_local(name: str) -> bool:
    """As Ollama judges it: no web page can make an address, or a name below `localhost`, mean something else."""
    if name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified


def _fits(origin: str, allowed: str) -> bool:
    if not allowed.endswith("*"):
        return origin == allowed
    beginning = allowed[:-1]
    rest = origin[len(beginning) :]
    return origin.startswith(beginning) and (rest.isdigit() if beginning.endswith(":") else True)
