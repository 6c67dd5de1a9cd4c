"""A real redis-server of a test's own, on a socket in a folder of its own: to be stopped, killed, hung, emptied, and
replaced by an older copy of itself. `scripts/install` brings the program.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = "redis-server"
START_S = 20.0


class RedisServer:
    """It writes to its disk at every command (`appendfsync always`), so that a kill -9 loses nothing.

    Args:
        folder: its data; the socket is there too, and its path is short (a socket's may have some 100 bytes).
        options: further ones of redis-server, as on its command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.socket = folder / "redis.sock"
        self.data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, prefix: str = "memos_llm") -> str:
        return f"unix://{self.socket}?prefix={prefix}"

    def start(self) -> None:
        """Returns when it answers."""
        assert self._process is None
        self.data.mkdir(exist_ok=True)
        mine = (
            "--port",
            "0",
            "--unixsocket",
            str(self.socket),
            "--dir",
            str(self.data),
            "--save",
            "",
            "--daemonize",
            "no",
        )
        log = ("--appendonly", "yes", "--appendfsync", "always", "--logfile", str(self.folder / "redis.log"))
        self._process = subprocess.Popen([_program(), *mine, *log, *self.options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"redis-server did not start:\n{(self.folder / 'redis.log').read_text()}")
            time.sleep(0.01)

    def answers(self) -> bool:
        return self.command("PING").startswith(("+PONG", "-NOAUTH"))

    def command(self, *words: str) -> str:
        """The first bytes of its answer, in Redis's own protocol; empty if it does not answer."""
        text = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(5.0)
            try:
                line.connect(str(self.socket))
                line.sendall(text.encode())
                return line.recv(65_536).decode("utf-8", "replace")
            except OSError:
                return ""

    def stop(self) -> None:
        """As an operator does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def hang(self) -> None:
        """It takes connections and answers nothing, until `go_on`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        assert self.command("FLUSHALL").startswith("+OK")

    def empty(self) -> None:
        """Its data is gone; only while it does not run."""
        assert self._process is None
        shutil.rmtree(self.data, ignore_errors=True)

    def keep(self, name: str) -> None:
        """Take a copy of its data; only while it does not run."""
        assert self._process is None
        shutil.copytree(self.data, self.folder / name)

    def go_back(self, name: str) -> None:
        """Put a copy in the place of its data; only while it does not run."""
        self.empty()
        shutil.copytree(self.folder / name, self.data)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.send_signal(signal.SIGCONT)
        self._process.wait(20)
        self._process = None
        self.socket.unlink(missing_ok=True)


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        server = RedisServer(Path(folder), *options)
        server.start()
        try:
            yield server
        finally:
            server.kill()


def _program() -> str:
    found = shutil.which(PROGRAM, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/bin")
    assert found, "there is no redis-server: scripts/install brings it"
    return found
