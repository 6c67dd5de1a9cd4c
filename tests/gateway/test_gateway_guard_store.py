"""The guard where its store is not what it was, and where it is switched off."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from guarding import (
    ILL,
    WIDE,
    ask,
    ask_until,
    folder,
    incidents,
    latched,
    nothing_broke,
    probe,
    said_again,
    share,
    some,
    status,
    together,
)
from stack import ME, OLLAMA_MODELS, VLLM_MODEL, Stack, document, open_gateway, open_stack, settings, until

from memos_llm.core.commands import Shift
from memos_llm.core.errors import Refused
from memos_llm.core.events import IncidentOpened, RollbackHeld
from memos_llm.core.flags import PPM
from memos_llm.emulators import OllamaEmulator, VllmEmulator

# The store is not what it was.


async def test_a_newer_schema_makes_it_read_only_and_it_still_cuts_here(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack, stack.client() as client:
        await stack.shift(1.0)
        upgrade(tmp_path / "flags.db")
        live = stack.runtime.live
        await until(lambda: "newer" in live.store_state.detail)
        assert "newer" in (await status(stack))["store"]["detail"]
        with pytest.raises(Refused, match="upgrade"):
            await live.submit(Shift(provider="vllm", share_ppm=0), ME)
        stack.vllm.faults.set(ILL)
        await until_cut(stack, client)
        answer = await ask(client, 1000)
        assert (answer.headers["x-memos-provider"], answer.headers["x-memos-reason"]) == ("ollama", "latched")
        await said_again(stack)
        stored = await live.store.load()
        assert stored is not None
        assert (stored.share_ppm("default"), incidents(stack)) == (PPM, []), "the newer one's store is left as it is"
        nothing_broke(stack)


async def until_cut(stack: Stack, client: Any) -> None:
    async with asyncio.timeout(20):
        number = 0
        while share(stack):
            assert set(await some(client, number := number + 4, 4)) == {200}


def upgrade(database: Path) -> None:
    """What a newer process writes."""
    with sqlite3.connect(database) as db:
        (text,) = db.execute("SELECT document FROM flags").fetchone()
        flags = json.loads(text)
        flags["schema"] += 1
        flags["revision"] += 1
        db.execute(
            "UPDATE flags SET schema = ?, revision = ?, document = ?",
            (flags["schema"], flags["revision"], json.dumps(flags).encode()),
        )
    db.close()


@asynccontextmanager
async def two_lives(folder: Path) -> AsyncIterator[Any]:
    """A gateway that can be opened again, in front of the same back ends."""
    async with (
        OllamaEmulator(port=0, models=OLLAMA_MODELS) as old,
        VllmEmulator(port=0, models=[VLLM_MODEL]) as new,
    ):
        config = settings(folder, document(old.url, new.url, folder))

        @asynccontextmanager
        async def life() -> AsyncIterator[Stack]:
            async with open_gateway(config) as (runtime, told, url):
                yield Stack(old, new, runtime, told, url)

        yield life


def lose(folder: Path, how: str) -> None:
    """The store is gone: nothing can be opened there, or it is empty."""
    for name in ("flags.db", "flags.db-wal", "flags.db-shm"):
        (folder / name).unlink(missing_ok=True)
    if how == "unreachable":
        (folder / "flags.db").mkdir()


@pytest.mark.parametrize("how", ["unreachable", "emptied"])
async def test_what_was_rolled_back_stays_so_though_the_store_is_gone_at_the_next_start(
    tmp_path: Path, how: str
) -> None:
    async with two_lives(tmp_path) as life:
        async with life() as stack, stack.client() as client:
            await stack.shift(1.0)
            stack.vllm.faults.set(ILL)
            await ask_until(stack, client, IncidentOpened)
            revision = stack.runtime.live.current().revision
        lose(tmp_path, how)
        async with life() as stack, stack.client() as client:
            stack.vllm.faults.clear()
            assert (latched(stack), stack.runtime.live.current().revision) == (True, revision)
            answer = await ask(client, 1)
            assert (answer.headers["x-memos-provider"], answer.headers["x-memos-reason"]) == ("ollama", "latched")
            assert (await status(stack))["store"]["detail"]


async def test_the_local_guard_cuts_though_the_store_is_gone_at_the_start(tmp_path: Path) -> None:
    async with two_lives(tmp_path) as life:
        async with life() as stack:
            await stack.shift(1.0)
        lose(tmp_path, "unreachable")
        async with life() as stack, stack.client() as client:
            assert share(stack) == 1.0, "as it was last known"
            stack.vllm.faults.set(ILL)
            await until_cut(stack, client)
            assert (await ask(client, 1000)).headers["x-memos-provider"] == "ollama"
        async with life() as stack:
            assert share(stack) == 0.0, "nor does a restart forget that"
            stack.vllm.faults.clear()


# Switched off.


OFF: dict[str, dict[str, Any]] = {
    "all of it": {"enabled": False},
    "each trigger": {
        "error_rate": None,
        "latency_p95_ms": None,
        "consecutive_timeouts": None,
        "health_failures": None,
    },
}


PATIENT = {"answer_s": 1.0, "ttft_s": 1.0}


async def test_what_is_switched_off_does_nothing_and_says_so(tmp_path: Path) -> None:
    async def idle(what: str) -> None:
        config = {"rollback": OFF[what], "patience": PATIENT}
        async with open_stack(folder(tmp_path, what), config=config, ollama=WIDE) as stack, stack.client() as client:
            await stack.shift(1.0)
            for fault in (ILL, "hang"):
                stack.vllm.faults.set(fault)
                assert set(await some(client, 0, 20)) == {200}
            stack.vllm.faults.set("refuse")
            await probe(stack, "vllm", times=4)
            assert set(await some(client, 40, 20)) == {200}
            await said_again(stack)
            assert (incidents(stack), share(stack), stack.told.of(RollbackHeld)) == ([], 1.0, [])
            guard = (await status(stack))["guard"]
            if what == "all of it":
                assert guard["enabled"] is False
            else:
                assert "every trigger is switched off" in guard["rule"]

    await together(map(idle, OFF))


TRIGGERS = {
    "error_rate": ("error_run", {"error_rate": None}),
    "consecutive_timeouts": ("timeouts", {"consecutive_timeouts": None, "error_rate": None}),
    "health_failures": ("health", {"health_failures": None}),
}


async def test_a_limit_that_is_null_rolls_nothing_back(tmp_path: Path) -> None:
    async def idle(limit: str) -> None:
        trigger, rules = TRIGGERS[limit]
        config = {"rollback": rules, "patience": PATIENT}
        async with open_stack(folder(tmp_path, limit), config=config, ollama=WIDE) as stack, stack.client() as client:
            await stack.shift(1.0)
            if trigger == "health":
                stack.vllm.faults.set("refuse")
                await probe(stack, "vllm", times=4)
            else:
                stack.vllm.faults.set(ILL if trigger == "error_run" else "hang")
                for first in (0, 12):
                    assert set(await some(client, first, 12)) == {200}
            said = await said_again(stack)
            assert trigger not in {one.trigger for one in said.evaluations}
            assert (incidents(stack), share(stack)) == ([], 1.0)

    await together(map(idle, TRIGGERS))
