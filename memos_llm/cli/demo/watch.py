"""What the gateway says of vLLM meanwhile: breaker and last probe, read from /metrics as a dashboard would."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import httpx

from memos_llm.cli.demo.stack import Stack
from memos_llm.cli.demo.tally import CANDIDATE

LOOK_S = 0.25
_SAMPLE = re.compile(r"memos_llm_(\w+)\{(.*)\} (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Watch:
    """Follows the candidate; `tell` hears of each change. `share` is the one in force, 0…1."""

    def __init__(self, stack: Stack, tell: Callable[[str], None]) -> None:
        self.breaker, self.up, self.share = "closed", True, 0.0
        self._stack, self._tell = stack, tell

    @property
    def well(self) -> bool:
        return self.up and self.breaker == "closed"

    async def run(self) -> None:
        """Forever."""
        while True:
            with suppress(httpx.TransportError):  # a busy machine: look again; or it ended, as its process tells
                self._read((await self._stack.get("/metrics")).text)
            await asyncio.sleep(LOOK_S)

    def _read(self, page: str) -> None:
        for name, labels, value in samples(page):
            if labels.get("provider") != CANDIDATE:
                continue
            if name == "breaker_state" and value == 1:
                self._breaker_is(labels["state"])
            elif name == "provider_up":
                self._up_is(value == 1)
            elif name == "share_ratio" and labels["component"] == "*":
                self.share = value

    def _breaker_is(self, state: str) -> None:
        if state != self.breaker:
            self.breaker = state
            self._tell(f"the gateway's breaker for vLLM is {state.replace('_', '-')}")

    def _up_is(self, up: bool) -> None:
        if up != self.up:
            self.up = up
            self._tell(f"the gateway's probe finds vLLM {'up' if up else 'down'}")


def samples(page: str) -> list[tuple[str, dict[str, str], float]]:
    """Name without our prefix, labels, value of every labelled sample of ours."""
    found = (_SAMPLE.match(line) for line in page.splitlines())
    return [(m[1], dict(_LABEL.findall(m[2])), float(m[3])) for m in found if m]


def answered(page: str) -> Counter[str]:
    """Requests answered well, by provider, as the gateway counted them."""
    counts: Counter[str] = Counter()
    for name, labels, value in samples(page):
        if name == "requests_total" and labels["outcome"] == "ok":
            counts[labels["provider"]] += int(value)
    return counts
