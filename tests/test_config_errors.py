"""Every wrong configuration is refused with a message that names the key, the place and what would be right."""

import pytest

from memos_llm.config import parse
from memos_llm.core.errors import ConfigError

SHA = "ab" * 32  # of some key

BOTH = "ollama: {base_url: 'a:1'}, vllm: {base_url: 'b:1'}"
KEY = f"{{id: a, sha256: '{'0' * 64}', scopes: [read]}}"

WRONG: list[tuple[str, str]] = [
    # unknown keys and the nearest known one
    ("basline: ollama", "basline: unknown key; did you mean baseline"),
    ("providers: {vllm: {base_ur: x}}", "providers.vllm.base_ur: unknown key; did you mean base_url"),
    ("providers: {vllm: {endpoints: [{ur: x}]}}", "providers.vllm.endpoints.0.ur: unknown key; did you mean url"),
    ("providers: {vllm: {timeouts: {ttft: 3}}}", "providers.vllm.timeouts.ttft: unknown key; did you mean ttft_s"),
    ("share: 0.3", "share: unknown key; did you mean routing.share"),
    ("routing: {shares: 0.3}", "routing.shares: unknown key; did you mean share"),
    ("models: {a: {vlm: b}}", "models.a.vlm: unknown key"),
    ("models: {a: {defaults: {temprature: 1}}}", "models.a.defaults.temprature: unknown key; did you mean temperature"),
    ("models: {a: {vllm: {name: b, think: true}}}", "models.a.vllm.think: unknown key; did you mean thinking"),
    ("rollback: {webhooks: [{uri: x}]}", "rollback.webhooks.0.uri: unknown key; did you mean url"),
    ("gateway: {prot: 1}", "gateway.prot: unknown key; did you mean port"),
    ("shadow: {gates: {tool_name: {}}}", "shadow.gates.tool_name: must be one of"),
    ("shadow: {gates: {exact: {margins: 1}}}", "shadow.gates.exact.margins: unknown key; did you mean margin"),
    # values
    ("routing: {share: 30}", "routing.share: is a fraction from 0 to 1: for 30 per cent write 0.3"),
    ("routing: {share: true}", "routing.share: must be a number"),
    ("routing: {share: -0.1}", "routing.share: is outside 0 to 1"),
    ("routing: {share: much}", "routing.share: must be a fraction"),
    ("routing: {share: .nan}", "routing.share: is outside 0 to 1"),
    (
        "vllm_traffic_percentage: 30",
        "vllm_traffic_percentage: routing.share: is a fraction from 0 to 1: for 30 per cent write 0.3",
    ),
    ("rollback: {error_rate: 5}", "rollback.error_rate: is a fraction from 0 to 1: for 5 per cent write 0.05"),
    ("rollback: {latency_signal: p95}", "rollback.latency_signal: must be one of 'e2e', 'ttft' or 'tpot', not 'p95'"),
    ("rollback: {window_s: 0}", "rollback.window_s: must be greater than 0, not 0"),
    ("rollback: {window_s: 1.5}", "rollback.window_s: must be a valid integer"),
    ("rollback: {window_s: 86401}", "rollback.window_s: must be less than or equal to 86400, not 86401"),
    ("rollback: {error_rate: 0}", "rollback.error_rate: must be above 0 and below 1; null switches the trigger off"),
    ("rollback: {error_rate: 100%}", "rollback.error_rate: must be above 0 and below 1"),
    ("rollback: {confidence: 1}", "rollback.confidence: nothing is ever certain: below 1, such as 0.999"),
    ("rollback: {webhooks: [{url: hooks.example.com/x}]}", "rollback.webhooks.0.url: must begin with http:// or https"),
    ("rollback: {webhooks: [{url: 'ftp://hooks.example.com'}]}", "rollback.webhooks.0.url: must begin with http:// or"),
    ("rollback: {webhooks: [{url: 'https://'}]}", "rollback.webhooks.0.url: names no host"),
    (
        f"providers: {{{BOTH}}}\nrollback: {{providers: {{vlm: {{}}}}}}",
        "rollback.providers.vlm: 'vlm' is not a configured provider; did you mean vllm? choices: ollama, vllm",
    ),
    (
        "models: {'qwen3:8b': {}}\nrollback: {models: {'qwen3:8': {}}}",
        "rollback.models.qwen3:8: 'qwen3:8' is not a configured model; did you mean qwen3:8b? choices: qwen3:8b",
    ),
    (
        "rollback: {components: {synthesis: {latency_p95: 1}}}",
        "rollback.components.synthesis.latency_p95: unknown key; did you mean latency_p95_ms",
    ),
    (
        "rollback: {components: {'a b': {}}}",
        "rollback.components.a b",
    ),
    ("rollback: {providers: {vllm: {webhooks: []}}}", "rollback.providers.vllm.webhooks: unknown key"),
    ("rollback: {min_requests: many}", "rollback.min_requests: must be a valid integer"),
    ("timeouts: {idle_s: null}", "timeouts.idle_s: must be a valid number"),
    ("timeouts: {connect_s: .inf}", "timeouts.connect_s: must be a finite number"),
    ("providers: {ollama: {max_inflight: 0}}", "providers.ollama.max_inflight: must be greater than or equal to 1"),
    ("providers: {ollama: {queue_s: 0}}", "providers.ollama.queue_s: must be greater than 0"),
    (
        f"gateway: {{api_keys: [{{id: a, sha256: {SHA}, scopes: [read]}}, {{id: b, sha256: {SHA}, scopes: [admin]}}]}}",
        "gateway.api_keys.1.sha256: is there twice: one key has one id and one list of scopes",
    ),
    (
        f"gateway: {{api_keys: [{{id: admin-token, sha256: {SHA}, scopes: [read]}}]}}",
        "gateway.api_keys.0.id: 'admin-token' is no name for a key",
    ),
    ("gateway: {allowed_hosts: ['*']}", "gateway.allowed_hosts: must be a host name or an address"),
    ("gateway: {cors_origins: ['null']}", "gateway.cors_origins.0: must be an origin with its scheme"),
    (
        "models: {nomic-embed-text: {fallbacks: [qwen3]}}",
        "models.nomic-embed-text.fallbacks: an embedding model has none: vectors of two models never mix",
    ),
    (
        "providers: {vllm: {native_chat: true}}",
        "providers.vllm.native_chat: is a setting of the kind ollama, and vllm is vllm",
    ),
    (
        "providers: {vllm: {own_loads: false}}",
        "providers.vllm.own_loads: is a setting of the kind ollama, and vllm is vllm",
    ),
    ("retries: true", "retries: must be a number"),
    ("retries: -1", "retries: must be greater than or equal to 0"),
    ("shadow: {capture: all}", "shadow.capture: must be one of 'none', 'hash' or 'text'"),
    ("gateway: {port: 70000}", "gateway.port: must be less than or equal to 65535"),
    ("gateway: {log_level: LOUD}", "gateway.log_level: must be one of 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
    ("gateway: {cors_origins: ['*']}", "gateway.cors_origins.0: must name each origin"),
    ("gateway: {api_keys: [sk-1]}", "gateway.api_keys.0: must be a mapping"),
    (
        f"gateway: {{api_keys: [{KEY.replace('read', 'root')}]}}",
        "gateway.api_keys.0.scopes.0: must be one of",
    ),
    ("store: postgres://h/x", "store: must begin with sqlite://, redis://, rediss://, unix://, memory://"),
    ("models: {a: {vllm: {name: b, thinking: yes}}}", "models.a.vllm.thinking: must be one of 'enable_thinking'"),
    ("models: {a: {vllm: {thinking: thinking}}}", "models.a.vllm.name: is required"),
    ("models: {a: {defaults: {top_p: 0}}}", "models.a.defaults.top_p: must be greater than 0"),
    ("routing: {components: {'a b': share}}", "routing.components.a b: must match pattern"),
    ("routing: {component_rules: [{model: x}]}", "routing.component_rules.0.component: is required"),
    ("routing: {component_rules: [{component: x}]}", "routing.component_rules.0: must say model, operation, or both"),
    ("providers: [ollama]", "providers: must be a mapping"),
    ("providers: {ollama: {base_url: 'ftp://h'}}", "providers.ollama.base_url: must begin with http:// or https://"),
    ("providers: {ollama: {base_url: 'http://u:p@h'}}", "providers.ollama.base_url: must not hold a user name"),
    ("providers: {ollama: {base_url: 'http://h:port'}}", "providers.ollama.base_url: is not a URL"),
    ("{shadow: true}", "shadow: must be a mapping"),
    ("baseline: 2020-01-01", "baseline: must be text, a number"),
    # what must hold between settings
    ("baseline: olama", "baseline: 'olama' is not a configured provider; did you mean ollama? choices: ollama, vllm"),
    ("candidate: vlm", "candidate: 'vlm' is not a configured provider; did you mean vllm?"),
    ("fallback: [ollama, cloud]", "fallback: 'cloud' is not a configured provider"),
    ("fallback: [ollama, ollama]", "fallback: names a provider twice"),
    ("shadow: {provider: vlm}", "shadow.provider: 'vlm' is not a configured provider"),
    ("candidate: ollama", "candidate: is 'ollama', as the baseline is"),
    ("routing: {components: {synthesis: vlm}}", "routing.components.synthesis: 'vlm' is neither a role nor"),
    ("{candidate: null, routing: {components: {a: candidate}}}", "routing.components.a: there is no candidate"),
    ("providers: {x: {base_url: 'a:1'}, y: {base_url: 'b:1'}}", "baseline: is required"),
    ("providers: {ollama: {kind: olama, base_url: 'a:1'}}", "providers.ollama.kind: 'olama' is not a kind of provider"),
    ("providers: {ollama: {}}", "providers.ollama.base_url: is required"),
    ("providers: {ollama: {base_url: 'a:1', endpoints: [{url: 'b:1'}]}}", "providers.ollama.base_url: give base_url"),
    (
        "providers: {ollama: {base_url: 'a:1'}, vllm: {base_url: 'http://a:1/v1'}}",
        "providers.vllm.base_url: http://a:1 is already providers.ollama.base_url",
    ),
    (
        "providers: {ollama: {endpoints: [{url: 'localhost:1'}, {url: '127.0.0.1:1'}]}}",
        "providers.ollama.endpoints.1.url",
    ),
    (
        "providers: {ollama: {base_url: 'localhost:8200'}}",
        "providers.ollama.base_url: http://localhost:8200 is our own address",
    ),
    (
        "{gateway: {host: 0.0.0.0, port: 9000}, providers: {ollama: {base_url: '127.0.0.1:9000'}}}",
        "providers.ollama.base_url",
    ),
    ("providers: {share: {kind: ollama, base_url: 'a:1'}}", "providers.share: is a word of ours"),
    ("providers: {'a b': {kind: ollama, base_url: 'a:1'}}", "providers.a b: a provider's name is made of"),
    (
        "providers: {ollama: {base_url: 'a:1', model_prefix: x/}}",
        "providers.ollama.model_prefix: is a setting of the kind litellm",
    ),
    (
        "providers: {ollama: {base_url: 'a:1', enabled: false}}",
        "providers.ollama.enabled: the baseline cannot be disabled",
    ),
    ("models: {a: {ollama: null}}", "models.a.ollama: the baseline must have every model"),
    ("models: {a: {fallbacks: [a]}}", "models.a.fallbacks: a model cannot be its own fallback"),
    ("models: {a: {aliases: [x]}, b: {aliases: [X]}}", "models: the name 'X' belongs to both 'a' and 'b'"),
    ("models: {a: {vllm: N}, b: {vllm: N}}", "models: the name 'N' belongs to both"),
    (
        f"gateway: {{api_keys: [{KEY}, {KEY}]}}",
        "gateway.api_keys.1.id: 'a' is there twice",
    ),
    # aliases
    ("{baseline: ollama, primary_provider: vllm}", "primary_provider: 'vllm' disagrees with baseline: 'ollama'"),
    (
        "{routing: {share: 0.1}, vllm_traffic_percentage: 0.2}",
        "vllm_traffic_percentage: 0.2 disagrees with routing.share: 0.1",
    ),
    ("{rollback: {error_rate: null}, rollback_error_rate: 0.1}", "rollback_error_rate: 0.1 disagrees"),
    ("{synthesis_provider: vllm, routing: {synthesis_provider: ollama}}", "synthesis_provider: 'ollama' disagrees"),
    ("model_fallbacks: [a]", "model_fallbacks: must be a mapping"),
    ("synthesis_provider: vlm", "synthesis_provider: routing.components.synthesis: 'vlm' is neither"),
    # the file itself
    ("baseline: a\nbaseline: b", "my.yaml:2: the key 'baseline' is there twice"),
    ("gateway: {port: 1, port: 2}", "my.yaml:1: the key 'port' is there twice"),
    ("- ollama", "my.yaml: must be a mapping of settings"),
    ("baseline: [", "my.yaml:1: not valid YAML"),
    ("baseline: !!python/name:os.system x", "baseline: must be text"),
    # variables
    ("baseline: ${MISSING}", "my.yaml:1: baseline: the environment variable MISSING is not set"),
    ("baseline: '${A:-${B}}'", "baseline: a ${ that is not a reference"),
    ("baseline: '${}'", "baseline: a ${ that is not a reference"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG, ids=[expected[:60] for _, expected in WRONG])
def test_a_wrong_configuration_is_refused_by_name(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), {}, "my.yaml")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("my.yaml")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("MEMOS_LLM_BASLINE", "ollama", "MEMOS_LLM_BASLINE: basline: unknown key; did you mean baseline"),
        ("MEMOS_LLM_GATEWAY__PROT", "1", "gateway.prot: unknown key; did you mean port"),
        ("MEMOS_LLM_GATEWAY__PORT", "http", "MEMOS_LLM_GATEWAY__PORT: gateway.port: must be a valid integer"),
        ("MEMOS_LLM_ROUTING__SHARE", "30", "for 30 per cent write 0.3"),
        ("MEMOS_LLM_VLLM_TRAFFIC_PERCENTAGE", "30", "MEMOS_LLM_VLLM_TRAFFIC_PERCENTAGE: routing.share: is a fraction"),
        ("MEMOS_LLM_MODELS", "{a: b", "MEMOS_LLM_MODELS: begins like JSON but is not"),
        ("OLLAMA_HOST", "http://h:port", "OLLAMA_HOST: is not a URL"),
        ("OLLAMA_HOST", "localhost:8200", "OLLAMA_HOST: providers.ollama.base_url: http://localhost:8200 is our own"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(variable: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(b"", {variable: value})
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "providers:\n  vllm: {api_key: ${VLLM_API_KEY}}",
        "providers:\n  vllm: {api_key: ${VLLM_API_KEY:-}, enabled: true}",
        "fallback: [${FALLBACK}]",
        "baseline: ${BASELINE: -x}",
    ],
)
def test_an_unquoted_variable_that_yaml_misreads_says_quote_it(text: str) -> None:
    with pytest.raises(ConfigError, match="quote it"):
        parse(text.encode(), {"VLLM_API_KEY": "k"}, "my.yaml")


def test_a_quoted_variable_is_no_reason_to_say_so() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(b'fallback: ["${A}"', {}, "my.yaml")
    assert "quote it" not in str(caught.value)


def test_the_line_of_a_nested_key_is_named() -> None:
    text = "baseline: ollama\nrouting:\n  share: 0\n  components:\n    synthesis: nobody\n"
    with pytest.raises(ConfigError, match=r"my\.yaml:5: routing\.components\.synthesis"):
        parse(text.encode(), {}, "my.yaml")


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(b"retries: -1\nstore: x\ngateway: {port: 0}\n", {}, "my.yaml")
    assert [line.split(":")[2].strip() for line in str(caught.value).splitlines()] == [
        "retries",
        "store",
        "gateway.port",
    ]


def test_bytes_that_are_not_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="not UTF-8"):
        parse(b"baseline: \xff\xfe", {}, "my.yaml")
