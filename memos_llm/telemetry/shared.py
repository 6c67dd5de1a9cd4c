"""Where the metrics of several worker processes meet: a folder of memory-mapped files, written through at once.

What a worker has counted outlives it, even killed: its successor in the same place counts on in the same files. Its
gauges do not: they told how it was, and it is no more. Any worker can show the sum.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct
from prometheus_client import values
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

Merge = Literal["livesum", "livemax", "livemin", "livemostrecent"]
"""How the values of a gauge become one: only those of living workers count."""

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # where the library looks for it
ROOM_BYTES = 65_536  # of a new file; doubled when it is full
ENTRY_BYTES = 64  # of a value at most, besides its key: lengths, padding, the numbers
TRIES = 3  # a file that was created a moment ago has no head yet


class Shared(Struct, frozen=True, kw_only=True):
    """The folder, this worker's place in it (unique among the living; no `_`), and how many there are."""

    folder: Path
    place: str
    workers: int


def join(shared: Shared) -> None:
    """Let this process's metrics live in the folder; before the first of them is made. There is no way back."""
    os.environ[FOLDER] = str(shared.folder)
    values.MmapedDict = _Roomy  # type: ignore[attr-defined]  # where the library takes it from
    # by place and not by process id: else every restart would leave another set of files to be read by each scrape
    values.ValueClass = values.MultiProcessValue(lambda: shared.place)  # type: ignore[no-untyped-call]  # the library's own


class _Roomy(MmapedDict):
    """A file of values whose room is really there.

    The library's own files have holes, and to write into a hole on a full disk is not an error but the end of the
    process (SIGBUS, mmap(2)). Here it is an `OSError` where a new label set is to be counted: whoever is told of events
    is guarded against that, nothing has changed, and once there is space again it goes on.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            with open(filename, "ab") as file:
                _reserve(file.fileno(), ROOM_BYTES)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]  # the library's own

    def _init_value(self, key: str) -> None:
        while self._used + len(key.encode()) + ENTRY_BYTES > self._capacity:
            _reserve(self._f.fileno(), 2 * self._capacity)
            self._capacity *= 2
            self._m = mmap.mmap(self._f.fileno(), self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]  # the library's own


def _reserve(descriptor: int, size_bytes: int) -> None:
    """Have a file at least that long, without holes where the system can do that.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size_bytes)
    elif os.fstat(descriptor).st_size < size_bytes:
        os.ftruncate(descriptor, size_bytes)


def leave(folder: Path, place: str) -> None:
    """What the dead worker of a place was is told no more; what it counted stays. Called by its parent."""
    mark_process_dead(place, str(folder))  # type: ignore[no-untyped-call]  # the library's own


def families(folder: Path) -> Iterator[Metric]:
    """All workers' metrics as one, by name."""
    for remaining in reversed(range(TRIES)):
        try:
            merged = list(MultiProcessCollector(None, str(folder)).collect())  # type: ignore[no-untyped-call]  # the library's own
        except struct.error:
            if not remaining:
                raise
            continue
        yield from sorted(merged, key=lambda family: str(family.name))
        return
