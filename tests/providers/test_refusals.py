"""Error answers, as the servers really send them, and what each means."""

from datetime import UTC, datetime

import pytest

from memos_llm.core.outcome import MODEL_NOT_FOUND, Kind
from memos_llm.providers.refusals import MAX_TEXT_CHARS, TOLD, read_complaint, refusal, retry_after_s

NESTED = '{"error":{"code":400,"message":"request (9 tokens) exceeds","type":"exceed_context_size_error","n_ctx":8}}'
V = '{"error":{"message":"%s","type":"%s","param":null,"code":400}}'

CASES: list[tuple[int, str, Kind, str, str]] = [
    # status, body, kind, code, what the caller reads
    (401, '{"error":"Unauthorized"}', Kind.CONFIG, "auth", ""),
    (401, '{"error":"unauthorized","signin_url":"https://x"}', Kind.CONFIG, "auth", ""),
    (403, "", Kind.CONFIG, "auth", ""),
    (404, "{\"error\":\"model 'x' not found\"}", Kind.CONFIG, MODEL_NOT_FOUND, "model 'x' not found"),
    (404, "{\"error\":\"model '' not found\"}", Kind.CONFIG, MODEL_NOT_FOUND, "model '' not found"),
    (404, V % ("The model `x` does not exist.", "NotFoundError"), Kind.CONFIG, MODEL_NOT_FOUND, "The model `x` does not exist."),  # noqa: E501
    (404, '{"object":"error","message":"The model `x` does not exist.","type":"NotFoundError","param":null,"code":404}', Kind.CONFIG, MODEL_NOT_FOUND, "The model `x` does not exist."),  # noqa: E501
    (404, '{"detail":"Not Found"}', Kind.CONFIG, "route", ""),
    (404, "404 page not found", Kind.CONFIG, "route", ""),
    (405, '{"detail":"Method Not Allowed"}', Kind.CONFIG, "route", ""),
    (405, "405 method not allowed", Kind.CONFIG, "route", ""),
    (501, V % ("not here", "NotImplementedError"), Kind.CONFIG, "not_supported", "not here"),
    (500, V % ("EngineCore encountered an issue. See stack trace (above) for the root cause.", "InternalServerError"), Kind.SERVER, "status", "EngineCore encountered an issue. See stack trace (above) for the root cause."),  # noqa: E501
    (307, "", Kind.CONFIG, "redirect", ""),
    (429, "", Kind.SATURATED, "rate", ""),
    (503, '{"error":"server busy, please try again.  maximum pending requests exceeded"}', Kind.SATURATED, "queue", "server busy, please try again.  maximum pending requests exceeded"),  # noqa: E501
    (503, V % ("come back", "Service Unavailable"), Kind.SATURATED, "queue", "come back"),
    (503, V % ("The queue is full", "x"), Kind.SATURATED, "queue", "The queue is full"),
    (503, "503 Service Unavailable", Kind.SERVER, "status", "503 Service Unavailable"),
    (503, "<html><body>503 Service Unavailable</body></html>", Kind.SERVER, "status", ""),
    (503, "", Kind.SERVER, "status", ""),
    (500, "", Kind.SERVER, "status", ""),
    (500, V % ("EngineCore died", "InternalServerError"), Kind.SERVER, "status", "EngineCore died"),
    (500, '{"error":"option \\"num_ctx\\" must be of type integer"}', Kind.CLIENT, "option", 'option "num_ctx" must be of type integer'),  # noqa: E501
    (500, '{"error":"option \\"stop\\" must be of an array of strings"}', Kind.CLIENT, "option", 'option "stop" must be of an array of strings'),  # noqa: E501
    (500, '{"error":"invalid format: \\"yaml\\"; expected \\"json\\" or a valid JSON Schema object"}', Kind.CLIENT, "option", 'invalid format: "yaml"; expected "json" or a valid JSON Schema object'),  # noqa: E501
    (500, '{"error":"invalid JSON schema in format"}', Kind.CLIENT, "option", "invalid JSON schema in format"),
    (500, '{"error":"Failed to create new sequence: no input provided"}', Kind.CLIENT, "option", "Failed to create new sequence: no input provided"),  # noqa: E501
    (500, '{"error":"Failed to create new sequence: out of memory"}', Kind.SERVER, "status", "Failed to create new sequence: out of memory"),  # noqa: E501
    (500, '{"error":"the input length exceeds the context length"}', Kind.CLIENT, "option", "the input length exceeds the context length"),  # noqa: E501
    (400, '{"error":"an error was encountered while running the model: unexpected EOF"}', Kind.SERVER, "runner", "an error was encountered while running the model: unexpected EOF"),  # noqa: E501
    (400, '{"error":"do embedding request: Post \\"http://127.0.0.1:4/embedding\\": EOF"}', Kind.SERVER, "runner", 'do embedding request: Post "http://127.0.0.1:4/embedding": EOF'),  # noqa: E501
    (500, '{"error":"this model does not support embeddings"}', Kind.CONFIG, "not_supported", "this model does not support embeddings"),  # noqa: E501
    (502, "<html>", Kind.SERVER, "status", ""),
    (499, '{"error":"request canceled"}', Kind.SERVER, "gave_up", "request canceled"),
    (400, V % ("1 validation error(s):", "Bad Request"), Kind.CLIENT, "status", "1 validation error(s):"),
    (400, '{"error":%s}' % ('"' + NESTED.replace('"', '\\"') + '"'), Kind.CLIENT, "status", "request (9 tokens) exceeds"),  # noqa: E501
    (400, '{"error":"missing request body"}', Kind.CLIENT, "status", "missing request body"),
    (413, "too large", Kind.CLIENT, "status", "too large"),
    (422, '{"detail":[{"msg":"no"}]}', Kind.CLIENT, "status", ""),
    (101, "", Kind.MALFORMED, "status", ""),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind", "code", "text"), CASES)
def test_an_error_answer(status: int, body: str, kind: Kind, code: str, text: str) -> None:
    failed = refusal(status, {}, body.encode())
    assert (failed.outcome.kind, failed.outcome.code, failed.outcome.status) == (kind, code, status)
    assert failed.client_text == text
    his = body.startswith("{") and (kind is not Kind.CONFIG or code in TOLD)
    assert failed.client_body == (body.encode() if his else b"")
    assert not text or text not in str(failed)


@pytest.mark.parametrize("body", ["<html><h1>413</h1></html>", "too large", "", "[]", '"x"', "{", '{"error":"x"}{'])
def test_only_a_json_object_goes_out_as_it_is(body: str) -> None:
    assert refusal(413, {}, body.encode()).client_body == b""


def test_a_body_that_was_cut_does_not_go_out_as_it_is() -> None:
    failed = refusal(400, {}, b'{"error":"no"}', whole=False)
    assert (failed.client_text, failed.client_body) == ("no", b"")


@pytest.mark.parametrize("status", range(300, 600))
def test_every_status_means_something(status: int) -> None:
    assert refusal(status, {}, b"").outcome.kind is not Kind.MALFORMED


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b'{"error":7}',
        b'{"error":null}',
        b'{"error":{}}',
        b'{"error":{"message":7}}',
        b"{}",
    ],
)
def test_a_shape_that_nobody_sends_has_no_text(body: bytes) -> None:
    assert read_complaint(body).text == ""


def test_bodies_that_bite() -> None:
    read_complaint(b"[" * 100_000)
    read_complaint(b'{"error":' * 100_000)
    assert "�" in read_complaint(b"\xff\xfe").text
    assert len(read_complaint(b"x" * 1_000_000).text) == MAX_TEXT_CHARS
    nested = '{"error":"x"}'
    for _ in range(8):
        nested = '{"error":%s}' % ('"' + nested.replace("\\", "\\\\").replace('"', '\\"') + '"')
    assert read_complaint(nested.encode()).text == "x"


NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("99999999999999999999", 3600.0),
        ("Fri, 20 Nov 2026 12:00:30 GMT", 30.0),
        ("Fri, 20 Nov 2026 11:00:00 GMT", 0.0),
        ("Fri, 20 Nov 2026 12:00:30 -0000", 30.0),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("Fri, 99 Nov 2026 12:00:30 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds


def test_retry_after_is_kept_on_any_refusal() -> None:
    assert refusal(503, {"Retry-After": "3"}, b"").outcome.retry_after_s == 3.0


@pytest.mark.parametrize("body", [b'{"error":null}', b'{"error":[1]}', b"{}", b'{"model":"m","done":true}', b"[]"])
def test_a_body_that_tells_no_error_is_not_passed_on_as_one(body: bytes) -> None:
    assert refusal(400, {}, body).client_body == b""
