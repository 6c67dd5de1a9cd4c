"""Fixtures of the outermost tests; each test has a home folder of its own, so that none meets a user's files."""

import asyncio
import functools
import gc
import importlib
import importlib.util
import os
import signal
import types
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn.server
from hypothesis import settings
from redis_server import RedisServer, redis_server
from stack import Stack, open_stack

settings.register_profile("no deadline", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("no deadline")

HTTP_LIBRARIES = ("httpx", "httpx2")  # openai takes the second where it is installed


def pytest_configure() -> None:
    """A shell starts what runs in the background deaf to Ctrl-C, and all that it starts; some tests press it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose client libraries keep sockets for themselves come last: no other file is blamed for those."""
    items.sort(key=lambda item: any("swept" in mark.args for mark in item.iter_markers("usefixtures")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What was captured may quote a hostile lone surrogate, which pytest-xdist cannot carry to where it is shown."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session", autouse=True)
def _no_idle_waits() -> Iterator[None]:
    """What every test of a gateway would pay again, and none is about.

    uvicorn looks a tenth of a second apart whether it shall end, and whether it has: 0.2 s for each gateway.
    httpx reads the system's certificates for each client: 20 ms of a processor. Gateways that run as processes
    of their own do as they always do.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", _Prompt("asyncio"))
        for name in HTTP_LIBRARIES:
            if importlib.util.find_spec(name):
                home = importlib.import_module(f"{name}._transports.default")
                patch.setattr(home, "create_ssl_context", _once_an_environment(home.create_ssl_context))
        yield


class _Prompt(types.ModuleType):
    """asyncio, but that looks again at once."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(delay: float) -> None:
        await asyncio.sleep(min(delay, 0.01))


def _once_an_environment(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.cache
    def made(environment: tuple[str | None, ...], trust_env: bool) -> Any:
        return make(trust_env=trust_env)

    def context(verify: Any = True, cert: Any = None, trust_env: bool = True) -> Any:
        if verify is not True or cert is not None:
            return make(verify, cert, trust_env)
        return made((os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")), trust_env)

    return context


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with open_stack(tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """One for all tests that need no more than a prefix of their own."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def transports() -> Iterator[list[Any]]:
    """Every transport of httpx there is: what those client libraries connect by, and keep."""
    libraries = [importlib.import_module(name) for name in HTTP_LIBRARIES if importlib.util.find_spec(name)]
    kinds = [kind for library in libraries for kind in (library.HTTPTransport, library.AsyncHTTPTransport)]
    known = [each for each in gc.get_objects() if type(each) in kinds]
    with pytest.MonkeyPatch.context() as patch:
        for kind in kinds:
            patch.setattr(kind, "__init__", _noted(kind.__init__, known))
        yield known
    known.clear()
    gc.collect()  # what is open all the same is told of this file, and not of the next


def _noted(begin: Callable[..., None], known: list[Any]) -> Callable[..., None]:
    def noted(transport: Any, *args: Any, **options: Any) -> None:
        begin(transport, *args, **options)
        known.append(transport)

    return noted


@pytest.fixture
async def swept(transports: list[Any]) -> AsyncIterator[None]:
    """Closes what a client library leaves open, while the test's loop still runs; a transport may be used again."""
    yield
    for transport in transports:
        if hasattr(transport, "aclose"):
            await transport.aclose()
        else:
            transport.close()
    await asyncio.sleep(0.01)
