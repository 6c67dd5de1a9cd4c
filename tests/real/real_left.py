"""What is left behind: connections of a gateway that nobody uses any more, and processes."""

import asyncio
import os
import re
from collections.abc import Mapping
from pathlib import Path

from real_servers import Servers

PATIENCE_S = 30.0
ESTABLISHED, TIME_WAIT, LISTEN = "01", "06", "0A"
IDLE_MOST = 16
"""Connections to back ends that may be kept for the next request."""


async def connections(gateway: int, port: int) -> list[str]:
    """What is wrong with the connections of a gateway that has no clients any more; waits for it to close them."""
    problems: list[str] = []
    for _ in range(round(PATIENCE_S / 0.2)):
        problems = _wrong(sockets(gateway), port)
        if not problems:
            return []
        await asyncio.sleep(0.2)
    return problems


def _wrong(held: list[tuple[str, int, int]], port: int) -> list[str]:
    clients = [state for state, local, _ in held if local == port and state != LISTEN]
    upstream = [state for state, local, _ in held if local != port]
    problems = [f"{len(clients)} connections of clients"] if clients else []
    if half := [state for state in upstream if state != ESTABLISHED]:
        problems.append(f"half-closed connections to back ends, states {half}")
    if len(upstream) > IDLE_MOST:
        problems.append(f"{len(upstream)} connections to back ends")
    return problems


def sockets(pid: int) -> list[tuple[str, int, int]]:
    """State, local and remote port of each TCP socket that a process holds (proc(5))."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry))
        except FileNotFoundError:
            continue
        if match:
            found.append(match[1])
    return [told for inode, told in _table(f"/proc/{pid}/net/tcp").items() if inode in found]


def _table(path: str) -> dict[str, tuple[str, int, int]]:
    rows = [line.split() for line in Path(path).read_text().splitlines()[1:]]
    return {row[9]: (row[3], int(row[1].split(":")[1], 16), int(row[2].split(":")[1], 16)) for row in rows}


def processes(gateway: int, servers: Servers, before: Mapping[str, int]) -> list[str]:
    """Processes of the gateway that outlive it, and more of a server than there were."""
    left = [] if not Path(f"/proc/{gateway}").exists() else [f"the gateway, pid {gateway}"]
    for name, server in servers.running().items():
        now = len(server.processes())
        if now > before[name] + 1:  # Ollama may have loaded a model meanwhile
            left.append(f"{now} processes of {name}, {before[name]} before")
        open_still = [row for row in _table("/proc/net/tcp").values() if server.port in row[1:]]
        states = [row[0] for row in open_still if row[0] not in (TIME_WAIT, LISTEN)]
        if states:
            left.append(f"{len(states)} connections to {name}, states {states}")
    return left
