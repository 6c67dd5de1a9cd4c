"""What a configuration means: sources, precedence, aliases, and the policy that comes out."""

from pathlib import Path

import pytest

from memos_llm.config import Settings, describe_settings, find, load, parse, pending
from memos_llm.core.call import Operation, Thinking
from memos_llm.core.errors import ConfigError
from memos_llm.core.policy import Endpoint

SHIPPED = Path(__file__).parent.parent / "config" / "memos_llm.yaml"

EXAMPLE = """
providers:
  ollama: {kind: ollama, base_url: "http://localhost:11434", keep_warm: ["qwen3:8b"]}
  vllm:
    kind: vllm
    endpoints:
      - {url: "http://localhost:8000"}
      - {url: "http://localhost:8100/v1/", models: ["Qwen/Qwen3-Embedding-0.6B"]}
    api_key: "${VLLM_API_KEY:-}"
    timeouts: {ttft_s: 15, answer_s: 300}
    enabled: true
  cloud: {kind: litellm, model_prefix: "openai/"}
baseline: ollama
candidate: vllm
fallback: ollama
models:
  qwen3:8b:
    aliases: [qwen3]
    vllm: {name: Qwen/Qwen3-8B, thinking: enable_thinking, split_think_tags: true}
    defaults: {temperature: 0.8, top_p: 0.9, top_k: 40}
    fallbacks: ["llama3.2:3b", "gemma3:4b"]
  mxbai-embed-large: {}
routing:
  share: 0.0
  components: {synthesis: share, analysis: share, classification: share, embedding: baseline}
  component_rules: [{model: "deepseek-r1:*", component: synthesis}, {operation: embeddings, component: embedding}]
shadow: {enabled: false, provider: vllm, sample: 0.1, aa_sample: 1.0, capture: none, max_inflight: 1,
         gates: {tool_names: {margin: 0.01, min_pairs: 500}}}
rollback: {error_rate: 0.05, latency_p95_ms: 5000, latency_signal: e2e, window_s: 300, min_requests: 50,
           confidence: 0.999, consecutive_timeouts: 3, health_failures: 3, abandon_s: 20, webhooks: []}
timeouts: {connect_s: 3, ttft_s: null, answer_s: null, idle_s: 60, stall_s: 120, total_s: 600}
retries: 0
store: sqlite:///~/.local/state/memos_llm/memos_llm.db
gateway: {host: 127.0.0.1, port: 8200, api_keys: [], allowed_hosts: [], cors_origins: [], max_concurrency: 1024,
          max_body_bytes: 33554432, log_level: INFO}
"""


def settings(text: str = "", **environ: str) -> Settings:
    return parse(text.encode(), environ, "my.yaml")


def url(of: Settings, provider: str) -> str:
    return next(spec.endpoints[0].url for spec in of.provider_specs() if spec.name == provider)


def test_the_documented_example_is_valid() -> None:
    policy = settings(EXAMPLE).policy(generation=7)
    assert (policy.baseline, policy.candidate, policy.fallback) == ("ollama", "vllm", ("ollama",))
    assert policy.pins == {"embedding": "ollama"}
    assert (policy.limits("vllm").ttft_s, policy.limits("vllm").answer_s) == (15, 300)
    assert policy.limits("ollama").ttft_s is None
    assert policy.generation == 7
    assert policy.component("DeepSeek-R1:14b", Operation.CHAT) == "synthesis"
    assert policy.component("x", Operation.EMBEDDINGS) == "embedding"


def test_an_endpoint_loses_slash_and_v1() -> None:
    vllm = next(spec for spec in settings(EXAMPLE).provider_specs() if spec.name == "vllm")
    assert vllm.endpoints == (
        Endpoint("http://localhost:8000"),
        Endpoint("http://localhost:8100", ("Qwen/Qwen3-Embedding-0.6B",)),
    )


def test_the_shipped_file_loads_without_any_variable() -> None:
    policy = load(SHIPPED, {}).policy()
    assert policy.baseline == "ollama"
    model = policy.catalogue.resolve("Qwen/Qwen3-8B")
    assert model is not None
    assert model.name == "qwen3:8b"


def test_no_file_at_all_means_both_servers_on_their_default_ports() -> None:
    bare = settings()
    assert (url(bare, "ollama"), url(bare, "vllm")) == ("http://localhost:11434", "http://localhost:8000")
    assert (bare.baseline, bare.candidate, bare.fallback) == ("ollama", "vllm", ("ollama",))
    assert bare.catalogue().models == {}
    assert bare.policy().limits("vllm").ttft_s == 15
    assert bare.share_ppm == 0


def test_a_commented_out_section_is_an_empty_one() -> None:
    assert settings("providers:\nmodels:\nrouting:\nshadow:\ngateway:\n") == settings()


class TestModels:
    def test_ollama_has_every_model_under_its_logical_name_and_vllm_only_mapped_ones(self) -> None:
        models = settings(EXAMPLE).catalogue().models
        assert models["qwen3:8b"].on["ollama"].name == "qwen3:8b"
        assert models["qwen3:8b"].on["vllm"].name == "Qwen/Qwen3-8B"
        assert set(models["mxbai-embed-large"].on) == {"ollama"}

    def test_settings_reach_the_target(self) -> None:
        model = settings(EXAMPLE).catalogue().models["qwen3:8b"]
        on_vllm, on_ollama = model.on["vllm"].settings, model.on["ollama"].settings
        assert on_vllm.thinking is Thinking.ENABLE_THINKING
        assert on_vllm.split_think_tags
        assert on_vllm.defaults == on_ollama.defaults == {"temperature": 0.8, "top_p": 0.9, "top_k": 40}
        assert isinstance(on_vllm.defaults["top_k"], int)

    def test_a_string_is_short_for_a_name(self) -> None:
        short, long = (settings(f"models: {{a: {{vllm: {own}}}}}") for own in ("B", "{name: B}"))
        assert short.catalogue().models == long.catalogue().models

    def test_a_second_ollama_can_have_another_name_or_none(self) -> None:
        text = """
        providers:
          ollama: {base_url: "http://a:1"}
          big: {kind: ollama, base_url: "http://b:1"}
          old: {kind: ollama, base_url: "http://c:1"}
        models: {m: {big: m-large, old: null}}
        """
        on = settings(text).catalogue().models["m"].on
        assert {name: own.name for name, own in on.items()} == {"ollama": "m", "big": "m-large"}

    def test_a_fallback_that_is_not_listed_is_a_model_of_its_own(self) -> None:
        resolved = settings(EXAMPLE).catalogue().resolve("gemma3:4b")
        assert resolved is not None
        assert set(resolved.on) == {"ollama"}

    def test_a_fallback_may_be_an_alias(self) -> None:
        catalogue = settings("models: {a: {fallbacks: [bee]}, b: {aliases: [bee]}}").catalogue()
        assert set(catalogue.models) == {"a", "b"}

    def test_a_baseline_of_any_kind_has_every_model(self) -> None:
        text = "{baseline: vllm, candidate: ollama, models: {a: {}}}"
        assert set(settings(text).catalogue().models["a"].on) == {"vllm", "ollama"}

    def test_the_name_on_a_disabled_provider_still_means_the_model(self) -> None:
        text = "{vllm_enabled: false, models: {a: {vllm: Org/A}}}"
        model = settings(text).catalogue().resolve("org/a")
        assert model is not None
        assert set(model.on) == {"ollama"}


class TestEnvironment:
    def test_it_wins_over_the_file(self) -> None:
        own = settings(EXAMPLE, MEMOS_LLM_ROUTING__SHARE="0.25", MEMOS_LLM_GATEWAY__PORT="8300")
        assert own.share_ppm == 250_000
        assert own.gateway.port == 8300
        assert own.gateway.max_concurrency == 1024

    def test_a_provider_and_a_model_are_found_whatever_their_spelling(self) -> None:
        own = settings(
            EXAMPLE, MEMOS_LLM_PROVIDERS__VLLM__TIMEOUTS__TTFT_S="7", MEMOS_LLM_MODELS__QWEN3_8B__ALIASES='["q"]'
        )
        assert own.policy().limits("vllm").ttft_s == 7
        assert own.models["qwen3:8b"].aliases == ("q",)

    def test_base_url_takes_the_place_of_the_files_endpoints(self) -> None:
        assert (
            url(settings(EXAMPLE, MEMOS_LLM_PROVIDERS__VLLM__BASE_URL="http://gpu:9000/v1"), "vllm")
            == "http://gpu:9000"
        )

    @pytest.mark.parametrize(
        ("variable", "value", "expected"),
        [
            ("MEMOS_LLM_FALLBACK", "vllm,ollama", ("vllm", "ollama")),
            ("MEMOS_LLM_FALLBACK", '["vllm"]', ("vllm",)),
            ("MEMOS_LLM_FALLBACK", "none", ()),
            ("MEMOS_LLM_FALLBACK", "", ("ollama",)),
        ],
    )
    def test_lists(self, variable: str, value: str, expected: tuple[str, ...]) -> None:
        assert settings(**{variable: value}).fallback == expected

    def test_null_switches_a_trigger_off(self) -> None:
        assert settings(MEMOS_LLM_ROLLBACK__ERROR_RATE="null").rollback.error_rate is None

    def test_an_alias_in_the_environment_wins_over_the_real_key_in_the_file(self) -> None:
        assert (
            settings("baseline: ollama", MEMOS_LLM_PRIMARY_PROVIDER="vllm", MEMOS_LLM_CANDIDATE="ollama").baseline
            == "vllm"
        )

    def test_variables_of_the_programs_and_of_kubernetes_are_no_settings(self) -> None:
        noise = {
            "MEMOS_LLM_CONFIG": "x.yaml",
            "MEMOS_LLM_GATEWAY_URL": "http://gw",
            "MEMOS_LLM_ADMIN_TOKEN": "t",
            "MEMOS_LLM_PORT": "tcp://10.0.0.1:8200",
            "MEMOS_LLM_SERVICE_HOST": "10.0.0.1",
            "MEMOS_LLM_SERVICE_PORT_HTTP": "8200",
            "MEMOS_LLM_PORT_8200_TCP_ADDR": "10.0.0.1",
            "MEMOS_LLM_GATEWAY_PORT": "tcp://10.0.0.1:8200",
        }
        assert settings(**noise) == settings()


class TestConventionalVariables:
    OPEN = "{providers: {ollama: {}, vllm: {}}}"

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("gpu-box", "http://gpu-box:11434"),
            ("gpu-box:9999", "http://gpu-box:9999"),
            (":9999", "http://127.0.0.1:9999"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("0.0.0.0:9999", "http://127.0.0.1:9999"),
            ("http://0.0.0.0:11434/", "http://127.0.0.1:11434"),
            ("[::]:11434", "http://[::1]:11434"),
            ("http://gpu-box:11434/v1", "http://gpu-box:11434"),
            ("https://ollama.example.com", "https://ollama.example.com"),
            ("https://example.com/ollama/v1/", "https://example.com/ollama"),
            (' "gpu-box" ', "http://gpu-box:11434"),
        ],
    )
    def test_ollama_host_in_every_spelling(self, value: str, expected: str) -> None:
        assert url(settings(self.OPEN, OLLAMA_HOST=value, VLLM_BASE_URL="v"), "ollama") == expected

    def test_a_bare_vllm_host_gets_its_port(self) -> None:
        assert url(settings(VLLM_BASE_URL="gpu-box/v1"), "vllm") == "http://gpu-box:8000"

    def test_ollama_base_url_goes_before_ollama_host(self) -> None:
        assert url(settings(OLLAMA_BASE_URL="a:1", OLLAMA_HOST="b:1"), "ollama") == "http://a:1"

    def test_they_fill_only_what_is_left_open(self) -> None:
        own = settings(EXAMPLE, OLLAMA_HOST="elsewhere", VLLM_BASE_URL="elsewhere")
        assert (url(own, "ollama"), url(own, "vllm")) == ("http://localhost:11434", "http://localhost:8000")

    def test_an_empty_base_url_is_open(self) -> None:
        text = 'providers: {ollama: {base_url: "${MY_URL:-}"}}'
        assert url(settings(text, OLLAMA_HOST="gpu"), "ollama") == "http://gpu:11434"

    def test_the_key_fills_too(self) -> None:
        keys = {spec.name: spec.api_key for spec in settings(VLLM_API_KEY="sk-1").provider_specs()}
        assert keys == {"ollama": "", "vllm": "sk-1"}

    def test_an_explicit_key_stays(self) -> None:
        own = settings(
            'providers: {ollama: {base_url: "a:1"}, vllm: {base_url: "b:1", api_key: mine}}', VLLM_API_KEY="sk-1"
        )
        assert own.provider_specs()[1].api_key == "mine"


class TestSubstitution:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("${A}", "one"),
            ("${A:-two}", "one"),
            ("${B:-two}", "two"),
            ("${EMPTY:-two}", "two"),
            ("${EMPTY}", ""),
            ("x-${A}-${B:-}", "x-one-"),
            ("$${A}", "${A}"),
            ("$A", "$A"),
        ],
    )
    def test_as_a_shell_does(self, text: str, expected: str) -> None:
        own = settings(f'providers: {{ollama: {{base_url: "a:1", api_key: "{text}"}}}}', A="one", EMPTY="")
        assert own.provider_specs()[0].api_key == expected

    def test_a_number_may_come_from_a_variable(self) -> None:
        assert settings("routing:\n  share: ${SHARE:-0.5}").share_ppm == 500_000


class TestAliases:
    @pytest.mark.parametrize(
        ("alias", "real"),
        [
            ("primary_provider: vllm\ncandidate: ollama", "baseline: vllm\ncandidate: ollama"),
            ("fallback_provider: vllm", "fallback: vllm"),
            ("vllm_traffic_percentage: 0.3", "routing: {share: 0.3}"),
            ("routing: {vllm_traffic_percentage: 30%}", "routing: {share: 0.3}"),
            ("synthesis_provider: vllm", "routing: {components: {synthesis: vllm}}"),
            ("routing: {embedding_provider: ollama}", "routing: {components: {embedding: ollama}}"),
            ("enable_shadow_mode: true", "shadow: {enabled: true}"),
            ("shadow: {enable_shadow_mode: true}", "shadow: {enabled: true}"),
            ("shadow_provider: vllm", "shadow: {provider: vllm}"),
            ("rollback_error_rate: 0.1", "rollback: {error_rate: 0.1}"),
            ("rollback: {rollback_latency_p95_ms: 9000}", "rollback: {latency_p95_ms: 9000}"),
            (
                "vllm_enabled: false",
                "{providers: {ollama: {base_url: localhost:11434}, vllm: {base_url: localhost:8000, enabled: false}}}",
            ),
            ('model_fallbacks: {"a": ["b"]}', "models: {a: {fallbacks: [b]}}"),
            ("fallback: vllm\nfallback_provider: vllm", "fallback: [vllm]"),
        ],
    )
    def test_means_the_real_key(self, alias: str, real: str) -> None:
        assert settings(alias) == settings(real)

    @pytest.mark.parametrize(
        "component",
        ["classification", "analysis", "synthesis", "reflection", "evaluation", "verification", "embedding"],
    )
    def test_every_stage_of_the_report_has_its_alias(self, component: str) -> None:
        pinned = settings(f"{component}_provider: vllm")
        assert pinned == settings(f"routing: {{components: {{{component}: vllm}}}}")
        assert pinned.policy().pins == {component: "vllm"}

    def test_the_whole_of_the_report_in_one_file(self) -> None:
        report = """
            providers: {ollama: {base_url: "a:1"}, vllm: {base_url: "b:1"}}
            primary_provider: ollama
            fallback_provider: ollama
            vllm_enabled: true
            vllm_traffic_percentage: 0.1
            synthesis_provider: vllm
            embedding_provider: ollama
            enable_shadow_mode: true
            shadow_provider: vllm
            rollback_error_rate: 0.05
            rollback_latency_p95_ms: 5000
            model_fallbacks: {"qwen3:8b": ["gemma3:4b"]}
        """
        ours = """
            providers: {ollama: {base_url: "a:1"}, vllm: {base_url: "b:1", enabled: true}}
            baseline: ollama
            fallback: [ollama]
            routing: {share: 0.1, components: {synthesis: vllm, embedding: ollama}}
            shadow: {enabled: true, provider: vllm}
            rollback: {error_rate: 0.05, latency_p95_ms: 5000}
            models: {"qwen3:8b": {fallbacks: ["gemma3:4b"]}}
        """
        assert settings(report) == settings(ours)

    def test_vllm_disabled_leaves_no_candidate_and_its_pins_on_the_baseline(self) -> None:
        policy = settings("{vllm_enabled: false, synthesis_provider: vllm, fallback: [vllm, ollama]}").policy()
        assert (policy.candidate, policy.pins, policy.fallback) == (None, {"synthesis": "ollama"}, ("ollama",))


class TestTimeouts:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("{}", 15),
            ("timeouts: {ttft_s: 9}", 9),
            ("timeouts: {ttft_s: null}", 15),
            (
                "{timeouts: {ttft_s: 9}, providers: {ollama: {base_url: a},vllm: {base_url: b,timeouts: {ttft_s: 4}}}}",
                4,
            ),
            ("providers: {ollama: {base_url: a}, vllm: {base_url: b, timeouts: {ttft_s: null}}}", None),
        ],
    )
    def test_the_providers_word_then_the_general_one_then_its_kinds(self, text: str, expected: float | None) -> None:
        assert settings(text).policy().limits("vllm").ttft_s == expected


class TestSecrets:
    CANARY = "canary-31337"
    TEXT = f"""
    providers:
      ollama: {{base_url: "a:1"}}
      vllm: {{base_url: "b:1", api_key: {CANARY}}}
    rollback: {{webhooks: [{{url: "https://hooks.example.com/{CANARY}", secret: {CANARY}}}]}}
    store: redis://user:{CANARY}@redis.example.com:6379/0
    """

    def test_nothing_that_prints_settings_shows_one(self) -> None:
        own = settings(self.TEXT)
        seen = f"{own!r} {own} {own.show()} {own.model_dump_json()} {own.provider_specs()!r} {own.policy()!r}"
        assert self.CANARY not in seen
        assert own.provider_specs()[1].api_key == self.CANARY
        assert self.CANARY in own.store_url

    def test_show_says_that_there_is_one(self) -> None:
        shown = settings(self.TEXT).show()
        assert shown["providers"]["vllm"]["api_key"] == "***"
        assert shown["providers"]["ollama"]["api_key"] == ""
        assert shown["store"] == "redis://user:***@redis.example.com:6379/0"
        assert shown["rollback"]["webhooks"] == [{"url": "https://hooks.example.com/***", "secret": "***"}]

    @pytest.mark.parametrize(
        "text",
        [
            f"providers: {{ollama: {{api_key: [{CANARY}]}}}}",
            f"providers: {{ollama: {{api_key: {CANARY}, api_key: {CANARY}}}}}",
            f"providers: {{ollama: {{base_url: 'http://u:{CANARY}@h'}}}}",
            f"providers: {{ollama: {{base_url: 'http://h?key={CANARY}'}}}}",
            f"gateway: {{api_keys: [{CANARY}]}}",
            f"gateway: {{api_keys: [{{id: a, sha256: {CANARY}, scopes: [read]}}]}}",
            f"store: {CANARY}",
            f"rollback: {{webhooks: [{{url: {CANARY}}}]}}",
            f"rollback: {{webhooks: [{{url: 'https://hooks.example.com:{CANARY}/'}}]}}",
            f"rollback: {{webhooks: [{{url: 'https:///{CANARY}'}}]}}",
            f"providers: {{ollama: {{api_key: {CANARY}: x}}}}",
        ],
    )
    def test_no_error_quotes_one(self, text: str) -> None:
        with pytest.raises(ConfigError) as caught:
            settings(text)
        error: BaseException | None = caught.value
        assert self.CANARY not in repr(error) + str(error)
        assert error is not None
        assert error.__suppress_context__ or error.__context__ is None


class TestSearch:
    def test_the_named_file_then_here_then_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        environ = {"HOME": str(tmp_path / "home")}
        assert find(environ) is None
        home = tmp_path / "home" / ".config" / "memos_llm" / "memos_llm.yaml"
        home.parent.mkdir(parents=True)
        home.write_text("retries: 1")
        assert load(environ=environ).retries == 1
        here = tmp_path / "config" / "memos_llm.yaml"
        here.parent.mkdir()
        here.write_text("retries: 2")
        assert load(environ=environ).retries == 2
        named = tmp_path / "named.yaml"
        named.write_text("retries: 3")
        assert load(environ=environ | {"MEMOS_LLM_CONFIG": str(named)}).retries == 3
        assert load(here, environ | {"MEMOS_LLM_CONFIG": str(named)}).retries == 2

    def test_a_named_file_that_is_missing_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"gone\.yaml.*MEMOS_LLM_CONFIG"):
            load(environ={"MEMOS_LLM_CONFIG": str(tmp_path / "gone.yaml")})


def test_every_setting_is_described() -> None:
    told = describe_settings()
    assert all(setting.description for setting in told)
    keys = [setting.key for setting in told]
    assert len(keys) == len(set(keys))
    assert {"baseline", "providers.<provider>.endpoints[].url", "models.<model>.<provider>.thinking"} <= set(keys)
    assert {"rollback.components.<component>.latency_p95_ms", "rollback.models.<model>.error_rate"} <= set(keys)
    assert {"shadow.gates.<metric>.margin", "gateway.api_keys[].scopes", "rollback.webhooks[].url"} <= set(keys)


def test_components_are_all_that_the_configuration_names() -> None:
    text = "routing: {components: {mine: share}, component_rules: [{model: x, component: ruled}]}"
    assert {"default", "embedding", "synthesis", "mine", "ruled"} <= set(settings(text).components())


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("shadow: {enabled: true}", "shadow"),
    ],
)
def test_what_is_not_in_force_yet_is_said(text: str, key: str) -> None:
    (line,) = pending(parse(text.encode(), {}))
    assert line.startswith(f"{key} is not in force")


def test_nothing_is_said_of_what_nobody_asked_for() -> None:
    assert pending(parse(b"rollback: {error_rate: 0.1}", {})) == ()
    assert pending(load(SHIPPED, {})) == ()
