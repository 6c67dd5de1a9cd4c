"""Types of request fields as pydantic's lax mode reads them: "5" is an integer, 1 is true, 5.0 is 5, 5.5 is not.

Texts and names of the errors are pydantic's (2.14, compared by a test). Pure; converts what it accepts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from memos_llm.emulators.vllm_requests import NO_OBJECT, NO_OBJECT_TEXT, schema_error

T = TypeVar("T")

_TRUE = ("1", "t", "true", "y", "yes", "on")
_FALSE = ("0", "f", "false", "n", "no", "off")
_WHOLE_OF_TEXT, _NUMBER_OF_TEXT = TypeAdapter(int), TypeAdapter(float)  # vLLM reads them with pydantic: so do we
_TOO_LONG = ("int_parsing_size", "Unable to parse input string as an integer, exceeded maximum size")
_LONG = 2**63


class Unfit(Exception):
    """A value of another type.

    Args:
        kind, text: pydantic's name and words for it. ctx: what it adds to the error.
    """

    def __init__(self, kind: str, text: str, ctx: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.kind, self.text, self.ctx = kind, text, ctx


def whole(value: Any) -> int:
    """An integer.

    Raises:
        Unfit: it is none.
    """
    if isinstance(value, bool | int):
        return int(value)
    if isinstance(value, float):
        return _whole_of_float(value)
    if not isinstance(value, str):
        raise Unfit("int_type", "Input should be a valid integer")
    return _parsed(_WHOLE_OF_TEXT, value)


def _whole_of_float(value: float) -> int:
    if not math.isfinite(value):
        raise Unfit("finite_number", "Input should be a finite number")
    if not value.is_integer():
        raise Unfit("int_from_float", "Input should be a valid integer, got a number with a fractional part")
    if abs(value) >= _LONG:
        raise Unfit(*_TOO_LONG)
    return int(value)


def number(value: Any) -> float:
    """A number.

    Raises:
        Unfit: it is none.
    """
    if isinstance(value, str):
        return _parsed(_NUMBER_OF_TEXT, value)
    if not isinstance(value, int | float):
        raise Unfit("float_type", "Input should be a valid number")
    try:
        return float(value)
    except OverflowError as reason:  # an integer beyond every float
        raise Unfit("float_type", "Input should be a valid number") from reason


def _parsed(read: TypeAdapter[T], text: str) -> T:
    try:
        return read.validate_python(text)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        raise Unfit(found["type"], found["msg"]) from None


def flag(value: Any) -> bool:
    """A boolean.

    Raises:
        Unfit: it is none.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) or (isinstance(value, int) and -_LONG <= value < _LONG):
        word = str(value).lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise Unfit("bool_parsing", "Input should be a valid boolean, unable to interpret input")
    raise Unfit("bool_type", "Input should be a valid boolean")


def _long(value: Any) -> int:
    found = whole(value)
    if found < -_LONG:
        raise Unfit("greater_than_equal", f"Input should be greater than or equal to {-_LONG}", {"ge": -_LONG})
    if found >= _LONG:
        raise Unfit("less_than_equal", f"Input should be less than or equal to {_LONG - 1}", {"le": _LONG - 1})
    return found


def _exactly(kind: type, name: str, text: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise Unfit(name, text)
        return value

    return read


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "float": number,
    "int": whole,
    "long": _long,
    "bool": flag,
    "str": _exactly(str, "string_type", "Input should be a valid string"),
    "list": _exactly(list, "list_type", "Input should be a valid list"),
    "dict": _exactly(dict, "dict_type", "Input should be a valid dictionary"),
    "object": _exactly(dict, NO_OBJECT, NO_OBJECT_TEXT),
}
_OPTIONAL = {
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"), "float?"
    ),
    **dict.fromkeys(("top_k", "n", "max_tokens"), "int?"),
    "seed": "long?",
    "stream": "bool?",
    **dict.fromkeys(("model", "user"), "str?"),
    "stream_options": "object?",
    **dict.fromkeys(("logit_bias", "response_format", "structured_outputs"), "dict?"),
}
_SAMPLING = {
    **_OPTIONAL,
    **dict.fromkeys(("min_tokens", "priority"), "int"),
    **dict.fromkeys(("ignore_eos", "echo", "skip_special_tokens", "add_special_tokens"), "bool"),
}
CHAT: Mapping[str, str] = {
    **_SAMPLING,
    **dict.fromkeys(("max_completion_tokens", "top_logprobs"), "int?"),
    "logprobs": "bool?",
    **dict.fromkeys(("include_reasoning", "add_generation_prompt", "continue_final_message"), "bool"),
    "messages": "list",
    "tools": "list?",
    "chat_template_kwargs": "dict?",
    "chat_template": "str?",
}
COMPLETION: Mapping[str, str] = {**_SAMPLING, "logprobs": "int?", "suffix": "str?"}
EMBEDDING: Mapping[str, str] = {
    **dict.fromkeys(("model", "user"), "str?"),
    **dict.fromkeys(("dimensions", "truncate_prompt_tokens"), "int?"),
    "add_special_tokens": "bool",
    "messages": "list?",
}
TOKENIZE: Mapping[str, str] = {
    "model": "str?",
    **dict.fromkeys(("add_special_tokens", "return_token_strs", "add_generation_prompt"), "bool"),
    "messages": "list?",
    "tools": "list?",
}
"""Fields and their types; "?" may be null."""


def convert(given: dict[str, Any], types: Mapping[str, str]) -> None:
    """Replace the values of known fields by what they are read as.

    Raises:
        Rejection: 400, a value of another type.
    """
    for name in types.keys() & given.keys():
        wanted = types[name]
        if given[name] is None and wanted.endswith("?"):
            continue
        try:
            given[name] = _READERS[wanted.removesuffix("?")](given[name])
        except Unfit as unfit:
            raise schema_error((name,), unfit.kind, unfit.text, given[name], unfit.ctx) from unfit
