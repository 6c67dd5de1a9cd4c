"""A short run of `scripts/fuzz`, and its checker, which must find what is wrong in an answer."""

import base64
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fuzz.cases import KINDS, Case, case
from fuzz.hostile import INTRUDER, Script
from fuzz.judging import healed, judge
from fuzz.wire import Got, Response, asked_by

TESTS = Path(__file__).parents[1]
RECORD = (
    b'{"model":"m","created_at":"2026-08-22T10:00:00Z","message":{"role":"assistant","content":"x"},"done":false}\n'
)
DONE = RECORD.replace(b'"done":false', b'"done":true')
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[%b]}\n\n'
SAID = EVENT % b'{"index":0,"delta":{"content":"x"},"finish_reason":null}'
FINISHED = EVENT % b'{"index":0,"delta":{},"finish_reason":"stop"}'
ENDED = b"data: [DONE]\n\n"
NDJSON, SSE, JSON = b"application/x-ndjson", b"text/event-stream", b"application/json"
OURS = b"x-memos-error-code: ERR_5101\r\n"


def fuzz(folder: Path, *arguments: str) -> tuple[int, dict[str, object], str]:
    """Exit code, report and what was said on the way."""
    finished = subprocess.run(
        [sys.executable, "-P", "-m", "fuzz", "--json", "--keep", str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return finished.returncode, json.loads(finished.stdout or "{}"), finished.stderr


def test_nothing_is_wrong_with_a_gateway_under_a_few_hundred_cases(tmp_path: Path) -> None:
    code, report, said = fuzz(tmp_path, "--minutes", "1", "--seed", "5", "--cases", "200")
    assert code == 0, (report, said)
    assert report["requests"] == 200
    assert report["kinds"].keys() == KINDS.keys()  # type: ignore[attr-defined]  # an object of JSON


@pytest.mark.slow
def test_nothing_is_wrong_after_a_minute(tmp_path: Path) -> None:
    code, report, said = fuzz(tmp_path, "--minutes", "1")
    assert code == 0, (report, said)


def test_a_kept_case_is_played_again_byte_for_byte(tmp_path: Path) -> None:
    made = next(made for made in (case(5, number) for number in range(1, 99)) if made.kind == "hostile")
    sent = [{"base64": _base64(piece)} for piece in made.pieces]
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnone"
    told = {"fault": "odd", "ends": "closes", "sent": {"base64": _base64(answer)}}
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps({"seed": 5, "number": made.number, "kind": made.kind, "sent": sent, "back_end": told}))
    code, report, said = fuzz(tmp_path, "--replay", str(kept))
    assert code == 0, (report, said)
    assert report["answers"] == {"hostile": {"502": 1}}
    assert report["faults"] == {"odd": 1}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_case_is_a_function_of_its_seed_and_number() -> None:
    assert [case(3, number) for number in range(1, 200)] == [case(3, number) for number in range(1, 200)]
    assert case(3, 7) != case(4, 7)


# --- the checker ------------------------------------------------------------------------------------------------------


def _of(wire: str, path: str) -> Case:
    sent = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}" % path.encode()
    return Case(seed=1, number=1, kind="json", pieces=(sent,), path=path, whole=True, wire=wire)


OLLAMA, OPENAI = _of("ollama.chat", "/api/chat"), _of("openai.chat", "/v1/chat/completions")
CUT_OFF = Script(fault="cut", pieces=(b"HTTP/1.1 200 OK\r\n\r\n",))


def http(body: bytes, kind: bytes = JSON, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, kind, more, len(body), body)


def found(made: Case, data: bytes, said: Script | None = None) -> list[str]:
    return judge(made, asked_by(made.data), Got(data=data), said)


@pytest.mark.parametrize(
    ("made", "data"),
    [
        (OLLAMA, http(RECORD + DONE, NDJSON)),
        (OLLAMA, http(RECORD + b'{"error":"it broke"}\n', NDJSON)),
        (OLLAMA, http(b'{"error":"no"}', status=b"400 Bad Request", more=OURS)),
        (OPENAI, http(SAID + FINISHED + ENDED, SSE)),
        (OPENAI, http(b'{"error":{"message":"m","type":"t","param":null,"code":null}}', status=b"400 No", more=OURS)),
    ],
)
def test_right_answers_pass(made: Case, data: bytes) -> None:
    assert found(made, data) == []


@pytest.mark.parametrize(
    ("made", "data", "word"),
    [
        (OLLAMA, b"", "no answer"),
        (OLLAMA, http(RECORD + DONE, NDJSON)[:-3], "without its end"),
        (OLLAMA, http(RECORD + DONE, NDJSON) * 2, "2 answers"),
        (OLLAMA, http(RECORD + DONE, NDJSON).replace(b"content-length", b"content length"), "no good head"),
        (OLLAMA, http(RECORD + DONE, NDJSON).replace(b"HTTP/1.1", b"HTTP/1.1 "), "no good head"),
        (OLLAMA, http(RECORD + DONE, NDJSON, more=b"content-length: 3\r\n"), "lengths"),
        (OLLAMA, http(RECORD, NDJSON), "no end"),
        (OLLAMA, http(DONE + RECORD, NDJSON), "behind the end"),
        (OLLAMA, http(RECORD.replace(b'"x"', b"5") + DONE, NDJSON), "content is 5"),
        (OLLAMA, http(b"<html>", b"text/html"), "of the type"),
        (OLLAMA, http(b'{"error":{"message":"m"}}', status=b"400 Bad Request", more=OURS), "no text"),
        (OLLAMA, http(b'{"error":"internal error of the gateway"}', status=b"500 No", more=OURS), "of our own"),
        (OLLAMA, http(b'{"error":"broken"}', status=b"502 Bad Gateway", more=OURS), "without a fault"),
        (OPENAI, http((SAID + ENDED).replace(b"finish_reason", b"finish"), SSE), "without a finish"),
        (OPENAI, http(SAID + FINISHED, SSE), "no end"),
        (OPENAI, http(SAID + FINISHED + ENDED + SAID, SSE), "behind the end"),
        (OPENAI, http(b'{"error":"m"}', status=b"400 Bad Request", more=OURS), "no object"),
        (OPENAI, http(b'{"id":1}'), "without choices"),
        (OPENAI, http(b"NaN"), "no JSON"),
        (OPENAI, http(SAID + FINISHED + INTRUDER.encode() + ENDED, SSE), "no request"),
        (replace(OPENAI, right=True), http(b"{}", status=b"404 Not Found"), "a valid request"),
    ],
)
def test_wrong_answers_are_found(made: Case, data: bytes, word: str) -> None:
    assert any(word in problem for problem in found(made, data))


def test_what_a_faulty_back_end_may_become() -> None:
    error = b'{"error":"m"}'
    assert found(OLLAMA, http(error, status=b"502 Bad Gateway", more=OURS), CUT_OFF) == []
    assert "became 500" in found(OLLAMA, http(error, status=b"500 No", more=OURS), CUT_OFF)[0]
    told = http(RECORD + DONE, NDJSON, more=b"x-memos-provider: hollama\r\n")
    assert "never said" in found(OLLAMA, told, CUT_OFF)[0]


def test_an_answer_that_came_to_the_wrong_request_is_found() -> None:
    mine = Response(200, [], b'{"response":"case-7-c"}')
    assert healed(mine, "case-7-c", "ollama.generate") == ""
    assert "another's" in healed(mine, "case-8-c", "ollama.generate")
    assert "became None" in healed(None, "case-8-c", "ollama.generate")
