"""`llmctl` as a program: options anywhere, exit codes, pure JSON, help that teaches, a quick start."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_driver import LLMCTL, Llmctl, clean_environment, llmctl, write_config
from rich.console import Console

from memos_llm.cli import failures
from memos_llm.cli.output import table
from memos_llm.core import errors


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.fixture
def alone(tmp_path: Path) -> Llmctl:
    """On a store that nobody follows."""
    return Llmctl(write_config(tmp_path))


COMMANDS = [
    ["init"], ["serve"], ["status"], ["shift"], ["rollback"], ["rearm"], ["history"], ["explain"], ["emulate"],
    ["demo"], ["config", "check"], ["config", "show"], ["incidents"], ["keys", "new"], ["store", "adopt"],
    ["embeddings", "verify"], ["doctor"],
]  # fmt: skip


GROUPS = [["config"], ["keys"], ["store"], ["embeddings"]]


@pytest.mark.parametrize("command", [[], *GROUPS, *COMMANDS], ids=" ".join)
def test_every_help_has_an_example_and_fits_80_columns(command: list[str]) -> None:
    ran = llmctl(*command, "--help")
    assert ran.code == 0
    assert "Example:" in ran.out
    assert f"  llmctl {' '.join(command)}".rstrip() in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_an_answer_that_nobody_reads_on_is_no_negative_verdict(config: Path) -> None:
    command = f"{' '.join(LLMCTL)} --config {config} config show | true; echo ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env=clean_environment())
    assert (ran.stdout, ran.stderr) == ("141\n", "")


@pytest.mark.parametrize("command", ["status", "rollback", "history"])
def test_a_store_in_memory_has_nothing_to_show_or_to_change(config: Path, command: str) -> None:
    ran = llmctl("--config", str(config), "--store", "memory://", command)
    assert ran.code == 2
    assert "--gateway" in ran.err


def test_an_address_is_not_broken_over_lines() -> None:
    said = Console(width=80, file=io.StringIO())
    rows = [("ollama", "http://127.0.0.1:11434", "up 0.33.0, 9 ms", "qwen3:8b, llama3.2:3b, mxbai-embed-large:latest")]
    rows.append(("vllm", "http://127.0.0.1:18000", "DOWN: connect refused by the host", ""))
    said.print(table(("name", "endpoint", "state", "models"), rows, whole=("endpoint",)))
    shown = said.file.getvalue()  # type: ignore[attr-defined]  # the text file that it was given
    assert "http://127.0.0.1:11434 " in shown
    assert "http://127.0.0.1:18000 " in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_every_command_is_listed() -> None:
    listed = llmctl("--help").out
    assert all(f"  {command[0]} " in listed for command in COMMANDS)


def test_without_arguments_it_shows_its_help() -> None:
    assert llmctl() == llmctl("--help")


def test_version() -> None:
    assert llmctl("--version").out.startswith("llmctl ")


def test_shared_options_may_stand_before_or_after_the_command(config: Path, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    before = llmctl("--json", "--config", str(config), "--store", other, "config", "check")
    after = llmctl("config", "check", "--store", other, "--config", str(config), "--json")
    assert before == after
    assert after.json["store"] == other


JSON_COMMANDS = [
    (["status"], 0),
    (["history"], 0),
    (["incidents"], 0),
    (["keys", "new", "--scope", "read"], 0),
    (["store", "adopt"], 0),
    (["explain"], 0),
    (["shift", "--newbox", "0.1"], 0),
    (["rollback"], 0),
    (["config", "check"], 0),
    (["config", "show"], 0),
    (["emulate", "vllm", "--list-faults"], 0),
    (["rearm"], 3),
    (["keys", "new"], 2),
    (["embeddings", "verify", "nosuch", "--file", "/dev/null"], 2),
    (["incidents", "nosuch"], 2),
    (["shift", "--newbox", "30"], 2),
    (["status", "--watch"], 2),
    (["nosuch"], 2),
    (["status", "--nosuch"], 2),
    (["history", "--limit", "0"], 2),
]


@pytest.mark.parametrize(("command", "code"), JSON_COMMANDS, ids=str)
async def test_json_is_one_document_and_nothing_else(alone: Llmctl, command: list[str], code: int) -> None:
    ran = await alone("--json", *command)
    assert ran.code == code, ran
    assert isinstance(ran.json, dict)
    if code:
        assert ran.json["error"]["exit_code"] == code
        assert ran.json["error"]["message"] in ran.err


@pytest.mark.parametrize("store", ["sqlite:////proc/nowhere/flags.db"])
@pytest.mark.parametrize("command", [["status"], ["history"], ["explain"], ["shift", "--newbox", "0.1"], ["rollback"]])
async def test_a_store_that_cannot_be_reached_is_exit_4_and_named(
    alone: Llmctl, command: list[str], store: str
) -> None:
    ran = await alone("--store", store, *command)
    assert ran.code == 4, ran
    assert "--store" in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("baselin: ollama", "did you mean baseline?"),
        ("baseline: {", "not valid YAML"),
        ("providers: {a: {kind: ollama, base_url: 'http://x'}}\nbaseline: b", "baseline"),
    ],
)
def test_a_wrong_configuration_is_exit_2_with_place_and_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    for command in (["config", "check"], ["status"], ["serve"], ["shift", "--vllm", "0.1"]):
        ran = llmctl("--config", str(path), *command)
        assert ran.code == 2, ran
        assert says in ran.err
        assert "wrong.yaml" in ran.err


def test_a_missing_file_is_named() -> None:
    ran = llmctl("--config", "nowhere.yaml", "status")
    assert ran.code == 2
    assert "nowhere.yaml" in ran.err


def test_a_wrong_store_url_is_blamed_on_the_option() -> None:
    ran = llmctl("--store", "nonsense", "status")
    assert ran.code == 2
    assert "--store: must begin with" in ran.err


def test_no_candidate_is_said() -> None:
    ran = llmctl("--config", "/dev/null", "--json", "config", "check")
    assert ran.json["candidate"] == "vllm", "the built-in defaults"


def test_a_mistyped_command_or_option_gets_a_guess() -> None:
    assert "shift" in llmctl("shfit").err
    assert "--watch" in llmctl("status", "--wach").err


async def test_secrets_are_never_shown(alone: Llmctl) -> None:
    for arguments in (["config", "show"], ["config", "show", "--json"], ["config", "check"], ["status", "--json"]):
        ran = await alone(*arguments)
        assert ran.code == 0
        assert "canary-key" not in ran.out + ran.err
    assert "***" in (await alone("config", "show")).out


def test_every_error_of_the_tree_has_an_exit_code() -> None:
    expected = {
        errors.ConfigError: 2,
        errors.BadRequest: 2,
        errors.Refused: 3,
        errors.NotOffered: 3,
        errors.StoreUnreachable: 4,
        errors.Unavailable: 4,
    }
    for kind in _tree(errors.LLMError):
        assert failures.exit_code(kind("x")) in (1, 2, 3, 4)
    assert {kind: failures.exit_code(kind("x")) for kind in expected} == expected


def _tree(kind: type[errors.LLMError]) -> Iterator[type[errors.LLMError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


def test_our_own_fault_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import memos_llm.config

    def broken(*_: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(memos_llm.config, "load", broken)
    ran = llmctl("config", "check")
    assert ran.code == failures.FAULT
    assert ran.err.splitlines() == [
        "error: internal error: RuntimeError: two lines (set LLMCTL_TRACEBACK=1 to see where)"
    ]


def test_a_command_loads_only_what_it_needs() -> None:
    code = "import sys, memos_llm.cli; print([m for m in sys.argv[1].split() if m in sys.modules])"
    heavy = "aiohttp pydantic ruamel.yaml structlog prometheus_client uvicorn starlette httpx memos_llm.wiring"
    ran = subprocess.run([sys.executable, "-c", code, heavy], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_it_runs_as_a_module_and_prints_json_into_a_pipe(config: Path) -> None:
    ran = subprocess.run(
        [*LLMCTL, "--config", str(config), "status", "--json"],
        capture_output=True,
        text=True,
        env=clean_environment(),
        check=True,
    )
    assert json.loads(ran.stdout)["revision"] == 0
    assert ran.stderr == ""
