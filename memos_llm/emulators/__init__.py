"""Emulators of an Ollama and a vLLM server: real sockets, real wire formats, deterministic answers, faults on demand.

They share nothing with the rest of memos_llm (a shared parser would prove nothing) and are never kinder than the
real servers. Used by tests, `llmctl emulate`, `demo` and `chaos`.

| file | one idea |
|---|---|
| `answers` | what is said: a pure function of engine and messages |
| `faults` | faults as data, and which request gets one |
| `playing` | a prepared answer on the wire, interrupted by a fault |
| `wire` | listener, connections, one exchange |
| `emulator` | life cycle, counters, control surface |
| `ollama*`, `golang` | Ollama: routes, requests, runners, generation, `/v1` layer, Go's JSON |
| `vllm*` | vLLM: routes, requests, engine and metrics, chunks |
| `server` | as a process |
"""

from memos_llm.emulators.answers import Answer, ToolUse, expected
from memos_llm.emulators.emulator import Counters, Emulator, Timing
from memos_llm.emulators.faults import FAULTS, Fault, FaultBoard
from memos_llm.emulators.ollama import OllamaEmulator
from memos_llm.emulators.ollama_runner import OllamaModel
from memos_llm.emulators.server import run
from memos_llm.emulators.vllm import VllmEmulator
from memos_llm.emulators.wire import Received

__all__ = [
    "FAULTS",
    "Answer",
    "Counters",
    "Emulator",
    "Fault",
    "FaultBoard",
    "OllamaEmulator",
    "OllamaModel",
    "Received",
    "Timing",
    "ToolUse",
    "VllmEmulator",
    "expected",
    "run",
]
