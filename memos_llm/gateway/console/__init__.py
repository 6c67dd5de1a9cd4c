"""The console: a page that shows how the migration stands and can roll it back.

The files hold no secret and no data, so that they are open; what the page shows it asks of the admin API, with the
token that its user gives it. Nothing is built: what is here is what is served.
"""

from collections.abc import Mapping
from importlib.resources import files

from msgspec import Struct

PATH = "/console"

KINDS: Mapping[str, str] = {
    "index.html": "text/html; charset=utf-8",
    "theme.css": "text/css; charset=utf-8",
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "gateway.js": "text/javascript; charset=utf-8",
    "build.js": "text/javascript; charset=utf-8",
    "view.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""Every file that is served, and its media type."""

HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
"""No script, style or frame but our own files; a page of an older version is never shown by a newer gateway."""


class File(Struct, frozen=True):
    """One file, as it is answered."""

    body: bytes
    headers: Mapping[str, str]


def _path(name: str) -> str:
    return PATH if name == "index.html" else f"{PATH}/{name}"


PATHS = frozenset(_path(name) for name in KINDS)
"""Where the files are served."""


def read() -> dict[str, File]:
    """Path → file, read from the package once.

    Raises:
        FileNotFoundError: the package was installed without them.
    """
    folder = files(__name__)
    return {
        _path(name): File(folder.joinpath(name).read_bytes(), {**HEADERS, "content-type": kind})
        for name, kind in KINDS.items()
    }
