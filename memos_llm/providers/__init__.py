"""Providers: from a configured back end to bytes on its wire, and to the typed face that a pipeline calls.

http1      HTTP (asyncio, httptools) breaker    state machine of one endpoint
client     the same on aiohttp       connections  how they are made, kept and bounded
http       the `Transport`           endpoints  pool: which endpoint, and is it usable
ollama     what is particular to it  health     probes and their driver
vllm       what is particular to it  refusals   error answers → outcomes
typed      `LLMProvider` over a `Transport`   joined   `Transport` over an `LLMProvider`
litellm    LiteLLM as an `LLMProvider`        plugins  the kinds that are one; failures: errors ⇄ outcomes

endpoint   one endpoint, its requests in flight; places: their limit; affinity: which replica a conversation lives on
loads      Ollama's cold loads, owned by us; ollama_loads: what a request needs; warmth: what is loaded; warm: kept so
progress   an endpoint that streams and sends nothing is hung          quirks   what a release needs otherwise
"""

from collections.abc import Mapping
from random import Random

from memos_llm.core.events import Bus
from memos_llm.core.flags import Flags
from memos_llm.core.policy import ProviderSpec
from memos_llm.core.ports import BackendClient, Clock, Transport
from memos_llm.providers import ollama, plugins, vllm
from memos_llm.providers.client import AiohttpClient
from memos_llm.providers.health import Prober
from memos_llm.providers.http import HttpTransport, Profile
from memos_llm.providers.http1 import Http1Client
from memos_llm.providers.joined import JoinedTransport

KINDS: Mapping[str, Profile] = {"ollama": ollama.PROFILE, "vllm": vllm.PROFILE}
"""The kinds of back end that are spoken to over HTTP by this package."""

__all__ = ["KINDS", "AiohttpClient", "Http1Client", "Prober", "open_transport"]


def open_transport(
    spec: ProviderSpec,
    client: BackendClient,
    bus: Bus,
    *,
    clock: Clock,
    rng: Random | None = None,
    flags: Flags | None = None,
) -> Transport:
    """The transport of a configured provider. No I/O: nothing is connected until something is sent.

    Args:
        flags: those in force now; later ones are heard on the bus.

    Raises:
        ConfigError: the kind is neither one of `KINDS` nor of `plugins`, or its plug-in does not work.
    """
    profile = KINDS.get(spec.kind)
    if profile is None:
        provider = plugins.make(spec, tuple(KINDS))
        return JoinedTransport(provider, spec, bus, clock=clock, rng=rng or Random())
    return HttpTransport(spec, profile, client, bus, clock=clock, rng=rng or Random(), flags=flags)
