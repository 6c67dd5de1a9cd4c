"""The last good flags on this host, for a start without the store: one small file, replaced as a whole.

It holds flags (with salt, latches and revision) and unpublished cuts, so that a restart forgets no rollback (one of the
guard's that is older than any hold-down is in force only until the store is there). All
processes of the host that use one store share it: each adds what it knows, under a lock, and takes away nothing but
what the newest flags have settled. Reading never fails: a file that is missing, damaged, or of a newer schema is as
good as none.
"""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from memos_llm.control.adopt import Cut, View, blank, remaining
from memos_llm.control.adoption import took_over
from memos_llm.core.commands import LONGEST_HOLDDOWN_S, Actor, Rollback
from memos_llm.core.decoding import FAILURES
from memos_llm.core.flags import SCHEMA, Flags
from memos_llm.core.verdicts import Evidence

MOST_CUTS = 32
OLD_S = LONGEST_HOLDDOWN_S  # of a cut by the guard
MOST_BYTES = 32_768  # of one cut's evidence; what is longer is kept without its tables
LOCK_S = 1.0  # how long another writer is waited for: better to write over it than not at all


class _Cut(Struct, frozen=True):
    rollback: Rollback
    at: float
    actor: Actor


class _Document(Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA
    flags: Flags
    cuts: tuple[_Cut, ...] = ()


def write(path: Path, view: View, now: float = 0.0) -> None:
    """Readers, and a crash at any moment, see the old file or the new one. `now`: Unix seconds; 0: nothing grows old.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(path.parent):
        _replace(path, _joined(read(path, now), view))


def _replace(path: Path, view: View) -> None:
    cuts = tuple(_Cut(_bounded(cut.command), cut.at, cut.actor) for cut in view.cuts)
    data = msgspec.json.encode(_Document(flags=view.published, cuts=cuts))
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


def _joined(kept: View, ours: View) -> View:
    """The newer flags, and the cuts of both that these do not settle; ours where the two have nothing in common."""
    theirs, mine = kept.published, ours.published
    newer = theirs.revision > mine.revision and (theirs.installation, theirs.salt) == (mine.installation, mine.salt)
    flags = theirs if newer or not mine.revision or took_over(theirs, mine) else mine
    cuts = {cut.command.incident: cut for cut in (*(cut for cut in kept.cuts if not cut.stale), *ours.cuts)}
    left = tuple(rest for cut in cuts.values() if (rest := remaining(cut, flags)))
    return View(flags, left[-MOST_CUTS:])


def _bounded(rollback: Rollback) -> Rollback:
    evidence = rollback.evidence
    if evidence is None or len(msgspec.json.encode(evidence)) <= MOST_BYTES:
        return rollback
    return replace(
        rollback,
        evidence=Evidence(
            at=evidence.at,
            by=evidence.by,
            scope=evidence.scope,
            trigger=evidence.trigger,
            rule=evidence.rule[:1000],
            limit=evidence.limit,
            n=evidence.n,
            k=evidence.k,
            note=evidence.note[:1000],
        ),
    )


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One writer at a time; the lock is the directory's, and the system lifts it when its holder dies."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        deadline = time.monotonic() + LOCK_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            break
        yield
    finally:
        os.close(descriptor)


def read(path: Path | None, now: float = 0.0) -> View:
    """What the file says, or a view of nothing. `now`: Unix seconds; 0: nothing grows old."""
    if path is None:
        return View(blank())
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_Document)
    except (OSError, *FAILURES):
        return View(blank())
    if max(document.schema, document.flags.schema) > SCHEMA:
        return View(blank())
    return View(document.flags, tuple(_kept(cut, now) for cut in document.cuts))


def _kept(cut: _Cut, now: float) -> Cut:
    return Cut(cut.rollback, cut.at, cut.actor, stale=cut.actor.kind == "guard" and now - cut.at > OLD_S)
