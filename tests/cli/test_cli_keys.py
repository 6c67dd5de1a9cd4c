"""`keys new` makes keys that the gateway takes, and completion knows the names of this configuration."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from cli_driver import LLMCTL, Llmctl, clean_environment, llmctl, write_config
from ruamel.yaml import YAML
from stack import open_stack


async def test_a_new_key_opens_what_it_says(tmp_path: Path) -> None:
    made = llmctl(
        "keys", "new", "--scope", "read", "--scope", "inference", "--id", "me", "--rate", "100", "--json"
    ).json
    assert set(made) == {"key", "entry"}
    assert made["entry"] == {
        "id": "me",
        "sha256": hashlib.sha256(made["key"].encode()).hexdigest(),
        "scopes": ["inference", "read"],
        "rate_per_minute": 100,
    }
    async with (
        open_stack(tmp_path, config={"gateway": {"api_keys": [made["entry"]]}}) as stack,
        stack.client(headers={"authorization": f"Bearer {made['key']}"}) as client,
    ):
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get("/admin/v1/status")).status_code == 200
        assert (await client.post("/admin/v1/rollback", json={})).status_code == 403


def test_the_entry_can_be_pasted_and_the_key_is_nowhere_in_it(tmp_path: Path) -> None:
    ran = llmctl("keys", "new", "--scope", "operate", "--component", "synthesis")
    key = next(line for line in ran.out.splitlines() if "key (" in line).rpartition(" ")[2]
    entry = next(line for line in ran.out.splitlines() if line.startswith("  - "))
    (pasted,) = YAML(typ="safe").load(entry)
    assert pasted["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert key not in entry
    assert len(key) > 40
    config = tmp_path / "c.yaml"
    config.write_text(f"gateway:\n  api_keys:\n  {entry}\n")
    assert llmctl("--config", str(config), "config", "check").code == 0
    assert pasted["sha256"] != llmctl("keys", "new", "--scope", "operate", "--json").json["entry"]["sha256"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--scope"),
        (["--scope", "opearte"], "did you mean operate?"),
        (["--scope", "read", "--id", "a b"], "--id"),
        (["--scope", "read", "--component", "a/b"], "--component"),
        (["--scope", "read", "--rate", "0"], "--rate"),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], says: str) -> None:
    ran = llmctl("keys", "new", *arguments)
    assert ran.code == 2
    assert says in ran.err
    assert ran.out == ""


async def test_show_holds_no_hash_of_a_key(tmp_path: Path) -> None:
    made = llmctl("keys", "new", "--scope", "read", "--json").json
    config = tmp_path / "c.yaml"
    YAML().dump({"gateway": {"api_keys": [made["entry"]]}}, config)
    ran = await Llmctl(config)("config", "show")
    assert made["key"] not in ran.out
    assert made["entry"]["id"] in ran.out


# Completion


def completed(config: Path, *words: str) -> list[str]:
    """What bash would offer for the last of the words."""
    line = ["llmctl", "--config", str(config), *words]
    environ = {
        **clean_environment(),
        "_LLMCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(line),
        "COMP_CWORD": str(len(line) - (words[-1] != "")),
    }
    ran = subprocess.run([*LLMCTL], capture_output=True, text=True, env=environ, check=False)
    assert ran.stderr == ""
    return ran.stdout.split()


def test_bash_completes_commands_options_components_models_and_scopes(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert "status" in completed(config, "st")
    assert "--newbox" in completed(config, "shift", "--")
    assert completed(config, "shift", "--newb") == ["--newbox"]
    assert completed(config, "shift", "--newbox", "0.1", "--component", "synth") == ["synthesis"]
    assert completed(config, "explain", "--model", "llama") == ["llama3.2:3b"]
    assert completed(config, "keys", "new", "--scope", "o") == ["operate"]


def test_completion_stays_silent_over_a_wrong_configuration(tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text("baseline: {")
    assert completed(config, "shift", "--component", "s") == []


def test_the_completion_can_be_shown_and_installed(tmp_path: Path) -> None:
    environ = {**clean_environment(), "HOME": str(tmp_path), "PATH": f"{Path(LLMCTL[0]).parent}:{os.environ['PATH']}"}

    def bash(line: str) -> str:
        return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environ, check=True).stdout

    assert "complete " in bash("llmctl --show-completion; true")
    bash("llmctl --install-completion; true")
    script = next(path for path in tmp_path.rglob("*llmctl*") if path.is_file())
    config = write_config(tmp_path)
    typed = (
        f"source {script}; COMP_WORDS=(llmctl --config {config} shift --component an); COMP_CWORD=5; "
        "$(complete -p llmctl | sed 's/.*-F \\([^ ]*\\).*/\\1/') llmctl; echo ${COMPREPLY[@]}"
    )
    assert bash(typed).split() == ["analysis"]
