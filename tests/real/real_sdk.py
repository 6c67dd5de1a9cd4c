"""The suite of the client libraries, tests/clients, with the gateway in front of the real servers."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from real_servers import EMBED, OLLAMA, VLLM, Server

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900


def run(servers: Mapping[str, Server], folder: Path) -> dict[str, Any]:
    """Every test at share 0 and at share 1. `folder`: for pytest's report."""
    report, began = folder / "sdk.xml", time.monotonic()
    urls = " ".join(servers[name].url for name in (OLLAMA, VLLM, EMBED))
    with (folder / "sdk.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "tests/clients", "-q", f"--junitxml={report}"],
            cwd=ROOT,
            env={**os.environ, "MEMOS_LLM_REAL_SERVERS": urls},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            process.wait(LIMIT_S)
        except BaseException:  # Ctrl-C too
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if not report.exists():
        raise RuntimeError(f"the SDK suite did not run: {(folder / 'sdk.log').read_text()[-2000:]}")
    return {**read(report), "seconds": round(time.monotonic() - began)}


def read(report: Path) -> dict[str, Any]:
    """How many passed, which failed, and which were left out and why."""
    passed, failed, left_out = 0, {}, {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        if (
            bad := next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
        ) is not None:
            failed[name] = bad.get("message", "")
        elif (skipped := case.find("skipped")) is not None:
            left_out[name] = skipped.get("message", "")
        else:
            passed += 1
    return {"passed": passed, "failed": failed, "left_out": left_out}


def holds(result: Mapping[str, Any]) -> bool:
    return bool(result["passed"]) and not result["failed"]


def show(result: Mapping[str, Any]) -> None:
    passed, failed = result["passed"], len(result["failed"])
    print(f"\nSDK suite at share 0 and 1: {passed} passed, {failed} failed, in {result['seconds']} s")
    for name, why in result["failed"].items():
        print(f"  failed: {name}: {why[:300]}")
    for why, count in Counter(result["left_out"].values()).items():
        names = sorted({name.split("[")[0] for name, reason in result["left_out"].items() if reason == why})
        print(f"  left out, {why} ({count}): {', '.join(names)}")
