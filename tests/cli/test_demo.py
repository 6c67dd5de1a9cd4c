"""The demo as a user runs it, in its quick form; that its verdict can be no; and that nothing outlives it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from scipy import stats

from memos_llm.cli.demo.checks import OUTSIDE, bounds, failures, rows, slots
from memos_llm.cli.demo.conversations import Asked, Heard, Session, opening, sessions, wrong
from memos_llm.cli.demo.stack import FAULT
from memos_llm.cli.demo.tally import Served, Stage, Tally
from memos_llm.cli.demo.watch import answered
from memos_llm.core.flags import PPM
from memos_llm.emulators import expected

LIMIT_S = 100.0
FOLDER = re.compile(r"MEMOS_LLM_CONFIG=(\S+)/memos_llm\.yaml")
START = "import sys; from pathlib import Path; from memos_llm.cli.demo import run; sys.exit(run({arguments}))"


class Running:
    """A demo under way, as a process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.said = ""

    def until(self, words: str) -> None:
        """Read on until a line has these words."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if words in line:
                return
        pytest.fail(f"it never said {words!r}:\n{self.said}")

    def end(self) -> int:
        """The exit code, once everything is said."""
        out, _ = self.process.communicate(timeout=LIMIT_S)
        self.said += out
        return self.process.returncode

    @property
    def folder(self) -> Path:
        found = FOLDER.search(self.said)
        assert found is not None, self.said
        return Path(found[1])

    def children(self) -> dict[int, str]:
        """Process id → command line of everything that this demo started and that still lives."""
        mark = f"HOME={self.folder}".encode()
        living = {}
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (directory / "environ").read_bytes().split(b"\0"):
                    living[int(directory.name)] = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return living


@contextmanager
def demo(arguments: str = "quick=True", **environment: str) -> Iterator[Running]:
    with (
        TemporaryDirectory() as temporary,
        subprocess.Popen(
            [sys.executable, "-u", "-c", START.format(arguments=arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"TMPDIR": temporary} | environment,
        ) as process,
    ):
        try:
            yield Running(process)
        finally:
            process.terminate()
            process.communicate(timeout=LIMIT_S)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_no_client_sees_an_error_and_the_shares_are_exactly_the_splits(tmp_path: Path) -> None:
    with demo(f"quick=True, report=Path({str(tmp_path / 'report.json')!r})") as running:
        assert running.end() == 0, running.said
        assert running.children() == {}
        assert not running.folder.exists()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"], report["failures"]
    assert report["errors"] == 0
    assert [row["share_ppm"] for row in report["rows"]] == [0, 100_000, 300_000, 300_000, 300_000]
    for row in report["rows"]:
        assert row["talked"] == report["conversations"]
        assert row["observed"] == row["expected"]
        assert row["low"] <= row["observed"] <= row["high"]
    assert report["rows"][0]["by_candidate"] == 0
    assert report["rows"][2]["by_candidate"] > 0
    assert sum(report["gateway_counted"].values()) >= report["requests"]


@pytest.mark.slow
def test_killing_vllm_costs_no_answer_and_the_diversion_ends_by_itself(tmp_path: Path) -> None:
    with demo("quick=True, as_json=True, keep=True") as running:
        running.until("Try:")
        said = running.said
        gateway = re.search(r"gateway +(http://\S+)", said)
        assert gateway is not None
        with urllib.request.urlopen(f"{gateway[1]}/health", timeout=5) as answer:
            assert json.load(answer)["services"] == {"router": "healthy", "ollama": "healthy", "vllm": "healthy"}
        assert any(" serve " in command for command in running.children().values())
        running.process.send_signal(signal.SIGINT)
        assert running.end() == 0
        assert running.children() == {}
    report: dict[str, Any] = json.loads(said[said.index("{\n") : said.index("\n}\n") + 2])
    assert report["waiting_at_kill"] >= 1
    assert report["rescued"] >= report["waiting_at_kill"]
    killed, back = report["rows"][3], report["rows"][4]
    assert killed["by_candidate"] <= 2  # in flight when it stalled; of what came after, the demo's own verdict tells
    assert killed["fallbacks"] == report["rescued"]
    assert back["by_candidate"] > 0
    assert [one["reason"] for one in report["explained"]][:1] == ["diverted"]
    assert {one["arm"] for one in report["explained"]} == {"baseline", "candidate"}


@pytest.mark.slow
def test_an_error_that_a_client_sees_fails_the_demo() -> None:
    with demo(**{FAULT: "status:code=500,rate=0.3"}) as running:
        code = running.end()
        assert running.children() == {}
        assert "FAILED" in running.said
        assert "clients saw" in running.said
        assert f"logs: {running.folder}" in running.said
        assert (running.folder / "gateway.log").stat().st_size > 0
    assert code == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_leaves_nothing_behind(number: signal.Signals) -> None:
    with demo() as running:
        running.until("stage 1")
        assert len(running.children()) == 3
        running.process.send_signal(number)
        assert running.end() == 128 + number
        assert running.children() == {}
        assert not running.folder.exists()
        assert "Traceback" not in running.said


def test_a_gateway_that_dies_is_named_and_the_demo_fails() -> None:
    with demo() as running:
        running.until("stage 1")
        [gateway] = [pid for pid, command in running.children().items() if " serve " in command]
        os.kill(gateway, signal.SIGKILL)
        assert running.end() == 1
        assert "gateway ended by itself" in running.said
        assert running.children() == {}


def test_a_taken_port_is_said_and_another_one_used() -> None:
    with socket.socket() as taken, demo_with(taken) as running:
        running.until("stage 1")
        assert "(port 8200 is taken)" in running.said


@contextmanager
def demo_with(taken: socket.socket) -> Iterator[Running]:
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with suppress(OSError):  # somebody else has it: as good
        taken.bind(("127.0.0.1", 8200))
        taken.listen()
    with demo() as running:
        yield running


# --- the verdict ------------------------------------------------------------------------------------------------------

SALT = "ab" * 16


def talked(share_ppm: int = 3 * PPM // 10) -> Tally:
    """Every conversation answered once in one stage, all as it should be."""
    spoken = [*sessions("ollama", 100, Random(1)), *sessions("openai", 100, Random(2))]
    tally = Tally({session.id: session for session in spoken})
    tally.enter(Stage("a stage", share_ppm))
    tally.served = [served(session, number, share_ppm, tally) for number, session in enumerate(spoken)]
    tally.finish()
    return tally


def served(session: Session, number: int, share_ppm: int, tally: Tally) -> Served:
    moved = slots(tally, SALT)[session.id] < share_ppm
    arm, provider = ("candidate", "vllm") if moved else ("baseline", "ollama")
    return Served(
        stage=len(tally.stages) - 1,
        settled=True,
        number=number,
        app=session.app,
        session=session.id,
        started_s=number,
        ended_s=number + 0.1,
        provider=provider,
        arm=arm,
        reason="split",
        attempts=1,
    )


def verdict(tally: Tally) -> list[str]:
    return failures(tally, slots(tally, SALT))


def first(tally: Tally, arm: str) -> int:
    return next(i for i, one in enumerate(tally.served) if one.arm == arm)


def test_a_run_without_a_fault_passes() -> None:
    tally = talked()
    assert verdict(tally) == []
    [row] = rows(tally, slots(tally, SALT))
    assert (row.talked, row.requests, row.errors, row.observed) == (200, 200, 0, row.expected)
    assert row.low <= 60 <= row.high


def test_one_error_of_a_client_fails_it() -> None:
    tally = talked()
    tally.served[7] = replace(tally.served[7], problem="InternalServerError: 500")
    assert any("clients saw 1 error" in line for line in verdict(tally))


@pytest.mark.parametrize(("arm", "other"), [("candidate", "baseline"), ("baseline", "candidate")])
def test_one_conversation_on_the_wrong_arm_fails_it(arm: str, other: str) -> None:
    tally = talked()
    at = first(tally, arm)
    tally.served[at] = replace(tally.served[at], arm=other)
    assert any("wrong arm" in line for line in verdict(tally))


def test_one_conversation_that_flips_back_fails_it_even_while_a_share_is_being_changed() -> None:
    tally = talked()
    flipped = replace(tally.served[first(tally, "candidate")], settled=False, number=999, arm="baseline")
    tally.served.append(flipped)
    assert [line for line in verdict(tally) if "flipped back" in line]


def test_an_answer_of_the_other_provider_fails_it_unless_vllm_is_dead() -> None:
    tally = talked()
    at = first(tally, "candidate")
    tally.served[at] = replace(tally.served[at], provider="ollama")
    assert any("not answered by whom" in line for line in verdict(tally))
    tally.stages[0].dead = True
    tally.served = [replace(one, provider="ollama") for one in tally.served]
    assert verdict(tally) == []


def test_a_share_that_no_fair_split_would_have_fails_it() -> None:
    tally = talked()
    tally.stages[0].share_ppm = 0
    assert any("outside 0 to 0" in line for line in verdict(tally))


def test_a_conversation_that_never_spoke_fails_it() -> None:
    tally = talked()
    tally.served.pop()
    assert any("only 199 of 200" in line for line in verdict(tally))


@pytest.mark.parametrize("share_ppm", [0, 100_000, 300_000, 500_000, PPM])
@pytest.mark.parametrize("n", [1, 48, 200])
def test_the_bounds_are_the_binomial_ones(n: int, share_ppm: int) -> None:
    low, high = bounds(n, share_ppm)
    share = stats.binom(n, share_ppm / PPM)
    assert share.cdf(low - 1) <= OUTSIDE / 2 < share.cdf(low)
    assert share.sf(high) <= OUTSIDE / 2 < share.sf(high - 1)


# --- answers ----------------------------------------------------------------------------------------------------------


def heard(asked: Asked, provider: str, *, finished: bool = True, cut: int = 0) -> Heard:
    text = expected("vllm" if provider == "vllm" else "ollama", asked.messages, tools=asked.tools).text
    return Heard({"x-memos-provider": provider}, text[: len(text) - cut], (), finished, {}, ())


@pytest.fixture
def asked() -> Asked:
    return opening(sessions("openai", 1, Random(3))[0])


@pytest.mark.parametrize("provider", ["ollama", "vllm"])
def test_the_whole_answer_of_the_named_provider_is_right(asked: Asked, provider: str) -> None:
    assert wrong(asked, heard(asked, provider)) == ""


def test_a_cut_unfinished_or_foreign_answer_is_wrong(asked: Asked) -> None:
    assert "not what vllm said" in wrong(asked, heard(asked, "vllm", cut=1))
    assert "no final marker" in wrong(asked, heard(asked, "vllm", finished=False))
    assert "not what vllm said" in wrong(asked, replace(heard(asked, "ollama"), headers={"x-memos-provider": "vllm"}))
    assert "x-memos-provider is ''" in wrong(asked, replace(heard(asked, "vllm"), headers={}))


def test_answers_are_counted_from_the_gateways_metrics() -> None:
    page = (
        "# HELP memos_llm_requests_total Finished requests.\n"
        'memos_llm_requests_total{arm="baseline",outcome="ok",provider="ollama"} 3.0\n'
        'memos_llm_requests_total{arm="candidate",outcome="ok",provider="ollama"} 2.0\n'
        'memos_llm_requests_total{arm="candidate",outcome="server",provider="vllm"} 1.0\n'
        "memos_llm_flags_revision 4.0\n"
    )
    assert answered(page) == {"ollama": 5}
