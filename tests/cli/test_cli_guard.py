"""What people see of the guard: windows against limits, maintenance, incidents, webhooks, on the store or a gateway."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_driver import DEAD, Llmctl, write_config
from hook_server import open_hook
from stack import Stack, open_stack, until

from memos_llm.cli import telling
from memos_llm.core.commands import Actor, Command, Rearm, Rollback, Shift, audit, incident
from memos_llm.core.flags import fresh
from memos_llm.core.ports import StateStore
from memos_llm.core.verdicts import ArmWindow, Evidence, ProbeSeen
from memos_llm.core.windows import WindowDelta, WindowKey, bucket
from memos_llm.library import Router
from memos_llm.providers import engines
from memos_llm.providers.health import MODELS
from memos_llm.store import open_store

CHAT = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "hi"}]}
ME = Actor("guard-1", "guard")


@pytest.fixture
def alone(tmp_path: Path) -> Llmctl:
    """On a store that nobody follows; the candidate is `newbox`."""
    return Llmctl(write_config(tmp_path))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StateStore]:
    """The store of `alone`, all of it newbox's."""
    opened = open_store(f"sqlite:///{tmp_path}/alone.db")
    flags = fresh("i", "00" * 16, 1_000_000, "newbox")
    await opened.commit(0, flags, audit(Shift(provider="newbox", share_ppm=0), flags, flags, ME, time.time()))
    yield opened
    await opened.aclose()


async def count(store: StateStore, provider: str, *, n: int, failures: int, seconds: float = 0.5) -> None:
    """Requests of the last minute, in the windows of the epoch in force."""
    flags = await store.load()
    assert flags is not None
    key = WindowKey(scope="*", epoch=flags.scope("*").epoch, provider=provider, model="qwen3:8b", component="synthesis")
    slow = n if seconds > 5 else 0
    counts = {"n": n, "e": n, "t": n, "r": n, "s": slow, bucket(seconds): n, "k": failures, "k.server": failures}
    await store.merge([WindowDelta(key=key, start=int(time.time()) - 20, counts=counts)])


async def submit(store: StateStore, command: Command) -> None:
    flags, now = await store.load(), time.time()
    assert flags is not None
    after = command.apply(flags, now)
    record = incident(command, flags, after, ME, now)
    await store.commit(flags.revision, after, audit(command, flags, after, ME, now), record)


def row(status: Any, provider: str, component: str = "") -> Any:
    rows = [
        one
        for one in status["windows"]
        if (one["provider"], one["component"], one["model"]) == (provider, component, "")
    ]
    assert len(rows) == 1
    return rows[0]


def flat(text: str) -> str:
    """A screen's words, wherever it broke the lines."""
    return " ".join(text.split())


class TestWindows:
    async def test_both_arms_stand_against_their_limits(self, alone: Llmctl, store: StateStore) -> None:
        await count(store, "newbox", n=100, failures=2)
        await count(store, "ollama", n=40, failures=0, seconds=8.0)
        status = await alone.json("status")

        new, old = row(status, "newbox", "synthesis"), row(status, "ollama")
        assert (new["n"], new["failures"], new["error_rate"], new["error_limit"]) == (100, 2, 0.02, 0.05)
        assert (new["verdict"], new["reason"], new["missing"], new["kinds"]) == ("pass", "within", 0, {"server": 2})
        assert new["p95_ms"] == pytest.approx(500, rel=0.06)
        assert new["p95_limit_ms"] == 5000
        assert (old["verdict"], old["reason"], old["missing"]) == ("inconclusive", "too-few", 10)
        rules = {rule["trigger"]: rule for rule in new["rules"]}
        assert (rules["error_rate"]["n"], rules["error_rate"]["k"]) == (100, 2)
        assert rules["error_rate"]["low"] < 0.02 < rules["error_rate"]["high"]

    async def test_how_far_each_rule_is_from_its_limit_is_told_when_nothing_fires(
        self, alone: Llmctl, store: StateStore
    ) -> None:
        await count(store, "newbox", n=100, failures=2)
        before = await alone.json("status")
        (spare,) = {one["spare"] for one in row(before, "newbox")["rules"] if one["trigger"] == "error_rate"}
        shown = flat((await alone("status")).out)
        assert "2 of 100 requests failed; more than 5% are too many" in shown
        assert f"{spare} more bad ones among these would fire it" in shown

        await count(store, "newbox", n=0, failures=spare - 1)
        assert row(await alone.json("status"), "newbox")["verdict"] != "fail"
        await count(store, "newbox", n=0, failures=1)
        assert row(await alone.json("status"), "newbox")["verdict"] == "fail"

    async def test_what_data_is_missing_is_told(self, alone: Llmctl, store: StateStore) -> None:
        await count(store, "newbox", n=30, failures=1)
        assert "20 more requests needed for a verdict" in flat((await alone("status")).out)

    async def test_a_limit_of_a_component_is_the_components_alone(self, alone: Llmctl, store: StateStore) -> None:
        with alone.config.open("a") as file:
            file.write("rollback: {components: {synthesis: {error_rate: 0.5, latency_p95_ms: null}}}\n")
        await count(store, "newbox", n=100, failures=30)
        status = await alone.json("status")
        assert row(status, "newbox")["verdict"] == "fail"
        mine = row(status, "newbox", "synthesis")
        assert (mine["verdict"], mine["error_limit"], mine["p95_limit_ms"]) == ("pass", 0.5, None)

    async def test_what_only_a_gateway_knows_is_named_with_the_way_to_ask_it(
        self, stack: Stack, tmp_path: Path
    ) -> None:
        ctl = Llmctl(tmp_path / "memos_llm.yaml")
        words = "5 more rules only a running gateway knows"
        shown = flat((await ctl("status")).out)
        assert words in shown
        assert "error_run, latency_run, timeouts, health, breaker_open: ask it, `llmctl --gateway URL status`" in shown
        assert words not in flat((await ctl("--gateway", stack.url, "status")).out)

    async def test_a_guard_that_is_off_says_so(self, alone: Llmctl, store: StateStore) -> None:
        with alone.config.open("a") as file:
            file.write("rollback: {enabled: false}\n")
        shown = (await alone("status")).out
        assert "guard: OFF" in shown
        assert "more rules" not in shown
        assert "nothing rolls back by itself" in (await alone("shift", "--newbox", "0.5")).err

    async def test_a_gateway_tells_what_its_guard_said(self, stack: Stack, tmp_path: Path) -> None:
        await stack.shift(1.0)
        async with stack.client() as client:
            for _ in range(3):
                await client.post("/v1/chat/completions", json=CHAT)
        ctl = Llmctl(tmp_path / "memos_llm.yaml")
        told: set[str] = set()
        async with asyncio.timeout(10):
            while not {"error_rate", "latency_p95", "health"} <= told:  # each round of the guard says more
                status = await ctl.json("--gateway", stack.url, "status")
                assert row(status, "vllm")["n"] <= 3
                if row(status, "vllm")["n"] == 3:
                    mine = [one for one in status["windows"] if one["provider"] == "vllm"]
                    told = {rule["trigger"] for one in mine for rule in one["rules"]}
        assert status["at"] - status["guard"]["said_at"] < 5


class TestShift:
    async def test_it_says_what_will_be_watched_and_when_that_can_be_judged(self, alone: Llmctl) -> None:
        ran = await alone("shift", "--newbox", "0.2", "--wait", "0")
        assert "the guard takes newbox back at more than 5% failing" in ran.err
        assert "after 50 requests" in ran.err

    async def test_a_baseline_that_is_beyond_a_limit_itself_is_told_with_both_values(
        self, alone: Llmctl, store: StateStore
    ) -> None:
        await count(store, "ollama", n=100, failures=9, seconds=8.0)
        shifted = await alone.json("shift", "--newbox", "0.5", "--wait", "0")
        errors, slow = [one for one in shifted["warnings"] if one.startswith("ollama itself is beyond")]
        assert "rollback.error_rate: 9% over 100 requests, the limit is 5%" in errors
        assert "rollback.latency_p95_ms" in slow
        assert "the limit is 5000 ms" in slow

    async def test_a_baseline_within_its_limits_is_no_matter(self, alone: Llmctl, store: StateStore) -> None:
        await count(store, "ollama", n=100, failures=1)
        shifted = await alone.json("shift", "--newbox", "0.5", "--wait", "0")
        assert not [one for one in shifted["warnings"] if "ollama" in one]


class TestMaintenance:
    async def test_requests_go_round_it_and_come_back(self, stack: Stack, tmp_path: Path) -> None:
        ctl = Llmctl(tmp_path / "memos_llm.yaml")
        await ctl.json("shift", "--vllm", "1")
        made = await ctl.json("maintenance", "vllm", "--for", "10m", "--reason", "driver")
        assert made["share"] == 1.0
        assert made["until"] == pytest.approx(time.time() + 600, abs=30)
        async with stack.client() as client:
            answer = await client.post("/v1/chat/completions", json=CHAT)
            assert (answer.headers["x-memos-provider"], answer.headers["x-memos-reason"]) == ("ollama", "diverted")

            status = await ctl.json("status")
            assert status["maintenance"] == {"vllm": made["until"]}
            assert status["shares"]["*"] == {"vllm": 1.0}
            assert "maintenance of vllm until" in (await ctl("status")).out
            entry = (await ctl.json("history"))["entries"][0]
            assert (entry["command"], entry["provider"], entry["reason"]) == ("maintain", "vllm", "for 10m: driver")

            await ctl.json("--gateway", stack.url, "maintenance", "vllm", "--end")
            answer = await client.post("/v1/chat/completions", json=CHAT)
            assert answer.headers["x-memos-provider"] == "vllm"
        assert (await ctl.json("status"))["maintenance"] == {}

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["newbox"], 2, "say how long: --for 10m"),
            (["newbox", "--for", "10m", "--end"], 2, "--for and --end do not go together"),
            (["newbox", "--for", "10"], 2, "write 90s, 10m or 2h; 24h at most"),
            (["newbox", "--for", "0s"], 2, "write 90s, 10m or 2h"),
            (["newbox", "--for", "25h"], 2, "24h at most"),
            (["newbx", "--for", "10m"], 2, "did you mean newbox? choices: ollama, newbox, third"),
            (["newbox", "--end"], 3, "newbox is not under maintenance"),
            (["ollama", "--for", "10m"], 3, "nobody answers for ollama meanwhile"),
        ],
    )
    async def test_what_is_refused_names_the_way_out(
        self, alone: Llmctl, store: StateStore, arguments: list[str], code: int, words: str
    ) -> None:
        ran = await alone("maintenance", *arguments)
        assert ran.code == code, ran
        assert words in ran.err


class TestIncidents:
    async def rolled_back(self, store: StateStore) -> None:
        now = time.time()
        evidence = Evidence(
            at=now,
            by="gateway-a-1",
            scope="*",
            trigger="error_rate",
            rule="12 of 60 requests failed; more than 5% are too many",
            limit=0.05,
            n=60,
            k=12,
            estimate=0.2,
            low=0.089,
            high=0.35,
            windows=(
                ArmWindow(
                    provider="newbox", since=now - 300, until=now, n=60, ended=60, failures=12, slow=0, timed=48,
                    p95_ms=900.0, kinds={"incompatible": 9, "server": 3},
                ),
                ArmWindow(
                    provider="ollama", since=now - 300, until=now, n=140, ended=140, failures=1, slow=0, timed=139
                ),
            ),
            probes=(ProbeSeen(provider="newbox", endpoint=DEAD[1], up=True, version="0.11.0", at=now - 3),),
            versions={"newbox": "0.11.0"},
            requests=("req-1", "req-2"),
            detection_s=1.25,
            decision_s=0.004,
            propagation_s=0.2,
        )  # fmt: skip
        await submit(
            store,
            Rollback(provider="newbox", incident="inc-1", trigger="error_rate", automatic=True, evidence=evidence),
        )
        other = Evidence(
            at=now + 1, by="gateway-b-2", scope="*", trigger="error_run", rule="7 of 9 failed", limit=0.05, n=9, k=7
        )
        await store.note("inc-1", other)

    async def test_one_is_told_so_that_it_can_be_acted_upon(self, alone: Llmctl, store: StateStore) -> None:
        await self.rolled_back(store)
        ran = await alone("incidents", "inc-1")
        told = flat(ran.out)
        for words in (
            "inc-1: newbox rolled back, everything",
            "too many of its requests failed",
            "12 of 60 requests failed; more than 5% are too many",
            "12 of 60 (20%, surely more than 8.9%, at most 35%); the limit is 5%",
            "*: 100% -> 0%",
            "1.2 s from the first failed or slow one to the verdict",
            "4 ms from there until that process sent no more",
            "200 ms from there until it was in the store",
            "incompatible 9, server 3",
            "140 1 (0.714%)",
            "0.11.0",
            "req-1",
            "also seen by 1",
            "gateway-b-2: error_run",
            "tool parser, context length",
            "llmctl rearm --reason",
            "(hold-down, ",
            "llmctl shift --newbox 5%",
        ):
            assert words in told, words
        assert max(len(line) for line in ran.out.splitlines() if "`" not in line) <= 80

    async def test_the_document_is_whole(self, alone: Llmctl, store: StateStore) -> None:
        await self.rolled_back(store)
        found = await alone.json("incidents", "inc-1")
        (one,) = found["incidents"]
        assert [each["by"] for each in one["evidence"]] == ["gateway-a-1", "gateway-b-2"]
        assert one["evidence"][0]["windows"][0]["kinds"] == {"incompatible": 9, "server": 3}
        assert [(latch["incident"], latch["scope"]) for latch in found["latched"]] == [("inc-1", "*")]

    async def test_a_hold_down_is_told_and_kept(self, alone: Llmctl, store: StateStore) -> None:
        await self.rolled_back(store)
        shown = flat((await alone("status")).out)
        assert "hold-down for " in shown
        assert "lift it with `llmctl rearm`, from" in shown
        assert "holds" in (await alone("incidents")).out

    async def test_a_list_shows_every_id_whole_for_it_is_copied(self, alone: Llmctl, store: StateStore) -> None:
        rollback = Rollback(
            provider="newbox", incident="inc-0a1b2c3d4e5f", trigger="error_run", reason="it failed " * 9
        )
        await submit(store, rollback)
        await submit(store, Rearm(provider="newbox"))
        listed = (await alone("incidents")).out
        assert "inc-0a1b2c3d4e5f" in listed
        assert "lifted" in listed
        refused = await alone("rearm")
        assert refused.code == 3

    async def test_a_refused_shift_names_the_incident(self, alone: Llmctl, store: StateStore) -> None:
        await self.rolled_back(store)
        ran = await alone("shift", "--newbox", "0.1")
        assert ran.code == 3
        assert "`llmctl incidents inc-1` says why" in ran.err


@asynccontextmanager
async def listening(alone: Llmctl, says: bytes) -> AsyncIterator[str]:
    """Newbox is something that says the same whatever it is asked, and then leaves; its URL."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")  # a reset would be another thing
        writer.write(says)
        writer.close()

    server = await asyncio.start_server(play, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    alone.config.write_text(alone.config.read_text().replace(DEAD[1], url))
    async with server:
        yield url


class TestRearm:
    @pytest.mark.parametrize(("says", "why"), [(b"", "truncated"), (b"SSH-2.0-OpenSSH_9.6\r\n", "malformed")])
    async def test_a_port_that_something_else_listens_on_is_no_healthy_provider(
        self, alone: Llmctl, store: StateStore, says: bytes, why: str
    ) -> None:
        await submit(store, Rollback(provider="newbox", incident="inc-1"))
        async with listening(alone, says) as url:
            refused = await alone("rearm")
            assert refused.code == 3
            assert f"newbox is not healthy: {url} is down ({why} " in refused.err
            (end,) = (await alone.json("status"))["providers"]["newbox"]["endpoints"]
            assert (end["up"], end["detail"].split()[0]) == (False, why)

    async def test_one_that_says_nothing_sensible_of_its_models_is_named(
        self, alone: Llmctl, store: StateStore
    ) -> None:
        await submit(store, Rollback(provider="newbox", incident="inc-1"))
        page = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>"
        async with listening(alone, page) as url:
            (end,) = (await alone.json("status"))["providers"]["newbox"]["endpoints"]
            assert (end["up"], end["detail"], end["models"]) == (True, MODELS, None)
            assert f"{url} is up, but: {MODELS}" in (await alone("rearm")).err

    async def test_a_gateway_refuses_an_engine_that_stands_still_which_nobody_sees_at_first_sight(
        self, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engines, "APART_S", 0.0)
        await stack.shift(1.0)
        stack.vllm.faults.set("hang_engine")
        async with stack.client() as client:
            asked = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
            await until(lambda: any(one.path == "/v1/chat/completions" for one in stack.vllm.requests))
            await stack.runtime.transports["vllm"].probe()
            await stack.rollback()
            refused = await Llmctl(tmp_path / "memos_llm.yaml")("--gateway", stack.url, "rearm")
            assert refused.code == 3
            assert "is down (frozen)" in refused.err
            stack.vllm.faults.clear()
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    async def test_a_hold_down_that_is_not_over_is_named_with_what_is_left(self, stack: Stack, tmp_path: Path) -> None:
        ctl = Llmctl(tmp_path / "memos_llm.yaml")
        rollback = Rollback(provider="vllm", incident="inc-1", trigger="error_rate", automatic=True)
        await stack.runtime.live.submit(rollback, ME)
        for place in ((), ("--gateway", stack.url)):
            ran = await ctl(*place, "rearm")
            assert ran.code == 3
            assert "the hold-down of * has " in ran.err
            assert " left; `--force --reason`" in ran.err
        assert (await ctl("rearm", "--force", "--reason", "was mended")).code == 0

    async def test_it_says_what_to_do_next(self, stack: Stack, tmp_path: Path) -> None:
        ctl = Llmctl(tmp_path / "memos_llm.yaml")
        await ctl.json("rollback", "--component", "synthesis")
        ran = await ctl("rearm", "--component", "synthesis")
        assert "`llmctl shift --vllm 5% --component synthesis`, a small share first" in ran.err


class TestWebhooks:
    async def test_a_rollback_without_a_gateway_tells_by_itself(self, alone: Llmctl) -> None:
        async with open_hook() as hook:
            with alone.config.open("a") as file:
                file.write(f'rollback: {{webhooks: [{{url: "{hook.url}", secret: s}}]}}\n')
            ran = await alone("rollback", "--reason", "bad", "--wait", "0")
            assert ran.code == 0
            host = hook.url.split("/")[2]
            assert f"told: {host}" in ran.err
            (got,) = hook.got
            assert json.loads(got.body)["reason"] == "bad"

    async def test_one_that_does_not_answer_is_named_and_tried_later(
        self, alone: Llmctl, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(telling, "LIMIT_S", 2.0)  # it waits that long for one that may come back
        with alone.config.open("a") as file:
            file.write('rollback: {webhooks: [{url: "http://127.0.0.1:9/canary-path"}]}\n')
        ran = await alone("rollback", "--wait", "0")
        assert ran.code == 0
        assert "127.0.0.1:9 could not be told of it (ConnectError): the next gateway that starts tries again" in ran.err
        assert "canary-path" not in ran.err + ran.out

    async def test_a_gateway_tells_of_anybodys_rollback_once(self, tmp_path: Path) -> None:
        async with (
            open_hook() as hook,
            open_stack(tmp_path, config={"rollback": {"webhooks": [{"url": hook.url, "secret": "s"}]}}) as stack,
        ):
            ctl = Llmctl(tmp_path / "memos_llm.yaml")
            made = await ctl.json("--gateway", stack.url, "rollback")
            await until(lambda: len(hook.got) == 1)
            assert json.loads(hook.got[0].body)["id"] == made["latched"]
            assert 'memos_llm_webhooks_total{result="delivered"} 1.0' in await stack.metrics()

    async def test_a_program_with_the_library_tells_too(self, alone: Llmctl) -> None:
        async with open_hook() as hook:
            with alone.config.open("a") as file:
                file.write(f'rollback: {{webhooks: [{{url: "{hook.url}"}}]}}\n')
            async with Router.open(alone.config, probe=False):
                assert "no gateway is running" not in (await alone("rollback", "--reason", "bad")).err
                await until(lambda: len(hook.got) == 1, 10.0)
        assert len(hook.got) == 1

    async def test_what_a_short_program_decides_as_it_ends_is_told_before_it_has(
        self, alone: Llmctl, store: StateStore
    ) -> None:
        """Most of them judge once: when they close."""
        await count(store, "newbox", n=100, failures=60)
        async with open_hook() as hook:
            with alone.config.open("a") as file:
                file.write(f'rollback: {{webhooks: [{{url: "{hook.url}"}}]}}\n')
            async with Router.open(alone.config, probe=False):
                pass
            (incident,) = await store.incidents(9)
            assert [json.loads(got.body)["id"] for got in hook.got] == [incident.id]
        assert await store.claim("anyone", 1.0) is None

    async def test_a_webhook_that_hangs_holds_nothing_up(self, tmp_path: Path) -> None:
        async with (
            open_hook(0) as hook,
            open_stack(tmp_path, config={"rollback": {"webhooks": [{"url": hook.url}]}}) as stack,
        ):
            await Llmctl(tmp_path / "memos_llm.yaml").json("--gateway", stack.url, "rollback")
            await until(lambda: len(hook.got) == 1)
            async with stack.client() as client:
                assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


class TestConfigAndDoctor:
    async def test_check_says_what_is_rolled_back_for_and_who_is_told(self, alone: Llmctl) -> None:
        with alone.config.open("a") as file:
            file.write(
                "rollback: {components: {synthesis: {latency_p95_ms: 20000}}, "
                'webhooks: [{url: "https://hooks.example.com/canary-path"}]}\n'
            )
        out = (await alone("config", "check")).out
        assert "rolls back at more than 5% failing, more than 5% slower than 5 s (e2e)" in out
        assert "component synthesis: more than 5% failing, more than 5% slower than 20 s" in out
        assert "hooks.example.com" in out
        assert "canary-path" not in out

    async def test_doctor_finds_a_baseline_that_keeps_no_limit_and_a_webhook_that_is_dead(
        self, alone: Llmctl, store: StateStore
    ) -> None:
        with alone.config.open("a") as file:
            file.write('rollback: {webhooks: [{url: "http://127.0.0.1:9/x"}]}\n')
        await count(store, "ollama", n=100, failures=9)
        ran = await alone("doctor", "--deep", "--json")
        checks = {one["id"]: one for one in ran.json["checks"]}
        assert checks["guard.enabled"]["verdict"] == "ok"
        assert checks["guard.fit.all.error_rate"]["verdict"] == "warn"
        assert "9%, and the limit is 5%" in checks["guard.fit.all.error_rate"]["seen"]
        assert checks["guard.webhooks.127.0.0.1:9"]["verdict"] == "warn"
        shallow = {one["id"]: one for one in (await alone("doctor", "--json")).json["checks"]}
        assert shallow["guard.webhooks"]["verdict"] == "skipped"
