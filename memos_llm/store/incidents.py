"""Incidents in SQLite: each as it was written, the evidence that others added since, and whom to tell.

Used by `store.database`, which owns the connection, the transaction and the errors. But for `incidents` the tables came
after the first release, like those of `store.counts`: an incident of before is told to nobody.
"""

import sqlite3
from itertools import groupby

from memos_llm.core.commands import Incident
from memos_llm.core.ports import MOST_EVIDENCE
from memos_llm.core.verdicts import Evidence
from memos_llm.store import documents

TABLES = """
CREATE TABLE evidence (number INTEGER PRIMARY KEY, incident TEXT NOT NULL, document BLOB NOT NULL);
CREATE INDEX evidence_incident ON evidence (incident);
CREATE TABLE untold (
    number INTEGER PRIMARY KEY, incident TEXT NOT NULL UNIQUE, by TEXT NOT NULL, until REAL NOT NULL
);
"""

_NEWEST = """
SELECT i.number, i.document, e.document
FROM (SELECT * FROM incidents ORDER BY number DESC LIMIT ?) i LEFT JOIN evidence e ON e.incident = i.id
ORDER BY i.number DESC, e.number
"""
_ONE = """
SELECT i.number, i.document, e.document FROM incidents i LEFT JOIN evidence e ON e.incident = i.id
WHERE i.id = ? ORDER BY e.number
"""
_NEXT = "SELECT incident FROM untold JOIN incidents ON id = incident WHERE until <= ? ORDER BY untold.number LIMIT 1"


def add(db: sqlite3.Connection, incident: Incident) -> None:
    """Within a transaction. The first writer's stands."""
    row = (incident.id, documents.encode(incident))
    if db.execute("INSERT OR IGNORE INTO incidents (id, document) VALUES (?, ?)", row).rowcount:
        db.execute("INSERT OR IGNORE INTO untold (incident, by, until) VALUES (?, '', 0)", (incident.id,))


def newest(db: sqlite3.Connection, limit: int) -> tuple[Incident, ...]:
    return _joined(db.execute(_NEWEST, (max(0, limit),)).fetchall())


def note(db: sqlite3.Connection, incident: str, evidence: Evidence) -> None:
    """Within a transaction."""
    found = _joined(db.execute(_ONE, (incident,)).fetchall())
    if found and len(found[0].evidence) < MOST_EVIDENCE:
        row = (incident, documents.encode(evidence))
        db.execute("INSERT INTO evidence (incident, document) VALUES (?, ?)", row)


def waiting(db: sqlite3.Connection, now: float) -> str | None:
    """The incident that is next to be told."""
    row = db.execute(_NEXT, (now,)).fetchone()
    return None if row is None else str(row[0])


def claim(db: sqlite3.Connection, by: str, now: float, lease_s: float) -> Incident | None:
    """Within a transaction."""
    name = waiting(db, now)
    if name is None:
        return None
    db.execute("UPDATE untold SET by = ?, until = ? WHERE incident = ?", (by, now + lease_s, name))
    return _joined(db.execute(_ONE, (name,)).fetchall())[0]


def renew(db: sqlite3.Connection, incident: str, by: str, until: float) -> bool:
    """Within a transaction."""
    row = (until, incident, by)
    return db.execute("UPDATE untold SET until = ? WHERE incident = ? AND by = ?", row).rowcount > 0


def told(db: sqlite3.Connection, incident: str) -> None:
    """Within a transaction."""
    db.execute("DELETE FROM untold WHERE incident = ?", (incident,))


def _joined(rows: list[tuple[int, bytes, bytes | None]]) -> tuple[Incident, ...]:
    """One incident has one row for each evidence added, or one without."""
    found = []
    for _, group in groupby(rows, key=lambda row: row[0]):
        same = list(group)
        noted = [document for _, _, document in same if document is not None]
        found.append(documents.decode_incident(same[0][1], noted))
    return tuple(found)
