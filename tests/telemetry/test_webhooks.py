"""Webhooks: every incident is told, signed, retried, and by one process; nothing else ever waits for them."""

import asyncio
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hook_server import HANG, HookServer, open_hook
from stack import until

from memos_llm.core.commands import Actor, Incident, Rearm, Rollback, audit, incident
from memos_llm.core.events import Bus, IncidentOpened
from memos_llm.core.flags import fresh
from memos_llm.core.ports import StateStore
from memos_llm.store import MemoryStore, open_store
from memos_llm.telemetry.logs import LINES, RequestLog, configure
from memos_llm.telemetry.metrics import Metrics
from memos_llm.telemetry.webhooks import Hook, Webhooks, WebhookTried, reach
from memos_llm.testing import ManualClock, Recorder

SECRET = "whsec-canary-4711"
NOBODY = "http://127.0.0.1:9/hook"  # nothing listens there
CHILD = Path(__file__).parent / "webhook_child.py"


def hmac_sha256(key: bytes, message: bytes) -> str:
    """RFC 2104, written out: ours must agree with the standard and not with itself."""
    block = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + message).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner).hexdigest()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StateStore]:
    opened = open_store(url_of(tmp_path))
    yield opened
    await opened.aclose()


def url_of(folder: Path) -> str:
    return f"sqlite:////{folder}/flags.db"


async def roll_back(store: StateStore, id: str = "inc-1", *, at: float | None = None) -> Incident:
    """A rollback with its incident, in the store; a latch that is there already is lifted first."""
    now, actor = time.time() if at is None else at, Actor("guard-1", "guard")
    flags = await store.load()
    if flags is None:
        flags = fresh("i", "00" * 16, 500_000, "vllm")
        await store.commit(0, flags, audit(Rollback(provider="vllm", incident=""), flags, flags, actor, now))
    if flags.scope("*").latch is not None:
        lift = Rearm(provider="vllm")
        lifted = lift.apply(flags, now)
        await store.commit(flags.revision, lifted, audit(lift, flags, lifted, actor, now))
        flags = lifted
    command = Rollback(provider="vllm", incident=id, reason="answers look wrong")
    after = command.apply(flags, now)
    record = incident(command, flags, after, actor, now)
    assert record is not None
    await store.commit(flags.revision, after, audit(command, flags, after, actor, now), record)
    return record


class Telling:
    """Webhooks over a store, and what they told of themselves."""

    def __init__(self, webhooks: Webhooks, bus: Bus, heard: Recorder, metrics: Metrics) -> None:
        self.webhooks, self.bus, self._heard, self._metrics = webhooks, bus, heard, metrics

    @property
    def results(self) -> list[str]:
        return [event.result for event in self.tried]

    @property
    def tried(self) -> list[WebhookTried]:
        return self._heard.of(WebhookTried)

    def counted(self, result: str) -> float:
        exposition = self._metrics.render()[0].decode()
        name = f'memos_llm_webhooks_total{{result="{result}"}} '
        return next((float(line.removeprefix(name)) for line in exposition.splitlines() if line.startswith(name)), 0.0)


@asynccontextmanager
async def telling(
    store: StateStore, *hooks: HookServer | str, secret: str = SECRET, **options: Any
) -> AsyncIterator[Telling]:
    """Looks often, and pauses hardly at all, unless told otherwise."""
    bus, heard, metrics = Bus(), Recorder(), Metrics(candidate="vllm")
    bus.subscribe("heard", heard)
    bus.subscribe("metrics", metrics.on_event, *metrics.kinds)
    given = [Hook(one if isinstance(one, str) else one.url, secret) for one in hooks]
    options = {"look_s": 0.02, "pauses_s": (0.01,) * 7, "lease_s": 30.0, **options}
    webhooks = Webhooks(store, bus, lambda: given, **{"by": "test", **options})
    webhooks.start()
    try:
        yield Telling(webhooks, bus, heard, metrics)
    finally:
        await webhooks.aclose()


async def untold(store: StateStore) -> bool:
    """Whether the outbox has anything that may be claimed now; claims it."""
    return await store.claim("looker", 0.001) is not None


class TestTold:
    async def test_the_incidents_json_is_posted_and_signed(self, store: StateStore) -> None:
        record = await roll_back(store)
        async with open_hook() as hook, telling(store, hook) as told:
            await until(lambda: told.results == ["delivered"])
        (got,) = hook.got
        assert (got.method, got.path, got.headers["content-type"]) == ("POST", "/hook", "application/json")
        posted = json.loads(got.body)
        assert (posted["id"], posted["provider"], posted["trigger"]) == (record.id, "vllm", "manual")
        assert posted["shares_before"] == {"*": 0.5}
        timestamp = got.headers["x-memos-timestamp"]
        assert abs(int(timestamp) - time.time()) < 60
        expected = hmac_sha256(SECRET.encode(), timestamp.encode() + b"." + got.body)
        assert got.headers["x-memos-signature"] == f"sha256={expected}"
        assert told.counted("delivered") == 1

    async def test_without_a_secret_nothing_is_signed(self, store: StateStore) -> None:
        await roll_back(store)
        async with open_hook() as hook, telling(store, hook, secret="") as told:
            await until(lambda: told.results == ["delivered"])
        assert "x-memos-signature" not in hook.got[0].headers

    async def test_an_incident_of_this_process_is_told_at_once(self, store: StateStore) -> None:
        async with open_hook() as hook, telling(store, hook, look_s=3600.0) as told:
            record = await roll_back(store)
            told.bus.emit(IncidentOpened(incident=record))
            await until(lambda: told.results == ["delivered"])

    async def test_each_of_several_webhooks_gets_each_incident_once(self, store: StateStore) -> None:
        ids = [(await roll_back(store, f"inc-{number}")).id for number in range(3)]
        async with open_hook() as one, open_hook() as other, telling(store, one, other) as told:
            await until(lambda: told.counted("delivered") == 6)
            assert not await untold(store)
        for hook in (one, other):
            assert sorted(json.loads(got.body)["id"] for got in hook.got) == ids

    async def test_without_webhooks_the_outbox_waits_for_a_process_that_has_some(self, store: StateStore) -> None:
        await roll_back(store)
        async with telling(store) as told:
            await told.webhooks.settle(1.0)
            assert told.tried == []
        assert await untold(store)

    async def test_what_is_a_day_old_is_no_news(self, store: StateStore) -> None:
        await roll_back(store, at=time.time() - 86_500)
        async with open_hook() as hook, telling(store, hook) as told:
            await until(lambda: told.results == ["too-old"])
        assert hook.got == []
        assert not await untold(store)


class TestRetried:
    @pytest.mark.parametrize("answer", [500, 503, 404, 429])
    async def test_a_refusal_is_tried_again(self, store: StateStore, answer: int) -> None:
        await roll_back(store)
        async with open_hook(answer, answer, 204) as hook, telling(store, hook) as told:
            await until(lambda: "delivered" in told.results)
        assert told.results == ["failed", "failed", "delivered"]
        assert [event.status for event in told.tried] == [answer, answer, 204]
        assert len({got.body for got in hook.got}) == 1

    async def test_one_that_hangs_is_left_and_tried_again(self, store: StateStore) -> None:
        await roll_back(store)
        async with open_hook(HANG, 200) as hook, telling(store, hook, limit_s=1.0) as told:
            await until(lambda: told.results == ["failed", "delivered"])
        assert told.tried[0].error == "TimeoutError"

    async def test_nobody_there_is_tried_to_the_bound_and_given_up(self, store: StateStore) -> None:
        await roll_back(store)
        async with telling(store, NOBODY) as told:
            await until(lambda: "given-up" in told.results)
            assert told.results == ["failed"] * 7 + ["given-up"]
            assert [event.tries for event in told.tried] == list(range(1, 9))
            await until(lambda: told.counted("given-up") == 1)
        assert not await untold(store)

    async def test_a_redirect_is_not_followed(self, store: StateStore) -> None:
        await roll_back(store)
        async with open_hook() as elsewhere:
            async with open_hook(307, location=elsewhere.url) as hook, telling(store, hook) as told:
                await until(lambda: "given-up" in told.results)
            assert elsewhere.got == []
        assert {event.status for event in told.tried} == {307}

    async def test_a_proxy_of_the_environment_is_not_asked(
        self, store: StateStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await roll_back(store)
        async with open_hook() as proxy, open_hook() as hook:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("ALL_PROXY", proxy.url)
            async with telling(store, hook) as told:
                await until(lambda: told.results == ["delivered"])
            assert proxy.got == []

    async def test_one_that_is_dead_neither_delays_nor_repeats_another(self, store: StateStore) -> None:
        await roll_back(store)
        async with open_hook() as hook, telling(store, hook, NOBODY) as told:
            await until(lambda: "given-up" in told.results)
        assert len(hook.got) == 1

    async def test_a_webhook_that_is_configured_meanwhile_is_told_and_one_that_is_not_is_left(
        self, store: StateStore
    ) -> None:
        await roll_back(store)
        bus, heard = Bus(), Recorder()
        bus.subscribe("heard", heard)
        async with open_hook() as mended:
            given = [Hook(NOBODY)]
            webhooks = Webhooks(store, bus, lambda: given, by="test", look_s=0.02, pauses_s=(3600.0,) * 7)
            webhooks.start()
            await until(lambda: [event.result for event in heard.of(WebhookTried)] == ["failed"])
            given = [Hook(mended.url)]
            await until(lambda: len(mended.got) == 1)
            await webhooks.aclose()
        assert not await untold(store)

    async def test_a_store_that_is_away_ends_nothing(self, tmp_path: Path) -> None:
        closed = open_store(url_of(tmp_path))
        await closed.aclose()
        async with open_hook() as hook, telling(closed, hook) as told:
            await told.webhooks.settle(0.2)
            assert told.tried == []
            assert told._heard.events == []


class Renewed(MemoryStore):
    """Counts the renewals."""

    renewals = 0

    async def renew(self, incident: str, by: str, lease_s: float) -> bool:
        self.renewals += 1
        return await super().renew(incident, by, lease_s)


class TestLease:
    """The store's clock and the processes' are the test's."""

    async def test_who_still_tries_keeps_the_incident_from_all_others(self) -> None:
        """Far beyond the first lease: each webhook is told once, and the dead one tried as often as by one process."""
        clock = ManualClock()
        store = Renewed(clock=clock)
        await roll_back(store)
        slow: Any = {"clock": clock, "pauses_s": (8.0,) * 7, "lease_s": 30.0, "limit_s": 10.0}
        async with (
            open_hook() as hook,
            open_hook(500) as dead,
            telling(store, hook, dead, by="one", **slow) as one,
            telling(store, hook, dead, by="other", **slow) as other,
        ):
            await until(lambda: len(one.tried + other.tried) == 2)
            for tries in range(2, 8):
                renewals = store.renewals
                clock.advance(13.0)  # longer than a pause may be
                await until(lambda renewals=renewals: store.renewals > renewals, 10.0)
                await until(lambda tries=tries: len(one.tried + other.tried) == 1 + tries, 10.0)
            clock.advance(13.0)
            await until(lambda: "given-up" in one.results + other.results, 10.0)
            assert (len(hook.got), len(dead.got)) == (1, 8)
            assert [] in (one.results, other.results)
            clock.advance(3_600.0)
            await until_told(store)

    async def test_who_was_held_up_beyond_his_lease_leaves_it_to_whom_has_claimed_it(self) -> None:
        clock = ManualClock()
        store = Renewed(clock=clock)
        record = await roll_back(store)
        async with open_hook(500) as dead, telling(store, dead, clock=clock, pauses_s=(3600.0,) * 7) as told:
            await until(lambda: told.results == ["failed"])
            clock.advance(31.0)
            assert await store.claim("another", 1e6) == record
            await until(lambda: not told.webhooks._held)
            clock.advance(7_200.0)
            await told.webhooks.settle(1.0)
            assert len(dead.got) == 1


class TestProcesses:
    async def test_of_two_processes_one_tells(self, store: StateStore, tmp_path: Path) -> None:
        ids = [(await roll_back(store, f"inc-{number}")).id for number in range(4)]
        async with open_hook() as hook:
            with child(tmp_path, hook), child(tmp_path, hook):
                await until(lambda: len(hook.got) >= 4, 20.0)
                await until_told(store)
        assert sorted(json.loads(got.body)["id"] for got in hook.got) == ids

    async def test_what_a_killed_process_had_claimed_another_tells(self, store: StateStore, tmp_path: Path) -> None:
        await roll_back(store)
        async with open_hook(HANG) as hook:
            with child(tmp_path, hook, lease_s=2.0) as process:
                await until(lambda: len(hook.got) == 1, 20.0)  # it is in the middle of telling
                process.kill()
                process.wait()
            assert not await untold(store)  # for as long as its lease holds
            hook.answer(200)
            async with telling(store, hook) as told:
                await until(lambda: told.results == ["delivered"], 10.0)
        assert len(hook.got) == 2


@contextmanager
def child(folder: Path, hook: HookServer, lease_s: float = 30.0) -> Iterator[subprocess.Popen[bytes]]:
    arguments = [sys.executable, str(CHILD), url_of(folder), hook.url, SECRET, str(lease_s)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.communicate(timeout=20)


async def until_told(store: StateStore) -> None:
    """Until nothing is left in the outbox, claimed or not: seen by the rows themselves, for a claim hides them."""
    async with asyncio.timeout(10):
        while await untold(store):
            await asyncio.sleep(0.05)


class TestSecrets:
    async def test_no_event_no_line_and_no_words_show_the_address_or_the_secret(self, store: StateStore) -> None:
        canary = "path-canary-31337"
        await roll_back(store)
        lines = StringIO()
        configure("INFO", lines)
        log = RequestLog()
        async with (
            open_hook(500, 200, path=f"/services/{canary}") as hook,
            telling(store, hook, f"http://127.0.0.1:9/{canary}") as told,
        ):
            told.bus.subscribe("log", log.on_event, *LINES)
            await until(lambda: "given-up" in told.results and "delivered" in told.results)
            assert log.flush()
        log.close()
        seen = lines.getvalue() + repr(told.tried) + repr(Hook(hook.url, SECRET))
        assert '"event":"webhook"' in lines.getvalue()
        assert '"host":"127.0.0.1:9"' in lines.getvalue()
        assert canary not in seen
        assert SECRET not in seen


class TestReach:
    async def test_one_that_answers_anything_is_reached_and_told_nothing(self) -> None:
        async with open_hook(405) as hook:
            found = await reach([Hook(hook.url), Hook(NOBODY)])
            assert found == {hook.url.split("/")[2]: "", "127.0.0.1:9": "ConnectError"}
            assert [(got.method, got.body) for got in hook.got] == [("HEAD", b"")]
