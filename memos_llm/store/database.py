"""The SQLite file, synchronously: schema, transactions, and every `sqlite3` error turned into ours.

Used from one thread (`store.sqlite`). The connection is opened by the first call that needs it and again after any
error, so a store that comes back works again. Nothing of `sqlite3` leaves this file but to `store.counts`, `windows`
and `incidents`, which keep their tables: `_connected` is the one place where it is caught, `FIXES` says what mends each
kind.

Durability: what decides (flags, history, incidents) is synchronous=FULL, on disk when `commit` returns; what is told
every few seconds (heartbeats, counts, windows) is NORMAL. Both are in WAL mode: readers never wait for a writer.
"""

import contextlib
import errno
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memos_llm.core.commands import Audit, Incident
from memos_llm.core.errors import StoreUnreachable
from memos_llm.core.flags import SCHEMA, Flags
from memos_llm.core.inventory import Recorded, Sighting
from memos_llm.core.ports import Clock, Conflict, Instance
from memos_llm.core.verdicts import Evidence
from memos_llm.core.windows import Merged, WindowDelta
from memos_llm.store import counts, documents, files, incidents, rows, windows

APPLICATION = 0x6D656D6F  # "memo", in the file's header: https://sqlite.org/pragma.html#pragma_application_id

TABLES = """
CREATE TABLE flags (
    only INTEGER PRIMARY KEY CHECK (only = 1), schema INTEGER NOT NULL, installation TEXT NOT NULL,
    revision INTEGER NOT NULL, document BLOB NOT NULL
);
CREATE TABLE history (revision INTEGER PRIMARY KEY, document BLOB NOT NULL);
CREATE TABLE incidents (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, document BLOB NOT NULL);
CREATE TABLE instances (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, revision INTEGER NOT NULL, at REAL NOT NULL, ephemeral INTEGER NOT NULL
);
"""
DEAD = "CREATE TABLE instances_dead (id TEXT PRIMARY KEY, at REAL NOT NULL, endpoints BLOB NOT NULL);"
LATER: Mapping[str, str] = {
    "inventory": counts.TABLES,
    "window_rows": windows.TABLES,
    "untold": incidents.TABLES,
    "instances_dead": DEAD,
}
"""A table → what is made where it is missing. They came after the first release: an older file gets them when it is
opened. No older table is changed: processes of before go on writing to them.
"""

BRIEF_S = 0.25
"""How long a call waits for a lock that another has waited for in vain: jobs that queue up behind each other would
together wait for minutes.
"""

DAMAGED = (
    "the file is damaged or is no SQLite database: stop all that use it, move it away with its -wal and -shm files, "
    "and restore a backup"
)
NOT_WRITABLE = (
    "it cannot be opened for writing: check the owner and mode of the file and its directory, and whether the file "
    "system is mounted read-only"
)
DISK_FULL = "the disk is full: free some space"
FIXES: Mapping[int, str] = {
    sqlite3.SQLITE_BUSY: "another process holds its lock: find it with `fuser -v` on the file",
    sqlite3.SQLITE_LOCKED: "another process holds its lock: find it with `fuser -v` on the file",
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
    sqlite3.SQLITE_FULL: DISK_FULL,
    sqlite3.SQLITE_READONLY: NOT_WRITABLE,
    sqlite3.SQLITE_CANTOPEN: NOT_WRITABLE,
    sqlite3.SQLITE_PERM: NOT_WRITABLE,
    sqlite3.SQLITE_IOERR: "the disk reports an input or output error: look at the kernel's log (dmesg)",
}
OS_FIXES: Mapping[int | None, str] = {
    errno.ENOSPC: DISK_FULL,
    errno.EACCES: NOT_WRITABLE,
    errno.EPERM: NOT_WRITABLE,
    errno.EROFS: NOT_WRITABLE,
}

_INSTANCES = """
SELECT i.id, kind, revision, i.at, ephemeral, endpoints
FROM instances i LEFT JOIN instances_dead d ON d.id = i.id ORDER BY i.id
"""


class Database:
    """One file.

    Args:
        busy_s: how long a call waits for another process's lock; once that was in vain, the next ones only `BRIEF_S`,
            until something is written again.
        clock: the host's wall clock (Unix seconds); it dates heartbeats.
    """

    def __init__(self, path: Path, *, busy_s: float, clock: Clock) -> None:
        self._path = path
        self._busy_s = self._patience_s = busy_s
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._version = -1
        self._schema = SCHEMA

    def load(self) -> Flags | None:
        stored = self.stored()
        return None if stored is None else documents.decode_flags(*stored)

    def stored(self) -> tuple[bytes, int] | None:
        """The flags as they stand there, undecoded, and their schema; None when there are none."""
        with self._connected() as db:
            row: tuple[bytes, int] | None = db.execute("SELECT document, schema FROM flags").fetchone()
        return row

    def touched(self) -> bool:
        """Whether another connection has committed anything since the last call; true after reopening. A few µs."""
        with self._connected() as db:
            version = int(db.execute("PRAGMA data_version").fetchone()[0])
        seen, self._version = self._version, version
        return seen != version

    def commit(self, expected: int, flags: Flags, audit: Audit, incident: Incident | None) -> None:
        documents.check_commit(expected, flags, audit)
        with self._transaction("FULL") as db:
            documents.check_schema(_schema(db))
            _compare(db, expected)
            db.execute(
                "INSERT OR REPLACE INTO flags VALUES (1, ?, ?, ?, ?)",
                (flags.schema, flags.installation, flags.revision, documents.encode(flags)),
            )
            db.execute("INSERT INTO history VALUES (?, ?)", (audit.revision, documents.encode(audit)))
            if incident is not None:
                incidents.add(db, incident)

    def history(self, limit: int) -> tuple[Audit, ...]:
        return documents.decode_history(self._column("SELECT document FROM history ORDER BY revision DESC", limit))

    def incidents(self, limit: int) -> tuple[Incident, ...]:
        with self._connected() as db:
            return incidents.newest(db, limit)

    def note(self, incident: str, evidence: Evidence) -> None:
        with self._transaction("FULL") as db:
            documents.check_schema(_schema(db))
            incidents.note(db, incident, evidence)

    def merge(self, deltas: Sequence[WindowDelta], cursor: int) -> Merged:
        """What is read is read in the same transaction: who is told of a failure has added nothing."""
        adding = any(delta.counts for delta in deltas)
        with self._transaction("NORMAL") if adding else self._snapshot() as db:
            now = self._clock()
            if adding:
                documents.check_schema(_schema(db))
                windows.add(db, rows.sums(deltas, now), now)
            return windows.read(db, cursor, now)

    def claim(self, by: str, lease_s: float) -> Incident | None:
        """Nothing when the store is of a newer schema, and the write lock is not taken to find nothing."""
        with self._snapshot() as db:
            if incidents.waiting(db, self._clock()) is None:
                return None
        with self._transaction("NORMAL") as db:
            return incidents.claim(db, by, self._clock(), lease_s) if _schema(db) <= SCHEMA else None

    def renew(self, incident: str, by: str, lease_s: float) -> bool:
        with self._transaction("NORMAL") as db:
            return _schema(db) <= SCHEMA and incidents.renew(db, incident, by, self._clock() + lease_s)

    def told(self, incident: str) -> None:
        with self._transaction("NORMAL") as db:
            if _schema(db) <= SCHEMA:
                incidents.told(db, incident)

    def heartbeat(self, instance: Instance) -> None:
        """Nothing when the store is of a newer schema: then we only read."""
        now = self._clock()
        with self._transaction("NORMAL") as db:
            if _schema(db) > SCHEMA:
                return
            for table in ("instances", "instances_dead"):
                db.execute(f"DELETE FROM {table} WHERE at < ?", (now - documents.FORGET_S,))
            db.execute(
                "INSERT OR REPLACE INTO instances VALUES (?, ?, ?, ?, ?)",
                (instance.id, instance.kind, instance.revision, now, instance.ephemeral),
            )
            if instance.dead is None:
                db.execute("DELETE FROM instances_dead WHERE id = ?", (instance.id,))
            else:
                dead = (instance.id, now, documents.encode(instance.dead))
                db.execute("INSERT OR REPLACE INTO instances_dead VALUES (?, ?, ?)", dead)

    def leave(self, instance_id: str) -> None:
        with self._transaction("NORMAL") as db:
            if _schema(db) <= SCHEMA:
                for table in ("instances", "instances_dead"):
                    db.execute(f"DELETE FROM {table} WHERE id = ?", (instance_id,))

    def instances(self) -> tuple[Instance, ...]:
        with self._connected() as db:
            found = db.execute(_INSTANCES).fetchall()
        now = self._clock()
        return tuple(instance for row in found if documents.is_live(instance := _instance(row), now))

    def record(self, sightings: Sequence[Sighting]) -> None:
        with self._transaction("NORMAL") as db:
            documents.check_schema(_schema(db))
            counts.add(db, sightings, self._clock())

    def recorded(self, since_day: int) -> Recorded:
        with self._connected() as db:
            return counts.read(db, since_day)

    def close(self) -> None:
        """Also what is done after an error: the next call opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _column(self, query: str, limit: int) -> list[bytes]:
        with self._connected() as db:
            return [row[0] for row in db.execute(f"{query} LIMIT ?", (max(0, limit),))]

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """Several readings of one state; waits for nobody."""
        with self._connected() as db:
            db.execute("BEGIN")
            try:
                yield db
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    @contextlib.contextmanager
    def _transaction(self, synchronous: str) -> Iterator[sqlite3.Connection]:
        """All or nothing, and alone: the write lock is taken at its start, so what it reads stays true."""
        with self._connected() as db:
            db.execute(f"PRAGMA synchronous = {synchronous}")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:  # raised again: an interrupted transaction is undone too
                if db.in_transaction:  # SQLite itself rolls back when the disk is full
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
            if self._patience_s != self._busy_s:
                self._patience_s = self._busy_s
                db.execute(f"PRAGMA busy_timeout = {round(self._busy_s * 1000)}")

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._open()
        except (sqlite3.Error, OSError) as error:
            self.close()
            if _code(error) == sqlite3.SQLITE_BUSY:
                self._patience_s = min(BRIEF_S, self._busy_s)
            raise unreachable(error, self._path, self._schema) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and files.identity(self._path) == self._identity:
            return self._connection
        self.close()  # none yet, or the file was replaced under us
        files.prepare(self._path)
        connection = sqlite3.connect(self._path, timeout=self._patience_s, isolation_level=None)
        try:
            _check_ours(connection, self._path)
            _use_wal(connection, self._patience_s)
            _create(connection)
            self._schema = _pragma(connection, "user_version")
        except BaseException:  # raised again: a half-opened connection is of no use
            connection.close()
            raise
        self._connection, self._identity, self._version = connection, files.identity(self._path), -1
        return connection


def unreachable(error: sqlite3.Error | OSError, path: Path, schema: int = SCHEMA) -> StoreUnreachable:
    """The one translation: what is wrong with which file, and what mends it. `schema` is the file's."""
    if isinstance(error, OSError):
        fix, name = OS_FIXES.get(error.errno, "the system refuses"), error.strerror or type(error).__name__
        return StoreUnreachable(f"the store {path} cannot be used: {fix} ({name})")
    code = _code(error)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if code == sqlite3.SQLITE_ERROR and schema > SCHEMA:  # a table or column that is no longer there
        return StoreUnreachable(f"the store {path} cannot be read: {documents.newer(schema)}")
    fix = FIXES.get(code, "an unexpected error of SQLite")
    return StoreUnreachable(f"the store {path} cannot be used: {fix} ({name})")


def _code(error: Exception) -> int:
    """The primary result code, which is the low byte; 0 for other errors."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _instance(row: tuple[Any, ...]) -> Instance:
    name, kind, revision, at, ephemeral, dead = row
    return Instance(
        id=name, kind=kind, revision=revision, at=at, ephemeral=bool(ephemeral), dead=documents.decode_dead(dead)
    )


def _compare(db: sqlite3.Connection, expected: int) -> None:
    row = db.execute("SELECT revision FROM flags").fetchone()
    found = 0 if row is None else row[0]
    if found != expected:
        raise Conflict(f"the store holds revision {found}, not {expected}")


def _schema(db: sqlite3.Connection) -> int:
    """The newest schema of anything in the file."""
    stored = db.execute("SELECT max(schema) FROM flags").fetchone()[0] or 0
    return max(int(stored), _pragma(db, "user_version"))


def _check_ours(db: sqlite3.Connection, path: Path) -> None:
    """Tables and mark are made in one transaction: whoever sees the tables first and asks then, sees the mark too."""
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and _pragma(db, "application_id") != APPLICATION:
        raise StoreUnreachable(f"{path} is another program's database: choose another path for the store")


def _use_wal(db: sqlite3.Connection, busy_s: float) -> None:
    """Several processes may do this to a new file at once, and for this one step SQLite does not wait by itself."""
    deadline = time.monotonic() + busy_s
    while True:
        try:
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
            continue
        if mode != "wal":
            raise StoreUnreachable(f"the store needs SQLite's WAL mode, which this file system does not allow ({mode})")
        return


def _create(db: sqlite3.Connection) -> None:
    if _pragma(db, "user_version") > SCHEMA or not _missing(db):
        return
    db.execute("BEGIN IMMEDIATE")
    if not _pragma(db, "user_version"):  # nobody was faster
        _make(db, TABLES)
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {SCHEMA}")
    for tables in _missing(db):
        _make(db, tables)
    db.execute("COMMIT")


def _make(db: sqlite3.Connection, tables: str) -> None:
    for statement in tables.split(";")[:-1]:
        db.execute(statement)


def _missing(db: sqlite3.Connection) -> tuple[str, ...]:
    """The statements that make what came later and is not there."""
    there = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return tuple(tables for name, tables in LATER.items() if name not in there)


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])
