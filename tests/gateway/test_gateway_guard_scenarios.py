"""The guard where a rollback would be wrong or nearly is: both arms ill, nobody there to go back to, nobody asking,
work that is planned, an old model that is cold, and requests that say less than they seem to.
"""

import asyncio
import itertools
import sys
import time
from pathlib import Path

import httpx
import pytest
from guarding import (
    ILL,
    SHORT,
    WIDE,
    ask,
    ask_until,
    asking,
    folder,
    held,
    incidents,
    latched,
    nothing_broke,
    probe,
    probing,
    said_again,
    share,
    some,
    status,
    together,
    window,
)
from stack import ME, OLLAMA_MODELS, VLLM_MODEL, Stack, document, open_gateway, open_stack, settings, until

from memos_llm.core.commands import Maintain
from memos_llm.core.events import AttemptEnded, GuardBlind, IncidentOpened, RollbackHeld
from memos_llm.emulators import OllamaEmulator, VllmEmulator
from memos_llm.providers.http import HttpTransport

FAILING = "status:code=500,rate=0.4"


# Both arms are ill, or there is nobody to go back to.


async def test_while_both_arms_fail_alike_nothing_changes_and_once_the_baseline_is_well_it_rolls_back(
    tmp_path: Path,
) -> None:
    async with open_stack(tmp_path, ollama=WIDE) as stack, stack.client() as client:
        await stack.shift(0.5)
        stack.vllm.faults.set(FAILING)
        stack.ollama.faults.set(FAILING)
        asked = len(await ask_until(stack, client, RollbackHeld, many=8))
        await some(client, asked, 16)
        await said_again(stack)
        assert {why for _, why in held(stack)} <= {"limit-unfit", "baseline-down"}
        assert (incidents(stack), share(stack)) == ([], 0.5)
        (shown,) = (await status(stack))["guard"]["held"]
        assert (shown["provider"], shown["scope"]) == ("vllm", "*")
        trigger, why = next(iter(held(stack)))
        line = f'memos_llm_rollbacks_held_total{{provider="vllm",trigger="{trigger}",why="{why}"}} 1.0'
        assert line in await stack.metrics()

        stack.ollama.faults.clear()
        await ask_until(stack, client, IncidentOpened, many=8)
        await said_again(stack)
        assert (len(incidents(stack)), latched(stack)) == (1, True)
        nothing_broke(stack)


async def test_when_their_host_is_gone_nothing_changes_until_one_of_them_is_back(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack, stack.client() as client:
        await stack.shift(0.5)
        stack.vllm.faults.set("refuse")
        stack.ollama.faults.set("refuse")
        assert not set(await some(client, 0, 20)) & {200, 0}, "there is nobody to answer, and that is said"
        await probe(stack, "vllm", "ollama")
        await until(lambda: bool(stack.told.of(RollbackHeld)))
        await some(client, 20, 20)
        await said_again(stack)
        assert ("health", "baseline-down") in held(stack)
        assert (incidents(stack), share(stack)) == ([], 0.5)

        stack.ollama.faults.clear()
        await probe(stack, "ollama", times=1)
        await ask_until(stack, client, IncidentOpened)
        assert (await ask(client, 1)).headers["x-memos-provider"] == "ollama"
        nothing_broke(stack)


async def test_a_baseline_that_hung_once_and_is_never_idle_is_gone_back_to(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"timeouts": {"stall_s": 0.3}}) as stack, stack.client() as client:
        transport = stack.runtime.transports["ollama"]
        assert isinstance(transport, HttpTransport)
        (endpoint,) = transport._pool
        await ask(client, 0)
        stack.ollama.faults.set("hang_after_headers:count=1")
        somebody = endpoint.begin()
        assert (await ask(client, 0, stream=True)).status_code == 504
        assert transport.offer("qwen3:8b").refused == "down"
        assert (await ask(client, 0)).status_code == 200
        await until(lambda: transport.offer("qwen3:8b").refused is None)
        await stack.shift(1.0)
        stack.vllm.faults.set("refuse")
        await probe(stack, "vllm")
        await until(lambda: bool(stack.told.of(IncidentOpened)) or bool(held(stack)))
        assert (held(stack), latched(stack)) == (set(), True)
        somebody.end()
        nothing_broke(stack)


TRIGGERS = {"error_run": ILL, "timeouts": "hang", "health": "refuse"}


@pytest.mark.parametrize(
    "cases",
    [
        [("error_run", "refuse"), ("timeouts", "hang"), ("health", "refuse")],
        pytest.param([("error_run", "hang"), ("timeouts", "refuse"), ("health", "hang")], marks=pytest.mark.slow),
    ],
)
async def test_no_trigger_goes_back_to_a_baseline_that_is_down(tmp_path: Path, cases: list[tuple[str, str]]) -> None:
    async def stays(trigger: str, gone: str) -> None:
        config = {"timeouts": SHORT, "rollback": {"error_rate": 0.05 if trigger == "error_run" else None}}
        async with open_stack(folder(tmp_path, trigger), config=config) as stack, stack.client() as client:
            stack.ollama.faults.set(gone)
            await some(client, 0, 8)  # that opens its breaker; no probe has seen it yet
            await stack.shift(1.0)
            await until_held(stack, client, trigger)
            assert {why for _, why in held(stack)} <= {"baseline-down", "limit-unfit"}
            assert (incidents(stack), share(stack)) == ([], 1.0)
            nothing_broke(stack)

    await together(stays(*case) for case in cases)


async def until_held(stack: Stack, client: httpx.AsyncClient, trigger: str) -> None:
    """The candidate fails until a trigger fires, and on."""
    stack.vllm.faults.set(TRIGGERS[trigger])
    if trigger == "health":
        await probe(stack, "vllm")
        await until(lambda: bool(stack.told.of(RollbackHeld)))
    else:
        await ask_until(stack, client, RollbackHeld)
    await said_again(stack)
    assert trigger in {fired for fired, _ in held(stack)}


async def test_nothing_goes_back_to_a_baseline_that_has_not_got_the_model(tmp_path: Path) -> None:
    """The configuration says that it has; whoever looks finds that it has not."""
    async with open_stack(tmp_path, ollama={"models": ["llama3.2:3b"]}) as stack, stack.client() as client:
        await probe(stack, "ollama", times=1)
        await stack.shift(1.0)
        await until_held(stack, client, "error_run")
        assert {why for _, why in held(stack)} <= {"baseline-down", "baseline-unmapped"}
        assert (incidents(stack), share(stack)) == ([], 1.0)


@pytest.mark.slow
async def test_one_silent_probe_is_enough_to_stay_away_from_a_baseline(tmp_path: Path) -> None:
    """It takes three to call it down, and half a minute: until then nobody knows, and nobody goes there."""
    async with open_stack(tmp_path) as stack:
        await stack.shift(1.0)
        stack.ollama.faults.set("hang:all=1")
        await probe(stack, "ollama", times=1)
        assert stack.runtime.transports["ollama"].offer("qwen3:8b").refused is None
        stack.vllm.faults.set("refuse")
        await probe(stack, "vllm")
        await until(lambda: bool(stack.told.of(RollbackHeld)))
        await said_again(stack)
        assert (held(stack), share(stack)) == ({("health", "baseline-down")}, 1.0)


@pytest.mark.slow
async def test_an_open_breaker_starves_the_windows_and_it_still_concludes(tmp_path: Path) -> None:
    config = {"rollback": {"error_rate": None, "consecutive_timeouts": None}}
    async with open_stack(tmp_path, config=config) as stack, stack.client() as client:
        await stack.shift(1.0)
        stack.vllm.faults.set("status:code=500")
        statuses: list[int] = []
        async with asyncio.timeout(60):
            while not incidents(stack):
                statuses += await some(client, len(statuses), 2)
                await asyncio.sleep(0.05)
        assert set(statuses) == {200}
        (incident,) = incidents(stack)
        assert (incident.trigger, incident.scope, incident.k) == ("breaker_open", "*", 3)
        nothing_broke(stack)


@pytest.mark.slow
async def test_a_candidate_that_fails_every_request_is_rolled_back_although_its_breaker_hides_most(
    tmp_path: Path,
) -> None:
    """After five in a row the breaker sends the others elsewhere: what is tried later concludes."""
    async with open_stack(tmp_path) as stack, stack.client() as client:
        await stack.shift(1.0)
        stack.vllm.faults.set("status:code=500")
        async with asyncio.timeout(30):
            number = 0
            while not incidents(stack):
                assert set(await some(client, number := number + 2, 2)) == {200}
                await asyncio.sleep(0.05)
        assert incidents(stack)[0].trigger in ("error_run", "breaker_open")


# Nobody asks, or what is asked says little.


async def test_without_requests_it_holds_and_says_so_once(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"rollback": {"window_s": 1}}) as stack, stack.client() as client:
        await stack.shift(1.0)
        await until(lambda: "no-data" in blindness(stack), 20)  # for 5 s after a lag that is what it tells of
        said = await said_again(stack)
        assert blindness(stack) == ["no-data"]
        judged = {(one.trigger, one.verdict) for one in said.evaluations if one.sum.provider == "vllm" and not one.n}
        assert ("error_rate", "inconclusive") in judged
        assert (incidents(stack), share(stack), stack.told.of(RollbackHeld)) == ([], 1.0, [])
        assert "no request of vllm" in (await status(stack))["guard"]["blind"][0]
        async with asyncio.timeout(20):
            while blindness(stack)[:2] != ["no-data", ""]:
                assert (await ask(client, 1)).status_code == 200


def blindness(stack: Stack) -> list[str]:
    """What was told of it, less what this machine is to blame for."""
    told = [one.what for one in stack.told.of(GuardBlind) if one.what != "lag"]
    return [what for what, _ in itertools.groupby(itertools.dropwhile(lambda what: not what, told))]


@pytest.mark.slow
async def test_one_conversation_cannot_roll_back_with_a_burst(tmp_path: Path) -> None:
    async with open_stack(tmp_path, ollama=WIDE) as stack, stack.client() as client:
        await stack.shift(1.0)
        await some(client, 0, 4)
        stack.vllm.faults.set(ILL)
        began = time.time()
        assert set(await some(client, 0, 60, session="an agent gone wild")) == {200}
        seconds = int(time.time()) - int(began) + 1
        said = await said_again(stack)
        assert window(said).failures <= seconds, "one a second"
        assert (incidents(stack), share(stack)) == ([], 1.0)
        await ask_until(stack, client, IncidentOpened, many=8)  # and as many conversations can


async def test_an_sdks_own_retries_extend_no_streak_of_time_outs(tmp_path: Path) -> None:
    config = {"patience": SHORT, "rollback": {"error_rate": None}}
    async with open_stack(tmp_path, config=config) as stack, stack.client() as client:
        await stack.shift(1.0)
        stack.vllm.faults.set("hang")
        await some(client, 0, 1)
        await some(client, 1, 1)
        await some(client, 2, 2, retry=1)
        await said_again(stack)
        assert incidents(stack) == []
        await some(client, 10, 1)
        await until(lambda: bool(incidents(stack)))
        assert (incidents(stack)[0].trigger, incidents(stack)[0].k) == ("timeouts", 3)


async def test_who_leaves_soon_says_nothing_and_who_leaves_after_long_silence_counts(tmp_path: Path) -> None:
    async def leave(patience_s: float, counts: bool) -> None:
        config = {"rollback": {"abandon_s": 0.6}}
        async with open_stack(folder(tmp_path, str(counts)), config=config) as stack, stack.client() as client:
            await stack.shift(1.0)
            stack.vllm.faults.set("hang")
            for number in range(4):
                assert await some(client, number, 1, patience_s=patience_s) == [0]
            await until(lambda: stack.vllm.counters.in_flight == 0)
            said = await said_again(stack)
            assert bool(incidents(stack)) is counts
            if not counts:
                assert (window(said).n, window(said).failures) == (0, 0)

    await together([leave(0.2, False), leave(0.9, True)])


# Planned work.


async def test_a_restart_under_maintenance_is_no_incident_and_the_traffic_comes_back_by_itself(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack, stack.client() as client, probing(stack, "vllm"):
        await stack.shift(1.0)
        async with asking(client) as asked:
            await until(lambda: "vllm" in asked.providers)
            until_then = time.time() + 3.0
            await stack.runtime.live.submit(Maintain(provider="vllm", until=until_then), ME)
            await until(lambda: stack.vllm.counters.in_flight == 0)
            drained = len(stack.vllm.requests)
            stack.vllm.faults.set("refuse")
            await asyncio.sleep(1.5)  # the restart takes that long
            stack.vllm.faults.clear()
            assert len([one for one in stack.vllm.requests[drained:] if one.path.startswith("/v1/chat")]) == 0
            before = len(asked.providers)
            await until(lambda: "vllm" in asked.providers[before:], 10)
            assert time.time() >= until_then
            await said_again(stack)
        assert set(asked.statuses) == {200}
        assert (incidents(stack), share(stack)) == ([], 1.0)
        nothing_broke(stack)


@pytest.mark.parametrize("ended", [False, True], ids=["by itself", "sooner"])
async def test_streams_that_a_restart_under_maintenance_cuts_are_no_incident_once_it_is_over(
    tmp_path: Path, ended: bool
) -> None:
    """More of them than a verdict needs, and nobody asks anything in between."""
    async with open_stack(tmp_path, vllm={"inter_token_s": 0.2}) as stack, stack.client() as client:
        await stack.shift(1.0)
        live = stack.runtime.live
        asked = asyncio.create_task(some(client, 0, 60, stream=True, max_tokens=1000))
        await until(lambda: stack.vllm.counters.in_flight == 60)
        await live.submit(Maintain(provider="vllm", until=time.time() + (60.0 if ended else 1.5)), ME)
        stack.vllm.faults.set("engine_dead")
        await asked
        failed = [one for one in stack.told.of(AttemptEnded) if one.provider == "vllm" and one.outcome.kind != "ok"]
        assert len(failed) == 60
        await said_again(stack)
        stack.vllm.faults.clear()
        if ended:
            await live.submit(Maintain(provider="vllm", until=None), ME)
        await until(lambda: not live.current().maintained(time.time()))
        await said_again(stack)
        assert set(await some(client, 100, 4)) == {200}
        await said_again(stack)
        assert (incidents(stack), share(stack)) == ([], 1.0)
        nothing_broke(stack)


@pytest.mark.slow
async def test_vllm_is_restarted_for_twenty_seconds_under_maintenance_and_nobody_notices(tmp_path: Path) -> None:
    async with open_stack(tmp_path, probe=True) as stack, stack.client() as client, asking(client) as asked:
        await stack.shift(1.0)
        await until(lambda: "vllm" in asked.providers)
        told = await llmctl(tmp_path, "maintenance", "vllm", "--for", "1m", "--reason", "new driver")
        assert "vllm" in told
        await until(lambda: asked.providers[-20:] == ["ollama"] * 20)
        stack.vllm.faults.set("refuse")
        await asyncio.sleep(20)
        stack.vllm.faults.clear()
        assert set(asked.providers[-20:]) == {"ollama"}
        await until(lambda: asked.providers[-20:] == ["vllm"] * 20, 60)
        assert set(asked.statuses) == {200}
        assert (incidents(stack), share(stack)) == ([], 1.0)
        nothing_broke(stack)


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "rolls_back"), [(3, False), (25, True)])
async def test_a_restart_that_nobody_announced_is_ridden_out_if_it_is_short(
    tmp_path: Path, seconds: float, rolls_back: bool
) -> None:
    """Nobody's request fails either way; who is gone for three probes is gone. In between it is a matter of luck: a
    breaker tries again after 5 s, and what fails then is one failure more.
    """
    async with open_stack(tmp_path, probe=True) as stack, stack.client() as client, asking(client) as asked:
        await stack.shift(1.0)
        await until(lambda: "vllm" in asked.providers)
        stack.vllm.faults.set("refuse")
        await asyncio.sleep(seconds)
        stack.vllm.faults.clear()
        if rolls_back:
            (incident,) = incidents(stack)
            assert incident.trigger in ("health", "error_run"), "the breaker's trials fail, too"
        else:
            before = len(asked.providers)
            await until(lambda: "vllm" in asked.providers[before:], 20)
            await said_again(stack)
            assert (incidents(stack), share(stack)) == ([], 1.0)
        assert set(asked.statuses) == {200}
        nothing_broke(stack)


async def llmctl(folder: Path, *arguments: str) -> str:
    """What a command of its own process says."""
    command = (sys.executable, "-m", "memos_llm", "--config", str(folder / "memos_llm.yaml"), *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


# A rollback finds the old model cold.


async def roll_back_onto_a_cold_model(stack: Stack, patience_s: float, load_s: float) -> None:
    """Everything goes to a candidate that dies; nobody waits for as long as the load takes."""
    counters = stack.ollama.counters
    async with stack.client() as client:
        await stack.shift(1.0)
        assert set(await some(client, 0, 4)) == {200}
        stack.vllm.faults.set(ILL)
        began, statuses = time.monotonic(), list[int]()
        while not (counters.loads_completed.total() and incidents(stack)):
            statuses += await some(client, len(statuses) + 4, 6, patience_s=patience_s)
            assert time.monotonic() - began < 3 * load_s + 5
        assert set(statuses) <= {0, 200}
        assert statuses.count(0) >= 6, "they left while it was loaded"
        assert set(await some(client, 1000, 8)) == {200}
        assert (counters.loads, counters.load_aborts) == (1, 0)
        (incident,) = incidents(stack)
        assert (incident.scope, latched(stack)) == ("*", True)
        nothing_broke(stack)


async def test_a_rollback_onto_a_cold_ollama_loads_once_and_its_clients_may_leave(tmp_path: Path) -> None:
    async with open_stack(tmp_path, ollama={"load_s": 2.0}) as stack:
        await roll_back_onto_a_cold_model(stack, 0.4, 2.0)


@pytest.mark.slow
async def test_a_load_of_a_minute_survives_clients_that_wait_for_ten_seconds(tmp_path: Path) -> None:
    async with open_stack(tmp_path, ollama={"load_s": 60.0}, probe=True) as stack:
        await roll_back_onto_a_cold_model(stack, 10.0, 60.0)


async def test_what_is_kept_warm_is_found_warm(tmp_path: Path) -> None:
    async with (
        OllamaEmulator(port=0, models=OLLAMA_MODELS, load_s=0.3) as old,
        VllmEmulator(port=0, models=[VLLM_MODEL]) as new,
    ):
        config = document(old.url, new.url, tmp_path)
        config["providers"]["ollama"]["keep_warm"] = ["qwen3:8b"]
        async with open_gateway(settings(tmp_path, config)) as (runtime, told, url):
            stack = Stack(old, new, runtime, told, url)
            assert old.counters.loads == 0, "not before there is a share"
            await stack.shift(1.0)
            await until(lambda: old.counters.loads_completed.total() == 1)
            new.faults.set(ILL)
            async with stack.client() as client:
                await ask_until(stack, client, IncidentOpened)
                assert set(await some(client, 1000, 8)) == {200}
            assert (old.counters.loads, old.counters.load_aborts) == (1, 0)
