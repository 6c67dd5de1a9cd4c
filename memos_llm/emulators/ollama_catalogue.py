"""The routes that tell what is installed and what is loaded: tags, ps, show, `/v1/models`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from memos_llm.emulators import golang, ollama_requests
from memos_llm.emulators.ollama_models import OllamaModel
from memos_llm.emulators.ollama_runner import Runner
from memos_llm.emulators.ollama_server import Ollama
from memos_llm.emulators.ollama_versions import Behaviour
from memos_llm.emulators.wire import Exchange

_INSTALLED_NS = 1_755_000_000_000_000_000
_GIBIBYTE = 1 << 30
_CACHE_BYTES = 1 << 17  # of the key-value cache, for each token of a slot's context
_FOREVER = "2319-01-01T00:00:00Z"  # where Go's longest duration ends, about
_SHOW: Mapping[str, golang.Field] = {
    "model": ("string", "string"),
    "name": ("string", "string"),
    "system": ("string", "string"),
    "template": ("string", "string"),
    "verbose": ("bool", "bool"),
    "options": ("map", "map[string]interface {}"),
}
_VOCABULARY = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "the", "llama"]


async def tags(server: Ollama, exchange: Exchange) -> None:
    """`GET, HEAD /api/tags`."""
    await server.show(exchange, {"models": [_tag(model, server.behaves) for model in server.catalogue.all()]})


async def ps(server: Ollama, exchange: Exchange) -> None:
    """`GET /api/ps`."""
    runners = await server.scheduler.loaded(wait=server.behaves.ps_waits)
    await server.show(exchange, {"models": [_loaded(runner, server.behaves) for runner in runners]})


async def show(server: Ollama, exchange: Exchange) -> None:
    """`POST /api/show`."""
    given = ollama_requests.decoded(exchange.request.body, "ShowRequest", _SHOW)
    name = given.get("model") or given.get("name") or ""
    strict = server.behaves.strict_names
    model = ollama_requests.find_model(server.catalogue, name, ollama_requests.SHOW_NAMING, strict_names=strict)
    await server.show(exchange, _shown(model, given, server.behaves))


async def v1_models(server: Ollama, exchange: Exchange) -> None:
    """`GET /v1/models`."""
    data = [_card(model, model.short) for model in server.catalogue.all()]
    await server.show(exchange, {"object": "list", "data": data or None}, v1=True)


async def v1_model(server: Ollama, exchange: Exchange) -> None:
    """`GET /v1/models/NAME`."""
    name = exchange.request.path.rpartition("/")[2]
    strict = server.behaves.strict_names
    model = ollama_requests.find_model(server.catalogue, name, ollama_requests.SHOW_NAMING, strict_names=strict)
    await server.show(exchange, _card(model, name), v1=True)


def _card(model: OllamaModel, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _INSTALLED_NS // 10**9, "owned_by": model.namespace}


def _details(model: OllamaModel, behaves: Behaviour) -> dict[str, Any]:
    details: dict[str, Any] = {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": "8.2B",
        "quantization_level": "Q4_K_M",
    }
    if behaves.listed_capabilities:
        details |= {"context_length": model.context_length, "embedding_length": model.dimension}
    return details


def _tag(model: OllamaModel, behaves: Behaviour) -> dict[str, Any]:
    tag = {
        "name": model.short,
        "model": model.short,
        "modified_at": golang.timestamp(_INSTALLED_NS),
        "size": 5 * _GIBIBYTE,
        "digest": model.digest,
        "details": _details(model, behaves),
    }
    if behaves.listed_capabilities:
        tag["capabilities"] = list(model.capabilities)
    return tag


def _loaded(runner: Runner, behaves: Behaviour) -> dict[str, Any]:
    """One slot's context, and one cache more in the size for every slot (measured)."""
    forever = math.isinf(runner.expires_at)
    size = 5 * _GIBIBYTE + runner.slot_count * runner.num_ctx * _CACHE_BYTES
    return {
        "name": runner.model.short,
        "model": runner.model.short,
        "size": size,
        "digest": runner.model.digest,
        "details": _details(runner.model, behaves),
        "expires_at": _FOREVER if forever else golang.timestamp(int(runner.expires_at * 1e9)),
        "size_vram": size,
        "context_length": runner.num_ctx,
    }


def _shown(model: OllamaModel, given: Mapping[str, Any], behaves: Behaviour) -> dict[str, Any]:
    family, chats = model.family, "completion" in model.capabilities
    verbose = bool(given.get("verbose"))
    shown: dict[str, Any] = {
        "license": "Apache License\nVersion 2.0, January 2004\n",
        "modelfile": _modelfile(model),
        **({"parameters": 'stop                           "<|im_end|>"'} if chats else {}),
        "template": "{{ .Prompt }}",
        **({"system": given["system"]} if given.get("system") else {}),
        "details": _details(model, behaves),
        "model_info": {
            "general.architecture": family,
            "general.parameter_count": 8_190_735_360,
            f"{family}.context_length": model.context_length,
            f"{family}.embedding_length": model.dimension,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": _VOCABULARY if verbose else None,
            "tokenizer.ggml.token_type": [3, 3, 3, 1, 1] if verbose else None,
        },
        "tensors": [{"name": "token_embd.weight", "type": "F16", "shape": [model.dimension, 151643]}],
        "capabilities": list(model.capabilities),
        "modified_at": golang.timestamp(_INSTALLED_NS),
    }
    return shown


def _modelfile(model: OllamaModel) -> str:
    """With the absolute path of the blob on the server, as the real one tells (measured)."""
    blob = f"/root/.ollama/models/blobs/sha256-{model.digest}"
    head = '# Modelfile generated by "ollama show"\n# To build a new Modelfile based on this, replace FROM with:\n'
    return f'{head}# FROM {model.short}\n\nFROM {blob}\nTEMPLATE "{{{{ .Prompt }}}}"\n'
