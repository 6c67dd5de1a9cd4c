"""What must be as at the start once all is calm, and what the gateway must have told: counters, logs, store.

A killed worker takes what it had not yet written with it, so requests that ended around a kill may be missing in the
log; nothing else may.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.asking import CANARY
from chaos.judging import Verdict
from chaos.servers import EMULATED, Servers, holds
from chaos.truth import Truth
from chaos.wire import Exchange

SETTLES_S = 12.0  # idle upstream connections live for 4 s; a probe comes each 5 s
SPARE_SOCKETS = 4  # of a worker: probes under way, and connections that a probe left idle
METRICS = "memos_llm-metrics-"  # files of counters: one for each kind and place, opened when it is first needed
SPARE_FILES = 2  # that are open while they are written
SPARE_TASKS = 3
TELLS_S = 3.0  # a worker, of its tasks
RSS_FACTOR, RSS_SPARE_KB = 1.25, 16_384
ALARMS = frozenset({"internal-error", "log-lines-dropped", "library", "worker-failed"})
LINGER_S = 1.0  # around a kill: what a worker had not yet written
_SAMPLE = re.compile(r"^memos_llm_(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Body:
    """One process: sockets, other descriptors, resident memory in kB, tasks by name."""

    pid: int
    sockets: int
    files: int
    rss_kb: int
    tasks: Mapping[str, int]


async def bodies(servers: Servers) -> list[Body]:
    """The gateway's workers as they are now."""
    return [await asyncio.to_thread(_body, servers, pid) for pid in servers.workers()]


def _body(servers: Servers, pid: int) -> Body:
    path = servers.folder / f"tasks-{pid}.json"
    path.unlink(missing_ok=True)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + TELLS_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    tasks = json.loads(path.read_text()) if path.exists() else {}
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(os.readlink(link))
    sockets = sum(link.startswith("socket:") for link in links)
    files = sum(METRICS not in link for link in links) - sockets
    return Body(pid, sockets, files, rss_kb(pid), tasks)


def rss_kb(pid: int) -> int:
    """Resident memory now; 0 for a process that is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0


@dataclass(frozen=True)
class Start:
    """The most that a worker had: at rest before the first request, and (what is opened when it is first needed:
    files of metrics, memory) after some traffic."""

    sockets: int
    tasks: int
    files: int
    rss_kb: int
    workers: int


def at_start(rest: list[Body], warm: list[Body]) -> Start:
    tasks = max(sum(body.tasks.values()) for body in rest)
    sockets = max(body.sockets for body in rest)
    return Start(sockets, tasks, max(body.files for body in warm), max(body.rss_kb for body in warm), len(rest))


async def settled(servers: Servers, start: Start) -> tuple[list[str], list[Body]]:
    """What has not come back to the start after a while, in words, and the last look."""
    deadline = time.monotonic() + SETTLES_S
    while True:
        now = await bodies(servers)
        left = [*_leaks(start, now), *await _upstream(servers)]
        if not left or time.monotonic() > deadline:
            return left, now
        await asyncio.sleep(0.25)


def _leaks(start: Start, now: list[Body]) -> Iterable[str]:
    limit_kb = int(start.rss_kb * RSS_FACTOR) + RSS_SPARE_KB
    for body in now:
        if body.sockets > start.sockets + SPARE_SOCKETS:
            yield f"worker {body.pid} has {body.sockets} sockets, at rest {start.sockets}"
        if body.files > start.files + SPARE_FILES:
            yield f"worker {body.pid} has {body.files} open files, after warming up {start.files}"
        if not body.tasks:
            yield f"worker {body.pid} tells nothing of its tasks"
        if sum(body.tasks.values()) > start.tasks + SPARE_TASKS:
            yield f"worker {body.pid} has the tasks {dict(body.tasks)}, at rest {start.tasks}"
        if body.rss_kb > limit_kb:
            yield f"worker {body.pid} holds {body.rss_kb} kB, after warming up {start.rss_kb} (limit {limit_kb})"
    if len(now) != start.workers:
        yield f"{len(now)} workers, at the start {start.workers}"


async def _upstream(servers: Servers) -> list[str]:
    """The back ends' side: nothing in flight, no connection but those of probes."""
    found = []
    for name in EMULATED:
        counters = await servers.counters(name)
        port = int(servers.urls[name].rpartition(":")[2])
        held = {pid: holds(pid, port) for pid in servers.workers()}
        if counters["in_flight"] > 0:
            found.append(f"{name} has {counters['in_flight']} requests in flight; connections by worker: {held}")
        if counters["connections_open"] > 2 * len(held) + 1:  # of probes; and ours, that asks
            found.append(f"{name} has {counters['connections_open']} connections; by worker: {held}")
    return found


# Counters


@dataclass
class Tally:
    """What the clients know.

    Attributes:
        told: request id → what it came to, for requests that reached the engine for sure.
        unsure: ids that may or may not have: their client left, or their worker was killed.
    """

    told: dict[str, Verdict] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)
    ended: dict[str, float] = field(default_factory=dict)

    def add(self, exchange: Exchange, verdict: Verdict) -> None:
        if exchange.asked.wire == "meta":
            return
        self.ended[exchange.asked.id] = exchange.ended
        if verdict.kind == "left" or "worker killed" in verdict.why:
            self.unsure.add(exchange.asked.id)
        else:
            self.told[exchange.asked.id] = verdict


def samples(text: str, name: str) -> list[tuple[dict[str, str], float]]:
    """All samples of one metric: labels and value."""
    return [
        (dict(_LABEL.findall(labels or "")), float(value))
        for found, labels, value in _SAMPLE.findall(text)
        if found == name
    ]


def counters(text: str, tally: Tally, truth: Truth) -> tuple[list[str], dict[str, Any]]:
    """What the metrics say wrongly, and what they say."""
    wrong = []
    requests = samples(text, "requests_total")
    infer = [(labels, value) for labels, value in requests if labels["operation"] != "passthrough"]
    total = sum(value for _, value in infer)
    ok = sum(value for labels, value in infer if labels["outcome"] == "ok")
    refused = sum(value for _, value in samples(text, "refused_requests_total"))
    near = sum(_near_kill(tally.ended[id], truth) for id in tally.told)
    at_least, at_most = len(tally.told) - near, len(tally.told) + len(tally.unsure)
    right = sum(verdict.kind == "right" for verdict in tally.told.values())
    if not at_least <= total + refused <= at_most:
        wrong.append(f"requests_total says {total:g} (+{refused:g} refused), the clients {at_least} to {at_most}")
    if not right - near <= ok <= right + len(tally.unsure):
        wrong.append(f"requests_total of outcome ok says {ok:g}, the clients {right} (+{len(tally.unsure)} unsure)")
    for labels, value in samples(text, "inflight_requests"):
        if value:
            wrong.append(f"inflight_requests of {labels['provider']} is {value:g} with nobody there")
    up = [labels for labels, value in samples(text, "provider_up") if not value]
    if up:
        wrong.append(f"provider_up is 0 for {up} with all of them up")
    return wrong, {
        "requests_total": total,
        "ok": ok,
        "refused": refused,
        "clients": len(tally.told),
        "unsure": len(tally.unsure),
    }


def _near_kill(ended: float, truth: Truth) -> bool:
    return any(abs(ended - kill.at) <= LINGER_S for kill in truth.kills)


# Logs and store


def logs(path: Path, tally: Tally, truth: Truth, excused: frozenset[str]) -> tuple[list[str], dict[str, Any]]:
    """What the gateway's log says wrongly: it has one line for each request, and no prompt, traceback or failure.

    Args:
        excused: errors that it may tell of its own parts where the disk was full.
    """
    text = path.read_text(errors="replace")
    wrong, lines, events = [], Counter[str](), Counter[str]()
    for line in text.splitlines():
        try:
            document = json.loads(line)
        except ValueError:
            if not line.startswith("listening on "):
                wrong.append(f"a line of the log is no JSON: {line[:160]!r}")
            continue
        events[document["event"]] += 1
        if document["event"] == "request":
            lines[document["request_id"]] += 1
            wrong += _line(document, tally)
        elif document["event"] in ALARMS and not (document.get("error") in excused and _was_full(truth)):
            wrong.append(f"the log says {line[:300]}")
    wrong += [f"the log has {count} lines for {id}" for id, count in lines.items() if count > 1]
    wrong += [
        f"the log has no line for {id}" for id in tally.told if not lines[id] and not _near_kill(tally.ended[id], truth)
    ]
    if "Traceback" in text:
        wrong.append("the log has a traceback")
    return wrong[:20], dict(events)


def _was_full(truth: Truth) -> bool:
    return any(span.what == "disk full" for span in truth.spans)


def _line(line: Mapping[str, Any], tally: Tally) -> Iterable[str]:
    verdict = tally.told.get(line["request_id"])
    if verdict is None or verdict.wrong:
        return
    if verdict.kind == "right" and (line["outcome"], line["provider"]) != ("ok", verdict.why):
        yield f"{line['request_id']} got a right answer of {verdict.why}, the log says {line}"
    if verdict.kind == "excused" and line["outcome"] == "ok":
        yield f"{line['request_id']} got an error, the log says ok"


def emulators(folder: Path) -> list[str]:
    """An emulator says where it listens and nothing else."""
    found = []
    for name in EMULATED:
        text = (folder / f"{name}.log").read_text(errors="replace")
        other = [line for line in text.splitlines() if line and not line.startswith("listening on ")]
        if other:
            found.append(f"the emulator {name} says {other[-1][:200]!r} ({len(other)} lines)")
    return found


def canaries(folder: Path, seed: int) -> list[str]:
    """Files of the product that hold a piece of a prompt."""
    word = f"{CANARY}-{seed:x}".encode()
    files = [*folder.glob("*.log"), *folder.glob("store/*"), *folder.glob(".local/**/*")]
    return [f"{path.name} holds a prompt" for path in files if path.is_file() and word in path.read_bytes()]


def store(path: Path, changes: int) -> list[str]:
    """What is wrong with the store's file and its history."""
    wrong = []
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        (verdict,) = db.execute("PRAGMA integrity_check").fetchone()
        revisions = [row[0] for row in db.execute("SELECT revision FROM history ORDER BY revision")]
        (revision,) = db.execute("SELECT revision FROM flags").fetchone()
    if verdict != "ok":
        wrong.append(f"PRAGMA integrity_check says {verdict}")
    if revisions != list(range(1, revision + 1)):
        wrong.append(f"the history has the revisions {revisions}, the flags are at {revision}")
    if changes + 1 != revision:
        wrong.append(f"{changes} changes were seen, the flags are at revision {revision}")
    return wrong
