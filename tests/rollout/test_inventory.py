"""What counts add up to, and what is made of them: merging is exact, each cause has its advice, no data is no yes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from memos_llm.core.catalogue import Catalogue, Model, ProviderModel
from memos_llm.core.decision import Reason
from memos_llm.core.flags import GLOBAL, Flags, Latch, Scope, Verification
from memos_llm.core.inventory import FELL_BACK, LOAD, REST, Ledger, Line, Recorded, Sighting, What
from memos_llm.core.policy import Policy, Timeouts
from memos_llm.rollout.advice import CAUSES
from memos_llm.rollout.inventory import Inventory, Row, inventory

NOW = 20_000 * 86_400.0 + 7_200
DAY_S = 86_400.0
CHAT = Line("synthesis", "qwen3:8b", "openai.chat", "", "team-a")
VECTORS = Line("embedding", "nomic", "ollama.embed", "", "team-a")
PROOF = Verification(baseline="nomic", candidate="org/nomic", dimension=8, cosine_min=0.9999, texts=9, at=1.0)


def policy(**changes: Any) -> Policy:
    both = {"ollama": ProviderModel("qwen3:8b"), "vllm": ProviderModel("Qwen/Qwen3-8B")}
    vectors = {"ollama": ProviderModel("nomic"), "vllm": ProviderModel("org/nomic")}
    models = [
        Model("qwen3:8b", both),
        Model("nomic", vectors),
        Model("llama3.2:3b", {"ollama": ProviderModel("llama3.2:3b")}),
    ]
    made = Policy(
        baseline="ollama",
        candidate="vllm",
        fallback=("ollama",),
        pins={},
        timeouts={"ollama": Timeouts(), "vllm": Timeouts()},
        catalogue=Catalogue(models),
    )
    return replace(made, **changes)


def flags(**scopes: Scope) -> Flags:
    return Flags(installation="i", revision=2, salt="s", scopes={GLOBAL: Scope(share_ppm=0), **scopes})


def seen(
    n: int,
    provider: str = "ollama",
    cause: str = "split",
    *,
    line: Line = CHAT,
    what: What = What.REQUEST,
    days_ago: float = 0,
) -> Sighting:
    at = NOW - days_ago * DAY_S
    return Sighting(
        day=int(at // DAY_S), line=line, what=what.value, provider=provider, detail=cause, n=n, first=at - 60, last=at
    )


def judged(*sightings: Sighting, days: float = 7, since: float | None = NOW - 30 * DAY_S, **context: Any) -> Inventory:
    found = Recorded(since=since, sightings=sightings)
    rules, now = context.get("policy") or policy(), context.get("flags") or flags()
    return inventory(found, rules, now, since=NOW - days * DAY_S, now=NOW)


def only(*sightings: Sighting, **context: Any) -> Row:
    (row,) = judged(*sightings, **context).rows
    return row


# Counts

names = st.sampled_from(["a", "b", "c"])
lines = st.builds(Line, component=names, model=names, wire=st.just("openai.chat"), route=st.just(""), caller=names)
counts = st.builds(
    Sighting,
    day=st.integers(0, 3),
    line=lines,
    what=st.sampled_from(What).map(lambda what: what.value),
    provider=names,
    detail=names,
    n=st.integers(1, 1000),
    first=st.floats(0, 100),
    last=st.floats(100, 200),
)


def ledger(*parts: list[Sighting], max_lines: int = 2_000) -> Ledger:
    made = Ledger(max_lines)
    for part in parts:
        made.add(part)
    return made


def by_what(sightings: Any) -> dict[Any, Any]:
    return {(s.day, s.line, s.what, s.provider, s.detail): (s.n, s.first, s.last) for s in sightings}


@given(st.lists(counts, max_size=40), st.lists(counts, max_size=40), st.randoms())
def test_parts_added_up_in_any_order_are_the_whole(one: list[Sighting], other: list[Sighting], rng: Any) -> None:
    shuffled = [*one, *other]
    rng.shuffle(shuffled)
    whole = by_what(ledger(one + other).take())
    assert by_what(ledger(shuffled).take()) == whole
    assert by_what(ledger(list(ledger(one).take()), list(ledger(other).take())).take()) == whole
    assert by_what(ledger(one, other).sums()) == by_what(ledger(list(ledger(one, other).sums())).sums())


@given(st.lists(counts, max_size=60), st.integers(0, 5))
def test_no_count_is_lost_to_the_bound_on_lines(all_of: list[Sighting], most: int) -> None:
    found = ledger(all_of, max_lines=most).sums()
    assert sum(one.n for one in found) == sum(one.n for one in all_of)
    assert len({one.line for one in found} - {REST}) <= most


@given(st.lists(counts, max_size=60))
def test_sums_over_days_are_those_of_a_naive_count(all_of: list[Sighting]) -> None:
    for day in range(5):
        late = [one for one in all_of if one.day >= day]
        naive: dict[Any, int] = {}
        for one in late:
            key = (one.line, one.what, one.provider, one.detail)
            naive[key] = naive.get(key, 0) + one.n
        found = ledger(all_of).sums(day)
        assert {(one.line, one.what, one.provider, one.detail): one.n for one in found} == naive


def test_what_is_forgotten_makes_room() -> None:
    made = ledger([seen(1, line=replace(CHAT, caller=f"k{n}"), days_ago=5) for n in range(3)], max_lines=3)
    made.forget(int(NOW // DAY_S) - 1)
    assert len(made) == 0
    made.add([seen(2)])
    assert [one.line for one in made.sums()] == [CHAT]


# A row

LATCHED = Scope(share_ppm=0, latch=Latch(provider="vllm", since=1.0, incident="inc-1", holddown_until=1.0))
UNKNOWN = replace(CHAT, model="llama3.2:3b")
PASSED = Line("default", "", "passthrough", "POST /v1/responses", "team-a")
BLOBS = replace(PASSED, route="POST /api/blobs/…")

CASES: list[tuple[str, Line, str, str, str, dict[str, Any]]] = [
    ("split", CHAT, "moves", "split", "llmctl shift --vllm SHARE", {}),
    ("split", CHAT, "moves", "split", "--component synthesis", {"flags": flags(synthesis=Scope(share_ppm=5))}),
    ("split", CHAT, "moves", "split", "100% by now", {"flags": flags(synthesis=Scope(share_ppm=1_000_000))}),
    ("split", CHAT, "hangs", "latched", "rearm --component synthesis", {"flags": flags(synthesis=LATCHED)}),
    ("split", UNKNOWN, "hangs", "unmapped-model", 'models: {"llama3.2:3b": {vllm:', {}),
    ("split", CHAT, "hangs", "no-candidate", "`candidate`", {"policy": policy(candidate=None)}),
    ("split", VECTORS, "hangs", "embeddings-unverified", "embeddings verify nomic --file", {}),
    (
        "split",
        VECTORS,
        "moves",
        "split",
        "--component embedding",
        {"flags": replace(flags(), verified={"nomic": PROOF})},
    ),
    ("embeddings-unverified", VECTORS, "hangs", "embeddings-unverified", "--new-index", {}),
    ("latched", CHAT, "hangs", "latched", "llmctl rearm`", {"flags": replace(flags(), scopes={GLOBAL: LATCHED})}),
    ("latched", CHAT, "moves", "split", "raise the share", {}),
    ("pin", CHAT, "hangs", "pin", "routing.components.synthesis", {"policy": policy(pins={"synthesis": "ollama"})}),
    ("pin", VECTORS, "hangs", "pin", "components.embedding", {"policy": policy(pins={"embedding": "ollama"})}),
    ("pin", CHAT, "moves", "split", "raise the share", {}),
    ("unmapped-model", UNKNOWN, "hangs", "unmapped-model", "map the model", {}),
    ("split", REST, "moves", "split", "raise the share", {}),
    ("unmapped-model", REST, "hangs", "unmapped-model", "more names of models than are counted singly", {}),
    ("unmapped-model", CHAT, "moves", "split", "raise the share", {}),
    ("not-offered", CHAT, "hangs", "not-offered", "openai.chat", {}),
    ("passthrough", PASSED, "hangs", "passthrough", "have its callers use /v1/chat/completions", {}),
    ("passthrough", BLOBS, "hangs", "passthrough", "the models of ollama", {}),
    ("override", CHAT, "hangs", "override", "x-memos-provider", {}),
    ("diverted", CHAT, "hangs", "diverted", "ollama stood in", {}),
    (FELL_BACK, CHAT, "hangs", "fell-back", "vllm failed", {}),
    (LOAD, CHAT, "ready", "load", "", {}),
    ("of-a-later-release", CHAT, "hangs", "of-a-later-release", "", {}),
]


@pytest.mark.parametrize(("cause", "line", "state", "why", "todo", "context"), CASES)
def test_a_cause_is_judged_by_the_configuration_of_now(
    cause: str, line: Line, state: str, why: str, todo: str, context: dict[str, Any]
) -> None:
    row = only(seen(3, cause=cause, line=line), **context)
    assert (row.state, row.why) == (state, why)
    assert todo in row.todo
    assert row.reasons == {cause: 3}


def test_every_reason_of_a_decision_has_its_advice() -> None:
    assert {reason.value for reason in Reason} | {FELL_BACK, LOAD} == set(CAUSES)
    assert {cause for cause, *_ in CASES} >= set(CAUSES)


def test_what_the_candidate_answers_is_ready() -> None:
    row = only(seen(5, "vllm"))
    assert (row.state, row.requests, row.on_candidate, row.on_baseline) == ("ready", 5, 5, 0)


def test_the_worst_cause_speaks_and_the_most_frequent_of_equals() -> None:
    row = only(seen(90, "vllm"), seen(50), seen(2, cause="not-offered"), seen(3, cause="override"))
    assert (row.state, row.why) == ("hangs", "override")
    assert row.requests == 145


def test_what_the_candidate_refused_is_named_with_its_status_and_the_needs_too() -> None:
    row = only(
        seen(4, cause=FELL_BACK),
        seen(4, "vllm", "400", what=What.INCOMPATIBLE),
        seen(1, "vllm", "timeout ttft", what=What.FAILED),
        seen(2, cause="not-offered"),
        seen(2, "", "token-ids", what=What.NEEDS),
        seen(3, "vllm", "dropped:mirostat", what=What.WARNING),
    )
    assert (row.why, [(one.code, one.n) for one in row.incompatible]) == ("incompatible", [("400", 4)])
    assert "incompatible 400 ×4" in row.todo
    assert [(one.name, one.n) for one in row.needs] == [("token-ids", 2)]
    assert [(one.name, one.provider, one.n) for one in row.warnings] == [("dropped:mirostat", "vllm", 3)]
    assert [(one.name, one.n) for one in row.failures] == [("timeout ttft", 1)]


def test_a_callers_mistake_hangs_on_nobody() -> None:
    row = only(seen(4, cause="unmapped-model", what=What.REFUSED))
    assert (row.state, row.why, row.requests, row.refused) == ("ready", "refused", 0, 4)


def test_what_nobody_answered_is_no_sign_that_all_is_well() -> None:
    failed = seen(3, "vllm", what=What.UNANSWERED), seen(3, "vllm", "server", what=What.FAILED)
    alone = only(*failed)
    assert (alone.state, alone.why, alone.requests, alone.unanswered) == ("hangs", "unanswered", 0, 3)
    assert "nobody answered 3 of 3 (server ×3)" in alone.todo
    assert only(seen(50, "vllm"), *failed).why == "unanswered"
    assert only(seen(57, "vllm"), *failed).state == "ready"  # 3 of 60: as much as the error rate may be


def test_what_hangs_comes_first_and_of_that_the_most() -> None:
    rows = judged(
        seen(9, "vllm"),
        seen(5, line=UNKNOWN, cause="unmapped-model"),
        seen(6, line=PASSED, cause="passthrough"),
        seen(7, line=replace(CHAT, component="x")),
    ).rows
    assert [row.requests for row in rows] == [6, 5, 7, 9]


def test_what_is_counted_together_is_a_row_and_said() -> None:
    found = judged(seen(4, line=REST), seen(1, "vllm"))
    assert (found.other, found.requests) == (4, 5)
    assert [row.operation for row in found.rows] == ["other", "chat"]


# The whole


def test_nothing_on_the_baseline_for_the_whole_window_is_a_yes() -> None:
    found = judged(seen(5, "vllm"), seen(2, cause=LOAD), seen(9, days_ago=7.5))
    assert found.verdict == "free"
    assert found.text == "ollama may be switched off: nothing hung on it in the last 7 days (seen 7 requests)"
    assert found.todo == ()


def test_one_request_on_the_baseline_is_a_no() -> None:
    found = judged(seen(5_000, "vllm"), seen(1, days_ago=6.9), seen(2, cause=LOAD))
    assert found.verdict == "hangs"
    assert found.text == "ollama may NOT be switched off: it answered 1 of 5,003 requests in the last 7 days"
    assert found.todo == ("raise the share: `llmctl shift --vllm SHARE` (1 request)",)
    assert judged(seen(5_000, "vllm"), seen(1, days_ago=6.9), days=6).verdict == "free"


def test_too_short_a_record_is_no_yes() -> None:
    found = judged(seen(5, "vllm"), since=NOW - 2 * DAY_S)
    assert found.verdict == "too-early"
    assert "recording for 2 days, not 7 days yet" in found.text


@pytest.mark.parametrize(("days", "said"), [(7, "7 days"), (1.5, "36 hours"), (1 / 16, "90 minutes"), (1, "1 day")])
def test_a_span_is_told_as_it_was_asked_for(days: float, said: str) -> None:
    assert f"in the last {said} " in judged(seen(5, "vllm"), days=days).text


@pytest.mark.parametrize("since", [None, NOW - 3 * DAY_S])
def test_no_data_is_no_yes_and_says_since_when_it_looks(since: float | None) -> None:
    found = judged(since=since)
    assert found.verdict == "no-data"
    assert ("recording for 3 days" if since else "llmctl serve") in found.text
