"""Where flags, history, incidents and instances are kept: one port (`core.ports.StateStore`), several homes.

`open_store` reads a store's URL and nothing else knows the schemes. Opening does no I/O: the first call does, and
whatever goes wrong then or later is `StoreUnreachable`, from which every store recovers without a restart.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from memos_llm.core.errors import ConfigError
from memos_llm.core.ports import StateStore
from memos_llm.store import redis_url
from memos_llm.store.memory import MemoryStore
from memos_llm.store.sqlite import SqliteStore

__all__ = ["MemoryStore", "SqliteStore", "open_store", "path_of"]

CHOICES = (
    "sqlite:////absolute/path.db, sqlite:///~/path.db, sqlite:///relative.db, redis://host:6379/0, rediss://…, "
    "unix:///path/redis.sock, memory://"
)


def open_store(url: str) -> StateStore:
    """The store that a URL names; close it with `aclose`.

    Raises:
        ConfigError: an unknown scheme, a URL without a path, a path on a network file system, or Redis without its
            extra.
    """
    scheme, separator, rest = url.partition("://")
    opener = _OPENERS.get(scheme) if separator else None
    if opener is None:
        raise ConfigError(f"store: {scheme!r} begins no store's URL that is known; choices: {CHOICES}")
    return opener(url, rest)


def _memory(url: str, rest: str) -> StateStore:
    if rest:
        raise ConfigError(f"store: {url!r} names a place, but memory:// has none; choices: {CHOICES}")
    return MemoryStore()


def _sqlite(url: str, rest: str) -> StateStore:
    return SqliteStore(_path(url, rest))


def _redis(url: str, rest: str) -> StateStore:
    place = redis_url.parse(url)
    try:
        from memos_llm.store.redis import RedisStore
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "redis":
            raise
        raise ConfigError(f"store: {place.scheme}:// needs redis-py: pip install 'memos_llm[redis]'") from None
    return RedisStore(place)


def path_of(url: str) -> Path | None:
    """The file of a store that is one; None for other kinds.

    Raises:
        ConfigError: the URL names no file.
    """
    scheme, _, rest = url.partition("://")
    return _path(url, rest) if scheme == "sqlite" else None


def _path(url: str, rest: str) -> Path:
    path = rest.removeprefix("/")
    if not rest.startswith("/") or not path or path.endswith("/") or path == ":memory:":
        raise ConfigError(f"store: {url!r} names no file; choices: {CHOICES}")
    return Path(path).expanduser().absolute()


_OPENERS: Mapping[str, Callable[[str, str], StateStore]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    **dict.fromkeys(redis_url.SCHEMES, _redis),
}
