"""Faults an emulator can be told to show, as data, and the board that decides which request gets one.

Decides nothing about bytes: a fault is a name with numbers; the engines and `playing` act on it.
Invariants: an unknown name or argument is an error that lists the choices; a fault ends by `count`, by `for_s`
or when cleared; with `every_s` it comes and goes; the choice by `rate` comes from a seeded generator, so a run repeats.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

BOTH = ("ollama", "vllm")


@dataclass(frozen=True, slots=True)
class Kind:
    """What can be set: `stage` says where it acts, `args` which arguments it reads besides the common ones."""

    help: str
    stage: str  # "connection" | "before" | "load" | "answer" | "engine"
    args: tuple[str, ...] = ()
    engines: tuple[str, ...] = BOTH


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "refuse": Kind("close the listening socket: connections are refused or reset", "connection"),
        "hang": Kind("accept the request and never answer", "before"),
        "hang_after_headers": Kind("send status and headers, then nothing", "before"),
        "slow_first_byte": Kind("wait before doing anything (seconds=1)", "before", ("seconds",)),
        "drift": Kind("wait longer and longer (seconds=1 more each minute)", "before", ("seconds",)),
        "garbage": Kind("answer bytes that are not HTTP, then close", "before"),
        "status": Kind("answer an error status in the server's own words (code=500)", "before", ("code",)),
        "model_missing": Kind("answer as if the model were not there (404)", "before"),
        "cut_before_content": Kind(
            "close after the headers, or after the role chunk (where=headers|preamble)", "answer", ("where", "reset")
        ),
        "cut_mid_stream": Kind("close abruptly after some content events (after=2)", "answer", ("after", "reset")),
        "stall_mid_stream": Kind("stop sending after some content events, stay open (after=2)", "answer", ("after",)),
        "error_mid_stream": Kind("in-band error after some content events (after=2)", "answer", ("after",)),
        "eof_without_done": Kind("well-formed end without the terminal marker (after=2)", "answer", ("after",)),
        "malformed": Kind("one event that is not JSON; a body that is not JSON (after=2)", "answer", ("after",)),
        "cold_load": Kind("load the model first, headers withheld (seconds=1)", "load", ("seconds",), ("ollama",)),
        "queue_full": Kind("503, too many requests wait", "before", (), BOTH),
        "runner_crash": Kind("the runner dies after some content events (after=2)", "answer", ("after",), ("ollama",)),
        "engine_dead": Kind("streams end in an error, requests get 500, /health 503", "engine", (), ("vllm",)),
        "hang_engine": Kind("requests hang, /health stays 200, no engine step", "engine", (), ("vllm",)),
        "no_auto_tools": Kind("as started without --enable-auto-tool-choice", "engine", (), ("vllm",)),
        "finish_abort": Kind('end with finish_reason "abort"', "answer", (), ("vllm",)),
        "no_usage": Kind("leave the usage chunk or object out", "answer", (), ("vllm",)),
        "repeat_tool_metadata": Kind("repeat id and name on the last tool delta", "answer", (), ("vllm",)),
    }
)
FAULTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        engine: MappingProxyType({name: kind.help for name, kind in KINDS.items() if engine in kind.engines})
        for engine in BOTH
    }
)
COMMON_ARGS = ("rate", "count", "for_s", "every_s", "all")
_ENGINE_ARGS = ("for_s", "every_s")  # such a fault hits the whole engine, so it cannot be for some requests only


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault to show.

    Args:
        rate: share of requests hit, 0 to 1. count: hit only the next N requests. for_s: seconds until it ends
            by itself. every_s: on for so many seconds, then off for as many, again and again.
        all: also on routes that are not inference routes.
        after: content events before it acts. seconds: how long. code: HTTP status.
        where: "headers" or "preamble". reset: end the connection by RST instead of FIN.
    """

    name: str
    rate: float = 1.0
    count: int | None = None
    for_s: float | None = None
    every_s: float | None = None
    all: bool = False
    after: int = 2
    seconds: float = 1.0
    code: int = 500
    where: str = "headers"
    reset: bool = False

    @property
    def stage(self) -> str:
        """Where it acts."""
        return KINDS[self.name].stage

    @classmethod
    def parse(cls, spec: str) -> Fault:
        """Read `name` or `name:key=value,key=value`.

        Raises:
            ValueError: unknown name or argument, or a value of the wrong type; the text lists the choices.
        """
        name, _, rest = spec.strip().partition(":")
        if name not in KINDS:
            raise ValueError(f"unknown fault {name!r}; choose from: {', '.join(KINDS)}")
        allowed = (*KINDS[name].args, *(_ENGINE_ARGS if KINDS[name].stage == "engine" else COMMON_ARGS))
        values: dict[str, Any] = {}
        for pair in filter(None, (part.strip() for part in rest.split(","))):
            key, _, text = pair.partition("=")
            if key not in allowed:
                raise ValueError(f"unknown argument {key!r} of fault {name!r}; choose from: {', '.join(allowed)}")
            values[key] = _value(name, key, text)
        return cls(name, **values)

    def __str__(self) -> str:
        given = [f"{f.name}={getattr(self, f.name)}" for f in fields(self)[1:] if getattr(self, f.name) != f.default]
        return self.name + (":" + ",".join(given) if given else "")


def _number_between(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError(f"{value} is not between {low} and {high}")
        return value

    return read


def _flag(text: str) -> bool:
    return {"": True, "true": True, "1": True, "false": False, "0": False}[text.lower()]


def _place(text: str) -> str:
    return {"headers": "headers", "preamble": "preamble"}[text]


_FOREVER = 10.0 * 365 * 86400
_READERS: Mapping[str, Callable[[str], Any]] = {
    "rate": _number_between(0.0, 1.0),
    "count": int,
    "for_s": _number_between(0.0, _FOREVER),
    "every_s": _number_between(0.01, _FOREVER),
    "all": _flag,
    "after": int,
    "seconds": _number_between(0.0, _FOREVER),
    "code": int,
    "where": _place,
    "reset": _flag,
}


def _value(name: str, key: str, text: str) -> Any:
    try:
        return _READERS[key](text)
    except (ValueError, KeyError) as reason:
        raise ValueError(f"bad value {text!r} for {key!r} of fault {name!r}: {reason}") from reason


@dataclass(slots=True)
class _Entry:
    fault: Fault
    since: float
    until: float | None
    left: int | None

    def on(self, now: float) -> bool:
        every_s = self.fault.every_s
        return every_s is None or int((now - self.since) / every_s) % 2 == 0

    def changes_at(self, now: float) -> list[float]:
        every_s = self.fault.every_s
        flip = [] if every_s is None else [self.since + (int((now - self.since) / every_s) + 1) * every_s]
        return flip if self.until is None else [self.until, *flip]


class FaultBoard:
    """The faults set now. `changed` is called after every change and may look at `refusing` and `active`."""

    def __init__(self, engine: str, *, seed: int, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._random = random.Random(seed)
        self._clock = clock
        self._entries: list[_Entry] = []
        self.fired: Counter[str] = Counter()
        self.changed: Callable[[], None] = lambda: None

    def set(self, *specs: str | Fault) -> None:
        """Replace all faults by these."""
        entries = self._read(specs)
        self._entries = entries
        self.changed()

    def add(self, *specs: str | Fault) -> None:
        """Add faults to those set."""
        self._entries = [*self._entries, *self._read(specs)]
        self.changed()

    def clear(self, name: str | None = None) -> None:
        """Remove all faults, or those of one name."""
        self._entries = [] if name is None else [e for e in self._entries if e.fault.name != name]
        self.changed()

    def current(self) -> list[Fault]:
        """The faults still set, with the count that is left."""
        return [replace(entry.fault, count=entry.left) for entry in self._alive()]

    def active(self, name: str) -> bool:
        """Whether a fault that acts on the whole server (not on single requests) is on."""
        return any(entry.fault.name == name for entry in self._on())

    def whole(self, name: str) -> bool:
        """Whether a fault hits every request, until it is cleared or its time is over."""
        return any(e.fault.name == name and e.fault.rate >= 1.0 and e.left is None for e in self._on())

    def refusing(self) -> bool:
        """Whether the listening socket is to be closed: `refuse` on every connection, without a count."""
        return self.whole("refuse")

    def next_change_s(self) -> float | None:
        """Seconds until a fault comes, goes or ends by itself, None if none will."""
        now = self._clock()
        changes = [at for entry in self._alive() for at in entry.changes_at(now)]
        return max(0.0, min(changes) - now) if changes else None

    def take(self, stage: str, *, data_route: bool = True) -> Fault | None:
        """The fault this request gets at this stage, if any; uses up one of its count."""
        for entry in self._on():
            fault = entry.fault
            if fault.stage != stage or not (data_route or fault.all):
                continue
            if self._random.random() < fault.rate:
                if entry.left is not None:
                    entry.left -= 1
                self.fired[fault.name] += 1
                return self._grown(entry)
        return None

    def _grown(self, entry: _Entry) -> Fault:
        fault = entry.fault
        if fault.name != "drift":
            return fault
        return replace(fault, seconds=fault.seconds * (self._clock() - entry.since) / 60)

    def _on(self) -> list[_Entry]:
        now = self._clock()
        return [entry for entry in self._alive() if entry.on(now)]

    def _alive(self) -> list[_Entry]:
        now = self._clock()
        self._entries = [
            e for e in self._entries if (e.until is None or now < e.until) and (e.left is None or e.left > 0)
        ]
        return self._entries

    def _read(self, specs: Iterable[str | Fault]) -> list[_Entry]:
        return [self._entry(Fault.parse(spec) if isinstance(spec, str) else spec) for spec in specs]

    def _entry(self, fault: Fault) -> _Entry:
        choices = FAULTS[self._engine]
        if fault.name not in choices:
            raise ValueError(f"{self._engine} has no fault {fault.name!r}; choose from: {', '.join(choices)}")
        now = self._clock()
        return _Entry(fault, now, None if fault.for_s is None else now + fault.for_s, fault.count)
