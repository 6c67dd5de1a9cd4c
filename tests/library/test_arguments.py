"""What a caller gives wrongly is a `BadRequest` that names the argument, and nothing is tried."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from stack import document, settings

import memos_llm
from memos_llm import Router
from memos_llm.core.events import AttemptStarted
from memos_llm.testing import FakeTransport, Recorder

SURROGATE = "a\ud800"
ANSWER = b'{"choices":[{"message":{"content":"Rayleigh."},"finish_reason":"stop"}],"model":"m"}'


def ask(content: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[Router]:
    """Over a back end that answers by script."""
    config = document("http://a.test", "http://b.test", tmp_path, models={"m": {}}, store="memory://")
    async with Router.open(settings(tmp_path, config), probe=False) as opened:
        scripted(opened, ANSWER)
        yield opened


def scripted(router: Router, *script: bytes) -> None:
    router._runtime.transports["ollama"] = FakeTransport("ollama", script)  # type: ignore[index]  # the test swaps a back end


def circle() -> list[Any]:
    members: list[Any] = []
    members.append(members)
    return members


@pytest.mark.parametrize(
    ("argument", "messages", "options"),
    [
        ("messages", ask(object()), {}),
        ("messages", ask(SURROGATE), {}),
        ("messages", ask(circle()), {}),
        ("messages", ask(None), {}),
        ("messages", "Why?", {}),
        ("messages", {"role": "user", "content": "Why?"}, {}),
        ("messages", ["Why?"], {}),
        ("model", ask("Why?"), {"model": SURROGATE}),
        ("model", ask("Why?"), {"model": 7}),
        ("session", ask("Why?"), {"session": SURROGATE}),
        ("session", ask("Why?"), {"session": 42}),
        ("request_id", ask("Why?"), {"request_id": "a\r\nx-evil: 1"}),
        ("request_id", ask("Why?"), {"request_id": "a" * 129}),
        ("request_id", ask("Why?"), {"request_id": "a\n"}),
        ("component", ask("Why?"), {"component": "syn thesis"}),
        ("component", ask("Why?"), {"component": "a" * 65}),
        ("timeout_s", ask("Why?"), {"timeout_s": "5"}),
        ("timeout_s", ask("Why?"), {"timeout_s": float("nan")}),
        ("temperature", ask("Why?"), {"temperature": object()}),
        ("tools", ask("Why?"), {"tools": [{(1, 2): 3}]}),
        ("extra", ask("Why?"), {"extra": {"min_tokens": object()}}),
        ("extra", ask("Why?"), {"extra": 5}),
        ("extra", ask("Why?"), {"extra": {"stream": True}}),
        ("session", ask("Why?"), {"session": "s" * 513}),
        ("temprature", ask("Why?"), {"temprature": 0.2}),
        ("max_token", ask("Why?"), {"max_token": 5}),
    ],
)
async def test_a_wrong_argument_is_named_and_nothing_is_tried(
    router: Router, argument: str, messages: Any, options: dict[str, Any]
) -> None:
    told = Recorder()
    router._runtime.bus.subscribe("told", told)
    with pytest.raises(memos_llm.BadRequest, match=rf"^{argument}:"):
        await router.chat(messages, **options)
    if argument != "extra":  # which names the method
        with pytest.raises(memos_llm.BadRequest, match=rf"^{argument}:"):
            await anext(router.stream(messages, **options))
    assert told.of(AttemptStarted) == []


async def test_a_timeout_of_none_is_no_deadline_of_ones_own(router: Router) -> None:
    assert (await router.chat(ask("Why?"), timeout_s=None)).text == "Rayleigh."


async def test_names_may_be_as_long_as_in_the_gateway(router: Router) -> None:
    answer = await router.chat(ask("Why?"), request_id="a.B_9:-" + "x" * 121, component="c" * 64, session="é")
    assert len(answer.request_id) == 128


async def test_a_stream_that_cannot_be_read_is_an_invalid_response(router: Router) -> None:
    scripted(
        router,
        b'data: {"choices":[{"delta":{"content":"Ray"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":["leigh"]}}]}\n\n',
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
    )
    stream = router.stream(ask("Why?"), request_id="req-7")
    assert (await anext(stream)).text == "Ray"
    with pytest.raises(memos_llm.InvalidResponse) as caught:
        await anext(stream)
    assert (caught.value.provider, caught.value.request_id) == ("ollama", "req-7")
    assert (caught.value.decision is not None, caught.value.attempts) == (True, 1)


async def test_a_closed_router_says_so(router: Router) -> None:
    await router.aclose()
    with pytest.raises(memos_llm.ControlError, match="closed"):
        await router.chat(ask("Why?"))
    with pytest.raises(memos_llm.ControlError, match="closed"):
        await anext(router.stream(ask("Why?")))


async def test_an_unknown_option_is_told_with_the_nearest(router: Router) -> None:
    with pytest.raises(memos_llm.BadRequest, match=r"^temprature: is no option; did you mean 'temperature'\?"):
        await router.chat(ask("Why?"), **{"temprature": 0.2})  # type: ignore[arg-type]  # what it is about
    with pytest.raises(memos_llm.BadRequest, match=r"^sesion: is no option; did you mean 'session'\?"):
        await router.embed(["a"], **{"sesion": "s"})  # type: ignore[arg-type]  # what it is about
    with pytest.raises(memos_llm.BadRequest, match=r"^temperature: is no option; choices: component"):
        await router.embed(["a"], **{"temperature": 0.2})  # type: ignore[arg-type]  # embeddings have none


@pytest.mark.parametrize("texts", ["a", b"a", 5, [5], [SURROGATE], None])
async def test_texts_that_are_none_are_named_and_nothing_is_tried(router: Router, texts: Any) -> None:
    told = Recorder()
    router._runtime.bus.subscribe("told", told)
    with pytest.raises(memos_llm.BadRequest, match=r"^texts:"):
        await router.embed(texts)
    assert (await router.embed([])).vectors == []
    assert told.of(AttemptStarted) == []
