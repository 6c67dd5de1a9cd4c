"""`scripts/real_backends`: real servers up and down, and what is proved against them."""

import argparse
import asyncio
import fcntl
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import real_parity
import real_recordings
import real_sdk
import real_story
from real_install import CannotRun, cache_folder, say
from real_servers import EMBED, OLLAMA, VLLM, Server, Servers

DONE, FAILED, CANNOT, INTERRUPTED = 0, 1, 4, 130
PARTS = ("sdk", "parity", "story")


def main(arguments: Sequence[str]) -> int:
    """Exit code: see the script."""
    given = _parsed(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # minutes pass between two tables
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(cache):
            return _COMMANDS[given.command](Servers(cache), given)
    except KeyboardInterrupt:
        say("interrupted; what this command started is stopped")
        return INTERRUPTED
    except CannotRun as problem:
        return _cannot([problem])


def _up(servers: Servers, given: argparse.Namespace) -> int:
    problems = servers.up()
    _show(servers.running())
    return _cannot(problems) if problems else DONE


def _down(servers: Servers, given: argparse.Namespace) -> int:
    if not servers.running():
        say("nothing runs")
    servers.down()
    return DONE


def _test(servers: Servers, given: argparse.Namespace) -> int:
    with _started(servers), TemporaryDirectory(prefix="real_backends-") as scratch:
        results: dict[str, Any] = {}
        holding = [_PARTS[part](servers, Path(scratch), results) for part in ((given.only,) if given.only else PARTS)]
    if given.output is not None:
        given.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(f"\nreal_backends: {'all holds' if all(holding) else 'something does not hold'}")
    return DONE if all(holding) else FAILED


def _record(servers: Servers, given: argparse.Namespace) -> int:
    with _started(servers):
        made = asyncio.run(real_recordings.record(servers.running()))
    print(f"{real_recordings.FOLDER}: {', '.join(f'{count} of {name}' for name, count in made.items())}")
    return DONE


def _sdk(servers: Servers, scratch: Path, results: dict[str, Any]) -> bool:
    result = results["sdk"] = real_sdk.run(servers.running(), scratch)
    real_sdk.show(result)
    return real_sdk.holds(result)


def _parity(servers: Servers, scratch: Path, results: dict[str, Any]) -> bool:
    parity = asyncio.run(real_parity.compare(servers.running()))
    real_parity.show(parity, servers.running())
    results["parity"] = real_parity.as_json(parity, servers.running())
    return parity.holds


def _story(servers: Servers, scratch: Path, results: dict[str, Any]) -> bool:
    story = asyncio.run(real_story.run(servers, scratch))
    real_story.show(story)
    results["story"] = story.document()
    return story.holds


def _show(running: dict[str, Server]) -> None:
    for server in running.values():
        print(f"{server.name:10}  {server.url:22}  {server.version:7}  pid {server.pid}, ready in {server.ready_s:g} s")
    if OLLAMA in running and VLLM in running:
        addresses = f"OLLAMA_HOST={running[OLLAMA].url} VLLM_BASE_URL={running[VLLM].url}"
        print(f"\n{addresses} llmctl --config real.yaml init && llmctl --config real.yaml serve")
    if OLLAMA in running:
        print(f"OLLAMA_HOST={running[OLLAMA].url} ollama list      # and any Ollama client")
    if EMBED in running:
        print(f"embeddings: {running[EMBED].url}/v1/embeddings")


def _cannot(problems: Sequence[CannotRun]) -> int:
    for problem in problems:
        print(f"real_backends: {problem}\nreal_backends:   {problem.todo}", file=sys.stderr)
    return CANNOT


@contextmanager
def _started(servers: Servers) -> Iterator[None]:
    """All three servers; those that were not up before are stopped afterwards.

    Raises:
        CannotRun: this machine cannot run one of them.
    """
    before = set(servers.running())
    problems = servers.up()
    try:
        if problems:
            raise problems[0]
        yield
    finally:
        servers.down([name for name in servers.running() if name not in before])


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """One command at a time works on a cache folder."""
    with (cache / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another real_backends on {cache}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/real_backends")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in _COMMANDS:
        command = commands.add_parser(name)
        if name == "test":
            command.add_argument("--only", choices=PARTS)
            command.add_argument("-o", dest="output", type=Path)
    return parser.parse_args(arguments)


_COMMANDS = {"up": _up, "down": _down, "test": _test, "record": _record}
_PARTS = {"sdk": _sdk, "parity": _parity, "story": _story}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
