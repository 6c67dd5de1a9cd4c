"""The driver: asks the store and every server at once. Cheap requests only; what `deep` generates is asked for."""

import asyncio
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from memos_llm.config.urls import canonical_host
from memos_llm.control.adopt import Verdict as Judged
from memos_llm.control.adopt import judge
from memos_llm.core.decoding import FAILURES
from memos_llm.core.errors import AttemptFailed, LLMError
from memos_llm.core.events import Bus
from memos_llm.core.flags import Flags
from memos_llm.core.policy import Endpoint, Policy, ProviderSpec
from memos_llm.core.ports import BackendClient, Instance, StateStore, Transport
from memos_llm.operate.doctor.facts import EndpointFacts, Load, Loaded, ProviderFacts, Shown, StoreFacts
from memos_llm.operate.guarding import look, rows
from memos_llm.operate.probing import LIMIT_S, EndpointHealth, probe_all
from memos_llm.operate.standing import NO_FLAGS
from memos_llm.providers import KINDS, AiohttpClient, open_transport
from memos_llm.providers.ollama_loads import PS, read_ps
from memos_llm.store import open_store, path_of
from memos_llm.store.files import MOUNTS, file_system

if TYPE_CHECKING:
    from memos_llm.config import Settings

Told = Callable[[str, int], None]
"""Called with what was just asked, and how many steps that were."""

AT_ONCE = 8  # questions to one Ollama about its models
NO_SUCH_ROUTE, OTHER_METHOD = 404, 405
ROUTES: Mapping[str, str] = {"/v1/chat/completions": "generate", "/v1/embeddings": "embed"}


def steps(settings: "Settings") -> int:
    """How many steps `store` and `servers` tell."""
    return 1 + sum(max(1, len(spec.endpoints)) for spec in settings.provider_specs())


# -- the store


async def store(settings: "Settings", known: Flags, told: Told) -> StoreFacts:
    """Reads it, and writes and removes a row of our own; a store that is not there yet is not made.

    Args:
        known: the last good flags of this host; of revision 0 when there are none.
    """
    url, shown = settings.store_url, settings.show()["store"]
    facts = StoreFacts(shown=shown, kind=url.partition(":")[0], known_revision=known.revision)
    try:
        path = path_of(url)
        if path is not None:
            facts = await asyncio.to_thread(_file, facts, path)
        if path is None or facts.exists:
            facts = await _opened(facts, url, settings.policy())
    except LLMError as error:
        facts = replace(facts, error=error.message)
    told("store", 1)
    if facts.error or facts.kind == "memory":
        return facts
    judged = judge(known, facts.flags)
    return replace(facts, regressed=judged.why if judged.verdict is Judged.REGRESSED else "")


def _file(facts: StoreFacts, path: Path) -> StoreFacts:
    nearest = next((place for place in path.parents if place.exists()), path)
    with suppress(OSError):
        facts = replace(facts, file_system=file_system(os.path.realpath(nearest), MOUNTS.read_text()))
    facts = replace(facts, path=str(path), directory_writable=nearest.is_dir() and os.access(nearest, os.W_OK))
    try:
        return replace(
            facts, mode=path.stat().st_mode & 0o7777, directory_mode=path.parent.stat().st_mode & 0o7777, exists=True
        )
    except FileNotFoundError:
        return replace(facts, exists=False)
    except OSError as error:
        return replace(facts, error=f"{path}: cannot be looked at ({error.strerror or type(error).__name__})")


async def _opened(facts: StoreFacts, url: str, policy: Policy) -> StoreFacts:
    if facts.error:
        return facts
    opened = open_store(url)
    try:
        flags, instances = await opened.load(), await opened.instances()
        seen = await look(opened, policy, flags or NO_FLAGS)
        return replace(
            facts,
            flags=flags,
            instances=tuple(instances),
            windows=rows(policy, seen.windows, seen.evaluations),
            write_error=await _write(opened),
        )
    finally:
        await opened.aclose()


async def _write(opened: StateStore) -> str:
    ours = Instance(id=f"doctor-{os.getpid()}", kind="cli", revision=0, at=0.0, ephemeral=True)
    try:
        await opened.heartbeat(ours)
        await opened.leave(ours.id)
    except LLMError as error:
        return error.message
    return ""


# -- the servers


async def servers(settings: "Settings", told: Told) -> tuple[ProviderFacts, ...]:
    """Every enabled provider. Never raises for a server's sake."""
    specs = settings.provider_specs()
    health = await probe_all(specs)
    client = AiohttpClient()
    try:
        return tuple(
            await asyncio.gather(*(_provider(spec, health[spec.name], settings, client, told) for spec in specs))
        )
    finally:
        await client.aclose()


async def _provider(
    spec: ProviderSpec,
    health: tuple[EndpointHealth, ...],
    settings: "Settings",
    client: BackendClient,
    told: Told,
) -> ProviderFacts:
    models = tuple(model.on[spec.name].name for model in settings.catalogue().models.values() if spec.name in model.on)

    async def one(endpoint: Endpoint, probed: EndpointHealth) -> EndpointFacts:
        facts = await _endpoint(spec, endpoint, probed, models, client)
        told(spec.name, 1)
        return facts

    ends = await asyncio.gather(*(one(*pair) for pair in zip(spec.endpoints, health, strict=False)))
    if not ends:
        told(spec.name, 1)
    return ProviderFacts(
        name=spec.name, kind=spec.kind, has_key=bool(spec.api_key), endpoints=tuple(ends), local=_is_local(spec)
    )


def _is_local(spec: ProviderSpec) -> bool:
    hosts = {canonical_host(urlsplit(endpoint.url).hostname or "") for endpoint in spec.endpoints}
    return hosts == {"localhost"}


async def _endpoint(
    spec: ProviderSpec, endpoint: Endpoint, probed: EndpointHealth, models: tuple[str, ...], client: BackendClient
) -> EndpointFacts:
    facts = EndpointFacts(
        url=endpoint.url,
        up=probed.up,
        detail=probed.detail,
        version=probed.version,
        latency_s=probed.latency_s,
        configured=endpoint.models,
    )
    if not facts.up or spec.kind not in KINDS:
        return facts
    transport = open_transport(replace(spec, endpoints=(endpoint,)), client, Bus(), clock=time.monotonic)
    try:
        return await (_ollama(facts, transport, models) if spec.kind == "ollama" else _vllm(facts, transport))
    finally:
        await transport.aclose()


class _Card(Struct):
    id: str = ""
    max_model_len: int | None = None
    parent: str | None = None


class _Cards(Struct):
    data: list[_Card] | None = None


async def _vllm(facts: EndpointFacts, transport: Transport) -> EndpointFacts:
    found, refused = await _document(transport, "/v1/models", _Cards)
    if found is None:
        return replace(facts, models_status=refused.status, models_fault=refused.why)
    cards = found.data or []
    own = {card.id: card.max_model_len for card in cards}
    lengths = {card.id: card.max_model_len or own.get(card.parent or "") for card in cards}
    return replace(
        facts,
        models=tuple(card.id for card in cards),
        contexts={name: length for name, length in lengths.items() if length},
        task=await _task(transport),
        load=read_metrics((await _fetch(transport, "/metrics"))[0] or b""),
    )


_SAMPLE = re.compile(rb"^(vllm:\w+)\{([^}]*)\} (\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)", re.MULTILINE)


def read_metrics(page: bytes) -> Load | None:
    """Of vLLM's `/metrics`: requests over all engines, the fullest cache. Before 0.10 it was called gpu_cache.

    None when there is nothing of it.
    """
    found: dict[bytes, list[float]] = {}
    for name, labels, value in _SAMPLE.findall(page):
        if name != b"vllm:engine_sleep_state" or b'sleep_state="awake"' in labels:
            found.setdefault(name, []).append(float(value))
    if b"vllm:num_requests_running" not in found:
        return None
    caches = found.get(b"vllm:kv_cache_usage_perc") or found.get(b"vllm:gpu_cache_usage_perc")
    return Load(
        running=sum(found[b"vllm:num_requests_running"]),
        waiting=sum(found.get(b"vllm:num_requests_waiting", [])),
        kv_cache=max(caches) if caches else None,
        asleep=not any(found.get(b"vllm:engine_sleep_state", [1.0])),
    )


async def _task(transport: Transport) -> str:
    """A GET tells a route that is not there (404) from one that wants a POST (405). Older releases have both."""
    found = {task: await _status(transport, path) for path, task in ROUTES.items()}
    there = [task for task, status in found.items() if status == OTHER_METHOD]
    gone = [task for task, status in found.items() if status == NO_SUCH_ROUTE]
    return there[0] if len(there) == len(gone) == 1 else ""


async def _status(transport: Transport, path: str) -> int:
    return (await _fetch(transport, path))[1].status


class _Tag(Struct):
    name: str = ""


class _Tags(Struct):
    models: list[_Tag] | None = None


class _Row(Struct):
    name: str = ""
    model: str = ""
    size: int = 0
    size_vram: int = 0


class _Rows(Struct):
    models: list[_Row] | None = None


class About(Struct):
    """What is read of an answer of `/api/show`."""

    parameters: str | None = None
    model_info: dict[str, Any] | None = None
    capabilities: list[str] | None = None


async def _ollama(facts: EndpointFacts, transport: Transport, models: tuple[str, ...]) -> EndpointFacts:
    tags, refused = await _document(transport, "/api/tags", _Tags)
    if tags is None:
        return replace(facts, models_status=refused.status, models_fault=refused.why)
    names = tuple(tag.name for tag in tags.models or ())
    turn = asyncio.Semaphore(AT_ONCE)

    async def show(name: str) -> tuple[str, Shown | None]:
        async with turn:
            found, _ = await _document(transport, "/api/show", About, msgspec.json.encode({"model": name}))
            return name, None if found is None else read_show(found)

    loaded, shown = await asyncio.gather(_loaded(transport), asyncio.gather(*(show(name) for name in models)))
    return replace(facts, models=names, loaded=loaded, shown={name: one for name, one in shown if one is not None})


async def _loaded(transport: Transport) -> tuple[Loaded, ...] | None:
    body, _ = await _fetch(transport, PS)
    if body is None:
        return None
    try:
        rows = msgspec.json.decode(body, type=_Rows).models or []
        known = {row.model: row for row in read_ps(body, datetime.now(UTC))}
    except (*FAILURES, AttemptFailed):
        return None
    return tuple(
        Loaded(
            model=name,
            size=row.size,
            size_vram=row.size_vram,
            context_tokens=known[name].context_tokens,
            left_s=known[name].left_s,
        )
        for row in rows
        if (name := row.model or row.name) in known
    )


_NUM_CTX = re.compile(r"^[ \t]*num_ctx[ \t]+([0-9]{1,9})[ \t]*$", re.MULTILINE)


def read_show(found: About) -> Shown:
    """Its `parameters` are text, a line each."""
    info = found.model_info or {}
    trained = info.get(f"{info.get('general.architecture')}.context_length")
    num_ctx = _NUM_CTX.search(found.parameters or "")
    return Shown(
        capabilities=tuple(found.capabilities or ()),
        trained_tokens=trained if isinstance(trained, int) else None,
        num_ctx=int(num_ctx[1]) if num_ctx else None,
    )


class _Refused(Struct, frozen=True):
    status: int = 0
    why: str = ""


async def _fetch(transport: Transport, path: str, body: bytes | None = None) -> tuple[bytes | None, _Refused]:
    try:
        async with asyncio.timeout(LIMIT_S):
            return await transport.fetch(path, body), _Refused(200)
    except TimeoutError:
        return None, _Refused(0, f"no answer in {LIMIT_S:g} s")
    except AttemptFailed as error:
        return None, _Refused(error.outcome.status, str(error))


async def _document(
    transport: Transport, path: str, kind: type[Any], body: bytes | None = None
) -> tuple[Any, _Refused]:
    data, refused = await _fetch(transport, path, body)
    if data is None:
        return None, refused
    try:
        return msgspec.json.decode(data, type=kind), refused
    except FAILURES:
        return None, _Refused(refused.status, f"{path} is not the JSON that it should be")
