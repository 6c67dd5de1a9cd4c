"""What the guard counts of calls that come in ways nobody planned for."""

import asyncio
from pathlib import Path

import httpx
from stack import Stack, open_stack

CHAT = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "Hello"}]}


async def counted(stack: Stack, provider: str, n: int) -> dict[str, int]:
    """The store's counts of one arm, once it has n requests that are over."""
    sums: dict[str, int] = {}

    async def look() -> bool:
        sums.clear()
        for row in (await stack.runtime.live.store.merge(())).rows:
            if row.width_s == 1 and row.key.provider == provider:
                for field, count in row.counts.items():
                    sums[field] = sums.get(field, 0) + count
        return sums.get("e", 0) >= n

    async with asyncio.timeout(10):
        while not await look():
            await asyncio.sleep(0.05)
    return sums


async def test_calls_of_one_pipeline_that_all_bear_its_request_id_are_each_counted_with_their_own_time(
    tmp_path: Path,
) -> None:
    async with open_stack(tmp_path, vllm={"ttft_s": 0.3}) as stack, stack.client() as client:
        await stack.shift(1.0)

        async def ask(after_s: float) -> httpx.Response:
            await asyncio.sleep(after_s)
            return await client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "pipeline-7"})

        answers = await asyncio.gather(*(ask(0.1 * number) for number in range(6)))
        assert {answer.status_code for answer in answers} == {200}
        sums = await counted(stack, "vllm", 6)
        assert (sums["n"], sums["e"]) == (6, 6)
