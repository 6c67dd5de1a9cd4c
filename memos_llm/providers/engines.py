"""What vLLM's `/metrics` tells of its engines, and whether they stand still.

A hung engine shows on no other probe: `/health` stays 200. Its numbers come from the engine's own steps, so that in a
hang all of them keep their last value, while requests run. That a single counter stands still means less: the one of
engine steps counts no chunk of a long prompt as long as nothing is generated, but the use of the KV cache grows with
each chunk. So an engine stands still when *everything* that it counts does. Facts: vLLM 0.8 to 0.33; seen on 0.32 with
its engine stopped by a signal, and with a prompt of 39 chunks.

Numbers that nobody moves prove nothing by themselves (the last request may have left without a further step): a look
counts only if a request of ours was there since the last one, and no content came. A sleeping engine stands still
because it was told to.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping

from memos_llm.core.events import Load

MAX_PAGE_BYTES = 2_097_152  # a page of many adapters is some 100 kB; a longer one is not read
STILL_LOOKS = 3  # in a row, and routing takes the endpoint for dead, as it does after so many silent probes
APART_S = 2.0  # a step of the engine may well take as long
RETRY_S = 60.0  # then it is tried again, should its numbers be all that is left of a request that has gone

_NEWER = {
    "num_requests_running": "running",
    "num_requests_waiting": "waiting",
    "kv_cache_usage_perc": "kv",
    "prefix_cache_queries_total": "queries",
    "prefix_cache_hits_total": "hits",
    "iteration_tokens_total_count": "steps",
    "generation_tokens_total": "generated",
    "prompt_tokens_total": "read",
}
_OLDER = {  # to 0.11; where a release shows both, the newer one speaks
    "gpu_cache_usage_perc": "kv",
    "gpu_prefix_cache_queries_total": "queries",
    "gpu_prefix_cache_hits_total": "hits",
}
_READ = "|".join((*_NEWER, *_OLDER, "engine_sleep_state")).encode()
_LINE = re.compile(rb"^vllm:(%s)(?:\{([^}\n]*+)\})?[ \t]+(\S+)" % _READ, re.MULTILINE)
_ENGINE = re.compile(rb'(?:^|,)engine="([^"\\]{0,32})"')
_AWAKE = b'sleep_state="awake"'
MOST_ENGINES = 1_024
MOST = 1e15  # a count beyond this is none

Counts = Mapping[str, float]
Still = tuple[tuple[str, float], ...]
"""All that one engine counts."""


class Page:
    """The engines of one server, by their label; a release without that label has one engine."""

    def __init__(self, engines: Mapping[str, Counts]) -> None:
        self._engines = engines

    def load(self) -> Load:
        engines = self._engines.values()
        return Load(
            running=_sum(engines, "running"),
            waiting=_sum(engines, "waiting"),
            kv_cache=min(1.0, max((counts.get("kv", 0.0) for counts in engines), default=0.0)),
            steps=sum(int(counts.get("steps", counts.get("generated", 0.0))) for counts in engines),
            prefix_queries=_sum(engines, "queries"),
            prefix_hits=_sum(engines, "hits"),
        )

    def busy(self) -> Mapping[str, Still]:
        """The engines that run something and are awake."""
        return {
            name: tuple(sorted(counts.items()))
            for name, counts in self._engines.items()
            if counts.get("running", 0.0) > 0 and counts.get("awake", 1.0) > 0
        }


def read_page(text: bytes) -> Page | None:
    """None: it tells of no engine (another server, metrics switched off, a page without measure)."""
    if len(text) > MAX_PAGE_BYTES:
        return None
    newer: dict[str, dict[str, float]] = {}
    older: dict[str, dict[str, float]] = {}
    for engine, name, value in _samples(text):
        if engine not in newer and len(newer) >= MOST_ENGINES:
            return None
        counts = newer.setdefault(engine, {})
        if name in _OLDER:
            counts, key = older.setdefault(engine, {}), _OLDER[name]
        else:
            key = _NEWER.get(name, name)
        counts[key] = counts.get(key, 0.0) + value
    found = {engine: {**older.get(engine, {}), **counts} for engine, counts in newer.items()}
    told = {engine: counts for engine, counts in found.items() if "running" in counts}
    return Page(told) if told else None


def _samples(text: bytes) -> Iterator[tuple[str, str, float]]:
    """Engine, name and value of what is read here."""
    for match in _LINE.finditer(text):
        name, labels = match[1].decode(), match[2] or b""
        if name == "engine_sleep_state":
            if _AWAKE not in labels:
                continue
            name = "awake"
        try:
            value = float(match[3])
        except ValueError:
            continue
        if math.isfinite(value) and 0 <= value <= MOST:
            engine = _ENGINE.search(labels)
            yield engine[1].decode("latin-1") if engine else "", name, value


def _sum(engines: Iterable[Counts], name: str) -> int:
    return sum(int(counts.get(name, 0.0)) for counts in engines)


class Stillness:
    """One endpoint's engines from look to look.

    Attributes:
        looks: in a row that found one standing still.
    """

    def __init__(self) -> None:
        self.looks = 0
        self._before: Mapping[str, Still] = {}
        self._at = self._waited_at = -math.inf
        self._turn = 0
        self._found = False

    def look(self, busy: Mapping[str, Still], *, in_flight: bool, turn: int, content_at: float, now: float) -> bool:
        """Whether an engine stands still: it says the same as the last time. Of looks that are close to each other
        the first one speaks.

        Args:
            in_flight: a request of ours is there. turn: changes with every one that is sent there.
            content_at: when any of them last got content, on the clock of `now`.
        """
        if now - self._at < APART_S:
            return self._found
        still = any(self._before.get(engine) == counts for engine, counts in busy.items())
        waited = (in_flight or turn != self._turn) and content_at < self._at
        self._before, self._turn, self._at = busy, turn, now
        if still and waited:
            self.looks, self._waited_at = self.looks + 1, now
        elif not still or self.looks < STILL_LOOKS or now - self._waited_at >= RETRY_S:
            self.looks = 0
        # else: nothing is sent there any more, and nothing has changed
        self._found = self.looks > 0
        return self._found
