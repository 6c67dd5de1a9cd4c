"""Real exchanges as golden wire data: bodies, and how they came. `scripts/real_backends record` makes them anew.

One JSON document a line: the request, the answer's status and type, and its pieces, each with the milliseconds since
the one before. The tests of the codecs run over them (tests/dialects/test_recorded.py); nothing there needs a server.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from real_cases_more import cases
from real_servers import EMBED, OLLAMA, VLLM, Server
from real_wire import Case, Exchange, exchange

FOLDER = Path(__file__).resolve().parents[1] / "dialects" / "recorded"
CHAT, OPENAI = "ollama /api/chat: ", "ollama /v1/chat/completions: "
RECORDED = (
    *(CHAT + name for name in ("stream", "whole", "tools, stream", "format schema, stream", "stop hit, stream")),
    *(CHAT + name for name in ("num_predict 1, stream", "logprobs, stream", "logprobs and top", "called by id")),
    *(CHAT + name for name in ("unknown model, stream", "think", "load", "unicode")),
    *(f"ollama /api/generate: {name}" for name in ("stream", "whole", "raw, stream", "raw with logprobs, stream")),
    *(
        OPENAI + name
        for name in ("stream", "stream with usage", "whole", "logprobs, stream", "unknown model", "stop, stream")
    ),
    *(f"ollama /v1/completions: {name}" for name in ("stream with usage", "whole")),
    *("ollama /api/embed: list", "ollama /v1/embeddings: base64", "ollama /api/embed: unknown model"),
    *(
        f"vllm /v1/chat/completions: {name}"
        for name in ("stream", "stream with usage", "stream with running usage", "whole")
    ),
    *(f"vllm /v1/chat/completions: {name}" for name in ("stream one token", "stop, stream", "json_schema, stream")),
    *(
        f"vllm /v1/chat/completions: {name}"
        for name in ("logprobs, stream", "logprobs and top", "n 2, stream with usage")
    ),
    *(
        f"vllm /v1/chat/completions: {name}"
        for name in ("tools, stream", "overflow, stream", "unknown model", "unicode")
    ),
    *(
        f"vllm /v1/completions: {name}"
        for name in ("stream with usage", "whole", "list of two, stream", "logprobs, stream")
    ),
    *(f"vllm-embed /v1/embeddings: {name}" for name in ("list", "base64", "too long", "dimensions 64")),
)


async def record(servers: Mapping[str, Server]) -> dict[str, int]:
    """Ask the real servers and write the files; how many exchanges of each.

    Raises:
        KeyError: a name that is in no parity table.
    """
    known = {case.name: case for case in cases()}
    FOLDER.mkdir(exist_ok=True)
    found: dict[str, list[str]] = {OLLAMA: [], VLLM: [], EMBED: []}
    for name in RECORDED:
        case = known[name]
        (server,) = case.at
        got = await exchange(servers[server].url, case)
        document = _document(case, got, servers[server])
        found[server].append(json.dumps(document, ensure_ascii=False, separators=(",", ":")))
    for server, lines in found.items():
        (FOLDER / f"{server}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {server: len(lines) for server, lines in found.items()}


def _document(case: Case, got: Exchange, server: Server) -> dict[str, Any]:
    body = case.body
    if len(case.payload()) > 4000:
        body = None  # the answer is the point, and it is an error
    return {
        "name": case.name,
        "server": server.name,
        "version": server.version,
        "path": case.path,
        "request": body,
        "status": got.status,
        "content_type": got.header("content-type"),
        "pieces": [[after_ms, piece.decode()] for after_ms, piece in got.pieces],
    }
