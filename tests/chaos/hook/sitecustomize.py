"""Runs in every process of ours under chaos, before anything else: a clock that can be set, and a count of tasks.

The product reads the wall clock through `time.time` and `time.time_ns`, so moving these two moves its clock: heartbeats
and who is live, hold-downs, history, log lines, `created_at`. SQLite is asked for no time. Two places read
`datetime.now`, which cannot be replaced, and stay: how long Ollama keeps a model, and a Retry-After that is a date. The
monotonic clock stays too, as it does when an operator sets the time. On SIGUSR1 a process writes how many asyncio tasks
it has, by name.
"""

import asyncio
import json
import mmap
import os
import signal
import struct
import time
from collections import Counter
from pathlib import Path
from types import FrameType

FOLDER = os.environ.get("CHAOS_FOLDER", "")


def _shift_clock(path: Path) -> None:
    with path.open("rb") as file:
        offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    real, real_ns, read = time.time, time.time_ns, struct.Struct("<d").unpack_from
    time.time = lambda: real() + float(read(offset)[0])
    time.time_ns = lambda: real_ns() + int(read(offset)[0] * 1e9)


def _name(task: "asyncio.Task[object]") -> str:
    name = task.get_name()
    return str(getattr(task.get_coro(), "__qualname__", "?")) if name.startswith("Task-") else name


def _tell_tasks(number: int, frame: FrameType | None) -> None:
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:  # no loop runs here
        return
    path = Path(FOLDER) / f"tasks-{os.getpid()}.json"
    path.with_suffix(".new").write_text(json.dumps(Counter(_name(task) for task in tasks)))
    path.with_suffix(".new").replace(path)


if FOLDER:
    _shift_clock(Path(FOLDER) / "clock")
    signal.signal(signal.SIGUSR1, _tell_tasks)
