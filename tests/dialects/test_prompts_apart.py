"""/v1/completions: a list of prompts on Ollama, usage that nobody asked for, and vLLM's limit of 16."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from dialect_streams import OFFER, cut, make_call, sse, target
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_llm.core.call import Call, Frame, Part, Quirk, Usage, Wire
from memos_llm.core.decision import Offer
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind
from memos_llm.core.ports import Decoder
from memos_llm.dialects.codecs.identity import Identity
from memos_llm.dialects.codecs.repairs import MAX_APART_BYTES

COMPLETION = Wire.OPENAI_COMPLETION
IDENTITY = Identity()
OLLAMA = target(repairs=frozenset({"max_completion_tokens", "prompt", "ollama"}))
VLLM = target(repairs=frozenset({"max_tokens", "vllm"}))
LONG = Offer(frozenset(Wire), context_tokens=4096)
STRICT = Offer(frozenset(Wire), context_tokens=4096, quirks=Quirk.STRICT_LENGTH)
EVERYTHING = Part.CONTENT | Part.FINISH | Part.USAGE | Part.END
ASKED: dict[str, Any] = {"stream_options": {"include_usage": True}}
ZERO = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def completion(prompt: Any, **more: Any) -> Call:
    return make_call(COMPLETION, {"model": "caller", "prompt": prompt} | more)


def bodies(call: Call) -> list[dict[str, Any]]:
    request, _ = IDENTITY.request(call, OLLAMA, OFFER)
    return [msgspec.json.decode(body) for body in (request.body, *request.more)]


def event(number: int, text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"text": text, "index": 0, "finish_reason": finish}
    head = {"id": f"cmpl-{number}", "object": "text_completion", "created": number, "model": "served/m"}
    return head | {"choices": [choice], "usage": ZERO} | more


def stream(number: int, text: str) -> bytes:
    """As Ollama writes it when it is asked for the usage: zeros on every event but the last."""
    usage = {"prompt_tokens": number, "completion_tokens": 2, "total_tokens": number + 2}
    last = event(number, "", choices=[], usage=usage)
    return sse(event(number, text), event(number, "", "stop"), last, "[DONE]")


def played(decoder: Decoder, answers: list[list[bytes]]) -> list[Frame]:
    """As the engine plays a call that was taken apart: an `eof` after each answer."""
    frames: list[Frame] = []
    for chunks in answers:
        for chunk in chunks:
            frames += decoder.feed(chunk)
        frames += decoder.eof()
    return frames


def together(call: Call, answers: list[list[bytes]]) -> tuple[bytes, int, Usage | None]:
    frame = Frame.joined(played(IDENTITY.decoder(call, OLLAMA), answers))
    return frame.data, frame.parts, frame.usage


def documents(data: bytes) -> list[Any]:
    texts = [event.removeprefix(b"data: ") for event in data.split(b"\n\n") if event]
    return [text if text == b"[DONE]" else msgspec.json.decode(text) for text in texts]


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_list_of_prompts_is_sent_one_by_one() -> None:
    call = completion(["a", "b\u00e9"], max_tokens=3)
    request, warnings = IDENTITY.request(call, OLLAMA, OFFER)
    assert bodies(call) == [
        {"model": "served/m", "prompt": "a", "max_tokens": 3},
        {"model": "served/m", "prompt": "b\u00e9", "max_tokens": 3},
    ]
    assert warnings == ("repaired:prompt",)
    assert len(request.more) == 1


def test_every_request_of_a_stream_asks_for_its_usage() -> None:
    assert [body["stream_options"] for body in bodies(completion(["a", "b"], stream=True))] == [
        {"include_usage": True}
    ] * 2


@pytest.mark.parametrize("prompt", ["a", [], [1, 2], [[1], [2]], ["a", 1], {"a": 1}, None])
def test_what_is_no_list_of_texts_is_left_to_ollama(prompt: Any) -> None:
    request, warnings = IDENTITY.request(completion(prompt), OLLAMA, OFFER)
    assert (request.more, warnings) == ((), ())
    assert msgspec.json.decode(request.body)["prompt"] == prompt


def test_vllm_takes_a_list_as_it_is() -> None:
    request, _ = IDENTITY.request(completion(["a", "b"]), VLLM, OFFER)
    assert (msgspec.json.decode(request.body)["prompt"], request.more) == (["a", "b"], ())


def test_a_call_that_would_grow_beyond_measure_is_for_another_target() -> None:
    call = completion(["a"] * 1000, suffix="s" * (MAX_APART_BYTES // 1000))
    with pytest.raises(AttemptFailed) as refused:
        IDENTITY.request(call, OLLAMA, OFFER)
    assert refused.value.outcome.kind is Kind.INCOMPATIBLE


# --- answers ----------------------------------------------------------------------------------------------------------


def test_streams_become_one_with_numbered_choices_one_id_and_one_end() -> None:
    data, parts, usage = together(completion(["a", "b"], stream=True), [[stream(3, "x")], [stream(4, "y")]])
    first, _, second, _, done = documents(data)
    assert first == {
        "id": "cmpl-3",
        "object": "text_completion",
        "created": 3,
        "model": "caller",
        "choices": [{"text": "x", "index": 0, "finish_reason": None}],
    }
    assert (second["id"], second["choices"]) == ("cmpl-3", [{"text": "y", "index": 1, "finish_reason": None}])
    assert (done, data.count(b"[DONE]"), data.count(b"usage")) == (b"[DONE]", 1, 0)
    assert (parts, usage) == (EVERYTHING, Usage(7, 4))


def test_the_usage_event_is_one_with_the_sum_for_a_caller_who_asked() -> None:
    data, *_ = together(completion(["a", "b"], stream=True, **ASKED), [[stream(3, "x")], [stream(4, "y")]])
    last, done = documents(data)[-2:]
    assert (last["choices"], last["usage"]) == (
        [],
        {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11},
    )
    assert done == b"[DONE]"
    assert all(found["usage"] == ZERO for found in documents(data)[:-2])


def test_the_finish_is_told_with_the_last_answer_only() -> None:
    decoder = IDENTITY.decoder(completion(["a", "b"], stream=True), OLLAMA)
    first = [*decoder.feed(stream(3, "x")), *decoder.eof()]
    assert {frame.parts for frame in first} <= {Part.CONTENT, Part.PREAMBLE}
    assert Frame.joined([*decoder.feed(stream(4, "y")), *decoder.eof()]).parts == EVERYTHING


def test_whole_answers_become_one() -> None:
    answers = []
    for number, text in ((3, "x"), (4, "y")):
        usage = {"prompt_tokens": number, "completion_tokens": 2, "total_tokens": number + 2}
        answers.append([msgspec.json.encode(event(number, text, "stop", usage=usage))])
    data, parts, usage_ = together(completion(["a", "b"]), answers)
    assert msgspec.json.decode(data) == {
        "id": "cmpl-3",
        "object": "text_completion",
        "created": 3,
        "model": "caller",
        "choices": [
            {"text": "x", "index": 0, "finish_reason": "stop"},
            {"text": "y", "index": 1, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11},
    }
    assert (parts, usage_) == (EVERYTHING, Usage(7, 4))


@pytest.mark.parametrize("asked", [{}, ASKED])
def test_streams_do_not_depend_on_the_cuts(asked: dict[str, Any]) -> None:
    call = completion(["a", "b"], stream=True, **asked)
    answers = [stream(3, "é"), stream(4, "y")]
    expected = together(call, [[answer] for answer in answers])
    for place in range(max(map(len, answers))):
        cuts = [cut(answer, [min(place, len(answer))]) for answer in answers]
        assert together(call, cuts) == expected


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (sse({"error": {"message": "dead"}}), Kind.SERVER),
        (sse("{no"), Kind.MALFORMED),
        (sse(event(4, "y")), Kind.TRUNCATED),
        (b"", Kind.TRUNCATED),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_one_answer_that_fails_fails_the_whole(bad: bytes, kind: Kind, place: int) -> None:
    answers = [[stream(3, "x")], [stream(4, "y")]]
    answers[place] = [bad]
    with pytest.raises(AttemptFailed) as failed:
        together(completion(["a", "b"], stream=True), answers)
    assert failed.value.outcome.kind is kind


@pytest.mark.parametrize(("prompt", "passed_on"), [(["a", "b"], False), (["a"], True)])
def test_an_unfinished_answer_to_one_of_several_prompts_is_not_passed_on_as_the_whole(
    prompt: list[str], passed_on: bool
) -> None:
    """Ollama's repeat guard ends an answer so; alone it would be the caller's as it is."""
    unfinished = msgspec.json.encode(event(3, "x"))
    with pytest.raises(AttemptFailed) as failed:
        together(completion(prompt), [[unfinished]])
    assert (failed.value.outcome.kind, bool(failed.value.client_body)) == (Kind.TRUNCATED, passed_on)


@settings(max_examples=200)
@given(st.booleans(), st.lists(st.lists(st.binary(max_size=40), max_size=3), min_size=2, max_size=2))
def test_random_bytes_fail_as_an_attempt(streams: bool, answers: list[list[bytes]]) -> None:
    with pytest.raises(AttemptFailed):
        together(completion(["a", "b"], stream=streams), [[*answers[0], b"\n\n{"], answers[1]])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
DOCUMENT = st.dictionaries(st.sampled_from(["id", "model", "choices", "usage", "error", "created"]), JSON)
CHOICES = st.lists(st.fixed_dictionaries({"finish_reason": st.sampled_from(["stop", None])}, optional={"text": JSON}))


@settings(max_examples=200)
@given(st.booleans(), st.lists(st.tuples(DOCUMENT, CHOICES | JSON), min_size=2, max_size=2))
def test_documents_of_any_shape_pass_or_fail_as_an_attempt(
    streams: bool, found: list[tuple[dict[str, Any], Any]]
) -> None:
    answers = [msgspec.json.encode(document | {"choices": choices}) for document, choices in found]
    with suppress(AttemptFailed):
        together(completion(["a", "b"], stream=streams), [[sse(a.decode()) if streams else a] for a in answers])


def test_a_list_of_one_is_that_one() -> None:
    call = completion(["a"], stream=True)
    assert [body["prompt"] for body in bodies(call)] == ["a"]
    data, parts, _ = together(call, [[stream(3, "x")]])
    assert (parts, documents(data)[-1]) == (EVERYTHING, b"[DONE]")


# --- one prompt -------------------------------------------------------------------------------------------------------


def test_nobody_sees_a_usage_that_only_we_asked_for() -> None:
    call = completion("a", stream=True)
    assert msgspec.json.decode(IDENTITY.request(call, OLLAMA, OFFER)[0].body)["stream_options"] == {
        "include_usage": True
    }
    frame = Frame.joined(played(IDENTITY.decoder(call, OLLAMA), [[stream(3, "x")]]))
    plain = [
        {k: v for k, v in event(3, *said).items() if k != "usage"} | {"model": "caller"}
        for said in (("x",), ("", "stop"))
    ]
    assert frame.data == sse(*plain, "[DONE]")
    assert (frame.parts, frame.usage) == (EVERYTHING, Usage(3, 2))


def test_a_caller_who_asked_gets_ollama_s_bytes_with_its_zeros() -> None:
    call = make_call(COMPLETION, {"model": "served/m", "prompt": "a", "stream": True} | ASKED)
    frame = Frame.joined(played(IDENTITY.decoder(call, OLLAMA), [[stream(3, "x")]]))
    assert (frame.data, frame.usage) == (stream(3, "x"), Usage(3, 2))


@pytest.mark.parametrize(
    ("given_", "offer", "sent", "warnings"),
    [
        ({}, OFFER, {"max_tokens": None}, ("repaired:max_tokens",)),
        ({"max_tokens": None}, OFFER, {"max_tokens": None}, ()),
        ({"max_tokens": 5}, OFFER, {"max_tokens": 5}, ()),
        # 0.32 reads null as 16, and cuts what the context does not hold; those before it did neither.
        ({}, LONG, {"max_tokens": 4096}, ("repaired:max_tokens",)),
        ({"max_tokens": None}, LONG, {"max_tokens": 4096}, ("repaired:max_tokens",)),
        ({"max_tokens": 5}, LONG, {"max_tokens": 5}, ()),
        ({}, STRICT, {"max_tokens": None}, ("repaired:max_tokens",)),
    ],
)
def test_a_completion_without_a_limit_has_none_on_vllm(
    given_: dict[str, Any], offer: Offer, sent: dict[str, Any], warnings: tuple[str, ...]
) -> None:
    call = make_call(COMPLETION, {"model": "served/m", "prompt": "a"} | given_)
    request, told = IDENTITY.request(call, VLLM, offer)
    assert msgspec.json.decode(request.body) == {"model": "served/m", "prompt": "a"} | sent
    assert told == (*warnings, "approximated:prompt")  # Ollama would have put it into the chat template
    assert warnings or request.body is call.body


@pytest.mark.parametrize(
    ("prompt", "n", "finishes", "settings_"),
    [(["a", "b"], 1, 2, VLLM), ("a", 2, 2, VLLM), ([[1], [2]], 2, 4, VLLM), ([1, 2], 1, 1, VLLM), ("a", 2, 1, OLLAMA)],
)
def test_a_stream_is_whole_when_every_choice_finished(prompt: Any, n: int, finishes: int, settings_: Any) -> None:
    call = completion(prompt, n=n, stream=True)
    ends = [event(1, "x", choices=[{"text": "x", "index": i, "finish_reason": "stop"}]) for i in range(finishes)]
    assert played(IDENTITY.decoder(call, settings_), [[sse(*ends, "[DONE]")]])
    if finishes > 1:
        with pytest.raises(AttemptFailed):
            played(IDENTITY.decoder(call, settings_), [[sse(*ends[1:], "[DONE]")]])
