"""The inventory's counts in SQLite: sums are made by the database, so that writers of many processes never lose one.

Used by `store.database`, which owns the connection, the transaction and the errors. The tables came after the first
release: an older file gets them when it is opened, and older programs leave them alone.
"""

import sqlite3
from collections.abc import Iterable

from memos_llm.core.inventory import KEEP_DAYS, MAX_LINES, REST, Line, Recorded, Sighting, day_of

TABLES = """
CREATE TABLE inventory_lines (
    id INTEGER PRIMARY KEY, component TEXT NOT NULL, model TEXT NOT NULL, wire TEXT NOT NULL, route TEXT NOT NULL,
    caller TEXT NOT NULL, UNIQUE (component, model, wire, route, caller)
);
CREATE TABLE inventory (
    day INTEGER NOT NULL, line INTEGER NOT NULL, what TEXT NOT NULL, provider TEXT NOT NULL, detail TEXT NOT NULL,
    n INTEGER NOT NULL, first REAL NOT NULL, last REAL NOT NULL, PRIMARY KEY (day, line, what, provider, detail)
) WITHOUT ROWID;
CREATE TABLE inventory_since (only INTEGER PRIMARY KEY CHECK (only = 1), at REAL NOT NULL);
"""

_FIND = "SELECT id FROM inventory_lines WHERE (component, model, wire, route, caller) = (?, ?, ?, ?, ?)"
_ADD = """
INSERT INTO inventory VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    n = n + excluded.n, first = min(first, excluded.first), last = max(last, excluded.last)
"""
_SUMS = """
SELECT day, component, model, wire, route, caller, what, provider, detail, n, first, last FROM (
    SELECT max(day) AS day, line, what, provider, detail, sum(n) AS n, min(first) AS first, max(last) AS last
    FROM inventory WHERE day >= ? GROUP BY line, what, provider, detail
) JOIN inventory_lines ON id = line
"""


def add(db: sqlite3.Connection, sightings: Iterable[Sighting], now: float) -> None:
    """Within a transaction. `now`: Unix seconds."""
    db.execute("INSERT OR IGNORE INTO inventory_since VALUES (1, ?)", (now,))
    ids: dict[Line, int] = {}
    for one in sightings:
        if one.line not in ids:
            ids[one.line] = _id(db, one.line)
        row = (one.day, ids[one.line], one.what, one.provider, one.detail, one.n, one.first, one.last)
        db.execute(_ADD, row)
    if db.execute("DELETE FROM inventory WHERE day < ?", (day_of(now) - KEEP_DAYS,)).rowcount:
        db.execute("DELETE FROM inventory_lines WHERE id NOT IN (SELECT line FROM inventory)")


def read(db: sqlite3.Connection, since_day: int) -> Recorded:
    since = db.execute("SELECT at FROM inventory_since").fetchone()
    return Recorded(
        since=None if since is None else float(since[0]),
        sightings=tuple(
            Sighting(
                day=row[0],
                line=Line(*row[1:6]),
                what=row[6],
                provider=row[7],
                detail=row[8],
                n=row[9],
                first=row[10],
                last=row[11],
            )
            for row in db.execute(_SUMS, (since_day,))
        ),
    )


def _id(db: sqlite3.Connection, line: Line) -> int:
    """The line's number; that of `REST` where there is no place for another."""
    names = (line.component, line.model, line.wire, line.route, line.caller)
    found = db.execute(_FIND, names).fetchone()
    if found is not None:
        return int(found[0])
    others = db.execute("SELECT count(*) FROM inventory_lines").fetchone()[0]
    if line != REST and others >= MAX_LINES and _is_full(db, others):
        return _id(db, REST)
    made = db.execute("INSERT INTO inventory_lines VALUES (NULL, ?, ?, ?, ?, ?)", names).lastrowid
    assert made is not None
    return made


def _is_full(db: sqlite3.Connection, lines: int) -> bool:
    rest = db.execute(_FIND, (REST.component, REST.model, REST.wire, REST.route, REST.caller)).fetchone()
    return lines - (rest is not None) >= MAX_LINES
