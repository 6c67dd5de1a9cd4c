"""Doctor's rules as functions of facts: what no emulator shows, and what combines."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from stack import document, settings

from memos_llm.core.flags import SCHEMA, fresh
from memos_llm.core.ports import Instance
from memos_llm.operate.doctor import Check, Facts, Verdict, examine, gateway, servers, store, talk
from memos_llm.operate.doctor.deep import read_stream
from memos_llm.operate.doctor.facts import (
    DeepFacts,
    EndpointFacts,
    GatewayFacts,
    Load,
    Loaded,
    ProviderFacts,
    Shown,
    StoreFacts,
    Talk,
)
from memos_llm.operate.doctor.look import About, read_metrics, read_show
from memos_llm.operate.doctor.models import window
from memos_llm.operate.documents import (
    ConfigSeen,
    EndpointState,
    InstanceState,
    ProviderState,
    Status,
    StoreSeen,
)

MODEL, THERE = "qwen3:8b", "Qwen/Qwen3-8B"
EMPTY = Facts(at=0.0, version="1")


def one(checks: Iterable[Check], id: str) -> Check:
    found = {check.id: check for check in checks}
    assert id in found, list(found)
    check = found[id]
    assert check.fix or check.verdict not in (Verdict.WARN, Verdict.FAIL), "it must say what to do"
    return check


def provider(kind: str, *endpoints: EndpointFacts, local: bool = True) -> ProviderFacts:
    return ProviderFacts(name=kind, kind=kind, has_key=False, endpoints=endpoints, local=local)


def endpoint(**more: Any) -> EndpointFacts:
    return EndpointFacts(**{"url": "http://h:8000", "up": True, "models": (THERE,), "version": "0.33.0", **more})


def seeing(*providers: ProviderFacts, **more: Any) -> Facts:
    return replace(EMPTY, providers=providers, **more)


def test_facts_of_nothing_are_fine() -> None:
    assert examine(EMPTY).verdict is Verdict.OK


# Servers


@pytest.mark.parametrize(
    ("two", "verdict", "words"),
    [
        ({}, Verdict.OK, "alike"),
        ({"version": "0.32.0"}, Verdict.WARN, "versions 0.32.0, 0.33.0"),
        ({"contexts": {THERE: 4096}}, Verdict.WARN, "contexts of 4096, 8192 tokens"),
    ],
)
def test_servers_of_one_model_must_be_alike(two: dict[str, Any], verdict: Verdict, words: str) -> None:
    first = endpoint(contexts={THERE: 8192})
    second = replace(first, url="http://h:8001", **two)
    check = one(servers.replicas(seeing(provider("vllm", first, second))), f"endpoint.replicas.vllm.{THERE}")
    assert (check.verdict, words in check.seen) == (verdict, True)


def test_one_server_of_a_model_has_no_replica() -> None:
    assert not list(servers.replicas(seeing(provider("vllm", endpoint()))))


@pytest.mark.parametrize(("vram", "slow"), [(0, False), (40, True), (100, False)])
def test_a_model_that_is_partly_in_main_memory_is_slow(vram: int, slow: bool) -> None:
    """0: there is no GPU at all, which is what it is."""
    row = Loaded(model=MODEL, size=100, size_vram=vram)
    found = list(servers.memory(seeing(provider("ollama", endpoint(loaded=(row,))))))
    assert bool(found) is slow
    assert not slow or "60% of qwen3:8b is in main memory" in found[0].seen


@pytest.mark.parametrize(
    ("free_gb", "both", "verdict"),
    [(1.2, True, "warn"), (1.2, False, "ok"), (30.0, True, "ok"), (None, True, "skipped")],
)
def test_two_servers_on_one_full_gpu_are_a_warning(free_gb: float | None, both: bool, verdict: str) -> None:
    cards = () if free_gb is None else ({"index": 0, "name": "NVIDIA X", "free_vram_gb": free_gb},)
    facts = seeing(provider("ollama", endpoint()), provider("vllm", endpoint(), local=both), gpus=cards)
    assert [check.verdict.value for check in servers.gpu(facts)] == [verdict]


def test_no_gpu_is_missed_where_no_server_is() -> None:
    assert not list(servers.gpu(seeing(provider("vllm", endpoint(), local=False))))


def test_a_slow_server_and_one_without_a_version_are_warnings() -> None:
    facts = seeing(provider("vllm", endpoint(latency_s=2.5, version="")))
    assert one(servers.up(facts), "endpoint.up.vllm.0").verdict is Verdict.WARN
    assert one(servers.version(facts), "endpoint.version.vllm.0").verdict is Verdict.WARN


def test_a_server_that_does_not_say_what_it_has_is_a_warning() -> None:
    facts = seeing(provider("vllm", endpoint(models=None, models_fault="config 404 route")))
    assert one(servers.models(facts), "endpoint.models.vllm.0").verdict is Verdict.WARN
    assert one(servers.key(facts), "endpoint.key.vllm.0").verdict is Verdict.SKIPPED


def test_a_server_that_answers_something_else_is_a_failure() -> None:
    facts = seeing(provider("vllm", endpoint(models=None, models_status=200, models_fault="/v1/models is not JSON")))
    check = one(servers.models(facts), "endpoint.models.vllm.0")
    assert check.verdict is Verdict.FAIL
    assert "mend the address" in check.fix


def test_what_is_not_spoken_to_over_http_is_skipped() -> None:
    check = one(servers.up(seeing(provider("litellm"))), "endpoint.up.litellm")
    assert check.verdict is Verdict.SKIPPED


@pytest.mark.parametrize(
    ("detail", "words"),
    [
        ("connect refused", "`vllm serve MODEL --port 8000`"),
        ("connect dns", "name"),
        ("connect tls", "certificate"),
        ("server 503 status", "engine is dead"),
        ("timeout", "hangs"),
        ("malformed version", "something else"),
        ("never heard of", "log"),
    ],
)
def test_every_way_of_being_down_has_a_way_up(detail: str, words: str) -> None:
    facts = seeing(provider("vllm", endpoint(up=False, detail=detail)))
    assert words in one(servers.up(facts), "endpoint.up.vllm.0").fix


def test_a_server_that_sleeps_is_a_failure() -> None:
    facts = seeing(provider("vllm", endpoint(load=Load(asleep=True))))
    assert one(servers.load(facts), "endpoint.load.vllm.0").verdict is Verdict.FAIL


PAGE = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1e+01
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99.0
vllm:%s_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:%s_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:engine_sleep_state{engine="0",sleep_state="awake"} %s
vllm:engine_sleep_state{engine="0",sleep_state="discard_all"} 0.0
"""


@pytest.mark.parametrize(("cache", "awake"), [(b"kv", b"1.0"), (b"gpu", b"0.0")])
def test_vllms_metrics_are_read_in_either_spelling(cache: bytes, awake: bytes) -> None:
    found = read_metrics(PAGE % (cache, cache, awake))
    assert found == Load(running=5, waiting=10, kv_cache=0.5, asleep=awake == b"0.0")
    broken = read_metrics(b'vllm:num_requests_running{a="b"} 1.2.3\nvllm:num_requests_waiting{a="b"} e+-\n')
    assert broken == Load(running=1.2)
    assert read_metrics(b"") is read_metrics(b"# nothing of vLLM's\nup 1\n") is None


# Models


@pytest.mark.parametrize(
    ("loaded", "shown", "tokens", "sure"),
    [
        (Loaded(model=MODEL, context_tokens=8192), Shown(num_ctx=2048), 8192, True),
        (None, Shown(num_ctx=2048, trained_tokens=40960), 2048, True),
        (Loaded(model=MODEL), Shown(trained_tokens=40960), 4096, False),
        (None, Shown(trained_tokens=512), 512, False),
        (None, Shown(), None, False),
        (None, None, None, False),
    ],
)
def test_ollamas_window_is_what_is_known_best(
    loaded: Loaded | None, shown: Shown | None, tokens: int | None, sure: bool
) -> None:
    found, _, is_sure = window(loaded, shown)
    assert (found, is_sure) == (tokens, sure)


def test_what_show_says_is_read() -> None:
    said = About(
        capabilities=["completion", "tools"],
        parameters='stop                           "<|im_end|>"\nnum_ctx                        16384',
        model_info={"general.architecture": "qwen3", "qwen3.context_length": 40960},
    )
    assert read_show(said) == Shown(capabilities=("completion", "tools"), trained_tokens=40960, num_ctx=16384)
    assert read_show(About()) == Shown()


@pytest.mark.parametrize("num_ctx", ["²", "1" * 5000, "-1", "many", "1 2"])
def test_a_window_that_is_no_number_is_not_known(num_ctx: str) -> None:
    found = About(parameters=f"num_ctx {num_ctx}", model_info={"general.architecture": ["x"]})
    assert read_show(found) == Shown()


# The store

FLAGS = replace(fresh("i", "00", 0, "vllm"), revision=7)
STORED = StoreFacts(shown="sqlite:///x.db", kind="sqlite", path="/x.db", flags=FLAGS, mode=0o600, directory_mode=0o700)


def kept(**more: Any) -> Facts:
    return replace(EMPTY, store=replace(STORED, **more))


@pytest.mark.parametrize(
    ("file", "directory", "verdict"),
    [
        (0o600, 0o700, Verdict.OK),
        (0o600, 0o755, Verdict.OK),
        (0o640, 0o700, Verdict.WARN),
        (0o600, 0o1777, Verdict.OK),
        (0o600, 0o777, Verdict.FAIL),
        (0o660, 0o700, Verdict.FAIL),
        (0o602, 0o700, Verdict.FAIL),
    ],
)
def test_who_may_change_the_store_may_decide_where_traffic_goes(file: int, directory: int, verdict: Verdict) -> None:
    assert one(store.modes(kept(mode=file, directory_mode=directory)), "store.mode").verdict is verdict


def test_a_store_of_a_newer_schema_is_only_read() -> None:
    check = one(store.schema(kept(flags=replace(FLAGS, schema=SCHEMA + 1))), "store.schema")
    assert check.verdict is Verdict.FAIL
    assert "upgrade" in check.fix


def test_a_store_that_cannot_be_made_or_written_is_a_failure() -> None:
    new = kept(exists=False, flags=None, directory_writable=False)
    assert one(store.readable(new), "store.opens").verdict is Verdict.FAIL
    full = kept(write_error="the disk is full: free some space")
    assert one(store.writable(full), "store.writable").verdict is Verdict.FAIL


def test_who_lags_behind_is_named() -> None:
    beside = (
        Instance(id="gateway-1", kind="gateway", revision=7, at=0.0),
        Instance(id="gateway-2", kind="gateway", revision=5, at=0.0),
        Instance(id="cli-3", kind="cli", revision=0, at=0.0, ephemeral=True),
    )
    check = one(store.followers(kept(instances=beside)), "store.followers")
    assert check.verdict is Verdict.WARN
    assert "1 of 2 live instances behind revision 7: gateway-2 (revision 5)" in check.seen
    assert one(store.followers(kept(instances=beside[:1])), "store.followers").verdict is Verdict.OK


# The gateway

STATUS = Status(
    revision=7,
    epoch={},
    shares={},
    why={},
    pins={},
    baseline="ollama",
    candidate="vllm",
    configured_share=0.0,
    latched=(),
    providers={},
    embeddings=(),
    instances=(),
    at=0.0,
    version="1",
    seen_by="gateway",
)

SAID: list[tuple[dict[str, Any], str, Verdict]] = [
    ({}, "gateway.store", Verdict.OK),
    ({"store": StoreSeen(regressed=True, detail="it is empty")}, "gateway.store", Verdict.FAIL),
    ({"store": StoreSeen(reachable=False, detail="the disk is full")}, "gateway.store", Verdict.FAIL),
    ({"config": ConfigSeen(path="c", generation=2, errors=("c:1: no",), waiting=())}, "gateway.config.0", Verdict.FAIL),
    ({"config": ConfigSeen(path="c", generation=2, errors=(), waiting=("store",))}, "gateway.config", Verdict.WARN),
    ({"config": ConfigSeen(path="c", generation=2, errors=(), waiting=())}, "gateway.config", Verdict.OK),
    ({"instances": (InstanceState(id="g", kind="gateway", revision=5, age_s=1.0),)}, "gateway.instances", Verdict.WARN),
    ({"instances": (InstanceState(id="g", kind="gateway", revision=7, age_s=1.0),)}, "gateway.instances", Verdict.OK),
    (
        {"providers": {"vllm": ProviderState(up=True, endpoints=(EndpointState(url="u", up=True, breaker="open"),))}},
        "gateway.endpoint.vllm.0",
        Verdict.WARN,
    ),
    (
        {"providers": {"vllm": ProviderState(up=None, endpoints=(EndpointState(url="u"),))}},
        "gateway.endpoint.vllm.0",
        Verdict.SKIPPED,
    ),
]


@pytest.mark.parametrize(("said", "id", "verdict"), SAID, ids=lambda value: str(value)[:40])
def test_what_a_gateway_says_is_weighed(said: dict[str, Any], id: str, verdict: Verdict) -> None:
    facts = GatewayFacts(url="http://g", health="healthy", ready=True, status=replace(STATUS, **said))
    assert one(gateway.status(replace(EMPTY, gateway=facts)), id).verdict is verdict


@pytest.mark.parametrize(
    ("health", "ready", "verdict"),
    [
        ("healthy", True, Verdict.OK),
        ("degraded", True, Verdict.WARN),
        ("unhealthy", True, Verdict.FAIL),
        ("healthy", False, Verdict.FAIL),
        ("", None, Verdict.FAIL),
    ],
)
def test_a_gateway_is_as_well_as_it_says(health: str, ready: bool | None, verdict: Verdict) -> None:
    facts = replace(EMPTY, gateway=GatewayFacts(url="http://g", health=health, ready=ready))
    assert one(gateway.answers(facts), "gateway.health").verdict is verdict


# What was said


@pytest.fixture
def pair(tmp_path: Path) -> Facts:
    """One model on both sides."""
    ready = settings(tmp_path, document("http://o:1", "http://v:2", tmp_path, models={MODEL: {"vllm": THERE}}))
    here = endpoint(models=(MODEL,), shown={MODEL: Shown(capabilities=("completion", "tools"))})
    return seeing(provider("ollama", here), provider("vllm", endpoint()), settings=ready, deep=True)


GOOD = Talk(status=200, text="OK", finish_reason="stop", input_tokens=9)


def talked(pair: Facts, **more: Any) -> Facts:
    return replace(pair, talks={MODEL: DeepFacts(**{"chats": {"ollama": GOOD, "vllm": GOOD}, **more})})


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (GOOD, Verdict.OK),
        (replace(GOOD, finish_reason="length", text="", reasoning=True), Verdict.OK),
        (replace(GOOD, finish_reason="abort"), Verdict.WARN),
        (replace(GOOD, text=""), Verdict.FAIL),
        (Talk(fault="config 401 auth", status=401), Verdict.FAIL),
    ],
)
def test_a_chat_is_weighed(pair: Facts, answer: Talk, verdict: Verdict) -> None:
    facts = talked(pair, chats={"ollama": GOOD, "vllm": answer})
    assert one(talk.chat(facts), f"deep.chat.{MODEL}.vllm").verdict is verdict


@pytest.mark.parametrize(("tokens", "verdict"), [(9, Verdict.OK), (15, Verdict.WARN)])
def test_prompts_that_count_differently_are_a_warning(pair: Facts, tokens: int, verdict: Verdict) -> None:
    facts = talked(pair, chats={"ollama": GOOD, "vllm": replace(GOOD, input_tokens=tokens)})
    check = one(talk.counts(facts), f"deep.tokens.{MODEL}")
    assert check.verdict is verdict
    assert f"9 tokens on ollama, {tokens} on vllm" in check.seen


@pytest.mark.parametrize(
    ("answer", "verdict"), [(GOOD, Verdict.OK), (Talk(fault="server 500 status", status=500), Verdict.FAIL)]
)
def test_structured_output_and_tools_are_weighed(pair: Facts, answer: Talk, verdict: Verdict) -> None:
    facts = talked(pair, tools=answer, schema=answer)
    assert one(talk.structured(facts), f"deep.schema.{MODEL}").verdict is verdict
    assert one(talk.tools(facts), f"deep.tools.{MODEL}").verdict is verdict


STREAM = b"""data: {"choices":[{"delta":{"role":"assistant","content":""}}]}

: keep-alive

data: {"choices":[{"delta":{"reasoning":"hm"}}]}

data: {"choices":[{"delta":{"content":"O"}}]}

data: {"choices":[{"delta":{"content":"K"},"finish_reason":"stop"}]}

data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}

data: [DONE]

"""


def test_a_stream_is_read_whole() -> None:
    found = read_stream(STREAM, 0.25)
    assert found == Talk(
        status=200,
        first_s=0.25,
        text="OK",
        reasoning=True,
        finish_reason="stop",
        input_tokens=9,
        output_tokens=3,
    )


@given(st.integers(0, len(STREAM)))
def test_a_stream_that_is_cut_anywhere_says_no_more_than_came(cut: int) -> None:
    found = read_stream(STREAM[:cut], None)
    assert "OK".startswith(found.text)
    assert not found.fault
    assert found.finish_reason in (None, "stop")


def test_an_error_within_a_stream_is_no_answer() -> None:
    assert read_stream(STREAM + b'data: {"error":{"message":"x"}}\n\n', None).fault


def _all() -> Iterator[Facts]:
    yield EMPTY
    yield replace(EMPTY, gateway=GatewayFacts(url="http://g"))
    yield seeing(provider("vllm", endpoint(up=False, detail="connect refused")))
    yield kept(regressed="it is empty", known_revision=9)


@pytest.mark.parametrize("facts", list(_all()))
def test_whatever_failed_says_what_to_do(facts: Facts) -> None:
    checks = examine(facts).checks
    assert all(check.fix for check in checks if check.verdict in (Verdict.WARN, Verdict.FAIL))
