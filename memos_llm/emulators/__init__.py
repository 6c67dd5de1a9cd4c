"""Emulators of an Ollama and a vLLM server: real sockets, real wire formats, deterministic answers, faults on demand.

They share nothing with the rest of memos_llm (a shared parser would prove nothing) and are never kinder than the
real servers. Used by tests, `llmctl emulate`, `demo` and `chaos`.

| file | one idea |
|---|---|
| `answers`, `documents` | what is said: a pure function of engine, messages and schema |
| `vectors` | what an embedding says: a pure function of vector space and text |
| `faults` | faults as data, and which request gets one |
| `playing` | a prepared answer on the wire, interrupted by a fault |
| `wire` | listener, connections, one exchange |
| `emulator` | life cycle, counters, control surface |
| `ollama`, `ollama_door`, `ollama_server` | Ollama's routes, who is let in, what the routes share and how they refuse |
| `ollama_versions` | what changed between its releases, as a table |
| `ollama_models`, `ollama_runner` | what is installed; what is loaded and who waits |
| `ollama_requests`, `ollama_answering`, `ollama_generation`, `ollama_native` | one inference request, run and written |
| `ollama_v1`, `_completions`, `_responses`, `_messages` | the layers in front of it, a dialect each |
| `ollama_embedding`, `ollama_catalogue`, `ollama_store` | embeddings; tags, ps, show; pull, create, delete |
| `golang` | JSON as Go reads and writes it |
| `vllm*` | vLLM: routes, requests and their checks, names, tokens, engine, metrics, generation, dialects, releases |
| `server` | as a process |
"""

from memos_llm.emulators.answers import Answer, ToolUse, expected
from memos_llm.emulators.emulator import Counters, Emulator, Timing
from memos_llm.emulators.faults import FAULTS, Fault, FaultBoard
from memos_llm.emulators.ollama import OllamaEmulator
from memos_llm.emulators.ollama_models import OllamaModel
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
