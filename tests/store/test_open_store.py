"""Which URL names which store."""

from pathlib import Path

import pytest

from memos_llm.core.commands import Actor, Shift, audit
from memos_llm.core.errors import ConfigError
from memos_llm.core.flags import fresh
from memos_llm.store import MemoryStore, open_store


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("sqlite:///{tmp}/absolute.db", "absolute.db"),
        ("sqlite:///~/home.db", "home.db"),
        ("sqlite:///relative.db", "relative.db"),
        ("sqlite:///new/deeper/relative.db", "new/deeper/relative.db"),
    ],
)
async def test_the_path_of_a_sqlite_url(url: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    store = open_store(url.format(tmp=tmp_path))
    assert not (tmp_path / place).exists()  # opening does no I/O
    flags = fresh("i", "s")
    await store.commit(0, flags, audit(Shift(provider="v", share_ppm=0), flags, flags, Actor("t"), 1.0))
    assert (tmp_path / place).exists()
    await store.aclose()


def test_memory() -> None:
    assert isinstance(open_store("memory://"), MemoryStore)


@pytest.mark.parametrize(
    "url",
    [
        "postgres://x/y",
        "sqlite",
        "",
        "/a/path.db",
        "sqlite://",
        "sqlite:///",
        "sqlite://x.db",
        "sqlite:///dir/",
        "sqlite:///:memory:",
        "memory://name",
    ],
)
def test_anything_else_is_an_error_that_names_the_choices(url: str) -> None:
    with pytest.raises(ConfigError, match=r"sqlite:///.*memory://") as caught:
        open_store(url)
    assert caught.value.message.startswith("store: ")


def test_the_error_names_the_scheme_and_never_a_password() -> None:
    with pytest.raises(ConfigError, match="'postgres'") as caught:
        open_store("postgres://me:hush@localhost/1")
    assert "hush" not in caught.value.message
