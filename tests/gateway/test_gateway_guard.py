"""The guard at work: a candidate that fails loses its share by itself, once, and nobody's request fails for it."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack import Stack, open_stack, until

from memos_llm.core.commands import Incident
from memos_llm.core.events import GuardSaid, IncidentOpened, InternalError, RollbackHeld
from memos_llm.core.flags import GLOBAL
from memos_llm.core.verdicts import Verdict

# Longer than a busy machine stands still, which the candidate would be blamed for while it is well.
SHORT = {"rollback": {"error_rate": 0.05}, "patience": {"answer_s": 1.5, "ttft_s": 1.5}}


async def ask(
    client: httpx.AsyncClient, number: int, *, component: str = "", patience_s: float = 20.0, **more: Any
) -> httpx.Response:
    """A chat of its own conversation, so that its arm is its own too."""
    body = {"model": "qwen3:8b", "messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": 8}
    headers = {"x-memos-session": f"conversation-{component}-{number}"}
    if component:
        headers["x-memos-component"] = component
    return await client.post(
        "/v1/chat/completions", json=body | more, headers=headers, timeout=httpx.Timeout(20.0, read=patience_s)
    )


async def some(client: httpx.AsyncClient, first: int, count: int, **more: Any) -> list[int]:
    """The statuses of requests that are under way together."""
    answers = await asyncio.gather(*(ask(client, number, **more) for number in range(first, first + count)))
    return [answer.status_code for answer in answers]


async def until_rolled_back(
    stack: Stack, client: httpx.AsyncClient, many: int = 1, **more: Any
) -> tuple[Incident, list[int]]:
    """Ask until an incident is opened; it, and all statuses. `many` at a time: see `guarding.ask_until`."""
    statuses: list[int] = []
    async with asyncio.timeout(20):
        while not stack.told.of(IncidentOpened):
            statuses += await some(client, len(statuses), many, **more)
    return stack.told.of(IncidentOpened)[0].incident, statuses


async def said_again(stack: Stack, times: int = 2) -> None:
    """Wait until the guard has judged everything again, with all that has happened until now."""
    before = len(stack.told.of(GuardSaid))
    await until(lambda: len(stack.told.of(GuardSaid)) >= before + times)


@pytest.mark.parametrize(
    ("fault", "stream", "trigger", "kind"),
    [
        ("status:code=500,rate=0.6", False, "error_run", "server"),
        pytest.param("malformed:rate=0.6", False, "error_run", "malformed", marks=pytest.mark.slow),
        ("cut_before_content:rate=0.6", True, "error_run", "truncated"),
        pytest.param("status:code=400,rate=0.6", False, "error_run", "incompatible", marks=pytest.mark.slow),
        pytest.param("status:code=401,rate=0.6", False, "error_run", "config", marks=pytest.mark.slow),
        pytest.param("model_missing:rate=0.6", False, "error_run", "config", marks=pytest.mark.slow),
        pytest.param("queue_full:rate=0.6", False, "error_run", "saturated", marks=pytest.mark.slow),
        ("hang", False, "timeouts", "timeout"),
        ("hang_engine", True, "timeouts", "timeout"),
    ],
)
async def test_a_candidate_that_fails_is_rolled_back_once(
    tmp_path: Path, fault: str, stream: bool, trigger: str, kind: str
) -> None:
    async with open_stack(tmp_path, config=SHORT) as stack, stack.client() as client:
        await stack.shift(1.0)
        assert await some(client, 10_000, 8, stream=stream) == [200] * 8
        stack.vllm.faults.set(fault)
        together = 4 if fault.startswith("hang") else 1
        incident, statuses = await until_rolled_back(stack, client, together, stream=stream)
        assert set(statuses) == {200}, "the fallback answered what had not begun"

        flags = stack.runtime.live.current()
        latch = flags.scope(GLOBAL).latch
        assert latch is not None
        assert (latch.incident, latch.automatic, flags.share_ppm("default")) == (incident.id, True, 0)
        assert (incident.trigger, incident.scope, incident.provider) == (trigger, GLOBAL, "vllm")
        assert incident.actor.startswith("gateway-")
        assert (incident.shares_before[GLOBAL], incident.shares_after[GLOBAL]) == (1.0, 0.0)
        (evidence,) = incident.evidence
        assert incident.rule
        assert incident.k
        assert evidence.models == ("qwen3:8b",)
        assert 1 <= len(evidence.requests) <= 10
        assert {arm.provider for arm in evidence.windows} == {"vllm", "ollama"}
        assert next(arm for arm in evidence.windows if arm.provider == "vllm").kinds[kind] >= 3

        asked = len(stack.vllm.requests)
        answer = await ask(client, 20_000, stream=stream)
        assert (answer.headers["x-memos-provider"], answer.headers["x-memos-reason"]) == ("ollama", "latched")
        await said_again(stack)
        assert len(stack.vllm.requests) == asked
        assert len(stack.told.of(IncidentOpened)) == 1
        assert [one.id for one in await stack.runtime.live.store.incidents(9)] == [incident.id]
        assert stack.told.of(InternalError) == []
        assert f'memos_llm_rollbacks_total{{provider="vllm",trigger="{trigger}"}} 1.0' in await stack.metrics()


async def test_clients_who_give_up_on_a_hanging_engine_count_as_time_outs(tmp_path: Path) -> None:
    """Its `/health` is well, nothing of ours times out, and nobody waits that long."""
    async with open_stack(tmp_path, config={"rollback": {"abandon_s": 0.3}}) as stack, stack.client() as client:
        await stack.shift(1.0)
        stack.vllm.faults.set("hang_engine")
        async with asyncio.timeout(20):
            number = 0
            while not stack.told.of(IncidentOpened):
                number += 1
                with contextlib.suppress(httpx.ReadTimeout):
                    await ask(client, number, patience_s=0.6)
        incident = stack.told.of(IncidentOpened)[0].incident
        assert (incident.trigger, incident.scope) == ("timeouts", GLOBAL)


async def test_a_component_that_fails_alone_is_latched_alone(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"rollback": {"min_requests": 20}}) as stack, stack.client() as client:
        await stack.shift(1.0)
        assert set(await some(client, 0, 40, component="analysis")) == {200}
        await said_again(stack)
        tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
        stack.vllm.faults.set("status:code=400,rate=0.6")
        incident, statuses = await until_rolled_back(stack, client, component="synthesis", tools=tools)
        stack.vllm.faults.clear()
        assert set(statuses) == {200}
        assert (incident.scope, incident.also) == ("synthesis", ())
        flags = stack.runtime.live.current()
        assert (flags.share_ppm("synthesis"), flags.share_ppm("analysis")) == (0, 1_000_000)
        answer = await ask(client, 1, component="analysis")
        assert answer.headers["x-memos-provider"] == "vllm"


async def test_a_candidate_that_behaves_keeps_its_share(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack, stack.client() as client:
        await stack.shift(0.5)
        for first in range(0, 200, 20):
            assert set(await some(client, first, 20)) == {200}
        await said_again(stack)
        said = stack.told.of(GuardSaid)[-1]
        assert {one.verdict for one in said.evaluations if one.trigger == "error_rate"} == {Verdict.PASS}
        total = {one.provider: one.n for one in said.windows if not one.component and not one.model}
        assert total["vllm"] + total["ollama"] == 200
        assert stack.runtime.live.current().share_ppm("default") == 500_000
        assert stack.told.of(IncidentOpened) == []
        text = await stack.metrics()
        assert 'memos_llm_window_requests{component="default",provider="vllm"}' in text
        assert 'memos_llm_window_error_ratio{component="*",provider="ollama"} 0.0' in text


async def test_what_is_the_callers_fault_rolls_nothing_back(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack, stack.client() as client:
        await stack.shift(1.0)
        stack.vllm.faults.set("status:code=400")
        stack.ollama.faults.set("status:code=400")
        assert set(await some(client, 0, 40)) == {400}
        assert set(await some(client, 0, 5, model="")) == {400}
        await said_again(stack)
        assert stack.told.of(IncidentOpened) == []
        assert stack.runtime.live.current().share_ppm("default") == 1_000_000


async def test_when_the_baseline_is_as_bad_the_split_stays_and_it_is_told_once(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"fallback": "none"}) as stack, stack.client() as client:
        await stack.shift(0.5)
        stack.vllm.faults.set("status:code=500,rate=0.4")
        stack.ollama.faults.set("status:code=500,rate=0.4")
        async with asyncio.timeout(20):
            first = 0
            while not stack.told.of(RollbackHeld):
                await some(client, first, 20)
                first += 20
        await some(client, first, 60)
        await said_again(stack)
        held = stack.told.of(RollbackHeld)
        assert {(one.provider, one.scope, one.why) for one in held} == {("vllm", GLOBAL, "limit-unfit")}
        assert len({(one.trigger, one.scope) for one in held}) == len(held), "each told once"
        assert "ollama is as bad" in held[0].detail
        assert stack.told.of(IncidentOpened) == []
        assert stack.runtime.live.current().share_ppm("default") == 500_000


async def test_nothing_goes_back_to_a_baseline_that_is_down(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack, stack.client() as client:
        await stack.shift(1.0)
        stack.ollama.faults.set("refuse")
        await stack.runtime.transports["ollama"].probe()
        stack.vllm.faults.set("status:code=500,rate=0.4")
        async with asyncio.timeout(20):
            first = 0
            while not stack.told.of(RollbackHeld):
                await some(client, first, 4)
                first += 4
        held = stack.told.of(RollbackHeld)[0]
        assert (held.why, held.scope) == ("baseline-down", GLOBAL)
        await said_again(stack)
        assert stack.runtime.live.current().share_ppm("default") == 1_000_000
        assert stack.told.of(IncidentOpened) == []

        stack.ollama.faults.clear()  # and once it is back, what fails is rolled back
        await stack.runtime.transports["ollama"].probe()
        incident, _ = await until_rolled_back(stack, client)
        assert incident.scope == GLOBAL


async def probe(stack: Stack, times: int) -> None:
    """As the prober does, without its pauses."""
    for _ in range(times):
        for ended in await stack.runtime.transports["vllm"].probe():
            stack.runtime.bus.emit(ended)


async def test_a_candidate_whose_probes_fail_is_rolled_back_without_a_request(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack:
        await stack.shift(0.5)
        stack.vllm.faults.set("refuse")
        await probe(stack, 2)
        await said_again(stack)
        assert stack.told.of(IncidentOpened) == []
        await probe(stack, 1)
        await until(lambda: bool(stack.told.of(IncidentOpened)))
        incident = stack.told.of(IncidentOpened)[0].incident
        assert (incident.trigger, incident.scope) == ("health", GLOBAL)
        (seen,) = [one for one in incident.evidence[0].probes if one.provider == "vllm"]
        assert (seen.endpoint, seen.up) == (stack.vllm.url, False)

        async with asyncio.timeout(5):  # the others are told with the heartbeats
            while {one.dead for one in await stack.runtime.live.store.instances()} != {(stack.vllm.url,)}:
                await asyncio.sleep(0.01)


async def test_a_candidate_that_refuses_connections_is_rolled_back(tmp_path: Path) -> None:
    wide = {"num_parallel": 32}  # it gets all of them at once
    async with open_stack(tmp_path, ollama=wide) as stack, stack.client() as client:
        await stack.shift(1.0)
        stack.vllm.faults.set("refuse")
        assert set(await some(client, 0, 40)) == {200}, "routing goes around it at once"
        await probe(stack, 3)
        incident, statuses = await until_rolled_back(stack, client)
        assert set(statuses) == {200}
        assert (incident.trigger, incident.scope) in {("health", GLOBAL), ("error_run", GLOBAL)}


async def test_without_a_share_failing_probes_are_told_and_latch_nothing(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack:
        stack.vllm.faults.set("refuse")
        await probe(stack, 3)
        await until(lambda: bool(stack.told.of(RollbackHeld)))
        await said_again(stack)
        (held,) = stack.told.of(RollbackHeld)
        assert (held.trigger, held.why) == ("health", "no-share")
        assert stack.runtime.live.current().scope(GLOBAL).latch is None


async def test_a_guard_that_is_switched_off_says_and_does_nothing_about_it(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"rollback": {"enabled": False}}) as stack, stack.client() as client:
        await stack.shift(1.0)
        stack.vllm.faults.set("status:code=500,rate=0.6")
        for first in range(0, 80, 8):
            assert set(await some(client, first, 8)) == {200}
        await said_again(stack)
        assert stack.told.of(IncidentOpened) == []
        assert stack.told.of(RollbackHeld) == []
        assert stack.runtime.live.current().share_ppm("default") == 1_000_000
