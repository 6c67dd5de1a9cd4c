"""A process of its own that adds to the windows, for `test_sqlite_windows`.

usage: windows_child.py PATH START ROUNDS
"""

import asyncio
import sys
from pathlib import Path

from memos_llm.core.windows import WindowDelta, WindowKey
from memos_llm.store import SqliteStore

KEY = WindowKey(scope="*", epoch=3, provider="vllm", model="qwen3:8b", component="synthesis")


async def main(path: Path, start: int, rounds: int) -> None:
    store = SqliteStore(path, clock=lambda: start + 0.5)
    cursor = 0
    for _ in range(rounds):
        found = await store.merge((WindowDelta(key=KEY, start=start, counts={"n": 2, "e": 1}),), cursor)
        cursor = found.cursor
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
