"""Request fields are read as pydantic's lax mode reads them; pydantic itself is asked."""

from __future__ import annotations

import math
from typing import Any

import pytest
from emulator_wire import ask, user
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from memos_llm.emulators import VllmEmulator
from memos_llm.emulators.vllm_types import Unfit, flag, number, whole

VALUES: list[Any] = [
    None, True, False, 0, 1, 2, -1, 5.0, 5.5, math.inf, "5", " 5 ", "+5", "-5.0", "5.", "5.5", "1_000", "_1", "", "x",
    "1e3", "yes", "NO", "on", "t", "F", "1", 1.0, 2.0, [], [1], {}, "nan", "5.00", "5_0.0", " 0_0",
]  # fmt: skip
READERS: list[tuple[Any, Any]] = [(int, whole), (float, number), (bool, flag)]


def _theirs(kind: Any, value: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as reason:
        return reason.errors()[0]["type"], reason.errors()[0]["msg"]


def _ours(read: Any, value: Any) -> Any:
    try:
        return read(value)
    except Unfit as reason:
        return reason.kind, reason.text


@pytest.mark.parametrize(("kind", "read"), READERS)
@given(value=st.sampled_from(VALUES) | st.integers(-(2**70), 2**70) | st.text("0123456789+-._ eE", max_size=6))
def test_values_are_read_and_refused_as_pydantic_does(kind: Any, read: Any, value: Any) -> None:
    theirs, ours = _theirs(kind, value), _ours(read, value)
    assert (theirs == ours and type(theirs) is type(ours)) or (theirs != theirs and ours != ours)  # NaN


async def test_lax_values_are_accepted_and_their_meaning_is_kept() -> None:
    async with VllmEmulator(models=["m"], thinking=False) as emu:
        body = {"messages": user("words:40"), "max_tokens": "5", "stream": 0, "temperature": "0.5", "n": 1.0}
        got = await ask(emu.url, "POST", "/v1/chat/completions", body)
        assert got.json["usage"]["completion_tokens"] == 5
        streamed = await ask(emu.url, "POST", "/v1/chat/completions", {**body, "stream": "yes"})
        assert streamed.events[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("field", "value", "kind", "text"),
    [
        ("max_tokens", 1.5, "int_from_float", "Input should be a valid integer, got a number with a fractional part"),
        ("max_tokens", "x", "int_parsing", "Input should be a valid integer, unable to parse string as an integer"),
        ("temperature", "hot", "float_parsing", "Input should be a valid number, unable to parse string as a number"),
        ("stream", "maybe", "bool_parsing", "Input should be a valid boolean, unable to interpret input"),
        ("seed", 2**63, "less_than_equal", "Input should be less than or equal to 9223372036854775807"),
        ("ignore_eos", None, "bool_type", "Input should be a valid boolean"),
    ],
)
async def test_what_does_not_fit_is_refused_in_pydantic_s_words(field: str, value: Any, kind: str, text: str) -> None:
    async with VllmEmulator(models=["m"]) as emu:
        got = await ask(emu.url, "POST", "/v1/chat/completions", {"messages": user("x"), field: value})
    error = got.json["error"]
    assert (got.status, error["type"], error["param"]) == (400, "Bad Request", f"body.{field}")
    start = f"1 validation error:\n  {{'type': '{kind}', 'loc': 'body.{field}', 'msg': '{text}', 'input': '{value}'"
    assert error["message"].startswith(start)
