"""`llmctl` as tests call it: in this process where another adds nothing, and on files of the test's own."""

import asyncio
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from memos_llm.cli import main

LLMCTL = (sys.executable, "-m", "memos_llm")
CONVENTIONAL = ("OLLAMA_HOST", "OLLAMA_BASE_URL", "VLLM_BASE_URL", "VLLM_API_KEY", "LLMCTL_TRACEBACK")
DEAD = [f"http://127.0.0.1:{port}" for port in (1, 7, 9)]  # nothing listens there


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which must be one JSON document and nothing else."""
        return json.loads(self.out)


def llmctl(*arguments: str, environ: Mapping[str, str] | None = None) -> Ran:
    """Run a command; of the user's environment nothing that is ours reaches it."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, clean_environment() | dict(environ or {}), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(arguments)
    return Ran(code, out.getvalue(), err.getvalue())


def clean_environment() -> dict[str, str]:
    """Nothing of ours, nothing conventional."""
    return {k: v for k, v in os.environ.items() if not k.startswith("MEMOS_LLM_") and k not in CONVENTIONAL}


class Llmctl:
    """Commands on one configuration file, one at a time, beside what runs in the test's own event loop."""

    def __init__(self, config: Path, environ: Mapping[str, str] | None = None) -> None:
        self.config, self.environ = config, environ

    async def __call__(self, *arguments: str) -> Ran:
        return await asyncio.to_thread(llmctl, "--config", str(self.config), *arguments, environ=self.environ)

    async def json(self, *arguments: str) -> Any:
        """The document of a command that succeeds."""
        ran = await self(*arguments, "--json")
        assert ran.code == 0, ran
        return ran.json


def write_config(folder: Path) -> Path:
    """Three providers that do not answer, a new SQLite store."""
    path = folder / "alone.yaml"
    path.write_text(
        f"""
providers:
  ollama: {{kind: ollama, base_url: "{DEAD[0]}"}}
  newbox: {{kind: vllm, base_url: "{DEAD[1]}", api_key: "canary-key"}}
  third: {{kind: vllm, base_url: "{DEAD[2]}"}}
baseline: ollama
candidate: newbox
models:
  qwen3:8b: {{newbox: Qwen/Qwen3-8B}}
  llama3.2:3b: {{}}
routing:
  components: {{synthesis: share, analysis: share, verification: baseline, embedding: share}}
store: "sqlite:///{folder}/alone.db"
"""
    )
    return path


@contextlib.contextmanager
def working_in(path: Path) -> Iterator[None]:
    with contextlib.chdir(path):
        yield
