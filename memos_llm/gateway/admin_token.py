"""The admin token: given in the environment, or made once and kept in a file that only its owner can read."""

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from memos_llm.core.errors import ConfigError

VARIABLE = "MEMOS_LLM_ADMIN_TOKEN"
FILE = "admin_token"
MIN_CHARS = 16


def admin_token(environ: Mapping[str, str], folder: Path) -> str:
    """The token: the environment's, else the file's in `folder`, which is made at the first call.

    Raises:
        ConfigError: the token is too short to be one, or the file or its folder could be read or replaced by others.
    """
    given = environ.get(VARIABLE, "").strip()
    if given:
        if len(given) < MIN_CHARS:
            raise ConfigError(f"{VARIABLE} has fewer than {MIN_CHARS} characters: it could be guessed")
        return given
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check(folder, folder.stat(), 0o022, "others can write there: chmod 700")
    path = folder / FILE
    if not path.exists():
        _make(path)
    _check(path, path.lstat(), 0o077, "others can read it: delete it, a new one is made")
    token = path.read_text().strip()
    if len(token) < MIN_CHARS:
        raise ConfigError(f"{path} holds no token: delete it, a new one is made")
    return token


def _make(path: Path) -> None:
    """Whole or not at all, and never over another's: several processes may start at once."""
    draft = path.with_name(f".{FILE}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        os.link(draft, path)
    except FileExistsError:
        return  # another process was first: its token is the token
    finally:
        draft.unlink(missing_ok=True)


def _check(path: Path, found: os.stat_result, forbidden: int, remedy: str) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise ConfigError(f"{path} is a symbolic link: the admin token must be a file of its own")
    if found.st_uid != os.geteuid():
        raise ConfigError(f"{path} belongs to another user: the admin token cannot be trusted")
    if found.st_mode & forbidden:
        raise ConfigError(f"{path}: {remedy}")
