"""The processes of a run: who is measured on which core, and what CPU time each has used.

What is measured has the first core to itself; everything else shares the others. The CPU clock of a process counts
all its threads, in nanoseconds (Linux: clock_getcpuclockid(3)).
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from memos_llm.bench.wire import MODEL, VLLM_MODEL

START_S = 60.0


class NotStarted(Exception):
    """A process of the run ended or stayed silent before it was of use."""


class Cores:
    """Which core is for what is measured and which are for the rest; one and the same when there is only one."""

    def __init__(self) -> None:
        self.all = sorted(os.sched_getaffinity(0))
        self.measured = {self.all[0]}
        self.rest = set(self.all[1:]) or self.measured

    @contextmanager
    def use(self, cores: set[int]) -> Iterator[None]:
        """What is started inside inherits these cores."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


class Program:
    """A child process. Its stdin and stdout are ours, its stderr goes to a file."""

    def __init__(self, name: str, arguments: Sequence[str], home: Path) -> None:
        self.name, self._stderr = name, home / f"{name}.stderr"
        with self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "HOME": str(home), "PYTHONUNBUFFERED": "1"},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_ns(self) -> int:
        """CPU time of all threads so far, those that ended included."""
        return time.clock_gettime_ns(~self._process.pid << 3 | 2)

    def line(self) -> str:
        """The next line that it prints.

        Raises:
            NotStarted: it ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self.failed("ended")
        return line.strip()

    def tell(self, line: str) -> str:
        """Write a line to it and return the line that it answers with."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.line()

    def ask_switch(self, line: str) -> str:
        """What the switch of its guard answers (`Switch.answer`), less the line; what else it prints is passed over.

        Raises:
            NotStarted: it ended instead.
        """
        said = self.tell(line)
        while said.split()[:1] != [line]:
            said = self.line()
        return said.removeprefix(line)

    def alive(self) -> bool:
        return self._process.poll() is None

    def failed(self, how: str) -> NotStarted:
        tail = self._stderr.read_text(errors="replace")[-2000:]
        return NotStarted(f"the {self.name} {how}; its stderr ends with:\n{tail}")


def upstream(home: Path, tick_ms: float) -> Program:
    return Program("upstream", ["-m", "memos_llm.bench.upstream", str(tick_ms)], home)


def passthrough(home: Path, upstream_port: int) -> Program:
    return Program("passthrough", ["-m", "memos_llm.bench.passthrough", f"http://127.0.0.1:{upstream_port}"], home)


def gateway(home: Path, config: Path) -> Program:
    """The product as it ships, through its own command."""
    return Program("gateway", ["-m", "memos_llm", "serve", "--seed", "--config", str(config)], home)


def switched(home: Path, config: Path) -> Program:
    """The same, with its guard on a switch."""
    return Program("switched", ["-m", "memos_llm.bench.switched", str(config)], home)


def bare(home: Path, upstream_port: int) -> Program:
    return Program("bare", ["-m", "memos_llm.bench.inprocess", "bare", f"http://127.0.0.1:{upstream_port}"], home)


def router(home: Path, config: Path) -> Program:
    return Program("router", ["-m", "memos_llm.bench.inprocess", "router", str(config)], home)


def configuration(home: Path, *, ollama_port: int, vllm_port: int, gateway_port: int) -> Path:
    """A migration half done: both arms serve, the candidate under its own name; one component is pinned to it."""
    home.mkdir(exist_ok=True)
    file = home / "memos_llm.yaml"
    file.write_text(
        f"""\
providers:
  ollama:
    kind: ollama
    base_url: http://127.0.0.1:{ollama_port}
  vllm:
    kind: vllm
    base_url: http://127.0.0.1:{vllm_port}
models:
  {MODEL}:
    vllm: {VLLM_MODEL}
routing:
  share: 0.5
  components:
    translated: vllm
store: sqlite:///{home}/memos_llm.db
gateway:
  port: {gateway_port}
"""
    )
    return file
