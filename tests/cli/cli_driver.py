"""`llmctl` as tests call it: in this process where a process of its own adds nothing."""

import asyncio
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from memos_llm.cli import main

CONVENTIONAL = ("OLLAMA_HOST", "OLLAMA_BASE_URL", "VLLM_BASE_URL", "VLLM_API_KEY")


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which must be one JSON document and nothing else."""
        return json.loads(self.out)


def llmctl(*arguments: str) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return Ran(code, out.getvalue(), err.getvalue())


class Llmctl:
    """Commands on one configuration file, beside what runs in the test's own event loop."""

    def __init__(self, config: Path) -> None:
        self.config = config

    async def __call__(self, *arguments: str) -> Ran:
        return await asyncio.to_thread(llmctl, "--config", str(self.config), *arguments)

    async def json(self, *arguments: str) -> Any:
        """The document of a command that succeeds."""
        ran = await self(*arguments, "--json")
        assert ran.code == 0, ran
        return ran.json


def clean_environment() -> dict[str, str]:
    """Of a child process: nothing of ours, nothing conventional."""
    return {k: v for k, v in os.environ.items() if not k.startswith("MEMOS_LLM_") and k not in CONVENTIONAL}


@contextlib.contextmanager
def folder(path: Path) -> Iterator[None]:
    with contextlib.chdir(path):
        yield


LLMCTL = (sys.executable, "-m", "memos_llm")
