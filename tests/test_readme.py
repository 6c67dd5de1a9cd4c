"""The README cannot rot: what it names exists, what exists is named, and its examples run."""

import asyncio
import os
import re
import sys
import textwrap
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import reference
from ruamel.yaml import YAML

import memos_llm
from memos_llm.cli.app import app
from memos_llm.config import environment, load, parse, pending
from memos_llm.config.pending import PENDING
from memos_llm.core.decision import Reason
from memos_llm.core.events import RequestEnded
from memos_llm.dialects.codecs import report
from memos_llm.gateway import admin_events, entry, rights
from memos_llm.gateway.app import OWN
from memos_llm.gateway.inference import WIRES
from memos_llm.gateway.principal import Right
from memos_llm.providers import plugins
from memos_llm.telemetry.logs import LINES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
sys.path.append(str(ROOT / "tests" / "clients"))
from clients_facade import DIMENSION, Facade, open_facade  # noqa: E402 - it lies beside its suites

GATEWAY = "http://127.0.0.1:8200"  # as the README has it
SESSION = '"x-memos-session": "conv-42"'
PROVEN = "proven"


def section(title: str) -> str:
    """What stands under a heading of the second or third level, up to the next of its level."""
    found = re.search(rf"^(##+) {re.escape(title)}\n", README, re.MULTILINE)
    assert found, title
    rest = README[found.end() :]
    end = re.search(rf"^#{{2,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def first_cells(title: str) -> set[str]:
    return {
        name
        for row in section(title).splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def missing(names: Any, text: str = README) -> list[str]:
    return sorted(name for name in names if f"`{name}`" not in text)


# --- what is written by the code --------------------------------------------------------------------------------------


def test_every_table_that_is_written_by_the_code_is_there() -> None:
    assert reference.named(README) == set(reference.BLOCKS)


@pytest.mark.parametrize("block", reference.BLOCKS)
def test_a_table_is_as_the_code_has_it(block: str) -> None:
    assert reference.BLOCKS[block]() in README, "run scripts/docs"


def test_every_warning_is_named() -> None:
    """Those of a rule are told by its name and how it is carried."""
    named = set(re.findall(r"`([\w-]+:[\w-]+)`", section("Translation")))
    rows = re.findall(r"^\| `([\w.]+)` \|[^|]*\| ([a-z ]+) \|", section("Translation"), re.MULTILINE)
    named |= {f"{how}:{name}" for name, hows in rows for how in hows.split(" or ")}
    assert set(report.warnings()) <= named


def test_every_error_class_is_named() -> None:
    public = [name for name in memos_llm.__all__ if isinstance(getattr(memos_llm, name), type)]
    classes = [name for name in public if issubclass(getattr(memos_llm, name), memos_llm.LLMError)]
    assert missing(classes, section("Errors")) == []


# --- what is written by hand ------------------------------------------------------------------------------------------


def test_the_map_has_every_package_and_no_other() -> None:
    here = {p.stem for p in (ROOT / "memos_llm").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert first_cells("The map") == {name for name in here if not name.startswith("__")}


def test_every_command_that_is_named_exists() -> None:
    commands = {info.name for info in app.registered_commands} | {group.name for group in app.registered_groups}
    assert set(re.findall(r"llmctl ([a-z]+)", README)) <= commands


def test_every_option_that_is_named_exists() -> None:
    known = set(re.findall(r"`(--[\w-]+)`", reference.commands())) | reference.EVERYWHERE
    known |= {"--vllm", "--install-completion"}
    told = {option for line in re.findall(r"llmctl ([^`\n#]*)", README) for option in re.findall(r"--[a-z-]+", line)}
    assert told <= known


def test_every_path_is_named() -> None:
    assert missing({*WIRES, *OWN, *rights.MANAGEMENT, "/api/show", "/v1/models/{id}"}) == []


def test_every_scope_is_explained() -> None:
    assert first_cells("Keys, hosts and origins") == {right.value for right in Right}


def test_every_reason_is_explained() -> None:
    text = section("What a request goes through")
    rows = {row.split("`")[1] for row in text.partition("| reason |")[2].partition("\n\n")[0].splitlines()[2:]}
    assert rows == {reason.value for reason in Reason}


def test_every_header_is_named() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "memos_llm" / "gateway").glob("*.py"))
    ours = set(re.findall(r'b"(x-memos-[a-z-]+)"', sources)) | set(entry.EXPOSED.decode().split(", "))
    assert missing({*ours, "x-api-key", "authorization"}) == []


def test_every_log_line_is_named() -> None:
    told = set(re.findall(r"`([a-z-]+)`", section("Operating").partition("**Logs**")[2]))
    logs = (ROOT / "memos_llm" / "telemetry" / "lines.py").read_text()
    said = {name for name in re.findall(r'return [^\n]*, "([a-z-]+)", ', logs)} | {"log-lines-dropped"}
    assert len(said) == len(LINES) + 1
    workers = (ROOT / "memos_llm" / "gateway" / "workers.py").read_text()
    assert said | set(re.findall(r'"(worker-[a-z]+)"', workers)) == told


def test_every_event_of_the_stream_is_named() -> None:
    row = next(row for row in section("Operating").splitlines() if "/admin/v1/events" in row)
    assert missing({name for name, _ in admin_events.SHOWN.values()}, row) == []


def test_every_variable_is_named() -> None:
    conventions = {name for convention in environment.CONVENTIONS for name in convention.variables}
    assert missing({f"{environment.PREFIX}{name}" for name in environment.RESERVED} | conventions) == []


def test_the_entry_point_is_the_one_that_is_looked_for() -> None:
    assert blocks("toml", README) == [f'[project.entry-points."{plugins.GROUP}"]\nacme = "acme_llm:make"\n']


def test_what_is_not_in_force_is_said_and_nothing_else() -> None:
    assert first_cells("Not yet") == set(PENDING)


def test_every_script_and_file_that_is_named_exists() -> None:
    """Of this repository: what follows a slash is somewhere else."""
    named = set(re.findall(r"(?<![\w/.])((?:scripts|tests|config|memos_llm)/[\w/.]+\w)", README))
    assert [name for name in named - {"memos_llm/providers/NAME.py"} if not (ROOT / name).exists()] == []


def test_every_link_leads_somewhere() -> None:
    titles = re.findall(r"^##+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors


def test_nothing_but_the_agreed_stands_at_the_top() -> None:
    agreed = {"pyproject.toml", "memos_llm", "config", "deploy", "grafana", "scripts", "tests", "README.md", "LICENSE"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert found - agreed <= {"memos_llm.egg-info"}


# --- the examples -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", blocks("yaml", README))
def test_a_configuration_that_is_shown_is_right(text: str) -> None:
    base: dict[str, Any] = {"providers": {"ollama": {"kind": "ollama"}, "vllm": {"kind": "vllm"}}}
    whole = StringIO()
    YAML().dump({**base, **YAML(typ="safe").load(text)}, whole)
    urls = {"OLLAMA_HOST": "http://localhost:11434", "VLLM_BASE_URL": "http://localhost:8000", "REDIS_PASSWORD": "x"}
    assert pending(parse(whole.getvalue().encode(), urls, "README")) == ()


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_a_configuration_that_is_shipped_is_right(path: Path) -> None:
    assert pending(load(path, {})) == ()


CLIENTS = section("Clients")
PYTHON = [*blocks("python", CLIENTS), *blocks("python", section("In a pipeline"))]


def first_import(code: str) -> str:
    found = re.search(r"^(?:from|import) (\w+)", code, re.MULTILINE)
    assert found
    return found[1]


async def ran(arguments: list[str], folder: Path, **environ: str) -> str:
    """What a program printed.

    Raises:
        AssertionError: it failed; says with which words.
    """
    process = await asyncio.create_subprocess_exec(
        *arguments,
        cwd=folder,
        env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


def adapted(code: str, facade: Facade, folder: Path) -> str:
    """An example with our addresses, as a program; where it sends a header of ours, another shows that it arrives."""
    code = code.replace(GATEWAY, facade.url).replace("config/memos_llm.yaml", str(folder / "memos_llm.yaml"))
    code = code.replace(SESSION, f'{SESSION}, "x-memos-component": "{PROVEN}"')
    code = code.replace('"embedding_model_dims": 1024', f'"embedding_model_dims": {DIMENSION}')
    if "async with" not in code:
        return code
    return f"import asyncio\nasync def main():\n{textwrap.indent(code, '    ')}\nasyncio.run(main())\n"


QUIET: Mapping[str, str] = {"MEM0_TELEMETRY": "False", "MEM0_DIR": "mem0", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


@pytest.mark.parametrize("code", PYTHON, ids=[first_import(code) for code in PYTHON])
async def test_an_example_in_python_runs(code: str, tmp_path: Path) -> None:
    async with open_facade(tmp_path, 1.0) as facade:
        printed = await ran([sys.executable, "-c", adapted(code, facade, tmp_path)], tmp_path, **QUIET)
        assert facade.voice in printed
        if GATEWAY in code:
            assert facade.served_by() == {facade.provider}
            assert components(facade) <= {"synthesis", "memory", "embedding", PROVEN}
            assert components(facade) - {"embedding", PROVEN} or SESSION in code
            assert (PROVEN in components(facade)) is (SESSION in code)


def components(facade: Facade) -> set[str]:
    return {event.component for event in facade.told.of(RequestEnded)}


async def test_the_examples_for_curl_run(tmp_path: Path) -> None:
    examples = [block for block in blocks("bash", CLIENTS) if block.startswith("curl")]
    assert len(examples) == 2
    async with open_facade(tmp_path, 1.0) as facade:
        for example in examples:
            printed = await ran(["bash", "-euc", example.replace(GATEWAY, facade.url)], tmp_path)
            assert facade.voice in printed
        assert facade.served_by() == {facade.provider}
        assert components(facade) == {"synthesis"}


async def test_the_admin_api_answers_as_shown_and_every_verb_is_named(tmp_path: Path) -> None:
    (example,) = (block for block in blocks("bash", section("Operating")) if "curl" in block)
    async with open_facade(tmp_path, 0.0) as facade:
        shown = await ran(["bash", "-euc", example.replace(GATEWAY, facade.url)], tmp_path)
        assert '"revision"' in shown
        token = (Path.home() / ".local" / "state" / "memos_llm" / "admin_token").read_text().strip()
        async with httpx.AsyncClient(base_url=facade.url, headers={"authorization": f"Bearer {token}"}) as client:
            paths = (await client.get("/admin/v1/openapi.json")).json()["paths"]
    text = section("Operating")
    assert [path for path in paths if f"`{path}`" not in text] == []
