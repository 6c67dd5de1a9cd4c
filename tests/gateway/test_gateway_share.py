"""The share, as a client sees it: exact in number, and conversations stay where they are."""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from scipy import stats
from stack import Stack

from memos_llm.core.call import MAX_SESSION_CHARS, Call, Wire
from memos_llm.core.catalogue import Catalogue, Model, ProviderModel
from memos_llm.core.decision import Arm
from memos_llm.core.events import Bus
from memos_llm.core.flags import GLOBAL, PPM, Scope
from memos_llm.core.policy import Policy, Timeouts
from memos_llm.core.ports import Routes
from memos_llm.dialects.codecs import CODECS
from memos_llm.dialects.edge import DIALECTS
from memos_llm.gateway import calls
from memos_llm.gateway.paths import locate
from memos_llm.router.engine import Engine
from memos_llm.testing import FakeTransport, FixedFlags

POLICY = Policy(
    baseline="ollama",
    candidate="vllm",
    fallback=("ollama",),
    pins={},
    timeouts={"ollama": Timeouts(), "vllm": Timeouts()},
    catalogue=Catalogue([Model("q", {"ollama": ProviderModel("q"), "vllm": ProviderModel("Q")})]),
)
Way = Callable[[str], tuple[str, dict[bytes, bytes], dict[str, Any]]]
NAMES: dict[str, Way] = {  # the ways in which a conversation names itself → what its request looks like
    "header": lambda name: ("/v1/chat/completions", {b"x-memos-session": name.encode()}, {}),
    "path": lambda name: (f"/c/synthesis/s/{name}/v1/chat/completions", {}, {}),
    "body metadata": lambda name: ("/v1/chat/completions", {}, {"metadata": {"session": name}}),
    "prompt_cache_key": lambda name: ("/v1/chat/completions", {}, {"prompt_cache_key": name}),
    "user": lambda name: ("/v1/chat/completions", {}, {"user": name}),
    "trace id": lambda name: (
        "/v1/chat/completions",
        {b"traceparent": b"00-%s-00f067aa0ba902b7-01" % name.encode().hex().rjust(32, "0")[-32:].encode()},
        {},
    ),
}


class Front:
    """From an HTTP request to an arm, by the gateway's own reading and the engine's own decision."""

    def __init__(self) -> None:
        self.flags = FixedFlags()
        script = (b"",)
        routes = Routes(POLICY, {name: FakeTransport(name, script) for name in ("ollama", "vllm")})
        self.engine = Engine(
            routes=lambda: routes,
            live=self.flags,
            codecs=CODECS,
            bus=Bus(),
            clock=lambda: 0.0,
        )

    def share(self, share: float) -> None:
        scopes = {GLOBAL: Scope(share_ppm=round(share * PPM))}
        self.flags.flags = replace(self.flags.flags, scopes=scopes, revision=self.flags.flags.revision + 1)

    def arm(self, path: str, headers: dict[bytes, bytes], body: dict[str, Any]) -> Arm:
        return self.engine.decide(self.call(path, headers, body)).arm

    def call(self, path: str, headers: dict[bytes, bytes], body: dict[str, Any]) -> Call:
        document = {"model": "q", "messages": [{"role": "user", "content": "hello"}], **body}
        return calls.build(
            DIALECTS[Wire.OPENAI_CHAT], json.dumps(document).encode(), headers, locate(path), POLICY,
            id=calls.request_id(headers), accepted_at=0.0,
        )  # fmt: skip


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("way", ["header", "user"])
def test_observed_share_of_20000_conversations_is_within_the_binomial_bounds(share: float, way: str) -> None:
    front = Front()
    front.share(share)
    moved = sum(front.arm(*NAMES[way](f"conversation-{i}")) is Arm.CANDIDATE for i in range(20_000))
    low, high = stats.binom.interval(0.999, 20_000, share)
    assert low <= moved <= high


def test_requests_without_any_name_are_split_by_their_own_ids() -> None:
    front = Front()
    front.share(0.3)
    moved = sum(front.arm("/v1/chat/completions", {}, {}) is Arm.CANDIDATE for _ in range(20_000))
    low, high = stats.binom.interval(0.9999, 20_000, 0.3)
    assert low <= moved <= high


@pytest.mark.parametrize("way", NAMES)
def test_a_conversation_that_names_itself_moves_at_most_once_while_the_share_rises(way: str) -> None:
    front = Front()
    for i in range(100):
        name, arms = f"conversation-{i}", []
        for share in (0.0, 0.1, 0.1, 0.3, 0.3, 0.7, 1.0):
            front.share(share)
            turns = [{"role": "user", "content": f"turn {random.random()}"}]
            arms += [front.arm(*NAMES[way](name)), front.arm(*_with(NAMES[way](name), messages=turns))]
        assert arms == sorted(arms)  # baseline < candidate: once over, never back
        assert arms[0] is Arm.BASELINE
        assert arms[-1] is Arm.CANDIDATE


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({b"traceparent": b"00-%s-00f067aa0ba902b7-01" % (b"0" * 32)}, {}),
        ({}, {"metadata": {"session": "x" * (MAX_SESSION_CHARS + 1)}}),
    ],
)
def test_a_name_that_cannot_be_used_is_no_key(headers: dict[bytes, bytes], body: dict[str, Any]) -> None:
    call = Front().call("/v1/chat/completions", headers, body)
    assert call.key == call.id.encode()


def test_an_unnamed_conversation_moves_at_most_once_after_its_first_turn() -> None:
    front = Front()
    front.share(0.5)
    for i in range(200):
        turns: list[dict[str, str]] = [{"role": "system", "content": "s"}, {"role": "user", "content": f"question {i}"}]
        arms = []
        for turn in range(5):
            arms.append(front.arm("/v1/chat/completions", {}, {"messages": turns}))
            turns = [*turns, {"role": "assistant", "content": f"a{turn}"}, {"role": "user", "content": f"q{turn}"}]
        assert len(set(arms[1:])) == 1


def test_the_same_conversation_has_one_arm_in_every_dialect() -> None:
    front = Front()
    front.share(0.5)
    native = DIALECTS[Wire.OLLAMA_CHAT].conversation_key
    for i in range(50):
        messages = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]
        head = DIALECTS[Wire.OLLAMA_CHAT].parse(json.dumps({"model": "q", "messages": messages}).encode()).head
        assert native(head) == DIALECTS[Wire.OPENAI_CHAT].conversation_key(head)


def _with(request: tuple[str, dict[bytes, bytes], dict[str, Any]], **body: Any) -> tuple[Any, ...]:
    path, headers, document = request
    return path, headers, {**document, **body}


async def test_a_shift_moves_exactly_the_conversations_that_the_split_names(stack: Stack) -> None:
    """Over real HTTP, while requests run: each conversation is where its slot says, at every share."""
    sessions = [f"s{i}" for i in range(60)]

    async def arms() -> dict[str, str]:
        async with stack.client() as client:

            async def ask(session: str) -> tuple[str, str]:
                body = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "hi"}], "stream": False}
                response = await client.post(f"/c/synthesis/s/{session}/api/chat", json=body)
                return session, response.headers["x-memos-arm"]

            return dict(await asyncio.gather(*map(ask, sessions)))

    seen = []
    for share in (0.0, 0.1, 0.3, 1.0):
        await stack.shift(share)
        seen.append({session for session, arm in (await arms()).items() if arm == "candidate"})
    assert seen[0] == set()
    assert seen[0] <= seen[1] <= seen[2] <= seen[3]
    assert seen[3] == set(sessions)
    low, high = stats.binom.interval(0.999, len(sessions), 0.3)
    assert low <= len(seen[2]) <= high


async def test_components_have_their_own_shares(stack: Stack) -> None:
    await stack.shift(1.0, scope="synthesis")
    async with stack.client() as client:
        body = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "hi"}], "stream": False}
        arms = {
            place: (await client.post(f"{place}/api/chat", json=body)).headers["x-memos-arm"]
            for place in ("/c/synthesis", "/c/analysis", "")
        }
    assert arms == {"/c/synthesis": "candidate", "/c/analysis": "baseline", "": "baseline"}
