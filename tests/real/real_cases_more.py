"""Every other request: generate, completions, embeddings, the catalogue, routes, headers."""

from collections.abc import Mapping
from typing import Any

from real_asked import LEFT_OUT, LONG, PNG, SCHEMA, SYSTEM, TOOL, UNICODE, USER, complete, embed, generate, openai
from real_servers import CHAT_MODEL, EMBED, EMBED_MODEL, OLLAMA, PLAIN_MODEL, VLLM
from real_wire import Case

USAGE = {"include_usage": True}


def _raw(**more: Any) -> Any:
    return generate(raw=True, **more)


GENERATE: Mapping[str, Any] = {
    "stream": generate(stream=True),
    "stream unless told otherwise": generate(stream=LEFT_OUT),
    "whole": generate(),
    "system": generate(system="Be terse"),
    "unicode": generate(UNICODE),
    "raw": _raw(),
    "raw, stream": _raw(stream=True),
    "raw with logprobs": _raw(logprobs=True, top_logprobs=2),
    "raw with logprobs, stream": _raw(logprobs=True, stream=True),
    "raw with system": _raw(system="x"),
    "raw with template": _raw(template="x"),
    "raw with context": _raw(context=[1]),
    "raw too long": generate(LONG, raw=True),
    "raw with format": _raw(format=SCHEMA, options={"num_predict": 60}),
    "template": generate(template="{{ .Prompt }}"),
    "template bad": generate(template="{{ .Prompt"),
    "context": generate(context=[10, 11, 12]),
    "context a string": generate(context="x"),
    "suffix": generate(suffix="return x"),
    "suffix, stream": generate(suffix="return x", stream=True),
    "empty prompt": generate(""),
    "empty prompt, stream": generate("", stream=True),
    "empty prompt with suffix": generate("", suffix="x"),
    "no prompt": {"model": CHAT_MODEL},
    "prompt a number": generate(5),
    "prompt null": generate(None),
    "format json": generate(format="json", options={"num_predict": 40}),
    "format schema, stream": generate(format=SCHEMA, stream=True, options={"num_predict": 60}),
    "format unknown": generate(format="yaml"),
    "images": generate(images=[PNG]),
    "image not base64": generate(images=["!"]),
    "think": generate(think=True),
    "logprobs": generate(logprobs=True),
    "one token": generate(options={"num_predict": 1}),
    "option of the wrong type": generate(options={"num_ctx": "x"}),
    "unknown model": generate(model="nope"),
    "unknown model, stream": generate(model="nope", stream=True),
    "no model": {"prompt": "x"},
    "model with spaces": generate(model="a b"),
    "not JSON": b"{bad",
    "empty body": b"",
}
COMPLETIONS: Mapping[str, Any] = {
    "whole": complete(),
    "no max_tokens": complete(max_tokens=LEFT_OUT, stop=["e"]),
    "stream": complete(stream=True),
    "stream with usage": complete(stream=True, stream_options=USAGE),
    "stream one token": complete(stream=True, max_tokens=1),
    "list of one": complete(["def main("]),
    "list of two": complete(["def main(", "import os"]),
    "list of two, stream": complete(["def main(", "import os"], stream=True),
    "list empty": complete([]),
    "tokens": complete([89, 506, 203]),
    "tokens of two": complete([[89, 506], [203, 10]]),
    "token beyond the vocabulary": complete([999999]),
    "prompt empty": complete(""),
    "prompt absent": complete(LEFT_OUT),
    "prompt with a lone surrogate": b'{"model":"%b","prompt":"a\\ud800b","max_tokens":3}' % CHAT_MODEL.encode(),
    "prompt a number": complete(5),
    "prompt null": complete(None),
    "echo": complete(echo=True),
    "echo, stream": complete(echo=True, stream=True),
    "echo of the prompt alone": complete(echo=True, logprobs=1, max_tokens=0),
    "logprobs 2": complete(logprobs=2),
    "logprobs 0": complete(logprobs=0),
    "logprobs, stream": complete(logprobs=2, stream=True),
    "logprobs true": complete(logprobs=True),
    "logprobs 21": complete(logprobs=21),
    "suffix": complete(suffix="return x"),
    "suffix empty": complete(suffix=""),
    "suffix null": complete(suffix=None),
    "n 2": complete(n=2, temperature=1),
    "n 2, stream": complete(n=2, temperature=1, stream=True),
    "best_of": complete(best_of=2, n=1),
    "stop": complete(stop="e", max_tokens=60),
    "stop list": complete(stop=["e", "x"], max_tokens=60),
    "stop a number": complete(stop=5),
    "stop of a number": complete(stop=[5]),
    "max_tokens 1": complete(max_tokens=1),
    "max_tokens 0": complete(max_tokens=0, stop=["e"]),
    "max_tokens null": complete(max_tokens=None, stop=["e"]),
    "max_tokens null, stream": complete(max_tokens=None, stop=["e"], stream=True),
    "max_tokens above the context": complete(max_tokens=100000, stop=["e"]),
    "max_tokens a string": complete(max_tokens="x"),
    "temperature a string": complete(temperature="x"),
    "temperature null": complete(temperature=None),
    "sampling": complete(top_p=0.9, seed=3, frequency_penalty=0.1, presence_penalty=0.1),
    "vLLM's own": complete(top_k=1, min_p=0.0, repetition_penalty=1.0),
    "user": complete(user="u"),
    "logit_bias": complete(logit_bias={"50": -100}),
    "json_object": complete(response_format={"type": "json_object"}, max_tokens=40),
    "overflow": complete(LONG),
    "overflow, stream": complete(LONG, stream=True),
    "usage without stream": complete(stream_options=USAGE),
    "stream a string": complete(stream="x"),
    "unicode": complete(UNICODE),
    "keys in another case": {"Model": CHAT_MODEL, "Prompt": "hi", "max_tokens": 3},
    "unknown model": complete(model="nope"),
    "unknown model, stream": complete(model="nope", stream=True),
    "no model": complete(model=LEFT_OUT),
    "not JSON": b"{bad",
    "empty body": b"",
}
V1_EMBEDDINGS: Mapping[str, Any] = {
    "one": embed(),
    "list": embed(["os path", "import"]),
    "list of one": embed(["os path"]),
    "many": embed([f"text {number}" for number in range(70)]),
    "base64": embed(encoding_format="base64"),
    "float": embed(encoding_format="float"),
    "format unknown": embed(encoding_format="x"),
    "format null": embed(encoding_format=None),
    "dimensions 64": embed(dimensions=64),
    "dimensions 0": embed(dimensions=0),
    "dimensions above": embed(dimensions=1024),
    "dimensions -1": embed(dimensions=-1),
    "dimensions a string": embed(dimensions="x"),
    "dimensions in base64": embed(dimensions=64, encoding_format="base64"),
    "too long": embed(LONG),
    "too long, cut": embed(LONG, truncate_prompt_tokens=-1),
    "truncate_prompt_tokens": embed(truncate_prompt_tokens=4),
    "tokens": embed([89, 506]),
    "tokens of two": embed([[89, 506], [203]]),
    "empty string": embed(""),
    "empty list": embed([]),
    "list with an empty string": embed(["a", ""]),
    "no input": embed(LEFT_OUT),
    "input null": embed(None),
    "input a number": embed(5),
    "input an object": embed({"a": 1}),
    "list of both": embed(["a", 5]),
    "messages": embed(LEFT_OUT, messages=USER),
    "user": embed(user="u"),
    "unicode": embed(UNICODE),
    "unknown model": embed(model="nope"),
    "no model": embed(model=LEFT_OUT),
    "model empty": embed(model=""),
    "not JSON": b"{bad",
    "empty body": b"",
}
API_EMBED: Mapping[str, Any] = {
    "one": embed(),
    "list": embed(["os path", "import"]),
    "many": embed([f"text {number}" for number in range(70)]),
    "dimensions 64": embed(dimensions=64),
    "dimensions 0": embed(dimensions=0),
    "dimensions above": embed(dimensions=1024),
    "dimensions -3": embed(dimensions=-3),
    "dimensions a string": embed(dimensions="x"),
    "too long": embed(LONG),
    "too long, truncate": embed(LONG, truncate=True),
    "too long, truncate false": embed(LONG, truncate=False),
    "empty string": embed(""),
    "empty list": embed([]),
    "list with an empty string": embed(["a", ""]),
    "no input": embed(LEFT_OUT),
    "input null": embed(None),
    "input a number": embed(5),
    "list of both": embed(["a", 5]),
    "keep_alive": embed(keep_alive="5m"),
    "keep_alive without a unit": embed(keep_alive="300"),
    "options": embed(options={"num_ctx": 2048}),
    "option of the wrong type": embed(options={"num_ctx": "x"}),
    "name with tag": embed(model="tiny-embed:latest"),
    "a chat model": embed(model=CHAT_MODEL),
    "unicode": embed(UNICODE),
    "unknown model": embed(model="nope"),
    "no model": embed(model=LEFT_OUT),
    "model with spaces": embed(model="a b"),
    "not JSON": b"{bad",
    "empty body": b"",
}
API_EMBEDDINGS: Mapping[str, Any] = {
    "one": {"model": EMBED_MODEL, "prompt": "os path"},
    "empty": {"model": EMBED_MODEL, "prompt": ""},
    "no prompt": {"model": EMBED_MODEL},
    "too long": {"model": EMBED_MODEL, "prompt": LONG},
    "prompt a number": {"model": EMBED_MODEL, "prompt": 5},
    "input in place of prompt": {"model": EMBED_MODEL, "input": "x"},
    "options": {"model": EMBED_MODEL, "prompt": "x", "options": {"temperature": 0}},
    "unknown model": {"model": "nope", "prompt": "x"},
    "no model": {"prompt": "x"},
    "not JSON": b"{bad",
}
FOREIGN = {"Origin": "https://example.com"}
LOCAL = {"Origin": "http://localhost:3000"}
_ASK = {"Access-Control-Request-Method": "POST"}

OLLAMA_ROUTES: tuple[Case, ...] = (
    *(
        Case(f"{method} {path}", path, method=method)
        for path in ("/", "/api/version", "/api/tags")
        for method in ("GET", "HEAD")
    ),
    *(
        Case(f"GET {path}", path, method="GET")
        for path in ("/api/ps", "/v1/models", "/v1/models/tiny", "/v1/models/nope")
    ),
    *(
        Case(f"GET {path}", path, method="GET")
        for path in ("/v1/models/tiny:latest", "/v1/models/a/b", "/api/foo", "/x")
    ),
    *(Case(f"GET {path}", path, method="GET") for path in ("/api/chat", "/api/embed", "/v1/completions", "/api/show")),
    *(Case(f"GET {path}", path, method="GET") for path in ("/api/tags/", "/v1/models/")),
    *(Case(f"POST {path}", path, {}) for path in ("/", "/api/tags", "/v1/models", "/v1/foo", "/api/chat/")),
    Case("DELETE /api/chat", "/api/chat", method="DELETE"),
    Case("show", "/api/show", {"model": CHAT_MODEL}),
    Case("show by name", "/api/show", {"name": CHAT_MODEL}),
    Case("show with tag", "/api/show", {"model": "tiny:latest"}),
    Case("show in capitals", "/api/show", {"model": "TINY"}),
    Case("show with system", "/api/show", {"model": CHAT_MODEL, "system": "x"}),
    Case("show a model without tools", "/api/show", {"model": PLAIN_MODEL}),
    Case("show unknown", "/api/show", {"model": "nope"}),
    Case("show nothing", "/api/show", {}),
    Case("show a bad name", "/api/show", {"model": "a b"}),
    Case("show a number", "/api/show", {"model": 5}),
    Case("show an empty body", "/api/show", b""),
    Case("responses", "/v1/responses", {"model": CHAT_MODEL, "input": "hi", "max_output_tokens": 8, "temperature": 0}),
    Case(
        "responses, stream",
        "/v1/responses",
        {"model": CHAT_MODEL, "input": "hi", "max_output_tokens": 8, "temperature": 0, "stream": True},
    ),
    Case("responses unknown model", "/v1/responses", {"model": "nope", "input": "hi"}),
    Case("responses without input", "/v1/responses", {"model": CHAT_MODEL}),
    Case("messages", "/v1/messages", {"model": CHAT_MODEL, "max_tokens": 8, "temperature": 0, "messages": USER}),
    Case(
        "messages, stream",
        "/v1/messages",
        {"model": CHAT_MODEL, "max_tokens": 8, "temperature": 0, "messages": USER, "stream": True},
    ),
    Case("messages unknown model", "/v1/messages", {"model": "nope", "max_tokens": 8, "messages": USER}),
    Case("messages without max_tokens", "/v1/messages", {"model": CHAT_MODEL, "messages": USER}),
    Case("count_tokens", "/v1/messages/count_tokens", {"model": CHAT_MODEL, "messages": USER}),
    Case("copy", "/api/copy", {"source": CHAT_MODEL, "destination": "tiny-copy"}),
    Case("copy unknown", "/api/copy", {"source": "nope", "destination": "x"}),
    Case("chat with the copy", "/api/chat", {"model": "tiny-copy", "messages": []}),
    Case("delete the copy", "/api/delete", {"model": "tiny-copy"}, "DELETE"),
    Case("delete unknown", "/api/delete", {"model": "nope"}, "DELETE"),
    Case("a blob that is not there", "/api/blobs/sha256:" + "0" * 64, method="HEAD"),
    Case("a local origin", "/api/version", method="GET", headers=LOCAL),
    Case("a foreign origin", "/api/version", method="GET", headers=FOREIGN),
    Case("a foreign origin, chat", "/api/chat", {"model": "nope", "messages": USER}, headers=FOREIGN),
    Case("preflight, local", "/api/chat", method="OPTIONS", headers={**LOCAL, **_ASK}),
    Case("preflight, foreign", "/api/chat", method="OPTIONS", headers={**FOREIGN, **_ASK}),
    Case("OPTIONS without an origin", "/api/chat", method="OPTIONS"),
    Case("a foreign host", "/api/version", method="GET", headers={"Host": "example.com"}),
    Case("a local host", "/api/version", method="GET", headers={"Host": "foo.localhost"}),
    Case("a key, which it ignores", "/api/version", method="GET", headers={"Authorization": "Bearer x"}),
    Case("text/plain", "/api/chat", {"model": "nope", "messages": USER}, headers={"Content-Type": "text/plain"}),
)
VLLM_ROUTES: tuple[Case, ...] = (
    *(Case(f"GET {path}", path, method="GET") for path in ("/health", "/ping", "/version", "/load", "/v1/models")),
    *(
        Case(f"GET {path}", path, method="GET")
        for path in ("/v1/models/tiny", "/", "/x", "/v1/chat/completions", "/metrics")
    ),
    *(
        Case(f"POST {path}", path, {})
        for path in ("/health", "/ping", "/v1/models", "/v1/foo", "/v1/embeddings", "/api/chat")
    ),
    Case("HEAD /health", "/health", method="HEAD"),
    Case("DELETE /v1/chat/completions", "/v1/chat/completions", method="DELETE"),
    Case("GET /v1/models/", "/v1/models/", method="GET"),
    Case("tokenize", "/tokenize", {"model": CHAT_MODEL, "prompt": "hi there"}),
    Case("tokenize messages", "/tokenize", {"model": CHAT_MODEL, "messages": SYSTEM}),
    Case("tokenize messages and tools", "/tokenize", {"messages": USER, "tools": [TOOL]}),
    Case("tokenize with strings", "/tokenize", {"prompt": "hi there", "return_token_strs": True}),
    Case("tokenize nothing", "/tokenize", {}),
    Case("tokenize unknown model", "/tokenize", {"model": "nope", "prompt": "hi"}),
    Case("detokenize", "/detokenize", {"model": CHAT_MODEL, "tokens": [72, 300]}),
    Case("detokenize nothing", "/detokenize", {}),
    Case("chat as text/plain", "/v1/chat/completions", openai(), headers={"Content-Type": "text/plain"}),
    Case("chat without a type", "/v1/chat/completions", openai(), headers={"Content-Type": ""}),
    Case(
        "chat with a charset",
        "/v1/chat/completions",
        openai(),
        headers={"Content-Type": "application/json; charset=utf-8"},
    ),
    Case("chat with an id", "/v1/chat/completions", openai(), headers={"X-Request-Id": "my-id"}),
    Case("chat with an id, stream", "/v1/chat/completions", openai(stream=True), headers={"X-Request-Id": "my-id"}),
    Case("chat with a key", "/v1/chat/completions", openai(), headers={"Authorization": "Bearer x"}),
    Case("a foreign origin", "/v1/models", method="GET", headers=FOREIGN),
    Case("preflight", "/v1/chat/completions", method="OPTIONS", headers={**FOREIGN, **_ASK}),
    Case("OPTIONS without an origin", "/v1/chat/completions", method="OPTIONS"),
    Case("responses", "/v1/responses", {"model": CHAT_MODEL, "input": "hi", "max_output_tokens": 8, "temperature": 0}),
    Case(
        "responses, stream",
        "/v1/responses",
        {"model": CHAT_MODEL, "input": "hi", "max_output_tokens": 8, "temperature": 0, "stream": True},
    ),
    Case("responses unknown model", "/v1/responses", {"model": "nope", "input": "hi"}),
    Case("messages", "/v1/messages", {"model": CHAT_MODEL, "max_tokens": 8, "temperature": 0, "messages": USER}),
    Case(
        "messages, stream",
        "/v1/messages",
        {"model": CHAT_MODEL, "max_tokens": 8, "temperature": 0, "messages": USER, "stream": True},
    ),
    Case("messages without max_tokens", "/v1/messages", {"model": CHAT_MODEL, "messages": USER}),
    Case("count_tokens", "/v1/messages/count_tokens", {"model": CHAT_MODEL, "messages": USER}),
)
EMBED_ROUTES: tuple[Case, ...] = (
    Case("GET /v1/models", "/v1/models", method="GET"),
    Case("GET /version", "/version", method="GET"),
    Case("GET /metrics", "/metrics", method="GET"),
    Case("chat", "/v1/chat/completions", openai(model=EMBED_MODEL)),
    Case("completions", "/v1/completions", complete(model=EMBED_MODEL)),
    Case("tokenize", "/tokenize", {"prompt": "hi there"}),
)


def _at(server: str, path: str, bodies: Mapping[str, Any]) -> list[Case]:
    return [Case(f"{server} {path}: {name}", path, body, at=(server,)) for name, body in bodies.items()]


def _routed(server: str, routes: tuple[Case, ...]) -> list[Case]:
    return [Case(f"{server}: {c.name}", c.path, c.body, c.method, c.headers, (server,)) for c in routes]


def cases() -> list[Case]:
    """Every request of the parity check, in the order in which they are sent; names are unique."""
    from real_cases_chat import NATIVE, OPENAI

    return [
        *_at(OLLAMA, "/api/chat", NATIVE),
        *_at(OLLAMA, "/api/generate", GENERATE),
        *_at(OLLAMA, "/v1/chat/completions", OPENAI),
        *_at(OLLAMA, "/v1/completions", COMPLETIONS),
        *_at(OLLAMA, "/api/embed", API_EMBED),
        *_at(OLLAMA, "/api/embeddings", API_EMBEDDINGS),
        *_at(OLLAMA, "/v1/embeddings", V1_EMBEDDINGS),
        *_routed(OLLAMA, OLLAMA_ROUTES),
        *_at(VLLM, "/v1/chat/completions", OPENAI),
        *_at(VLLM, "/v1/completions", COMPLETIONS),
        *_routed(VLLM, VLLM_ROUTES),
        *_at(EMBED, "/v1/embeddings", V1_EMBEDDINGS),
        *_routed(EMBED, EMBED_ROUTES),
    ]
