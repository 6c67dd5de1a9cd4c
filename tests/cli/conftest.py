"""A configuration and a store of the test's own; nothing of the user's environment reaches a command."""

from pathlib import Path

import pytest
from cli_driver import CONVENTIONAL, Llmctl
from stack import Stack

DEAD = [f"http://127.0.0.1:{port}" for port in (1, 7, 9)]  # nothing listens there


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*CONVENTIONAL, "MEMOS_LLM_CONFIG", "MEMOS_LLM_STORE", "LLMCTL_TRACEBACK"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two providers that do not answer, a new SQLite store."""
    path = tmp_path / "alone.yaml"
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
store: "sqlite:///{tmp_path}/alone.db"
"""
    )
    return path


@pytest.fixture
def alone(config: Path) -> Llmctl:
    """`llmctl` on a store that nobody follows."""
    return Llmctl(config)


@pytest.fixture
def fleet(stack: Stack, tmp_path: Path) -> Llmctl:
    """`llmctl` beside a gateway and two emulated back ends (`tests/stack.py`)."""
    return Llmctl(tmp_path / "memos_llm.yaml")
