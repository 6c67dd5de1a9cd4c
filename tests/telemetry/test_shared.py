"""The metrics of several workers are one exposition: counted together, whoever is asked, also after one was killed."""

import os
import resource
import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from test_metrics import ATTEMPT, PROBED, changed, ended, flags

from memos_llm.core.events import BreakerChanged, ConfigRejected, Event, ProbeEnded
from memos_llm.core.flags import Scope
from memos_llm.telemetry.labels import OTHER, Slots
from memos_llm.telemetry.metrics import MAX_COMPONENTS, Metrics
from memos_llm.telemetry.shared import Shared, leave

Life = Callable[[Metrics], None]


def hears(*events: Event) -> Life:
    def live(metrics: Metrics) -> None:
        for event in events:
            metrics.on_event(event)

    return live


class Workers:
    """Each lives in a process of its own, dies at once, and leaves what it told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def live(self, place: str, life: Life) -> str:
        """What it shows at its end."""
        context = get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=self._be, args=(place, life, theirs))
        process.start()
        theirs.close()
        shown: str = ours.recv()
        process.join()
        return shown

    def _be(self, place: str, life: Life, theirs: Connection) -> None:
        metrics = Metrics(candidate="vllm", shared=Shared(folder=self.folder, place=place, workers=3))
        life(metrics)
        theirs.send(metrics.render()[0].decode())
        os.kill(os.getpid(), 9)


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(tmp_path)


def lines(shown: str, *names: str) -> Sequence[str]:
    prefixes = tuple(f"memos_llm_{name}" for name in names)
    return [line.removeprefix("memos_llm_") for line in shown.splitlines() if line.startswith(prefixes)]


def total(shown: str, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in lines(shown, name))


def test_counters_and_histograms_add_up_whoever_is_asked(workers: Workers) -> None:
    workers.live("1", hears(ended(), ended()))
    workers.live("2", hears(ended(component="other-one")))
    shown = workers.live("3", hears(ended()))
    assert total(shown, "requests_total{") == 4
    assert total(shown, "request_duration_seconds_count") == 4
    assert total(shown, "request_duration_seconds_sum") == 20
    assert total(shown, "tokens_total{") == 4 * 30


def test_a_successor_counts_on_and_what_the_dead_one_was_is_not_shown(workers: Workers) -> None:
    workers.live("1", hears(ended(), ATTEMPT))
    assert lines(workers.live("2", hears(ATTEMPT)), "inflight") == ['inflight_requests{provider="ollama"} 2.0']
    leave(workers.folder, "1")
    shown = workers.live("1", hears(ended()))
    assert lines(shown, "inflight") == ['inflight_requests{provider="ollama"} 1.0']
    assert total(shown, "requests_total{") == 2
    files = sorted(file.name for file in workers.folder.glob("counter_*"))
    assert files == ["counter_1.db", "counter_2.db"]  # one a worker, however often it dies


def test_gauges_are_merged_as_their_meaning_wants(workers: Workers) -> None:
    down = ProbeEnded(provider="vllm", endpoint="http://v:1", up=False)
    opened = BreakerChanged(provider="vllm", endpoint="http://v:1", state="open")
    workers.live("1", hears(PROBED, opened, flags(5), ConfigRejected(path="f", errors=("e",))))
    shown = workers.live("2", hears(PROBED, down, flags(4)))
    assert lines(shown, "flags_revision") == ["flags_revision 4.0"]  # all follow at least this one
    assert lines(shown, "config_stale") == ["config_stale 1.0"]  # for one of them
    assert lines(shown, "provider_up") == ['provider_up{endpoint="http://v:1",provider="vllm"} 0.0']  # the last word
    assert lines(shown, "share_ratio") == ['share_ratio{component="*",provider="vllm"} 0.3']
    assert 'breaker_state{endpoint="http://v:1",provider="vllm",state="open"} 1.0' in lines(shown, "breaker")
    assert "pid=" not in shown


def test_what_is_gone_is_not_shown(workers: Workers) -> None:
    life = hears(flags(1, synthesis=Scope(share_ppm=1)), PROBED, flags(2), changed(endpoints=()))
    shown = workers.live("1", life)
    assert lines(shown, "share_ratio", "provider_up", "breaker") == ['share_ratio{component="*",provider="vllm"} 0.3']
    again = workers.live("1", hears(flags(3, synthesis=Scope(share_ppm=500_000)), PROBED))
    assert 'share_ratio{component="synthesis",provider="vllm"} 0.5' in lines(again, "share_ratio")
    assert lines(again, "provider_up") == ['provider_up{endpoint="http://v:1",provider="vllm"} 1.0']


@pytest.mark.parametrize("sharers", [1, 2, 3, 7])
def test_the_slots_of_all_workers_together_are_bounded_and_configured_names_keep_theirs(sharers: int) -> None:
    every = [Slots(MAX_COMPONENTS, sharers) for _ in range(sharers)]
    for slots in every:
        slots.reserve(f"configured-{number}" for number in range(20))
    seen = {slots[f"made-up-{at}-{number}"] for at, slots in enumerate(every) for number in range(500)}
    kept = {slots[f"configured-{number}"] for slots in every for number in range(20)}
    assert len(seen - {OTHER}) <= MAX_COMPONENTS - 20
    assert len(seen - {OTHER}) > MAX_COMPONENTS - 20 - sharers
    assert kept == {f"configured-{number}" for number in range(20)}


MANY = [f"{n:x<3000}" for n in range(25)]  # more than a new file has room for


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere files have holes")
def test_no_file_has_holes_that_a_full_disk_could_not_fill(workers: Workers, tmp_path: Path) -> None:
    workers.live("1", hears(*(ended(component=component) for component in MANY)))
    files = list(tmp_path.glob("*.db"))
    assert max(file.stat().st_size for file in files) > 65_536  # one has grown
    assert all(file.stat().st_blocks * 512 >= file.stat().st_size for file in files)


def test_where_no_file_can_grow_only_what_is_new_is_not_counted(workers: Workers) -> None:
    def live(metrics: Metrics) -> None:
        metrics.on_event(ended(component="known"))
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
        assert not all([_counted(metrics, component) for component in MANY])
        assert _counted(metrics, "known")
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert all(_counted(metrics, component) for component in MANY)

    shown = workers.live("1", live)
    counts = lines(shown, "requests_total{")
    assert len(counts) == len(MANY) + 1
    assert [line.rpartition(" ")[2] for line in counts if 'component="known"' in line] == ["2.0"]


def _counted(metrics: Metrics, component: str) -> bool:
    try:
        metrics.on_event(ended(component=component))
    except OSError:
        return False
    return True
