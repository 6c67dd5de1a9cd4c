"""The configuration file changes under a running gateway: what is right is taken whole, what is wrong not at all."""

import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hook_server import open_hook
from stack import VLLM_MODEL, Stack, document, open_stack, settings, until
from test_gateway_process import LISTENING, open_site, running

from memos_llm import providers, wiring
from memos_llm.config import Source
from memos_llm.core.errors import ConfigError
from memos_llm.core.events import ConfigChanged, ConfigRejected, RequestEnded
from memos_llm.core.flags import GLOBAL
from memos_llm.core.policy import ProviderSpec
from memos_llm.core.ports import Transport
from memos_llm.providers.http import HttpTransport
from memos_llm.telemetry.logs import LINES
from memos_llm.testing import Recorder
from memos_llm.wiring import Runtime, open_runtime
from memos_llm.wiring.reload import Reloader

SECRET = "sk-canary-77aa"
ENVIRON = {"VLLM_API_KEY": SECRET, "HOME": "/nonexistent"}
GOOD = f"""\
providers:
  ollama: {{base_url: "http://localhost:1"}}
  vllm:
    base_url: http://localhost:2
    api_key: "${{VLLM_API_KEY}}"
baseline: ollama
models:
  qwen3:8b: {{vllm: Qwen/Qwen3-8B}}
routing:
  share: 0.1
  components: {{synthesis: share}}
rollback:
  webhooks: [{{url: "https://hooks.example/{SECRET}", secret: {SECRET}}}]
store: memory://
gateway:
  max_concurrency: 100
"""

KEY = "{id: a, sha256: '" + "0" * 64 + "', scopes: [read]}"


def with_line(line: str) -> bytes:
    return f"{GOOD}{line}\n".encode()


def instead(old: str, new: str) -> bytes:
    assert old in GOOD
    return GOOD.replace(old, new).encode()


LAST = GOOD.count("\n") + 1

WRONG: list[tuple[str, bytes, str]] = [
    # what is wrong, the file, what is said of it
    ("unknown key", with_line("basline: ollama"), f":{LAST}: basline: unknown key; did you mean baseline"),
    ("unknown key, nested", with_line("  prot: 1"), f":{LAST}: gateway.prot: unknown key; did you mean port"),
    ("unknown key of a provider", instead("api_key:", "apikey:"), ":5: providers.vllm.apikey: unknown key"),
    ("two at once", with_line("  prot: 1\nretries: -1"), f":{LAST + 1}: retries: must be greater than or equal to 0"),
    ("share over 1", instead("share: 0.1", "share: 30"), ":10: routing.share: is a fraction from 0 to 1: for 30 per"),
    ("share below 0", instead("share: 0.1", "share: -0.1"), ":10: routing.share: is outside 0 to 1"),
    ("share true", instead("share: 0.1", "share: true"), ":10: routing.share: must be a number"),
    ("share in words", instead("share: 0.1", "share: some"), ":10: routing.share: must be a fraction"),
    ("share of nothing known", instead("share: 0.1", "share: .nan"), ":10: routing.share: is outside 0 to 1"),
    ("a number for text", with_line("baseline2: 1"), f":{LAST}: baseline2: unknown key"),
    ("text for a number", instead(": 100", ": many"), f":{LAST - 1}: gateway.max_concurrency: must be a valid integer"),
    ("zero", instead(": 100", ": 0"), f":{LAST - 1}: gateway.max_concurrency: must be greater than or equal to 1"),
    ("a port beyond", with_line("  port: 70000"), f":{LAST}: gateway.port: must be less than or equal to 65535"),
    ("a log level of nobody", with_line("  log_level: LOUD"), f":{LAST}: gateway.log_level: must be one of"),
    ("a wildcard origin", with_line("  cors_origins: ['*']"), "gateway.cors_origins.0: must name each origin"),
    ("a key as it is", with_line(f"  api_keys: [{SECRET}]"), "gateway.api_keys.0: must be a mapping"),
    (
        "a scope of nobody",
        with_line(f"  api_keys: [{KEY.replace('read', 'root')}]"),
        "api_keys.0.scopes.0: must be one",
    ),
    ("two keys of one name", with_line(f"  api_keys: [{KEY}, {KEY}]"), "gateway.api_keys.1.id: 'a' is there twice"),
    ("a list for a mapping", with_line("shadow: [x]"), f":{LAST}: shadow: must be a mapping"),
    ("a mapping for a list", with_line("fallback: {a: b}"), f":{LAST}: fallback: must be a list"),
    ("a date", instead("baseline: ollama", "baseline: 2020-01-01"), ":6: baseline: must be text, a number"),
    ("an infinite limit", with_line("timeouts: {connect_s: .inf}"), "timeouts.connect_s: must be a finite number"),
    ("a limit of nothing", with_line("timeouts: {idle_s: 0}"), f":{LAST}: timeouts.idle_s: must be greater than 0"),
    (
        "a store of nobody",
        instead("memory://", "postgres://u:" + SECRET + "@h"),
        ":14: store: must begin with sqlite://",
    ),
    (
        "a baseline of nobody",
        instead("baseline: ollama", "baseline: olama"),
        ":6: baseline: 'olama' is not a configured",
    ),
    (
        "a candidate of nobody",
        with_line("candidate: vlm"),
        "candidate: 'vlm' is not a configured provider; did you mean",
    ),
    ("both roles one", with_line("candidate: ollama"), f":{LAST}: candidate: is 'ollama', as the baseline is"),
    (
        "a key for a name",
        with_line('candidate: "${VLLM_API_KEY}"'),
        ": candidate: '${VLLM_API_KEY}' is not a configured",
    ),
    (
        "a key for an alias",
        with_line('primary_provider: "${VLLM_API_KEY}"'),
        "'${VLLM_API_KEY}' disagrees with baseline",
    ),
    ("a fallback of nobody", with_line("fallback: [cloud]"), f":{LAST}: fallback: 'cloud' is not a configured"),
    ("a fallback twice", with_line("fallback: [ollama, ollama]"), f":{LAST}: fallback: names a provider twice"),
    ("a pin to nobody", instead("synthesis: share", "synthesis: vlm"), ":11: routing.components.synthesis: 'vlm' is"),
    (
        "an address of another scheme",
        instead("http://localhost:2", "ftp://h"),
        ":4: providers.vllm.base_url: must begin",
    ),
    (
        "a password in an address",
        instead("//localhost:2", f"//u:{SECRET}@h"),
        ":4: providers.vllm.base_url: must not hold",
    ),
    ("an address without a number", instead("localhost:2", "h:port"), ":4: providers.vllm.base_url: is not a URL"),
    ("two providers at one address", instead("localhost:2", "127.0.0.1:1"), ":4: providers.vllm.base_url: http://127"),
    ("our own address", instead("localhost:2", "localhost:8200"), ":4: providers.vllm.base_url: http://localhost:8200"),
    ("no address", instead("    base_url: http://localhost:2\n", ""), "providers.vllm.base_url: is required"),
    (
        "a kind of nobody",
        instead("    base_url", "    kind: vlm\n    base_url"),
        ":4: providers.vllm.kind: 'vlm' is not",
    ),
    ("the baseline switched off", instead(':1"}', ':1", enabled: false}'), "providers.ollama.enabled: the baseline"),
    ("a name of ours", instead("  vllm:", "  share:"), "providers.share: is a word of ours"),
    (
        "two owners of a name",
        instead("routing:", "  b: {aliases: [qwen3:8b]}\nrouting:"),
        "models: the name 'qwen3:8b'",
    ),
    ("a fallback to itself", instead("8B}", "8B, fallbacks: [qwen3:8b]}"), ":8: models.qwen3:8b.fallbacks: a model"),
    ("a model of no baseline", instead("8B}", "8B, ollama: null}"), ":8: models.qwen3:8b.ollama: the baseline must"),
    (
        "an alias that disagrees",
        with_line("primary_provider: vllm"),
        "primary_provider: 'vllm' disagrees with baseline",
    ),
    ("another that does", with_line("vllm_traffic_percentage: 0.3"), "vllm_traffic_percentage: 0.3 disagrees with"),
    (
        "per cents for a fraction",
        instead("  share: 0.1\n", "  vllm_traffic_percentage: 30\n"),
        "routing.vllm_traffic_percentage: routing.share: is a fraction from 0 to 1: for 30 per cent write 0.3",
    ),
    ("a key twice", with_line("baseline: ollama"), f":{LAST}: the key 'baseline' is there twice"),
    ("a nested key twice", with_line("  max_concurrency: 7"), f":{LAST}: the key 'max_concurrency' is there twice"),
    ("an open bracket", with_line("fallback: ["), ": not valid YAML"),
    ("a tab", with_line("\tretries: 1"), ": not valid YAML"),
    ("an unquoted variable", with_line("fallback: {a: ${B}}"), "quote it"),
    (
        "a variable of nobody",
        instead("VLLM_API_KEY", "VLLM_KEY"),
        ":5: providers.vllm.api_key: the environment variable",
    ),
    ("a variable with no name", instead("${VLLM_API_KEY}", "${}"), ":5: providers.vllm.api_key: a ${ that is not a"),
    ("a list", b"- ollama\n", ": must be a mapping of settings"),
    ("a word", SECRET.encode(), ": must be a mapping of settings"),
    ("nothing", b"", ": is empty"),
    ("nothing but remarks", b"# later\n---\n", ": is empty"),
    ("not text", bytes(range(128, 256)), ": not UTF-8 (byte 0)"),
    ("no characters of YAML", b"baseline: \x00\x01\n", ": not valid YAML"),
    ("half of it, cut in a word", GOOD.encode()[: GOOD.index("Qwen/")], ": not valid YAML"),
    ("half of it, cut in a key", GOOD.encode()[: GOOD.index("line: ollama")], ": not valid YAML"),
    ("very deep", b"a: " + b"[" * 1000, ": cannot be used (RecursionError)"),
]


class Site:
    """A runtime that follows a file, and what it told."""

    def __init__(self, runtime: Runtime, path: Path, told: Recorder) -> None:
        self.runtime, self.path, self.told = runtime, path, told
        self.in_force = (runtime.settings, runtime.routes())

    def unchanged(self) -> bool:
        return self.runtime.settings is self.in_force[0] and self.runtime.routes() is self.in_force[1]

    def exposed(self) -> str:
        return self.runtime.metrics.render()[0].decode()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    path = tmp_path_factory.mktemp("reload") / "my.yaml"
    path.write_text(GOOD)
    source = Source(path, ENVIRON)
    runtime = await open_runtime(source.read(), kind="test", source=source)
    told = Recorder()
    runtime.bus.subscribe("recorder", told)
    try:
        yield Site(runtime, path, told)
    finally:
        await runtime.aclose()


def rejected(site: Site) -> str:
    """What was said last: as an event, and as it is logged."""
    event = site.told.of(ConfigRejected)[-1]
    said = json.dumps([event.errors, LINES[ConfigRejected](event)])
    assert SECRET not in said
    return "\n".join(event.errors)


async def is_refused(site: Site, expected: str) -> None:
    site.told.events.clear()
    state = await site.runtime.reload()
    assert site.unchanged()
    said = rejected(site)
    assert expected in said
    assert all(line.startswith(str(site.path)) for line in said.splitlines())
    assert state.stale
    assert state is site.runtime.config_state()
    assert state.errors == tuple(said.splitlines())
    assert "memos_llm_config_stale 1.0" in site.exposed()


async def is_mended(site: Site) -> None:
    site.path.write_text(GOOD)
    state = await site.runtime.reload()
    assert not state.stale
    assert site.unchanged()  # it says what is in force: nothing is swapped for nothing
    assert "memos_llm_config_stale 0.0" in site.exposed()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("file", "expected"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
async def test_a_wrong_file_keeps_the_old_configuration_and_says_where(site: Site, file: bytes, expected: str) -> None:
    site.path.write_bytes(file)
    await is_refused(site, expected)
    await is_mended(site)


def gone(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "not-there")


def itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.fixture
def put_back(site: Site) -> Iterator[None]:
    yield
    if site.path.is_dir():
        site.path.rmdir()
    site.path.unlink(missing_ok=True)
    site.path.write_text(GOOD)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (gone, "cannot be read: No such file or directory"),
        (folder, "cannot be read: Is a directory"),
        (nowhere, "cannot be read: No such file or directory"),
        (itself, "cannot be read: Too many levels of symbolic links"),
        (pipe, "is not a file that can be read again"),
    ],
)
async def test_what_cannot_be_read_keeps_the_old_configuration(
    site: Site, spoil: Callable[[Path], None], expected: str
) -> None:
    spoil(site.path)
    await is_refused(site, expected)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.usefixtures("put_back")
async def test_a_file_without_the_right_to_read_it_keeps_the_old_configuration(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.path.chmod(0)
    if os.access(site.path, os.R_OK):  # root reads everything: have the system refuse as it would anybody else

        def refuse(self: Path) -> bytes:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_bytes", refuse)
    await is_refused(site, "cannot be read: Permission denied")
    site.path.chmod(0o600)


def test_there_are_more_than_forty_ways_to_be_wrong() -> None:
    assert len({file for _, file, _ in WRONG}) >= 40


# What is right


@asynccontextmanager
async def following(
    tmp_path: Path, **emulators: Any
) -> AsyncIterator[tuple[Stack, Callable[..., Any], dict[str, Any]]]:
    """A stack that follows its file, and how to write another one."""
    async with open_stack(tmp_path, **emulators) as stack:
        path = tmp_path / "memos_llm.yaml"
        base = document(stack.ollama.url, stack.vllm.url, tmp_path)
        stack.runtime.reloader = Reloader(Source(path, {}), stack.runtime, stack.runtime.bus, lambda read: read)

        async def write(**changes: Any) -> Any:
            settings(tmp_path, {**base, **changes})
            return await stack.runtime.reload()

        yield stack, write, base


async def ask(stack: Stack, **headers: str) -> httpx.Response:
    async with stack.client() as client:
        body = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "Why?"}]}
        return await client.post("/v1/chat/completions", json=body, headers=headers)


async def test_a_new_file_holds_for_the_next_request(tmp_path: Path) -> None:
    async with following(tmp_path) as (stack, write, _):
        assert (await ask(stack)).headers["x-memos-provider"] == "ollama"
        before = stack.runtime.transports
        state = await write(routing={"components": {"pinned": "vllm"}})
        assert state.generation == 1
        assert not state.stale
        assert (await ask(stack, **{"x-memos-component": "pinned"})).headers["x-memos-provider"] == "vllm"
        assert (await ask(stack)).headers["x-memos-provider"] == "ollama"
        assert dict(stack.runtime.transports) == dict(before)  # the very same: breakers and connections are kept
        assert 'memos_llm_config_reloads_total{result="changed"} 1.0' in await stack.metrics()


async def test_new_limits_and_webhooks_are_in_force_at_once(tmp_path: Path) -> None:
    async with following(tmp_path) as (stack, write, _), open_hook() as hook:
        assert stack.runtime.policy().guard.of("vllm").error_rate == 0.05
        await write(rollback={"providers": {"vllm": {"error_rate": 0.5}}, "webhooks": [{"url": hook.url}]})
        assert stack.runtime.policy().guard.of("vllm").error_rate == 0.5
        await stack.rollback()
        await until(lambda: len(hook.got) == 1, 15.0)
        path = tmp_path / "memos_llm.yaml"
        path.write_text(path.read_text().replace("error_rate: 0.5", "error_rate: 5"))
        state = await stack.runtime.reload()
        assert "rollback.providers.vllm.error_rate: is a fraction from 0 to 1" in state.errors[0]
        assert stack.runtime.policy().guard.of("vllm").error_rate == 0.5


async def test_the_share_in_the_store_is_not_touched(tmp_path: Path) -> None:
    async with following(tmp_path) as (stack, write, _):
        await stack.shift(1.0)
        await write(routing={"share": 0.0})
        assert (await ask(stack)).headers["x-memos-provider"] == "vllm"
        assert stack.runtime.live.current().share_ppm(GLOBAL) == 1_000_000


async def test_a_share_never_becomes_another_providers(tmp_path: Path) -> None:
    async with following(tmp_path) as (stack, write, base):
        known = base["providers"]
        third = {
            "candidate": "third",
            "providers": {"ollama": known["ollama"], "third": known["vllm"]},
            "models": {"qwen3:8b": {"third": VLLM_MODEL}},
        }
        await stack.shift(0.25)
        for by_way_of_none in (False, True):
            if by_way_of_none:
                assert not (await write(candidate=None, models={})).stale
            (said,) = (await write(**third)).errors
            assert said.startswith("candidate: third would get what was set for vllm (* 0.25)")
            assert "`llmctl shift --third 0`" in said
            assert (await ask(stack, **{"x-memos-session": "s"})).headers["x-memos-provider"] in ("ollama", "vllm")
        with pytest.raises(ConfigError, match=r"third would get what was set for vllm \(\* 0.25\)"):
            await open_runtime(settings(tmp_path, {**base, **third}), kind="test")
        await stack.shift(0.0)
        assert not (await write(**third)).stale
        await (await open_runtime(stack.runtime.settings, kind="test")).aclose()


async def test_a_setting_that_needs_a_restart_is_named_and_the_rest_applies(tmp_path: Path) -> None:
    async with following(tmp_path) as (stack, write, base):
        state = await write(store="memory://", gateway={"port": 9999, "max_concurrency": 7}, retries=3)
        assert state.waiting == ("store", "gateway.port")
        assert state.stale
        settings = stack.runtime.settings
        assert (settings.retries, settings.gateway.max_concurrency) == (3, 7)
        assert (settings.store_url, settings.gateway.port) == (base["store"], 8200)
        line = LINES[ConfigChanged](stack.told.of(ConfigChanged)[-1])
        assert line[0] == "warning"
        assert line[2]["needs_restart"] == ("store", "gateway.port")
        assert not (await write()).stale


async def test_a_stream_on_a_removed_provider_ends_well_and_only_then_is_the_provider_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    async def close(self: HttpTransport) -> None:
        closed.append(self.name)

    monkeypatch.setattr(HttpTransport, "aclose", close)
    async with following(tmp_path, vllm={"inter_token_s": 0.02}, probe=True) as (stack, write, base):
        await stack.shift(1.0)
        await until(lambda: "provider_up" in stack.runtime.metrics.render()[0].decode())
        body = {
            "model": "qwen3:8b",
            "stream": True,
            "messages": [{"role": "user", "content": "Why is the sky blue? words:40"}],
        }
        async with stack.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            assert (await anext(lines)).startswith("data: ")
            await write(providers={"ollama": base["providers"]["ollama"]}, candidate=None, models={})
            assert closed == []
            assert (await ask(stack)).headers["x-memos-provider"] == "ollama"
            exposed = await stack.metrics()
            assert f'provider_up{{endpoint="{stack.vllm.url}"' not in exposed
            rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        await until(lambda: closed == ["vllm"])
        assert {e.provider: e.outcome.kind.value for e in stack.told.of(RequestEnded)} == {"ollama": "ok", "vllm": "ok"}
        await write()
        assert stack.runtime.transports.keys() == {"ollama", "vllm"}
        assert (await ask(stack)).headers["x-memos-provider"] == "vllm"  # probed before it was asked


async def test_a_provider_that_cannot_be_opened_keeps_the_old_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(tmp_path) as (stack, write, base):
        before, opened, closed = stack.runtime.routes(), list[str](), list[str]()

        def open_transport(spec: ProviderSpec, *args: Any, **options: Any) -> Transport:
            if spec.name == "broken":
                raise ConfigError("providers.broken.kind: its plug-in cannot be loaded")
            opened.append(spec.name)
            return providers.open_transport(spec, *args, **options)

        async def close(self: HttpTransport) -> None:
            closed.append(self.name)

        monkeypatch.setattr(wiring, "open_transport", open_transport)
        monkeypatch.setattr(HttpTransport, "aclose", close)
        more = {
            "third": {"kind": "ollama", "base_url": "http://localhost:1"},
            "broken": {"kind": "ollama", "base_url": "http://localhost:2"},
        }
        state = await write(providers={**base["providers"], **more})
        assert state.errors == ("providers.broken.kind: its plug-in cannot be loaded",)
        assert stack.runtime.routes() is before
        assert opened == ["third"]
        await until(lambda: closed == ["third"])
        assert (await ask(stack)).headers["x-memos-provider"] == "ollama"


async def test_a_change_is_taken_once_the_file_keeps_still(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(GOOD)
    source = Source(path, ENVIRON)
    runtime = await open_runtime(source.read(), kind="test", source=source)
    told = Recorder()
    runtime.bus.subscribe("recorder", told)
    reloader = runtime.reloader
    assert reloader is not None
    try:
        await reloader.look()
        path.write_text("")  # as an editor does that writes in place
        await reloader.look()
        path.write_bytes(with_line("retries: 5"))
        await reloader.look()
        assert told.events == []
        await reloader.look()
        assert runtime.settings.retries == 5
        assert [type(event) for event in told.events] == [ConfigChanged]
        await reloader.look()
        assert len(told.events) == 1
    finally:
        await runtime.aclose()


# As a process


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[Any]:
    async with running("--config", str(path), "serve", "--port", "0") as server:
        yield server
    assert "Traceback" not in server.said
    assert [line for line in server.said.splitlines() if not line.startswith("{") and not LISTENING.match(line)] == []


async def test_llmctl_serve_follows_its_file(tmp_path: Path) -> None:
    """A good file by rename, a bad one in place, a good one by a turned symbolic link, one at once by SIGHUP."""

    async def provider(client: httpx.AsyncClient) -> str:
        body = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "Why?"}]}
        response = await client.post("/v1/chat/completions", json=body, headers={"x-memos-component": "c"})
        assert response.status_code == 200
        return response.headers["x-memos-provider"]

    async with open_site(tmp_path) as site:

        def text(pin: str) -> str:
            config = document(site.ollama.url, site.vllm.url, tmp_path)
            return json.dumps({**config, "routing": {"components": {"c": pin}}})  # JSON is YAML

        versions = tmp_path / "v1", tmp_path / "v2"
        for version, pin in zip(versions, ("share", "vllm"), strict=True):
            version.mkdir()
            (version / "my.yaml").write_text(text(pin))
        data = tmp_path / "data"
        data.symlink_to(versions[0])
        path = tmp_path / "linked.yaml"
        path.symlink_to(data / "my.yaml")
        async with served(path) as server, httpx.AsyncClient(base_url=server.url, timeout=20) as client:
            assert await provider(client) == "ollama"
            turned = tmp_path / "turned"
            turned.symlink_to(versions[1])
            turned.rename(data)  # as Kubernetes does
            await until(lambda: len(server.lines("config")) == 1, 10)
            assert await provider(client) == "vllm"

            (versions[1] / "my.yaml").write_text(text("vlm"))
            await until(lambda: len(server.lines("config-rejected")) == 1, 10)
            (line,) = server.lines("config-rejected")
            assert line["level"] == "error"
            assert "routing.components.c: 'vlm' is neither a role nor a configured provider" in line["errors"][0]
            assert await provider(client) == "vllm"
            assert "memos_llm_config_stale 1.0" in (await client.get("/metrics")).text

            new = tmp_path / "new.yaml"
            new.write_text(text("ollama"))
            new.rename(path)  # as most editors do
            os.kill(server.pid, signal.SIGHUP)
            await until(lambda: len(server.lines("config")) >= 2, 10)
            assert await provider(client) == "ollama"
            assert "memos_llm_config_stale 0.0" in (await client.get("/metrics")).text


async def test_a_file_that_takes_the_keys_away_does_not_open_the_gateway_to_the_network(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        base = document(site.ollama.url, site.vllm.url, tmp_path)
        keys = {"api_keys": [{"id": "a", "sha256": "0" * 64, "scopes": ["inference"]}]}
        path = tmp_path / "my.yaml"
        path.write_text(json.dumps({**base, "gateway": keys}))
        async with running("--config", str(path), "serve", "--port", "0", "--host", "0.0.0.0") as server:
            path.write_text(json.dumps(base))
            await until(lambda: server.lines("config-rejected"), 10)
            assert "gateway.api_keys: must not be empty" in server.lines("config-rejected")[0]["errors"][0]
