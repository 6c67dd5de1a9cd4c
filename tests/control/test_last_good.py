"""The last-good file: replaced as a whole, read without ever failing."""

import os
import stat
from pathlib import Path

import pytest

from memos_llm.control import last_good
from memos_llm.control.adopt import Cut, View, blank
from memos_llm.core.commands import Actor, Rollback
from memos_llm.core.flags import SCHEMA, fresh

VIEW = View(
    Rollback(provider="v", incident="i1", scope="analysis").apply(fresh("i", "s", 300_000), 5.0),
    (Cut(Rollback(provider="v", incident="i2", holddown_s=3.0), 7.0, Actor("g", "guard")),),
)


def test_flags_and_unpublished_cuts_survive_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last_good.json"
    last_good.write(path, View(fresh("i", "s")))
    last_good.write(path, VIEW)
    assert last_good.read(path) == VIEW
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["last_good.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"flags": {}}', b"\xff\xfe", None])
def test_a_missing_or_damaged_file_is_as_good_as_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    assert last_good.read(path) == View(blank())
    assert last_good.read(None) == View(blank())


def test_a_newer_schema_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    last_good.write(path, VIEW)
    path.write_bytes(path.read_bytes().replace(b'"schema":%d' % SCHEMA, b'"schema":%d' % (SCHEMA + 1), 1))
    assert last_good.read(path) == View(blank())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    last_good.write(path, VIEW)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        last_good.write(path, View(blank()))
    assert last_good.read(path) == VIEW
    assert len(list(tmp_path.iterdir())) == 1
