"""`llmctl` on a Redis: the same words as on a file, and no password in any of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_driver import DEAD, Llmctl
from redis_server import RedisServer, redis_server
from stack import document, settings

PASSWORD = "canary-hush"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server("--requirepass", PASSWORD) as running:
        yield running


@pytest.fixture
def run(tmp_path: Path, server: RedisServer) -> Llmctl:
    url = server.url("fleet").replace("unix://", f"unix://default:{PASSWORD}@")
    settings(tmp_path, document(DEAD[0], DEAD[1], tmp_path) | {"store": url})
    return Llmctl(tmp_path / "memos_llm.yaml")


async def test_it_is_seeded_shifted_looked_at_and_rolled_back(run: Llmctl, server: RedisServer) -> None:
    shifted = await run("shift", "--vllm", "0.3")
    assert shifted.code == 0, shifted.err
    shown = await run("status")
    assert "30" in shown.out
    assert (await run("rollback", "--reason", "tested")).code == 0
    refused = await run("shift", "--vllm", "0.5")
    assert refused.code != 0
    assert "latch" in refused.err + refused.out
    assert (await run("incidents")).out.count("tested") >= 1
    told = [await run(*words) for words in (("history",), ("config", "show"), ("doctor",), ("doctor", "--json"))]
    server.kill()
    told += [await run("shift", "--vllm", "0"), await run("doctor")]
    assert told[-2].code == 4
    assert "cannot be reached" in told[-2].err
    everything = "".join(one.out + one.err for one in (shifted, shown, refused, *told))
    assert PASSWORD not in everything
    assert "store.opens" in everything
