"""What `scripts/real_backends` is made of, without a real server: its tables agree, and it never passes silently."""

import fnmatch
import os
import subprocess
import sys
from pathlib import Path

from real_cases_more import cases
from real_parity import different, read_listed
from real_recordings import RECORDED
from real_wire import Exchange

NAMES = [case.name for case in cases()]


def test_every_request_has_a_name_of_its_own_and_a_body_that_can_be_sent() -> None:
    assert len(set(NAMES)) == len(NAMES) > 700
    for case in cases():
        assert isinstance(case.payload(), bytes)


def test_what_is_recorded_is_in_the_tables() -> None:
    assert set(RECORDED) <= set(NAMES)


def test_every_listed_difference_names_requests_that_there_are_and_its_reason() -> None:
    for entry in read_listed():
        assert entry.why
        assert entry.lines
        for pattern in entry.cases:
            assert fnmatch.filter(NAMES, pattern), pattern


def answer(body: bytes, *, status: int = 200, kind: str = "application/json") -> Exchange:
    return Exchange(status, [("Content-Type", kind), ("Content-Length", str(len(body)))], [(0.0, body)], "complete")


def test_answers_are_alike_whatever_the_model_says() -> None:
    one, other = (
        b'{"model":"m","n":1,"at":"2026-01-01T00:00:00Z"}',
        b'{"at":"2027-12-31T23:59:59.5Z","model":"m","n":27}',
    )
    assert different(answer(one), answer(other)) == []


def test_a_status_a_header_a_type_a_name_and_an_error_s_words_are_differences() -> None:
    body = b'{"model":"m","n":1}'
    others = [
        answer(body, status=201),
        answer(body, kind="text/plain"),
        answer(b'{"model":"m","n":"1"}'),
        answer(b'{"model":"other","n":1}'),
        answer(b'{"model":"m","n":1,"more":null}'),
    ]
    assert all(different(answer(body), other) for other in others)
    assert different(answer(b'{"error":"a 1"}', status=400), answer(b'{"error":"a 2"}', status=400)) == []
    assert different(answer(b'{"error":"a"}', status=400), answer(b'{"error":"b"}', status=400))


def test_the_order_of_a_stream_s_events_counts_and_not_how_often_one_comes() -> None:
    piece, end = b'{"text":"a","done":false}\n', b'{"text":"","done":true}\n'
    kind = "application/x-ndjson"
    assert different(answer(piece + end, kind=kind), answer(piece * 5 + end, kind=kind)) == []
    assert different(answer(piece + end, kind=kind), answer(end + piece, kind=kind))


def test_a_machine_that_lacks_something_is_told_what_and_why(tmp_path: Path) -> None:
    script = Path(__file__).with_name("real_main.py")
    env = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for command in ("up", "test"):
        done = subprocess.run([sys.executable, script, command], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 4
        assert "cannot be run here: " in done.stderr
        assert "all holds" not in done.stdout
