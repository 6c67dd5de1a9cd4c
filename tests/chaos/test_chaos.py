"""Chaos in the normal suite: a short run that must come out clean, and that the schedule is the seed's alone."""

import os
import sys
from pathlib import Path

import pytest

from chaos import schedule
from chaos.breaking import EFFECTS
from chaos.report import summary
from chaos.run import run
from memos_llm.emulators import FAULTS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who holds which connection")


def _say(text: str) -> None:
    print(text)


async def test_half_a_minute_of_chaos_leaves_nothing_unexplained(tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED", "20261121"))
    report = await run(seed, 20, 8, _say, tmp_path)
    assert not report.violations, summary(report, tmp_path)
    assert report.verdicts["right"] > 100
    assert sum(report.broke.values()) >= 10
    assert set(report.served) >= {"ollama", "vllm"}


@pytest.mark.slow
async def test_two_minutes_of_chaos_leave_nothing_unexplained(tmp_path: Path) -> None:
    report = await run(int(os.environ.get("CHAOS_SEED", "7")), 120, 12, _say, tmp_path)
    assert not report.violations, summary(report, tmp_path)


def test_the_schedule_is_the_seed_s_alone() -> None:
    for lane in (schedule.breaks, schedule.steers):
        assert lane(5, 60) == lane(5, 60)
        assert lane(5, 60) != lane(6, 60)
        assert [str(step) for step in lane(5, 30)[:-3]] == [str(step) for step in lane(5, 60)][: len(lane(5, 30)) - 3]


def test_ten_minutes_hold_every_fault_there_is() -> None:
    steps = schedule.breaks(1, 600)
    for engine, server in (("ollama", "ollama"), ("vllm", "vllm-1")):
        specs = {step.spec.partition(":")[0] for step in steps if step.act == "fault" and server in step.targets}
        assert specs == set(FAULTS[engine])
    assert {step.act for step in steps} >= {"kill", "freeze", "kill-worker", "freeze-worker", "disk-full", "clock"}
    assert {step.spec for step in steps if step.act == "fault"} == set(EFFECTS)
    assert {step.act for step in schedule.steers(1, 600)} == {"shift", "rollback", "reload"}
    assert {step.spec for step in schedule.steers(1, 600) if step.act == "reload"} == set(schedule.CONFIGS)
