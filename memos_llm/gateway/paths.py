"""Every data path also works under `/c/{component}` and `/c/{component}/s/{session}`, for clients without headers."""

from typing import NamedTuple

from memos_llm.core.errors import BadRequest


class Place(NamedTuple):
    """A path without its prefix, and what the prefix said."""

    path: str
    component: str | None = None
    session: str | None = None


def locate(path: str) -> Place:
    """Take the prefix off.

    Raises:
        BadRequest: a prefix without a name in it.
    """
    if not path.startswith("/c/"):
        return Place(path)
    component, _, rest = path[3:].partition("/")
    session = None
    if rest.startswith("s/"):
        session, _, rest = rest[2:].partition("/")
    if not component or session == "":
        raise BadRequest(f"{path!r}: write /c/COMPONENT/… or /c/COMPONENT/s/SESSION/…")
    return Place("/" + rest, component, session)
