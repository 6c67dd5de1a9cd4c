"""The traffic of the benchmark, as bytes: what the client sends, and what the upstream answers.

Shaped like the real thing (an OpenAI SDK's headers, a conversation of some turns, vLLM's chunks, Ollama's records),
because the cost of parsing depends on it. No two conversations are alike, so that both arms of a split get their part.
"""

from collections.abc import Sequence

import msgspec

MODEL = "qwen3:8b"  # the callers' name, and Ollama's own
VLLM_MODEL = "Qwen/Qwen3-8B"

CHAT = "/v1/chat/completions"
NATIVE = "/api/chat"
TRANSLATED = "/c/translated/api/chat"  # the gateway's: a component that is pinned to vLLM

MEDIA_TYPES = {"json": "application/json", "sse": "text/event-stream; charset=utf-8", "ndjson": "application/x-ndjson"}

_PARAGRAPH = (
    "You read a note from a field engineer, name the component that it is about, and say in one sentence what was "
    "observed, what was tried, and what is still open. Quote part numbers exactly as they are written. "
)
_SDK_HEADERS = (
    "Accept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 2.8.0\r\n"
    "Authorization: Bearer none\r\nX-Stainless-Lang: python\r\nX-Stainless-Package-Version: 2.8.0\r\n"
    "X-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n"
    "X-Stainless-Runtime-Version: 3.11.9\r\nX-Stainless-Async: async:asyncio\r\nx-stainless-retry-count: 0\r\n"
    "x-stainless-read-timeout: 600\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
)


def messages(conversation: int) -> list[dict[str, str]]:
    """About 1.5 kB: a system prompt, a question, an answer, the next question."""
    return [
        {"role": "system", "content": _PARAGRAPH * 3},
        {"role": "user", "content": f"Note {conversation}: pump 17-B lost prime twice. {_PARAGRAPH}"},
        {"role": "assistant", "content": "The pump. It lost prime twice; nothing was tried yet."},
        {"role": "user", "content": "And the part numbers?"},
    ]


def requests(path: str, count: int, *, stream: bool, tokens: int) -> Sequence[bytes]:
    """`count` requests of different conversations, ready to be sent."""
    return [_request(path, _body(path, number, stream, tokens)) for number in range(count)]


def _body(path: str, conversation: int, stream: bool, tokens: int) -> bytes:
    body: dict[str, object] = {"model": MODEL, "messages": messages(conversation), "stream": stream}
    if path == CHAT:
        body |= {"max_tokens": tokens, "temperature": 0.2}
    else:
        body |= {"options": {"num_predict": tokens, "temperature": 0.2}}
    return msgspec.json.encode(body)


def _request(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{_SDK_HEADERS}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Answers:
    """Every byte that one model's answers are made of, made once."""

    def __init__(self, model: str) -> None:
        self.chat = _response("json", msgspec.json.encode(_completion(model)))
        self.native = _response("json", msgspec.json.encode(_record(model, _PARAGRAPH * 2, done=True)))
        self.sse_head, self.ndjson_head = _stream_head("sse"), _stream_head("ndjson")
        self.role = _event(_chunk(model, {"role": "assistant", "content": ""}))
        self.token = _event(_chunk(model, {"content": " valve"}))
        self.finish = _event(_chunk(model, {"content": ""}, finish="length"))
        self.usage = _event(_chunk(model, None) | {"usage": _USAGE})
        self.done = _piece(b"data: [DONE]\n\n")
        self.record = _piece(msgspec.json.encode(_record(model, " valve")) + b"\n")
        self.last_record = _piece(msgspec.json.encode(_record(model, "", done=True)) + b"\n")


LAST_PIECE = b"0\r\n\r\n"
_USAGE = {"prompt_tokens": 371, "total_tokens": 627, "completion_tokens": 256, "prompt_tokens_details": None}


def response(media: str, body: bytes, status: str = "200 OK") -> bytes:
    """A whole HTTP response."""
    return (
        f"HTTP/1.1 {status}\r\ndate: Mon, 02 Jun 2025 12:00:00 GMT\r\nserver: uvicorn\r\n"
        f"content-length: {len(body)}\r\ncontent-type: {MEDIA_TYPES[media]}\r\n\r\n"
    ).encode() + body


_response = response


def _stream_head(media: str) -> bytes:
    return (
        "HTTP/1.1 200 OK\r\ndate: Mon, 02 Jun 2025 12:00:00 GMT\r\nserver: uvicorn\r\n"
        f"content-type: {MEDIA_TYPES[media]}\r\ntransfer-encoding: chunked\r\n\r\n"
    ).encode()


def _piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(chunk: object) -> bytes:
    return _piece(b"data: " + msgspec.json.encode(chunk) + b"\n\n")


def _chunk(model: str, delta: dict[str, str] | None, finish: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": None}
    return {
        "id": "chatcmpl-9f0c2a4be3d14f6d8d4a3c0e5b7a1f22",
        "object": "chat.completion.chunk",
        "created": 1748865600,
        "model": model,
        "choices": [] if delta is None else [choice],
    }


def _completion(model: str) -> dict[str, object]:
    """About 1 kB, as vLLM writes it."""
    message: dict[str, object] = {
        "role": "assistant",
        "content": _PARAGRAPH * 2,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": [],
        "reasoning": None,
    }
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": None,
    }
    return {
        "id": "chatcmpl-9f0c2a4be3d14f6d8d4a3c0e5b7a1f22",
        "object": "chat.completion",
        "created": 1748865600,
        "model": model,
        "choices": [choice],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": _USAGE,
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "kv_transfer_params": None,
    }


def _record(model: str, text: str, *, done: bool = False) -> dict[str, object]:
    record: dict[str, object] = {
        "model": model,
        "created_at": "2025-06-02T12:00:00.123456789Z",
        "message": {"role": "assistant", "content": text},
        "done": done,
    }
    if done:
        record |= {
            "done_reason": "stop",
            "total_duration": 4935886791,
            "load_duration": 534986708,
            "prompt_eval_count": 371,
            "prompt_eval_duration": 107345000,
            "eval_count": 256,
            "eval_duration": 4289432000,
        }
    return record
