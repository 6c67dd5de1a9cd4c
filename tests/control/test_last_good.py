"""The last-good file: replaced as a whole, read without ever failing."""

import fcntl
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


DAMAGED = [b"", b"{", b"[]", b'{"flags": {}}', b"\xff\xfe", b'{"flags": "\xff"}', b'{"x": ' + b"[" * 100_000]


@pytest.mark.parametrize("content", [*DAMAGED, None])
def test_a_missing_or_damaged_file_is_as_good_as_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    assert last_good.read(path) == View(blank())
    assert last_good.read(None) == View(blank())
    last_good.write(path, VIEW)
    assert last_good.read(path) == VIEW


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


def again(view: View, other: View, path: Path) -> View:
    """What is there after two processes of one host have written."""
    last_good.write(path, view)
    last_good.write(path, other)
    return last_good.read(path)


def test_a_process_that_lags_behind_does_not_bring_older_flags_back(tmp_path: Path) -> None:
    older, newer = View(fresh("i", "s")), View(VIEW.published)
    assert again(newer, older, tmp_path / "a.json") == again(older, newer, tmp_path / "b.json") == newer
    assert again(newer, View(blank()), tmp_path / "c.json") == newer


def test_the_cuts_of_all_are_kept_until_the_flags_have_settled_them(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    (ours,) = VIEW.cuts
    theirs = Cut(Rollback(provider="v", incident="i3", scope="review"), 8.0, Actor("g2", "guard"))
    assert again(VIEW, View(VIEW.published, (theirs,)), path).cuts == (ours, theirs)
    latched = ours.command.apply(VIEW.published, 9.0)
    last_good.write(path, View(latched))
    assert last_good.read(path) == View(latched, (theirs,))


def test_another_installation_s_flags_replace_the_ones_that_are_there(tmp_path: Path) -> None:
    other = View(fresh("j", "t"))
    assert again(View(VIEW.published), other, tmp_path / "x.json") == other


def test_a_writer_that_stands_still_with_the_lock_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_good, "LOCK_S", 0.05)
    held = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        last_good.write(tmp_path / "x.json", VIEW)
    finally:
        os.close(held)
    assert last_good.read(tmp_path / "x.json") == VIEW
