"""What happens when: a function of the seed and the length alone, so that a failing run can be played again.

Two lanes run side by side: what breaks, and what is steered. Every kind comes once before any comes twice.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from chaos.truth import ANY, Effect

FAULTS: Mapping[str, Effect] = {
    "refuse": ANY,  # it resets what is open, too
    "hang": Effect.BEFORE,
    "hang_after_headers": Effect.BEFORE,
    "slow_first_byte:seconds=0.8": Effect.NOTHING,
    "slow_first_byte:seconds=6": Effect.BEFORE,
    "drift:seconds=20": Effect.NOTHING,
    "garbage": Effect.BEFORE,
    "status:code=500": Effect.BEFORE,
    "status:code=503": Effect.BEFORE,
    "status:code=429": Effect.BEFORE,
    "status:code=502,rate=0.5": Effect.BEFORE,
    "status:code=500,all=true": Effect.BEFORE,
    "hang:all=true": Effect.BEFORE,
    "model_missing": Effect.BEFORE,
    "queue_full": Effect.BEFORE,
    "cut_before_content": Effect.BEFORE,
    "cut_before_content:where=preamble,reset=true": Effect.BEFORE,
    "cut_mid_stream": ANY,
    "cut_mid_stream:after=0,reset=true,rate=0.5": ANY,
    "stall_mid_stream": ANY,
    "stall_mid_stream:after=0": ANY,
    "error_mid_stream": ANY,
    "error_mid_stream:after=0": ANY,
    "eof_without_done": ANY,
    "eof_without_done:after=0,rate=0.7": ANY,
    "malformed": ANY,
    "malformed:after=0": ANY,
}
"""On both engines: what each may do to an answer."""
OLLAMA_FAULTS: Mapping[str, Effect] = {
    "cold_load:seconds=0.4,count=1": Effect.NOTHING,
    "cold_load:seconds=1": Effect.BEFORE,  # each request loads it again, and they wait for each other
    "runner_crash": ANY,
    "runner_crash:after=0": ANY,
}
VLLM_FAULTS: Mapping[str, Effect] = {
    "engine_dead": ANY,
    "hang_engine": ANY,
    "finish_abort": ANY,
    "no_auto_tools": Effect.BEFORE,
    "no_usage": Effect.NO_USAGE,
    "repeat_tool_metadata": Effect.NOTHING,
}
SERVERS = ("ollama", "vllm-1", "vllm-2", "vllm-embed")
SHARES = (0.0, 0.1, 0.3, 0.5, 0.5, 0.8, 1.0)
SCOPES = ("*", "*", "analysis", "synthesis", "evaluation")
LENGTH_S = (0.6, 3.0)  # of a fault
GAP_S = (0.8, 2.2)  # from fault to fault
STEER_GAP_S = (1.5, 3.5)
SHORT_STOP_S, LONG_STOP_S = 1.0, 5.0  # below and above every limit of the configuration
RELOADED_S = 2.5  # a configuration file stays for so long, and so does the good one after it
QUIET_S = 1.0  # at the start


@dataclass(frozen=True)
class Step:
    """One thing to do, `at_s` seconds into the run.

    Attributes:
        act: what (a key of `breaking.ACTS` or `steering.ACTS`). targets: to whom. spec: how. for_s: for how long.
    """

    at_s: float
    act: str
    targets: tuple[str, ...] = ()
    spec: str = ""
    for_s: float = 0.0

    def __str__(self) -> str:
        words = (self.act, "+".join(self.targets), self.spec, f"{self.for_s:.1f} s" if self.for_s else "")
        return " ".join(word for word in words if word)


def breaks(seed: int, seconds: float) -> list[Step]:
    """What breaks."""
    rng = random.Random(f"{seed}/breaks")
    return list(_row(rng, seconds, GAP_S, _bags(rng)))


def steers(seed: int, seconds: float) -> list[Step]:
    """What is steered."""
    rng = random.Random(f"{seed}/steers")
    return list(_row(rng, seconds, STEER_GAP_S, _orders(rng)))


def _row(
    rng: random.Random,
    seconds: float,
    gaps: tuple[float, float],
    steps: Iterator[tuple[str, tuple[str, ...], str, float]],
) -> Iterator[Step]:
    at_s = QUIET_S + rng.uniform(*gaps)
    while at_s < seconds:
        act, targets, spec, for_s = next(steps)
        yield Step(round(at_s, 3), act, targets, spec, round(min(for_s, max(0.3, seconds - at_s)), 3))
        at_s += rng.uniform(*gaps)


def _bags(rng: random.Random) -> Iterator[tuple[str, tuple[str, ...], str, float]]:
    """Bag after bag, each with everything in it, in an order of its own."""
    while True:
        bag = [*_faults(rng), *_blows(rng)]
        rng.shuffle(bag)
        yield from bag


def _faults(rng: random.Random) -> Iterator[tuple[str, tuple[str, ...], str, float]]:
    for spec in [*FAULTS, *OLLAMA_FAULTS]:
        yield "fault", ("ollama",), spec, rng.uniform(*LENGTH_S)
    for spec in [*FAULTS, *VLLM_FAULTS]:
        targets = rng.choice((("vllm-1",), ("vllm-2",), ("vllm-1", "vllm-2"), ("vllm-1", "vllm-2", "vllm-embed")))
        yield "fault", targets, spec, rng.uniform(*LENGTH_S)


def _blows(rng: random.Random) -> Iterator[tuple[str, tuple[str, ...], str, float]]:
    for server in SERVERS:
        yield "kill", (server,), "", rng.uniform(0.2, 2.0)
        yield "freeze", (server,), "", SHORT_STOP_S
    yield "kill", ("vllm-1", "vllm-2"), "", rng.uniform(0.2, 2.0)
    yield "freeze", ("ollama",), "", LONG_STOP_S
    yield "freeze", ("vllm-1", "vllm-2"), "", LONG_STOP_S
    for _ in range(3):
        yield "kill-worker", (), str(rng.randrange(2)), 0.0
        yield "disk-full", (), "", rng.uniform(1.0, 4.0)
        yield "clock", (), str(rng.choice((-86400, -3600, -60, -5, 5, 60, 3600, 86400))), rng.uniform(1.0, 4.0)
    for _ in range(2):
        yield "freeze-worker", (), str(rng.randrange(2)), SHORT_STOP_S


def _orders(rng: random.Random) -> Iterator[tuple[str, tuple[str, ...], str, float]]:
    while True:
        bag: list[tuple[str, tuple[str, ...], str, float]] = [
            ("shift", (rng.choice(SCOPES),), str(share), 0.0) for share in SHARES
        ]
        bag += [("shift", ("embedding",), share, 0.0) for share in ("1", "0")]
        bag += [("rollback", (rng.choice(SCOPES),), "", rng.uniform(1.0, 3.0)) for _ in range(2)]
        bag += [("reload", (), spec, RELOADED_S) for spec in CONFIGS]
        rng.shuffle(bag)
        yield from bag


CONFIGS: Sequence[str] = ("pin", "one-replica", "other-limits", "broken", "unknown-key", "empty", "cut-short")
"""What the configuration file is replaced by, for a while: three that are taken, four that are refused."""
