"""Where the metrics of several worker processes meet: a folder of memory-mapped files, written through at once.

What a worker has counted outlives it, even killed: its successor in the same place counts on in the same files. Its
gauges do not: they told how it was, and it is no more. Any worker can show the sum.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct
from prometheus_client import values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

Merge = Literal["livesum", "livemax", "livemin", "livemostrecent"]
"""How the values of a gauge become one: only those of living workers count."""

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # where the library looks for it
TRIES = 3  # a file that was created a moment ago has no head yet


class Shared(Struct, frozen=True, kw_only=True):
    """The folder, this worker's place in it (unique among the living; no `_`), and how many there are."""

    folder: Path
    place: str
    workers: int


def join(shared: Shared) -> None:
    """Let this process's metrics live in the folder; before the first of them is made. There is no way back."""
    os.environ[FOLDER] = str(shared.folder)
    # by place and not by process id: else every restart would leave another set of files to be read by each scrape
    values.ValueClass = values.MultiProcessValue(lambda: shared.place)  # type: ignore[no-untyped-call]  # the library's own


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
