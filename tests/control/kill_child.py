"""Rolls back and is killed with -9 on the way: once at each step, in a process of its own. For `test_kill`.

usage: kill_child.py DIRECTORY [file-first]
  For point 0, 1, 2, …: a store and a last-good file in a directory of its own, a guard's rollback, and a SIGKILL just
  before the step of that number: a statement of SQL that writes, then a step of writing the file. Of each kind it ends
  after the point that none reached. The two kinds are counted apart, for they run in two threads.
  `file-first`: the store is slow, so that the file is written before anything is published.
  Tells each point, and whether it was killed there and before what, as a JSON line on stdout.
"""

import asyncio
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memos_llm.control import Live, last_good
from memos_llm.core.commands import Rollback
from memos_llm.core.events import Bus
from memos_llm.core.flags import GLOBAL, Flags, fresh
from memos_llm.core.verdicts import Evidence, Trigger
from memos_llm.store import SqliteStore

FILE = ("fsync", "replace")  # of `os`


class Steps:
    """Kills this process before step number `point` of its kind, counted from `arm`."""

    def __init__(self, told: Path, kind: str, file: Path | None) -> None:
        self._told, self._kind, self._file, self._left = told, kind, file, -1

    def arm(self, point: int) -> None:
        self._left = point

    def step(self, what: str) -> None:
        if self._left < 0 or what.startswith(("PRAGMA", "SELECT")):  # no steps: they only look
            return
        if self._file is not None and what not in FILE:
            while not last_good.read(self._file).cuts:  # on the store's own thread
                time.sleep(0.002)
            self._file = None
        if (what in FILE) != (self._kind == "file"):
            return
        if self._left == 0:
            self._told.write_text(" ".join(what.split())[:60])
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        self._left -= 1


def watch(steps: Steps) -> None:
    """Have every statement of SQL, and what makes the last-good file, be a step."""
    connect = sqlite3.connect

    def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(steps.step)
        return connection

    sqlite3.connect = connected  # type: ignore[assignment]  # this process is made to be killed
    for name in FILE:
        setattr(os, name, _stepping(getattr(os, name), name, steps))


def _stepping(call: Callable[..., Any], name: str, steps: Steps) -> Callable[..., Any]:
    def stepping(*arguments: Any) -> Any:
        steps.step(name)
        return call(*arguments)

    return stepping


async def roll_back(directory: Path, kind: str, point: int, file_first: bool) -> None:
    store, file = SqliteStore(directory / "x.db"), directory / "last_good.json"
    steps = Steps(directory / "killed-before", kind, file if file_first else None)
    watch(steps)
    live = Live(
        store,
        Bus(),
        instance_id="doomed",
        kind="test",
        last_good=file,
        heartbeat_s=60,
        seed=lambda: fresh("i", "s", 500_000, "vllm"),
    )
    await live.start()
    while last_good.read(file).published.revision < 1 or not await store.instances():
        await asyncio.sleep(0.005)
    evidence = Evidence(
        at=time.time(), by="doomed", scope=GLOBAL, trigger=Trigger.TIMEOUTS, rule="3 in a row", limit=3.0, n=3, k=3
    )
    steps.arm(point)
    live.cut(
        Rollback(provider="vllm", incident="inc-doomed", trigger=Trigger.TIMEOUTS, automatic=True, evidence=evidence)
    )
    while not done(await store.load(), file):
        await asyncio.sleep(0.005)


def done(flags: Flags | None, file: Path) -> bool:
    kept = last_good.read(file)
    return flags is not None and flags.scope(GLOBAL).latch is not None and kept.published == flags and not kept.cuts


def main(base: Path, kind: str, file_first: bool) -> None:
    for point in range(1_000):
        directory = base / f"{kind}-{point:03}"
        child = os.fork()
        if child == 0:
            directory.mkdir(parents=True)
            asyncio.run(asyncio.wait_for(roll_back(directory, kind, point, file_first), 30))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status)
        before = (directory / "killed-before").read_text() if killed else ""
        told = {"directory": str(directory), "killed": killed, "status": status, "before": before}
        print(json.dumps(told), flush=True)
        if not killed:
            return


if __name__ == "__main__":
    for kind in ("sql", "file"):
        main(Path(sys.argv[1]), kind, "file-first" in sys.argv[2:])
