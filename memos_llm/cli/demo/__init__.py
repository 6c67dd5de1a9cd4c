"""`llmctl demo`: the product in two minutes, on one machine without a GPU.

    processes      child processes and their end          stack     emulators, gateway, llmctl
    conversations  what is asked, what must be answered   applications  the real SDKs
    traffic        keeps the applications busy            tally     what the clients saw
    scenario       the story                              watch     what the gateway says meanwhile
    checks         the verdict                            screen, report  what the user sees
    background     what goes on beside the story          show      puts them together

Exit code 0 only if no client saw an error and the observed shares fit; else 1, saying what failed and where the logs
are; 128 + the signal's number when it was interrupted. Nothing outlives it.
"""

from pathlib import Path


def run(keep: bool = False, *, quick: bool = False, report: Path | None = None, as_json: bool = False) -> int:
    """Run the demo and return the exit code.

    Args:
        keep: leave everything running afterwards, until Ctrl-C.
        quick: a short one, for tests.
        report: write the findings there as JSON.
        as_json: print them on stdout, and everything else on stderr.

    Raises:
        Failure: an SDK is not installed.
    """
    import asyncio
    from importlib.util import find_spec

    from memos_llm.cli.failures import usage

    missing = [name for name in ("ollama", "openai") if find_spec(name) is None]
    if missing:
        raise usage(f"the demo drives the real SDKs, and {' and '.join(missing)} is not installed: scripts/install")
    from memos_llm.cli.demo.show import Options, show

    return asyncio.run(show(Options(keep=keep, quick=quick, report=report, as_json=as_json)))
