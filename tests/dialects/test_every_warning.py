"""Every warning that the code can give is provoked here; a new one without a case fails."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from dialect_streams import make_call
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as with_
from stack import VLLM_MODEL, Stack, open_stack

from memos_llm.core.call import ModelSettings, Quirk, Target, Thinking, Wire
from memos_llm.core.decision import Offer
from memos_llm.core.errors import AttemptFailed
from memos_llm.dialects.codecs import CODECS, report
from memos_llm.dialects.codecs.repairs import BY_KIND

OPENAI, COMPLETION, EMBEDDINGS = Wire.OPENAI_CHAT, Wire.OPENAI_COMPLETION, Wire.OPENAI_EMBEDDINGS
CHAT, GENERATE = Wire.OLLAMA_CHAT, Wire.OLLAMA_GENERATE
USER = [{"role": "user", "content": "hi"}]
SPOKEN = {
    "ollama": frozenset(Wire) - {Wire.PASSTHROUGH},
    "vllm": frozenset({OPENAI, COMPLETION, EMBEDDINGS}),
}


class Case(NamedTuple):
    """A call to a provider of a kind."""

    kind: str
    wire: Wire
    body: dict[str, Any]
    typed: bool = False
    quirks: Quirk = Quirk.NONE
    thinking: Thinking | None = None
    defaults: Mapping[str, float] = MappingProxyType({})


def ollama(wire: Wire = OPENAI, **body: Any) -> Case:
    return Case("ollama", wire, body)


def vllm(wire: Wire = CHAT, **body: Any) -> Case:
    return Case("vllm", wire, body)


def option(**options: Any) -> Case:
    return vllm(options=options)


TOOLS = [{"type": "function", "function": {"name": "f"}}]

CASES: dict[str, Case] = {
    "approximated:format": vllm(format={"type": "object"}),
    "approximated:temperature": option(temperature=3),
    "approximated:top_p": option(top_p=0),
    "approximated:min_p": option(min_p=2),
    "approximated:num_predict": option(num_predict=5000),
    "approximated:repeat_penalty": option(repeat_penalty=1.1),
    "approximated:presence_penalty": option(presence_penalty=1),
    "approximated:frequency_penalty": option(frequency_penalty=1),
    "approximated:think": Case("vllm", CHAT, {"think": "low"}, thinking=Thinking.ENABLE_THINKING),
    "approximated:repetition_penalty": Case("ollama", OPENAI, {"repetition_penalty": 1.1}, typed=True),
    "dropped:repeat_penalty": option(repeat_penalty=-1),
    "dropped:num_ctx": option(num_ctx=5000),
    "dropped:typical_p": option(typical_p=0.5),
    "dropped:repeat_last_n": option(repeat_last_n=9),
    "dropped:num_keep": option(num_keep=9),
    "dropped:mirostat": option(mirostat=1),
    "dropped:mirostat_tau": option(mirostat_tau=1),
    "dropped:mirostat_eta": option(mirostat_eta=1),
    "dropped:tfs_z": option(tfs_z=0.5),
    "dropped:penalize_newline": option(penalize_newline=True),
    "dropped:think": vllm(think=True),
    "dropped:top_logprobs": vllm(top_logprobs=2),
    "dropped:truncate": vllm(truncate=False),
    "dropped:shift": vllm(shift=False),
    "dropped:system": vllm(GENERATE, suffix="x", system="s"),
    "dropped:images": vllm(GENERATE, suffix="x", images=["aaaa"]),
    "dropped:n": ollama(n=2),
    "dropped:best_of": ollama(COMPLETION, best_of=2),
    "dropped:echo": ollama(COMPLETION, echo=True),
    "dropped:logprobs": ollama(COMPLETION, logprobs=1),
    "dropped:logit_bias": ollama(logit_bias={"1": 1}),
    "dropped:tool_choice": ollama(tools=TOOLS, tool_choice="none"),
    "dropped:parallel_tool_calls": ollama(tools=TOOLS, parallel_tool_calls=False),
    "dropped:functions": ollama(functions=[{}]),
    "dropped:function_call": ollama(function_call={"name": "f"}),
    "dropped:reasoning_effort": Case("vllm", OPENAI, {"reasoning_effort": "none"}, thinking=Thinking.THINKING),
    "dropped:reasoning": vllm(OPENAI, reasoning={"effort": "none"}),
    "dropped:response_format": ollama(response_format={"type": "structural_tag"}),
    "dropped:modalities": ollama(modalities=["text", "audio"]),
    "dropped:top_k": ollama(top_k=4),
    "dropped:min_p": ollama(min_p=0.1),
    "dropped:repetition_penalty": ollama(repetition_penalty=1.1),
    "dropped:length_penalty": ollama(length_penalty=2),
    "dropped:use_beam_search": ollama(use_beam_search=True),
    "dropped:min_tokens": ollama(min_tokens=3),
    "dropped:stop_token_ids": ollama(stop_token_ids=[1]),
    "dropped:ignore_eos": ollama(ignore_eos=True),
    "dropped:bad_words": ollama(bad_words=["x"]),
    "dropped:allowed_token_ids": ollama(allowed_token_ids=[1]),
    "dropped:prompt_logprobs": ollama(prompt_logprobs=1),
    "dropped:include_stop_str_in_output": ollama(include_stop_str_in_output=True),
    "dropped:skip_special_tokens": ollama(skip_special_tokens=False),
    "dropped:structured_outputs": ollama(structured_outputs={"json": {}}),
    "dropped:guided_json": ollama(guided_json={"type": "object"}),
    "dropped:guided_regex": ollama(COMPLETION, guided_regex="a"),
    "dropped:guided_choice": vllm(OPENAI, guided_choice=["a"]),
    "dropped:guided_grammar": vllm(OPENAI, guided_grammar="a"),
    "dropped:chat_template": ollama(chat_template="x"),
    "dropped:chat_template_kwargs": ollama(chat_template_kwargs={"enable_thinking": False}),
    "dropped:documents": ollama(documents=[{}]),
    "dropped:add_generation_prompt": ollama(add_generation_prompt=False),
    "dropped:continue_final_message": ollama(continue_final_message=True),
    "dropped:include_reasoning": ollama(include_reasoning=False),
    "dropped:thinking_token_budget": ollama(thinking_token_budget=5),
    "dropped:format": ollama(format="json"),
    "dropped:keep_alive": ollama(keep_alive=0),
    "dropped:options": ollama(options={"num_ctx": 5}),
    "dropped:truncate_prompt_tokens": ollama(EMBEDDINGS, input="x", truncate_prompt_tokens=5),
    "dropped:use_activation": ollama(EMBEDDINGS, input="x", use_activation=False),
    "dropped:messages": ollama(EMBEDDINGS, messages=USER),
    "approximated:prompt": vllm(COMPLETION, max_tokens=5),
    "approximated:embedding": vllm(Wire.OLLAMA_EMBEDDINGS),
    "estimated:eval_duration": vllm(stream=False),
    "repaired:defaults": Case("vllm", OPENAI, {}, defaults={"temperature": 0.8}),
    "repaired:tools": vllm(OPENAI, tools=[]),
    "repaired:max_completion_tokens": ollama(max_completion_tokens=5),
    "repaired:max_tokens": vllm(COMPLETION),
    "repaired:prompt": ollama(COMPLETION, prompt=["a", "b"]),
    "repaired:truncate_prompt_tokens": vllm(EMBEDDINGS, input="x" * 5000),
    "repaired:encoding_format": vllm(EMBEDDINGS, input="x", encoding_format=None),
    "repaired:dimensions": vllm(EMBEDDINGS, input="x", dimensions=5),
}
AT_THE_GATEWAY = {"passed-on:unfinished", "ignored:keep_alive"}


class NotCarriedError(Exception):
    """The provider does not offer it."""


def told(case: Case) -> tuple[bytes, bytes, tuple[str, ...]]:
    """The caller's body, the one that is sent, the warnings."""
    given_ = {"model": "m", "messages": USER} if case.wire in (OPENAI, CHAT) else {"model": "m", "prompt": "p"}
    if case.wire is EMBEDDINGS:
        given_ = {"model": "m"}
    call = with_(make_call(case.wire, given_ | case.body), typed=case.typed)
    offer = Offer(SPOKEN[case.kind], context_tokens=4096, quirks=case.quirks)
    codec = CODECS.find(call, offer)
    if codec is None:
        raise NotCarriedError(case)
    target = Target(case.kind, "m", ModelSettings(case.thinking, defaults=case.defaults, repairs=BY_KIND[case.kind]))
    request, warnings = codec.request(call, target, offer)
    return call.body, request.body, warnings


@pytest.mark.parametrize("warning", [w for w in report.warnings() if w not in AT_THE_GATEWAY])
def test_a_warning_is_given(warning: str) -> None:
    assert warning in told(CASES[warning])[2]


def test_no_case_is_left_of_a_warning_that_is_gone() -> None:
    assert set(CASES) | AT_THE_GATEWAY == set(report.warnings())


@pytest.mark.parametrize(
    "lost",
    [
        {"options": {"num_ctx": 9}},
        {"num_ctx": 9},
        {"think": False},
        {"format": "json"},
        {"functions": [{"name": "f"}]},
        {"function_call": {"name": "f"}},
        {"modalities": ["text", "audio"]},
        {"repeat_penalty": 1.1},
    ],
    ids=lambda lost: next(iter(lost)),
)
@pytest.mark.parametrize("kind", [ollama, vllm])
def test_what_neither_reads_is_said_of_both(kind: Callable[..., Case], lost: dict[str, Any]) -> None:
    assert told(kind(OPENAI, **lost))[2] == (f"dropped:{next(iter(lost))}",)


def test_a_default_that_the_back_end_will_not_read_is_said() -> None:
    filled = Case("ollama", OPENAI, {}, defaults={"temperature": 0.6, "top_k": 20})
    assert told(filled)[2] == ("repaired:defaults", "dropped:top_k")


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("dropped:") and CASES[name].wire is OPENAI])
def test_what_is_left_out_in_silence_is_sent_all_the_same(name: str) -> None:
    body, sent, _ = told(CASES[name])
    assert sent is body


@pytest.mark.parametrize(
    "case",
    [
        ollama(n=1, logit_bias={}, tool_choice="auto", parallel_tool_calls=True, top_k=-1, min_p=0, keep_alive=None),
        ollama(tools=TOOLS, tool_choice="auto", parallel_tool_calls=True, response_format={"type": "json_object"}),
        ollama(tool_choice="none", parallel_tool_calls=False),
        ollama(user="u", metadata={"a": "b"}, store=True, service_tier="auto", prompt_cache_key="k", verbosity="low"),
        ollama(COMPLETION, echo=False, best_of=1, n=1, logprobs=None, user="u"),
        ollama(EMBEDDINGS, input="x", encoding_format="base64", dimensions=5, user="u", truncate_prompt_tokens=-1),
        ollama(CHAT, keep_alive=5, options={"num_ctx": 9, "mirostat": 1}, think=True, n=3, top_k=4),
        Case("vllm", OPENAI, {"reasoning_effort": "none"}, thinking=Thinking.ENABLE_THINKING),
        Case("vllm", OPENAI, {"reasoning_effort": "low"}, thinking=Thinking.THINKING),
        vllm(OPENAI, n=2, logit_bias={"1": 1}, top_k=4, keep_alive=5, structured_outputs={"json": {}}),
        vllm(CHAT, keep_alive=5, options={"num_ctx": 4096, "num_gpu": 1, "mirostat": 0, "tfs_z": 1.0}),
        Case("vllm", OPENAI, {"guided_json": {"type": "object"}}, quirks=Quirk.GUIDED),
        Case("ollama", OPENAI, {"top_k": 4, "min_p": 0.1, "keep_alive": 5, "num_ctx": 9}, typed=True),
    ],
)
def test_nothing_is_said_where_nothing_is_lost(case: Case) -> None:
    assert told(case)[2] == ()


FIELDS = sorted({name.partition(":")[2] for name in CASES} | {"model", "user", "stop", "seed", "stream"})
VALUES = st.sampled_from([None, True, False, 0, 1, 2, -1, 0.5, "", "x", "none", [], ["x"], [1], {}, {"type": "object"}])


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(SPOKEN)),
    st.sampled_from([OPENAI, COMPLETION, EMBEDDINGS, CHAT, GENERATE]),
    st.dictionaries(
        st.sampled_from([field for field in FIELDS if field not in ("model", "stream")]), VALUES, max_size=6
    ),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
    st.booleans(),
)
def test_no_warning_is_given_that_the_report_does_not_know(
    kind: str, wire: Wire, body: dict[str, Any], options: dict[str, Any], typed: bool
) -> None:
    asked = body | {"options": options, "prompt": "p", "input": "x", "messages": USER}
    try:
        warnings = told(Case(kind, wire, asked, typed))[2]
    except (AttemptFailed, NotCarriedError):
        return
    assert set(warnings) <= set(report.warnings())


# --- where the caller sees them ---------------------------------------------------------------------------------------


async def header(stack: Stack, path: str, body: dict[str, Any]) -> list[str]:
    async with stack.client() as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    named: str = answer.headers.get("x-memos-warnings", "")
    return named.split(", ")


async def test_the_caller_reads_them_in_a_header(tmp_path: Path) -> None:
    models = {"qwen3:8b": {"vllm": {"name": VLLM_MODEL}}, "only-there": {"vllm": {"name": "other"}}}
    async with open_stack(tmp_path, config={"models": models}, vllm={"models": [VLLM_MODEL, "other"]}) as stack:
        chat = {"model": "qwen3:8b", "messages": USER, "stream": False}
        assert await header(stack, "/v1/chat/completions", chat | {"n": 2, "top_k": 4}) == [
            "dropped:n",
            "dropped:top_k",
        ]
        assert await header(stack, "/v1/chat/completions", chat | {"tools": []}) == ["repaired:tools"]
        unload = {"model": "only-there", "keep_alive": 0}
        assert await header(stack, "/api/generate", unload) == ["ignored:keep_alive"]
        stack.ollama.faults.set("eof_without_done")
        assert await header(stack, "/api/chat", chat) == ["passed-on:unfinished"]
        stack.ollama.faults.clear()
        await stack.shift(1.0)
        assert await header(stack, "/api/chat", chat | {"options": {"mirostat": 2}}) == [
            "dropped:mirostat",
            "estimated:eval_duration",
        ]
