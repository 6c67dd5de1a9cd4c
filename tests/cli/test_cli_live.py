"""`llmctl serve` as a process, watched and asked by others: the token it makes, the picture, the stream and its end."""

import os
import pty
import signal
import stat
import subprocess
import time
from pathlib import Path

import httpx
from cli_driver import LLMCTL, clean_environment, llmctl, write_config
from test_cli_servers import ended, running


def test_the_events_tell_of_a_shift_and_do_not_hold_up_the_end(tmp_path: Path) -> None:
    with running("--config", str(write_config(tmp_path)), "serve", "--port", "0", "--seed") as (process, url):
        token = Path.home() / ".local/state/memos_llm/admin_token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        headers = {"authorization": f"Bearer {token.read_text().strip()}"}
        with (
            httpx.Client(headers=headers, timeout=20) as client,
            client.stream("GET", f"{url}/admin/v1/events") as stream,
        ):
            lines = stream.iter_lines()
            assert next(lines).startswith(":")
            shifted = llmctl("--gateway", url, "shift", "--newbox", "0.1", "--json")
            assert shifted.code == 0, shifted
            assert shifted.json["confirmed"], "the gateway follows itself"
            while not next(lines).startswith("event: flags"):
                pass
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            for _ in lines:  # until the server closes it
                pass
            assert time.monotonic() - began < 15, "it waited for gateway.drain_s"
        process.wait(timeout=10)
        assert ended(process)[0] == 0


def test_the_picture_is_drawn_again_and_again_until_interrupted(tmp_path: Path) -> None:
    with running("--config", str(write_config(tmp_path)), "serve", "--port", "0", "--seed") as (_, url):
        screen, theirs = pty.openpty()
        watch = subprocess.Popen(
            [*LLMCTL, "--gateway", url, "status", "--watch"],
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean_environment(), "TERM": "xterm", "COLUMNS": "100", "LINES": "60"},
        )
        os.close(theirs)
        shown = b""
        while b"instances" not in shown:
            shown += os.read(screen, 65_536)
        assert llmctl("--gateway", url, "shift", "--newbox", "0.25").code == 0
        while b"25%" not in shown:
            shown += os.read(screen, 65_536)
        watch.send_signal(signal.SIGINT)
        assert (watch.wait(timeout=10), watch.communicate()[1]) == (0, "")
        os.close(screen)
