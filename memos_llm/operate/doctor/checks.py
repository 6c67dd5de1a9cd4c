"""One check and what comes of all of them: the documents of `llmctl doctor --json`."""

from enum import StrEnum

from msgspec import Struct

from memos_llm.core.lines import one_line


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


class Check(Struct, frozen=True, kw_only=True):
    """One check.

    Attributes:
        id: stable, dotted: what is checked, then of what (`endpoint.up.vllm.0`, `model.context.qwen3:8b`).
        seen: one line; of a skipped check, why it was. fix: one line, what to do; empty when there is nothing to.
    """

    id: str
    group: str
    verdict: Verdict
    seen: str
    fix: str = ""


class Checkup(Struct, frozen=True, kw_only=True):
    """All checks, and the worst verdict among them. `at` is Unix time."""

    verdict: Verdict
    checks: tuple[Check, ...]
    deep: bool
    at: float
    version: str


class Group:
    """Makes the checks of one group."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ok(self, id: str, seen: str, fix: str = "") -> Check:
        return self._made(Verdict.OK, id, seen, fix)

    def warn(self, id: str, seen: str, fix: str) -> Check:
        return self._made(Verdict.WARN, id, seen, fix)

    def fail(self, id: str, seen: str, fix: str) -> Check:
        return self._made(Verdict.FAIL, id, seen, fix)

    def skipped(self, id: str, why: str, fix: str = "") -> Check:
        return self._made(Verdict.SKIPPED, id, why, fix)

    def _made(self, verdict: Verdict, id: str, seen: str, fix: str) -> Check:
        return Check(id=id, group=self.name, verdict=verdict, seen=one_line(seen), fix=one_line(fix))


def counted(many: int, what: str) -> str:
    """`1 model`, `2 models`."""
    return f"{many} {what}{'' if many == 1 else 's'}"


def listed(names: tuple[str, ...], most: int = 5) -> str:
    """`a, b, c and 4 more`."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
