"""The routes that manage models: pull, push, create, copy, delete, blobs. They change the emulated catalogue.

Facts: 0.33 source. Progress is a stream of records that ends in `success`; a model that the registry does not have
is a 200 whose second line is an error, or a 500 when not streamed. Nothing is downloaded or stored: a blob is
remembered by its digest only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from memos_llm.emulators import golang, ollama_requests
from memos_llm.emulators.ollama_models import OllamaModel, valid_name
from memos_llm.emulators.ollama_requests import Refusal
from memos_llm.emulators.ollama_server import JSON, JSON_BARE, NDJSON, Ollama
from memos_llm.emulators.wire import Exchange

_SIZE = 5 << 30
_PIECES = 3  # progress records of a layer
_NAMED: Mapping[str, golang.Field] = {
    "model": ("string", "string"),
    "name": ("string", "string"),
    "stream": ("bool", "bool"),
    "insecure": ("bool", "bool"),
}
_CREATE: Mapping[str, golang.Field] = {
    **_NAMED,
    "from": ("string", "string"),
    "files": ("map", "map[string]string"),
    "system": ("string", "string"),
    "template": ("any", "string"),
    "parameters": ("map", "map[string]interface {}"),
    "quantize": ("string", "string"),
}
_COPY: Mapping[str, golang.Field] = {"source": ("string", "string"), "destination": ("string", "string")}
_NO_MANIFEST = "pull model manifest: file does not exist"

Progress = dict[str, Any]


async def pull(server: Ollama, exchange: Exchange) -> None:
    """`POST /api/pull`: installs a name that the registry has."""
    given = ollama_requests.decoded(exchange.request.body, "PullRequest", _NAMED)
    model = server.catalogue.published(_checked_name(given))
    if model is None:
        await _report(exchange, given, [{"status": "pulling manifest"}], _NO_MANIFEST)
        return
    server.catalogue.add(model)
    steps = ["verifying sha256 digest", "writing manifest", "success"]
    await _report(exchange, given, [{"status": "pulling manifest"}, *_layer("pulling", model), *_statuses(steps)])


async def push(server: Ollama, exchange: Exchange) -> None:
    """`POST /api/push`: needs a namespace of one's own, as the registry does."""
    given = ollama_requests.decoded(exchange.request.body, "PushRequest", _NAMED)
    name = _checked_name(given)
    model = server.catalogue.find(name)
    retrieving: list[Progress] = [{"status": "retrieving manifest"}]
    if model is None:
        await _report(exchange, given, [*retrieving, {"status": "couldn't retrieve manifest"}], "file does not exist")
    elif "/" not in name:
        text = "you are not authorized to push to this namespace, create the model under a namespace you own"
        await _report(exchange, given, retrieving, text)
    else:
        steps = ["pushing manifest", "success"]
        await _report(exchange, given, [*retrieving, *_layer("pushing", model), *_statuses(steps)])


async def create(server: Ollama, exchange: Exchange) -> None:
    """`POST /api/create`: a name made from an installed model, or from a blob that was sent."""
    given = ollama_requests.decoded(exchange.request.body, "CreateRequest", _CREATE)
    name = _checked_name(given)
    if not given.get("from") and not given.get("files"):
        raise Refusal(400, "neither 'from' or 'files' was specified")
    origin = server.catalogue.find(given["from"]) if given.get("from") else OllamaModel.named(name)
    unsent = [digest for digest in (given.get("files") or {}).values() if str(digest) not in server.blobs]
    if origin is None:
        await _report(exchange, given, [{"status": "pulling manifest"}], _NO_MANIFEST)
    elif unsent:
        await _report(exchange, given, [{"status": "parsing GGUF"}], f"blob {unsent[0]} does not exist")
    else:
        server.catalogue.add(origin.copied(name) if given.get("from") else replace(origin, name=name))
        layer = f"using existing layer sha256:{origin.digest}"
        await _report(exchange, given, _statuses([layer, "writing manifest", "success"]))


async def copy(server: Ollama, exchange: Exchange) -> None:
    """`POST /api/copy`."""
    given = ollama_requests.decoded(exchange.request.body, "CopyRequest", _COPY)
    source, destination = given.get("source", ""), given.get("destination", "")
    for key, name in (("source", source), ("destination", destination)):
        if not valid_name(name):
            raise Refusal(400, f'{key} "{name}" is invalid')
    model = server.catalogue.find(source)
    if model is None:
        raise Refusal(404, f'model "{source}" not found')
    server.catalogue.add(model.copied(destination))
    await exchange.reply(200)


async def delete(server: Ollama, exchange: Exchange) -> None:
    """`DELETE /api/delete`."""
    given = ollama_requests.decoded(exchange.request.body, "DeleteRequest", _NAMED)
    name = given.get("model") or given.get("name") or ""
    model = ollama_requests.find_model(server.catalogue, name, ollama_requests.DELETE_NAMING, strict_names=False)
    server.catalogue.remove(model)
    server.scheduler.unload(model)
    await exchange.reply(200)


async def has_blob(server: Ollama, exchange: Exchange) -> None:
    """`HEAD /api/blobs/DIGEST`."""
    await exchange.reply(200 if _digest(exchange) in server.blobs else 404, b"", JSON)


async def add_blob(server: Ollama, exchange: Exchange) -> None:
    """`POST /api/blobs/DIGEST`."""
    digest = _digest(exchange)
    if digest in server.blobs:
        await exchange.reply(200)
        return
    actual = f"sha256:{hashlib.sha256(exchange.request.body).hexdigest()}"
    if digest != actual:
        raise Refusal(400, f'digest mismatch, expected "{digest}", got "{actual}"')
    server.blobs.add(digest)
    await exchange.reply(201)


def _digest(exchange: Exchange) -> str:
    return exchange.request.path.rpartition("/")[2].replace("sha256-", "sha256:")


def _checked_name(given: Mapping[str, Any]) -> str:
    name = str(given.get("model") or given.get("name") or "")
    if not valid_name(name):
        raise Refusal(400, "invalid model name")
    return name


def _layer(doing: str, model: OllamaModel) -> list[Progress]:
    layer = {"status": f"{doing} {model.digest[:12]}", "digest": f"sha256:{model.digest}", "total": _SIZE}
    done = [{**layer, "completed": _SIZE * piece // _PIECES} for piece in range(1, _PIECES + 1)]
    return [layer, *done]  # a count of 0 is left out


def _statuses(texts: Iterable[str]) -> list[Progress]:
    return [{"status": text} for text in texts]


async def _report(
    exchange: Exchange, given: Mapping[str, Any], progress: list[Progress], failure: str | None = None
) -> None:
    """The records as they come, or only how it ended."""
    last: Progress = progress[-1] if failure is None else {"error": failure}
    if not given.get("stream", True):
        await exchange.reply(200 if failure is None else 500, golang.dumps(last), JSON_BARE)
        return
    await exchange.start(200, NDJSON)
    for record in progress if failure is None else [*progress, last]:
        await exchange.write(golang.dumps(record) + b"\n")
    await exchange.end()
