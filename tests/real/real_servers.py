"""Starts and stops the real servers: an Ollama, a vLLM, and a vLLM for embeddings, all with the same tiny weights.

Each leads a session of its own, so that whatever it starts can be found again and nothing is left behind. Who runs is
in a state file beside the logs; a number there is believed only together with the time at which that process began.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import real_install
from real_install import CannotRun, say

OLLAMA, VLLM, EMBED = "ollama", "vllm", "vllm-embed"
CHAT_MODEL, EMBED_MODEL = "tiny", "tiny-embed"
SEEDS = {CHAT_MODEL: 0, EMBED_MODEL: 1}  # other weights, else Ollama would run both in one process
PLAIN_MODEL = "tiny-plain"  # at Ollama only: its template knows no tools
CONTEXT = 2048
DIMENSION = 256
PARALLEL = 16
READY_S = 300.0
STOP_S = 20.0
PLAIN = (
    "FROM tiny\n"
    'TEMPLATE """{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}'
    '<|im_start|>assistant\n"""\n'
)
_VLLM_ENV = {
    "VLLM_TARGET_DEVICE": "cpu",
    "OMP_NUM_THREADS": "1",  # with two threads on two busy cores a stream halves its speed
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True, slots=True)
class Server:
    """One running server. `began`: when its process did, in clock ticks since boot; `ready_s`: how long it took."""

    name: str
    url: str
    pid: int
    began: int
    version: str
    ready_s: float

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def alive(self) -> bool:
        return _began(self.pid) == self.began

    def processes(self) -> list[int]:
        """Itself and all that it started."""
        return [pid for pid in _pids() if _session(pid) == self.pid]


class Servers:
    """The servers of one cache folder.

    Args:
        cache: where binaries, weights, logs and the state file are.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.run = cache / "run"
        self._state = self.run / "servers.json"
        self._launched: dict[str, float] = {}

    def running(self) -> dict[str, Server]:
        """Those that run now."""
        if not self._state.exists():
            return {}
        known = [Server(**entry) for entry in json.loads(self._state.read_text())]
        return {server.name: server for server in known if server.alive()}

    def up(self) -> list[CannotRun]:
        """Install and start what does not run yet; what this machine cannot run is returned.

        Anything but that stops what was started here.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        before = self.running()
        try:
            return self._up(before)
        except BaseException:  # Ctrl-C too
            self.down([name for name in self.running() if name not in before])
            raise

    def _up(self, before: Mapping[str, Server]) -> list[CannotRun]:
        problems: list[CannotRun] = []
        started: list[Server] = []
        for name in (VLLM, EMBED, OLLAMA):  # vLLM first: its weights are made by the Python of its environment
            if name in before:
                continue
            try:
                real_install.check_machine("Ollama" if name == OLLAMA else "vLLM")
                started.append(self._launch(name, _free_port()))
            except CannotRun as problem:
                problems.append(problem)
        for server in reversed(started):  # Ollama is ready at once
            try:
                self.wait(server)
            except CannotRun as problem:
                problems.append(problem)
        return problems

    def restart(self, name: str, port: int) -> Server:
        """Start a server that was killed, where it was; wait until it is ready."""
        return self.wait(self._launch(name, port))

    def down(self, names: Sequence[str] | None = None) -> None:
        """Stop them, and see that no process is left.

        Raises:
            RuntimeError: one is, even after SIGKILL.
        """
        for server in self.running().values():
            if names is None or server.name in names:
                stop(server)
                self._forget(server.name)
                say(f"stopped {server.name}")

    # -- one server

    def _launch(self, name: str, port: int) -> Server:
        command, env = self._ollama(port) if name == OLLAMA else self._vllm(name, port)
        with (self.run / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["nice", "-n", "5", *command],
                env={**os.environ, **env},
                cwd=self.run,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        version = real_install.OLLAMA if name == OLLAMA else real_install.VLLM
        server = Server(name, f"http://127.0.0.1:{port}", process.pid, _began(process.pid) or 0, version, 0.0)
        self._launched[name] = time.monotonic()
        self._remember(server)
        return server

    def _ollama(self, port: int) -> tuple[list[str], dict[str, str]]:
        binary = real_install.ollama(self.cache)
        env = {
            "OLLAMA_HOST": f"127.0.0.1:{port}",
            "OLLAMA_MODELS": str(self.run / "ollama_models"),
            "OLLAMA_NUM_PARALLEL": str(PARALLEL),
            "OLLAMA_KEEP_ALIVE": "-1",
            "HOME": str(self.run),  # it writes a key pair there
        }
        return [str(binary), "serve"], env

    def _vllm(self, name: str, port: int) -> tuple[list[str], dict[str, str]]:
        python = real_install.vllm(self.cache)
        model = CHAT_MODEL if name == VLLM else EMBED_MODEL
        weights = self.weights(python, model)
        command = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(weights)]
        command += ["--served-model-name", model]
        command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(CONTEXT)]
        command += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "32"]
        if name == EMBED:
            return [*command, "--runner", "pooling", "--convert", "embed"], _VLLM_ENV
        # Without the last option, which needs its back end named, a random model writes white space up to max_tokens.
        structured = '{"backend":"xgrammar","disable_any_whitespace":true}'
        command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
        return [*command, "--structured-outputs-config", structured], _VLLM_ENV

    def weights(self, python: Path, model: str) -> Path:
        """The folder with a model; made anew for each vLLM environment and generator."""
        folder, generator = self.cache / model, Path(__file__).with_name("real_weights.py")
        made = folder / "made_by"
        recipe = f"{python}\n{generator.read_text()}"
        if not made.exists() or made.read_text() != recipe:
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([python, generator, folder, str(SEEDS[model])], check=True, stdin=subprocess.DEVNULL)
            made.write_text(recipe)
        return folder

    def wait(self, server: Server) -> Server:
        """Wait until a server is ready, and at Ollama make its models.

        Raises:
            CannotRun: it ended, or did not come up in time.
        """
        began = self._launched[server.name]
        path = "/api/version" if server.name == OLLAMA else "/health"
        while not answers(server.url + path):
            if not _reap(server):
                raise CannotRun(server.name, f"it ended: {self._last_words(server)}", f"Read {self._log(server)}.")
            if time.monotonic() - began > READY_S:
                stop(server)
                raise CannotRun(server.name, f"it was not ready after {READY_S:.0f} s", f"Read {self._log(server)}.")
            time.sleep(0.1)
        if server.name == OLLAMA:
            self._make_models(server)
        ready = Server(**{**asdict(server), "ready_s": round(time.monotonic() - began, 1)})
        self._remember(ready)
        return ready

    def _make_models(self, server: Server) -> None:
        binary = str(real_install.ollama(self.cache))
        plain = self.run / "Modelfile.plain"
        plain.write_text(PLAIN)
        files = {model: self.cache / f"{model}.modelfile" for model in SEEDS} | {PLAIN_MODEL: plain}
        for model, file in files.items():
            arguments = ["create", model, "-f", str(file)]
            env = {**os.environ, "OLLAMA_HOST": server.url, "HOME": str(self.run)}
            done = subprocess.run([binary, *arguments], env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                raise CannotRun(OLLAMA, f"`ollama {' '.join(arguments)}`: {done.stderr[-300:]}", "Remove the cache.")

    # -- what is known

    def _log(self, server: Server) -> Path:
        return self.run / f"{server.name}.log"

    def _last_words(self, server: Server) -> str:
        lines = self._log(server).read_text(errors="replace").splitlines()
        return lines[-1][-300:] if lines else "it said nothing"

    def _remember(self, server: Server) -> None:
        self._write({**self.running(), server.name: server})

    def _forget(self, name: str) -> None:
        self._write({key: server for key, server in self.running().items() if key != name})

    def _write(self, servers: Mapping[str, Server]) -> None:
        text = json.dumps([asdict(server) for server in servers.values()], indent=1)
        scratch = self._state.with_suffix(".new")
        scratch.write_text(text + "\n")
        scratch.replace(self._state)


def stop(server: Server, *, kill: bool = False) -> None:
    """SIGTERM to the server, then SIGKILL to whatever of its session is left. `kill`: SIGKILL to all at once.

    Raises:
        RuntimeError: a process is left.
    """
    with contextlib.suppress(ProcessLookupError):
        if kill:
            os.killpg(server.pid, signal.SIGKILL)
        else:
            os.kill(server.pid, signal.SIGTERM)
    if _gone(server, STOP_S):
        return
    for pid in server.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not _gone(server, STOP_S):
        raise RuntimeError(f"{server.name} left processes behind: {server.processes()}")


def runner_of(ollama: Server) -> list[int]:
    """The processes in which Ollama runs its models."""
    return [pid for pid in ollama.processes() if pid != ollama.pid and b"runner" in _cmdline(pid)]


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def _gone(server: Server, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while server.processes():
        _reap(server)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _reap(server: Server) -> bool:
    """Whether it runs; a child of ours that ended is collected."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(server.pid, os.WNOHANG)
    return server.alive()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- /proc


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (proc(5)); empty if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if fields[0] == "Z" else fields


def _began(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _session(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[3]) if fields else None


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
