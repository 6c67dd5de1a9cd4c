"""The demo's child processes: started with a log file each, watched, killed, and none left behind.

Every child leads a process group of its own, so that Ctrl-C in the terminal reaches the demo alone and the order of
the end is ours; closing signals the whole group, so that workers of a child end with it.
"""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from memos_llm.cli.demo.failures import DemoFailed

GRACE_S = 4.0  # for a child to end by itself before it is killed
LOG_TAIL_CHARS = 600


def is_free(port: int) -> bool:
    """Whether a server could listen there. A port with connections in TIME_WAIT is free, as it is for the server."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class Child:
    """One running child."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path, log_from: int = 0) -> None:
        self.name, self.log, self.pid = name, log, process.pid
        self.expected_to_end = False
        self._process = process
        self._log_from = log_from

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    @property
    def said(self) -> str:
        """What this child has written to its log so far."""
        return self.log.read_bytes()[self._log_from :].decode(errors="replace")

    async def watch(self) -> None:
        """Returns once the child has ended as it was told to.

        Raises:
            DemoFailed: it ended by itself.
        """
        code = await self._process.wait()
        if not self.expected_to_end:
            raise DemoFailed(f"{self.name} ended by itself (exit code {code}): {tail(self.log)}")

    def kill(self) -> None:
        """`kill -9`, without a warning."""
        self._end(signal.SIGKILL)

    async def close(self) -> None:
        """SIGTERM, some patience, SIGKILL."""
        self._end(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await self._process.wait()
        self._end(signal.SIGKILL)
        await self._process.wait()

    def _end(self, number: signal.Signals) -> None:
        self.expected_to_end = True
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
            os.killpg(self.pid, number)


class Processes:
    """All children of one demo. An async context manager: none of them outlives it.

    Args:
        folder: where the logs go. environment: of every child.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, dict(environment)
        self._children: list[Child] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(child.close() for child in self._children))

    async def start(self, name: str, command: Sequence[str]) -> Child:
        """Start a child; a restart goes on in the same log."""
        path = self._folder / f"{name}.log"
        log_from = path.stat().st_size if path.exists() else 0
        with path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        child = Child(name, process, path, log_from)
        self._children.append(child)
        return child

    async def run(self, name: str, command: Sequence[str], limit_s: float) -> "Finished":
        """Run a command to its end.

        Raises:
            DemoFailed: it failed, or took longer than `limit_s`.
        """
        started_s = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        child = Child(name, process, self._folder / "commands.log")
        self._children.append(child)
        child.expected_to_end = True
        try:
            async with asyncio.timeout(limit_s):
                out, err = await process.communicate()
        except TimeoutError:
            raise DemoFailed(f"`{name}` took longer than {limit_s:g} s") from None
        self._children.remove(child)
        _note(child.log, name, out, err)
        if process.returncode:
            raise DemoFailed(f"`{name}` failed (exit code {process.returncode}): {err.decode(errors='replace')[-300:]}")
        return Finished(out, time.monotonic() - started_s)


class Finished:
    """A command that succeeded: what it printed, and how long it took."""

    def __init__(self, out: bytes, duration_s: float) -> None:
        self.out, self.duration_s = out, duration_s


def tail(log: Path) -> str:
    """The end of a log, on one line."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return " / ".join(text[-LOG_TAIL_CHARS:].split("\n")).strip(" /") or "its log is empty"


def _note(log: Path, name: str, out: bytes, err: bytes) -> None:
    with log.open("ab") as file:
        file.write(b"$ " + name.encode() + b"\n" + err + out)
