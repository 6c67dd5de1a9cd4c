"""Fixtures of the outermost tests; each test has a home folder of its own, so that none meets a user's files."""

import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from stack import Stack, open_stack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose client libraries keep sockets for themselves come last: no other file is blamed for those."""
    items.sort(key=lambda item: any("swept" in mark.args for mark in item.iter_markers("usefixtures")))


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with open_stack(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def swept() -> Iterator[None]:
    """What a client library left open is swept up with its own tests, and not blamed on those of the next file."""
    yield
    gc.collect()
