"""The histograms that a vLLM engine keeps, with their buckets (vLLM 0.33 source)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_ITL_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_LATENCY_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_FEW = (1, 2, 5, 10, 20)


class Histogram:
    """A Prometheus histogram."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self._counts)

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Exposition lines without the header."""
        seen = 0
        for bound, count in zip([*(str(float(b)) for b in self._bounds), "+Inf"], self._counts, strict=True):
            seen += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {float(seen)}'
        yield f"{name}_count{{{labels}}} {float(seen)}"
        yield f"{name}_sum{{{labels}}} {self.total}"


def histograms() -> dict[str, Histogram]:
    """The engine's histograms, empty."""
    bounds: Mapping[tuple[float, ...], Sequence[str]] = {
        _TTFT_S: ["time_to_first_token_seconds"],
        _ITL_S: ["inter_token_latency_seconds", "request_time_per_output_token_seconds"],
        _LATENCY_S: [
            "e2e_request_latency_seconds",
            "request_queue_time_seconds",
            "request_prefill_time_seconds",
            "request_decode_time_seconds",
            "request_inference_time_seconds",
        ],
        _TOKENS: [
            "request_prompt_tokens",
            "request_generation_tokens",
            "request_max_num_generation_tokens",
            "request_params_max_tokens",
            "request_prefill_kv_computed_tokens",
        ],
        _FEW: ["request_params_n", "request_num_preemptions"],
        _STEP_TOKENS: ["iteration_tokens_total"],
    }
    return {name: Histogram(bound) for bound, names in bounds.items() for name in names}
