"""From a caller's Python values to a `Call`. What it gave wrongly is refused here, before anything is tried. Pure."""

import os
import re
from collections.abc import Mapping

from memos_llm.core.call import COMPONENT, REQUEST_ID, Call, Operation, Wire
from memos_llm.core.errors import BadRequest, ConfigError
from memos_llm.core.policy import Policy
from memos_llm.core.responses import Chat, Options
from memos_llm.dialects.edge import DIALECTS, Parsed
from memos_llm.dialects.typed import chat_body

DIALECT = DIALECTS[Wire.OPENAI_CHAT]


class CallOptions(Options, total=False):
    """What every call of a router takes besides the sampling options.

    `component` names the pipeline stage, `session` the conversation; `timeout_s` is the caller's own deadline, None
    for none.
    """

    component: str
    session: str
    request_id: str
    timeout_s: float | None


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
    id = _name(options, "request_id", REQUEST_ID, 128) or os.urandom(12).hex()
    component = _name(options, "component", COMPONENT, 64)
    session = _text(options, "session")
    wait_s = _wait_s(options.get("timeout_s"), policy)
    model = _text(options, "model") or policy.default_model()
    if model is None:
        raise ConfigError("no model was given and `models` does not have exactly one: pass model=…")
    body = _body(messages, stream, model, max_tokens, temperature, options)
    parsed = _parsed(body, stream)
    return Call(
        id=id,
        wire=DIALECT.wire,
        head=parsed.head,
        body=body,
        model=model,
        stream=stream,
        component=component or policy.component(model, Operation.CHAT),
        key=session.encode() if session else _derived(parsed) or id.encode(),
        accepted_at=now,
        deadline=now + min(wait_s, policy.total_s),
        own_deadline=wait_s < policy.total_s,
        needs=parsed.needs,
    )


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


def _body(
    messages: Chat,
    stream: bool,
    model: str,
    max_tokens: int | None,
    temperature: float | None,
    options: CallOptions,
) -> bytes:
    try:
        return chat_body(
            messages, stream=stream, model=model, max_tokens=max_tokens, temperature=temperature, options=options
        )
    except TypeError as error:
        raise BadRequest(str(error)) from error


def _parsed(body: bytes, stream: bool) -> Parsed:
    parsed = DIALECT.parse(body)
    if parsed.stream is not stream:
        raise BadRequest("extra: `stream` is not for it: call chat() or stream()")
    return parsed


def _derived(parsed: Parsed) -> bytes | None:
    return parsed.named_key or DIALECT.conversation_key(parsed.head)
