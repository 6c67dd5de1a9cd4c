"""The README cannot rot: what it names exists, and what exists is named."""

import re
from pathlib import Path

import pytest

from memos_llm.cli.app import app
from memos_llm.config.pending import PENDING
from memos_llm.gateway.inference import WIRES
from memos_llm.telemetry.metrics import Metrics

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(title: str) -> set[str]:
    return {
        name
        for row in section(title).splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }


def test_the_map_has_every_package_and_no_other() -> None:
    here = {p.stem for p in (ROOT / "memos_llm").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert first_cells("The map") == {name for name in here if not name.startswith("__")}


def test_the_metrics_table_is_the_exposition() -> None:
    exposed = re.findall(r"# TYPE memos_llm_(\w+) ", Metrics().render()[0].decode())
    assert first_cells("Metrics") == set(exposed)


def test_every_command_that_is_named_exists() -> None:
    commands = {info.name for info in app.registered_commands} | {group.name for group in app.registered_groups}
    named = set(re.findall(r"llmctl ([a-z]+)", README))
    assert named <= commands


@pytest.mark.parametrize("path", sorted(WIRES))
def test_every_data_path_is_named(path: str) -> None:
    assert f"`{path}`" in README or f"POST {path}`" in README


def test_every_setting_that_is_not_in_force_is_named() -> None:
    text = section("Not yet")
    assert [key for key in PENDING if f"`{key.rpartition('*.')[2].removeprefix('gateway.')}`" not in text] == []


def test_every_script_and_file_that_is_named_exists() -> None:
    named = set(re.findall(r"\b((?:scripts|tests|config|memos_llm)/[\w/.]+\w)", README)) - {
        "memos_llm/providers/NAME.py"
    }
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_nothing_but_the_agreed_stands_at_the_top() -> None:
    agreed = {"pyproject.toml", "memos_llm", "config", "deploy", "grafana", "scripts", "tests", "README.md", "LICENSE"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert found - agreed <= {"memos_llm.egg-info"}
