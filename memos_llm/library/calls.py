"""From a caller's Python values to a `Call`. What it gave wrongly is refused here, before anything is tried. Pure."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import TypedDict

from memos_llm.core.call import COMPONENT, MAX_SESSION_CHARS, OPERATIONS, REQUEST_ID, Call, Wire
from memos_llm.core.errors import BadRequest, ConfigError
from memos_llm.core.policy import Policy
from memos_llm.core.responses import Chat, Options
from memos_llm.dialects.edge import DIALECTS
from memos_llm.dialects.typed import chat_body, check_names, embed_body

CALLER = "library"  # as the inventory names calls of this process


class Place(TypedDict, total=False):
    """Where a call belongs: what every call of a router takes besides what it asks for.

    `component` names the pipeline stage, `session` the conversation (at most 512 characters); `request_id` is told in
    logs and answers; `timeout_s` is the caller's own deadline in seconds, None for none.
    """

    component: str
    session: str
    request_id: str
    timeout_s: float | None


class CallOptions(Options, Place, total=False):
    """What a chat call of a router takes: sampling options and its place."""


class EmbedOptions(Place, total=False):
    """What an embeddings call of a router takes besides its texts."""

    model: str | None


def build(
    messages: Chat,
    *,
    stream: bool,
    max_tokens: int | None,
    temperature: float | None,
    options: CallOptions,
    policy: Policy,
    now: float,
) -> Call:
    """The call that such arguments make.

    Raises:
        BadRequest: an argument is wrong; the message names it.
        ConfigError: no model was given, and the configuration does not have exactly one.
    """
    try:
        check_names(options, CallOptions.__annotations__)
        model = _model(options, policy)
        body = chat_body(
            messages, stream=stream, model=model, max_tokens=max_tokens, temperature=temperature, options=options
        )
    except TypeError as error:
        raise BadRequest(str(error)) from error
    return _call(Wire.OPENAI_CHAT, body, model, stream, options, policy, now)


def build_embed(texts: Sequence[str], *, options: EmbedOptions, policy: Policy, now: float) -> Call:
    """The call for the vectors of `texts`.

    Raises:
        BadRequest, ConfigError: as `build`.
    """
    try:
        check_names(options, EmbedOptions.__annotations__, ())
        model = _model(options, policy)
        body = embed_body(texts, model)
    except TypeError as error:
        raise BadRequest(str(error)) from error
    return _call(Wire.OPENAI_EMBEDDINGS, body, model, False, options, policy, now)


def _call(
    wire: Wire, body: bytes, model: str, stream: bool, options: Mapping[str, object], policy: Policy, now: float
) -> Call:
    id = _name(options, "request_id", REQUEST_ID, 128) or os.urandom(12).hex()
    component = _name(options, "component", COMPONENT, 64)
    session = _session(options)
    wait_s = _wait_s(options.get("timeout_s"), policy)
    dialect = DIALECTS[wire]
    parsed = dialect.parse(body)
    if parsed.stream is not stream:
        raise BadRequest("extra: `stream` is not for it: call chat() or stream()")
    key = session or parsed.named_key or dialect.conversation_key(parsed.head) or id.encode()
    return Call(
        id=id,
        wire=wire,
        head=parsed.head,
        body=body,
        model=model,
        stream=stream,
        component=component or policy.component(model, OPERATIONS[wire]),
        key=key,
        accepted_at=now,
        deadline=now + min(wait_s, policy.total_s),
        own_deadline=wait_s < policy.total_s,
        needs=parsed.needs,
        caller=CALLER,
        typed=True,
    )


def _model(options: Mapping[str, object], policy: Policy) -> str:
    model = _text(options, "model") or policy.default_model()
    if model is None:
        raise ConfigError("no model was given and `models` does not have exactly one: pass model=…")
    return model


def _session(options: Mapping[str, object]) -> bytes | None:
    session = _text(options, "session")
    if session is not None and len(session) > MAX_SESSION_CHARS:
        raise BadRequest(f"session: at most {MAX_SESSION_CHARS} characters are wanted, not {len(session)}")
    return session.encode() if session else None


def _text(options: Mapping[str, object], name: str) -> str | None:
    """An option that is text; None and the empty text mean that it was not given."""
    value = options.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRequest(f"{name}: text is wanted, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{name}: a lone surrogate is in it, which UTF-8 cannot write") from None
    return value or None


def _name(options: Mapping[str, object], name: str, form: re.Pattern[str], longest: int) -> str | None:
    value = _text(options, name)
    if value is not None and not form.fullmatch(value):
        raise BadRequest(f"{name}: 1 to {longest} of the characters A-Z a-z 0-9 . _ : - are wanted")
    return value


def _wait_s(given: object, policy: Policy) -> float:
    """How long the caller waits. Nothing left (0 or less) is for the engine to say: a time-out, not a mistake."""
    if given is None:
        return policy.total_s
    if not isinstance(given, int | float) or given != given:
        raise BadRequest("timeout_s: seconds are wanted, such as 30.0, or None for no deadline of your own")
    return given
