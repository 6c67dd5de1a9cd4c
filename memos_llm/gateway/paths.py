"""Every data path also works under `/c/{component}` and `/c/{component}/s/{session}`, for clients without headers."""

from typing import NamedTuple
from urllib.parse import unquote

from memos_llm.core.errors import BadRequest


class Place(NamedTuple):
    """A path without its prefix, and what the prefix said."""

    path: str
    component: str | None = None
    session: str | None = None


def locate(raw_path: str) -> Place:
    """Take the prefix off a path as it was sent: a session may hold a percent-encoded slash.

    Raises:
        BadRequest: a prefix without a name in it.
    """
    if not raw_path.startswith("/c/"):
        return Place(unquote(raw_path))
    component, _, rest = raw_path[3:].partition("/")
    session = None
    if rest.startswith("s/"):
        session, _, rest = rest[2:].partition("/")
    if not component or session == "":
        raise BadRequest(f"{raw_path!r}: write /c/COMPONENT/… or /c/COMPONENT/s/SESSION/…")
    return Place("/" + unquote(rest), unquote(component), None if session is None else unquote(session))
