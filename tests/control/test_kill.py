"""A process that is killed with -9 while it rolls back, at every step: latch and record are there both or neither, and
another process completes the act.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from checker import check

from memos_llm.control import Live, last_good
from memos_llm.core.commands import Rollback
from memos_llm.core.events import Bus
from memos_llm.core.flags import GLOBAL
from memos_llm.core.verdicts import Evidence, Trigger
from memos_llm.store import SqliteStore

CHILD = Path(__file__).with_name("kill_child.py")


async def killed_at_every_step(base: Path, *mode: str) -> Sequence[dict[str, Any]]:
    command = (sys.executable, "-W", "error", str(CHILD), str(base), *mode)
    child = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    try:
        assert child.stdout is not None
        async with asyncio.timeout(120):
            told = [json.loads(line) async for line in child.stdout]
            assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return told


@pytest.mark.parametrize(
    ("mode", "expected"),
    [((), {"was there", "seen by another"}), (("file-first",), {"was there", "was kept here", "seen by another"})],
)
async def test_both_or_neither_and_another_completes_it(
    tmp_path: Path, mode: tuple[str, ...], expected: set[str]
) -> None:
    told = await killed_at_every_step(tmp_path, *mode)
    killed = [one for one in told if one["killed"]]
    assert [one["status"] for one in told if one not in killed] == [0, 0], "once without reaching a step, of each kind"
    steps = {" ".join(one["before"].split()[:3]) for one in killed}
    assert steps >= {"BEGIN IMMEDIATE", "INSERT INTO history", "INSERT OR IGNORE", "COMMIT", "fsync", "replace"}
    ways = {await completed(Path(one["directory"])) for one in killed}
    assert ways >= expected


async def completed(directory: Path) -> str:
    """Who completes what a killed process left behind."""
    file, way = directory / "last_good.json", "was there"
    store = SqliteStore(directory / "x.db")
    flags, incidents = await store.load(), await store.incidents(10)
    assert flags is not None
    assert (flags.scope(GLOBAL).latch is not None) == bool(incidents)
    kept = last_good.read(file).cuts
    live = Live(store, Bus(), instance_id="successor", kind="test", last_good=file, owns_store=True)
    await live.start()
    assert bool(kept) <= (live.current().share_ppm(GLOBAL) == 0), "in force from the start"
    if not incidents:
        way = "was kept here" if kept else "seen by another"
    if not incidents and not kept:
        live.cut(its_own())
    async with asyncio.timeout(10):
        while (flags := await store.load()) is None or flags.scope(GLOBAL).latch is None:
            await asyncio.sleep(0.01)
    _, _, (record,) = await check(store)
    await live.aclose()
    by = "successor" if way == "seen by another" else "doomed"
    assert (record.id, [evidence.by for evidence in record.evidence]) == (f"inc-{by}", [by])
    assert not last_good.read(file).cuts
    return way


def its_own() -> Rollback:
    evidence = Evidence(
        at=1.0, by="successor", scope=GLOBAL, trigger=Trigger.TIMEOUTS, rule="3 in a row", limit=3.0, n=3, k=3
    )
    return Rollback(
        provider="vllm", incident="inc-successor", trigger=Trigger.TIMEOUTS, automatic=True, evidence=evidence
    )
