"""vLLM's Prometheus page: the names and labels of the emulated release, from the engine's counts.

Facts: names, labels, buckets and their lives from the sources of 0.8.5 to 0.33.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memos_llm.emulators.vllm_engine import BLOCK_SIZE, Engine
from memos_llm.emulators.vllm_versions import Release

_NEVER = (
    "num_preemptions",
    "external_prefix_cache_queries",
    "external_prefix_cache_hits",
    "mm_cache_queries",
    "mm_cache_hits",
)
_ESTIMATED = ("estimated_flops_per_gpu", "estimated_read_bytes_per_gpu", "estimated_write_bytes_per_gpu")
"""Counters of what is not emulated; the second since 0.32."""
UNCOUNTED = ("/health", "/metrics", "/load", "/ping", "/version")
"""Paths that the HTTP metrics leave out."""
FINISHED = ("stop", "length", "abort", "error", "repetition")


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page says besides the engine's counts.

    Args:
        model: the first served name. loras: adapters that can run. handled: HTTP requests by path, method and
            status class.
    """

    model: str
    release: Release
    loras: Sequence[str]
    handled: Mapping[tuple[str, str, str], int]


def exposition(engine: Engine, shown: Shown) -> bytes:
    """The `/metrics` page."""
    page = _Page(shown, engine.since)
    _gauges(page, engine, shown.release)
    _counters(page, engine, shown.release)
    for name, histogram in engine.histograms.items():
        for spelling in _spellings(name, shown.release):
            page.histogram(spelling, histogram.lines(f"vllm:{spelling}", page.labels))
    _information(page, engine, shown)
    return ("\n".join(page.lines) + "\n").encode()


class _Page:
    def __init__(self, shown: Shown, since: float) -> None:
        self._since = since  # prometheus_client tells when a counter began
        self.model = f'model_name="{shown.model}"'
        self.labels = self.model + (',engine="0"' if shown.release.has("engine label") else "")
        self.lines: list[str] = []

    def gauge(self, name: str, value: float) -> None:
        self.lines += [*_header(name, "gauge"), f"vllm:{name}{{{self.labels}}} {float(value)}"]

    def counter(self, name: str, value: float) -> None:
        self.lines += [*_header(name, "counter"), f"vllm:{name}_total{{{self.labels}}} {float(value)}"]
        self.created(name, [self.labels])

    def histogram(self, name: str, lines: Iterable[str]) -> None:
        self.lines += [*_header(name, "histogram"), *lines]
        self.created(name, [self.labels])

    def created(self, name: str, labels: Sequence[str]) -> None:
        self.lines += _header(f"{name}_created", "gauge")
        self.lines += [f"vllm:{name}_created{{{shown}}} {self._since}" for shown in labels]

    def split(self, name: str, kind: str, label: str, values: Mapping[str, float], labels: str | None = None) -> None:
        self.lines += _header(name, kind)
        shown = f"vllm:{name}_total" if kind == "counter" else f"vllm:{name}"
        told = {f'{labels or self.labels},{label}="{key}"': value for key, value in values.items()}
        self.lines += [f"{shown}{{{inside}}} {float(value)}" for inside, value in told.items()]
        if kind == "counter":
            self.created(name, list(told))


def _spellings(name: str, release: Release) -> list[str]:
    if name != "inter_token_latency_seconds":
        return [name]
    spellings = {
        "inter_token_latency metric": "inter_token_latency_seconds",
        "time_per_output_token metric": "time_per_output_token_seconds",
    }
    return [spelling for behaviour, spelling in spellings.items() if release.has(behaviour)]


def _gauges(page: _Page, engine: Engine, release: Release) -> None:
    now = engine.gauges()
    page.gauge("num_requests_running", now.running)
    page.gauge("num_requests_waiting", now.waiting)
    for behaviour, name in (("kv_cache metrics", "kv_cache_usage_perc"), ("gpu_ metrics", "gpu_cache_usage_perc")):
        if release.has(behaviour):
            page.gauge(name, now.kv)
    if release.has("waiting by reason metric"):
        page.split("num_requests_waiting_by_reason", "gauge", "reason", {"capacity": now.waiting, "deferred": 0})
    page.split("engine_sleep_state", "gauge", "sleep_state", {"awake": 1, "weights_offloaded": 0, "discard_all": 0})


def _counters(page: _Page, engine: Engine, release: Release) -> None:
    for name in ("prompt_tokens", "generation_tokens"):
        page.counter(name, getattr(engine, name))
    for behaviour, prefix in (("kv_cache metrics", ""), ("gpu_ metrics", "gpu_")):
        if release.has(behaviour):
            page.counter(f"{prefix}prefix_cache_queries", engine.prompt_tokens)
            page.counter(f"{prefix}prefix_cache_hits", engine.cached_tokens)
    for name in _NEVER:
        page.counter(name, 0)
    for name in _ESTIMATED if release.has("estimates metrics") else ():
        page.counter(name, 0)
    if release.has("prompt_tokens_recomputed metric"):
        page.counter("prompt_tokens_recomputed", 0)
    if release.has("prompt sources metrics"):
        _sources(page, engine)
    _ends(page, engine, release)


def _ends(page: _Page, engine: Engine, release: Release) -> None:
    newer = {"error": "finish reason error", "repetition": "finish reason repetition"}
    reasons = [reason for reason in FINISHED if reason not in newer or release.has(newer[reason])]
    finished = {reason: engine.finished[reason] for reason in reasons}
    page.split("request_success", "counter", "finished_reason", finished)
    if release.has("admission_rejections metric"):
        rejected = {"max_num_queued_reqs": engine.rejected, "max_num_queued_tokens": 0}
        page.split("admission_rejections", "counter", "reason", rejected, page.model)


def _sources(page: _Page, engine: Engine) -> None:
    page.counter("prompt_tokens_cached", engine.cached_tokens)
    sources = {"local_compute": engine.prompt_tokens - engine.cached_tokens, "local_cache_hit": engine.cached_tokens}
    page.split("prompt_tokens_by_source", "counter", "source", {**sources, "external_kv_transfer": 0})
    cached = dict.fromkeys(("host", "disk", "p2p", "external_unspecified"), 0)
    page.split("prompt_tokens_cached_by_source", "counter", "source", {"device": engine.cached_tokens, **cached})


def _information(page: _Page, engine: Engine, shown: Shown) -> None:
    page.lines += _header("cache_config_info", "gauge")
    label = ',engine="0"' if shown.release.has("engine label") else ""
    sizes = f'block_size="{BLOCK_SIZE}"{label},num_gpu_blocks="{engine.kv_tokens // BLOCK_SIZE}"'
    page.lines.append(f"vllm:cache_config_info{{{sizes}}} 1.0")
    page.lines += ["# HELP http_requests_total As in vLLM.", "# TYPE http_requests_total counter"]
    for (path, method, status), count in shown.handled.items():
        handled = f'handler="{path}",method="{method}",status="{status}"'
        page.lines.append(f"http_requests_total{{{handled}}} {float(count)}")
    if shown.loras:
        page.lines += _header("lora_requests_info", "gauge")
        running = f'max_lora="{len(shown.loras)}",running_lora_adapters="",waiting_lora_adapters=""'
        page.lines.append(f"vllm:lora_requests_info{{{running}}} 1.0")


def _header(name: str, kind: str) -> list[str]:
    shown = f"vllm:{name}_total" if kind == "counter" else f"vllm:{name}"
    return [f"# HELP {shown} As in vLLM.", f"# TYPE {shown} {kind}"]
