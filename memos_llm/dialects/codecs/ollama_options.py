"""Ollama's `options` as vLLM's sampling parameters: one row per option, in `OPTIONS`.

Facts: Ollama 0.33 source (types, defaults, windows), vLLM 0.32, measured (what it refuses).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from msgspec import Struct

from memos_llm.core.call import Quirk
from memos_llm.dialects.codecs.rules import Draft, Policy, bad_request, not_offered
from memos_llm.dialects.needs import MAX_STOPS


class Carried(NamedTuple):
    """What is sent (None: nothing), and whether it means the same there."""

    value: object
    exact: bool = True


OMITTED = Carried(None)


class Option(Struct, frozen=True):
    """One option.

    Attributes:
        type: as Ollama names it when the value has another.
        field: vLLM's name for it; empty when there is none.
        neutral: for a dropped option, the value that switches it off: nothing is lost, nothing is said.
        spared: for a dropped option, whether this target loses nothing by it.
        limit: the most that this target takes of a value; None: any.
        says: as in `rules.Rule`.
    """

    type: str
    policy: Policy
    field: str = ""
    carry: Callable[[Any], Carried] | None = None
    neutral: object = None
    note: str = ""
    spared: Callable[[Draft, Any], bool] | None = None
    limit: Callable[[Draft], int | None] | None = None
    says: tuple[Policy, ...] = ()


def apply_options(draft: Draft) -> None:
    """Write the options into the draft.

    Raises:
        AttemptFailed: `client` for a wrong type, in Ollama's words; `incompatible` for what vLLM has no way to do.
    """
    for name, given in (draft.read("options", dict[str, Any]) or {}).items():
        value = read_option(name, given)
        if value is not None:  # an unknown option means nothing to Ollama either
            _apply(draft, name, OPTIONS[name], value)


def read_option(name: str, value: object) -> Any:
    """A value, checked as Ollama checks it; None for one that means nothing.

    Raises:
        AttemptFailed: `client` for a wrong type.
    """
    option = OPTIONS.get(name)
    return None if option is None or value is None else TYPES[option.type](name, value)


def _apply(draft: Draft, name: str, option: Option, value: Any) -> None:
    if option.carry is None:
        if option.policy is Policy.DROPPED and value != option.neutral and not _spared(draft, option, value):
            draft.warn(Policy.DROPPED, name)
        return
    carried = _limited(draft, option, option.carry(value))
    if carried.value is not None:
        draft.body[option.field] = carried.value
    if not carried.exact:
        draft.warn(Policy.DROPPED if carried.value is None else Policy.APPROXIMATED, name)


def _spared(draft: Draft, option: Option, value: Any) -> bool:
    return option.spared is not None and option.spared(draft, value)


def _limited(draft: Draft, option: Option, carried: Carried) -> Carried:
    most = option.limit(draft) if option.limit is not None else None
    if most is None or not isinstance(carried.value, int) or carried.value <= most:
        return carried
    return Carried(most, exact=False)


# --- types, as Ollama checks them -------------------------------------------------------------------------------------


def _whole(name: str, value: object) -> int:
    return int(_number(name, value, "integer"))


def _real(name: str, value: object) -> float:
    return _number(name, value, "float32")


def _number(name: str, value: object, type_: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad_request(f'option "{name}" must be of type {type_}')
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise bad_request(f'option "{name}" must be of type boolean')
    return value


def _texts(name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise bad_request(f'option "{name}" must be of an array of strings')
    return value


TYPES: Mapping[str, Callable[[str, object], Any]] = {
    "integer": _whole,
    "float32": _real,
    "boolean": _flag,
    "array": _texts,
}


# --- values -----------------------------------------------------------------------------------------------------------


def _same(value: object) -> Carried:
    return Carried(value)


def _within(low: float, high: float) -> Callable[[float], Carried]:
    def carry(value: float) -> Carried:
        clamped = min(max(value, low), high)
        return Carried(clamped, exact=clamped == value)

    return carry


def _top_p(value: float) -> Carried:
    if value <= 0:
        return Carried(TINY_TOP_P, exact=False)
    return Carried(min(value, 1.0))  # above 1 Ollama does not cut either


TINY_TOP_P = 1e-6  # vLLM refuses 0; this too leaves the likeliest token only


def _top_k(value: int) -> Carried:
    return Carried(max(value, 0))


def _seed(value: int) -> Carried:
    return OMITTED if value == -1 else Carried(value)


def _stop(value: list[str]) -> Carried:
    stops = [text for text in value if text]
    if len(stops) > MAX_STOPS:
        raise not_offered(f"more than {MAX_STOPS} stop strings")
    return Carried(stops or None)


def _num_predict(value: int) -> Carried:
    if value == 0:
        raise not_offered("num_predict 0")
    return Carried(value) if value > 0 else OMITTED


def _repetition(value: float) -> Carried:
    if value == 1:
        return OMITTED
    return Carried(value if value > 0 else None, exact=False)


def _penalty(value: float) -> Carried:
    return Carried(min(max(value, -2.0), 2.0), exact=value == 0)


# --- the context ------------------------------------------------------------------------------------------------------

TEMPLATE_TOKENS = 64  # what a chat template adds to a short conversation, roughly
BYTES_PER_TOKEN = 2  # few texts have shorter tokens: the room left for the prompt is rather too large


def within_context(draft: Draft, num_ctx: int) -> bool:
    """Nothing is lost by leaving `num_ctx` out where the context is known to be as long."""
    context = draft.offer.context_tokens
    return context is not None and num_ctx <= context


def _most_tokens(draft: Draft) -> int | None:
    """The whole context; on a release that wants prompt and answer to fit together, what the prompt leaves of it,
    by estimate (where that is too little to say, the release shall judge).
    """
    context = draft.offer.context_tokens
    if context is None or not draft.offer.quirks & Quirk.STRICT_LENGTH:
        return context
    left = context - TEMPLATE_TOKENS - _prompt_bytes(draft) // BYTES_PER_TOKEN
    return left if left > 0 else context


def _prompt_bytes(draft: Draft) -> int:
    """Of the texts that were written already: the messages' rule comes before the options'."""
    texts = [draft.body.get("prompt") or ""]
    for message in draft.body.get("messages", ()):
        content = message["content"]
        texts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return sum(len(text.encode()) for text in texts) + len(bytes(draft.call.head.get("tools", b"")))


# --- the table --------------------------------------------------------------------------------------------------------

_MAP, _APPROX, _DROP, _IGNORE = Policy.MAPPED, Policy.APPROXIMATED, Policy.DROPPED, Policy.IGNORED

OPTIONS: Mapping[str, Option] = {
    "temperature": Option(
        "float32", _MAP, "temperature", _within(0.0, 2.0), note="clamped to [0, 2], with a warning", says=(_APPROX,)
    ),
    "top_p": Option(
        "float32", _MAP, "top_p", _top_p, note="0 becomes 0.000001, with a warning; above 1 is 1", says=(_APPROX,)
    ),
    "top_k": Option("integer", _MAP, "top_k", _top_k, note="0 and below mean off on both"),
    "min_p": Option(
        "float32", _MAP, "min_p", _within(0.0, 1.0), note="clamped to [0, 1], with a warning", says=(_APPROX,)
    ),
    "seed": Option("integer", _MAP, "seed", _seed, note="-1 is omitted; a seed never gives the same text on both"),
    "stop": Option("array", _MAP, "stop", _stop, note="empty strings are left out; more than 4 are refused"),
    "num_predict": Option(
        "integer",
        _MAP,
        "max_tokens",
        _num_predict,
        note="negative: no limit, omitted; 0 is refused (vLLM's least is 1); no more than the context holds, with a "
        "warning",
        limit=_most_tokens,
        says=(_APPROX,),
    ),
    "repeat_penalty": Option(
        "float32",
        _APPROX,
        "repetition_penalty",
        _repetition,
        note="harsher: over the whole prompt and answer, not the last repeat_last_n tokens; 1.0 is omitted",
        says=(_DROP,),
    ),
    "presence_penalty": Option(
        "float32", _APPROX, "presence_penalty", _penalty, note="over the whole answer, not a window; clamped to [-2, 2]"
    ),
    "frequency_penalty": Option(
        "float32",
        _APPROX,
        "frequency_penalty",
        _penalty,
        note="over the whole answer, not a window; clamped to [-2, 2]",
    ),
    "num_ctx": Option(
        "integer",
        _DROP,
        note="the context length is fixed when vLLM starts; said where it is shorter, or not known",
        spared=within_context,
    ),
    "typical_p": Option("float32", _DROP, neutral=1, note="no equivalent; 1 means off"),
    "repeat_last_n": Option("integer", _DROP, note="no equivalent: vLLM's penalties have no window"),
    "num_keep": Option("integer", _DROP, note="no equivalent: vLLM never shifts its context"),
    "mirostat": Option("integer", _DROP, neutral=0, note="no equivalent; 0 means off"),
    "mirostat_tau": Option("float32", _DROP, note="no equivalent"),
    "mirostat_eta": Option("float32", _DROP, note="no equivalent"),
    "tfs_z": Option("float32", _DROP, neutral=1, note="no equivalent; 1 means off"),
    "penalize_newline": Option("boolean", _DROP, note="no equivalent"),
    "num_gpu": Option("integer", _IGNORE, note="how Ollama loads a model"),
    "main_gpu": Option("integer", _IGNORE, note="how Ollama loads a model"),
    "num_batch": Option("integer", _IGNORE, note="how Ollama loads a model"),
    "num_thread": Option("integer", _IGNORE, note="how Ollama loads a model"),
    "use_mmap": Option("boolean", _IGNORE, note="how Ollama loads a model"),
    "use_mlock": Option("boolean", _IGNORE, note="how Ollama loads a model"),
    "low_vram": Option("boolean", _IGNORE, note="how Ollama loads a model"),
    "numa": Option("boolean", _IGNORE, note="how Ollama loads a model"),
    "draft_num_predict": Option("integer", _IGNORE, note="how Ollama loads a model"),
}
"""Every option that Ollama knows or knew. Others are ignored, as Ollama ignores them."""
