"""From an HTTP request to a `Call`: names, key, deadline. Pure.

Component: header → path → body (`metadata.component`) → the caller's API key → `component_rules` → `default`.
Key: session (header → path → body) → `prompt_cache_key`, `safety_identifier`, `user` → trace id → the conversation's
beginning once an assistant turn is there → the request's own id. Never a constant. A header or path that cannot be
used is refused; a body was written for the back end, so what we cannot use of it is passed over.
"""

import random
import re
from collections.abc import Mapping

from memos_llm.core.call import (
    COMPONENT,
    MAX_SESSION_CHARS,
    OPERATIONS,
    REQUEST_ID,
    Call,
    Feature,
    Operation,
    Passage,
    Wire,
)
from memos_llm.core.errors import BadRequest, Forbidden
from memos_llm.core.policy import Policy
from memos_llm.dialects.edge import Dialect, Parsed
from memos_llm.gateway.paths import Place
from memos_llm.gateway.principal import ANONYMOUS, Principal, Right
from memos_llm.gateway.rules import OPEN, Rules
from memos_llm.gateway.screening import check_media, check_model

Headers = Mapping[bytes, bytes]

_TRACE = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
PROVIDER = b"x-memos-provider"
RETRIES = b"x-stainless-retry-count"  # of OpenAI's SDK and its kin
MOST_RETRIES = 99


def request_id(headers: Headers) -> str:
    """The caller's `x-request-id` if it is well-formed, else a new one."""
    given = headers.get(b"x-request-id", b"")
    text = given.decode("latin-1")
    return text if REQUEST_ID.fullmatch(text) else f"{random.getrandbits(96):024x}"


def build(
    dialect: Dialect,
    body: bytes,
    headers: Headers,
    place: Place,
    policy: Policy,
    *,
    id: str,
    accepted_at: float,
    principal: Principal = ANONYMOUS,
    rules: Rules = OPEN,
) -> Call:
    """The call that a request makes.

    Raises:
        BadRequest: the body or a header cannot be understood; the message says which and how to write it.
        Forbidden: `x-memos-provider` without the right to it, or a model that is answered in somebody's cloud.
    """
    parsed = dialect.parse(body)
    check_model(parsed.model, rules)
    if not dialect.folds:  # Ollama's own wires carry media as base64
        check_media(body, rules)
    wait_s, own = _wait_s(headers, policy)
    return Call(
        id=id,
        wire=dialect.wire,
        head=parsed.head,
        body=body,
        model=parsed.model,
        stream=parsed.stream,
        component=_component(parsed, OPERATIONS[dialect.wire], headers, place, policy, principal),
        key=_session(parsed, headers, place) or parsed.named_key or _derived(dialect, parsed, headers) or id.encode(),
        accepted_at=accepted_at,
        deadline=accepted_at + wait_s,
        own_deadline=own,
        needs=parsed.needs,
        override=_override(headers, parsed.model, policy, principal) if PROVIDER in headers else None,
        caller=principal.id,
        retry=_retry(headers),
    )


def passing(
    passage: Passage,
    body: bytes,
    headers: Headers,
    place: Place,
    policy: Policy,
    *,
    model: str,
    stream: bool,
    id: str,
    accepted_at: float,
    principal: Principal,
) -> Call:
    """The call that a request makes which is passed on unread.

    Raises:
        BadRequest: a header cannot be understood, or asks for a provider that gets no such requests.
        Forbidden: as `build`.
    """
    parsed = Parsed(head={}, model=model, stream=stream, needs=Feature.NONE)
    if PROVIDER in headers and _override(headers, model, policy, principal) != policy.baseline:
        raise BadRequest(f"what this gateway does not read goes to {policy.baseline} only")
    wait_s, own = _wait_s(headers, policy)
    return Call(
        id=id,
        wire=Wire.PASSTHROUGH,
        head=parsed.head,
        body=body,
        model=model,
        stream=stream,
        component=_component(parsed, Operation.PASSTHROUGH, headers, place, policy, principal),
        key=_session(parsed, headers, place) or id.encode(),
        accepted_at=accepted_at,
        deadline=accepted_at + wait_s,
        own_deadline=own,
        caller=principal.id,
        passage=passage,
        retry=_retry(headers),
    )


def _override(headers: Headers, model: str, policy: Policy, principal: Principal) -> str:
    """The provider that an administrator's request names."""
    if Right.ADMIN not in principal.rights:
        raise Forbidden("x-memos-provider chooses the back end past the split and needs the admin scope")
    provider = _text(headers, PROVIDER) or ""
    if provider not in policy.timeouts:
        raise BadRequest(f"x-memos-provider: there is no provider {provider!r}; choices: {', '.join(policy.timeouts)}")
    known = policy.catalogue.resolve(model)
    if known is not None and known.target(provider) is None:
        raise BadRequest(f"x-memos-provider: {provider} does not have the model {known.name!r}")
    return provider


def _component(
    parsed: Parsed, operation: Operation, headers: Headers, place: Place, policy: Policy, principal: Principal
) -> str:
    name = _text(headers, b"x-memos-component") or place.component
    if name is None:
        if parsed.component is not None and COMPONENT.fullmatch(parsed.component):
            return parsed.component
        return principal.component or policy.component(parsed.model, operation)
    if not COMPONENT.fullmatch(name):
        raise BadRequest("a component is 1 to 64 of the characters A-Z a-z 0-9 . _ : -")
    return name


def _session(parsed: Parsed, headers: Headers, place: Place) -> bytes | None:
    name = _text(headers, b"x-memos-session") or place.session
    if name is None:
        return parsed.session.encode() if parsed.session and len(parsed.session) <= MAX_SESSION_CHARS else None
    if len(name) > MAX_SESSION_CHARS:
        raise BadRequest(f"a session is at most {MAX_SESSION_CHARS} characters")
    return name.encode()


def _derived(dialect: Dialect, parsed: Parsed, headers: Headers) -> bytes | None:
    trace = _TRACE.match(headers.get(b"traceparent", b""))
    return trace[1] if trace else dialect.conversation_key(parsed.head)


def _wait_s(headers: Headers, policy: Policy) -> tuple[float, bool]:
    """How long the caller waits, and whether it said so itself."""
    text = headers.get(b"x-memos-timeout-ms")
    if text is None:
        return policy.total_s, False
    if not (text.isdigit() and len(text) <= 8 and int(text) > 0):
        raise BadRequest("x-memos-timeout-ms is a whole number of milliseconds, such as 30000")
    return min(int(text) / 1000, policy.total_s), int(text) / 1000 < policy.total_s


def _retry(headers: Headers) -> int:
    """How often the caller's SDK has tried before; what is no number was not said by one."""
    text = headers.get(RETRIES)
    return min(int(text), MOST_RETRIES) if text and len(text) <= 4 and text.isdigit() else 0


def _text(headers: Headers, name: bytes) -> str | None:
    value = headers.get(name)
    if not value:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"the header {name.decode()} is not UTF-8") from None
