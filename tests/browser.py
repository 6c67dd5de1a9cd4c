"""A real Chromium, driven over its DevTools protocol: no driver to install, and the protocol is JSON on a websocket."""

import asyncio
import json
import os
import shutil
import signal
from asyncio.subprocess import DEVNULL
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from stack import until

NAMES = ("chromium", "chromium-browser", "google-chrome")
START_S = 30.0
LEAVE_S = 5.0
LIMIT_S = 10.0  # for a condition on a page

OPTIONS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "about:blank",
)


class Page:
    """One tab. `dialogs` and `problems` hold every alert, uncaught error and refusal by the page's policy."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._count = socket, 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())
        self._loaded = asyncio.Event()
        self.dialogs: list[str] = []
        self.problems: list[str] = []

    async def aclose(self) -> None:
        """Ends the whole browser: asked to, it takes its processes along."""
        with suppress(ConnectionError):  # it may go before it answers
            await self.call("Browser.close")
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol.

        Raises:
            AssertionError: the browser refused it.
        """
        self._count += 1
        answer = self._answers[self._count] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._count, "method": method, "params": params})
        async with asyncio.timeout(LIMIT_S):
            said = await answer
        assert "error" not in said, (method, said)
        result: dict[str, Any] = said["result"]
        return result

    async def open(self, url: str) -> None:
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self._load("Page.navigate", url=url)

    async def reload(self) -> None:
        await self._load("Page.reload")

    async def run(self, script: str) -> Any:
        """The value of an expression in the page.

        Raises:
            AssertionError: it threw.
        """
        said = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    async def sees(self, condition: str, timeout_s: float = LIMIT_S) -> None:
        """Wait until a condition holds in the page.

        Raises:
            AssertionError: it did not; says what the page showed.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not await self.run(condition):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"never true: {condition}\n{await self.text('body')}\n{self.problems}") from None

    async def text(self, selector: str) -> str:
        """What a person reads there."""
        found: str = await self.run(f"document.querySelector({json.dumps(selector)}).innerText")
        return found

    async def shows(self, selector: str, words: str, timeout_s: float = LIMIT_S) -> None:
        """Wait until a part of the page shows some words; as `sees`."""
        part = f"document.querySelector({json.dumps(selector)})"
        await self.sees(
            f"({part}?.checkVisibility() ?? false) && {part}.innerText.includes({json.dumps(words)})", timeout_s
        )

    async def click(self, selector: str) -> None:
        """A real click of the mouse, where the element is."""
        place = f"document.querySelector({json.dumps(selector)})"
        await self.run(f"{place}.scrollIntoView({{block: 'center'}})")
        x, y = await self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({place}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def write(self, selector: str, words: str) -> None:
        """Type into a field, in place of what is there."""
        await self.run(f"document.querySelector({json.dumps(selector)}).select()")
        await self.call("Input.insertText", text=words)

    async def press(self, key: str, code: int) -> None:
        """One key, by its name and Windows' code for it."""
        letters = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = letters if kind == "keyDown" else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    async def picture(self, *, width: int, scheme: str = "light") -> bytes:
        """The whole page as a PNG."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        metrics = {"width": width, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", height=800, **metrics)
        height = await self.run("document.documentElement.scrollHeight")
        await self.call("Emulation.setDeviceMetricsOverride", height=height, **metrics)
        taken = await self.call("Page.captureScreenshot", format="png")
        return b64decode(taken["data"])

    async def _load(self, method: str, **params: Any) -> None:
        self._loaded.clear()
        await self.call(method, **params)
        async with asyncio.timeout(LIMIT_S):
            await self._loaded.wait()

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
                continue
            match said["method"], said["params"]:
                case "Page.loadEventFired", _:
                    self._loaded.set()
                case "Page.javascriptDialogOpening", params:
                    self.dialogs.append(params["message"])
                case "Runtime.exceptionThrown", params:
                    self.problems.append(str(params["exceptionDetails"]))
                case "Log.entryAdded", {"entry": {"level": "error", "source": source} as entry} if source != "network":
                    self.problems.append(entry["text"])
        for answer in self._answers.values():
            answer.set_exception(ConnectionResetError("the browser has ended"))


@asynccontextmanager
async def open_page(folder: Path) -> AsyncIterator[Page]:
    """A tab of a browser of its own, whose profile is under `folder`."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail("no Chromium here: run `scripts/install --browser`, or install the package chromium", pytrace=False)
    profile = folder / "chromium"
    as_root = ("--no-sandbox",) if os.geteuid() == 0 else ()  # Chromium's sandbox refuses to run as root
    process = await asyncio.create_subprocess_exec(
        found, f"--user-data-dir={profile}", *as_root, *OPTIONS, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True
    )
    try:
        address = profile / "DevToolsActivePort"  # its port, once it listens
        await until(lambda: process.returncode is not None or (address.exists() and address.read_text()), START_S)
        assert process.returncode is None, f"{found} ended at once with {process.returncode}"
        async with aiohttp.ClientSession(f"http://127.0.0.1:{address.read_text().split()[0]}") as session:
            tabs = await (await session.get("/json/list")).json()
            tab = next(tab for tab in tabs if tab["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                try:
                    yield page
                finally:
                    await page.aclose()
    finally:
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), LEAVE_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
