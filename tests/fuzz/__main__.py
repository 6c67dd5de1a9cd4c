"""`scripts/fuzz`."""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
from pathlib import Path

from fuzz.run import Report, fuzz, replay


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__, add_help=False)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--cases", type=int, default=None)
    parser.add_argument("--replay", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, default=Path("/tmp/memos_llm-fuzz"))
    parser.add_argument("-o", type=Path, default=None, dest="out")
    given = parser.parse_args()
    _on_one_core()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: no server outlives it
    if given.replay is not None:
        report = asyncio.run(replay(given.replay, given.keep / "replayed", _say))
    else:
        seed = random.randrange(2**31) if given.seed is None else given.seed
        _say(f"seed {seed}, {given.minutes:g} min")
        report = asyncio.run(fuzz(seed, given.minutes, given.keep, _say, given.cases))
    document = json.dumps(report.document(), indent=1, ensure_ascii=False)
    if given.out is not None:
        given.out.write_text(document + "\n")
    print(document if given.json else summary(report))
    return 1 if report.failed else 0


def _on_one_core() -> None:
    """All that it starts shares one processor: whoever fuzzes for an hour still wants to work."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _say(text: str) -> None:
    print(f"fuzz: {text}", file=sys.stderr, flush=True)


def summary(report: Report) -> str:
    """A table for people."""
    document = report.document()
    rate, minutes = document["per_second"], document["minutes"]
    lines = [f"seed {report.seed}: {report.total} requests in {minutes:g} min ({rate:g}/s)"]
    for kind, count in report.cases.most_common():
        answers = ", ".join(f"{status} {n}" for status, n in sorted(report.answers[kind].items()))
        lines.append(f"  {kind:<10} {count:>6}   {answers}")
    if report.faults:
        faults = ", ".join(f"{name} {n}" for name, n in report.faults.most_common())
        lines.append(f"  back end's faults: {faults}")
    lines.append(f"  controls {report.controls}, the slowest {report.slowest_control_s:.2f} s")
    for name, body in document["gateway"].items():
        lines.append(f"  gateway, {name:<5}: {body['sockets']} sockets, {body['files']} files, {body['rss_kb']} kB")
    for finding in report.findings:
        lines.append(f"WRONG case {finding.case.number} ({finding.case.kind}): {'; '.join(finding.problems)[:400]}")
    lines += [f"WRONG {each}" for each in report.violations]
    lines.append("NOT as it should be" if report.failed else "0 wrong answers, 0 tracebacks, 0 leaks")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
