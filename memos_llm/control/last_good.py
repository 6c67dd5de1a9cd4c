"""The last good flags on this host, for a start without the store: one small file, replaced as a whole.

It holds flags (with salt, latches and revision) and this process's unpublished cuts, so that a restart forgets no
rollback. Reading never fails: a file that is missing, damaged, or of a newer schema is as good as none.
"""

import contextlib
import os
import tempfile
from pathlib import Path

import msgspec
from msgspec import Struct

from memos_llm.control.adopt import Cut, View, blank
from memos_llm.core.commands import Actor, Rollback
from memos_llm.core.flags import SCHEMA, Flags


class _Cut(Struct, frozen=True):
    rollback: Rollback
    at: float
    actor: Actor


class _Document(Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA
    flags: Flags
    cuts: tuple[_Cut, ...] = ()


def write(path: Path, view: View) -> None:
    """Readers, and a crash at any moment, see the old file or the new one.

    Raises:
        OSError: it cannot be written.
    """
    cuts = tuple(_Cut(cut.command, cut.at, cut.actor) for cut in view.cuts if isinstance(cut.command, Rollback))
    data = msgspec.json.encode(_Document(flags=view.published, cuts=cuts))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read(path: Path | None) -> View:
    """What the file says, or a view of nothing."""
    if path is None:
        return View(blank())
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_Document)
    except (OSError, msgspec.DecodeError):
        return View(blank())
    if max(document.schema, document.flags.schema) > SCHEMA:
        return View(blank())
    return View(document.flags, tuple(Cut(cut.rollback, cut.at, cut.actor) for cut in document.cuts))
