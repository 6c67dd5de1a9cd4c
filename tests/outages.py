"""Ways in which an SQLite store can fail under the processes that use it.

Each is a context: within it the store is away or has gone back; after it, it is as the last good copy has it. What
replaces the file comes as a whole directory, renamed: a log (`-wal`) of one database never lies beside another.
"""

import asyncio
import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

LOCKS = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


class Place:
    """Where a test's store is, with copies of it by name. `excused`: errors that the outage itself makes elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "state" / "x.db"
        self.excused: frozenset[str] = frozenset()
        self._moved = 0

    def save(self, name: str) -> None:
        """A copy through SQLite: opening the file ourselves would drop this process's locks on it."""
        copy = self.folder / name / "x.db"
        copy.parent.mkdir(mode=0o700)
        with contextlib.closing(sqlite3.connect(self.path)) as here, contextlib.closing(sqlite3.connect(copy)) as there:
            here.backup(there)
        copy.chmod(0o600)

    def put(self, name: str) -> None:
        """A copy takes the place of the store, whoever makes another there at the same moment."""
        for _ in range(1_000):
            with contextlib.suppress(FileNotFoundError):
                self.take_away()
            with contextlib.suppress(OSError):
                (self.folder / name).rename(self.path.parent)
                return
        raise AssertionError("another store is made there again and again")

    def take_away(self) -> None:
        self._moved += 1
        self.path.parent.rename(self.folder / f"away-{self._moved}")


Outage = Callable[[Place], AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def locked(place: Place) -> AsyncIterator[None]:
    command = (sys.executable, "-c", LOCKS, str(place.path))
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            assert await process.stdout.readline() == b"locked\n"
        yield
    finally:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def read_only(place: Place) -> AsyncIterator[None]:
    """A file system, where we are root, whom modes do not hinder; it cannot be made so under who has it open."""
    if os.geteuid():
        place.path.chmod(0o400)
        place.path.parent.chmod(0o500)
    else:
        remount(place.path.parent, "ro")
    yield
    if os.geteuid():
        place.path.parent.chmod(0o700)
        place.path.chmod(0o600)
    else:
        remount(place.path.parent, "rw")


@contextlib.asynccontextmanager
async def full(place: Place) -> AsyncIterator[None]:
    """The disk, where it is one of its own; else no file of this process may grow."""
    if place.path.parent.is_mount():
        filler = place.path.parent / "filler"
        with contextlib.closing(sqlite3.connect(place.path)) as user:
            user.execute("SELECT revision FROM flags").fetchall()  # while it has the file open, no log makes room
            for size in (65_536, 1):
                with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
                    while True:
                        file.write(bytes(size))
            yield
        filler.unlink()
    else:
        place.excused = frozenset({"OSError"})  # the last-good file cannot grow either
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


@contextlib.asynccontextmanager
async def damaged(place: Place) -> AsyncIterator[None]:
    place.save("good")
    place.save("bad")
    (place.folder / "bad" / "x.db").write_bytes(b"no database at all " * 500)
    place.put("bad")
    yield
    place.put("good")


@contextlib.asynccontextmanager
async def deleted(place: Place) -> AsyncIterator[None]:
    place.save("good")
    place.take_away()
    yield
    place.put("good")


@contextlib.asynccontextmanager
async def older(place: Place) -> AsyncIterator[None]:
    place.save("good")
    place.put("older")
    yield
    place.put("good")


@contextlib.contextmanager
def disk(place: Place) -> Iterator[None]:
    """The store's directory as a file system of its own, where we may mount one."""
    place.path.parent.mkdir(mode=0o700)
    options = f"size=1m,mode=0700,uid={os.getuid()},gid={os.getgid()}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place.path.parent)]
    mounted = not os.geteuid() and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place.path.parent)], capture_output=True, check=True)


def remount(point: Path, mode: str) -> None:
    if not point.is_mount():
        pytest.skip("root is hindered by no mode, and may mount nothing here")
    subprocess.run(["mount", "-o", f"remount,{mode}", str(point)], capture_output=True, check=True)
