"""`rollback` as the guard gets it: seconds, and every override whole."""

import pytest

from memos_llm.config import Settings, parse
from memos_llm.core.policy import GuardPolicy, Limits, Signal


def settings(text: str = "", **environ: str) -> Settings:
    return parse(text.encode(), environ, "my.yaml")


MODELS = 'models: {"qwen3:8b": {}, m: {fallbacks: [spare]}}'


def guard(rollback: str, **environ: str) -> GuardPolicy:
    return settings(f"{MODELS}\nrollback: {rollback}", **environ).policy().guard


def test_without_a_word_the_defaults_are_in_force() -> None:
    assert guard("{}") == GuardPolicy() == settings("").policy().guard


def test_milliseconds_become_seconds_and_a_signal_is_one() -> None:
    own = guard("{latency_p95_ms: 2500, latency_signal: ttft, window_s: 60}").default
    assert (own.latency_p95_s, own.signal, own.window_s) == (2.5, Signal.TTFT, 60)


def test_an_override_is_filled_up_from_the_base_and_not_from_the_defaults() -> None:
    own = guard("{error_rate: 0.02, min_requests: 9, components: {synthesis: {latency_p95_ms: 20000}}}")
    assert own.of("vllm", "synthesis") == Limits(error_rate=0.02, min_requests=9, latency_p95_s=20.0)
    assert own.of("vllm", "analysis") == Limits(error_rate=0.02, min_requests=9)


def test_a_model_goes_before_a_component_before_a_provider() -> None:
    own = guard(
        "{providers: {vllm: {error_rate: 0.1}}, components: {synthesis: {error_rate: 0.2}}, "
        'models: {"qwen3:8b": {error_rate: 0.3}}}'
    )
    found = [own.of(*sum).error_rate for sum in (("vllm",), ("vllm", "synthesis"), ("vllm", "", "qwen3:8b"))]
    assert found == [0.1, 0.2, 0.3]
    assert own.of("ollama").error_rate == 0.05


def test_null_switches_a_trigger_off_there_and_only_there() -> None:
    own = guard("{components: {synthesis: {error_rate: null, consecutive_timeouts: null}}}")
    off = own.of("vllm", "synthesis")
    assert (off.error_rate, off.consecutive_timeouts, off.latency_p95_s) == (None, None, 5.0)
    assert own.default == Limits()


def test_all_of_it_can_be_switched_off() -> None:
    assert not guard("{enabled: false}").enabled


def test_an_override_of_nothing_is_the_base() -> None:
    assert guard("{error_rate: 0.2, providers: {vllm: null}}").of("vllm").error_rate == 0.2


def test_a_model_that_is_only_a_fallback_can_have_limits() -> None:
    assert guard("{models: {spare: {error_rate: 0.2}}}").of("vllm", "", "spare").error_rate == 0.2


def test_the_environment_reaches_an_override() -> None:
    own = guard('{models: {"qwen3:8b": {error_rate: 0.2}}}', MEMOS_LLM_ROLLBACK__MODELS__QWEN3_8B__ERROR_RATE="7%")
    assert own.of("vllm", "", "qwen3:8b").error_rate == pytest.approx(0.07)


def test_show_has_each_override_as_it_is_in_force() -> None:
    shown = settings("rollback: {error_rate: 0.02, providers: {vllm: {latency_p95_ms: null}}}").show()["rollback"]
    assert shown["providers"]["vllm"]["error_rate"] == 0.02
    assert shown["providers"]["vllm"]["latency_p95_ms"] is None
    assert shown["latency_p95_ms"] == 5000
