"""A whole run, tiny, with every process in its place. How fast anything is is not asserted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memos_llm.bench.__main__ import main
from memos_llm.bench.run import Plan, run
from memos_llm.bench.subjects import NotStarted, Program

TINY = Plan(rounds=1, requests=16, concurrency=4, streams=4, short=2, long=12, calls=8, pairs=1, turn=8, beside_s=0.1)


@pytest.mark.slow
async def test_a_run_measures_every_unit_and_leaves_nothing_behind() -> None:
    cores, notes = os.sched_getaffinity(0), list[str]()
    report = await run(TINY, max_ratio=1e9, note=notes.append)
    dear = {figure.unit for figure in report.figures if figure.limit_us is not None}
    assert dear == {"guard, request", "guard, call in process"}
    assert {figure.unit for figure in report.figures if figure.limited} == {"request", "SSE event"}
    assert all(len(figure.ratios) == TINY.rounds for figure in report.figures)
    (samples,) = report.rounds
    of = {(sample.subject, sample.phase): sample for sample in samples}
    assert of["gateway", "requests"].answers == 2 * TINY.requests
    assert of["gateway", "long"].events == of["passthrough", "long"].events == 2 * TINY.streams * (TINY.long + 3)
    for phase in ("guard-requests", "guard-calls"):
        assert {of[subject, phase].answers for subject in ("guarded", "unguarded")} == {2 * TINY.turn}
        assert of["guarded", f"{phase}-beside"].answers >= TINY.turn
        assert of["guarded", f"{phase}-beside"].cpu_ns > 0
    assert of["direct", "requests"].cpu_ns == 0 < of["gateway", "requests"].cpu_ns
    assert os.sched_getaffinity(0) == cores
    assert notes[-1] == "round 1 of 1"


def test_a_program_that_ends_at_once_is_named_with_its_last_words(tmp_path: Path) -> None:
    with (
        Program("upstream", ["-c", "raise SystemExit('no such port')"], tmp_path) as program,
        pytest.raises(NotStarted, match=r"the upstream ended[\s\S]*no such port"),
    ):
        program.line()


def test_cpu_time_counts_every_thread_of_a_program(tmp_path: Path) -> None:
    busy = "import threading; t = threading.Thread(target=sum, args=(range(3_000_000),)); t.start(); t.join()"
    with Program("busy", ["-c", f"print(1); {busy}; print(2); input()"], tmp_path) as program:
        program.line()
        before = program.cpu_ns()
        program.line()
        assert program.cpu_ns() - before > 5_000_000  # 3 million additions take more than 5 ms on anything


def test_help_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "1 over one" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_a_number_of_rounds_that_is_none_is_refused(rounds: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--rounds", rounds])


def test_importing_the_bench_loads_neither_gateway_nor_library() -> None:
    code = "import sys, memos_llm.bench.run; print([m for m in sys.modules if 'gateway' in m or 'library' in m])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
