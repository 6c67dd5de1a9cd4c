"""The servers under chaos, each a process as a user starts it: emulators of both back ends, a gateway with two workers.

Everything lives in one folder: configuration, logs, the home of the children, and the store, on a small file system of
its own where we may mount one (then a full disk is a really full one). Otherwise a full disk is a limit on the size of
the gateway's files (prlimit): it cannot write beyond where it is, and its log goes through a pipe, which has no such
limit.
"""

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from chaos.asking import CHAT_MODEL, EMBED_MODEL, VLLM_CHAT_MODEL, VLLM_EMBED_MODEL
from memos_llm.cli.demo.processes import Child, Processes, tail
from memos_llm.cli.demo.stack import llmctl
from memos_llm.core.flags import Flags
from memos_llm.store import open_store

TTFT_S, INTER_TOKEN_S = 0.01, 0.004
DISK = "12m"
START_S, CONTROL_S = 40.0, 20.0
WORKERS = 2
HOOK = Path(__file__).parent / "hook"
_LISTENING = re.compile(r"listening on (http://[\d.]+:\d+)")
_EMULATE = "import sys, json; from memos_llm.emulators import run; run(**json.loads(sys.argv[1]))"
EMULATED: Mapping[str, Mapping[str, Any]] = {
    "ollama": {"engine": "ollama", "models": [CHAT_MODEL, EMBED_MODEL], "options": {"num_parallel": 32}},
    "vllm-1": {"engine": "vllm", "models": [VLLM_CHAT_MODEL]},
    "vllm-2": {"engine": "vllm", "models": [VLLM_CHAT_MODEL]},
    "vllm-embed": {"engine": "vllm", "models": [VLLM_EMBED_MODEL], "options": {"task": "embed"}},
}
LIMITS = {"connect_s": 3, "ttft_s": 4, "answer_s": 4, "idle_s": 4, "stall_s": 6, "total_s": 14}

Document = dict[str, Any]


class Failed(Exception):
    """The run itself could not go on."""


class Servers:
    """All processes. `gateway` and `urls` are known once `start` has returned."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder, self.config = folder, folder / "memos_llm.yaml"
        self.urls: dict[str, str] = {}
        self.children: dict[str, Child] = {}
        self.gateway = ""
        self.disk = Disk(folder / "store")
        self.clock = folder / "clock"
        self._processes = processes
        fresh = httpx.Limits(max_keepalive_connections=0)  # a connection that is kept may be closed under a request
        self._http = httpx.AsyncClient(timeout=CONTROL_S, trust_env=False, limits=fresh)

    @staticmethod
    def environment(folder: Path) -> dict[str, str]:
        """Of every child."""
        foreign = ("MEMOS_LLM_", "OLLAMA_", "VLLM_", "PYTEST_", "COV_")
        own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return own | {
            "HOME": str(folder),
            "NO_COLOR": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(HOOK), own.get("PYTHONPATH")))),
            "CHAOS_FOLDER": str(folder),
            "MEMOS_LLM_CONFIG": str(folder / "memos_llm.yaml"),
        }

    @property
    def store_url(self) -> str:
        return f"sqlite:///{self.folder / 'store' / 'memos_llm.db'}"

    @property
    def store_path(self) -> Path:
        return self.folder / "store" / "memos_llm.db"

    async def start(self) -> None:
        """Raises:
        Failed: one did not come up.
        """
        self.set_clock(0.0)
        self.disk.open()
        await asyncio.gather(*(self.emulate(name) for name in EMULATED))
        self.write_config(self.document())
        command = llmctl("serve", "--seed", "--workers", str(WORKERS), "--port", "0")
        self.children["gateway"] = await self._processes.start("gateway", self.disk.limited(command))
        self.gateway = await _address(self.children["gateway"])
        await self._healthy()

    async def aclose(self) -> int | None:
        """End the gateway; its exit code."""
        await self._http.aclose()
        child = self.children.get("gateway")
        if child is None:
            return None
        await child.close()
        code: int | None = child._process.returncode
        return code

    # Back ends

    async def emulate(self, name: str) -> None:
        """Start an emulator, where it was if it was there before."""
        port = int(self.urls[name].rpartition(":")[2]) if name in self.urls else 0
        given = {"port": port, "ttft_s": TTFT_S, "inter_token_s": INTER_TOKEN_S, **EMULATED[name]}
        child = await self._processes.start(name, [sys.executable, "-P", "-c", _EMULATE, json.dumps(given)])
        self.children[name] = child
        self.urls[name] = await _address(child)

    async def break_(self, name: str, spec: str, for_s: float) -> None:
        """Set a fault for some seconds."""
        whole = f"{spec}{',' if ':' in spec else ':'}for_s={for_s}"
        answer = await self._http.post(f"{self.urls[name]}/_emulator/faults", json={"add": [whole]})
        if answer.status_code != 200:
            raise Failed(f"{name} does not know {whole!r}: {answer.text}")

    async def mend(self, name: str) -> None:
        await self._http.delete(f"{self.urls[name]}/_emulator/faults")

    async def counters(self, name: str) -> Document:
        document: Document = (await self._http.get(f"{self.urls[name]}/_emulator/counters")).json()
        return document

    # The gateway

    @property
    def gateway_port(self) -> int:
        return int(self.gateway.rpartition(":")[2])

    def workers(self) -> list[int]:
        """Process ids of the gateway's workers, oldest first."""
        parent = self.children["gateway"].pid
        return [pid for pid in _children(parent) if _is_python(pid)]

    async def get(self, path: str) -> httpx.Response:
        return await self._http.get(self.gateway + path)

    async def flags(self) -> Flags:
        """As they stand in the store.

        Raises:
            LLMError: the store does not answer.
        """
        store = open_store(self.store_url)
        try:
            flags = await store.load()
        finally:
            await store.aclose()
        if flags is None:
            raise Failed("the store has lost its flags")
        return flags

    async def llmctl(self, *arguments: str) -> tuple[int, bytes, bytes]:
        """Exit code, stdout, stderr; -1 for one that took too long and was killed."""
        process = await asyncio.create_subprocess_exec(
            *llmctl(*arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment(self.folder),
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(START_S):
                out, err = await process.communicate()
        except TimeoutError:
            return -1, b"", f"took more than {START_S:g} s".encode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        with (self.folder / "commands.log").open("ab") as log:
            log.write(f"$ llmctl {' '.join(arguments)}  -> {process.returncode}\n".encode() + err + out)
        return process.returncode or 0, out, err

    def set_clock(self, offset_s: float) -> None:
        if not self.clock.exists():
            self.clock.write_bytes(bytes(8))
        with self.clock.open("r+b") as file:
            file.write(struct.pack("<d", offset_s))

    # Configuration

    def document(self, *, pinned: bool = False, replicas: int = 2, limits: Mapping[str, float] = LIMITS) -> str:
        """The configuration file, in JSON, which is YAML."""
        chat = [{"url": self.urls[f"vllm-{n + 1}"], "models": [VLLM_CHAT_MODEL]} for n in range(replicas)]
        endpoints = [*chat, {"url": self.urls["vllm-embed"], "models": [VLLM_EMBED_MODEL]}]
        components = {"analysis": "share", "evaluation": "baseline" if pinned else "share"}
        document: Document = {
            "providers": {
                "ollama": {"kind": "ollama", "base_url": self.urls["ollama"], "timeouts": dict(limits)},
                "vllm": {"kind": "vllm", "endpoints": endpoints, "timeouts": dict(limits)},
            },
            "baseline": "ollama",
            "candidate": "vllm",
            "fallback": ["ollama", "vllm"],
            "models": {CHAT_MODEL: {"vllm": VLLM_CHAT_MODEL}, EMBED_MODEL: {"vllm": VLLM_EMBED_MODEL}},
            "routing": {"share": 0.5, "components": components},
            "rollback": {"enabled": False},
            "timeouts": dict(limits),
            "store": self.store_url,
            "gateway": {"drain_s": 5},
        }
        return json.dumps(document, indent=1)

    def write_config(self, text: str) -> None:
        """As an editor does it: a new file in place of the old one."""
        new = self.config.with_suffix(".new")
        new.write_text(text)
        new.replace(self.config)

    async def _healthy(self) -> None:
        deadline = time.monotonic() + START_S
        services: Mapping[str, str] = {}
        while set(services.values()) != {"healthy"}:
            if time.monotonic() > deadline:
                raise Failed(f"not all is healthy: {services}; {tail(self.children['gateway'].log)}")
            await asyncio.sleep(0.1)
            services = (await self.get("/health")).json()["services"]


class Disk:
    """The store's disk, which can be full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounted = False

    @property
    def way(self) -> str:
        """How it is made full, in words."""
        return f"a tmpfs of {DISK} that is filled up" if self.mounted else "prlimit(RLIMIT_FSIZE) on the gateway"

    @property
    def excused(self) -> frozenset[str]:
        """Errors that it may tell of itself: where no file can grow, its metrics and its last-good file cannot."""
        return frozenset({"StoreUnreachable"} if self.mounted else {"StoreUnreachable", "OSError"})

    def open(self) -> None:
        self.folder.mkdir(mode=0o700)
        options = f"size={DISK},mode=0700,uid={os.getuid()},gid={os.getgid()}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        if os.environ.get("CHAOS_DISK") == "limit":
            return
        with contextlib.suppress(OSError):
            self.mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0

    def limited(self, command: list[str]) -> list[str]:
        """The gateway's command, so that it can log while its files may not grow."""
        if self.mounted:
            return command
        return ["bash", "-c", 'exec "$@" 2> >(exec cat >&2)', "gateway", *command]

    def fill(self, pids: list[int]) -> None:
        if self.mounted:
            with contextlib.suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(65536))
            with contextlib.suppress(OSError), (self.folder / "filler").open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(1))
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))

    def free(self, pids: list[int]) -> None:
        if self.mounted:
            (self.folder / "filler").unlink(missing_ok=True)
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)
            self.mounted = False


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _is_python(pid: int) -> bool:
    """Not the `cat` that a limited gateway logs through."""
    with contextlib.suppress(OSError):
        return "python" in Path(f"/proc/{pid}/comm").read_text()
    return False


def freeze(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def client_ports(pid: int, port: int) -> frozenset[int]:
    """The clients' ports of the connections that a gateway worker holds, from /proc (proc(5), /proc/net/tcp)."""
    inodes = _sockets(pid)
    return frozenset(far for near, far, inode in _connections() if near == port and inode in inodes)


def holds(pid: int, port: int) -> int:
    """How many connections to a port a process has."""
    inodes = _sockets(pid)
    return sum(far == port and inode in inodes for _, far, inode in _connections())


def _sockets(pid: int) -> set[str]:
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    return inodes


def _connections() -> Iterator[tuple[int, int, str]]:
    """Every TCP connection of this machine: local port, the other port, inode."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        yield int(fields[1].partition(":")[2], 16), int(fields[2].partition(":")[2], 16), fields[9]


async def _address(child: Child) -> str:
    deadline = time.monotonic() + START_S
    while not (found := _LISTENING.search(child.said)):
        if not child.running or time.monotonic() > deadline:
            raise Failed(f"{child.name} did not start: {tail(child.log)}")
        await asyncio.sleep(0.02)
    return found[1]
