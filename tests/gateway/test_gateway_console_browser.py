"""The console as its user meets it: a real Chromium on the page of a real gateway before two emulated back ends."""

import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import Page, open_page
from stack import ME, Stack, open_stack

from memos_llm.core.commands import Maintain, Rearm, Shift
from memos_llm.core.flags import GLOBAL

pytestmark = pytest.mark.slow

TOKEN = "test-admin-token-0123456789"
EVIL = "<img src=x onerror=alert(1)>"
ROUTING = {"components": {"synthesis": "share", "analysis": "share", "embedding": "baseline"}}
SCOPES = ("inference", "read", "operate")


def key(scope: str) -> str:
    return f"key-of-{scope}-0123456789"


def entries() -> list[dict[str, Any]]:
    return [
        {"id": f"k-{scope}", "sha256": hashlib.sha256(key(scope).encode()).hexdigest(), "scopes": [scope]}
        for scope in SCOPES
    ]


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMOS_LLM_ADMIN_TOKEN", TOKEN)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with open_stack(tmp_path, config={"routing": ROUTING}, probe=True) as running:
        yield running


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[Stack]:
    config = {"routing": ROUTING, "gateway": {"api_keys": entries()}}
    async with open_stack(tmp_path, config=config) as running:
        yield running


@pytest.fixture
async def page(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Page]:
    async with open_page(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


async def enter(page: Page, stack: Stack, secret: str = TOKEN) -> None:
    """Open the console and give it a token, as one does: paste, Enter."""
    await page.open(f"{stack.url}/console")
    await page.shows("#door", "admin_token")
    await page.write("#token", secret)
    await page.press("Enter", 13)


async def admin(stack: Stack, verb: str, **order: Any) -> None:
    """One change through the admin API."""
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}) as client:
        answer = await client.post(f"{stack.url}/admin/v1/{verb}", json={"wait_s": 0, **order})
        assert answer.status_code == 200, answer.text


def share(stack: Stack, scope: str = GLOBAL) -> int:
    return stack.runtime.live.current().share_ppm(scope)


async def confirmed(page: Page, scope: str, reason: str) -> None:
    """Fill in a roll back and press its button: the page asks whether one is sure."""
    await page.run(f"document.querySelector('#scope').value = {scope!r}")
    await page.write("#reason", reason)
    await page.click("#rollback button")
    await page.shows("#sure", scope)


async def test_a_token_shows_the_picture_and_forgetting_it_leaves_nothing(page: Page, stack: Stack) -> None:
    await stack.shift(0.3)
    await enter(page, stack)
    await page.shows("#move", "ollama → vllm")
    await page.shows("#split", "30%")
    for component in ("synthesis", "analysis", "embedding"):
        await page.shows("#split", component)
    await page.shows("#providers", stack.vllm.url)
    await page.shows("#providers", "Qwen/Qwen3-8B")
    await page.shows("#providers", "closed")
    await page.shows("#instances", "gateway")
    await page.shows("#history", "0% → 30%")
    await page.shows("#pulse", "live")
    assert await page.run("document.querySelector('#door').hidden")
    assert TOKEN not in await page.run("location.href + document.documentElement.outerHTML")

    await page.reload()
    await page.shows("#split", "30%")  # kept in the tab

    await page.click("#forget")
    await page.shows("#door", "admin_token")
    assert await page.run("[sessionStorage.length, localStorage.length, document.cookie]") == [0, 0, ""]
    assert "30%" not in await page.run("document.documentElement.textContent")
    await page.reload()
    await page.shows("#door", "admin_token")
    assert page.problems == []


async def test_a_shift_elsewhere_shows_without_a_reload(page: Page, stack: Stack) -> None:
    await enter(page, stack)
    await page.shows("#split", "follows *")
    await page.run("window.same = true")
    await admin(stack, "shift", provider="vllm", share=0.25, component="synthesis", reason="first step")
    await page.shows("#split", "25%")
    await page.shows("#history", "first step")
    await page.shows("#instances", "revision 2")
    assert await page.run("window.same")
    assert "admin-token" in await page.text("#history")


async def test_what_others_wrote_is_shown_as_text_and_runs_nothing(page: Page, tmp_path: Path) -> None:
    models = {"models": ["Qwen/Qwen3-8B", EVIL]}
    async with open_stack(tmp_path, config={"routing": ROUTING}, vllm=models, probe=True) as stack:
        await stack.runtime.live.submit(Shift(provider="vllm", share_ppm=1, scope=EVIL, reason=EVIL), ME)
        await admin(stack, "rollback", component="analysis", reason=EVIL)
        await enter(page, stack)
        for part in ("#split", "#history", "#latches", "#incidents", "#providers"):
            await page.shows(part, EVIL)
        await confirmed(page, EVIL, EVIL)
        assert await page.run("[document.images.length, document.querySelectorAll('[onerror]').length]") == [0, 0]
        assert (page.dialogs, page.problems) == ([], [])

        await page.run("document.body.append(Object.assign(document.createElement('script'), {text: 'alert(2)'}))")
        await page.run("document.body.setAttribute('onclick', 'alert(3)'); document.body.click()")
        assert page.dialogs == []
        assert "Content Security Policy" in page.problems[0]  # what did get in would still not run


async def test_a_roll_back_takes_a_second_yes_and_shows_its_latch(page: Page, stack: Stack) -> None:
    await stack.shift(0.5)
    await enter(page, stack)
    await page.shows("#split", "50%")

    await confirmed(page, "synthesis", "answers look wrong")
    await page.shows("#sure", "vllm 50% → 0%")
    await page.press("Escape", 27)
    await page.sees("!document.querySelector('#sure').open")
    await confirmed(page, "synthesis", "answers look wrong")
    await page.press("Enter", 13)  # the button that has the focus cancels
    await page.sees("!document.querySelector('#sure').open")
    assert share(stack, "synthesis") == 500_000

    await confirmed(page, "synthesis", "answers look wrong")
    await page.click("#sure .danger")
    await page.shows("#outcome", "Done: synthesis, vllm 50% → 0%")
    await page.shows("#outcome", "Seen to follow: gateway-")
    await page.shows("#latches", "answers look wrong")
    await page.shows("#latches", "llmctl rearm --component synthesis")
    latch = stack.runtime.live.current().scope("synthesis").latch
    assert latch is not None
    await page.shows("#latches", latch.incident)
    await page.shows("#incidents", latch.incident)
    assert (share(stack, "synthesis"), share(stack)) == (0, 500_000)
    assert (await page.run("document.title")).startswith("LATCHED")

    await stack.runtime.live.submit(Rearm(provider="vllm", scope="synthesis"), ME)
    await page.sees("document.querySelector('#latches-card').hidden")
    assert page.problems == []


async def test_what_the_guard_did_and_says_is_there(page: Page, stack: Stack) -> None:
    """An automatic rollback: its rule, both sides, the hold-down; windows rule by rule; a maintenance."""
    await stack.shift(1.0)
    await enter(page, stack)
    stack.vllm.faults.set("status:code=500,rate=0.5")
    async with stack.client() as client:
        for number in range(200):
            body = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "hi"}]}
            headers = {"x-memos-session": f"s{number}", "x-memos-component": "synthesis"}
            await client.post("/v1/chat/completions", json=body, headers=headers)
            if any(scope.latch for scope in stack.runtime.live.current().scopes.values()):
                break
    await page.shows("#latches", "hold-down until")
    await page.shows("#incidents", "requests in a row failed")
    await page.shows("#incidents", "llmctl incidents inc-")
    await page.shows("#windows", "Rule by rule")
    await page.shows("#windows", "failed probes in a row")
    until_s = time.time() + 600
    await stack.runtime.live.submit(Maintain(provider="vllm", until=until_s), ME)
    await page.shows("#split", "Maintenance of vllm until")
    await stack.runtime.live.submit(Maintain(provider="vllm", until=None), ME)
    await page.sees("!document.querySelector('#split').textContent.includes('Maintenance')")
    assert page.problems == []


async def test_a_wrong_token_and_a_key_without_the_scope_are_told_apart(page: Page, keyed: Stack) -> None:
    await enter(page, keyed, "nobody-knows-this")
    await page.shows("#refused", "401")
    await page.shows("#where", "~/.local/state/memos_llm/admin_token")
    await page.write("#token", key("inference"))
    await page.click("#door button")
    await page.shows("#refused", "403")
    await page.shows("#refused", "'read'")
    assert await page.run("sessionStorage.length") == 0
    await page.write("#token", "two words")
    await page.click("#door button")
    await page.shows("#refused", "no token")


async def test_a_key_that_reads_looks_and_one_that_operates_rolls_back(page: Page, keyed: Stack) -> None:
    await keyed.shift(0.5)
    await enter(page, keyed, key("read"))
    await page.shows("#split", "50%")
    await confirmed(page, "*", "")
    await page.click("#sure .danger")
    await page.shows("#outcome", "Not done (403)")
    assert share(keyed) == 500_000

    await page.click("#forget")
    await page.write("#token", key("operate"))
    await page.click("#door button")
    await page.shows("#split", "50%")
    await confirmed(page, "*", "")
    await page.click("#sure .danger")
    await page.shows("#latches", "k-operate")
    await page.shows("#split", "latched with *")


async def test_a_key_that_is_taken_away_is_said_and_its_picture_goes(page: Page, keyed: Stack) -> None:
    await enter(page, keyed, key("read"))
    await page.shows("#split", "synthesis")
    settings = keyed.runtime.settings
    left = tuple(entry for entry in settings.gateway.api_keys if entry.id != "k-read")
    gateway = settings.gateway.model_copy(update={"api_keys": left})
    await keyed.runtime.adopt(settings.model_copy(update={"gateway": gateway}))
    await page.shows("#refused", "401")
    assert "synthesis" not in await page.run("document.querySelector('#picture').textContent")


async def test_old_data_are_loudly_old_and_it_goes_on_by_itself(page: Page, stack: Stack) -> None:
    await stack.shift(0.3)
    await enter(page, stack)
    await page.shows("#pulse", "live")
    await page.call("Network.enable")
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    await page.call("Network.emulateNetworkConditions", offline=True, **offline)
    await page.shows("#trouble", "unreachable")
    await page.shows("#pulse", "OLD")
    await stack.shift(0.4)
    await page.call("Network.emulateNetworkConditions", offline=False, **offline)
    await page.shows("#split", "40%")
    await page.sees("document.querySelector('#trouble').textContent === ''")


async def test_a_gateway_that_was_stopped_is_said_to_be_unreachable(page: Page, tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"routing": ROUTING}) as stack:
        await stack.shift(0.3)
        await enter(page, stack)
        await page.shows("#split", "30%")
    await page.shows("#trouble", "The gateway is unreachable")
    await page.shows("#trouble", "llmctl rollback")
    await page.shows("#pulse", "OLD: data is")
    await page.shows("#split", "30%")
    assert (await page.run("document.title")).startswith("OLD DATA")


async def test_a_candidate_that_is_down_is_said(page: Page, stack: Stack) -> None:
    await stack.shift(0.3)
    await enter(page, stack)
    await page.shows("#providers", "Qwen/Qwen3-8B")
    stack.vllm.faults.set("refuse")
    await page.shows("#providers", "DOWN", timeout_s=30)
    await page.shows("#split", "vllm can be sent nothing now")


@pytest.mark.parametrize("width", [400, 1400])
async def test_it_fits_a_telephone_and_a_desk(width: int, page: Page, stack: Stack) -> None:
    await stack.shift(0.3, "c" * 64)
    await admin(stack, "rollback", component="analysis", reason="w" * 500)
    await page.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    await enter(page, stack)
    await page.shows("#latches", "w" * 500)
    await page.shows("#split", "c" * 64)
    await page.shows("#providers", "Qwen/Qwen3-8B")
    assert await page.run("document.documentElement.scrollWidth") <= width


async def test_a_store_that_is_gone_is_said_and_the_history_of_before_stays(page: Page, stack: Stack) -> None:
    await stack.shift(0.3)
    await enter(page, stack)
    await page.shows("#history", "0% → 30%")
    await stack.runtime.live.store.aclose()
    await page.shows("#split", "The store does not answer")
    await page.shows("#history", "0% → 30%")
    await page.shows("#pulse", "live")
    await confirmed(page, "*", "now")
    await page.click("#sure .danger")
    await page.shows("#outcome", "It failed (503)")
