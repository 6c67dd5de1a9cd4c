"""What a Redis store's URL says: redis://, rediss:// (TLS) and unix:// (a socket), written as for redis-py.

    rediss://[user[:password]@]host[:port][/db][?prefix=…&ssl_ca_certs=…&ssl_certfile=…&ssl_keyfile=…]
    unix://[user[:password]@]/absolute/path.sock[?db=0&prefix=…]

No message repeats any of a URL but where the store is: the rest may be its password.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from memos_llm.core.errors import ConfigError

SCHEMES = ("redis", "rediss", "unix")
EXAMPLES = "redis://host:6379/0?prefix=memos_llm, rediss://user:password@host:6379/0, unix:///run/redis/redis.sock"
PREFIX = "memos_llm"
TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_PORT = 6379


class Place(NamedTuple):
    """Attributes:
    shown: for messages: neither user nor password.
    prefix: of every key and of the channel, with a hash tag: a cluster keeps all of them in one slot
        (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags).
    options: of a connection, as redis-py calls them.
    """

    scheme: str
    shown: str
    prefix: str
    options: Mapping[str, str | int]


def parse(url: str) -> Place:
    """Raises:
    ConfigError: it names no Redis, or asks for something unknown.
    """
    try:
        parts = urlsplit(url)
        asked = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        port = parts.port
    except ValueError:
        raise _wrong("cannot be read: a password's special characters are written as %XX") from None
    known = ("prefix", *(("db",) if parts.scheme == "unix" else TLS if parts.scheme == "rediss" else ()))
    unknown = next((name for name in asked if name not in known), None)
    if unknown is not None or parts.fragment:
        raise _wrong(
            f"has something after the place that is not known; choices for {parts.scheme}://: {_listed(known)}"
        )
    prefix = asked.get("prefix", PREFIX).rstrip(":")
    if not _PREFIX.fullmatch(prefix):
        raise _wrong("has a prefix that is not 1 to 64 letters, digits or any of _ . : -")
    options: dict[str, str | int] = {name: asked[name] for name in TLS if name in asked}
    options |= {"db": _database(asked.get("db", "0") if parts.scheme == "unix" else parts.path.strip("/") or "0")}
    if parts.username:
        options["username"] = unquote(parts.username)
    if parts.password:
        options["password"] = unquote(parts.password)
    shown = _socket(parts, options) if parts.scheme == "unix" else _address(parts, port or _PORT, options)
    return Place(parts.scheme, shown, f"{{{prefix}}}:", options)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"?{name}=…" for name in names)


def _database(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise _wrong("names a database that is not a number such as 0")
    return int(text)


def _socket(parts: SplitResult, options: dict[str, str | int]) -> str:
    path = unquote(parts.path)
    if (parts.hostname or "") or len(path) < 2 or path.endswith("/"):
        raise _wrong("names no socket")
    options["path"] = path
    return f"unix://{path}"


def _address(parts: SplitResult, port: int, options: dict[str, str | int]) -> str:
    if not parts.hostname:
        raise _wrong("names no host")
    options |= {"host": parts.hostname, "port": port}
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}/{options['db']}"


def _wrong(what: str) -> ConfigError:
    return ConfigError(f"store: the Redis URL {what}; examples: {EXAMPLES}")
