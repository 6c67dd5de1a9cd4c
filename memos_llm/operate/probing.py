"""How the providers are right now: every endpoint asked at once, each on its own, none longer than the limit."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from memos_llm.core.catalogue import canonical
from memos_llm.core.events import Bus, ProbeEnded
from memos_llm.core.policy import Endpoint, Policy, ProviderSpec
from memos_llm.core.ports import BackendClient, Transport
from memos_llm.providers import KINDS, open_transport
from memos_llm.providers.client import AiohttpClient

LIMIT_S = 3.0


class EndpointHealth(Struct, frozen=True, kw_only=True):
    """One endpoint. `models` is None when it did not say; `latency_s` is the whole probe's."""

    url: str
    up: bool
    detail: str
    models: tuple[str, ...] | None
    version: str
    latency_s: float

    def serves(self, name: str) -> bool:
        """Whether it may have a model; one that was not asked may."""
        return self.up and (self.models is None or canonical(name) in {canonical(model) for model in self.models})


Health = Mapping[str, tuple[EndpointHealth, ...]]


async def probe_all(specs: Iterable[ProviderSpec], limit_s: float = LIMIT_S) -> Health:
    """Provider → its endpoints, in the configuration's order. Never raises for a server's sake."""
    specs = tuple(specs)
    client = AiohttpClient()
    try:
        found = await asyncio.gather(*(_provider(spec, client, limit_s) for spec in specs))
    finally:
        await client.aclose()
    return {spec.name: health for spec, health in zip(specs, found, strict=True)}


async def probe_one(spec: ProviderSpec, limit_s: float = LIMIT_S) -> tuple[EndpointHealth, ...]:
    """One provider, of whatever kind: one that is a plug-in is loaded for it, which `probe_all` spares a short command.

    Raises:
        ConfigError: the plug-in does not work.
    """
    if spec.kind in KINDS:
        return (await probe_all([spec], limit_s))[spec.name]
    client = AiohttpClient()
    try:
        return (await _endpoint(spec, Endpoint(spec.name), client, limit_s),)
    finally:
        await client.aclose()


async def _provider(spec: ProviderSpec, client: BackendClient, limit_s: float) -> tuple[EndpointHealth, ...]:
    if spec.kind not in KINDS:  # not spoken to over HTTP by us: there is nothing to probe
        return ()
    return tuple(await asyncio.gather(*(_endpoint(spec, one, client, limit_s) for one in spec.endpoints)))


async def probe_open(spec: ProviderSpec, transport: Transport) -> tuple[EndpointHealth, ...]:
    """One provider by the transport in force, which sees what no first look can: that an engine stands still."""
    started = time.monotonic()
    ends = await transport.probe()
    took_s = time.monotonic() - started
    configured = {endpoint.url: endpoint for endpoint in spec.endpoints}
    return tuple(_found(ended, configured.get(ended.endpoint, Endpoint(ended.endpoint)), took_s) for ended in ends)


async def _endpoint(spec: ProviderSpec, endpoint: Endpoint, client: BackendClient, limit_s: float) -> EndpointHealth:
    alone = replace(spec, endpoints=(endpoint,)) if spec.kind in KINDS else spec
    transport = open_transport(alone, client, Bus(), clock=time.monotonic)
    started = time.monotonic()
    ended = ProbeEnded(provider=spec.name, endpoint=endpoint.url, up=False, detail=f"no answer in {limit_s:g} s")
    try:
        async with asyncio.timeout(limit_s):
            (ended,) = await transport.probe()
    except TimeoutError:
        pass
    finally:
        await transport.aclose()
    return _found(ended, endpoint, time.monotonic() - started)


def _found(ended: ProbeEnded, endpoint: Endpoint, took_s: float) -> EndpointHealth:
    """Routing forgives one failed probe, for the next one is near; who asks once takes it for what it says."""
    return EndpointHealth(
        url=endpoint.url,
        up=ended.up and not ended.failure,
        detail=ended.detail,
        models=ended.models if ended.models is not None else endpoint.models or None,
        version=ended.version,
        latency_s=took_s,
    )


def ills(provider: str, health: Sequence[EndpointHealth], policy: Policy) -> list[str]:
    """What keeps a provider from being healthy, in words: no endpoint is up, or a mapped model has none that is."""
    if not any(endpoint.up for endpoint in health):
        return [f"{endpoint.url} is down ({endpoint.detail})" for endpoint in health] or ["it has no endpoint"]
    targets = (model.target(provider) for model in policy.catalogue.models.values())
    return [
        f"no endpoint that is up serves {target.model}"
        for target in targets
        if target is not None and not any(endpoint.serves(target.model) for endpoint in health)
    ]
