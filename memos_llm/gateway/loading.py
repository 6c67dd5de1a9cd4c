"""Ollama's load and unload calls for a model that no Ollama has: it is loaded for as long as its server runs.

Without them a client that loads before it asks (`ollama run`) would fail on a model that answers.
"""

import time

from memos_llm.core.call import Call, Wire
from memos_llm.core.errors import Unavailable
from memos_llm.core.policy import Policy
from memos_llm.core.ports import Routes
from memos_llm.dialects.edge import Dialect
from memos_llm.dialects.jsons import go_json, rfc3339
from memos_llm.gateway.asgi import header_value
from memos_llm.gateway.inference import Local

UNLOAD_WARNING = "ignored:keep_alive"  # nothing to unload: one process, one model
_AT_ONCE = frozenset({b"0", b'"0"', b'"0s"', b'"0m"', b'"0h"', b"0.0", b"-0"})


def answer(call: Call, routes: Routes, dialect: Dialect) -> Local | None:
    """The answer in Ollama's words; None when no other provider has the model either.

    Raises:
        Unavailable: the provider that has it is down.
    """
    provider = _holder(call, routes)
    if provider is None:
        return None
    offer = routes.transports[provider].offer(_own_name(call, routes.policy, provider))
    unload = bytes(call.head.get("keep_alive", b"")) in _AT_ONCE
    if not unload and not offer.listed:
        raise Unavailable(f"{provider} should have the model, and does not list it", provider=provider)
    if not unload and offer.refused is not None:
        raise Unavailable(f"{provider} has the model, and takes nothing now: {offer.refused}", provider=provider)
    headers = [(b"content-type", dialect.media_type(stream=False)), (b"x-memos-provider", header_value(provider))]
    if unload:
        headers.append((b"x-memos-warnings", UNLOAD_WARNING.encode()))
    return Local(200, headers, _body(call, "unload" if unload else "load"))


def _holder(call: Call, routes: Routes) -> str | None:
    """Another provider than the baseline that serves the model; the candidate first."""
    policy = routes.policy
    model = policy.catalogue.resolve(call.model)
    names = [] if model is None else sorted(model.on, key=lambda name: name != policy.candidate)
    return next(
        (
            name
            for name in names
            if name != policy.baseline
            and name in routes.transports
            and routes.transports[name].offer(_own_name(call, policy, name)).wires
        ),
        None,
    )


def _own_name(call: Call, policy: Policy, provider: str) -> str:
    model = policy.catalogue.resolve(call.model)
    target = model.target(provider) if model else None
    return target.model if target else call.model


def _body(call: Call, reason: str) -> bytes:
    if call.wire is Wire.OLLAMA_EMBEDDINGS:
        return go_json({"embedding": []})
    if call.wire is Wire.OLLAMA_EMBED:
        return go_json({"model": call.model, "embeddings": []})
    message = {"message": {"role": "assistant", "content": ""}} if call.wire is Wire.OLLAMA_CHAT else {"response": ""}
    begun = {"model": call.model, "created_at": rfc3339(time.time_ns())}
    return go_json({**begun, **message, "done": True, "done_reason": reason})
