"""The checker can say no: right exchanges that were doctored, and the truth doctored under right exchanges."""

import base64
import json
import struct
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from chaos.asking import CHAT_MODEL, EMBED_MODEL, Asked, right, right_vectors
from chaos.judging import judge
from chaos.truth import AFTER_S, ANY, LOST_LOAD_S, Effect, InForce, Kill, Truth
from chaos.wire import Exchange
from memos_llm.cli.demo.conversations import TOOLS
from memos_llm.core.flags import PPM, Flags, Latch, Scope
from memos_llm.core.flags import fresh as fresh_flags

NOW, PORT = 1000.0, 40001
BOTH = ("openai.chat", "ollama.chat", "openai.completion", "ollama.generate")
PATHS = {
    "openai.chat": "/v1/chat/completions",
    "openai.completion": "/v1/completions",
    "openai.embeddings": "/v1/embeddings",
    "ollama.chat": "/api/chat",
    "ollama.generate": "/api/generate",
    "ollama.embed": "/api/embed",
}


def asked(wire: str, *, stream: bool = True, text: str = "hello", tools: bool = False) -> Asked:
    return Asked(
        id="r-1",
        wire=wire,
        path=PATHS[wire],
        body={"model": EMBED_MODEL if "embed" in wire else CHAT_MODEL},
        stream=stream,
        component="analysis",
        key="session",
        messages=({"role": "user", "content": text},),
        limits={"tools": TOOLS} if tools else {},
        texts=("a text",),
    )


def truth(share_ppm: int = PPM // 2, **scope: Any) -> Truth:
    flags = fresh_flags("i", "s", share_ppm, "vllm")
    return in_force(replace_scope(flags, **scope) if scope else flags)


def replace_scope(flags: Flags, **scope: Any) -> Flags:
    return msgspec.structs.replace(flags, scopes={"*": msgspec.structs.replace(flags.scopes["*"], **scope)})


def in_force(flags: Flags) -> Truth:
    return Truth(flags=[InForce(0.0, 0.0, flags)], configs=[InForce(0.0, 0.0)])


def arm_of(given: Truth, one: Asked) -> str:
    ((arm, _),) = given.routes(one, NOW, NOW)
    return arm


def exchange(one: Asked, provider: str, body: bytes, *, arm: str, status: int = 200, **more: Any) -> Exchange:
    headers = {
        "x-request-id": one.id, "x-memos-provider": provider, "x-memos-arm": arm, "x-memos-attempts": "1",
    }  # fmt: skip
    return replace(
        Exchange(
            asked=one, port=PORT, opened=NOW - 1, started=NOW, head_at=NOW, ended=NOW + 1, status=status,
            headers=headers, body=body, complete=True,
        ),
        **more,
    )  # fmt: skip


def events(one: Asked, provider: str) -> list[bytes]:
    """The right stream, event by event."""
    answer = right(one, provider)
    if one.openai:
        return [*_chunks(one, answer.content, answer.finish), b"data: [DONE]\n\n"]
    return _records(one, answer.content, answer)


def _chunks(one: Asked, pieces: tuple[str, ...], finish: str) -> list[bytes]:
    chat = one.wire == "openai.chat"

    def event(text: str, reason: str | None) -> bytes:
        said: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
        choice = {"index": 0, "finish_reason": reason} | said
        return b"data: " + json.dumps({"model": one.model, "choices": [choice]}).encode() + b"\n\n"

    return [*(event(piece, None) for piece in pieces), event("", finish)]


def _records(one: Asked, pieces: tuple[str, ...], answer: Any) -> list[bytes]:
    chat = one.wire == "ollama.chat"

    def line(text: str, **more: Any) -> bytes:
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
        record = {"model": one.model, "created_at": "now", "done": False} | said | more
        return json.dumps(record).encode() + b"\n"

    counts = {"prompt_eval_count": answer.prompt_tokens, "eval_count": answer.completion_tokens}
    return [*(line(piece) for piece in pieces), line("", done=True, done_reason=answer.finish, **counts)]


def error_event(one: Asked) -> bytes:
    if one.openai:
        document = {"error": {"message": "broke off", "type": "api_error", "param": None, "code": None}}
        return b"data: " + json.dumps(document).encode() + b"\n\n"
    return b'{"error":"broke off"}\n'


def own(one: Asked, given: Truth) -> tuple[str, str]:
    arm = arm_of(given, one)
    return arm, "vllm" if arm == "candidate" else "ollama"


def judged(one: Asked, given: Truth, pieces: list[bytes], **more: Any) -> str:
    arm, provider = own(one, given)
    verdict = judge(exchange(one, more.pop("provider", provider), b"".join(pieces), arm=arm, **more), given)
    return f"{verdict.kind}: {verdict.why}"


@pytest.fixture(params=BOTH)
def one(request: pytest.FixtureRequest) -> Asked:
    return asked(request.param)


@pytest.fixture
def pieces(one: Asked) -> list[bytes]:
    return events(one, own(one, truth())[1])


def test_a_right_stream_is_right(one: Asked, pieces: list[bytes]) -> None:
    assert judged(one, truth(), pieces).startswith("right")


def test_two_words_swapped(one: Asked, pieces: list[bytes]) -> None:
    pieces[1], pieces[2] = pieces[2], pieces[1]
    assert judged(one, truth(), pieces).startswith("wrong: not what")


def test_a_word_twice(one: Asked, pieces: list[bytes]) -> None:
    assert judged(one, truth(), [pieces[0], *pieces]).startswith("wrong: not what")


def test_a_word_left_out(one: Asked, pieces: list[bytes]) -> None:
    assert judged(one, truth(), pieces[:2] + pieces[3:]).startswith("wrong: not what")


def test_the_last_word_left_out(one: Asked, pieces: list[bytes]) -> None:
    tail = 2 if one.openai else 1
    assert judged(one, truth(), pieces[: -tail - 1] + pieces[-tail:]).startswith("wrong")


def test_the_answer_of_the_other_side(one: Asked) -> None:
    _, provider = own(one, truth())
    other = "ollama" if provider == "vllm" else "vllm"
    assert judged(one, truth(), events(one, other)).startswith("wrong: not what")


def test_a_missing_tail_is_no_answer_even_when_its_provider_is_broken(one: Asked, pieces: list[bytes]) -> None:
    given = truth()
    for server in ("ollama", "vllm-1"):
        given.begin(server, "cut_mid_stream", ANY, NOW)
    assert "has no end and no error" in judged(one, given, pieces[:3])


def test_a_false_end_behind_half_an_answer(one: Asked, pieces: list[bytes]) -> None:
    end = pieces[-2:] if one.openai else pieces[-1:]
    given = truth()
    for server in ("ollama", "vllm-1"):
        given.begin(server, "cut_mid_stream", ANY, NOW)
    assert judged(one, given, pieces[:3] + end).startswith("wrong")


def test_done_without_a_finish_reason() -> None:
    one = asked("openai.chat")
    pieces = events(one, own(one, truth())[1])
    assert "[DONE] without a finish_reason" in judged(one, truth(), pieces[:-2] + pieces[-1:])


def test_done_behind_an_error() -> None:
    one, given = asked("openai.chat"), truth()
    for server in ("ollama", "vllm-1"):
        given.begin(server, "cut_mid_stream", ANY, NOW)
    pieces = events(one, own(one, given)[1])
    assert "goes on after its end" in judged(one, given, [*pieces[:3], error_event(one), pieces[-1]])


def test_a_stream_may_end_in_an_error_only_if_its_own_provider_was_broken(one: Asked, pieces: list[bytes]) -> None:
    broken = [*pieces[:3], error_event(one)]
    assert "was well" in judged(one, truth(), broken)
    _, provider = own(one, truth())
    for server, kind in (("ollama", "ollama"), ("vllm-2", "vllm")):
        given = truth()
        given.begin(server, "cut_mid_stream", ANY, NOW)
        assert judged(one, given, broken).startswith("excused" if kind == provider else "wrong")


def test_an_error_before_the_first_word_needs_everyone_broken(one: Asked) -> None:
    body = error_event(one).removeprefix(b"data: ").strip()
    given = truth()
    assert "though not all" in judged(one, given, [body], status=502)
    given.begin("ollama", "refuse", Effect.BEFORE, NOW)
    assert "though not all" in judged(one, given, [body], status=502)
    given.begin("vllm-1", "refuse", Effect.BEFORE, NOW)
    assert judged(one, given, [body], status=502).startswith("excused")


def test_a_fault_that_was_over_explains_nothing(one: Asked) -> None:
    given = truth()
    for server in ("ollama", "vllm-1"):
        given.end(given.begin(server, "refuse", Effect.BEFORE, NOW - 9), NOW - AFTER_S - 0.1)
    body = error_event(one).removeprefix(b"data: ").strip()
    assert "though not all" in judged(one, given, [body], status=502)


def test_a_swallowed_load_explains_a_time_out_and_nothing_else_and_not_for_long(one: Asked) -> None:
    body = error_event(one).removeprefix(b"data: ").strip()
    given = truth(0)
    given.end(given.begin("ollama", "hang:all=true", Effect.BEFORE, NOW - 9), NOW - 5)
    assert judged(one, given, [body], status=504).startswith("excused")
    assert "though not all" in judged(one, given, [body], status=502)
    given.spans.clear()
    given.end(given.begin("ollama", "hang", Effect.BEFORE, NOW - 99), NOW - LOST_LOAD_S - AFTER_S - 0.1)
    assert "though not all" in judged(one, given, [body], status=504)


def test_a_500_is_never_excused(one: Asked) -> None:
    given = truth()
    for server in ("ollama", "vllm-1"):
        given.begin(server, "status", Effect.BEFORE, NOW)
    body = error_event(one).removeprefix(b"data: ").strip()
    assert judged(one, given, [body], status=500).startswith("wrong: status 500")


def test_an_error_in_the_other_dialect() -> None:
    given = truth()
    for server in ("ollama", "vllm-1"):
        given.begin(server, "status", Effect.BEFORE, NOW)
    assert "no string" in judged(asked("ollama.chat"), given, [b'{"error":{"message":"no"}}'], status=502)
    assert judged(asked("openai.chat"), given, [b'{"error":"no"}'], status=502).startswith("wrong")


def test_a_cut_connection_needs_its_own_worker_killed(one: Asked, pieces: list[bytes]) -> None:
    cut: dict[str, Any] = {"complete": False, "error": "the connection ended"}
    given = truth()
    assert "its worker lived" in judged(one, given, pieces[:3], **cut)
    given.kills.append(Kill(NOW + 0.5, frozenset({PORT + 1}), NOW + 0.6))
    assert "its worker lived" in judged(one, given, pieces[:3], **cut)
    given.kills.append(Kill(NOW + 0.5, frozenset({PORT}), NOW + 0.6))
    assert judged(one, given, pieces[:3], **cut).startswith("excused")
    assert judged(one, given, pieces[1:3], **cut).startswith("wrong: not what")


def test_who_leaves_may_have_half_an_answer_but_no_wrong_one(one: Asked, pieces: list[bytes]) -> None:
    left: dict[str, Any] = {"complete": False, "left": True}
    assert judged(one, truth(), pieces[:3], **left).startswith("left")
    assert judged(one, truth(), pieces[1:3], **left).startswith("wrong")


def test_the_candidate_serves_nobody_where_its_share_is_0(one: Asked) -> None:
    given = truth(0)
    given.begin("ollama", "refuse", Effect.BEFORE, NOW)
    assert "the flags allow" in judged(one, given, events(one, "vllm"), provider="vllm")


def test_the_candidate_serves_nobody_while_it_is_latched(one: Asked) -> None:
    latch = Latch(provider="vllm", since=0.0, incident="i", holddown_until=0.0)
    given = truth(PPM, latch=latch)
    given.begin("ollama", "refuse", Effect.BEFORE, NOW)
    assert "the flags allow" in judged(one, given, events(one, "vllm"), provider="vllm")


def test_a_session_stays_on_its_arm(one: Asked) -> None:
    given = truth()
    arm, provider = own(one, given)
    other = "baseline" if arm == "candidate" else "candidate"
    verdict = judge(exchange(one, provider, b"".join(events(one, provider)), arm=other), given)
    assert "the flags allow" in verdict.why


def test_a_change_of_the_flags_is_allowed_for_only_so_long(one: Asked) -> None:
    given = in_force(fresh_flags("i", "s", PPM, "vllm"))
    given.flags.append(InForce(NOW - 5, NOW - 3, fresh_flags("i", "s", 0, "vllm")))
    body = b"".join(events(one, "vllm"))
    assert "the flags allow" in judge(exchange(one, "vllm", body, arm="candidate"), given).why
    given.flags[-1] = InForce(NOW - 5, NOW + 1, fresh_flags("i", "s", 0, "vllm"))
    assert judge(exchange(one, "vllm", body, arm="candidate"), given).kind == "right"


def test_a_detour_needs_a_reason(one: Asked) -> None:
    given = truth()
    arm, provider = own(one, given)
    other = "ollama" if provider == "vllm" else "vllm"
    there = exchange(one, other, b"".join(events(one, other)), arm=arm)
    assert "was passed over" in judge(there, given).why
    there.headers["x-memos-attempts"] = "2"
    assert "nobody was broken" in judge(there, given).why


def test_usage_must_be_the_engine_s_own() -> None:
    one = asked("ollama.chat")
    pieces = events(one, own(one, truth())[1])
    last = json.loads(pieces[-1])
    last["eval_count"] += 1
    pieces[-1] = json.dumps(last).encode() + b"\n"
    assert "counted" in judged(one, truth(), pieces)


def test_a_finish_that_nobody_said(one: Asked, pieces: list[bytes]) -> None:
    doctored = [piece.replace(b'"stop"', b'"length"') for piece in pieces]
    assert "finished with" in judged(one, truth(), doctored)


def test_a_tool_call_with_another_argument() -> None:
    one = asked("ollama.chat", text="What is the weather?", tools=True)
    given = truth()
    _, provider = own(one, given)
    answer = right(one, provider)
    (call,) = answer.tool_calls

    def said(arguments: Any) -> list[bytes]:
        message = {"content": "", "tool_calls": [{"function": {"name": call.name, "arguments": arguments}}]}
        last = _records(one, (), answer)[-1]
        record = {"model": one.model, "created_at": "now", "message": message, "done": False}
        return [json.dumps(record).encode() + b"\n", last]

    assert judged(one, given, said(dict(call.arguments))).startswith("right")
    assert "called" in judged(one, given, said({"city": "elsewhere"}))


@pytest.mark.parametrize("packed", [False, True])
def test_vectors_of_the_other_side(packed: bool) -> None:
    one = asked("openai.embeddings", stream=False)
    assert one.body is not None
    if packed:
        one.body["encoding_format"] = "base64"

    def said(engine: str) -> list[bytes]:
        (vector,) = right_vectors(one, engine)
        value = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if packed else vector
        return [json.dumps({"model": one.model, "data": [{"index": 0, "embedding": value}]}).encode()]

    assert judged(one, truth(), said("ollama")).startswith("right")
    assert "are not those of ollama" in judged(one, truth(), said("vllm"))


def test_vectors_move_only_with_their_own_scope() -> None:
    one = asked("ollama.embed", stream=False)
    (vector,) = right_vectors(one, "vllm")
    body = json.dumps({"embeddings": [vector]}).encode()
    assert "the flags allow" in judge(exchange(one, "vllm", body, arm="candidate"), truth(PPM)).why
    flags = fresh_flags("i", "s", 0, "vllm")
    scopes = {"*": flags.scopes["*"], "embedding": Scope(share_ppm=PPM, new_index=True)}
    moved = in_force(msgspec.structs.replace(flags, scopes=scopes))
    assert judge(exchange(one, "vllm", body, arm="candidate"), moved).kind == "right"
