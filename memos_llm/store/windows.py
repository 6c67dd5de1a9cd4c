"""The windows' rows in SQLite: added up within the transaction of who merges, told from one change to the next.

Used by `store.database`, which owns the connection, the transaction and the errors. The tables came after the first
release, like those of `store.counts`.

Every merge has a number, and a row that of the merge that changed it last; a cursor is such a number. They grow by
random steps and the latest are kept, so a number that the file does not know is of another life of it: of before it was
deleted, or replaced by an older copy, even if that has been merged into since.
"""

import random
import sqlite3
from collections.abc import Mapping

import msgspec

from memos_llm.core.decoding import FAILURES
from memos_llm.core.errors import StoreUnreachable
from memos_llm.core.windows import COARSE_S, FINE_S, Counts, Merged, WindowKey, WindowRow
from memos_llm.store.rows import CROWDED, KEEP_S, MAX_KEYS, PRUNE_S, Place, added, oldest

TABLES = """
CREATE TABLE window_keys (
    id INTEGER PRIMARY KEY, scope TEXT NOT NULL, epoch INTEGER NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
    component TEXT NOT NULL, change INTEGER NOT NULL, UNIQUE (scope, epoch, provider, model, component)
);
CREATE TABLE window_rows (
    width INTEGER NOT NULL, start INTEGER NOT NULL, key INTEGER NOT NULL, change INTEGER NOT NULL,
    counts BLOB NOT NULL, PRIMARY KEY (width, start, key)
) WITHOUT ROWID;
CREATE INDEX window_rows_change ON window_rows (change);
CREATE TABLE window_merges (change INTEGER PRIMARY KEY, at REAL NOT NULL);
"""

REMEMBER_S = 300.0  # a cursor: who has not looked for so long reads all again
STEP = 1 << 20

_KEY = """
INSERT INTO window_keys (scope, epoch, provider, model, component, change) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET change = excluded.change RETURNING id
"""
_CHANGED = """
SELECT width, start, counts, key, scope, epoch, provider, model, component
FROM window_rows JOIN window_keys ON id = key
WHERE window_rows.change > ? AND start >= CASE width WHEN ? THEN ? ELSE ? END
"""

_counts = msgspec.json.Decoder(dict[str, int])
_encode = msgspec.json.Encoder().encode


def add(db: sqlite3.Connection, more: Mapping[Place, Counts], now: float) -> None:
    """Within a transaction. `now`: Unix seconds."""
    change, pruned_at = _next(db)
    ids: dict[WindowKey, int] = {}
    for place, counts in more.items():
        if place.key not in ids:
            ids[place.key] = _id(db, place.key, change)
        at = (place.width_s, place.start, ids[place.key])
        before = db.execute("SELECT counts FROM window_rows WHERE (width, start, key) = (?, ?, ?)", at).fetchone()
        total = added(_decode(before[0]) if before else {}, counts)
        db.execute("INSERT OR REPLACE INTO window_rows VALUES (?, ?, ?, ?, ?)", (*at, change, _encode(total)))
    db.execute("INSERT INTO window_merges VALUES (?, ?)", (change, now))
    if now // PRUNE_S != pruned_at // PRUNE_S:
        _prune(db, now)
    _make_room(db)


def read(db: sqlite3.Connection, cursor: int, now: float) -> Merged:
    """What changed since. Within a transaction, so that the new cursor is of what was read.

    Raises:
        StoreUnreachable: a row is damaged.
    """
    known = db.execute("SELECT 1 FROM window_merges WHERE change = ?", (cursor,)).fetchone() is not None
    latest = db.execute("SELECT max(change) FROM window_merges").fetchone()[0] or 0
    since = cursor if known else 0
    bounds = (since, FINE_S, oldest(FINE_S, now), oldest(COARSE_S, now))
    keys: dict[int, WindowKey] = {}
    rows: list[WindowRow] = []
    for width_s, start, counts, key, *names in db.execute(_CHANGED, bounds):
        if key not in keys:
            scope, epoch, provider, model, component = names
            keys[key] = WindowKey(scope=scope, epoch=epoch, provider=provider, model=model, component=component)
        rows.append(WindowRow(key=keys[key], start=start, width_s=width_s, counts=_decode(counts)))
    return Merged(at=now, cursor=latest, rows=tuple(rows), whole=not known)


def _next(db: sqlite3.Connection) -> tuple[int, float]:
    """The number of this merge, and when the one before was."""
    last = db.execute("SELECT change, at FROM window_merges ORDER BY change DESC LIMIT 1").fetchone()
    if last is None:
        return random.getrandbits(40) << 20, 0.0
    return int(last[0]) + random.randint(1, STEP), float(last[1])


def _id(db: sqlite3.Connection, key: WindowKey, change: int) -> int:
    names = (key.scope, key.epoch, key.provider, key.model, key.component)
    return int(db.execute(_KEY, (*names, change)).fetchone()[0])


def _prune(db: sqlite3.Connection, now: float) -> None:
    for width_s in KEEP_S:
        db.execute("DELETE FROM window_rows WHERE width = ? AND start < ?", (width_s, oldest(width_s, now)))
    db.execute("DELETE FROM window_merges WHERE at < ?", (now - REMEMBER_S,))
    db.execute("DELETE FROM window_keys WHERE id NOT IN (SELECT key FROM window_rows)")


def _make_room(db: sqlite3.Connection) -> None:
    keys = db.execute("SELECT count(*) FROM window_keys").fetchone()[0]
    if keys > CROWDED:
        gone = "DELETE FROM window_keys WHERE id IN (SELECT id FROM window_keys ORDER BY change LIMIT ?)"
        db.execute(gone, (keys - MAX_KEYS,))
        db.execute("DELETE FROM window_rows WHERE key NOT IN (SELECT id FROM window_keys)")


def _decode(counts: bytes) -> dict[str, int]:
    try:
        return _counts.decode(counts)
    except FAILURES as error:
        raise StoreUnreachable("the windows in the store are damaged: restore the store from a backup") from error
