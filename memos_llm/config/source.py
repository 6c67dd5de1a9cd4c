"""Where the configuration came from, to be read again: a file, and the environment as it was at the start."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from memos_llm.config.load import expanded, find, load
from memos_llm.config.settings import Settings
from memos_llm.core.errors import ConfigError


class Stamp(NamedTuple):
    """What differs when a file does. Symbolic links are followed: one that is turned elsewhere is another file."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int  # of its rights too: a file that could not be read may be readable now


class Source:
    """The file in force and its environment. Make it before the first `load`, so that no change is missed.

    Args:
        path: as for `load`; None searches once, and without a file there is nothing to watch.
    """

    def __init__(self, path: Path | str | None, environ: Mapping[str, str] = os.environ) -> None:
        self.environ = dict(environ)
        self.path = find(self.environ) if path is None else expanded(str(path), self.environ)
        self.first = self.stamp()

    def stamp(self) -> Stamp | None:
        """What the file looks like now; None when it cannot be looked at. May wait for a disk."""
        if self.path is None:
            return None
        try:
            seen = self.path.stat()
        except OSError:
            return None
        return Stamp(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)

    def read(self) -> Settings:
        """The configuration as it is now. May wait for a disk.

        Raises:
            ConfigError: it is wrong, or there is nothing in it: an empty file is one that is being written, and the
                built-in defaults are no successor to a configuration.
        """
        if self.path is None:
            raise ConfigError("there was no configuration file at the start, so there is none to read again")
        self._check_kind(self.path)
        settings = load(self.path, self.environ)
        if _is_empty(self.path):
            raise ConfigError(f"{self.path}: is empty; the settings in force are kept")
        return settings

    @staticmethod
    def _check_kind(path: Path) -> None:
        """Reading a pipe again would wait for ever."""
        try:
            mode = path.stat().st_mode
        except OSError:
            return  # `load` says it better
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ConfigError(f"{path}: is not a file that can be read again")


def _is_empty(path: Path) -> bool:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return True  # it was there a moment ago: somebody is at it
    return all(not line.strip() or line.lstrip().startswith("#") or line.strip() in ("---", "...") for line in lines)
