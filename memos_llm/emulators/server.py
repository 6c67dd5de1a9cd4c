"""Runs one emulator as a process: `run` blocks until SIGTERM or SIGINT (for `llmctl emulate`)."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from memos_llm.emulators.emulator import Emulator
from memos_llm.emulators.ollama import OllamaEmulator
from memos_llm.emulators.vllm import VllmEmulator

EMULATORS: Mapping[str, type[OllamaEmulator] | type[VllmEmulator]] = {"ollama": OllamaEmulator, "vllm": VllmEmulator}
DEFAULT_PORTS: Mapping[str, int] = {"ollama": 11434, "vllm": 8000}


def run(
    engine: str,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    models: Iterable[str] = (),
    ttft_s: float = 0.0,
    inter_token_s: float = 0.0,
    faults: Iterable[str] = (),
    seed: int = 0,
    version: str | None = None,
    words: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Serve until told to stop; prints one line, `listening on URL`, to stderr.

    Args:
        engine: "ollama" or "vllm". port: None for the server's own default, 0 for a free one.
        models: model names, none for the emulator's defaults. options: further arguments of that emulator.

    Raises:
        ValueError: unknown engine or fault. OSError: the port is taken.
    """
    if engine not in EMULATORS:
        raise ValueError(f"unknown engine {engine!r}; choose from: {', '.join(EMULATORS)}")
    given: dict[str, Any] = {
        "host": host,
        "port": DEFAULT_PORTS[engine] if port is None else port,
        "ttft_s": ttft_s,
        "inter_token_s": inter_token_s,
        "faults": tuple(faults),
        "seed": seed,
        "words": words,
        **(options or {}),
    }
    listed = tuple(models)
    if listed:
        given["models"] = listed
    if version is not None:
        given["version"] = version
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(EMULATORS[engine](**given)))


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(emulator: Emulator) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with emulator:
        print(f"listening on {emulator.url}", file=sys.stderr, flush=True)  # noqa: T201
        await stopped.wait()
