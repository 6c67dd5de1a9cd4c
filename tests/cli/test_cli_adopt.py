"""`store adopt` beside a running gateway whose store was emptied or put back to an older state."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from cli_driver import Llmctl
from stack import Stack, until


def forget(folder: Path) -> None:
    """Empty the store as an accident would."""
    with sqlite3.connect(folder / "flags.db") as db:
        db.execute("DELETE FROM flags")
        db.execute("DELETE FROM history")
    db.close()


@pytest.fixture
def run(tmp_path: Path) -> Llmctl:
    return Llmctl(tmp_path / "memos_llm.yaml")


async def test_a_store_that_is_well_needs_none(run: Llmctl, stack: Stack) -> None:
    before = stack.runtime.live.current()
    ran = await run("store", "adopt")
    assert ran.code == 0
    assert "nothing to adopt" in ran.out
    assert stack.runtime.live.current() == before


@pytest.mark.parametrize("through", ["store", "gateway"])
async def test_an_emptied_store_is_refused_until_it_is_adopted(
    run: Llmctl, stack: Stack, tmp_path: Path, through: str
) -> None:
    place = ["--gateway", stack.url] if through == "gateway" else []
    await run.json("shift", "--vllm", "0.5")
    await run.json("shift", "--vllm", "0.2", "--component", "synthesis")
    latched = await run.json("rollback", "--component", "analysis")
    forget(tmp_path)
    await until(lambda: stack.runtime.live.store_state.regressed)
    refused = await run("shift", "--vllm", "0.6")
    assert refused.code == 3
    assert "llmctl store adopt" in refused.err
    assert stack.runtime.live.current().share_ppm("x") == 500_000

    looked = await run(*place, "store", "adopt")
    assert looked.code == 3
    assert "--yes" in looked.err
    assert "50% -> 0%" in looked.out
    assert "analysis" in looked.out
    assert stack.runtime.live.current().share_ppm("x") == 500_000

    done = await run(*place, "store", "adopt", "--yes", "--reason", "a new beginning")
    assert done.code == 0, done
    assert "followed by gateway-" in done.out
    assert stack.runtime.live.current().share_ppm("x") == 0
    assert not stack.runtime.live.store_state.regressed
    (latch,) = (await run.json("status"))["latched"]
    assert (latch["scope"], latch["incident"]) == ("analysis", latched["latched"])
    assert (await run.json("history"))["entries"][0]["command"] == "adopt"
    assert (await run.json("shift", "--vllm", "0.6"))["unconfirmed"] == []
    assert stack.runtime.live.current().share_ppm("x") == 600_000


async def test_a_rollback_that_no_gateway_reads_is_no_success(run: Llmctl, stack: Stack, tmp_path: Path) -> None:
    await run.json("shift", "--vllm", "0.5")
    forget(tmp_path)
    await until(lambda: stack.runtime.live.store_state.regressed)
    ran = await run("rollback", "--wait", "0.1")
    assert ran.code == 4
    assert "NOT rolled back in gateway-" in ran.err
    assert "--gateway" in ran.err
    assert stack.runtime.live.current().share_ppm("x") == 500_000
    assert (await run("--gateway", stack.url, "rollback", "--wait", "0.1")).code == 0
    assert stack.runtime.live.current().share_ppm("x") == 0


async def test_a_backup_with_a_higher_share_says_what_it_raises(run: Llmctl, stack: Stack, tmp_path: Path) -> None:
    await run.json("shift", "--vllm", "0.9")
    with sqlite3.connect(tmp_path / "flags.db") as db:
        (backup,) = db.execute("SELECT document FROM flags").fetchone()
    db.close()
    later = await run.json("shift", "--vllm", "0.1")
    with sqlite3.connect(tmp_path / "flags.db") as db:
        db.execute("UPDATE flags SET document = ?, revision = ?", (backup, later["revision"] - 1))
        db.execute("DELETE FROM history WHERE revision = ?", (later["revision"],))
    db.close()
    await until(lambda: stack.runtime.live.store_state.regressed)
    assert "RAISED" in (await run("store", "adopt")).out
    found = await run.json("store", "adopt")
    assert (found["adopted"], found["raised"], found["after"]["*"]) == (True, ["*"], 0.9)
    assert stack.runtime.live.current().share_ppm("x") == 900_000


async def test_where_nothing_was_known_there_is_nothing_to_adopt(run: Llmctl, stack: Stack, tmp_path: Path) -> None:
    await run.json("shift", "--vllm", "0.5")
    shutil.rmtree(Path.home() / ".local/state/memos_llm/last_good")
    forget(tmp_path)
    await until(lambda: stack.runtime.live.store_state.regressed)
    assert "--gateway" in (await run("store", "adopt")).out
    found = await run.json("--gateway", stack.url, "store", "adopt")
    assert found["adopted"], "the gateway remembers what this command does not"
