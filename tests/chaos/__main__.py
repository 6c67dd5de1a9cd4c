"""`scripts/chaos`."""

import argparse
import asyncio
import json
import random
import signal
import sys
from pathlib import Path

from chaos.report import summary
from chaos.run import run
from chaos.servers import Failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__, add_help=False)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, default=Path("/tmp/memos_llm-chaos"))
    parser.add_argument("-o", type=Path, default=None, dest="out")
    given = parser.parse_args()
    seed = random.randrange(2**31) if given.seed is None else given.seed
    keep = given.keep / str(seed)
    print(f"chaos: seed {seed}, {given.seconds:g} s, {given.workers} clients", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it takes everything down with it
    try:
        report = asyncio.run(run(seed, given.seconds, given.workers, _say, keep))
    except BaseExceptionGroup as group:
        failed = group.subgroup(Failed)
        if failed is None:
            raise
        _say(f"could not go on (seed {seed}): {failed.exceptions[0]}")
        return 2
    except Failed as error:
        _say(f"could not go on (seed {seed}): {error}")
        return 2
    document = json.dumps(report.document(), indent=1, ensure_ascii=False)
    if given.out is not None:
        given.out.write_text(document + "\n")
    print(document if given.json else summary(report, keep))
    return 1 if report.violations else 0


def _say(text: str) -> None:
    print(f"chaos: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
