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
        return Place(unquote(raw_path) if "%" in raw_path else raw_path)
    component, session, rest = _parts(raw_path)
    if not component or session == "":
        raise BadRequest(f"{raw_path!r}: write /c/COMPONENT/… or /c/COMPONENT/s/SESSION/…")
    return Place("/" + unquote(rest), unquote(component), None if session is None else unquote(session))


def rest_of(raw_path: str) -> str:
    """A path as it was sent, without its prefix."""
    return f"/{_parts(raw_path)[2]}" if raw_path.startswith("/c/") else raw_path


def _parts(raw_path: str) -> tuple[str, str | None, str]:
    """Component, session and what follows, as they were sent."""
    component, _, rest = raw_path[3:].partition("/")
    session = None
    if rest.startswith("s/"):
        session, _, rest = rest[2:].partition("/")
    return component, session, rest
