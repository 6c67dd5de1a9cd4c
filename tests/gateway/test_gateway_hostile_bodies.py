"""Bodies that mean harm, on every wire: a clear answer to each, never an error of ours, and nothing kept of them."""

import asyncio
import json
import re
from itertools import product
from typing import Any

import pytest
from attacking import CHAT, Line, head, post
from stack import Stack, open_stack

from memos_llm.core.events import InternalError, RequestRefused

DEEP = 10_000
ARRAYS, OBJECTS = b"[" * DEEP + b"1" + b"]" * DEEP, b'{"a":' * DEEP + b"1" + b"}" * DEEP

NUMBERS = [
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1" + b"0" * 400, b"-0", b"9223372036854775808",
    b"18446744073709551616", b"1e-999", b"01", b"+1", b".5", b"1.", b"0x10", b"1.5", b"-1", b"-1000000000000",
]  # fmt: skip
TEXTS = [
    b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'"\\u0000"', b'"\0"', b'"a\\nb"',
    b'"', b'"\\x"', b'"\\u12"', b"'x'",
]  # fmt: skip
SHAPES = [
    b'""', b"null", b"true", b"[]", b"{}", b'"x"', b"[null]", b"[[]]", b'{"a":1}', b"[1,]", b'[{"role":"user"}]',
    b'[{"role":1,"content":{}}]', b'[{"role":"user","content":[1,null,[]]}]', b'[{"role":"assistant","tool_calls":7}]',
    b'[{"role":"assistant","tool_calls":[{"function":{"arguments":[]}}]}]', b'[{"role":"tool","tool_name":[]}]',
    ARRAYS, OBJECTS, b'[{"role":"user","content":' + ARRAYS + b"}]", b'[{"function":{"parameters":' + OBJECTS + b"}}]",
]  # fmt: skip
VALUES = [*NUMBERS, *TEXTS, *SHAPES]

OPENAI = {
    "/v1/chat/completions": (b'"messages":[{"role":"user","content":"hi"}]', [
        "model", "messages", "stream", "n", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k",
        "seed", "stop", "tools", "tool_choice", "response_format", "stream_options", "logprobs", "top_logprobs",
        "logit_bias", "presence_penalty", "user", "metadata", "reasoning_effort", "parallel_tool_calls",
        "prompt_cache_key", "safety_identifier", "chat_template_kwargs", "functions", "unknown",
    ]),
    "/v1/completions": (b'"prompt":"hi"', ["model", "prompt", "suffix", "echo", "best_of", "n", "max_tokens", "stop"]),
    "/v1/embeddings": (b'"input":"hi"', ["model", "input", "dimensions", "encoding_format", "user"]),
}  # fmt: skip
OLLAMA = {
    "/api/chat": (b'"messages":[{"role":"user","content":"hi"}]', [
        "model", "messages", "stream", "options", "format", "keep_alive", "tools", "think", "truncate", "logprobs",
        "top_logprobs", "metadata", "_debug_render_only",
    ]),
    "/api/generate": (b'"prompt":"hi"', ["prompt", "images", "system", "template", "context", "raw", "suffix"]),
    "/api/embed": (b'"input":"hi"', ["model", "input", "truncate", "dimensions", "options", "keep_alive"]),
    "/api/embeddings": (b'"prompt":"hi"', ["prompt", "options"]),
}  # fmt: skip
OPTIONS = ["num_predict", "temperature", "stop", "seed", "num_ctx", "top_k", "unknown"]


def body(usual: bytes, key: str, value: bytes) -> bytes:
    """The usual body of a path, with one value changed."""
    usual_key = usual.partition(b":")[0].strip(b'"').decode()
    members = [] if key == usual_key else [usual]
    members += [] if key == "model" else [b'"model":"qwen3:8b"']
    members += [] if key == "stream" else [b'"stream":false']
    return b"{" + b",".join([*members, b'"%b":%b' % (key.encode(), value)]) + b"}"


def bodies() -> list[tuple[str, bytes]]:
    found = [
        (path, body(usual, key, value))
        for path, (usual, keys) in {**OPENAI, **OLLAMA}.items()
        for key, value in product(keys, VALUES)
    ]
    usual = OLLAMA["/api/chat"][0]
    return found + [
        ("/api/chat", body(usual, "options", b'{"%b":%b}' % (option.encode(), value)))
        for option, value in product(OPTIONS, VALUES)
    ]


async def ask(url: str, requests: list[tuple[str, bytes]]) -> list[tuple[int, bytes]]:
    """Each over a connection that stays."""
    line, answers = await Line.to(url), []
    try:
        for path, sent in requests:
            await line.send(post(path.encode(), body=sent))
            answer = await line.answer()
            answers.append((answer.status, answer.head))
    finally:
        line.close()
    return answers


async def hold(stack: Stack, requests: list[tuple[str, bytes]]) -> None:
    """No answer to them is an error of ours: what is not 2xx or 4xx, the back end has said in these words."""
    parts = [requests[at::4] for at in range(4)]
    for part, answers in zip(parts, await asyncio.gather(*[ask(stack.url, part) for part in parts]), strict=True):
        odd = [
            (status, request[0], request[1][:200])
            for request, (status, told) in zip(part, answers, strict=True)
            if status // 100 not in (2, 4) and not (status == 500 and b"x-memos-provider: ollama" in told)
        ]
        assert ascii(odd) == "[]"  # pytest-xdist cannot carry a lone surrogate
    assert not stack.told.of(InternalError)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 1.0])
async def test_no_value_of_any_field_is_an_error_of_ours(share: float, stack: Stack) -> None:
    await stack.shift(share)
    await hold(stack, bodies())


@pytest.mark.parametrize("share", [0.0, 1.0])
async def test_a_sample_of_them(share: float, stack: Stack) -> None:
    await stack.shift(share)
    await hold(stack, bodies()[::13])  # no divisor of anything: each key and each value is among them


MANGLED = {
    "nothing": b"",
    "a space": b" ",
    "a byte order mark": b"\xef\xbb\xbf" + CHAT,
    "UTF-16": CHAT.decode().encode("utf-16"),
    "NUL in front": b"\0" + CHAT,
    "NUL behind": CHAT + b"\0",
    "two documents": CHAT + CHAT,
    "half a document": CHAT[:-1],
    "an array": b"[" + CHAT + b"]",
    "a string": b'"x"',
    "a comma too many": CHAT[:-1] + b",}",
    "a comment": b"{/**/" + CHAT[1:],
    "a key without quotes": CHAT.replace(b'"model"', b"model"),
    "single quotes": CHAT.replace(b'"', b"'"),
    "a key of no UTF-8": CHAT.replace(b'"model"', b'"m\xffdel"'),
    "a lone surrogate as key": b'{"\\ud800":1,' + CHAT[1:],
    "deep arrays": ARRAYS,
    "deep objects": OBJECTS,
    "arrays that never end": b"[" * 1_000_000,
    "objects that never end": b'{"a":' * 200_000,
    "a model of 1 MB": CHAT.replace(b"qwen3:8b", b"m" * 1_000_000),
    "no model": b"{}",
    "null": b"null",
    "a thousand keys more": CHAT[:-1] + b"".join(b',"k%d":1' % at for at in range(1001)) + b"}",
    "a million messages": b'{"model":"qwen3:8b","messages":[' + b",".join([b'{"role":"user"}'] * 1_000_000) + b"]}",
    "a hundred thousand tools": CHAT[:-1] + b',"tools":[' + b",".join([b'{"type":"a","f":{}}'] * 100_000) + b"]}",
    "a million numbers": CHAT[:-1] + b',"stop":[' + b",".join([b"1"] * 1_000_000) + b"]}",
}  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
async def test_a_body_that_is_none_is_a_4xx_that_is_told_once(path: str, stack: Stack) -> None:
    await stack.shift(1.0)
    for name, sent in MANGLED.items():
        line, before = await Line.to(stack.url), len(stack.told.of(RequestRefused))
        await line.send(post(path.encode(), body=sent))
        answer = await line.answer()
        line.close()
        assert answer.status in (400, 413), (name, answer)
        assert json.loads(answer.body)["error"], name
        assert len(stack.told.of(RequestRefused)) == before + 1, name
    assert not stack.told.of(InternalError)
    assert not [request for request in [*stack.ollama.requests, *stack.vllm.requests] if request.method == "POST"]


async def test_no_second_name_of_a_model_slips_by(stack: Stack) -> None:
    for path, key in product(
        ("/api/chat", "/api/generate", "/api/embed"), (b"MODEL", b"Model", b"mode\\u006c", b"model")
    ):
        twice = (b'{"%b":"big:cloud",' % key + CHAT[1:], CHAT[:-1] + b',"%b":"big:cloud"}' % key)
        assert [status for status, _ in await ask(stack.url, [(path, sent) for sent in twice])] == [400, 400], key
    assert not [request for request in stack.ollama.requests if request.method == "POST"]


CLOUDS = {
    "an escape": ("/api/chat", CHAT.replace(b"qwen3:8b", b"big\\u003acloud")),
    "another escape": ("/v1/chat/completions", CHAT.replace(b"qwen3:8b", b"big:\\u0063loud")),
    "its case": ("/api/generate", b'{"model":"BIG:120b-CLOUD","prompt":"x"}'),
    "another key": ("/v1/responses", b'{"model":"qwen3:8b","NAME":"big:cloud","input":"x"}'),
    "a pull": ("/api/pull", b'{"name":"big:cloud"}'),
    "a show": ("/api/show", b'{"model":"\\u0062ig:cloud"}'),
    "a path": ("/c/a/s/b/api/chat", CHAT.replace(b"qwen3:8b", b"big:cloud")),
    "a whole address": ("http://127.0.0.1/api/chat", CHAT.replace(b"qwen3:8b", b"big:cloud")),
    "an escaped path": ("/api%2fchat", CHAT.replace(b"qwen3:8b", b"big:cloud")),
    "a copy": ("/api/copy", b'{"source":"big:cloud","destination":"mine"}'),
}


async def test_no_disguise_takes_a_prompt_to_a_cloud(stack: Stack) -> None:
    answers = dict(zip(CLOUDS, await ask(stack.url, list(CLOUDS.values())), strict=True))
    assert {name for name, (status, _) in answers.items() if status not in (401, 403)} == set()
    assert not [request for request in stack.ollama.requests if request.method == "POST"]


MEDIA = {
    "an escaped key": b'{"type":"image_url","image\\u005furl":{"url":"http://10.0.0.1/"}}',
    "an escaped scheme": b'{"type":"image_url","image_url":{"url":"\\u0068ttp://10.0.0.1/"}}',
    "a string": b'{"type":"image_url","image_url":"http://10.0.0.1/"}',
    "a file": b'{"type":"input_file","file_url":"file:///etc/passwd"}',
    "inside another part": b'{"type":"text","text":"x","content":[{"image_url":{"url":"http://10.0.0.1/"}}]}',
    "a space in front": b'{"type":"image_url","image_url":{"url":" http://10.0.0.1/"}}',
}


async def test_nothing_makes_a_back_end_fetch_an_address(stack: Stack) -> None:
    await stack.shift(1.0)
    content = b'{"model":"qwen3:8b","messages":[{"role":"%b","content":[%b]}]}'
    for (name, part), role in product(MEDIA.items(), (b"user", b"tool")):
        ((status, _),) = await ask(stack.url, [("/v1/chat/completions", content % (role, part))])
        assert status == 400, name
    assert not [request for request in stack.vllm.requests if request.method == "POST"]


async def test_names_that_are_made_up_share_one_label(stack: Stack) -> None:
    """Components and models that anybody can invent are counted under `other` beyond a number of them."""
    line = await Line.to(stack.url)
    for at in range(250):
        sent = CHAT.replace(b"qwen3:8b", b"made-up-%d" % at)
        await line.send(post(b"/c/made-up-%d/api/chat" % at, body=sent))
        assert (await line.answer()).status == 404
    line.close()
    metrics = await stack.metrics()
    components = {each.partition('"')[0] for each in metrics.split('component="')[1:]}
    models = {each.partition('"')[0] for each in metrics.split('model="')[1:]}
    assert "other" in components
    assert len(components) <= 101
    assert len(models) <= 201


async def test_a_line_of_the_log_and_a_header_stay_one(stack: Stack) -> None:
    """What a caller names things is shown as one line, whatever is in it."""
    answer_line = await Line.to(stack.url)
    await answer_line.send(post(b"/c/a/s/x%0d%0aset-cookie:y/api/chat", b"x-request-id: a\x85b\r\n"))
    answer = await answer_line.answer()
    answer_line.close()
    assert answer.status == 200
    assert b"set-cookie" not in answer.head
    assert re.search(rb"\r\nx-request-id: [0-9a-f]{24}\r\n", answer.head), "one of its own"


async def test_a_length_over_the_limit_is_refused_before_it_comes_and_chunks_as_soon_as_they_pass_it(
    tmp_path: Any,
) -> None:
    async with open_stack(tmp_path, config={"gateway": {"max_body_bytes": 100_000}}) as stack:
        said, unsaid = await Line.to(stack.url), await Line.to(stack.url)
        await said.send(head(headers=b"content-length: 100000001\r\nexpect: 100-continue\r\n"))
        await unsaid.send(head(headers=b"transfer-encoding: chunked\r\n"), *[b"4000\r\n" + b" " * 0x4000 + b"\r\n"] * 7)
        for line in (said, unsaid):
            answer = await line.answer()
            assert answer.status == 413
            assert b"connection: close" in answer.head
            assert await line.rest() == b""
            line.close()
        assert [event.status for event in stack.told.of(RequestRefused)] == [413, 413]
